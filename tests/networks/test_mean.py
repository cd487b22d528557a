"""The mean over flips and rotations: each pass of a tile is the one pass over the whole volume that is extended, transformed and transformed back."""

from math import prod

import numpy as np
import pytest
import torch

from pipeline.core.geometry.box import Box
from pipeline.core.network.imported import Imported
from pipeline.core.network.mean import Mean
from pipeline.core.network.receptive import least_halo, lost_margin, whole_window
from pipeline.core.network.stream import Stream
from pipeline.core.network.symmetry import symmetries
from pipeline.core.network.unet import Architecture
from pipeline.core.tiles.cost import mean_bytes, network_values, total_multiply_adds
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.executors import executor_of
from pipeline.networks.importing import exported as programs
from pipeline.networks.mean import as_it_lies, seen, shown_as
from pipeline.networks.sweep import Arena
from tests.networks.network_cases import NETWORKS, exported, randomise
from tests.test_exactness import behind, noise, random_network, seam, shown_by

EQUAL = 1e-12
"""Of the output's range, float64."""

CPU = torch.device("cpu")


class Case:
    """A network, a volume that is odd in every extent, and its tiles."""

    def __init__(self, network, checkpoint, shape, strides, augment):
        self.network, self.checkpoint = network, checkpoint
        self.architecture = checkpoint.architecture
        self.volume = noise(self.architecture, shape)
        self.mean = Mean((self.architecture.graph,), self.architecture.ndim, augment)
        core = tuple(s * n for s, n in zip(self.mean.stride, strides, strict=True))
        halo = least_halo(self.architecture.graph)
        self.stream = Stream.over(self.architecture.graph, shape, core, halo, self.mean.stride[0], self.mean)

    def stitched(self, views=None):
        """The mean over all tiles, as workers compute it, in float64."""
        out = np.zeros((self.architecture.out_channels, *self.stream.grid.volume))
        run = executor_of(self.checkpoint, CPU, torch.float64, Arena())
        views = views or self.stream.views
        for tile in self.stream.grid:
            window = torch.from_numpy(shown_by(self.volume, tile.window))

            def read(box, window=window, frame=tile.window):
                return window[(slice(None), *box.within(frame))].permute(1, 2, 3, 0)

            for view in views:
                for box, logits in seen(view, run, tile.core, read):
                    assert tile.core.contains(box)
                    out[(slice(None), *box.within(Box.of_shape(out.shape[1:])))] += logits.numpy() / len(views)
        return out

    def extended(self):
        """The volume, as one pass takes it; and voxels in front of it."""
        fronts = [0, 0, 0] if self.architecture.padding == "same" else self.lost
        pads = [(0, 0)]
        for axis, extent in enumerate(self.volume.shape[1:]):
            pads.append((fronts[axis], self.behind(axis, extent, fronts[axis])))
        return np.pad(self.volume, pads, mode="reflect"), fronts

    @property
    def lost(self):
        graph = self.architecture.graph
        if isinstance(self.architecture, Imported):
            return list(lost_margin(graph))
        front = 3 * 2 ** (self.architecture.depth + 1) - 4
        return [front if axis or self.architecture.ndim == 3 else 0 for axis in range(3)]

    def behind(self, axis, extent, front):
        stride = self.architecture.stride[axis]
        if self.architecture.padding == "same" or stride == 1:
            return -extent % stride + front
        if isinstance(self.architecture, Imported):
            return whole_window(self.architecture.graph, self.volume.shape[1:])[axis] - extent - front
        return behind(self.architecture, front, extent)

    def forward(self, array):
        """One pass of the module over an array (C, Z, Y, X)."""
        x = torch.from_numpy(np.ascontiguousarray(array))
        with torch.inference_mode():
            if self.architecture.ndim == 2:
                return self.network(x.transpose(0, 1)).transpose(0, 1)
            return self.network(x[None])[0]

    def reference(self, *, undo=True, extend=True):
        """The mean of whole passes over the extended volume, by numpy and torch's own layers."""
        whole, fronts = self.extended() if extend else (self.volume, [0, 0, 0])
        shape, total = self.volume.shape[1:], 0
        ways = symmetries(self.mean.augment, self.architecture.ndim)
        for way in ways:
            turned = shown_as(way, torch.from_numpy(whole), 1).numpy()
            frame = np.full((self.architecture.out_channels, *turned.shape[1:]), np.nan)
            if not extend:
                turned = np.pad(
                    turned,
                    [(0, 0), *((0, -n % s) for n, s in zip(turned.shape[1:], self.mean.stride, strict=True))],
                    mode="reflect",
                )
            given = self.forward(turned).numpy()
            lost = [(n - m) // 2 for n, m in zip(turned.shape[1:], given.shape[1:], strict=True)]
            inside = tuple(slice(a, a + n) for a, n in zip(lost, given.shape[1:], strict=True))
            if extend:
                frame[(slice(None), *inside)] = given
            else:
                frame = given[(slice(None), *(slice(0, n) for n in frame.shape[1:]))]
            back = as_it_lies(way, torch.from_numpy(frame.copy()), 1).numpy() if undo else frame
            total = total + back[(slice(None), *(slice(f, f + n) for f, n in zip(fronts, shape, strict=True)))]
        return total / len(ways)


def of_ours(shape, strides, augment, **known):
    """A case of our UNet."""
    architecture = Architecture(**{"width": 2, "depth": 1, "ndim": 3, **known})
    network = random_network(architecture)
    state = {name: t.double() if t.is_floating_point() else t for name, t in network.state_dict().items()}
    return Case(network, Checkpoint(architecture, state), shape, strides, augment)


def imported(name, shape, strides, augment):
    """A case of another layout, whose reach is not the same on both sides."""
    network = randomise(NETWORKS[name]())
    found = programs.graph_of(exported(network))
    state = {f"{node}.{n}": w for node, tensors in found.weights.items() for n, w in enumerate(tensors)}
    return Case(network, Checkpoint(Imported(found.graph, found.ndim), state), shape, strides, augment)


CASES = {
    "2D, rotations": lambda: of_ours((2, 19, 13), (1, 3, 2), "rotations", ndim=2, depth=2, in_channels=2),
    "3D, flips": lambda: of_ours((9, 11, 7), (3, 3, 2), "flips", out_channels=2),
    "2D, unpadded, depth 3": lambda: of_ours((1, 17, 21), (1, 1, 2), "flips", ndim=2, depth=3, padding="valid"),
    "3D, unpadded": lambda: of_ours((5, 3, 6), (2, 1, 2), "rotations", padding="valid"),
    "imported": lambda: imported("residual", (9, 14, 11), (4, 4, 4), "rotations"),
    "imported, unpadded": lambda: imported("valid", (5, 9, 11), (4, 3, 4), "flips"),
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_mean_of_tiles_is_the_mean_of_whole_passes(case):
    """Each pass over the whole volume, extended first, and then turned; computed and turned back."""
    case = case()
    assert len(case.stream.grid) > 1
    assert seam(case.stitched(), case.reference()) < EQUAL


def test_a_pass_that_is_not_turned_back_is_another():
    """The negative control: what the test would see."""
    case = CASES["3D, flips"]()
    assert seam(case.stitched(), case.reference(undo=False)) > 1e-2


def test_to_turn_first_and_extend_then_is_another():
    """Where the volume is no multiple of the stride, poolings would pair other voxels."""
    case = CASES["3D, flips"]()
    assert seam(case.stitched(), case.reference(extend=False)) > 1e-3


def test_a_reach_that_is_not_the_same_on_both_sides_changes_sides():
    """4 before and 5 after: turned, 5 before."""
    case = CASES["imported"]()
    core = case.stream.grid.tile(0).core.moved((32, 32, 32))
    wide = Stream.over(case.stream.graph, (99, 99, 99), core.shape, (8, 8, 8), 2, case.mean)
    sides = {
        tuple((a - p, q - b) for a, b, p, q in zip(core.start, core.stop, w.start, w.stop, strict=True))
        for w in (view.window(core) for view in wide.views)
    }
    assert {axis for found in sides for axis in found} == {(4, 5), (5, 4)}
    assert wide.grid.margin == (5, 5, 5)


@pytest.mark.parametrize("name", ["2D, unpadded, depth 3", "imported"])
def test_what_is_reckoned_of_a_mean_holds_each_of_its_passes(name):
    """Turned, cores of an unpadded network begin off its stride, and need more."""
    case = CASES[name]()
    graph = case.architecture.graph
    bounds = [one.schedule(one.grid.widest()) for one in case.stream.bounds]
    for node in graph.nodes:
        most = max(prod(axis.writes[node.name].extent for axis in bound.axes) for bound in bounds)
        for tile in case.stream.grid:
            for view in case.stream.views:
                axes = view.schedule(tile.core).axes
                assert prod(axis.writes[node.name].extent for axis in axes) <= most
    assert network_values(case.stream) >= network_values(case.stream.alone(graph))
    assert total_multiply_adds(case.stream) == len(case.stream.views) * total_multiply_adds(case.stream.alone(graph))


def test_a_mean_keeps_its_window_and_its_sum():
    """What a tile holds beside the pass that runs: the window as stored, and float32 values of the core."""
    stream = CASES["3D, flips"]().stream
    assert mean_bytes(stream.alone(stream.graph), 1) == 0
    core = prod(min(c, n) for c, n in zip(stream.grid.core, stream.grid.volume, strict=True))
    assert mean_bytes(stream, 2) >= 2 * prod(stream.grid.widest().window.shape) + 4 * 2 * core
