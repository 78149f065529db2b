"""A virtual environment of its own for each other engine, made once from the package index and kept.

$HASTEN_HOME/peers/NAME/
├── bin/, lib/ ...          the environment
├── ready.json              what was asked for and what was installed; without it the environment is made again
└── models/                 weights that were converted for this engine
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from hasten.bench.session import ContestantFailed
from hasten.model import storage

INSTALL_SECONDS = 7200.0
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """``steps`` are requirements of one pip call each, in order; ``variables`` hold for the build."""

    name: str
    steps: tuple[tuple[str, ...], ...]
    variables: dict[str, str] = field(default_factory=dict)


def peers_directory() -> Path:
    return storage.home() / "peers"


def python_of(recipe: Recipe, say: Say) -> Path:
    """The interpreter of the engine's environment, which is made first where it is missing or of another recipe.

    Raises ContestantFailed with pip's last word when that does not work; what was begun is tried again the next time.
    """
    folder = peers_directory() / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = folder / "ready.json"
    asked = {"steps": [list(step) for step in recipe.steps], "variables": recipe.variables}
    with FileLock(peers_directory() / f"{recipe.name}.lock"):
        if python.exists() and _asked_of(ready) == asked:
            return python
        say(f"making an environment for {recipe.name}; this is done once")
        _forget(folder)
        _run(recipe, [sys.executable, "-m", "venv", str(folder)], {})
        for step in recipe.steps:
            say(f"installing {' '.join(step)} for {recipe.name}")
            _run(recipe, [str(python), "-m", "pip", "install", *step], recipe.variables)
        listed = _run(recipe, [str(python), "-m", "pip", "list", "--format=freeze"], {})
        ready.write_text(json.dumps(asked | {"installed": listed.split()}, indent=1), encoding="utf-8")
    return python


def versions_of(recipe: Recipe) -> list[str]:
    """What is installed there, as NAME==VERSION; empty where nothing is."""
    try:
        return list(json.loads((peers_directory() / recipe.name / "ready.json").read_text(encoding="utf-8"))["installed"])
    except (OSError, ValueError, KeyError):
        return []


def own_variables() -> dict[str, str]:
    """The environment variables of this process without those that would show another interpreter our packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def _forget(folder: Path) -> None:
    """What was begun once, or of another recipe; weights that were converted stay."""
    for path in folder.iterdir():
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.name != "models":
            shutil.rmtree(path)


def _asked_of(ready: Path) -> dict[str, object] | None:
    try:
        found = json.loads(ready.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return {name: found.get(name) for name in ("steps", "variables")}


def _run(recipe: Recipe, command: list[str], variables: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            command, env=own_variables() | variables, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise ContestantFailed(f"{recipe.name} could not be installed ({problem}).") from problem
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines or ["no message"]
        raise ContestantFailed(f"{recipe.name} could not be installed: {errors[0].strip()[:300]}")
    return done.stdout
