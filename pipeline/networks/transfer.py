"""How slabs reach the network's device and results leave it, so that neither waits for the other.

On a CPU there is no way to go. On a GPU three streams overlap: the next slab is copied in from pinned memory while one
is computed, and the result before it is copied out into pinned memory; a buffer is used again once its copy is over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.core.geometry.box import Box

Given = TypeVar("Given")
Made = TypeVar("Made")
Result = tuple[Box, tuple[Tensor, ...]]
"""A box of the core, and what was made of it on the device."""

DEPTH = 2
"""Slabs on their way in, and results on their way out, at most."""


class Transfer(Protocol):
    """The way to a device and back."""

    def feed(self, arrays: Iterable[np.ndarray]) -> Iterator[Tensor]:
        """The arrays on the device, in order and in the stored dtype."""

    def drain(self, results: Iterable[Result]) -> Iterator[tuple[Box, tuple[np.ndarray, ...]]]:
        """Results back on the host, in order."""


def transfer(device: torch.device) -> Transfer:
    """The transfer of a device."""
    return CudaLane(device) if device.type == "cuda" else HostLane()


class HostLane:
    """Device and host are one."""

    def feed(self, arrays: Iterable[np.ndarray]) -> Iterator[Tensor]:
        return (torch.from_numpy(native(array)) for array in arrays)

    def drain(self, results: Iterable[Result]) -> Iterator[tuple[Box, tuple[np.ndarray, ...]]]:
        return ((box, tuple(tensor.numpy() for tensor in tensors)) for box, tensors in results)


class CudaLane:
    """Pinned buffers and a copy stream each way."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._inward, self._outward = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def feed(self, arrays: Iterable[np.ndarray]) -> Iterator[Tensor]:
        buffers = cycle([_Pinned() for _ in range(DEPTH + 1)])
        for tensor, copied in ahead(arrays, lambda array: self._into(next(buffers), native(array)), DEPTH):
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copied)
            tensor.record_stream(current)
            yield tensor

    def _into(self, buffer: _Pinned, array: np.ndarray) -> tuple[Tensor, torch.cuda.Event]:
        pinned = buffer.like(torch.from_numpy(array))
        pinned.copy_(torch.from_numpy(array))
        with torch.cuda.stream(self._inward):
            tensor = pinned.to(self._device, non_blocking=True)
            buffer.over = self._inward.record_event()
        return tensor, buffer.over

    def drain(self, results: Iterable[Result]) -> Iterator[tuple[Box, tuple[np.ndarray, ...]]]:
        buffers = cycle([_Pinned() for _ in range(2 * (DEPTH + 1))])
        for box, pinned, copied in ahead(results, lambda found: self._out(buffers, *found), DEPTH - 1):
            copied.synchronize()
            yield box, tuple(tensor.numpy().copy() for tensor in pinned)

    def _out(
        self, buffers: Iterator[_Pinned], box: Box, tensors: tuple[Tensor, ...]
    ) -> tuple[Box, list[Tensor], torch.cuda.Event]:
        self._outward.wait_stream(torch.cuda.current_stream(self._device))
        used, pinned = [], []
        with torch.cuda.stream(self._outward):
            for tensor in tensors:
                used.append(next(buffers))
                pinned.append(used[-1].like(tensor))
                pinned[-1].copy_(tensor, non_blocking=True)
                tensor.record_stream(self._outward)
            copied = self._outward.record_event()
        for buffer in used:
            buffer.over = copied
        return box, pinned, copied


class _Pinned:
    """A page-locked buffer that is handed out again once the copy that used it is over."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self.over: torch.cuda.Event | None = None

    def wait(self) -> None:
        if self.over is not None:
            self.over.synchronize()

    def like(self, tensor: Tensor) -> Tensor:
        self.wait()
        needed = tensor.numel() * tensor.element_size()
        if self._bytes.numel() < needed:
            self._bytes = torch.empty(needed, dtype=torch.uint8, pin_memory=True)
        return self._bytes[:needed].view(tensor.dtype).view(tensor.shape)


def ahead(items: Iterable[Given], make: Callable[[Given], Made], count: int) -> Iterator[Made]:
    """`make` of each item, in order, begun `count` items before it is asked for."""
    begun: deque[Made] = deque()
    for item in items:
        begun.append(make(item))
        if len(begun) > count:
            yield begun.popleft()
    yield from begun


def native(array: np.ndarray) -> np.ndarray:
    """An array that torch takes as it is: contiguous, this machine's byte order, a type that it computes with."""
    unsigned = {"uint16": np.int32, "uint32": np.int64, "uint64": np.float64}
    kind = array.dtype.newbyteorder("=")
    return np.ascontiguousarray(array, dtype=unsigned.get(kind.name, kind))
