"""Long work on a file in Hasten's own folder, by one process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hasten.core.errors import ModelError
from hasten.core.replacement import refusal
from hasten.model import storage


@contextmanager
def alone(path: Path, model: Path, doing: str) -> Iterator[None]:
    """Hold the lock of ``path``, with the note beside it that says what model it is made from. Raises ModelError when either
    fails; ``doing`` says what is done to the model, as in "quantised"."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.record_conversion(path, model)
        lock.acquire(timeout=0)
    except Timeout:
        raise ModelError(f"{model.name} is being {doing} by another process; wait for it or stop it first.") from None
    except OSError as problem:
        raise ModelError(refusal(path.parent, problem)) from None
    try:
        yield
    finally:
        lock.release()
