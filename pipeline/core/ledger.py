"""The ledger: an append-only record of tiles done, failed or found invalid, and the state that it adds up to.

One JSON object a line. The driver alone writes it, after a tile's write is durable, so a line is never ahead of the
bytes that it vouches for. A last line without its end was torn by a kill and counts for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np

Units = dict[str, str | None]
"""SHA-256 of the stored bytes by object key; None where an all-fill unit left no object.

Not CRC-32C: chunks and shard indices end with their own, and the CRC of data followed by its CRC is one constant, so
all intact objects would have the same checksum, and two that changed places would go unseen.
"""

State = Literal["done", "failed", "invalid"]
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

    def to_line(self) -> str:
        return json.dumps({key: value for key, value in asdict(self).items() if value not in ("", {})}) + "\n"


@dataclass(frozen=True, slots=True)
class Session:
    """One sitting of the driver at the infer stage.

    Args:
        fingerprint: Of the plan.
        tiles: Tiles done in it.
        seconds: From the first submission to the last durable write; start of cluster and model excluded.
        cluster_seconds: Start of the workers.
        model_seconds: Loading the network on them.
        workers: Worker processes.
        ended: ISO 8601, UTC.
    """

    fingerprint: str
    tiles: int
    seconds: float
    cluster_seconds: float
    model_seconds: float
    workers: int
    ended: str

    def to_line(self) -> str:
        return json.dumps({"session": asdict(self)}) + "\n"


class Progress:
    """Which tiles of a plan are done: one byte a tile, whatever the ledger's length."""

    def __init__(self, tiles: int, fingerprint: str) -> None:
        self._codes = np.zeros(tiles, dtype=np.uint8)
        self.fingerprint = fingerprint

    def add(self, record: TileRecord) -> None:
        """Take a record in; one of another plan is passed over."""
        if record.fingerprint == self.fingerprint and 0 <= record.tile < len(self._codes):
            self._codes[record.tile] = _CODES[record.state]

    def count(self, state: str) -> int:
        return int(np.count_nonzero(self._codes == _CODES[state]))

    def is_done(self, tile: int) -> bool:
        return bool(self._codes[tile] == _CODES["done"])

    @property
    def total(self) -> int:
        return len(self._codes)

    def to_do(self) -> np.ndarray:
        """Indices of the tiles without a valid entry, in order; those that failed before come last."""
        failed = self._codes == _CODES["failed"]
        return np.concatenate([np.flatnonzero((self._codes != _CODES["done"]) & ~failed), np.flatnonzero(failed)])


def parse_lines(lines: Iterable[str]) -> Iterator[TileRecord | Session]:
    """Records of a ledger, in order.

    Raises:
        ValueError: A line that is not the last is no record.
    """
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            return
        try:
            yield _record(json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(f"line {number} is no record ({error})") from error


def _record(content: dict[str, Any]) -> TileRecord | Session:
    if "session" in content:
        return Session(**content["session"])
    record = TileRecord(**content)
    if record.state not in get_args(State) or not isinstance(record.tile, int):
        raise ValueError(f"state '{record.state}' of tile {record.tile!r}")
    return record
