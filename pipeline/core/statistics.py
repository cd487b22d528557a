"""What passes over a volume measure: the numbers of a rule by which its values become a network's input.

A pass looks at every box of a volume for one thing. Boxes are taken in parts, whoever computes them, and what parts give adds up:

    zscore               moments
    minmax of floats     limits
    percentile           limits -> histograms -> histograms within a bin each -> histograms within a bin of that
    ... of 16 bits       histograms: each value has a bin of its own

Why the numbers are the same for any number of workers and restarts: limits, counts, least and greatest values add up exactly, in any order.
Moments, which round, are kept per box, and are merged in the order of the boxes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, isfinite, prod
from typing import Any, Literal

import numpy as np

from pipeline.core.frozen import Frozen, Numbers
from pipeline.core.geometry.box import Box, Triple, per_axis, triple
from pipeline.core.ledger import checked_content, checked_line
from pipeline.core.normalization import Normalization, spanning, unknown_mode
from pipeline.core.strict_json import json_text
from pipeline.errors import PlanError

SURVEY = "survey"
"""The stage, in records."""

BINS = 2**16
"""Bins of a histogram."""

HISTOGRAMS = 3
"""At most, per percentile, each within a bin of the one before."""

PARTS_VERSION = 1
"""Raised whenever a part's record means something else."""

MOST_PARTS = 2**10
"""Of a pass: each sends back a few hundred kilobytes at most, and costs as much where the run is killed at it."""

MOST_AT_ONCE = 2**24
"""Values whose squares are held at once, in float64; a box has no more, but where one chunk has."""

ROUNDING = 32 * float(np.finfo(np.float64).eps)
"""A deviation that is so small a share of the mean is what rounding makes of equal values."""

PIECE = 2**20
"""Values of a box that are sorted into bins at once."""

Bracket = tuple[float, float, int]
"""Where a rank lies: least and greatest value, and how many values are below."""

Found = tuple[np.ndarray, ...]
"""What a part holds, flat: limits (2 values); moments (3 per box); of each bracket the bins that hold values, their counts, least, greatest."""


class InconsistentPartsError(ValueError):
    """The results of the parts do not add up: they are not of the same voxels."""


# --- what a plan says ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Survey:
    """The passes over a volume that measure the numbers of a plan's rule.

    Args:
        box: Extent along z, y, x that is read at once; such boxes partition the volume, z slowest.
        passes: Over the whole volume, at most.
        bytes_read: By all of them, decoded.
        sample: Boxes of the volume that the plan has looked at instead; what it resolved by them stands.
    """

    box: Triple
    passes: int
    bytes_read: int
    sample: int

    def __str__(self) -> str:
        most = "up to " if self.passes > 1 else ""
        return f"{most}{self.passes} pass{'es' if self.passes > 1 else ''}, {most}{self.bytes_read / 1e9:.3f} GB read"

    @classmethod
    def from_dict(cls, content: Mapping[str, object]) -> Survey:
        values: dict[str, Any] = dict(content)
        return cls(**{**values, "box": triple(values["box"])})


def most_passes(rule: Normalization, dtype: str) -> int:
    """Passes over a volume of this type that a rule takes at most; 0 where its numbers are known without."""
    if not rule.is_measured(dtype):
        return 0
    if rule.mode in ("minmax", "zscore"):
        return 1
    if rule.mode == "percentile":
        return 1 if _is_narrow(np.dtype(dtype)) else 1 + HISTOGRAMS
    raise unknown_mode(rule.mode)


def known(rule: Normalization, dtype: str) -> Normalization:
    """A rule that takes no pass, with its numbers: of integers, `minmax` means their type's range."""
    if rule.mode in ("none", "fixed"):
        return rule
    if rule.mode == "minmax":
        return spanning("minmax", *_limits(np.dtype(dtype)))
    raise unknown_mode(rule.mode)


def _is_narrow(dtype: np.dtype) -> bool:
    return dtype.kind in "bui" and dtype.itemsize <= 2


