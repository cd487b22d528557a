"""The predictor on a real GPU; what can be tested of it without one is in test_device.py."""

import numpy as np
import pytest
import torch

from pipeline.core.network.unet import Architecture
from pipeline.core.plan import Compute
from pipeline.errors import InferenceError
from pipeline.networks.probe import self_test
from pipeline.networks.slabs import StreamPredictor
from tests.unet.test_predictor import checkpoint_of, plan_of, whole

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: this machine has no CUDA device"),
]

NETWORKS = {
    "3D": Architecture(3, 2, 8, in_channels=2, out_channels=3),
    "3D, unpadded": Architecture(3, 1, 8, in_channels=2, out_channels=3, padding="valid"),
    "2D": Architecture(2, 2, 8, in_channels=2, out_channels=3),
}


@pytest.mark.parametrize("architecture", NETWORKS.values(), ids=NETWORKS)
def test_a_gpu_gives_what_the_processor_gives(architecture):
    """Float32 means float32 there too: no TF32."""
    checkpoint = checkpoint_of(architecture)
    here, there = (
        whole(plan_of(checkpoint, compute=Compute(device, "float32", 1)), checkpoint) for device in ("cpu", "cuda")
    )
    assert np.abs(here - there).max() <= 1e-5 * np.ptp(here)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_good_gpu_passes_the_self_test(dtype):
    """Half precision's own rounding is no defect."""
    checkpoint = checkpoint_of(NETWORKS["3D"])
    self_test(checkpoint, plan_of(checkpoint, compute=Compute("cuda", dtype, 1)))


def test_a_tile_that_is_predicted_twice_gives_the_same_bytes():
    """No autotuned kernel, no sum in another order."""
    checkpoint = checkpoint_of(NETWORKS["3D"])
    plan = plan_of(checkpoint, compute=Compute("cuda", "bfloat16", 1))
    assert whole(plan, checkpoint).tobytes() == whole(plan, checkpoint).tobytes()


def test_a_card_that_is_too_small_is_found_before_the_first_tile():
    """The rehearsal of the largest tile costs a second; the failure later would cost a tile."""
    checkpoint = checkpoint_of(Architecture(3, 2, 64, in_channels=2))
    plan = plan_of(
        checkpoint, volume=(64, 512, 512), core=(64, 512, 512), slab=8, compute=Compute("cuda", "float32", 1)
    )
    torch.cuda.set_per_process_memory_fraction(0.001)
    try:
        with pytest.raises(InferenceError, match="memory of device 'cuda:0' is too small"):
            StreamPredictor(checkpoint, plan).rehearse(plan.grid.widest())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
