"""Damaged files are renamed, so that they can be looked at and are not read again. No torch."""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger(__name__)


def set_aside(path: Path, why: str, aside: Path | None = None, then: str = "", companions: tuple[str, ...] = ()) -> bool:
    """Rename a damaged file and say so in one warning; True where the disk allowed it.

    ``why`` is a clause that names the file and what is wrong with it, ``then`` what follows from its new name. ``aside`` is that
    name: by default the old one with the suffix ``.damaged``; what was set aside as that earlier is replaced. ``companions`` are
    endings of files that belong to it and go with it.
    """
    aside = aside or path.with_suffix(".damaged")
    try:
        path.replace(aside)
        for ending in companions:
            companion = path.with_name(path.name + ending)
            if companion.exists():
                companion.replace(aside.with_name(aside.name + ending))
    except OSError as problem:
        log.warning("%s; it cannot be set aside (%s), so remove it yourself.", why, problem.strerror or problem)
        return False
    log.warning("%s; it is set aside as %s%s.", why, aside.name, then)
    return True


def free_name(path: Path) -> Path:
    """The first of ``NAME.damaged-1``, ``NAME.damaged-2`` ... that nothing has, so that nothing is replaced."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return aside