def _limits(dtype: np.dtype) -> tuple[int, int]:
    """Least and greatest value of an integer type."""
    return (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))


@dataclass(frozen=True, slots=True)
class Parts:
    """A volume's boxes, in parts of as many each: computed from their index, and never listed.

    Args:
        shape: Of the volume.
        box: Of a survey.
    """

    shape: Triple
    box: Triple

    @property
    def _counts(self) -> Triple:
        return per_axis(lambda n, e: -(-n // e), self.shape, self.box)

    @property
    def _boxes_each(self) -> int:
        return ceil(prod(self._counts) / MOST_PARTS)

    def __len__(self) -> int:
        return ceil(prod(self._counts) / self._boxes_each)

    def boxes(self, part: int) -> Iterator[Box]:
        """Those of a part, in order."""
        first, total = part * self._boxes_each, prod(self._counts)
        for number in range(first, min(first + self._boxes_each, total)):
            place = triple(int(i) for i in np.unravel_index(number, self._counts))
            start = per_axis(lambda i, e: i * e, place, self.box)
            yield Box(start, per_axis(lambda a, e, n: min(a + e, n), start, self.box, self.shape))


# --- one pass -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass looks for in each box.

    Args:
        kind: Which.
        brackets: Of histograms: where the ranks lie, as far as that is known.
    """

    kind: Literal["limits", "moments", "histograms"]
    brackets: tuple[Bracket, ...] = ()

    def look(self, boxes: Iterable[np.ndarray]) -> Found:
        """What boxes of values hold; each is finite, of any shape."""
        if self.kind == "limits":
            pairs = [(float(values.min()), float(values.max())) for values in boxes]
            return (np.array([min(low for low, _ in pairs), max(high for _, high in pairs)]),)
        if self.kind == "moments":
            return (np.array([_moments(values) for values in boxes]).ravel(),)
        sums = [_Histogram(bracket) for bracket in self.brackets]
        for values in boxes:
            for piece, weights in _pieces(values):
                for histogram in sums:
                    histogram.count(piece, weights)
        return tuple(array for histogram in sums for array in histogram.arrays())


def _moments(values: np.ndarray) -> tuple[float, float, float]:
    """How many there are, their mean, and the sum of squared differences from it. Large boxes are taken a piece at a time."""
    if values.size > MOST_AT_ONCE:
        flat = values.reshape(-1)
        pieces = [_moments(flat[first : first + MOST_AT_ONCE]) for first in range(0, flat.size, MOST_AT_ONCE)]
        return _merged(np.array(pieces))
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused in the end
        return (
            float(values.size),
            float(values.mean(dtype=np.float64)),
            float(values.var(dtype=np.float64)) * values.size,
        )


def _pieces(values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Values in float64, with how often each is there. Of small integers each value is given once, with its count."""
    flat = values.reshape(-1)
    for first in range(0, flat.size, PIECE):
        piece = flat[first : first + PIECE]
        if _is_narrow(piece.dtype):
            least = int(piece.min())
            counts = np.bincount(piece.astype(np.int64) - least)
            there = np.flatnonzero(counts)
            yield (there + least).astype(np.float64), counts[there]
        else:
            yield piece.astype(np.float64), np.ones(piece.size, dtype=np.int64)


class _Histogram:
    """Of the values within a bracket: how many each bin holds, the least and the greatest of them."""

    def __init__(self, bracket: Bracket) -> None:
        self.bracket = bracket
        self.counts = np.zeros(BINS, dtype=np.int64)
        self.least = np.full(BINS, np.inf)
        self.most = np.full(BINS, -np.inf)

    def count(self, values: np.ndarray, weights: np.ndarray) -> None:
        low, high, _ = self.bracket
        within = (values >= low) & (values <= high)
        self._add(_binned(values[within], low, high), weights[within], values[within], values[within])

    def add(self, places: np.ndarray, counts: np.ndarray, least: np.ndarray, most: np.ndarray) -> None:
        """Add what `arrays` returned for a part."""
        self._add(places.astype(np.int64), counts, least, most)

    def _add(self, places: np.ndarray, counts: np.ndarray, least: np.ndarray, most: np.ndarray) -> None:
        np.add.at(self.counts, places, counts)
        np.minimum.at(self.least, places, least)
        np.maximum.at(self.most, places, most)

    def arrays(self) -> Found:
        there = np.flatnonzero(self.counts)
        return there.astype(np.uint16), self.counts[there], self.least[there], self.most[there]

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def narrowed(self, rank: int) -> tuple[Bracket, int]:
        """The bin that holds a rank, and how many values are in it; its own least and greatest value bound it."""
        cumulated = np.cumsum(self.counts)
        below = self.bracket[2]
        place = int(np.searchsorted(cumulated, rank - below, side="right"))
        bracket = (
            float(self.least[place]) + 0.0,  # a zero has no sign: it would depend on which came first
            float(self.most[place]) + 0.0,
            below + int(cumulated[place] - self.counts[place]),
        )
        return bracket, int(self.counts[place])


def _binned(values: np.ndarray, low: float, high: float) -> np.ndarray:
    span = high / 2 - low / 2  # halves: limits of float64 do not overflow
    if not span > 0:  # one value alone; or they underflow
        return np.zeros(values.size, dtype=np.int64)
    share = (values / 2 - low / 2) / span
    return np.minimum((share * BINS).astype(np.int64), BINS - 1)


# --- all passes ---------------------------------------------------------------------------------------------------------


class Measurement:
    """How far a survey is: the pass that it is at, the parts of it that are in, and in the end the numbers.

    Args:
        rule: What is measured; it takes a pass at least.
        dtype: Of the volume.
        values: How many it holds, all channels together.
        parts: Of each pass.

    Attributes:
        now: The present pass; None at the end.
        number: Of it, 1 the first.
        result: The rule with its numbers; None before the end.
    """

    def __init__(self, rule: Normalization, dtype: str, values: int, parts: int) -> None:
        self.rule, self.parts, self.values = rule, parts, values
        self.result: Normalization | None = None
        self.number = 0
        self._ranks = [percent / 100 * (values - 1) for percent in (rule.low, rule.high)]
        self._brackets: dict[int, Bracket] = {}
        self._expected: dict[Bracket, int] = {}  # values in each
        self.now: Pass | None = None
        if rule.mode == "zscore":
            self._begin(Pass("moments"))
        elif rule.mode == "percentile" and _is_narrow(np.dtype(dtype)):
            self._begin_histograms(*_limits(np.dtype(dtype)))
        elif rule.mode in ("minmax", "percentile"):
            self._begin(Pass("limits"))
        else:
            raise unknown_mode(rule.mode)

    @property
    def to_do(self) -> np.ndarray:
        """Parts of the present pass that are not in."""
        return np.flatnonzero(~self._in)

    def add(self, part: int, arrays: Found) -> None:
        """Add what a part of the present pass holds; one that was added before counts once. The last one ends the pass.

        Raises:
            InconsistentPartsError: Parts do not add up to the volume, or to what the pass before has found.
            PlanError: The numbers are none that values can be normalised by.
        """
        if self.now is None or self._in[part]:
            return
        self._in[part] = True
        if self.now.kind == "histograms":
            for number, histogram in enumerate(self._sums):
                histogram.add(*arrays[4 * number : 4 * number + 4])
        else:
            self._part_values[part] = arrays[0]
        if self._in.all():
            self._end()

    def _begin(self, now: Pass) -> None:
        self.now, self.number = now, self.number + 1
        self._in = np.zeros(self.parts, dtype=bool)
        self._part_values: dict[int, np.ndarray] = {}
        self._sums = [_Histogram(bracket) for bracket in now.brackets]

    def _begin_histograms(self, low: float, high: float) -> None:
        whole = {int(end(rank)) for rank in self._ranks for end in (np.floor, np.ceil)}
        first = (float(low), float(high), 0)
        self._brackets, self._histograms, self._expected = dict.fromkeys(whole, first), 0, {first: self.values}
        self._begin(Pass("histograms", tuple(sorted(set(self._brackets.values())))))

    def _end(self) -> None:
        """The pass is over: the next one, or the numbers."""
        kind = self.now.kind if self.now else ""
        if kind == "moments":
            count, mean, squares = _merged(
                np.concatenate([self._part_values[part] for part in range(self.parts)]).reshape(-1, 3)
            )
            _check_count(int(count), self.values)
            deviation = float(np.sqrt(squares / count))
            varies = deviation > ROUNDING * abs(mean)
            self._settle(Normalization("zscore", mean + 0.0, 1.0 / deviation if varies else 1.0))
        elif kind == "limits":
            low = min(float(limits[0]) for limits in self._part_values.values()) + 0.0
            high = max(float(limits[1]) for limits in self._part_values.values()) + 0.0
            if self.rule.mode == "minmax":
                self._settle(spanning("minmax", low, high))
            else:
                self._begin_histograms(low, high)
        else:
            self._narrow()

    def _narrow(self) -> None:
        sums = {histogram.bracket: histogram for histogram in self._sums}
        for bracket, histogram in sums.items():
            _check_count(histogram.total, self._expected[bracket])
        narrowed = {rank: sums[bracket].narrowed(rank) for rank, bracket in self._brackets.items()}
        self._brackets = {rank: bracket for rank, (bracket, _) in narrowed.items()}
        self._expected = dict(narrowed.values())
        self._histograms += 1
        brackets = tuple(sorted(set(self._brackets.values())))
        if self._histograms < HISTOGRAMS and any(low < high for low, high, _ in brackets):
            self._begin(Pass("histograms", brackets))
            return
        least = {rank: bracket[0] for rank, bracket in self._brackets.items()}
        below, above = ([least[int(end(rank))] for rank in self._ranks] for end in (np.floor, np.ceil))
        low, high = (
            b + (a - b) * (rank - np.floor(rank)) for b, a, rank in zip(below, above, self._ranks, strict=True)
        )
        self._settle(spanning("percentile", low, high, low=self.rule.low, high=self.rule.high))

    def _settle(self, result: Normalization) -> None:
        if not (isfinite(result.offset) and isfinite(result.scale) and result.scale > 0):
            raise PlanError(
                f"By normalize.mode '{self.rule.mode}' the volume's values become (value - {result.offset!r}) * {result.scale!r}, which no network "
                "can be given: they lie too far apart, or too close together, for float64. Set normalize.mode to 'none', and scale the volume "
                "itself."
            )
        self.result, self.now = result, None
        self._sums, self._part_values = [], {}


def _check_count(count: int, expected: int) -> None:
    if count != expected:
        raise InconsistentPartsError(f"{count:,} values where there should be {expected:,}")


def _merged(moments_B3: np.ndarray) -> tuple[float, float, float]:
    """Moments of all, merged box by box (Chan, Golub and LeVeque 1983)."""
    count, mean, squares = 0, 0.0, 0.0
    for size, m, s in moments_B3.tolist():
        n = int(size)
        delta, total = m - mean, count + n
        squares += s + delta * delta * count * n / total
        mean += delta * n / total
        count = total
    return float(count), mean, squares


# --- results of parts, kept ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PartRecord:
    """The result of a part of a pass, as a line: JSON with a checksum, as the ledger's lines are.

    Args:
        part: Its index.
        of: Digest of what it is a part of: `digest_of_pass`.
        found: The arrays that it came to.
        stage: Whose record it is.
    """

    part: int
    of: str
    found: Found
    stage: str = SURVEY

    def to_line(self) -> str:
        texts = [f"{array.dtype.str} {_packed(array)}" for array in self.found]
        return checked_line({"part": self.part, "of": self.of, "stage": self.stage, "found": texts})

    @classmethod
    def from_line(cls, line: str) -> PartRecord | None:
        """The record of a line; None where it is damaged, or no such record."""
        values: dict[str, Any] = checked_content(line) or {"stage": ""}
        try:
            if values["stage"] != SURVEY:
                return None
            return cls(int(values["part"]), values["of"], tuple(_unpacked(text) for text in values["found"]))
        except (ValueError, KeyError, TypeError, zlib.error):
            return None


def _packed(array: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 1)).decode()


def _unpacked(text: str) -> np.ndarray:
    dtype, _, packed = text.partition(" ")
    return np.frombuffer(zlib.decompress(base64.b64decode(packed, validate=True)), dtype=np.dtype(dtype))


def digest_of_pass(over: Mapping[str, object], files: str, now: Pass) -> str:
    """Digest of what the parts of a pass are looked at for, and of what: those of another count for nothing.

    Args:
        over: What is measured; see `Statistics`.
        files: Signature of the files that hold the voxels.
        now: The pass.
    """
    form = [PARTS_VERSION, MOST_PARTS, BINS]
    return hashlib.sha256(json.dumps([form, over, files, asdict(now)], sort_keys=True).encode()).hexdigest()


def digest_of_norm_pass(
    over: Mapping[str, object], files: str, rule: Normalization, maps: Sequence[str], numbers: Numbers
) -> str:
    """The same of a pass that looks at maps of the network.

    Args:
        over: What is measured; see `Statistics`.
        files: Signature of the files that hold the voxels.
        rule: By which these become the network's input, with its numbers.
        maps: What is looked at.
        numbers: Of the norms before.
    """
    form = [PARTS_VERSION, "norms", over, files, rule.to_dict(), list(maps), dict(numbers)]
    return hashlib.sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()


# --- what came of it ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a survey has measured.

    Args:
        normalization: The rule with its numbers.
        over: What of: rule, boxes, and whatever names the voxels in a plan's identity.
        frozen: Fixed statistics of the network's norms, where it has such.
    """

    normalization: Normalization
    over: Mapping[str, object]
    frozen: Frozen | None = None

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    def _content(self) -> dict[str, object]:
        frozen = {"frozen": self.frozen.to_dict()} if self.frozen else {}
        return {**self.normalization.to_dict(), "over": dict(self.over), **frozen}

    def to_dict(self) -> dict[str, object]:
        return {**self._content(), "digest": self.digest}

    def to_json(self) -> str:
        return json_text(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, content: Mapping[str, object]) -> Statistics:
        """The statistics that `to_dict` wrote.

        Raises:
            ValueError, KeyError, TypeError: It is not that, or its digest is not its own.
        """
        values: dict[str, Any] = dict(content)
        digest, over = values.pop("digest"), values.pop("over")
        frozen = values.pop("frozen", None)
        statistics = cls(Normalization(**values), dict(over), Frozen.from_dict(frozen) if frozen else None)
        numbers = (statistics.normalization.offset, statistics.normalization.scale)
        if not all(isinstance(number, float) and isfinite(number) for number in numbers):
            raise ValueError(f"the numbers {numbers}")
        if statistics.digest != digest:
            raise ValueError(f"the digest {str(digest)[:12]} is not that of its content, {statistics.digest[:12]}")
        return statistics


def measure(
    rule: Normalization,
    dtype: str,
    values: int,
    parts: Parts,
    read: Callable[[Box], np.ndarray],
) -> Normalization:
    """A rule with its numbers, all passes one after the other in this process.

    Args:
        rule: Takes a pass at least.
        dtype: Of what is read.
        values: How many there are.
        parts: Of the volume.
        read: Gives the finite values of a box.
    """
    measurement = Measurement(rule, dtype, values, len(parts))
    while measurement.now:
        for part in measurement.to_do.tolist():
            measurement.add(part, measurement.now.look(read(box) for box in parts.boxes(part)))
    if measurement.result is None:
        raise ValueError(f"mode '{rule.mode}' measures nothing")
    return measurement.result
