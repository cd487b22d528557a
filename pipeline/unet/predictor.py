"""Numpy in, numpy out: normalisation, network, crop, activation and quantisation of a tile, a slab at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.core.box import Box
from pipeline.core.grid import Slab, Tile
from pipeline.core.plan import Plan
from pipeline.errors import InferenceError, ModelError
from pipeline.unet.checkpoint import Checkpoint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class UNetPredictor:
    """The network of a plan, on its device.

    Args:
        checkpoint: The weights that the plan names.
        plan: What to do with them.

    Raises:
        ModelError: The weights are not the plan's, or its device is not there.
    """

    def __init__(self, checkpoint: Checkpoint, plan: Plan) -> None:
        if checkpoint.sha256 != plan.model.sha256:
            raise ModelError(
                f"Checkpoint '{plan.model.checkpoint}' changed after the plan was made (weights {checkpoint.sha256[:12]}, "
                f"planned {plan.model.sha256[:12]}). Put the planned one back, or plan again with another output.url."
            )
        check_device(plan.compute.device)
        _make_deterministic()
        self._plan = plan
        self._device = torch.device(plan.compute.device)
        self._dtype = DTYPES[plan.compute.dtype]
        self._planar = plan.model.architecture.ndim == 2
        layout = (
            torch.channels_last if self._planar else torch.channels_last_3d
        )  # faster: tests/benchmarks/test_layout.py
        self._model = checkpoint.build().to(self._device, self._dtype, memory_format=layout)

    def predict(self, tile: Tile, array: np.ndarray) -> Iterator[tuple[Box, np.ndarray]]:
        """Predicted parts of the tile's core, in z order.

        Args:
            tile: What to predict.
            array: The tile's window as stored, (C, Z, Y, X).

        Yields:
            The box of a slab's core, and its values (C, Z, Y, X) in the output's dtype.

        Raises:
            InferenceError: The prediction is not finite.
        """
        torch.set_num_threads(self._plan.compute.threads)  # Dask's nanny sets one; part of the plan, for equal bytes
        for slab in tile.slabs:
            window = array[(slice(None), *slab.window.within(tile.window))]
            yield slab.core, self._predict_slab(tile, slab, self._plan.normalization.apply(window))

    @torch.inference_mode()
    def _predict_slab(self, tile: Tile, slab: Slab, window: np.ndarray) -> np.ndarray:
        x_CZYX = torch.from_numpy(np.ascontiguousarray(window)).to(self._device, self._dtype)
        logits_CZYX = self._logits(x_CZYX)[(slice(None), *slab.crop)].to(torch.float32)
        if not torch.isfinite(logits_CZYX).all():
            raise InferenceError(
                f"{tile}: the network's output is not finite in {slab.core}. Its values overflow {self._plan.compute.dtype}, "
                "or the input is far from what it was trained on: check normalize, or set compute.dtype to float32."
            )
        return _quantised(_activated(logits_CZYX, self._plan.output.activation), self._plan.output.dtype)

    def _logits(self, x_CZYX: Tensor) -> Tensor:
        if self._planar:  # slices are the batch
            return self._model(x_CZYX.transpose(0, 1)).transpose(0, 1)
        return self._model(x_CZYX[None])[0]


def _activated(logits_CZYX: Tensor, activation: str) -> Tensor:
    if activation == "sigmoid":
        return torch.sigmoid(logits_CZYX)
    return torch.softmax(logits_CZYX, dim=0) if activation == "softmax" else logits_CZYX


def _quantised(values_CZYX: Tensor, dtype: str) -> np.ndarray:
    if dtype == "uint8":
        values_CZYX = values_CZYX.clamp(0, 1).mul(255).round().to(torch.uint8)
    return values_CZYX.contiguous().cpu().numpy()


def check_device(device: str) -> None:
    """Refuse a device that this machine lacks.

    Raises:
        ModelError: It is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"compute.device is 'cuda', but torch {torch.__version__} finds no CUDA device here. "
            "Set compute.device to 'cpu' or 'auto', or run where there is a GPU and a CUDA build of torch."
        )


def resolved_device(device: str) -> str:
    """`auto` resolved: the GPU where there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    return device


def environment() -> dict[str, str]:
    """What is recorded beside a plan: versions that may change low bits."""
    found = {"torch": torch.__version__}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _make_deterministic() -> None:
    """The same plan gives the same bytes: no autotuned kernels, and float32 means float32."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
