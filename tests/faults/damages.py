"""Ways to damage what a finished run left: every key of its metadata, every field of its ledger, every artifact, chunks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.pipeline_cases import Run

DOCUMENTS = ("zarr.json", "0/zarr.json")
WHOLE = {
    "emptied": lambda content: b"",
    "cut to half": lambda content: content[: len(content) // 2],
    "of zeros": lambda content: bytes(len(content)),
    "of other bytes": lambda content: b"\xff\xfe\x80" * 100,
    "removed": None,
}
"""What becomes of a whole file."""


@dataclass(frozen=True)
class Damage:
    """One damage.

    Args:
        do: Does it.
        verified: Exit statuses of `halotile verify` afterwards: 3 where it must be seen, 2 where it must be refused by name, 0 where
            it costs nothing.
        mended: Whether `halotile run` mends it; else it refuses it by name.
    """

    do: Callable[[Run], None]
    verified: tuple[int, ...] = (3,)
    mended: bool = True


def all_damages(run: Run) -> dict[str, Damage]:
    """Damages of a finished run, by what they are."""
    return dict([*_of_metadata(run), *_of_chunks(), *_of_ledger(run), *_of_survey(), *_of_artifacts()])


# --- metadata -----------------------------------------------------------------------------------------------------------


def _of_metadata(run: Run) -> Iterator[tuple[str, Damage]]:
    for name in DOCUMENTS:
        for how, change in WHOLE.items():
            yield f"{name} {how}", Damage(_whole(name, change))
        for place in _places(json.loads((run.output / name).read_text())):
            told = ".".join(map(str, place))
            foreign = place == ("attributes", "halotile", "fingerprint")  # another run's, for all that is known
            changed = Damage(_key(name, place, remove=False), *(((2,), False) if foreign else ()))
            yield f"{name}: {told} changed", changed
            yield f"{name}: {told} removed", Damage(_key(name, place, remove=True))
    yield "a false consolidated shape", Damage(_consolidated)
    yield "a key that zarr refuses", Damage(_edited("zarr.json", lambda document: document.update(colour=1)))


def _places(document: Any, place: tuple = ()) -> Iterator[tuple]:
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield (*place, key)
        yield from _places(value, (*place, key))


def _whole(name: str, change: Callable[[bytes], bytes] | None) -> Callable[[Run], None]:
    def do(run: Run) -> None:
        path = run.output / name
        path.unlink() if change is None else path.write_bytes(change(path.read_bytes()))

    return do


def _edited(name: str, change: Callable[[dict], object]) -> Callable[[Run], None]:
    def do(run: Run) -> None:
        document = json.loads((run.output / name).read_text())
        change(document)
        (run.output / name).write_text(json.dumps(document))

    return do


def _key(name: str, place: tuple, *, remove: bool) -> Callable[[Run], None]:
    def change(document: Any) -> None:
        for key in place[:-1]:
            document = document[key]
        if remove:
            del document[place[-1]]
        else:
            document[place[-1]] = _other(document[place[-1]])

    return _edited(name, change)


def _other(value: Any) -> Any:
    return (
        "q"
        if isinstance(value, str | dict | list)
        else not value
        if isinstance(value, bool)
        else 7
        if value is None
        else value + 3
    )


def _consolidated(run: Run) -> None:
    array = json.loads((run.output / "0/zarr.json").read_text())
    copy = {"kind": "inline", "must_understand": False, "metadata": {"0": {**array, "shape": [1, 1, 1]}}}
    _edited("zarr.json", lambda document: document.update(consolidated_metadata=copy))(run)


# --- chunks -------------------------------------------------------------------------------------------------------------

CHUNK = "0/c/1/0/1"


def _of_chunks() -> Iterator[tuple[str, Damage]]:
    for how, change in WHOLE.items():
        yield f"a chunk {how}", Damage(_whole(CHUNK, change))
    yield "a chunk with a flipped bit", Damage(_whole(CHUNK, _flipped))
    yield "a chunk with more behind it", Damage(_whole(CHUNK, lambda content: content + content))
    yield "a chunk of its neighbour", Damage(lambda run: shutil.copy(run.output / "0/c/1/0/0", run.output / CHUNK))
    yield "two chunks exchanged", Damage(_exchanged)
    yield "a folder in place of a chunk", Damage(_folder)
    for key in ("0/c/9/9/9", "0/c/0/0/2", "0/c/5", "0/c/2/0/0"):
        yield f"an object '{key}' that no unit has", Damage(_stray(key))
    yield "a part of a killed writer", Damage(_stray("0/c/1/0/1.0123456789abcdef0123456789abcdef.part"), (0,))
    yield "all chunks removed", Damage(lambda run: shutil.rmtree(run.output / "0/c"))


def _flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)


def _exchanged(run: Run) -> None:
    here, there = run.output / CHUNK, run.output / "0/c/1/0/0"
    first, second = here.read_bytes(), there.read_bytes()
    here.write_bytes(second)
    there.write_bytes(first)


def _folder(run: Run) -> None:
    (run.output / CHUNK).unlink()
    (run.output / CHUNK).mkdir()


def _stray(key: str) -> Callable[[Run], None]:
    def do(run: Run) -> None:
        path = run.output / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((run.output / CHUNK).read_bytes())

    return do


# --- the ledger ---------------------------------------------------------------------------------------------------------


def _of_ledger(run: Run) -> Iterator[tuple[str, Damage]]:
    line = run.directory.ledger_path.read_bytes().splitlines(keepends=True)[2].decode()
    for key, value in json.loads(line).items():
        text = json.dumps({key: value})[1:-1]
        yield (
            f"a ledger line whose {key} has another character",
            Damage(_line(2, lambda line, text=text: line.replace(text, _last_changed(text), 1))),
        )
        yield (
            f"a ledger line whose {key} has another name",
            Damage(_line(2, lambda line, key=key: line.replace(f'"{key}"', f'"{key}x"', 1))),
        )
    for name, change in _LINES.items():
        yield f"a ledger line {name}", Damage(_line(2, change))
    yield "a ledger line without its end", Damage(_line(2, lambda line: line.rstrip("\n")), (0,))
    yield "a ledger line twice", Damage(_line(2, lambda line: line * 2), (0,))
    yield "the last line of a ledger cut", Damage(_ledger(lambda content: content[:-9]), (0,))
    yield "the lines of a ledger in another order", Damage(_ledger(_turned), (0,))
    yield "a ledger emptied", Damage(_ledger(lambda content: b""))
    yield "a ledger removed", Damage(lambda run: run.directory.ledger_path.unlink())
    yield "a ledger of zeros", Damage(_ledger(lambda content: bytes(len(content))))
    yield "a ledger of other bytes", Damage(_ledger(lambda content: b"\xff\xfe\x80" * 1000))
    yield "a ledger of an earlier version, a tile beyond the plan", Damage(_ledger(_earlier_version))
    yield "zeros behind a ledger", Damage(_ledger(lambda content: content + bytes(5000)), (0,))


_LINES: dict[str, Callable[[str], str]] = {
    "removed": lambda line: "",
    "cut": lambda line: line[:40] + "\n",
    "of zeros": lambda line: "\0" * 300 + "\n",
    "of brackets": lambda line: "[" * 100_000 + "\n",
    "of another tile": lambda line: line.replace('"tile": ', '"tile": 7', 1),
    "of a megabyte": lambda line: "x" * 1_000_000 + "\n",
    "with an escape": lambda line: line.replace(" ", "\x1b", 1),
}


def _last_changed(text: str) -> str:
    at = len(text) - 1 if text[-1].isalnum() else len(text) - 2
    return f"{text[:at]}{'1' if text[at] != '1' else '2'}{text[at + 1 :]}"


def _line(number: int, change: Callable[[str], str]) -> Callable[[Run], None]:
    def changed(content: bytes) -> bytes:
        lines = content.decode().splitlines(keepends=True)
        lines[number] = change(lines[number])
        return "".join(lines).encode()

    return _ledger(changed)


def _ledger(change: Callable[[bytes], bytes]) -> Callable[[Run], None]:
    def do(run: Run) -> None:
        path: Path = run.directory.ledger_path
        path.write_bytes(change(path.read_bytes()))

    return do


def _turned(content: bytes) -> bytes:
    return b"".join(reversed(content.splitlines(keepends=True)))


def _earlier_version(content: bytes) -> bytes:
    lines = [json.loads(line) for line in content.splitlines()]
    for line in lines:
        del line["crc32"]
    lines[2]["tile"] = 73
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


# --- the survey ---------------------------------------------------------------------------------------------------------


def _of_survey() -> Iterator[tuple[str, Damage]]:
    """The numbers stand in a file and in the ledger; either is made again from the other, where tiles stand by them."""
    for how, change in WHOLE.items():
        yield f"statistics.json {how}", Damage(_artifact("statistics.json", change), (0,))
    yield "another number in statistics.json", Damage(_artifact("statistics.json", _another_number), (0,))
    yield "the numbers removed from the ledger", Damage(_ledger(_without_numbers), (0,))
    yield "other numbers in the ledger", Damage(_ledger(_other_numbers), (0,))


def _another_number(content: bytes) -> bytes:
    document = json.loads(content)
    document["scale"] *= 2
    return json.dumps(document).encode()


def _without_numbers(content: bytes) -> bytes:
    return _with_numbers(content, lambda line: b"")


def _other_numbers(content: bytes) -> bytes:
    return _with_numbers(content, lambda line: line.replace(b'"scale": 0.', b'"scale": 1.'))


def _with_numbers(content: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A ledger whose record of statistics is changed.

    Raises:
        ValueError: There is none, or the change is none.
    """
    lines = content.splitlines(keepends=True)
    changed = [change(line) if line.startswith(b'{"statistics"') else line for line in lines]
    if changed == lines:
        raise ValueError("nothing was damaged")
    return b"".join(changed)


# --- artifacts ----------------------------------------------------------------------------------------------------------


def _of_artifacts() -> Iterator[tuple[str, Damage]]:
    for name in (
        "verification.json",
        "report.json",
        "report.html",
        "slices.png",
        "thumbnail.png",
        "driver.lock",
        "tiles.lock",
        "run.log",
    ):
        for how, change in WHOLE.items():
            yield f"{name} {how}", Damage(_artifact(name, change), (0,))
    for how, change in WHOLE.items():
        removed = change is None
        yield (
            f"plan.json {how}",
            Damage(_artifact("plan.json", change), (1, 2), mended=False)
            if not removed
            else Damage(_artifact("plan.json", None), (1, 2), mended=False),
        )
    yield (
        "another core in plan.json",
        Damage(_artifact("plan.json", lambda content: content.replace(b"16", b"24", 1)), (2,), mended=False),
    )


def _artifact(name: str, change: Callable[[bytes], bytes] | None) -> Callable[[Run], None]:
    def do(run: Run) -> None:
        path = run.directory.path / name
        path.unlink() if change is None else path.write_bytes(change(path.read_bytes()))

    return do
