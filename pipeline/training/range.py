"""Whether a network can learn from values at all: how they are normalised where nobody says, and what is refused.

Integers of more than 8 bits seldom fill their type's range: 12-bit data in uint16 is 0 to 0.06 of it, beside which a network's
first weights are too small to learn. So the default for them is the volume's own percentiles, and under any rule values that
span less than 0.1 are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from pipeline.core.appearance import Appearance, Channel, span
from pipeline.core.familiarity import LEAST_SPAN, lost_bits
from pipeline.core.normalization import Normalization
from pipeline.errors import ConfigError

log = logging.getLogger("pipeline.training")


def default_rule(dtypes: Sequence[str]) -> Normalization:
    """How values are normalised where the recipe says nothing: one rule for all volumes, as a run will know one alone."""
    many_bits = any(np.dtype(dtype).kind in "iu" and np.dtype(dtype).itemsize > 1 for dtype in dtypes)
    return Normalization("percentile" if many_bits else "minmax")


def refuse_narrow(urls: Sequence[str], looks: Sequence[Appearance | None], rules: Sequence[Normalization]) -> None:
    """Refuse values that no network would learn from, of all volumes at once.

    Args:
        urls: Of the images.
        looks: What their training boxes look like to the network.
        rules: With each volume's numbers.

    Raises:
        ConfigError: Some channel spans too little.
    """
    problems = [
        _narrow(url, look, channel, rule)
        for url, look, rule in zip(urls, looks, rules, strict=True)
        if look
        for channel in look.channels
        if span(channel.range) < LEAST_SPAN
    ]
    if problems:
        raise ConfigError(
            "\n".join(
                [
                    f"What the network would see spans less than {LEAST_SPAN:g}, and training would end with nothing learned:",
                    *(f"  {line}" for line in problems),
                    "To train on it as it is: halotile train --force-range.",
                ]
            )
        )


def _narrow(url: str, look: Appearance, channel: Channel, rule: Normalization) -> str:
    (low, high), (first, last) = channel.range, channel.stored(rule)
    sentence = (
        f"'{url}' ({look.dtype}): the 1st and 99th percentile of its training boxes are {first:.6g} and {last:.6g}, which "
        f"normalize.mode '{rule.mode}' makes {low:.4g} and {high:.4g}, {high - low:.4g} apart."
    )
    if first == last:
        return f"{sentence} Nearly all voxels have one value: name boxes that show more."
    if rule.mode == "percentile":
        return f"{sentence} The rest of the volume spans far more: name boxes that show it, or set normalize.mode to 'zscore'."
    return f"{sentence} Set normalize.mode to 'percentile', which makes them about 0 and 1."


def tell_lost_bits(urls: Sequence[str], looks: Sequence[Appearance | None], rules: Sequence[Normalization]) -> None:
    """Log where integers are larger than float32 can tell apart."""
    for url, look, rule in zip(urls, looks, rules, strict=True):
        for warning in lost_bits(look, rule) if look else ():
            log.warning("'%s': %s", url, warning)
