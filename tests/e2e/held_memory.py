"""Bytes that a process holds at once, by its allocator: without what lies free between them, which is chance."""

from __future__ import annotations

import ctypes
import threading


class _Mallinfo2(ctypes.Structure):
    """What glibc's `mallinfo2` returns, in its order."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


class _Watch(threading.Thread):
    """Looks every few milliseconds; a convolution of a test takes longer."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self.over = threading.Event()
        self._info = ctypes.CDLL(None).mallinfo2
        self._info.restype = _Mallinfo2

    def run(self) -> None:
        while not self.over.wait(0.002):
            info = self._info()
            self.most = max(self.most, info.uordblks + info.hblkhd)


_watches: list[_Watch] = []


def start() -> None:
    """Begin to look, in the process that calls."""
    _watches.append(_Watch())
    _watches[-1].start()


def most_bytes() -> int:
    """The most that was held since `start`, which ends."""
    watch = _watches.pop()
    watch.over.set()
    watch.join()
    return watch.most
