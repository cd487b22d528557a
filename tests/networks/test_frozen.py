"""Norms over the whole input with fixed statistics: those of one pass where the sample is all of it, else joint over centres; and then exact by tiles."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.core.frozen import Frozen, Sample
from pipeline.core.geometry.box import Box, Span, triple
from pipeline.core.network.imported import Imported
from pipeline.core.network.need import needs
from pipeline.core.network.receptive import receptive_radius
from pipeline.core.normalization import Normalization
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.evaluate import evaluate, one_pass, read_of
from pipeline.networks.frozen import distances, freeze, localised, measured
from pipeline.networks.importing.exported import graph_of
from tests.networks.network_cases import Normed, exported, randomise
from tests.networks.test_importing import WHOLE, Of

EQUAL = 1e-9
"""Of the output's range, float64."""


class Planar(nn.Module):
    """2D: slices of one pass have statistics of their own, and one set where these are fixed."""

    shape = (1, 2, 24, 32)

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x):
        x = F.relu(F.instance_norm(self.conv(x)))
        mean = F.adaptive_avg_pool2d(x, 1)
        return self.last(torch.cat([F.group_norm(x * torch.sigmoid(mean), 2), mean.expand_as(x)], 1))


def imported(network):
    """A network, and its checkpoint in float64."""
    network = randomise(network)
    return network, checkpoint_of(network)


def checkpoint_of(network):
    """The import of a network, as it is."""
    lowered = graph_of(exported(network))
    state = {f"{node}.{n}": t for node, tensors in lowered.weights.items() for n, t in enumerate(tensors)}
    return Checkpoint(Imported(lowered.graph, lowered.ndim), state)


def noise(shape, seed=0):
    """Values in which no two places are alike: the mean grows from one end to the other."""
    image = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return image + torch.linspace(0, 2, shape[-1], dtype=torch.float64)


def off(one, other):
    """Largest difference, as a share of the range."""
    return float((one - other).abs().max() / (other.max() - other.min()))


def by_tiles(checkpoint, image, core):
    """A network over tiles that each read what they need, stitched; (1, C, Z, Y, X)."""
    graph, shape = checkpoint.architecture.graph, triple(image.shape[2:])
    found = torch.empty((1, graph.output.channels, *shape), dtype=image.dtype)
    for z in range(0, shape[0], core[0]):
        for y in range(0, shape[1], core[1]):
            for x in range(0, shape[2], core[2]):
                cores = [Span(a, min(a + n, m)) for a, n, m in zip((z, y, x), core, shape, strict=True)]
                axes = triple(
                    needs(graph, axis, span, Span(0, m))
                    for axis, (span, m) in enumerate(zip(cores, shape, strict=True))
                )
                inside = (slice(None), slice(None), *(slice(*span) for span in cores))
                found[inside] = evaluate(graph, checkpoint.weights, read_of(graph, axes, image), axes)
    return found


@pytest.mark.parametrize("name", WHOLE)
def test_frozen_over_all_of_an_image_it_is_the_very_pass(name):
    """Every kind of norm and pool, and what is done to one value a channel: structure and numbers of the local network."""
    network, checkpoint = imported(Of(WHOLE[name]))
    image = noise(network.shape)
    found = measured(checkpoint.architecture.graph, checkpoint.weights, [image], (0, 0, 0))
    fixed = localised(checkpoint, found.numbers)
    assert fixed.architecture.graph.is_local
    expected = network(image)
    assert off(one_pass(fixed.architecture.graph, fixed.weights, image), expected) < EQUAL
    assert off(found.outputs[0], expected) < EQUAL
    halved = localised(
        checkpoint, {node: tuple(tuple(1.1 * v for v in w) for w in t) for node, t in found.numbers.items()}
    )
    assert off(one_pass(halved.architecture.graph, halved.weights, image), expected) > 1e-3  # the negative control


def test_tiles_of_a_frozen_network_are_one_pass_of_it():
    """Whatever it was frozen by; and the negative control: tiles by their own statistics are far off."""
    network, checkpoint = imported(Normed())
    image = noise((1, 1, 24, 32, 40))
    graph = checkpoint.architecture.graph
    patches = [noise((1, 1, 16, 16, 16), seed) for seed in (1, 2, 3)]
    fixed = localised(checkpoint, measured(graph, checkpoint.weights, patches, (4, 4, 4)).numbers)
    whole = one_pass(fixed.architecture.graph, fixed.weights, image)
    assert off(by_tiles(fixed, image, (8, 16, 16)), whole) < EQUAL
    windows = torch.empty_like(whole)
    for x in range(0, 40, 8):
        windows[..., x : x + 8] = one_pass(graph, checkpoint.weights, image[..., x : x + 8])
    assert off(windows, network(image)) > 0.05
    assert off(whole, network(image)) > 1e-3  # of other patches: the figures of a report are not zero


