"""What is stored of a volume: which of its chunks are there, and a signature by which a later change is noticed.

A fingerprint knows shapes and settings, not voxels. So the plan counts the objects that hold the voxels, and keeps what a store
reports of each that changes when it is written. What was counted and is absent at reading is an error, never fill; what
differs later is reported by chunk, and by the tiles that read it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.core.geometry.box import Box, Triple, triple
from pipeline.core.geometry.mirror import shown
from pipeline.core.tiles.grid import TileGrid

MOST_OBJECTS = 1_000_000
"""Of a volume, to list them: some minutes on a parallel file system, and a thousand requests of a store."""

SAMPLE = 1_000
"""Objects that are looked at where they are not listed."""

NAMED = 3
"""Chunks that a message names."""

GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class Stored:
    """What was counted of a volume when its run was planned. It stands beside the fingerprint, and is no part of it.

    Args:
        count: Objects that are there.
        total: That were looked for: all, or a sample.
        unit: What an object holds: `chunk`, `shard`.
        signature: SHA-256 of places, sizes and times or ETags of all files of the array.
        sampled: Whether only some were looked for.
        strict: Whether one that was not looked for must be there too: all of the sample are.
        lenient: Whether one that a store refuses counts as absent: some were sampled, and what is missing is to be fill.
        history: What changed since, and what was decided, a line each.
    """

    count: int
    total: int
    unit: str
    signature: str
    sampled: bool = False
    strict: bool = False
    lenient: bool = False
    history: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.sampled:
            return f"{self.count:,} of {self.total:,} sampled"
        return f"{self.count:,} of {self.total:,} {self.unit}{'s' if self.total != 1 else ''}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before voxels are read that nobody wrote."""
        if self.count == self.total:
            return ()
        absent = self.total - self.count
        scope = "that were sampled " if self.sampled else ""
        message = (
            f"{absent:,} of the {self.total:,} {self.unit}s {scope}of the input {'are' if absent != 1 else 'is'} absent, and "
            "read as its fill value: normal for a sparse volume, and not for one that should be whole."
        )
        return (message,)

    @classmethod
    def from_dict(cls, content: Mapping[str, object]) -> Stored:
        values: dict[str, Any] = dict(content)
        return cls(**{**values, "history": tuple(values["history"])})


@dataclass(frozen=True, eq=False)
class Inventory:
    """The objects of a volume, as they were found: what `Stored` is the sum of.

    Args:
        stored: The sum.
        grid: Objects along each stored axis.
        extent: Voxels of one along each stored axis.
        axes: The stored axes.
        start: Before the first number of an object's name.
        separator: Between the numbers.
        places: Objects that are there, by their index in the grid, in order.
        sizes: Bytes of each; -1 where the store does not say.
        stamps: A digest of all that changes when it is written.
        marks: A digest of what a faithful copy keeps: time of change, or ETag.
        looked: Objects that were looked for; None for all.
        coarse: One file holds all of them, so that nobody knows which of its voxels changed.
    """

    stored: Stored
    grid: tuple[int, ...]
    extent: tuple[int, ...]
    axes: str
    start: str
    separator: str
    places: np.ndarray
    sizes: np.ndarray
    stamps: np.ndarray
    marks: np.ndarray
    looked: np.ndarray | None = None
    coarse: bool = False

    def name(self, place: int) -> str:
        """Name of an object, relative to the array."""
        if self.coarse:
            return self.start
        return self.start + self.separator.join(map(str, np.unravel_index(int(place), self.grid)))

    def box(self, place: int) -> Box:
        """Voxels of an object along z, y, x; may reach beyond the volume."""
        places = map(int, np.unravel_index(int(place), self.grid))
        spans = {axis: (i * n, (i + 1) * n) for axis, i, n in zip(self.axes, places, self.extent, strict=True)}
        return Box.of_spans(spans.get(axis, (0, 1)) for axis in "zyx")


def digest(fields: Sequence[str]) -> int:
    """64 bits of a hash of an object's fields."""
    return int.from_bytes(hashlib.sha256("\0".join(fields).encode()).digest()[:8], "little")


def sample(total: int) -> np.ndarray:
    """Objects to look at, spread evenly and on no lattice; all where they are few."""
    if total <= SAMPLE:
        return np.arange(total)
    spread = (np.arange(SAMPLE) + np.arange(SAMPLE) * GOLDEN % 1) * (total / SAMPLE)
    return np.unique(np.minimum(spread.astype(np.int64), total - 1))


