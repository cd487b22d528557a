"""Devices, without one: what is told, refused and chosen, and the order in which a GPU's transfer does things."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from pipeline.core.geometry.box import Box
from pipeline.core.network.unet import Architecture
from pipeline.core.normalization import Normalization
from pipeline.errors import ModelError
from pipeline.networks import device, executors
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.device import computes_bfloat16, cudnn_warnings
from pipeline.networks.model import UNet
from pipeline.networks.probe import predicted, region, self_test
from pipeline.networks.transfer import CudaLane, HostLane, ahead, native, transfer
from tests.unet.notes_unet import randomise
from tests.unet.test_predictor import checkpoint_of, plan_of

# --- what is told of a device -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "told"), [(90100, False), (90800, True), (91002, True), (91400, True), (91500, False), (91501, False)]
)
def test_bad_versions_of_cudnn_are_told_for_3d_half_precision_alone(version, told):
    """Wrong answers from a library are the user's to know before a week of GPU time."""
    assert bool(cudnn_warnings(3, "cuda", "bfloat16", version)) == told
    assert not cudnn_warnings(2, "cuda", "bfloat16", version)
    assert not cudnn_warnings(3, "cuda", "float32", version)
    assert not cudnn_warnings(3, "cpu", "bfloat16", version)


@pytest.mark.parametrize(
    ("flags", "there"), [("fpu avx512_bf16", True), ("fpu amx_bf16", True), ("avx2 avx512f", False)]
)
def test_bfloat16_is_the_hardwares(monkeypatch, flags, there):
    """Emulated, it is slower than float32 and worse."""
    monkeypatch.setattr(device, "cpuinfo", lambda key: flags if key == "flags" else "")
    assert computes_bfloat16("cpu") == there


# --- the self-test ------------------------------------------------------------------------------------------------------


def test_a_device_that_computes_rightly_passes():
    """bfloat16's own rounding is no defect."""
    checkpoint = checkpoint_of(Architecture(3, 2, 4, in_channels=2))
    for half in (None, "bfloat16"):
        self_test(checkpoint, plan_of(checkpoint, half=half))


def test_a_device_that_computes_wrongly_is_refused(monkeypatch):
    """Wrong 3D convolutions in half precision have been shipped; nobody would see them in a probability map."""
    checkpoint = checkpoint_of(Architecture(3, 2, 4, in_channels=2))
    right = executors.kernels

    def wrong(model, *, device, dtype):
        found = right(model, device=device, dtype=dtype)
        if dtype == torch.bfloat16:
            found["decoder1_2"].weight[:, :, 0] = 0
        return found

    monkeypatch.setattr(executors, "kernels", wrong)
    self_test(checkpoint, plan_of(checkpoint))
    with pytest.raises(ModelError, match=r"Device 'cpu' computes this network wrongly in bfloat16.*Set compute.dtype"):
        self_test(checkpoint, plan_of(checkpoint, half="bfloat16"))


def test_the_probe_is_the_network_over_a_volume_of_its_own():
    """The choice of a precision rests on it."""
    architecture = Architecture(3, 2, 2)
    network = randomise(UNet(architecture)).eval()
    array = np.random.default_rng(0).integers(0, 255, (1, 11, 13, 17), dtype=np.uint8)
    found = predicted(
        Checkpoint(architecture, network.state_dict()),
        array,
        Normalization("minmax", 0, 1 / 255),
        "sigmoid",
        "cpu",
        "float32",
    )
    pads = [(0, 0), *((0, -n % 4) for n in array.shape[1:])]
    x = torch.from_numpy(np.pad(array, pads, mode="reflect").astype(np.float32) / 255)
    with torch.no_grad():
        expected = torch.sigmoid(network(x[None])[0]).numpy()[:, :11, :13, :17]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("volume", [(1, 1, 1), (1000, 20, 3000), (48, 96, 96)])
def test_the_region_lies_in_the_middle_of_any_volume(volume):
    """It is read before the plan is made, and must be there, and small."""
    found = region(Architecture(3, 2, 2), volume)
    for start, stop, extent in zip(found.start, found.stop, volume, strict=True):
        assert 0 <= start < stop <= extent
        assert abs((start + stop) - extent) <= 1
        assert stop - start <= 96


# --- lanes --------------------------------------------------------------------------------------------------------------


