"""A prediction compared with labels, in one pass over whole z slices, a slab of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.core.geometry.box import Box, Triple
from pipeline.errors import ConfigError
from pipeline.evaluation.choice import chosen
from pipeline.evaluation.contingency import Agreement
from pipeline.evaluation.levels import Levels
from pipeline.evaluation.pixels import PixelCounts, PixelScores, Reading
from pipeline.evaluation.rule import Rule
from pipeline.evaluation.segments import SliceSegments, VolumeSegments
from pipeline.evaluation.truth import Truth
from pipeline.volumes.inventory import Missing, open_counted
from pipeline.volumes.volume import Volume

THRESHOLDS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)

SLAB_VOXELS = 2**22
"""About how many voxels are held at once, never less than a slice; under 100 bytes each."""


@dataclass(frozen=True)
class SegmentScores:
    """How right segments are, at one threshold.

    Args:
        threshold: Of the probability.
        v_rand: Foreground-restricted Rand F-score after border thinning, 0 to 1, higher is better.
        split: Bits a voxel by which true segments are broken up.
        merge: Bits a voxel by which true segments are joined.
    """

    threshold: float
    v_rand: float
    split: float
    merge: float

    @property
    def vi(self) -> float:
        """Variation of information, bits a voxel, lower is better."""
        return self.split + self.merge


@dataclass(frozen=True)
class Evaluation:
    """What a comparison found.

    Args:
        prediction: Where it lies.
        labels: Where they lie.
        box: What was compared.
        rule: What was taken for what.
        at: The asked threshold.
        pixels: Of single voxels.
        segments: One for each threshold, `at` among them, in rising order.
    """

    prediction: str
    labels: str
    box: Box
    rule: Rule
    at: float
    pixels: PixelScores
    segments: tuple[SegmentScores, ...]

    @property
    def at_threshold(self) -> SegmentScores:
        return next(scores for scores in self.segments if scores.threshold == self.at)

    @property
    def best_v_rand(self) -> SegmentScores:
        """Of several equally good thresholds, the nearest to `at`."""
        return min(self.segments, key=lambda scores: (-scores.v_rand, abs(scores.threshold - self.at)))

    @property
    def least_vi(self) -> SegmentScores:
        """Of several equally good thresholds, the nearest to `at`."""
        return min(self.segments, key=lambda scores: (scores.vi, abs(scores.threshold - self.at)))

    @property
    def v_rand(self) -> Reading:
        return Reading(self.at_threshold.v_rand, self.best_v_rand.v_rand, self.best_v_rand.threshold)

    @property
    def vi(self) -> Reading:
        return Reading(self.at_threshold.vi, self.least_vi.vi, self.least_vi.threshold)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "prediction": self.prediction,
            "labels": self.labels,
            "box": {"start": list(self.box.start), "stop": list(self.box.stop)},
            "rule": asdict(self.rule),
            "at": self.at,
            "pixels": asdict(self.pixels),
            "v_rand": asdict(self.v_rand),
            "vi": asdict(self.vi),
            "segments": [{**asdict(scores), "vi": scores.vi} for scores in self.segments],
        }

    def rows(self) -> list[tuple[str, str]]:
        """For a person: what, and its value."""
        pixels, rule, now, least = self.pixels, self.rule, self.at_threshold, self.least_vi
        name = rule.predicts
        voxels = pixels.positives + pixels.negatives
        return [
            ("compared", f"{voxels:,} voxels, {100 * pixels.positives / voxels:.1f} % of them {name}; {self.box}"),
            (
                "taken for",
                f"{name} against {rule.labels_are}; touching along {rule.neighbours}, segments by {rule.segments}",
            ),
            ("ROC AUC", f"{pixels.auc:.4f}"),
            (f"Dice of {name}", self._describe(pixels.dice)),
            (f"IoU of {name}", self._describe(pixels.iou)),
            ("pixel error", self._describe(pixels.error)),
            (f"V_rand, thinned, by {self.rule.segments}", self._describe(self.v_rand)),
            (
                f"variation of information, by {self.rule.segments}",
                f"{_bits(now)} at {self.at:g}; least {_bits(least)} at {least.threshold:g}",
            ),
        ]

    def _describe(self, reading: Reading) -> str:
        return f"{reading.at:.4f} at {self.at:g}; best {reading.best:.4f} at {reading.threshold:.3g}"


def _bits(scores: SegmentScores) -> str:
    return f"{scores.vi:.4f} bits (split {scores.split:.4f}, merge {scores.merge:.4f})"


def evaluate(
    prediction: Volume,
    labels: Volume,
    rule: Rule = Rule(),  # noqa: B008 - frozen
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    at: float = 0.5,
    box: Box | None = None,
    slices_at_once: int | None = None,
    on_advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Compare a prediction with labels.

    Both are read once, by whole z slices of the box; a slice must fit in memory, the volume need not. The result does
    not depend on how many are read at once.

    Args:
        prediction: One channel of probabilities, uint8 (255 times them) or floats.
        labels: One channel of integers, of the same z, y, x shape.
        rule: What the two mean, and what a segment is.
        thresholds: Of segments; `at` is added to them.
        at: The threshold that a user of the prediction would take.
        box: What to compare; the whole, if None.
        slices_at_once: Held together; None for whole chunks of about `SLAB_VOXELS`.
        on_advance: Called with the voxels that each slab adds.

    Raises:
        ConfigError: The two have different shapes or are not what the rule says, the box lies outside, a threshold
            is not between 0 and 1, or the labels are all membrane or all cell.
    """
    frame = _frame(prediction, labels, box)
    tried = _tried(thresholds, at)
    levels, truth = Levels.of(prediction), Truth(labels, rule)
    pixels = PixelCounts(levels.scale)
    by_rule = SliceSegments if rule.segments == "slices" else VolumeSegments
    segments = by_rule([_limit(levels, rule, threshold) for threshold in tried], mask=rule.labels_are == "mask")
    for slab in _slabs(prediction, frame, slices_at_once):
        values = levels.read(slab)
        cells, counted = truth.read(slab, frame)
        chosen = ... if counted is None else counted
        pixels.add(values[chosen], ((cells == 0) == (rule.predicts == "membrane"))[chosen])
        segments.add(values if rule.predicts == "membrane" else levels.scale - values, cells)
        on_advance(slab.voxels)
    _check_both(pixels, labels, rule, frame)
    scores = tuple(_scores(*pair) for pair in zip(tried, segments.agreements(), strict=True))
    urls = prediction.description.url, labels.description.url
    return Evaluation(*urls, frame, rule, float(at), pixels.scores(levels.cut(at)), scores)


