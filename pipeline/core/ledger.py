"""The ledger: an append-only record of tiles done, failed or found invalid, and the state that it adds up to.

One JSON object a line, which ends with the CRC-32 of all before it. The driver alone writes it, after a tile's write is
durable, so a line is never ahead of the bytes that it vouches for. A last line without its end was torn by a kill and counts
for nothing. A line that was damaged counts for nothing either: its tile is computed again, and no other. Lines without a
checksum are of versions that wrote none.

A record says of which stage of tiles it is, where that is not the first one, `infer`: lines of it are what they always were.

Where the values that the network sees were measured by a survey, the first record of a plan says which those are. Tiles that follow it stand
by them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, Literal, TypeGuard, get_args
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

Units = dict[str, str | None]
"""SHA-256 of the stored bytes by object key; None where an all-fill unit left no object.

Not CRC-32C: chunks and shard indices end with their own, and the CRC of data followed by its CRC is one constant, so
all intact objects would have the same checksum, and two that changed places would go unseen.
"""

State = Literal["done", "failed", "invalid"]

INFER = "infer"

TILED = (INFER,)
"""The stages of tiles, in the order in which they came to be. A new one goes to the end: locks are counted by its place."""

_CHECKSUM = ', "crc32": "'
_END = re.compile(r'(?<=, "crc32": "[0-9a-f]{8}"\})')
"""Where a record ends, also where the end of its line was lost."""

_CODES: dict[str, int] = {"todo": 0, "done": 1, "failed": 2, "invalid": 3}


@dataclass(frozen=True, slots=True)
class TileRecord:
    """What became of a tile.

    Args:
        tile: Its index.
        state: `done`, `failed`, or `invalid` (found by verify).
        fingerprint: Of the plan that it belongs to.
        units: Checksums of what was written.
        seconds: Wall time of the tile on its worker.
        read_seconds: Reading and decoding, beside the computation.
        write_seconds: Encoding and writing, beside the computation.
        wait_seconds: That the computation waited for either.
        peak_bytes: Peak resident memory of the worker process so far.
        worker: Which worker.
        attempt: 1 the first.
        error: Why it failed or is invalid.
        stage: Whose tile it is, one of `TILED`.
        survey: Digest of the statistics that it was computed by; empty where the plan has its numbers.
    """

    tile: int
    state: State
    fingerprint: str
    units: Units = field(default_factory=dict)
    seconds: float = 0.0
    read_seconds: float = 0.0
    write_seconds: float = 0.0
    wait_seconds: float = 0.0
    peak_bytes: int = 0
    worker: str = ""
    attempt: int = 1
    error: str = ""
    stage: str = INFER
    survey: str = ""

    def to_line(self) -> str:
        return checked_line({key: value for key, value in _content(self).items() if value not in ("", {})})


@dataclass(frozen=True, slots=True)
class Session:
    """One session of the driver at a stage of tiles.

    Args:
        fingerprint: Of the plan.
        tiles: Tiles done in it.
        seconds: From the first submission to the last durable write; start of cluster and model excluded.
        cluster_seconds: Start of the workers.
        model_seconds: Loading the network on them.
        workers: Worker processes.
        ended: ISO 8601, UTC.
        stage: Which, one of `TILED`.
    """

    fingerprint: str
    tiles: int
    seconds: float
    cluster_seconds: float
    model_seconds: float
    workers: int
    ended: str
    stage: str = INFER

    def to_line(self) -> str:
        return checked_line({"session": _content(self)})


@dataclass(frozen=True, slots=True)
class StatisticsRecord:
    """Which statistics the tiles of a plan stand by, from here on.

    Args:
        fingerprint: Of the plan.
        digest: Of the statistics; empty: the tiles before stand by none that holds, and new ones are to be measured.
        values: Their content, so that they can be put back where their file is lost.
        stage: Whose tiles, one of `TILED`.
    """

    fingerprint: str
    digest: str
    values: Mapping[str, object]
    stage: str = INFER

    def to_line(self) -> str:
        return checked_line({"statistics": _content(self)})


Record = TileRecord | Session | StatisticsRecord


def _content(record: Record) -> dict[str, Any]:
    """The fields of a record's line."""
    content = asdict(record)
    if record.stage == INFER:
        del content["stage"]
    return content


