"""Operations against torch: what an index map says that is read is what gradients reach, and where it ends is where torch's output does."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from pipeline.core.geometry.box import Span
from pipeline.core.network.graph import Graph, Node
from pipeline.core.network.need import needs
from pipeline.core.network.operations import (
    AlignedResize,
    AveragePool,
    Convolution,
    Crop,
    Input,
    MaxPool,
    Pad,
    Resize,
    TransposedConvolution,
)
from pipeline.networks.evaluate import evaluate

EXTENT = 12
"""Voxels along x; the other axes have one."""

EQUAL = 1e-12


def along(n, one=1):
    """A value for x, and another for z and y."""
    return (one, one, n)


def convolutions():
    """Kernels, strides, dilations and paddings, against `conv1d`."""
    for k, s, d, p in itertools.product((1, 2, 3, 5), (1, 2, 3), (1, 2), (0, 1, 2)):
        if p <= d * (k - 1) and EXTENT + 2 * p >= d * (k - 1) + 1:
            operation = Convolution(along(k), along(p, 0), along(s), along(d), 1, along(-p, 0))
            kernel = torch.rand(2, 1, k, dtype=torch.float64) + 0.5
            yield (
                f"convolution k{k} s{s} d{d} p{p}",
                operation,
                (kernel[:, :, None, None],),
                lambda x, w=kernel, s=s, p=p, d=d: F.conv1d(x, w, None, s, p, d),
            )


def transposed():
    """The same of transposed ones, with voxels more at the end."""
    for k, s, p, e, d in itertools.product((1, 2, 3, 4, 5), (1, 2, 3), (0, 1), (0, 1), (1, 2)):
        if e < s and 2 * p < k and (d == 1 or k in (2, 3)):
            operation = TransposedConvolution(along(s), along(-p, 0), along(k), along(d), along(p, 0), along(e, 0), 1)
            kernel, bias = torch.rand(1, 2, k, dtype=torch.float64) + 0.5, torch.rand(2, dtype=torch.float64)
            yield (
                f"transposed k{k} s{s} p{p} e{e} d{d}",
                operation,
                (kernel[:, :, None, None], bias),
                lambda x, w=kernel, b=bias, s=s, p=p, e=e, d=d: F.conv_transpose1d(x, w, b, s, p, e, 1, d),
            )


def pools():
    """Groups that overlap and that do not."""
    for k, s, p in itertools.product((1, 2, 3), (1, 2, 3), (0, 1)):
        if 2 * p <= k:
            given = along(s), along(-p, 0), along(k), (1, 1, 1), along(p, 0), True
            yield f"max k{k} s{s} p{p}", MaxPool(*given), (), lambda x, k=k, s=s, p=p: F.max_pool1d(x, k, s, p)
            yield f"mean k{k} s{s} p{p}", AveragePool(*given), (), lambda x, k=k, s=s, p=p: F.avg_pool1d(x, k, s, p)
            yield (
                f"mean of counted k{k} s{s} p{p}",
                AveragePool(*given, counts=False),
                (),
                lambda x, k=k, s=s, p=p: F.avg_pool1d(x, k, s, p, count_include_pad=False),
            )


def others():
    """Up-sampling, padding and cropping."""
    for f in (1, 2, 3, 4):
        for mode in ("nearest", "linear"):
            yield (
                f"{mode} {f}",
                Resize(along(f), mode),
                (),
                lambda x, f=f, m=mode: F.interpolate(x, scale_factor=f, mode=m),
            )
        yield (
            f"aligned {f}",
            AlignedResize(along(f)),
            (),
            lambda x, f=f: F.interpolate(x, scale_factor=f, mode="linear", align_corners=True),
        )
    for low, high in ((0, 1), (2, 0), (3, 4)):
        for mode, name in (("zero", "constant"), ("replicate", "replicate"), ("reflect", "reflect")):
            operation = Pad(along(low, 0), along(high, 0), mode)
            yield f"pad {mode} {low} {high}", operation, (), lambda x, p=(low, high), n=name: F.pad(x, p, n)
        yield (
            f"crop {low} {high}",
            Crop(along(low, 0), along(high, 0)),
            (),
            lambda x, a=low, b=high: x[:, :, a : x.shape[2] - b],
        )


CASES = [*convolutions(), *transposed(), *pools(), *others()]


@pytest.fixture(params=CASES, ids=[name for name, *_ in CASES])
def case(request):
    """An operation, its weights, and torch's own function of (1, 1, X)."""
    torch.manual_seed(0)
    return request.param[1:]


