"""The promise, at the level of the library: stitched tiles equal one pass over the whole volume, and each of the four
facts that it rests on is needed. Computed in float64, so that what is left is not rounding.

The reference is built from the definition alone (design, "Edges"), by numpy.pad over the whole volume and torch's own
layers; tiles go the way that workers go: window, mirror, and the network streamed along z, slab by slab.
"""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.geometry.box import Box
from pipeline.core.geometry.mirror import shown, spread
from pipeline.core.network.receptive import least_halo
from pipeline.core.network.stream import Stream
from pipeline.core.network.unet import Architecture
from pipeline.networks.model import UNet, initialise
from pipeline.networks.sweep import Arena, Sweep, kernels

EQUAL = 1e-12
"""Of the output's range: float64 round-off of sums in another order."""


@pytest.fixture(autouse=True)
def _threads():
    torch.set_num_threads(1)


# --- networks and volumes -----------------------------------------------------------------------------------------------


def random_network(architecture, seed=0):
    """The paper's initial weights, and batch norms as if trained; biases too, so that a border of zeros would show."""
    network = initialise(UNet(architecture), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith(("running_var", ".1.weight")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith(("bias", "running_mean")):
                tensor.normal_(0.0, 0.2, generator=generator)
    return network.double().eval()


def noise(architecture, shape, seed=0):
    """White noise, (C, Z, Y, X): whatever lies in reach changes the answer."""
    return np.random.default_rng(seed).normal(size=(architecture.in_channels, *shape))


def one_forward(network, array):
    """Logits (K, Z, Y, X) of one pass over an array (C, Z, Y, X); a 2D network takes slices as its batch."""
    x = torch.from_numpy(np.ascontiguousarray(array))
    with torch.inference_mode():
        if network.architecture.ndim == 2:
            return network(x.transpose(0, 1)).transpose(0, 1).numpy()
        return network(x[None])[0].numpy()


# --- the reference ------------------------------------------------------------------------------------------------------


def reference(network, volume):
    """One pass over the whole volume, as the promise defines it."""
    architecture, shape = network.architecture, volume.shape[1:]
    front = 3 * 2 ** (architecture.depth + 1) - 4 if architecture.padding == "valid" else 0
    pads = [(0, 0)]
    for axis, extent in enumerate(shape):
        if axis == 0 and architecture.ndim == 2:
            pads.append((0, 0))
        else:
            pads.append((front, behind(architecture, front, extent)))
    whole = one_forward(network, np.pad(volume, pads, mode="reflect"))
    return whole[(slice(None), *(slice(0, n) for n in shape))]


def behind(architecture, front, extent):
    """The least mirrored voxels behind a volume, at least as many as in front, for which every pooled map is even."""
    for pad in range(front, front + 2**architecture.depth):
        n, lost = front + extent + pad, 4 if architecture.padding == "valid" else 0
        for _ in range(architecture.depth):
            n = (n - lost) / 2
        if n == int(n):
            return pad
    raise AssertionError("no extent is legal")


# --- tiles --------------------------------------------------------------------------------------------------------------


def stitched(network, volume, stream):
    """What tiles write: each reads its window, streams it through the network, and cores are put together."""
    out = np.full((network.architecture.out_channels, *volume.shape[1:]), np.nan)
    weights = kernels(network, device=torch.device("cpu"), dtype=torch.float64)
    arena = Arena()
    for tile in stream.grid:
        window = torch.from_numpy(shown_by(volume, tile.window)).permute(1, 2, 3, 0)
        first, schedule = tile.window.start[0], stream.schedule(tile)
        sweep = Sweep(weights, schedule, arena)
        slabs = (window[a - first : b - first] for a, b in schedule.inputs())
        for (start, stop), logits in sweep.run(slabs):
            box = Box((start, *tile.core.start[1:]), (stop, *tile.core.stop[1:]))
            out[(slice(None), *box.within(Box.of_shape(volume.shape[1:])))] = logits.permute(3, 0, 1, 2).numpy()
    return out


def cropped(network, volume, core, window, margin=0):
    """What a plain tool writes for a tile: one forward pass over a window, cropped; no rule is kept for it."""
    output = Box(tuple(a + m for a, m in zip(window.start, (0, margin, margin), strict=True)), window.stop)
    return one_forward(network, shown_by(volume, window))[(slice(None), *core.within(output))]


def shown_by(volume, window):
    """A window of the mirrored volume, (C, Z, Y, X)."""
    inside, indices = shown(window, volume.shape[1:])
    return spread(volume[(slice(None), *inside.within(Box.of_shape(volume.shape[1:])))], indices)


def seam(found, expected):
    """The largest difference, as a share of the output's range; infinite where a voxel was not written."""
    extent = np.ptp(expected) if expected.size > 1 else np.abs(expected).max()
    return float(np.nan_to_num(np.abs(found - expected), nan=np.inf).max() / extent)


@dataclass(frozen=True)
class Case:
    """A network, a volume's shape, and the core and slab, in strides, that tile it."""

    architecture: Architecture
    shape: tuple[int, int, int]
    strides: tuple[int, int, int]
    slab: int = 1
    halo: tuple[int, int, int] | None = None

    @property
    def stream(self):
        core = tuple(s * n for s, n in zip(self.architecture.stride, self.strides, strict=True))
        halo = self.halo or least_halo(self.architecture.graph)
        return Stream.over(self.architecture.graph, self.shape, core, halo, self.slab * self.architecture.stride[0])


def network_of(ndim, depth, padding="same", **known):
    """Narrow, so that deep ones are quick."""
    return Architecture(**{"ndim": ndim, "depth": depth, "width": 2, "padding": padding, **known})


CASES = {
    # volumes odd in every extent, some thinner than the halo, down to a single voxel
    "2D, depth 1": Case(network_of(2, 1, in_channels=2, out_channels=3), (3, 41, 37), (2, 4, 5)),
    "2D, depth 2": Case(network_of(2, 2), (2, 83, 61), (1, 5, 3)),
    "2D, depth 3": Case(network_of(2, 3), (1, 155, 117), (1, 3, 4)),
    "2D, depth 4": Case(network_of(2, 4), (1, 301, 83), (1, 3, 2)),
    "2D, depth 4, thin": Case(network_of(2, 4), (3, 3, 275), (2, 1, 2)),
    "2D, depth 4, a voxel": Case(network_of(2, 4, norm="none"), (1, 1, 1), (1, 1, 1)),
    "2D, no bias": Case(network_of(2, 2, bias=False), (1, 71, 53), (1, 4, 4)),
    "3D, depth 1": Case(network_of(3, 1, out_channels=2), (23, 19, 27), (4, 5, 6)),
    "3D, depth 2": Case(network_of(3, 2), (61, 13, 47), (4, 2, 5)),
    "3D, depth 3": Case(network_of(3, 3), (21, 37, 115), (2, 3, 2)),
    "3D, depth 3, thin": Case(network_of(3, 3), (2, 3, 131), (1, 1, 4)),
    "3D, depth 4": Case(network_of(3, 4), (3, 17, 275), (1, 1, 4)),
    "2D, unpadded, depth 1": Case(network_of(2, 1, "valid", in_channels=2), (3, 41, 37), (2, 4, 5)),
    "2D, unpadded, depth 2": Case(network_of(2, 2, "valid"), (2, 83, 61), (1, 5, 3)),
    "2D, unpadded, depth 3": Case(network_of(2, 3, "valid"), (1, 117, 61), (1, 3, 4)),
    "2D, unpadded, depth 4": Case(network_of(2, 4, "valid"), (1, 131, 83), (1, 3, 3)),
    "2D, unpadded, depth 4, thin": Case(network_of(2, 4, "valid", norm="none"), (1, 2, 131), (1, 1, 2)),
    "2D, unpadded, a voxel": Case(network_of(2, 3, "valid"), (1, 1, 1), (1, 1, 1)),
    "3D, unpadded, depth 1": Case(network_of(3, 1, "valid"), (11, 3, 23), (3, 1, 4)),
    "3D, unpadded, depth 2": Case(network_of(3, 2, "valid", width=1), (9, 1, 21), (2, 1, 3)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_stitched_tiles_equal_one_pass_over_the_whole_volume(case):
    """The product. Whatever else Halotile does, it does this."""
    network, volume = random_network(case.architecture), noise(case.architecture, case.shape)
    assert seam(stitched(network, volume, case.stream), reference(network, volume)) < EQUAL


@st.composite
def small_cases(draw):
    """Depth 1 and 2 over any small volume, with any core."""
    ndim, depth = draw(st.sampled_from([(2, 1), (2, 2), (3, 1)]))
    architecture = network_of(
        ndim,
        depth,
        draw(st.sampled_from(("same", "valid"))),
        width=draw(st.integers(1, 2)),
        bias=draw(st.booleans()),
        norm=draw(st.sampled_from(("batch", "none"))),
    )
    shape = (draw(st.integers(1, 9)), draw(st.integers(1, 40)), draw(st.integers(1, 20)))
    strides = (draw(st.integers(1, 4)), draw(st.integers(2, 8)), draw(st.integers(2, 8)))
    return Case(architecture, shape, strides, draw(st.integers(1, 5)))


@given(small_cases(), st.integers(0, 2**32 - 1))
def test_any_volume_and_any_tile_are_exact(case, seed):
    """No extent, no core and no weights are special."""
    network, volume = random_network(case.architecture, seed), noise(case.architecture, case.shape, seed)
    expected = reference(network, volume)
    found = stitched(network, volume, case.stream)
    assert np.abs(found - expected).max() <= EQUAL * max(np.ptp(expected), np.abs(expected).max())


SLABBED = ["2D, depth 2", "3D, depth 1", "3D, depth 2", "3D, depth 3", "2D, unpadded, depth 2", "3D, unpadded, depth 2"]


@pytest.mark.parametrize("name", SLABBED)
@pytest.mark.parametrize("slab", [2, 3, 100])
def test_the_slab_does_not_show(name, slab):
    """It bounds memory and nothing else: how many slices a turn takes in, whole columns at once too."""
    case = CASES[name]
    network, volume = random_network(case.architecture), noise(case.architecture, case.shape)
    found = stitched(network, volume, replace(case, slab=slab).stream)
    assert seam(found, stitched(network, volume, case.stream)) < EQUAL


def test_more_halo_than_needed_changes_nothing():
    """A given halo may be larger than the least: no more than what is needed is read."""
    case = CASES["2D, depth 2"]
    network, volume = random_network(case.architecture), noise(case.architecture, case.shape)
    wide = replace(case, halo=(0, 32, 48))
    assert [tile.window for tile in wide.stream.grid] == [tile.window for tile in case.stream.grid]
    assert seam(stitched(network, volume, wide.stream), reference(network, volume)) < EQUAL


# --- negative controls --------------------------------------------------------------------------------------------------

WIDE = {
    "2D, depth 1": Case(network_of(2, 1, width=4), (1, 60, 60), (1, 15, 15)),
    "2D, depth 2": Case(network_of(2, 2, width=4), (1, 120, 120), (1, 15, 15)),
    "2D, depth 3": Case(network_of(2, 3, width=4), (1, 224, 224), (1, 14, 14)),
    "2D, depth 4": Case(network_of(2, 4, width=4), (1, 400, 400), (1, 13, 13)),
    "3D, depth 1": Case(network_of(3, 1, width=4), (24, 24, 24), (6, 6, 6)),
}
"""Volumes in which tiles have neighbours beyond their halos."""


@pytest.mark.parametrize("case", WIDE.values(), ids=WIDE)
def test_a_halo_one_stride_short_leaves_a_seam(case):
    """Reach is needed, to the last stride: the receptive radius is not a rule of thumb."""
    network, volume = random_network(case.architecture), noise(case.architecture, case.shape)
    expected = reference(network, volume)
    short = tuple(
        max(h - s, 0) for h, s in zip(least_halo(case.architecture.graph), case.architecture.stride, strict=True)
    )
    assert seam(stitched(network, volume, case.stream), expected) < EQUAL
    assert seam(stitched(network, volume, replace(case, halo=short).stream), expected) > 1e-4


@pytest.mark.parametrize("by", range(9))
def test_a_tile_off_the_lattice_is_wrong_and_the_next_on_it_is_right(by):
    """Phase is needed: pooling pairs voxels, and a window that starts one voxel later pairs others."""
    architecture = network_of(2, 2, width=4)
    network, volume = random_network(architecture), noise(architecture, (1, 40, 160))
    core = Box((0, 0, 64 + by), (1, 40, 96 + by))
    window = Box((0, 0, core.start[2] - 24), (1, 40, core.stop[2] + 24))
    expected = reference(network, volume)
    found = cropped(network, volume, core, window)
    inside = expected[(slice(None), *core.within(Box.of_shape((1, 40, 160))))]
    difference = np.abs(found - inside).max() / np.ptp(expected)
    assert difference < EQUAL if by % 4 == 0 else difference > 1e-2


@pytest.mark.parametrize(("apart", "exact"), [(388, False), (384, True)])
def test_the_classic_tile_of_388_is_a_trap(apart, exact):
    """572 -> 388 placed edge to edge is what many do: 388 is no multiple of 16, and every other tile is off phase."""
    architecture = network_of(2, 4, "valid")
    network, volume = random_network(architecture), noise(architecture, (1, 20, 2 * apart))
    windows = [Box((0, -92, x - 92), (1, 112, x + 480)) for x in (0, apart)]
    cores = [Box((0, 0, x), (1, 20, x + apart)) for x in (0, apart)]
    parts = [cropped(network, volume, core, window, 92) for core, window in zip(cores, windows, strict=True)]
    found, expected = np.concatenate(parts, axis=3), reference(network, volume)
    changed = (np.abs(found - expected) > 1e-3 * np.ptp(expected))[0, 0].mean(axis=0)
    if exact:
        assert seam(found, expected) < EQUAL
    else:
        assert seam(found, expected) > 1e-2
        assert changed[:388].max() == 0  # the first tile lies where it must
        assert changed[388:].mean() > 0.2


@pytest.mark.parametrize("mode", ["reflect", "constant"])
def test_what_is_put_before_a_padded_volume_shows(mode):
    """Edges are needed: there each layer pads itself, and neither mirrored voxels nor zeros do the same."""
    architecture = network_of(2, 2, width=4)
    network, volume = random_network(architecture), noise(architecture, (1, 64, 80))
    halo = [(0, 0), (0, 0), (24, 24), (24, 24)]
    found = one_forward(network, np.pad(volume, halo, mode=mode))[:, :, 24:-24, 24:-24]
    difference = np.abs(found - reference(network, volume)) / np.ptp(reference(network, volume))
    assert difference.max() > 1e-2
    assert difference[:, :, 24:-24, 24:-24].max() < EQUAL


def test_a_norm_over_the_input_breaks_the_promise_at_any_halo():
    """Locality is needed: of an instance norm, tiles with three times the halo are as wrong as ever."""
    architecture = network_of(2, 1, width=4)
    network, volume = random_network(architecture), noise(architecture, (1, 64, 64))
    for block in network.children():
        if isinstance(block, torch.nn.Sequential):
            block[1] = torch.nn.InstanceNorm2d(block[1].num_features, dtype=torch.double)
    for halo in (8, 24):
        found = np.empty_like(volume)
        for y, x in product(range(0, 64, 16), repeat=2):
            core, ends = Box((0, y, x), (1, y + 16, x + 16)), Box.of_shape((1, 64, 64))
            window = Box((0, y - halo, x - halo), (1, y + 16 + halo, x + 16 + halo)).clipped(ends)
            found[(slice(None), *core.within(ends))] = cropped(network, volume, core, window)
        assert seam(found, reference(network, volume)) > 1e-2


def test_a_column_cut_between_pairs_is_wrong():
    """A sweep streams in the volume's own phase: one that starts a slice late pools other pairs along z."""
    case = Case(network_of(3, 1, width=4), (48, 12, 12), (8, 6, 6))
    network, volume = random_network(case.architecture), noise(case.architecture, case.shape)
    expected = reference(network, volume)
    late = stitched(network, volume[:, 1:], replace(case, shape=(47, 12, 12)).stream)
    middle = (slice(None), slice(16, 32))
    assert seam(late[middle], expected[:, 1:][middle]) > 1e-2
