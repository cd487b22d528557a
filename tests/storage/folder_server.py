"""A folder as a server of objects, which counts what it is asked and fails as it is told: the reading half of S3, and plain http.

It checks no signature and writes nothing; a real S3 is of tests/sites. What it counts is what arrives, whatever client asks.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

DROP, CUT, HANG = "drop", "cut", "hang"
"""Ways to fail that are no status: the connection is closed without an answer, in the middle of one, or there is none."""

NAMES = {403: "AccessDenied", 404: "NoSuchKey", 429: "TooManyRequests", 500: "InternalError", 503: "SlowDown"}

ENTRY = "<Contents><Key>{key}</Key><Size>{size}</Size><ETag>&quot;{etag}&quot;</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"


@dataclass(frozen=True)
class Asked:
    """A request: its method, its key below the bucket (of a listing its prefix), whether it lists, its number."""

    method: str
    key: str
    lists: bool
    number: int

    @property
    def is_chunk(self) -> bool:
        """For part of an array, and not for what is known of it."""
        return not self.lists and bool(self.key) and self.key.rpartition("/")[2] not in METADATA


METADATA = {"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"}


@dataclass
class FolderServer:
    """What such a server is asked, and how it is to fail.

    Args:
        root: The folder; those in it are the buckets.
        fails: Of a request: a status, one of `DROP`, `CUT`, `HANG`, or None to answer it. May be set at any time.
        endpoint: Its address.
        chunked: Whether whole objects are sent without telling their length first.
    """

    root: Path
    fails: Callable[[Asked], int | str | None] = lambda asked: None
    endpoint: str = ""
    chunked: bool = False
    asked: list[Asked] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, method: str, key: str, *, lists: bool) -> Asked:
        with self.lock:
            self.asked.append(Asked(method, key, lists, len(self.asked)))
            return self.asked[-1]

    def forget(self) -> None:
        """Count from here."""
        with self.lock:
            self.asked.clear()

    def chunks(self) -> Counter[str]:
        """How often each object was asked for that is part of an array."""
        return Counter(asked.key for asked in list(self.asked) if asked.is_chunk)


def a_share_of(share: float, how: int | str, seed: int = 0) -> Callable[[Asked], int | str | None]:
    """Fail so at random."""
    numbers, lock = random.Random(seed), threading.Lock()

    def fails(asked: Asked) -> int | str | None:
        with lock:
            return how if numbers.random() < share else None

    return fails


class Handler(BaseHTTPRequestHandler):
    """Answers for the folder of its server."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        folder: FolderServer = self.server.folder
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        query = parse_qs(url.query, keep_blank_values=True)
        lists = "list-type" in query
        asked = folder.note(self.command, query.get("prefix", [""])[0] if lists else key, lists=lists)
        if (fault := folder.fails(asked)) and fault != CUT:
            self.fail(fault)
        elif lists:
            self.answer(200, listing(folder.root / bucket, query))
        elif (path := folder.root / bucket / key).is_file():
            self.send_object(path.read_bytes(), cut=fault == CUT)
        else:
            self.fail(404)

    do_HEAD = do_GET  # noqa: N815 - the names of http.server

    def fail(self, how: int | str) -> None:
        if isinstance(how, int):
            name = NAMES.get(how, "Error")
            self.answer(how, f"<Error><Code>{name}</Code><Message>because of {name}</Message></Error>".encode())
            return
        if how == HANG:
            self.server.folder.over.wait()
        self.close_connection = True

    def send_object(self, content: bytes, *, cut: bool) -> None:
        wanted = self.headers.get("Range")
        if wanted is None:
            self.answer(200, content, cut=cut)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(len(content) - int(last), 0)
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= len(content):
            self.fail(416)
            return
        self.answer(206, content[start:stop], cut=cut, range_=f"bytes {start}-{stop - 1}/{len(content)}")

    def answer(self, status: int, body: bytes, *, cut: bool = False, range_: str = "") -> None:
        self.send_response(status)
        chunked = self.server.folder.chunked and status == 200
        given = {"ETag": '"0"', "Accept-Ranges": "bytes", "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        given |= {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(len(body))}
        for name, value in (given | ({"Content-Range": range_} if range_ else {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            whole = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
            self.wfile.write(whole[: len(whole) // 2] if cut else whole)
        self.close_connection = self.close_connection or cut

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A thread a connection, which end with the process: a client may keep its own open."""

    daemon_threads = True
    request_queue_size = 128
    folder: FolderServer

    def handle_error(self, *_: object) -> None:
        pass  # a client that gave up


@contextmanager
def serve_folder(root: Path) -> Iterator[FolderServer]:
    """Serve a folder until the context ends."""
    with Server(("127.0.0.1", 0), Handler) as server:
        server.folder = folder = FolderServer(root, endpoint=f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield folder
        finally:
            folder.over.set()
            server.shutdown()
            thread.join()


def listing(bucket: Path, query: dict[str, list[str]]) -> bytes:
    """The answer to a listing, of a thousand keys at most, as S3 gives it."""
    prefix, delimiter = (query.get(name, [""])[0] for name in ("prefix", "delimiter"))
    after = query.get("continuation-token", query.get("start-after", [""]))[0]
    most = int(query.get("max-keys", ["1000"])[0])
    keys = sorted(str(path.relative_to(bucket)) for path in bucket.rglob("*") if path.is_file())
    found: dict[str, str] = {}
    for key in keys:
        if not key.startswith(prefix) or key <= after:
            continue
        inner, cut, _ = key.removeprefix(prefix).partition(delimiter) if delimiter else (key, "", "")
        if cut:
            found[f"{prefix}{inner}{delimiter}"] = (
                f"<CommonPrefixes><Prefix>{escape(prefix + inner + delimiter)}</Prefix></CommonPrefixes>"
            )
        else:
            status = (bucket / key).stat()
            found[key] = ENTRY.format(key=escape(key), size=status.st_size, etag=status.st_mtime_ns)
    shown = dict(list(found.items())[:most])
    more = len(found) > most
    token = f"<NextContinuationToken>{escape(list(shown)[-1])}</NextContinuationToken>" if more else ""
    return (
        f"<ListBucketResult><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(shown)}</KeyCount><MaxKeys>{most}</MaxKeys>"
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(shown.values())}</ListBucketResult>"
    ).encode()
