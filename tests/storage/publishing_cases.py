"""Versions that are quickly made and easily told apart, and the processes that publish and read them."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from pipeline.core.ledger import TileRecord
from pipeline.core.versions import Keep
from pipeline.outputs.rundir import RunDirectory
from pipeline.outputs.store import checksum
from pipeline.publishing.by_link import LinkedPublication
from pipeline.publishing.publication import Publication, open_publication

OBJECTS = 12
"""Of a small version's array."""

NAME = "brain"

TEN_SECONDS = 10 / 86400
"""In days: nobody reads one version for longer here."""


def fingerprint(number: int) -> str:
    """Of version `number`."""
    return f"{number:064d}"


def make_version(
    publication: Publication,
    version: str,
    *,
    objects: int = OBJECTS,
    size: int = 200,
    state: str = "complete",
    verified: bool = True,
) -> Path:
    """The files of a finished run, each of which says whose it is; gives the image."""
    image = publication.image(version)
    directory = RunDirectory(image)
    content = {f"0/c/{n}": f"{version} {n} ".encode().ljust(size, b".") for n in range(objects)}
    (image / "0/c").mkdir(parents=True, exist_ok=True)
    directory.path.mkdir(exist_ok=True)
    directory.plan_path.write_text("{}")
    for key, value in content.items():
        (image / key).write_bytes(value)
    attributes = {"halotile": {"fingerprint": version, "state": state}}
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (image / "0/zarr.json").write_text(json.dumps({"attributes": attributes}))
    (image / "zarr.json").write_text(json.dumps(group))
    record = TileRecord(
        0, "done", version, {key: checksum(value) for key, value in content.items()} | {"0/c/none": None}
    )
    directory.ledger_path.write_text(record.to_line())
    said = {"fingerprint": version, "complete": verified, "missing": 0, "invalid": int(not verified)}
    directory.write_json(directory.verification_path, said)
    return image


def told(contents: dict[str, bytes], *, objects: int = OBJECTS) -> str:
    """Whose all objects of an image are; raises where they are not of one whole version.

    Args:
        contents: Every object by its key in the image.
        objects: That its array has.
    """
    chunks = {key: value for key, value in contents.items() if key.startswith("0/c/")}
    assert len(chunks) == objects, f"{len(chunks)} of {objects} objects"
    whose = {value.split()[0].decode() for value in chunks.values()}
    whose |= {
        json.loads(contents[key])["attributes"]["halotile"]["fingerprint"] for key in ("zarr.json", "0/zarr.json")
    }
    (found,) = whose
    return found


def files_of(image: Path) -> dict[str, bytes]:
    """Every file of an image, by its path in it."""
    return {
        path.relative_to(image).as_posix(): path.read_bytes() for path in sorted(image.rglob("*")) if path.is_file()
    }


# --- processes ----------------------------------------------------------------------------------------------------------

_processes = get_context("forkserver")
_processes.set_forkserver_preload(["tests.storage.publishing_cases"])


@dataclass
class Seen:
    """What a reader saw: polls that found one whole version, the versions, and what was wrong with the others."""

    polls: int = 0
    versions: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


@contextmanager
def reading(output: Path) -> Iterator[Callable[[], Seen]]:
    """A process that reads what `current` leads to, over and over; gives what ends it and tells what it saw."""
    ours, theirs = _processes.Pipe()
    over = _processes.Event()
    reader = _processes.Process(target=_read, args=(output, over, theirs))
    reader.start()
    assert ours.recv() == "ready"

    def end() -> Seen:
        over.set()
        return ours.recv()

    try:
        yield end
    finally:
        _end(reader)


def _read(output: Path, over: Event, told_to: Any) -> None:
    seen = Seen()
    told_to.send("ready")
    while not over.is_set():
        image = Path(os.path.realpath(output / "current"))  # once a poll, as docs/datasets.md says
        try:
            seen.versions.add(told(files_of(image)))
            seen.polls += 1
        except (AssertionError, ValueError, OSError, KeyError, IndexError) as error:
            seen.wrong.append(f"{type(error).__name__}: {error}"[:200])
    told_to.send(seen)


@contextmanager
def publishing(target: Callable[..., None], *arguments: Any) -> Iterator[BaseProcess]:
    """A process that publishes; it is killed at the end, if not before."""
    process = _processes.Process(target=target, args=arguments)
    process.start()
    try:
        yield process
    finally:
        _end(process)


def _end(process: BaseProcess) -> None:
    process.kill()
    process.join()
    process.close()


def publish_by_link(output: Path, first: int, last: int) -> None:
    """Make, publish and expire versions, one after the other."""
    publication = LinkedPublication(output, NAME)
    for number in range(first, last + 1):
        make_version(publication, fingerprint(number))
        publication.publish(fingerprint(number), {"number": number})
        publication.expire(Keep(1, TEN_SECONDS), datetime.now(UTC))


def publish_to_store(environment: dict[str, str], output: str, staging: Path, number: int) -> None:
    """Publish one version that is there; the environment is the caller's, as a process of its own would have it."""
    os.environ.update(environment)
    open_publication(output, NAME, str(staging)).publish(fingerprint(number), {"number": number})


def publish_in_place(output: Path, first: int, last: int) -> None:
    """The negative control: versions are copied over one another."""
    publication = LinkedPublication(output, NAME)
    for number in range(first, last + 1):
        image = make_version(publication, fingerprint(number))
        shutil.copytree(image, output / "current", dirs_exist_ok=True)
        shutil.rmtree(image.parent)


def moments(seed: int = 0) -> Iterator[float]:
    """Seconds until the next kill."""
    chance = random.Random(seed)
    while True:
        yield chance.uniform(0.02, 0.5)