class Progress:
    """Which tiles of a stage are done: one byte a tile, whatever the ledger's length.

    Args:
        tiles: Of the stage.
        fingerprint: Of the plan.
        stage: Which, one of `TILED`.
    """

    def __init__(self, tiles: int, fingerprint: str, stage: str = INFER) -> None:
        self._codes = np.zeros(tiles, dtype=np.uint8)
        self.fingerprint = fingerprint
        self.stage = stage
        self.stand_by = ""
        """Digest of the statistics that its tiles stand by; empty where there are none."""
        self.surveyed: StatisticsRecord | None = None
        """The same with their content, where the ledger has that."""

    def owns(self, record: Record) -> TypeGuard[TileRecord]:
        """Whether a record is of a tile of this stage and plan."""
        return (
            isinstance(record, TileRecord)
            and (record.stage, record.fingerprint) == (self.stage, self.fingerprint)
            and 0 <= record.tile < len(self._codes)
        )

    def add(self, record: Record) -> None:
        """Take a record in; a session, and whatever is of another plan or stage, are passed over.

        Tiles stand by one set of statistics: where a record is of another than those before, these are not done any more. So a line that is
        damaged leaves no tile of one beside tiles of the other.
        """
        if self.owns(record):
            if record.state == "done":
                self._stand_by(record.survey)
            self._codes[record.tile] = _CODES[record.state]
        elif isinstance(record, StatisticsRecord) and (record.stage, record.fingerprint) == (
            self.stage,
            self.fingerprint,
        ):
            self._stand_by(record.digest)
            self.surveyed = record if record.digest else None

    def _stand_by(self, digest: str) -> None:
        if digest != self.stand_by:
            self._codes[self.done()] = 0
            self.stand_by, self.surveyed = digest, None

    def count(self, state: str) -> int:
        return int(np.count_nonzero(self._codes == _CODES[state]))

    def is_done(self, tile: int) -> bool:
        return bool(self._codes[tile] == _CODES["done"])

    def done(self) -> NDArray[np.bool]:
        """Whether each tile is done."""
        return np.equal(self._codes, _CODES["done"])

    @property
    def total(self) -> int:
        return len(self._codes)

    def to_do(self) -> NDArray[np.intp]:
        """Indices of the tiles without a valid entry, in order; those that failed before come last."""
        failed = self._codes == _CODES["failed"]
        return np.concatenate([np.flatnonzero((self._codes != _CODES["done"]) & ~failed), np.flatnonzero(failed)])


def replay(records: Iterable[Record], *stages: Progress) -> None:
    """Have the progress of any number of stages as of the end of a ledger, by one pass over it."""
    for record in records:
        for progress in stages:
            progress.add(record)


def parse_lines(
    lines: Iterable[str],
    on_damage: Callable[[int, str], None] = lambda number, why: None,  # noqa: ARG005 - names say what is reported
) -> Iterator[Record]:
    """Records of a ledger, in order; what is damaged is passed over.

    Args:
        lines: Of the ledger, each with its end. One without is torn, or a piece of one that is too long.
        on_damage: Called with the number of each damaged line, and what is wrong with it.

    Raises:
        ValueError: A line is whole, and no record that this version knows.
    """
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            continue
        try:
            records = list(_records(line[:-1], number))
        except _Damaged as damage:
            on_damage(number, str(damage))
            continue
        if any(record is None for record in records):
            on_damage(number, "its checksum is not that of its text")
        yield from (record for record in records if record is not None)


class _Damaged(Exception):  # noqa: N818 - it ends a line, not a reading
    pass


def checked_line(content: Mapping[str, object]) -> str:
    """An object as a line of JSON that ends with the checksum of all before it."""
    text = json.dumps(content)[:-1]
    return f'{text}{_CHECKSUM}{_checksum(text)}"}}\n'


def checked_content(line: str) -> dict[str, object] | None:
    """What `checked_line` wrote; None where it is not whole."""
    text = line[: -len(_CHECKSUM) - 11]
    if not text or line != f'{text}{_CHECKSUM}{_checksum(text)}"}}\n':
        return None
    content: dict[str, object] = json.loads(f"{text}}}")
    return content


def _checksum(text: str) -> str:
    return f"{crc32(text.encode()):08x}"


def _records(line: str, number: int) -> Iterator[Record | None]:
    """The records of a line: one; of one that lost its end, two. None for each that is damaged."""
    if _CHECKSUM not in line:
        try:
            yield _record(json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise _Damaged(f"it is no record ({error})") from error
        return
    for piece in filter(None, _END.split(line)):
        begin = max(*map(piece.rfind, _BEGINNINGS), 0)  # quotes within a record are escaped
        if begin:
            yield None
        text = piece[begin : -len(_CHECKSUM) - 10]
        if piece[begin:] != f'{text}{_CHECKSUM}{_checksum(text)}"}}':
            yield None
            continue
        try:
            yield _record(json.loads(f"{text}}}"))
        except (ValueError, TypeError) as error:
            raise ValueError(f"line {number} is whole, but no record that this version knows ({error})") from error


_BEGINNINGS = ('{"tile": ', '{"session": ', '{"statistics": ')
"""Of records, as text."""

_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("tile", "peak_bytes", "attempt", "tiles", "workers"), int),
    **dict.fromkeys(("state", "fingerprint", "worker", "error", "ended", "stage", "digest", "survey"), str),
    **dict.fromkeys(("seconds", "read_seconds", "write_seconds", "wait_seconds"), (int, float)),
    **dict.fromkeys(("cluster_seconds", "model_seconds"), (int, float)),
    **dict.fromkeys(("units", "values"), dict),
}
"""What the values of a record are."""

_RECORDS: dict[str, type[Record]] = {"session": Session, "statistics": StatisticsRecord, "tile": TileRecord}
"""By the key that a line has for them; a tile's is its index."""


def _record(content: dict[str, Any]) -> Record:
    kind = next((key for key in _RECORDS if key in content), "tile")
    values = content if kind == "tile" else content[kind]
    record = _RECORDS[kind](**values)
    for key, value in values.items():
        if (
            not isinstance(value, _KINDS[key])
            or isinstance(value, bool)
            or (isinstance(value, float) and not isfinite(value))
        ):
            raise ValueError(f"{key} {value!r}")
    if record.stage not in TILED:
        raise ValueError(f"stage '{record.stage}'")
    if isinstance(record, TileRecord):
        if record.state not in get_args(State):
            raise ValueError(f"state '{record.state}' of tile {record.tile!r}")
        if not all(isinstance(digest, str | None) for digest in record.units.values()):
            raise ValueError(f"units of tile {record.tile}")
    return record