def test_ahead_begins_items_early_keeps_their_order_and_never_more():
    """A transfer that ran away would hold a column on the card."""
    begun = []
    for item, made in enumerate(ahead(range(6), lambda n: begun.append(n) or n, 2)):
        assert made == item
        assert len(begun) == min(item + 3, 6)
    assert list(ahead([], lambda n: n, 2)) == []


@pytest.mark.parametrize("dtype", [">u2", "uint16", "uint32", "<f8", "bool"])
def test_native_keeps_values(dtype):
    """torch knows neither other byte orders nor arithmetic of unsigned types."""
    array = np.arange(8).reshape(2, 4).astype(dtype)
    found = torch.from_numpy(native(array))
    np.testing.assert_array_equal(found.numpy().astype(np.float64), array.astype(np.float64))


class FakeStream:
    """Notes what it is told, in the order in which the driver of a GPU would."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_event(self, event):
        self.log.append((self.name, "waits for", event.name))

    def wait_stream(self, other):
        self.log.append((self.name, "waits for", other.name))

    def record_event(self):
        self.log.append((self.name, "records", len(self.log)))
        return FakeEvent(self.log[-1][2], self.log)


class FakeEvent:
    """A point in a stream."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def synchronize(self):
        self.log.append(("host", "waits for", self.name))


@pytest.fixture
def fake_cuda(monkeypatch):
    """CUDA's streams as notes in a log; tensors stay on the processor."""
    log = []
    names = iter(["inward", "outward"])
    compute = FakeStream("compute", log)

    @contextmanager
    def within(stream):
        yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: FakeStream(next(names), log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: compute)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    empty = torch.empty

    def unpinned(*shape, pin_memory=False, **keys):
        return empty(*shape, **keys)

    monkeypatch.setattr(torch, "empty", unpinned)
    return log


def test_a_gpus_lane_copies_ahead_and_never_reuses_a_buffer_that_is_in_flight(fake_cuda):
    """The next slab travels while one is computed; a buffer written too early would be another slab's voxels."""
    arrays = [np.full((1, 2, 3, 3), n, np.uint8) for n in range(7)]
    seen = []
    for tensor in CudaLane(torch.device("cpu")).feed(arrays):
        seen.append(int(tensor.max()))
        assert int(tensor.min()) == seen[-1]
    assert seen == list(range(7))
    records = [entry[2] for entry in fake_cuda if entry[:2] == ("inward", "records")]
    waits = [entry[2] for entry in fake_cuda if entry[:2] == ("compute", "waits for")]
    assert waits == records  # each slab is computed after its own copy, and no sooner
    reused = [entry[2] for entry in fake_cuda if entry[:2] == ("host", "waits for")]
    assert reused == records[: len(reused)]  # three buffers: the fourth slab waits for the first's copy to be over
    assert len(reused) == 7 - 3


def test_a_gpus_results_come_back_in_order_after_their_copies(fake_cuda):
    """A result that is read before its copy is over is another's, or noise."""
    results = [
        (Box((n, 0, 0), (n + 1, 2, 2)), (torch.full((1, 1, 2, 2), n), torch.tensor(n % 2 == 0))) for n in range(5)
    ]
    found = list(CudaLane(torch.device("cpu")).drain(results))
    assert [box.start[0] for box, _ in found] == list(range(5))
    assert [(int(values.max()), bool(even)) for _, (values, even) in found] == [(n, n % 2 == 0) for n in range(5)]
    waits = [entry for entry in fake_cuda if entry[0] == "outward" and entry[1] == "waits for"]
    assert waits == [("outward", "waits for", "compute")] * 5
    synchronised = [entry[2] for entry in fake_cuda if entry[:2] == ("host", "waits for")]
    assert set(synchronised) == {entry[2] for entry in fake_cuda if entry[:2] == ("outward", "records")}


def test_the_processors_lane_goes_nowhere():
    """Host and device are one."""
    assert isinstance(transfer(torch.device("cpu")), HostLane)
    array = np.arange(8, dtype=np.uint8).reshape(1, 2, 2, 2)
    ((box, (back,)),) = HostLane().drain([(Box((0, 0, 0), (2, 2, 2)), (next(HostLane().feed([array])),))])
    assert np.shares_memory(back, array)
    assert box.voxels == 8
