"""Whether a network has seen anything like a volume, in words.

    sample of the volume, appearance of the training data  -->  narrow, wide, apart, or nothing to say

A network that was trained on values from 0 to 1 says nothing of use about values from 0 to 0.06, and no figure of a run
shows it: every tile is written, every byte verified. So a checkpoint keeps what its training data looked like, and a plan
compares a sample of the volume with it. The comparison is made to be right when it speaks: volumes differ in what they
show, and the same tissue elsewhere, a darker stain or a mostly empty stack are nothing strange.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil, log2

import numpy as np

from pipeline.core.appearance import Appearance, Channel, ranges, span
from pipeline.core.normalization import Normalization, spanning

LEAST_SPAN = 0.1
"""From the 1st to the 99th percentile, as a network sees it: of less, training learns nothing."""

TIMES = 4.0
"""How many times wider or narrower than in training values may be before they are strange."""

OVERLAP = 0.1
"""Lease of the shorter of two ranges that lies in the other; less, and they are apart."""

WHOLE_NUMBERS = 2**24
"""Up to here float32, which networks compute in, holds every whole number."""

WORDS = {"narrow": "far narrower than", "wide": "far wider than", "apart": "far from"}


def strangeness(sample: Appearance, seen: Sequence[Appearance]) -> str:
    """How a volume differs from all that a network has seen: `narrow`, `wide` or `apart`; empty where it does not.

    It is strange where some channel is, beside every volume that the network was trained on:

        narrow   the boxes' values together reach over less than a quarter of training's 1st to 99th percentile
        wide     the sample's 1st to 99th percentile is more than four times what training's boxes reach over
        apart    the two reach over hardly a common value

    `reach` is from the darkest box to the brightest, so one box with something in it makes a mostly empty volume no
    narrower than training was. A volume of which every box holds one value alone is compared with nothing.
    """
    if sample.is_flat:
        return ""
    like = [other for other in seen if len(other.channels) == len(sample.channels) and not other.is_flat]
    reasons = [_strange(sample, other) for other in like]
    return reasons[0] if reasons and all(reasons) else ""


def _strange(sample: Appearance, other: Appearance) -> str:
    pairs = zip(sample.channels, other.channels, strict=True)
    return next((reason for reason in (_beside(now, then) for now, then in pairs) if reason), "")


def _beside(now: Channel, then: Channel) -> str:
    if span(now.reach) * TIMES < span(then.range):
        return "narrow"
    if span(now.range) > TIMES * span(then.reach):
        return "wide"
    common = min(now.reach[1], then.reach[1]) - max(now.reach[0], then.reach[0])
    return "apart" if common < OVERLAP * min(span(now.reach), span(then.reach)) else ""


def strange_values(
    sample: Appearance, seen: Sequence[Appearance], rule: Normalization, trained: Normalization | None
) -> Iterator[str]:
    """A warning where the network has seen nothing like the values of a sample.

    Args:
        sample: The volume's sample, under `rule`.
        seen: Its training data.
        rule: How the run normalises.
        trained: How the training did; None where nobody says.
    """
    if sample.is_flat:
        yield (
            f"Each of {sample.boxes} boxes of the volume, evenly spread, holds one value alone: whether the network has seen "
            "anything like the rest cannot be said. Check that input.url is the volume that you mean."
        )
    elif reason := strangeness(sample, seen):
        then = " and ".join(f"{ranges(other)} ({other.dtype})" for other in seen[:3])
        mode = trained.mode if trained else rule.mode
        yield (
            f"This network has seen nothing like this volume. As it sees them, {_formula(rule)}, the values of {sample.boxes} boxes "
            f"({sample.dtype}) are {ranges(sample)} from the 1st to the 99th percentile: {WORDS[reason]} those of its training, "
            f"{then}, normalised by '{mode}'. Its prediction will mean little. {_remedy(sample, seen, rule, mode)}"
        )


def _remedy(sample: Appearance, seen: Sequence[Appearance], rule: Normalization, trained: str) -> str:
    for other in _other_rules(sample, rule, trained):
        other_sample = _under(sample, rule, other)
        if not strangeness(other_sample, seen):
            return f"Set normalize.mode to '{other.mode}', under which they would be {ranges(other_sample)}; or take another checkpoint."
    return "Check that input.url is the volume that you mean, or take another checkpoint."


def _other_rules(sample: Appearance, rule: Normalization, trained: str) -> list[Normalization]:
    """What other modes would come to, roughly; the one of the training first."""
    pairs = [channel.stored(rule) for channel in sample.channels]
    percentiles = spanning("percentile", min(low for low, _ in pairs), max(high for _, high in pairs))
    kind = np.dtype(sample.dtype)
    limits = (np.iinfo(kind).min, np.iinfo(kind).max) if kind.kind in "iu" else sample.limits
    rules = [percentiles, spanning("minmax", *limits), Normalization()]
    return sorted((other for other in rules if other.mode != rule.mode), key=lambda other: other.mode != trained)


def _under(sample: Appearance, rule: Normalization, other: Normalization) -> Appearance:
    """The same sample under another rule; each is a line."""
    slope, shift = other.scale / rule.scale, (rule.offset - other.offset) * other.scale
    channels = (
        Channel(
            tuple(v * slope + shift for v in c.percentiles), (c.reach[0] * slope + shift, c.reach[1] * slope + shift)
        )
        for c in sample.channels
    )
    return replace(sample, channels=tuple(channels))


def _formula(rule: Normalization) -> str:
    return "as stored" if rule.mode == "none" else f"'{rule.mode}', (value - {rule.offset:g}) * {rule.scale:.4g}"


def strange_voxels(sizes: tuple[float, ...], seen: Sequence[tuple[float, ...]], ndim: int) -> Iterator[str]:
    """A warning where voxels have none of the sizes of training: anatomy at another scale is predicted poorly.

    Args:
        sizes: Along the volume's spatial axes, nm.
        seen: Of the training's volumes, nm.
        ndim: Of the network; one of slices does not mind how far apart they are.
    """
    volume_sizes = sizes[-ndim:]
    if seen and not any(_near(volume_sizes, trained[-ndim:]) for trained in seen):
        then = " and ".join(str(trained) for trained in dict.fromkeys(seen))
        yield f"Voxels are {sizes} nm, but the checkpoint was trained at {then} nm: choose another input.level."


def _near(sizes: tuple[float, ...], trained: tuple[float, ...]) -> bool:
    pairs = zip(sizes[-len(trained) :], trained[-len(sizes) :], strict=True)
    return all(0.8 <= f / t <= 1.25 for f, t in pairs)


# --- whole numbers -------------------------------------------------------------------------------------------------------


def is_wide(dtype: str) -> bool:
    """Whether a type holds whole numbers that float32 cannot."""
    kind = np.dtype(dtype)
    return kind.kind in "iu" and kind.itemsize > 2


def lost_bits(sample: Appearance, rule: Normalization) -> Iterator[str]:
    """A warning where whole numbers of a sample are larger than float32 can tell apart."""
    largest = max(abs(value - rule.offset) for value in sample.limits)
    if not is_wide(sample.dtype) or largest <= WHOLE_NUMBERS:
        return
    low, high = sample.limits
    yield (
        f"Values are {sample.dtype}, {low:.0f} to {high:.0f} in a sample, and the network sees them as float32, {_formula(rule)}: it "
        f"loses bits, as float32 holds whole numbers up to 2^24 = {WHOLE_NUMBERS:,}; values less than "
        f"{2 ** ceil(log2(largest / WHOLE_NUMBERS)):,} apart may become one. Where that matters, store fewer bits, or "
        "normalise by 'percentile', which takes off an offset first."
    )
