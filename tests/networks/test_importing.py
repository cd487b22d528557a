"""Networks of other layouts as graphs: each box of the whole pass, from what the box needs; and what is refused, by name."""

import json
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.core.geometry.box import Span, triple
from pipeline.core.network.document import document
from pipeline.core.network.document import graph_of as graph_of_document
from pipeline.core.network.local import local
from pipeline.core.network.need import needs
from pipeline.core.network.operations import Affine, WholeNorm
from pipeline.core.network.receptive import legal_extent, lost_margin, reach, receptive_radius, whole_window
from pipeline.errors import ModelError
from pipeline.networks.evaluate import evaluate
from pipeline.networks.frozen import measured
from pipeline.networks.importing.exported import graph_of
from pipeline.networks.importing.proof import prove
from tests.networks.network_cases import NETWORKS, Aligned, Odd, Residual, Valid, exported, randomise

EQUAL = 1e-12
"""Of values of about 1, float64."""


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    """A network, and its import."""
    network = randomise(NETWORKS[request.param]())
    return network, graph_of(exported(network))


def solid(image, network):
    """1 C Z Y X."""
    return image if len(network.shape) == 5 else image[:, :, None]


def image_of(network, seed=0):
    """Noise, as the network takes it."""
    return torch.rand(network.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def box(imported, image, cores):
    """What the graph gives in a box, of what the box needs of the image."""
    graph, shape = imported.graph, image.shape[2:]
    margin = lost_margin(graph)
    ends = [Span(0, n) if graph.is_padded else None for n in shape]
    axes = triple(needs(graph, axis, core, ends[axis]) for axis, core in enumerate(cores))
    window = image[
        (
            slice(None),
            slice(None),
            *(slice(a.input.start + m, a.input.stop + m) for a, m in zip(axes, margin, strict=True)),
        )
    ]
    return evaluate(graph, imported.weights, window, axes)


def test_any_box_of_the_whole_pass_is_computed_from_what_it_needs(case):
    """Corners, middles and slivers, on and off the stride."""
    network, imported = case
    image = solid(image_of(network), network)
    whole = solid(network(image_of(network)), network)
    choose = random.Random(0)
    for _ in range(12):
        starts = [choose.randrange(n) for n in whole.shape[2:]]
        cores = [Span(a, choose.randint(a + 1, n)) for a, n in zip(starts, whole.shape[2:], strict=True)]
        expected = whole[(slice(None), slice(None), *(slice(*core) for core in cores))]
        torch.testing.assert_close(box(imported, image, cores), expected, rtol=0, atol=EQUAL)


def test_the_reach_is_that_of_gradients(case):
    """Of a block of one stride in the middle, either side; no voxel less. Where places follow from the volume's extent, other blocks reach further."""
    network, imported = case
    image = image_of(network).requires_grad_()
    whole = solid(network(image), network)
    graph = imported.graph
    starts = [n // 2 // s * s for n, s in zip(whole.shape[2:], graph.stride, strict=True)]
    block = whole[(slice(None), slice(None), *(slice(a, a + s) for a, s in zip(starts, graph.stride, strict=True)))]
    (gradient,) = torch.autograd.grad((block * torch.rand_like(block)).sum(), image)
    places = torch.nonzero(solid(gradient, network)[0].abs().sum(0))
    for axis, (start, stride, margin) in enumerate(zip(starts, graph.stride, lost_margin(graph), strict=True)):
        low, high = int(places[:, axis].min()) - margin, int(places[:, axis].max()) + 1 - margin
        before, after = reach(graph)[axis]
        assert low >= start - before
        assert high <= start + stride + after
        assert graph.anchored or (start - low, high - start - stride) == (before, after)


def test_what_is_imported_is_proven(case):
    """In float64, where an error of the halo is told from rounding; the control is one stride less."""
    network, imported = case
    proof = prove(imported)
    assert max(proof.graph, proof.tile) < EQUAL
    if isinstance(network, Valid | Odd):
        assert proof.short is None
    else:
        assert proof.short > 1e-6
        control = "lies by its own extent" if isinstance(network, Aligned) else "one stride less of halo"
        assert control in str(proof)


def test_a_tile_is_compared_however_small_the_image_of_the_program_is():
    """A user exports what he likes; the image that holds a tile is long along one axis, and made here."""
    proof = prove(graph_of(exported(randomise(Residual()), (1, 1, 2, 4, 6))))
    assert proof.tile < EQUAL < 1e-6 < proof.short


@pytest.mark.parametrize("axis", range(3))
def test_a_halo_that_is_short_along_one_axis_is_a_refusal(axis, monkeypatch):
    """Each axis is looked at: were the reach of one too small, no volume would be computed."""
    imported = graph_of(exported(randomise(Residual())))
    radius = [n - 2 * (k == axis) for k, n in enumerate(receptive_radius(imported.graph))]
    monkeypatch.setattr("pipeline.networks.importing.proof.receptive_radius", lambda _: tuple(radius))
    with pytest.raises(ModelError, match="does not compute what the network does"):
        prove(imported)


def test_a_graph_that_computes_something_else_is_refused(case):
    """A rule that is wrong is a refusal at import, not a wrong volume."""
    _, imported = case
    for name, tensors in imported.weights.items():
        if isinstance(imported.graph.node(name).operation, Affine) or name == next(iter(imported.weights)):
            weights = {**imported.weights, name: tuple(1.001 * w for w in tensors)}
            with pytest.raises(ModelError, match="does not compute what the network does"):
                prove(type(imported)(imported.graph, weights, imported.ndim, imported.program))


def test_the_residual_network_reaches_further_after_than_before():
    """A strided convolution and its transposed one are not mirror images: a halo has two sides."""
    graph = graph_of(exported(randomise(Residual()))).graph
    assert graph.stride == (2, 2, 2)
    assert reach(graph) == ((4, 5),) * 3
    assert receptive_radius(graph) == (5, 5, 5)


def test_aligned_corners_are_exact_by_the_volumes_extent_alone():
    """At extents that the program was not exported with. The negative control: the module on windows, which lie by their own, is off at any halo."""
    network = randomise(Aligned())
    imported = graph_of(exported(network))
    image = torch.rand((1, 1, 64, 20, 52), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = network(image)
    extent = float(whole.max() - whole.min())
    for cores in ([Span(0, n) for n in image.shape[2:]], [Span(4, 8), Span(0, 4), Span(44, 52)]):
        expected = whole[(slice(None), slice(None), *(slice(*core) for core in cores))]
        torch.testing.assert_close(box(imported, image, cores), expected, rtol=0, atol=EQUAL)
    for halo in (8, 12, 16):
        window = network(image[:, :, 24 - halo : 32 + halo])[:, :, halo : halo + 8]
        assert float((window - whole[:, :, 24:32]).abs().max()) > 1e-3 * extent


def test_a_network_that_pads_nothing_lies_in_the_middle_of_what_it_reads():
    """One pass begins as far before the volume as it ends after it."""
    graph = graph_of(exported(randomise(Valid()))).graph
    assert not graph.is_padded
    assert lost_margin(graph) == receptive_radius(graph)
    assert reach(graph) == tuple((m, m) for m in lost_margin(graph))
    whole = [legal_extent(graph, axis, n) for axis, n in enumerate((36, 40, 44))]
    assert whole == [36, 40, 44]


def test_a_network_that_loses_an_odd_number_of_voxels_lies_half_a_voxel_after_the_middle():
    """One pass begins a voxel further before the volume than it ends after it; where a pooling leaves out the last voxel, it takes one more."""
    graph = graph_of(exported(randomise(Odd()))).graph
    assert reach(graph) == ((2, 1), (4, 4), (3, 3))
    assert lost_margin(graph) == (2, 4, 3)
    assert whole_window(graph, (25, 30, 41)) == (29, 38, 48)
    image = torch.zeros((1, 1, 29, 38, 48), dtype=torch.float64)
    assert all(n >= m for n, m in zip(Odd().double()(image).shape[2:], (25, 30, 41), strict=True))
    assert Odd().double()(image[..., :47]).shape[4] < 41


# --- what is refused ------------------------------------------------------------------------------------------------------


class Of(nn.Module):
    """A function as a network, behind a convolution."""

    shape = (1, 4, 16, 16, 16)

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv3d(4, 4, 3, padding=1), function

    def forward(self, x):
        return self.function(self.conv(x))


class Twice(nn.Module):
    """Takes two images."""

    def forward(self, x, y):
        return x + y


REFUSED = {
    "sum over space": (lambda x: x - x.sum((2, 3, 4), keepdim=True), "sum", "whole input"),
    "mean over an axis": (lambda x: x - x.mean(2, keepdim=True), "mean", "axes [2], not over those of space"),
    "pyramid": (
        lambda x: x + F.interpolate(F.adaptive_avg_pool3d(x, 2), scale_factor=8), "adaptive_avg_pool3d", "(2, 2, 2) parts"
    ),
    "largest of a map and its mean": (
        lambda x: torch.maximum(x, x.mean((2, 3, 4), keepdim=True)), "maximum", "with one value a channel"
    ),
    "divided by a map": (lambda x: x.mean((2, 3, 4), keepdim=True) / (x + 9), "div", "no sum or product"),
    "pool of one value": (
        lambda x: x + F.max_pool3d(x.mean((2, 3, 4), keepdim=True), 1), "max_pool3d", "with one value a channel"
    ),
    "weights for each place": (
        lambda x: F.layer_norm(x, x.shape[1:], torch.ones(x.shape[1:], dtype=x.dtype)), "layer_norm", "for each place"
    ),
    "class of the whole": (lambda x: x.mean((2, 3, 4)), "", "values for its whole image"),
    "axes exchanged": (lambda x: x.transpose(2, 3), "transpose", "no rule"),
    "attention": (lambda x: (x.flatten(2) @ x.flatten(2).transpose(1, 2)).unsqueeze(-1), "", "no rule"),
    "soft-max over space": (lambda x: x.softmax(3), "softmax", "not over channels"),
    "every second channel": (lambda x: x[:, ::2], "slice", "every 2th of channels"),
    "a last group that is not whole": (
        lambda x: F.interpolate(F.max_pool3d(x, 3, 2, 1, ceil_mode=True), 16), "max_pool3d", "of 3 voxels 2 apart, padded by 1"
    ),
    "a last group of 5 voxels": (lambda x: F.max_pool3d(x[..., 3:], 2, ceil_mode=True), "max_pool3d", "export the network at extents"),
    "padded by mirror and cropped": (lambda x: F.pad(x, (-1, 1, 0, 0, 0, 0), "replicate"), "pad", "crops at another"),
    "a divisor": (lambda x: F.avg_pool3d(x, 2, 1, divisor_override=3), "avg_pool3d", "divisor of its own"),
    "places told apart": (lambda x: x + torch.arange(16.0, dtype=x.dtype), "add", "other ones at other places"),
    "circular": (lambda x: F.pad(x, (1, 1, 1, 1, 1, 1), "circular")[..., 1:-1], "pad", "circular"),
    "padding by ones": (lambda x: F.conv3d(F.pad(x, (1,) * 6, value=1.0), torch.ones(1, 4, 3, 3, 3, dtype=x.dtype)), "pad", "pads with 1"),
    "half as many voxels": (lambda x: F.max_pool3d(x, 2), "", "one voxel for"),
    "cut at the end": (lambda x: x[..., :12], "", "which of them these are cannot be told"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_tile_can_compute_is_refused_by_name(name):
    """The layer, what it does, and why not: a network that is imported is exact."""
    function, call, why = REFUSED[name]
    with pytest.raises(ModelError) as refused:
        prove(graph_of(exported(randomise(Of(function)))))
    assert call in str(refused.value)
    assert why in str(refused.value)


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.BatchNorm3d(2)),
        nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.Dropout()),
    ],
    ids=["batch norm", "dropout"],
)
def test_a_network_that_was_exported_for_training_is_refused(network):
    """It would look at its batch, or leave values out by chance."""
    shape = (1, 1, 8, 8, 8)
    with pytest.raises(ModelError, match=r"exported for training. Call its eval\(\) before"):
        graph_of(exported(network.train(), shape))
    assert prove(graph_of(exported(network.eval(), shape))).graph < EQUAL


RULED = {
    "ceil mode of whole groups": lambda x: F.interpolate(F.max_pool3d(x, 2, ceil_mode=True), scale_factor=2),
    "ceil mode of means": lambda x: F.interpolate(F.avg_pool3d(x, 4, 2, 1, ceil_mode=True), scale_factor=2),
    "means of what is there": lambda x: F.avg_pool3d(x, 3, 1, 1, count_include_pad=False),
    "strided means of what is there": lambda x: F.interpolate(F.avg_pool3d(x, (3, 2, 3), 2, (1, 0, 1), count_include_pad=False), scale_factor=2),
    "padded and cropped": lambda x: F.pad(x, (2, -2, -1, 1, -1, 1)),
    "every second voxel, and those between": lambda x: F.interpolate(x[:, :, ::2, 1::2, :-1:2] - 2 * x[:, :, 1::2, ::2, 1::2], scale_factor=2),
    "a product and a sum": lambda x: torch.addcmul(x, x.sigmoid(), x, value=0.5) + torch.addcmul(x, x, torch.tensor(2.0, dtype=x.dtype)),
    "a quotient and a sum": lambda x: torch.addcdiv(x, x, x.exp() + 1),
    "between two": lambda x: torch.lerp(x, x.sigmoid(), 0.3) + torch.lerp(x.tanh(), x, x.sigmoid()),
    "a factor of what is added": lambda x: torch.add(x, x.sigmoid(), alpha=3) - torch.sub(x, x.tanh(), alpha=0.5),
}  # fmt: skip
"""Rarer operations that have a rule."""


@pytest.mark.parametrize("name", RULED)
def test_rarer_operations_are_proven_and_computed_in_any_box(name):
    """Against the module, at the ends and within; halo against gradients, as of any import."""
    network = Of(RULED[name])
    network = randomise(network)
    imported = graph_of(exported(network))
    assert graph_of_document(json.loads(json.dumps(document(imported.graph)))) == imported.graph
    proof = prove(imported)
    assert max(proof.graph, proof.tile) < EQUAL
    assert proof.support.seen == proof.support.halo
    assert proof.short > 1e-9
    image = torch.rand((1, 4, 12, 20, 16), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = network(image)
    for cores in ([Span(0, n) for n in image.shape[2:]], [Span(3, 5), Span(17, 20), Span(0, 4)]):
        expected = whole[(slice(None), slice(None), *(slice(*core) for core in cores))]
        torch.testing.assert_close(box(imported, image, cores), expected, rtol=0, atol=EQUAL)


def in_place(x):
    """A copy is changed, and what it was copied from is read."""
    y = x.clone()
    y.relu_()
    return x + y


def in_place_of_a_part(x):
    """A part of what is read later is changed."""
    x[:, :2].relu_()
    return x


def before(x):
    """A part that was taken before the whole is changed in place, and changes with it."""
    part = x[:, :2]
    x.relu_()
    return torch.cat([x, part], 1)


@pytest.mark.parametrize("function", [in_place, in_place_of_a_part, before])
def test_what_shares_memory_and_is_changed_in_place_is_refused(function):
    """Or is exact: never the value of before for that of after."""
    with pytest.raises(ModelError, match=r"changes a part of what others read|does not compute what the network does"):
        prove(graph_of(exported(randomise(Of(function)))))


def test_constants_and_one_minus_have_rules():
    """Scalars, and one number a channel, from either side."""

    def function(x):
        return (1 - x) * torch.arange(4.0, dtype=x.dtype).view(4, 1, 1, 1) / 3 - 0.5 + (2 - x).clamp(min=0)

    assert prove(graph_of(exported(randomise(Of(function))))).graph < EQUAL


WHOLE = {
    "instance norm": lambda x: F.instance_norm(x, weight=torch.arange(4.0, dtype=x.dtype), bias=torch.ones(4, dtype=x.dtype)),
    "instance norm without weights": F.instance_norm,
    "group norm": lambda x: F.group_norm(x, 2, torch.arange(4.0, dtype=x.dtype), torch.ones(4, dtype=x.dtype), 0.1),
    "layer norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "batch norm without statistics": lambda x: F.batch_norm(x, None, None, training=True),
    "mean": lambda x: x * F.adaptive_avg_pool3d(x, 1) - x.mean((2, 3, 4), keepdim=True),
    "largest": lambda x: x.amax((2, 3, 4), keepdim=True) - x / F.adaptive_max_pool3d(x, 1),
    "squeeze and excite": lambda x: x * torch.sigmoid(
        F.linear(F.relu(F.linear(F.adaptive_avg_pool3d(x, 1).view(1, 4), torch.ones(2, 4, dtype=x.dtype))), torch.ones(4, 2, dtype=x.dtype))
    ).view(1, 4, 1, 1, 1),
    "the mean beside the map": lambda x: F.conv3d(
        torch.cat([F.interpolate(x.mean((2, 3, 4), keepdim=True), x.shape[2:]), x, x.mean((2, 3, 4), keepdim=True).expand_as(x)], 1),
        torch.arange(24.0, dtype=x.dtype).view(2, 12, 1, 1, 1),
    ),
    "the mean of what is coarse": lambda x: x * F.conv3d(
        F.max_pool3d(x, 2).mean((2, 3, 4), keepdim=True), torch.arange(16.0, dtype=x.dtype).view(4, 4, 1, 1, 1)
    ),
    "behind a crop": lambda x: F.pad(F.instance_norm(x)[..., 2:-2], (2, 2)),
}  # fmt: skip
"""What looks at its whole input, as networks have it."""


@pytest.mark.parametrize("name", WHOLE)
def test_what_looks_at_its_whole_input_is_a_node_of_the_graph(name):
    """Proven over the whole image; with fixed statistics it has the same voxels, is local, and a tile of it is compared."""
    network = graph_of(exported(randomise(Of(WHOLE[name]))))
    graph = network.graph
    assert graph.whole
    assert not graph.is_local
    assert graph_of_document(json.loads(json.dumps(document(graph)))) == graph
    proof = prove(network)
    assert proof.graph < EQUAL
    assert proof.fixed < EQUAL
    assert (proof.tile or 0.0) < EQUAL
    assert "with the statistics of its whole input fixed" in str(proof)
    fixed = local(graph)
    assert fixed.is_local
    assert receptive_radius(fixed) == receptive_radius(graph)
    assert not any(n % m for n, m in zip(graph.stride, fixed.stride, strict=True))
    assert local(fixed) == fixed
    assert not {name for name in graph.whole if isinstance(graph.node(name).operation, WholeNorm)} - {
        n.name for n in fixed.nodes
    }


def test_statistics_that_are_wrong_by_a_tenth_are_found_by_the_proof(monkeypatch):
    """The negative control of the network with fixed statistics."""
    network = graph_of(exported(randomise(Of(WHOLE["instance norm"]))))

    def wrong(*given):
        found = measured(*given)
        return replace(found, weights={name: tuple(1.1 * w for w in pair) for name, pair in found.weights.items()})

    monkeypatch.setattr("pipeline.networks.importing.proof.measured", wrong)
    with pytest.raises(ModelError, match=r"does not compute what the network does .*whole input fixed [1-9]"):
        prove(network)


def test_a_tile_of_what_looks_at_its_whole_input_is_off():
    """The negative control of all that is said of it: with any halo it has the statistics of its own window."""
    network = graph_of(exported(randomise(Of(WHOLE["instance norm"]))))
    image = torch.rand((1, 4, 16, 16, 16), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = [Span(0, n) for n in (16, 16, 16)]
    whole = evaluate(
        network.graph,
        network.weights,
        image,
        triple(needs(network.graph, axis, end, end) for axis, end in enumerate(ends)),
    )
    axes = triple(needs(network.graph, axis, Span(0, 4), Span(0, 8)) for axis in range(3))
    part = evaluate(network.graph, network.weights, image[:, :, :8, :8, :8], axes)
    assert float((part - whole[:, :, :4, :4, :4]).abs().max()) > 0.05


CROPPED = {
    "either side": (lambda x: F.pad(x[..., 3:-2], (3, 2)), (3, 2), 6),
    "mirrored": (lambda x: F.pad(x[..., 2:-2], (2, 2, 0, 0, 0, 0), mode="replicate"), (2, 2), 5),
    "before a convolution": (
        lambda x: F.conv3d(F.pad(x[..., 2:], (2, 0)), torch.arange(432.0, dtype=x.dtype).view(4, 4, 3, 3, 3), padding=1),
        (3, 2),
        3,
    ),
    "coarse": (
        lambda x: F.interpolate(F.pad(F.avg_pool3d(x, 2)[..., 1:-1], (1, 1)), scale_factor=2, mode="nearest"), (1, 1), 6
    ),
}  # fmt: skip
"""Crops that are padded again, how far they reach along x, and the least extent of a pass there."""


@pytest.mark.parametrize("name", CROPPED)
def test_a_crop_that_is_padded_again_needs_a_halo_in_which_that_lies(name):
    """A layer pads at the ends of a window as it does at those of the volume: a block must be clear of that."""
    function, expected, least = CROPPED[name]
    network = graph_of(exported(randomise(Of(function))))
    assert reach(network.graph)[2] == expected
    assert legal_extent(network.graph, 2, 1) == least
    proof = prove(network)
    assert proof.tile < EQUAL < 1e-3 < proof.short


def test_slices_of_a_2d_network_have_statistics_of_their_own():
    """They are its batch."""

    class Planar(nn.Module):
        shape = (1, 2, 12, 16)

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3, padding=1)

        def forward(self, x):
            x = F.instance_norm(self.conv(x))
            return F.group_norm(x * torch.sigmoid(x.mean((2, 3), keepdim=True)), 2)

    torch_network = randomise(Planar())
    network = graph_of(exported(torch_network))
    images = torch.rand((3, 2, 12, 16), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    axes = triple(needs(network.graph, axis, Span(0, n), Span(0, n)) for axis, n in enumerate((3, 12, 16)))
    found = evaluate(network.graph, network.weights, images.transpose(0, 1)[None], axes)
    torch.testing.assert_close(found[0].transpose(0, 1), torch_network(images), rtol=0, atol=EQUAL)


class Joined(nn.Module):
    """Up by a transposed convolution that gives 2n - 1, and from there to the size of what it is added to: as pytorch-3dunet's."""

    shape = (1, 1, 24, 24, 24)

    def __init__(self, size=None):
        super().__init__()
        self.first, self.low = nn.Conv3d(1, 2, 3, padding=1), nn.Conv3d(2, 2, 3, padding=1)
        self.up, self.size = nn.ConvTranspose3d(2, 2, 3, stride=2, padding=1), size

    def forward(self, x):
        first = self.first(x)
        up = self.up(self.low(F.max_pool3d(first, 2)))
        return first + F.interpolate(up, size=self.size or first.shape[2:])


def test_nearest_to_a_voxel_more_is_the_first_voxel_twice():
    """A shift by one, whatever the extents: index i of n + 1 is of voxel i n / (n + 1), rounded down."""
    network = randomise(Joined())
    imported = graph_of(exported(network))
    assert imported.graph.stride == (2, 2, 2)
    proof = prove(imported)
    assert max(proof.graph, proof.tile) < EQUAL
    assert proof.short > 1e-6
    for extents in ((8, 10, 24), (26, 4, 6)):  # other ones than it was exported with
        image = torch.rand((1, 1, *extents), dtype=torch.float64)
        torch.testing.assert_close(
            box(imported, image, [Span(0, n) for n in extents]), network(image), rtol=0, atol=EQUAL
        )
    with pytest.raises(ModelError, match=r"makes \(25, 23, 23\) voxels of \(23, 23, 23\): no whole factor"):
        graph_of(exported(randomise(Of(lambda x: F.interpolate(x, size=(25, 23, 23)))), (1, 4, 23, 23, 23)))


def test_what_is_asserted_of_constants_says_nothing():
    """As of a kernel that is no parameter and moved to the image's type: CAREamics' blur."""

    class Blur(nn.Module):
        shape = (1, 1, 8, 8)

        def __init__(self):
            super().__init__()
            self.kernel = torch.ones(1, 1, 3, 3) / 9

        def forward(self, x):
            return F.conv2d(x, self.kernel.to(x.dtype), padding=1)

    program = exported(Blur())
    assert any("_assert" in str(node.target) for node in program.graph.nodes)
    assert prove(graph_of(program)).graph < EQUAL


def test_a_network_of_two_images_is_refused():
    """One image in, one chosen output out."""
    with pytest.raises(ModelError, match="expected one image and nothing else"):
        graph_of(torch.export.export(Twice(), (torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)), strict=False))


def test_one_of_several_outputs_is_predicted():
    """The first, or the one that is named; what nothing reads is left out."""
    program = exported(randomise(Of(lambda x: (x, torch.sigmoid(x)))))
    assert [len(graph_of(program, output=n).graph.nodes) for n in (0, 1)] == [2, 3]
    with pytest.raises(ModelError, match="gives 2 maps, and output 2 was asked for"):
        graph_of(program, output=2)