def test_statistics_are_joint_over_centres_norm_after_norm():
    """By hand: the second norm sees what the first one gives when it is fixed."""

    class Twice(nn.Module):
        shape = (1, 1, 8, 8, 8)

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv3d(1, 2, 3, padding=1), nn.Conv3d(2, 2, 1)

        def forward(self, x):
            return F.instance_norm(self.b(F.relu(F.instance_norm(self.a(x)))))

    pointwise = torch.zeros(1, 1, 3, 3, 3)
    pointwise[..., 1, 1, 1] = 1
    network = Twice()
    with torch.no_grad():
        randomise(network)
        network.a.weight.mul_(pointwise)
    checkpoint = checkpoint_of(network)
    patches = [noise((1, 1, 8, 8, 8), seed) * seed for seed in (1, 2)]
    found = measured(checkpoint.architecture.graph, checkpoint.weights, patches, (1, 2, 3))
    centres = torch.cat([p[:, :, 1:-1, 2:-2, 3:-3] for p in patches], 2)  # it looks at no neighbours: as one image
    expected = network(centres)
    joined = torch.cat([o[:, :, 1:-1, 2:-2, 3:-3] for o in found.outputs], 2)
    assert off(joined, expected) < EQUAL
    with_context = measured(checkpoint.architecture.graph, checkpoint.weights, patches, (0, 0, 0))
    assert off(torch.cat([o[:, :, 1:-1, 2:-2, 3:-3] for o in with_context.outputs], 2), expected) > 1e-3


def test_a_2d_network_has_one_set_for_all_slices():
    """Slices of one pass have their own; one patch of one slice is that slice's pass."""
    network, checkpoint = imported(Planar())
    image = noise(network.shape)
    found = measured(checkpoint.architecture.graph, checkpoint.weights, [image[:, :, None]], (0, 0, 0))
    fixed = localised(checkpoint, found.numbers)
    slices = torch.stack([image, noise(network.shape, 1)], 2)
    both = one_pass(fixed.architecture.graph, fixed.weights, slices)
    assert off(both[:, :, 0], network(image)) < EQUAL
    assert off(both[:, :, 1], network(slices[:, :, 1])) > 1e-3
    joint = measured(checkpoint.architecture.graph, checkpoint.weights, [slices], (0, 0, 0))
    apart = measured(checkpoint.architecture.graph, checkpoint.weights, [slices[:, :, :1], slices[:, :, 1:]], (0, 0, 0))
    for node, tensors in joint.weights.items():
        for one, other in zip(tensors, apart.weights[node], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_numbers_do_not_depend_on_threads_and_come_back_from_json():
    """To the last bit."""
    _, checkpoint = imported(Normed())
    patches = [noise((1, 1, 16, 16, 16), seed) for seed in range(5)]
    graph, weights = checkpoint.architecture.graph, checkpoint.weights
    one = measured(graph, weights, patches, (4, 4, 4)).numbers
    with ThreadPoolExecutor(4) as pool:
        assert measured(graph, weights, patches, (4, 4, 4), pool.map).numbers == one
    read = Frozen.from_dict(json.loads(json.dumps(Frozen(one, {"parts": [0.1]}).to_dict())))
    assert read == Frozen(one, {"parts": [0.1]})
    broken = Frozen(one).to_dict()
    broken["numbers"][next(iter(one))][0][0] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        Frozen.from_dict(broken)


def test_a_sample_lies_where_its_seed_says():
    """Within the volume; the same on every machine; its identity has no path."""
    sample = Sample("graph", (40, 200, 300), (16, 64, 64), (4, 16, 16), 20, 7, url="/somewhere")
    boxes = sample.boxes()
    assert boxes == sample.boxes()
    assert boxes[0] == Box((10, 38, 101), (26, 102, 165))
    assert all(Box.of_shape(sample.shape).contains(box) for box in boxes)
    assert len({box.start for box in boxes}) == 20
    assert sample.identity()["seed"] == 7
    assert "url" not in sample.identity()


def test_figures_say_how_far_predictions_are_apart():
    """Frozen by the region itself, and by a sample of something else."""
    _, checkpoint = imported(Normed())
    region = noise((1, 1, 16, 32, 32)).float().numpy()[0]
    rule = Normalization()
    numbers, parts = freeze(checkpoint, [region], rule, (0, 0, 0), 3)
    assert parts == []  # one patch has no parts
    figures = distances(checkpoint, numbers, region, rule, (8, 16, 16))
    assert figures.frozen < 1e-6
    assert figures.sliding > 0.01
    assert figures.apart == pytest.approx(figures.sliding, abs=1e-6)
    patches = [np.ascontiguousarray(region[:, :, a : a + 16, a : a + 16]) for a in (0, 4, 8, 16)]
    numbers, parts = freeze(checkpoint, patches, rule, (2, 2, 2), 2)
    other = distances(checkpoint, numbers, region, rule, (8, 16, 16))
    assert other.frozen > 1e-3
    assert len(parts) == 2
    assert all(1e-4 < part < 0.5 for part in parts)
    assert receptive_radius(localised(checkpoint).architecture.graph) == receptive_radius(checkpoint.architecture.graph)
