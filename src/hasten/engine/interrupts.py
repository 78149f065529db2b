"""Ctrl-C beside the engine's books: it never falls between two entries that belong together.

Python raises KeyboardInterrupt at any line of the main thread. Held back, it is raised where the books agree again; the second one
at once, for whoever cannot wait. Other threads, and programs with a handler of their own for SIGINT, are left alone.

Holding back is entered twice a step, so it only counts: the handler that looks at the count takes the place of Python's own
wherever the main thread enters a block and finds that one, as notebooks put it back before every cell. It stays; outside of such
blocks it does what Python's own does.
"""

from __future__ import annotations

import signal
import threading
from contextlib import ContextDecorator
from types import FrameType

# ``signal.getsignal`` makes members of an enum of handlers, or fails to: fifty times as long, in every step.
_handler_of = getattr(signal, "_signal", signal).getsignal


class _State:
    """``depth`` of blocks that hold back, of the main thread; whether Ctrl-C was ``asked`` for within them."""

    depth = 0
    asked = False


class interrupts_held_back(ContextDecorator):
    """Raises KeyboardInterrupt at the end of the block when Ctrl-C came within it. Blocks may lie within each other."""

    def __enter__(self) -> None:
        if not _in_main_thread():
            return
        if _State.depth == 0 and _handler_of(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _hear)
        _State.depth += 1

    def __exit__(self, *problem: object) -> None:
        if not _in_main_thread():
            return
        _State.depth -= 1
        if _State.depth == 0 and _State.asked:
            _State.asked = False
            raise KeyboardInterrupt


class interrupts_let_through(ContextDecorator):
    """Within a block that holds them back: a part that takes long and touches no books."""

    def __init__(self) -> None:
        self._depth = 0

    def __enter__(self) -> None:
        if _in_main_thread():
            self._depth, _State.depth = _State.depth, 0

    def __exit__(self, *problem: object) -> None:
        if _in_main_thread():
            _State.depth = self._depth


def _in_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


def _hear(number: int, frame: FrameType | None) -> None:
    if _State.depth and not _State.asked:
        _State.asked = True
        return
    _State.asked = False
    raise KeyboardInterrupt
