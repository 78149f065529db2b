"""How long work reports itself: a callable that gets a label, how much is done and how much there is (bytes or items)."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]


def silent(label: str, done: int, total: int) -> None:
    """The progress report of a caller who asked for none."""


def counted(progress: Progress, label: str, total: int) -> Callable[[int, object], None]:
    """For whatever calls back as each of ``total`` things is done, with its place and the thing: tells how many are."""
    done = 0

    def on_done(place: int, thing: object) -> None:
        nonlocal done
        done += 1
        progress(label, done, total)

    return on_done
