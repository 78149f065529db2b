"""Run generated Python where it can do no harm: a process without network, other processes, files to write, much time or memory."""

from __future__ import annotations

import json
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hasten.bench.jail import ALLOWED
from hasten.core.errors import ConfigError

JAIL = Path(__file__).with_name("jail.py")
MEMORY = 1 << 30
GRACE_S = 5.0  # of real time beyond the processor's


@dataclass(frozen=True, slots=True)
class Outcome:
    """``passed``: the program ran to its end. ``why`` is the last line that it said, or how it ended."""

    passed: bool
    why: str


def check_sandbox() -> None:
    """Raises ConfigError where generated code cannot be locked in."""
    if platform.system() != "Linux" or platform.machine() not in ALLOWED:
        raise ConfigError("Generated code is only run on Linux, x86-64 or ARM64, where it can be locked in; run this there.")


def run_locked(program: str, seconds: int = 10, memory: int = MEMORY, grace: float = GRACE_S) -> Outcome:
    """Run a program for at most ``seconds`` of the processor's time, and ``grace`` more of real time.

    Its folder is empty and removed afterwards, its environment is empty, its output thrown away.
    """
    check_sandbox()
    secret = secrets.token_hex(16)  # so that an early exit is no success
    asked = json.dumps({"program": program, "seconds": seconds, "memory": memory, "secret": secret}) + "\n"
    with tempfile.TemporaryDirectory(prefix="hasten-eval-") as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-B", str(JAIL)],
                input=asked.encode(),
                capture_output=True,
                cwd=folder,
                env={},
                timeout=seconds + grace,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Outcome(False, f"not done after {seconds + grace:g} s")
    if done.stdout == secret.encode():
        return Outcome(True, "")
    if done.returncode < 0:
        return Outcome(False, f"ended by {signal.Signals(-done.returncode).name}")
    return Outcome(False, done.stdout.decode("utf-8", "replace")[:200] or f"it left early, with status {done.returncode}")
