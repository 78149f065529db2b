"""SIGHUP from the first moment on: it never ends the process, and what came too early to be acted on is made up for."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any


class Hangups:
    """Hears SIGHUP for as long as it is entered. Does nothing outside the main thread, or where a system has no such signal."""

    def __init__(self) -> None:
        self._act: Callable[[], Any] | None = None
        self._missed = False
        self._before: Any = None
        self._hears = False

    def __enter__(self) -> Hangups:
        self._hears = hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread()
        if self._hears:
            self._before = signal.signal(signal.SIGHUP, self._hear)
            signal.siginterrupt(signal.SIGHUP, False)  # system calls of libraries go on, as with asyncio's own handlers
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        if self._hears:
            signal.signal(signal.SIGHUP, signal.SIG_DFL if self._before is None else self._before)

    @contextmanager
    def told(self, act: Callable[[], Any]) -> Iterator[None]:
        """Meanwhile ``act`` is called for each one, in the midst of whatever the main thread does, and once now for all that came
        before."""
        self._act = act
        try:
            if self._missed:
                self._missed = False
                act()
            yield
        finally:
            self._act = None

    def _hear(self, number: int, frame: Any) -> None:
        if self._act is None:
            self._missed = True
        else:
            self._act()