# --- changes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Change:
    """What differs between two looks at a volume.

    Args:
        now: The later look.
        gone: Objects that were there, by their index in the grid.
        new: Objects that were not.
        written: Objects whose size, time or ETag is another.
        partial: Whether there may be more: not all were compared.
    """

    now: Inventory
    gone: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    new: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    written: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    partial: bool = False

    def __bool__(self) -> bool:
        return self.partial or any(len(part) for part in (self.gone, self.new, self.written))

    @property
    def is_coarse(self) -> bool:
        """Whether any voxel may have changed."""
        return self.partial or self.now.coarse or self.now.looked is not None

    def __str__(self) -> str:
        parts = [
            (self.gone, "gone"),
            (self.new, "new"),
            (self.written, "written again (another size, time or ETag)"),
        ]
        clauses = [f"{self._count(places)} {what}: {self._names(places)}" for places, what in parts if len(places)]
        return "; ".join(clauses) or "its files have other sizes or times, and which is not known"

    def _count(self, places: np.ndarray) -> str:
        unit = "file" if self.now.coarse else self.now.stored.unit
        return f"{len(places):,} {unit}{'s' if len(places) != 1 else ''} {'are' if len(places) != 1 else 'is'}"

    def _names(self, places: np.ndarray) -> str:
        names = ", ".join(self.now.name(place) for place in places[:NAMED])
        return f"{names}, and {len(places) - NAMED:,} more" if len(places) > NAMED else names

    def tiles(self, grid: TileGrid) -> np.ndarray:
        """Whether each tile reads what has changed: its window touches an object that did."""
        if self.is_coarse:
            return np.ones(len(grid), dtype=bool)
        changed = np.unique(np.concatenate([self.gone, self.new, self.written]))
        return touched(grid, (self.now.box(place) for place in changed))


def compare(before: Inventory | None, now: Inventory, *, copied: bool = False) -> Change:
    """What differs between two looks at one array.

    Args:
        before: The earlier one; None where it is lost.
        now: The later one.
        copied: Whether it lies elsewhere now, so that times which no copy keeps mean nothing.
    """
    if before is None or before.grid != now.grid or before.coarse != now.coarse:
        return Change(now, partial=True)
    if before.stored.signature == now.stored.signature:
        return Change(now)
    gone, new = _both(before, now)
    common, mine, theirs = np.intersect1d(before.places, now.places, assume_unique=True, return_indices=True)
    ours, others = (before.marks, now.marks) if copied else (before.stamps, now.stamps)
    same = (before.sizes[mine] == now.sizes[theirs]) & (ours[mine] == others[theirs])
    return Change(now, gone, new, common[~same])


def _both(before: Inventory, now: Inventory) -> tuple[np.ndarray, np.ndarray]:
    """Objects that are gone and those that are new, of those that both looked for."""
    gone = np.setdiff1d(before.places, now.places, assume_unique=True)
    new = np.setdiff1d(now.places, before.places, assume_unique=True)
    if now.looked is not None:
        gone = np.intersect1d(gone, now.looked)
    if before.looked is not None:
        new = np.intersect1d(new, before.looked)
    return gone, new


def touched(grid: TileGrid, boxes: Iterator[Box]) -> np.ndarray:
    """Whether each tile's window shows a voxel of one of the boxes, mirrored voxels included."""
    mask = np.zeros(grid.counts, dtype=bool)
    windows = [_windows(grid, axis) for axis in range(3)]
    for box in boxes:
        hit = [
            np.flatnonzero((starts < box.stop[axis]) & (stops > box.start[axis]))
            for axis, (starts, stops) in enumerate(windows)
        ]
        if all(len(one) for one in hit):
            mask[tuple(slice(one[0], one[-1] + 1) for one in hit)] = True
    return mask.ravel()


def _windows(grid: TileGrid, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last voxel that the tiles read along an axis."""
    core, extent = grid.core[axis], grid.volume[axis]
    spans = [grid.window(axis, start, min(start + core, extent)) for start in range(0, extent, core)]
    inside = [shown(_along(axis, span.start, span.stop), _alone(axis, extent))[0] for span in spans]
    return np.array([box.start[axis] for box in inside]), np.array([box.stop[axis] for box in inside])


def _along(axis: int, start: int, stop: int) -> Box:
    return Box.of_spans((start, stop) if i == axis else (0, 1) for i in range(3))


def _alone(axis: int, extent: int) -> Triple:
    return triple(extent if i == axis else 1 for i in range(3))


# --- names --------------------------------------------------------------------------------------------------------------

FORMS = (("", "."), ("", "/"), ("c/", "/"), ("c.", "."))
"""How chunks are named: what stands before the first number, and between the numbers (Zarr v2 and v3)."""


def place_of(name: str, grid: tuple[int, ...], start: str, separator: str) -> int | None:
    """The index in its grid of an object that is named so; None where it is no object of the array."""
    if not name.startswith(start):
        return None
    numbers = name[len(start) :].split(separator)
    if len(numbers) != len(grid) or not all(n.isdecimal() and n == str(int(n)) for n in numbers):
        return None
    index = 0
    for number, extent in zip(map(int, numbers), grid, strict=True):
        if number >= extent:
            return None
        index = index * extent + number
    return index


def objects(shape: tuple[int, ...], extent: tuple[int, ...]) -> tuple[int, ...]:
    """Objects along each axis."""
    return tuple(-(-n // e) for n, e in zip(shape, extent, strict=True))