def line():
    """Values that are all unlike, so that each is a largest one somewhere."""
    return torch.rand(1, 1, EXTENT, dtype=torch.float64, requires_grad=True)


def graph(operation, channels):
    """The operation alone."""
    return Graph((Node("input", Input(), (), 1), Node("it", operation, ("input",), channels)))


def test_it_ends_where_torchs_output_does(case):
    """From voxel 0 on, so many voxels."""
    operation, _, function = case
    assert operation.ends(2, Span(0, EXTENT)) == Span(0, function(line()).shape[2])


def test_what_is_read_is_what_gradients_reach(case):
    """No voxel less, and none more but for what carries nothing: not the largest, between taps, beyond the last."""
    operation, _, function = case
    x = line()
    y = function(x)
    ends = Span(0, EXTENT)
    for voxel in range(y.shape[2]):
        (gradient,) = torch.autograd.grad(y[0, :, voxel].sum(), x, retain_graph=True, allow_unused=True)
        reached = [] if gradient is None else torch.nonzero(gradient[0, 0]).flatten().tolist()
        read = operation.need(2, Span(voxel, voxel + 1), ends)
        assert all(read.start <= i < read.stop for i in reached)
        between = isinstance(operation, Convolution | TransposedConvolution) and operation.dilation[2] > 1
        loose = isinstance(operation, MaxPool | Resize | AlignedResize | Pad) or between or not reached
        assert loose or (read.start, read.stop) == (reached[0], reached[-1] + 1)


def test_it_is_ready_as_soon_as_all_that_it_reads_is_there(case):
    """Away from the ends: the first voxel that is not ready reads one that is not there, and the one before none."""
    operation, *_ = case
    for available in range(100, 130):
        ready = operation.ready(2, available)
        assert operation.need(2, Span(ready - 1, ready), None).stop <= available
        assert operation.need(2, Span(ready, ready + 1), None).stop > available


def test_any_span_is_computed_from_what_it_needs(case):
    """Equal to torch's own, whatever part of it is asked for."""
    operation, weights, function = case
    x = line().detach()
    expected = function(x)
    network = graph(operation, expected.shape[1])
    shapes = (Span(0, 1), Span(0, 1), Span(0, EXTENT))
    for start in range(expected.shape[2]):
        for stop in {start + 1, min(start + 3, expected.shape[2]), expected.shape[2]}:
            cores = (Span(0, 1), Span(0, 1), Span(start, stop))
            axes = tuple(needs(network, axis, cores[axis], shapes[axis]) for axis in range(3))
            window = x[:, :, None, None, slice(*axes[2].input)]
            values = evaluate(network, {"it": weights}, window, axes)
            torch.testing.assert_close(values[:, :, 0, 0], expected[:, :, start:stop], rtol=0, atol=EQUAL)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_aligned_corners_need_what_gradients_reach_at_some_extent(factor):
    """One rule for all extents: no voxel less than at any of them, and none more than at all; a whole group reaches no further than unaligned."""
    operation, reached = AlignedResize(along(factor)), {}
    for n in (1, 2, 3, 5, 8, 13, 40):
        x = torch.rand(1, 1, n, dtype=torch.float64, requires_grad=True)
        y = F.interpolate(x, scale_factor=factor, mode="linear", align_corners=True)[0, 0]
        for voxel in range(len(y)):
            (gradient,) = torch.autograd.grad(y[voxel], x, retain_graph=True)
            places = [i for i, value in enumerate(gradient[0, 0].tolist()) if abs(value) > 1e-12]
            read = operation.need(2, Span(voxel, voxel + 1), Span(0, n))
            assert read.start <= places[0] <= places[-1] < read.stop
            if n == 40:
                sides = reached.setdefault(voxel % factor, [0, 0])
                sides[:] = max(sides[0], voxel // factor - places[0]), max(sides[1], places[-1] - voxel // factor)
    for phase, (before, after) in reached.items():
        read = operation.need(2, Span(phase, phase + 1), None)
        assert (read.start, read.stop) == (-before, after + 1)
    unaligned = Resize(along(factor), "linear")
    assert operation.need(2, Span(0, factor), None) == unaligned.need(2, Span(0, factor), None)
