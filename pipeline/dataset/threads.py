"""Threads that end in order when this process is asked to end: each is interrupted as the main one is by Ctrl-C."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from types import TracebackType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Threads:
    """A pool of threads. Where its block ends by an exception, what waits is dropped and what runs gets KeyboardInterrupt.

    Args:
        number: Of threads.
        name: Of them.
    """

    def __init__(self, number: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(number, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._running: set[int] = set()
        self._ending = False

    def submit(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Have it called, in a copy of this thread's context."""
        context = copy_context()
        return self._pool.submit(lambda: context.run(lambda: self._run(function, *args, **kwargs)))

    def _run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        me = threading.get_ident()
        with self._lock:
            if self._ending:
                raise KeyboardInterrupt
            self._running.add(me)
        try:
            return function(*args, **kwargs)
        finally:
            with self._lock:
                self._running.discard(me)

    def __enter__(self) -> Threads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            with self._lock:
                self._ending = True
                for thread in self._running:
                    _interrupt(thread)
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)


def _interrupt(thread: int) -> None:
    """Raise KeyboardInterrupt in a thread, before its next step in Python."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt))
