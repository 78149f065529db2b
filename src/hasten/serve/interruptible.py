"""Work in a thread, such as loading a model, that is broken off when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


async def interruptible(work: Callable[[Argument], Result], argument: Argument) -> Result:
    """What ``work`` returns or raises. Where the waiting is cancelled, KeyboardInterrupt is raised in its thread: Ctrl-C does the
    same to the same work where a command does it. A call that waits inside the system ends first."""
    running = _Running()
    try:
        return await asyncio.to_thread(running.run, work, argument)
    except asyncio.CancelledError:
        running.interrupt()
        raise


class _Running:
    def __init__(self) -> None:
        self._thread: int | None = None
        self._changing = threading.Lock()

    def run(self, work: Callable[[Argument], Result], argument: Argument) -> Result:
        self._thread = threading.get_ident()
        try:
            return work(argument)
        finally:
            with self._changing:
                self._thread = None

    def interrupt(self) -> None:
        with self._changing:  # once the work is done its thread may be somebody else's
            if self._thread is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), ctypes.py_object(KeyboardInterrupt))
