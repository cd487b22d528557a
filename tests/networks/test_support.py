"""Where gradients of a program reach, against the halo: no path is missed, and a rule that is too small is a refusal."""

from dataclasses import replace

import pytest
import torch

from pipeline.core.network.graph import Graph
from pipeline.core.network.receptive import reach
from pipeline.errors import ModelError
from pipeline.networks.importing import support as paths
from pipeline.networks.importing.exported import graph_of
from pipeline.networks.importing.lowering import RULES
from pipeline.networks.importing.proof import prove
from pipeline.networks.importing.support import support
from tests.networks.network_cases import NETWORKS, Normed, Residual, exported, randomise
from tests.networks.test_importing import WHOLE, Of


@pytest.mark.parametrize("kind", [*NETWORKS.values(), Normed])
def test_gradients_reach_just_as_far_as_the_halo(kind):
    """Either side, along each axis: strides, poolings, mirrored ends, aligned corners; norms as if their statistics were fixed."""
    network = graph_of(exported(randomise(kind())))
    found = support(network)
    assert found.seen == found.halo == reach(network.graph)
    assert str(found) in str(prove(network))


def test_what_looks_at_its_whole_input_is_fixed():
    """Means, squeeze-and-excite, whatever shows one value at every voxel: they are no path. What pads after a crop has a wider halo, for its zeros."""
    for name, function in WHOLE.items():
        network = graph_of(exported(randomise(Of(function))))
        found = support(network)
        assert found.halo == reach(network.graph)
        assert found.seen == (((1, 1),) * 3 if name == "behind a crop" else found.halo)
        assert ("wider" in str(found)) == (name == "behind a crop")


def test_a_rectifier_that_is_closed_hides_nothing():
    """The negative control is the gradient of the network itself: it is zero everywhere."""
    network = randomise(Residual())
    network.norm.bias.fill_(-1e6)
    network.slope.weight.fill_(0)
    network.last.weight.fill_(0)
    image = torch.rand(network.shape, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(image).square().sum(), image)
    assert not gradient.any()
    imported = graph_of(exported(network))
    assert support(imported).seen == reach(imported.graph) == ((4, 5),) * 3


def changed(network, kernel):
    """The network, whose first convolution has a rule of so many taps along z, where it has 3."""
    nodes, side = list(network.graph.nodes), kernel // 2
    operation = replace(nodes[1].operation, kernel=(kernel, 3, 3), padding=(side, 1, 1), first=(-side, -1, -1))
    nodes[1] = replace(nodes[1], operation=operation)
    return replace(network, graph=Graph(tuple(nodes)))


def test_a_rule_that_is_too_small_is_a_refusal():
    """One tap, were it taken for three: along that axis, by its name."""
    network = graph_of(exported(randomise(Residual())))
    with pytest.raises(ModelError, match=r"Along z, voxel \d+ .* depends on the voxels .* tiles would be wrong"):
        support(changed(network, 1))
    assert support(changed(network, 3)) == support(network)


def test_a_rule_that_is_too_large_is_told():
    """Tiles are right, and read too much."""
    found = support(changed(graph_of(exported(randomise(Residual()))), 5))
    assert (found.seen[0], found.halo[0]) == ((4, 5), (5, 6))
    assert "wider than the support of gradients: z (5, 6) where gradients reach (4, 5)" in str(found)


def test_an_image_that_is_too_short_tells_nothing():
    """A user exports what he likes; along x it is long enough."""
    found = support(graph_of(exported(randomise(Residual()), (1, 1, 2, 4, 8))))
    assert found.seen == (None, None, (4, 5))
    assert "too short to tell along z, y" in str(found)


def test_every_call_with_a_rule_is_known_as_a_path():
    """Else a network that has a rule would be refused."""
    known = paths.VALUE_BY_VALUE | paths.JOINS | {"sum", "scaled_dot_product_attention"}
    begins = (*paths.AS_THEY_ARE, *paths.WHOLE, "max_pool")
    assert not [word for word in RULES if word not in known and "conv" not in word and not word.startswith(begins)]