def compare(
    prediction: str,
    labels: str,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    at: float = 0.5,
    box: Box | None = None,
    missing: Missing = "fail",
    on_advance: Callable[[int, int], None] = lambda _done, _total: None,
    **options: Any,
) -> Evaluation:
    """`evaluate`, of what is stored: Zarr, OME-Zarr, HDF5 (`FILE.h5/dataset`) or TIFF.

    Args:
        prediction: Where the prediction lies.
        labels: Where the labels lie.
        thresholds: As `evaluate`.
        at: As `evaluate`.
        box: As `evaluate`.
        missing: As of `open_counted`.
        on_advance: Called with how many voxels are compared, of how many.
        **options: As `choice.chosen`.

    Raises:
        StorageError: There is no such volume.
        ConfigError: As `evaluate`.
    """
    probabilities, truth = open_counted(prediction, missing=missing), open_counted(labels, missing=missing)
    total, done = (box or Box.of_shape(probabilities.shape)).voxels, 0

    def advance(voxels: int) -> None:
        nonlocal done
        done += voxels
        on_advance(done, total)

    rule = chosen(probabilities, truth, **options)
    return evaluate(probabilities, truth, rule, thresholds=thresholds, at=at, box=box, on_advance=advance)


def _frame(prediction: Volume, labels: Volume, box: Box | None) -> Box:
    if prediction.shape != labels.shape:
        raise ConfigError(
            f"Prediction '{prediction.description.url}' has shape (z, y, x) = {prediction.shape}, labels "
            f"'{labels.description.url}' have {labels.shape}. Compare a prediction with the labels of the same volume and level."
        )
    whole = Box.of_shape(prediction.shape)
    if box is None:
        return whole
    if not whole.contains(box) or min(box.shape) < 1:
        raise ConfigError(f"The box to compare is {box}, the volume {whole}. Name a box inside it that holds a voxel.")
    return box


def _tried(thresholds: Sequence[float], at: float) -> list[float]:
    tried = sorted({float(threshold) for threshold in (*thresholds, at)})
    if not all(0 < threshold < 1 for threshold in tried):
        raise ConfigError(f"Thresholds are {tried}; each must be above 0 and below 1, as probabilities are.")
    return tried


def _limit(levels: Levels, rule: Rule, threshold: float) -> int:
    """A voxel is in a seed where its membrane level is below this."""
    cut = levels.cut(threshold)
    return cut if rule.predicts == "membrane" else levels.scale - cut + 1


def _slabs(prediction: Volume, frame: Box, slices_at_once: int | None) -> Iterator[Box]:
    _, y, x = frame.shape
    depth = prediction.description.chunks[0]
    height = slices_at_once or max(SLAB_VOXELS // (y * x), 1)
    if slices_at_once is None and height > depth:
        height -= height % depth
    step: Triple = (height, y, x)
    return frame.split(step)


def _check_both(pixels: PixelCounts, labels: Volume, rule: Rule, frame: Box) -> None:
    inside, outside = int(pixels.positives.sum()), int(pixels.negatives.sum())
    if not inside or not outside:
        raise ConfigError(
            f"Labels '{labels.description.url}' hold {inside} voxels of {rule.predicts} and {outside} others in the box "
            f"{frame}, taken for {rule.labels_are}; scores need both. Check the labels, labels_are ('{rule.labels_are}') and ignore."
        )


def _scores(threshold: float, agreement: Agreement) -> SegmentScores:
    return SegmentScores(threshold, agreement.v_rand, agreement.split, agreement.merge)
