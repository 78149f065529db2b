"""Small JSON files of what was measured and learnt. A damaged one is set aside with a warning; it never stops anything."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from hasten.core.damaged import set_aside
from hasten.core.replacement import Replacement
from hasten.model import storage

log = logging.getLogger(__name__)
LARGEST = 1 << 20
_refused: set[Path] = set()  # folders that could not be written


def folder() -> Path:
    """Where the files lie; created when one is written."""
    return storage.learnt_directory()


def file_name(*parts: str) -> str:
    """One plain file name from several words, whatever they hold."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "--".join(parts))[:200] + ".json"


def read(path: Path) -> dict[str, Any] | None:
    """The object in the file; None where there is none or it is damaged (then it is set aside)."""
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError:
        return None
    try:
        if len(raw) > LARGEST:
            raise ValueError("it is too large")
        content = json.loads(raw)
        if not isinstance(content, dict):
            raise ValueError("it is not an object")
    except (ValueError, RecursionError) as problem:
        discard(path, str(problem))
        return None
    return content


def write(path: Path, content: dict[str, Any]) -> None:
    """Replace the file in one go. A disk that refuses is told in one warning a process and folder: what was learnt is only lost."""
    try:
        with Replacement(path) as replacement:
            replacement.file.write(json.dumps(content, allow_nan=False).encode())
    except OSError as problem:
        if path.parent not in _refused:
            _refused.add(path.parent)
            log.warning(
                "What was learnt could not be kept in %s (%s); free some space or set HASTEN_HOME to a folder that can be written.",
                path.parent, problem.strerror,
            )  # fmt: skip


def discard(path: Path, why: str) -> None:
    """Have a damaged file set aside: what it held is learnt anew."""
    set_aside(path, f"{path} is damaged ({why})", path.with_name(path.name + ".damaged"), " and learnt anew")


def number(value: object, low: float, high: float) -> float:
    """``value`` as a float. Raises ValueError when it is no number from ``low`` to ``high``, both finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # NaN is in no range
        raise ValueError(f"{repr(value)[:40]} is not a number from {low:g} to {high:g}")
    return float(value)


def numbers(value: object, low: float, high: float) -> list[float]:
    """``value`` as a list of such numbers. Raises ValueError."""
    if not isinstance(value, list):
        raise ValueError(f"{str(value)[:40]!r} is not a list")
    return [number(entry, low, high) for entry in value]


def table(value: object) -> dict[str, Any]:
    """``value`` as an object. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError(f"{str(value)[:40]!r} is not an object")
    return value
