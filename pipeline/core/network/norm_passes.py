"""Statistics of whole maps, by passes over a volume: which maps each pass looks at, and which of their voxels are a tile's.

A norm over the whole input has its true statistics once the map that it reads is computed over the whole volume, with the norms before it fixed
by theirs. So one pass goes up to the first norms, the next one up to those behind them, and so on. A pass is local, and goes by tiles:

    conv - norm - relu - conv - norm - relu -+- pool - conv - sigmoid -+- mul
                                             +-------------------------+
    pass 1 |
    pass 2      Affine             |
    pass 3      Affine             Affine    |

Each voxel of a map counts once: a tile has those that begin in its core, and the last one all up to where the map of one pass over the
volume, extended to its legal extents, ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from pipeline.core.geometry.box import Box, Span, Triple, per_axis, round_up, triple
from pipeline.core.network.flow import Flow
from pipeline.core.network.graph import Graph, Node
from pipeline.core.network.local import fixed_nodes, read_by
from pipeline.core.network.need import Needs, needs
from pipeline.core.network.operations import Concatenation
from pipeline.core.network.receptive import lost_margin, whole_window
from pipeline.core.network.schedule import Schedule

Ends = tuple[Span, Span, Span]
"""Along z, y, x."""

JOINED = "maps"
"""What the node is called that gives all maps of a pass, in a graph that has no such name."""


@dataclass(frozen=True)
class NormPass:
    """One pass.

    Args:
        graph: The network so far, its norms fixed; it gives the maps, channel after channel.
        maps: Nodes that write what is looked at, all at one level.
        volume: Extent along z, y, x.
        ends: Where the volume ends, extended as one pass extends it.
    """

    graph: Graph
    maps: tuple[str, ...]
    volume: Triple
    ends: Ends

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each map."""
        return tuple(self.graph.node(name).channels for name in self.maps)

    def owned(self, axis: int, core: Span) -> Span:
        """Voxels of the maps that belong to a core of the volume; there may be none where a map ends early."""
        scale, output = self.graph.scales[self.graph.output.name][axis], self.graph.output.name
        whole = self.graph.ends(axis, self.ends[axis])[output]
        start = whole.start if core.start <= 0 else core.start // scale
        stop = whole.stop if core.stop >= self.volume[axis] else core.stop // scale
        return Span(*(min(max(n, whole.start), whole.stop) for n in (start, stop)))

    def count(self, core: Box) -> int:
        """How many."""
        return prod(
            self.owned(axis, Span(*span)).extent for axis, span in enumerate(zip(core.start, core.stop, strict=True))
        )

    def needs(self, axis: int, core: Span) -> Needs:
        """What those of a core take along an axis."""
        return needs(self.graph, axis, self.owned(axis, core), self.ends[axis])

    def schedule(self, core: Box, slab: int) -> Schedule:
        """What each node computes for a core, turn by turn.

        Args:
            core: Of the volume; it owns voxels of the maps.
            slab: Slices of the input that are taken in at once; a multiple of the stride.
        """
        spans = zip(core.start, core.stop, strict=True)
        axes = triple(self.needs(axis, Span(*span)) for axis, span in enumerate(spans))
        return (Flow if self.graph.is_streamed else Schedule)(self.graph, axes, slab)


def extended(graph: Graph, volume: Triple) -> Triple:
    """Extents of one pass over a volume, as tiles see it: to whole strides where layers pad themselves, else with the margin that is lost.

    A network may take less (a strided convolution with padding takes odd extents too), but its zeros would lie elsewhere than those of tiles.
    """
    return per_axis(round_up, volume, graph.stride) if graph.is_padded else whole_window(graph, volume)


def norm_passes(graph: Graph, volume: Triple) -> tuple[NormPass, ...]:
    """The passes that give the statistics of all norms and pools over the whole input, in order.

    What waits for no other is looked at in one pass, if it is of one level.

    Args:
        graph: The network.
        volume: Extent along z, y, x.
    """
    extents = zip(extended(graph, volume), lost_margin(graph), strict=True)
    ends: Ends = triple(Span(-m, n - m) for n, m in extents)
    spans = [graph.ends(axis, span) for axis, span in enumerate(ends)]
    before: dict[str, int] = {}
    by_pass: dict[tuple[int, tuple[object, ...]], list[str]] = {}
    for node in graph.nodes:
        first = max((before[name] for name in node.inputs), default=0)
        before[node.name] = first + (node.name in graph.whole)
        if node.name in graph.whole:
            name = node.inputs[0]
            level = (graph.scales[name], *(span[name] for span in spans))
            by_pass.setdefault((first, level), []).append(name)
    nodes = fixed_nodes(graph)
    ordered = sorted(by_pass.items(), key=lambda item: item[0][0])
    found = (tuple(dict.fromkeys(names)) for _, names in ordered)
    return tuple(NormPass(_joined(nodes, maps), maps, volume, ends) for maps in found)


def _joined(nodes: list[Node], maps: tuple[str, ...]) -> Graph:
    """A graph that gives some maps."""
    read = read_by(nodes, maps)
    if len(maps) == 1:
        return Graph(read)
    names = {node.name for node in read}
    name = next(name for n in range(len(names) + 1) if (name := JOINED + "_" * n) not in names)
    channels = sum(node.channels for node in read if node.name in maps)
    return Graph((*read, Node(name, Concatenation(alike=True), maps, channels)))
