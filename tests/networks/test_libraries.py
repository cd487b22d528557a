"""Networks of libraries: as committed, boxes of the module's own pass; as made anew by `make test-networks`, all that is claimed of them."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from pipeline.core.geometry.box import Span, triple
from pipeline.core.network.receptive import least_halo, reach
from pipeline.networks.checkpoint import load_checkpoint
from pipeline.networks.importing.archive import read_archive
from tests.networks.library_networks import (
    COMMITTED,
    LOCAL,
    MADE,
    WHOLE,
    committed,
    imported,
    manifest,
    note,
)

EQUAL = 1e-11
"""Of the output's range, float64, against the module's own pass: batch norm is an affine map here."""

STORED = 1e-6
"""The same where those maps were rounded to the float32 of a checkpoint."""

SHORT = 1e-4
"""A halo that is one stride short is off by more: ten times what tiles may be by the command line."""

FROZEN = 1e-9
"""Of the output's range, float64: tiles by frozen statistics against one pass by the same; an affine map in place of each norm."""


# --- as committed ---------------------------------------------------------------------------------------------------------


def corners(network):
    """A box at either end, and one in the middle; all on and off the stride."""
    extents = triple(network.volume.shape[1:])
    for start in ([0, 0, 0], [max(n // 2 - 1, 0) for n in extents], [n - min(n, 5) for n in extents]):
        yield tuple(Span(a, min(a + 5, n)) for a, n in zip(start, extents, strict=True))


@pytest.mark.parametrize("name", LOCAL)
def test_boxes_of_a_librarys_network_are_those_of_its_own_pass(name):
    """At the corner, in the middle, at the end; a halo that is one stride short is not."""
    network = committed(name)
    exact = [network.difference(network.box(cores), cores) for cores in corners(network)]
    assert max(exact) <= STORED
    assert max(network.short(cores) for cores in corners(network)) > 100 * STORED


@pytest.mark.parametrize("name", WHOLE)
def test_a_librarys_network_with_norms_over_its_whole_input_is_its_own_pass(name):
    """Over the whole, and over no part of it by itself."""
    network = committed(name)
    assert not network.graph.is_local
    assert network.difference(network.box(network.whole), network.whole) <= STORED
    assert own(network) > 1e-3


def own(network) -> float:
    """How far half a volume, with statistics of its own, is from the module's pass: what sliding windows do; of the range."""
    stride = network.graph.stride[2]
    part = (*network.whole[:2], Span(0, network.volume.shape[3] // 2))
    half = (*network.legal[:2], Span(0, part[2].stop // stride * stride + stride))
    return network.difference(network.box(part, ends=half), part)


def tiled(network) -> float:
    """The largest difference of all tiles from one pass."""
    return max(network.difference(network.box(cores), cores) for cores in network.tiles())


FROZEN_SHARE = random.Random(16).sample(WHOLE, 2)
"""For every day, of those that are frozen."""


@pytest.mark.parametrize("name", FROZEN_SHARE)
def test_tiles_of_a_frozen_librarys_network_are_one_pass_of_it(name):
    """By statistics of some patches; windows with statistics of their own are far off."""
    network = committed(name)
    fixed = network.frozen(network.patches(3))
    assert fixed.graph.is_local
    assert len(list(fixed.tiles())) >= 4
    assert tiled(fixed) <= FROZEN
    assert own(network) > 1e-3


def test_what_is_committed_is_small_and_said():
    """Ten megabytes in all; each with versions and seed."""
    files = [path for path in COMMITTED.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10 * 2**20
    said = manifest()
    assert set(said) == {*LOCAL, *WHOLE}
    assert {path.stem for path in files} == {*said, "manifest"}
    for entry in said.values():
        assert entry["versions"]["torch"]
        assert entry["library"] is None or entry["versions"][entry["library"]]


# --- as made anew ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[*LOCAL, *WHOLE])
def made(request):
    """A network from its library's program, and its pass over the larger volume."""
    name = request.param
    assert (MADE / f"{name}.npz").exists(), f"{MADE} has no '{name}': run make test-networks"
    read = read_archive(MADE / f"{name}.pt2")
    return name, imported(name, read.graph, read.weights, MADE / f"{name}.npz", "large")


def local(made):
    """Those of which tiles are claimed."""
    if not made[1].graph.is_local:
        pytest.skip("it looks at its whole input")
    return made


@pytest.mark.network
def test_what_is_made_anew_is_what_is_committed(made):
    """The same graph, and values within rounding: libraries of the versions that were written down still are what they were."""
    name, network = made
    before = load_checkpoint(COMMITTED / f"{name}.safetensors")
    assert network.graph == before.architecture.graph
    for node, tensors in before.weights.items():
        for one, other in zip(tensors, network.weights[node], strict=True):
            np.testing.assert_allclose(one.numpy(), other.float().numpy(), rtol=1e-5, atol=1e-6)
    with np.load(COMMITTED / f"{name}.npz") as old, np.load(MADE / f"{name}.npz") as new:
        np.testing.assert_array_equal(old["small"], new["small"])
        spread = float(np.ptp(old["small_pass"]))
        assert np.abs(old["small_pass"] - new["small_pass"]).max() <= 1e-5 * spread
    assert json.dumps(manifest()[name]) == json.dumps(manifest(MADE)[name])


@pytest.mark.network
def test_the_graph_is_the_module(made):
    """Over the whole volume, float64."""
    name, network = made
    off = network.difference(network.box(network.whole), network.whole)
    note(name, graph=off)
    assert off <= EQUAL


@pytest.mark.network
def test_the_stride_and_the_halo_are_those_of_the_module(made):
    """Of its layers, and of the support of its gradients, on both sides."""
    name, network = local(made)
    said = manifest(MADE)[name]
    assert list(network.graph.stride) == said["stride"]
    assert [list(sides) for sides in reach(network.graph)] == said["gradient"]


@pytest.mark.network
def test_a_tile_is_the_whole_and_one_stride_less_is_not(made):
    """A block of one stride in the middle, with its halo and with one stride less, against the module's pass."""
    name, network = local(made)
    block = network.block()
    window = tuple(span.grown(halo) for span, halo in zip(block, least_halo(network.graph), strict=True))
    assert all(legal.hull(span) == legal for span, legal in zip(window, network.legal, strict=True))
    tile = network.difference(network.box(block, ends=window), block)
    short = network.short(block)
    note(name, tile=tile, short=short)
    assert tile <= EQUAL
    assert short > SHORT


def looking(made):
    """Those that look at their whole input."""
    if made[1].graph.is_local:
        pytest.skip("it is local")
    return made


@pytest.mark.network
def test_frozen_it_is_the_module_where_the_sample_is_all_and_tiles_are_one_pass_always(made):
    """The module itself says what statistics of the whole volume give: all tiles by these are its own pass. Those of a few patches
    give another function, that tiles are as exact by; windows with statistics of their own are far from either."""
    name, network = looking(made)
    alone = (
        [slice(0, 1)] if network.case.ndim == 2 else [slice(None)]
    )  # of a slice; else a pass has statistics by slice
    one = replace(network, volume=network.volume[:, *alone], expected=network.expected[:, *alone])
    itself = replace(one.frozen([one.image()]), expected=one.expected)
    module = tiled(itself)
    fixed = network.frozen(network.patches(4))
    tile = tiled(fixed)
    window = own(network)
    note(name, module=module, tile=tile, window=window)
    assert module <= FROZEN
    assert tile <= FROZEN
    assert window > 1e-3
