"""When each layer of a sweep computes which slices: a column streams along z, and nothing is computed twice.

Every turn takes in one slab, `step` slices of the input, and each layer writes what its input then allows:

    turn          1       2       3       4       5
    input      |0-----8|8----16|16---24|24---32|                 step 8, depth 1, volume of 32 slices
    encoder1_1 |0----7 |7----15|15---23|23---31|31|              a convolution lags one slice behind its input
    encoder1_2 |0---6  |6----14|14---22|22---30|30-32|           an even lag: the pooling takes whole pairs
    ...
    fc         |0|      0-----8|8----16|16---24|24--32|          8 slices behind: the receptive radius

Layers away from the ends write the same number of slices each turn, so shapes are fixed; at both ends a turn writes
less, and the slices of all turns together are just those that the core needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from pipeline.core.box import Span
from pipeline.core.network.need import Needs
from pipeline.core.network.unet import Architecture, Layer, layers


@dataclass(frozen=True)
class Schedule:
    """The turns of one sweep.

    Args:
        architecture: The network.
        axes: What the core needs along z, y, x.
        step: Slices of the input a turn; a multiple of the stride.
    """

    architecture: Architecture
    axes: tuple[Needs, Needs, Needs]
    step: int

    @property
    def needs(self) -> Needs:
        """Along z, the axis of the sweep."""
        return self.axes[0]

    @cached_property
    def _layers(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in layers(self.architecture)}

    @cached_property
    def _starts(self) -> dict[str, int]:
        """By layer, the slice that it would have reached before the first turn, were there input."""
        needs, found = self.needs, {}
        reached = needs.input.start
        for layer in self._layers.values():
            if layer.kind == "pool":
                reached = needs.pooled(layer.level - 1, Span(reached, reached)).start
            elif layer.kind == "up":
                reached = needs.unpooled(layer.level, Span(reached, reached)).start
            elif layer.kind == "conv":
                reached -= needs.reach
                if f"pool{layer.level + 1}" in self._layers and layer.name == f"encoder{layer.level + 1}_2":
                    reached -= (reached - needs.phases[layer.level]) % 2 * needs.reach
            found[layer.name] = reached
        return found

    @cached_property
    def turns(self) -> int:
        """Turns until the last slice of the core is written."""
        return max(-(-(self.needs.writes["fc"].stop - self._starts["fc"]) // self.step), 1)

    def slices(self, level: int) -> int:
        """Slices a turn at a level, away from the ends."""
        return self.step >> level if self.needs.spatial else self.step

    def reads(self, turn: int) -> Span:
        """Slices of the input that a turn takes in; turns count from 0."""
        first, whole = self.needs.input.start, self.needs.input
        return _between(whole, first + turn * self.step, first + (turn + 1) * self.step)

    def inputs(self) -> Iterator[Span]:
        """Slices of the input by turn, while there are any."""
        return (span for span in map(self.reads, range(self.turns)) if span.extent)

    def writes(self, name: str, turn: int) -> Span:
        """Slices that a layer writes in a turn, at its level."""
        slices, start = self.slices(self._layers[name].level), self._starts[name]
        return _between(self.needs.writes[name], start + turn * slices, start + (turn + 1) * slices)

    def held(self, name: str) -> int:
        """Slices that a convolution keeps of its input from one turn to the next."""
        order = list(self._layers)
        before = order[order.index(name) - 1] if name != order[0] else None
        reached = self._starts[before] if before else self.needs.input.start
        return reached - self._starts[name] + self.needs.reach

    def waiting(self, level: int) -> int:
        """Slices of a skip that wait for the decoder, away from the ends, right after the encoder wrote."""
        lag = self._starts[f"encoder{level + 1}_2"] - self._starts[f"unpool{level + 1}"]
        return lag + self.slices(level)


def _between(whole: Span, start: int, stop: int) -> Span:
    a, b = (min(max(i, whole.start), whole.stop) for i in (start, stop))
    return Span(a, b)
