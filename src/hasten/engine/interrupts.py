"""Ctrl-C beside the engine's books: it never falls between two entries that belong together.

Python raises KeyboardInterrupt at any line of the main thread. Held back, it is raised where the books agree again; the second one
at once, for whoever cannot wait. Other threads, and programs with a handler of their own for SIGINT, are left alone.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_asked = False  # whether Ctrl-C came while it was held back


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Raises KeyboardInterrupt at the end of the block when Ctrl-C came within it. Blocks may lie within each other."""
    global _asked
    if not _handled_by(signal.default_int_handler):
        yield
        return
    _asked = False
    signal.signal(signal.SIGINT, _note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if _asked:
            raise KeyboardInterrupt


@contextmanager
def interrupts_let_through() -> Iterator[None]:
    """Within a block that holds them back: a part that takes long and touches no books."""
    if not _handled_by(_note):
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _note)


def _handled_by(handler: object) -> bool:
    return threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is handler


def _note(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = True
    signal.signal(signal.SIGINT, signal.default_int_handler)
