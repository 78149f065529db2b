"""Where and of what a number was made: machine, versions, commit; the memory's speed now; memory used; energy where it is told."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import hasten
from hasten.control.profile import processor_name
from hasten.model.decoder import DecoderWeights
from hasten.model.kernels import native_reads, threads_and_level

PACKAGES = ("torch", "numpy", "transformers")
POWERCAP = Path("/sys/class/powercap")


def about_machine() -> dict[str, str]:
    """Facts that belong to every number; all of them text."""
    threads, level = threads_and_level()
    facts = {
        "processor": processor_name(),
        "threads": str(threads),
        "kernels": level,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "hasten": hasten.__version__,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    return facts | {name: found for name in PACKAGES if (found := _version(name))}


def commit() -> str:
    """The commit that this code was taken from, with a '+' where it was changed since; "unknown" outside a repository."""
    here = Path(hasten.__file__).resolve().parent

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=False, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    name = git("rev-parse", "--short", "HEAD")
    if not name or not git("ls-files", "--", str(Path(hasten.__file__).name)):
        return "unknown"
    return f"{name}+" if git("status", "--porcelain", "--", ".") else name


def read_bandwidth(megabytes: int = 256, repeats: int = 3) -> float:
    """Bytes a second that all threads together read from memory: the best of a few passes over a buffer far beyond the caches, by
    PyTorch's sum and, where they are built, by the native read kernels (some of which prefetch)."""
    buffer = torch.ones(megabytes << 20, dtype=torch.uint8)
    words = buffer.view(torch.int32)
    ways: list[Callable[[], object]] = [words.sum, *native_reads(buffer)]
    best = 0.0
    for _ in range(repeats):
        for read in ways:
            started = time.perf_counter()
            read()
            best = max(best, buffer.numel() / (time.perf_counter() - started))
    return best


def step_bytes(weights: DecoderWeights, itemsize: int) -> int:
    """Bytes of weights that one greedy step of few rows reads: every projection, and the head or, where it has one, its sketch.
    ``itemsize`` is that of unpacked weights."""
    parts = [part for layer in weights.layers for part in (layer.qkv, layer.output, layer.mlp.gate_up, layer.mlp.down)]
    sketch = 0 if weights.sketch is None else weights.sketch.bytes
    read = parts if sketch else [*parts, weights.head]
    return sketch + sum(getattr(part, "bytes", itemsize * part.outputs * part.inputs) for part in read)


def peak_memory_bytes() -> int | None:
    """The most memory this process has held; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else most * 1024


class Energy:
    """Joules of the processor packages since the last ``take``, from the running average power limit counters (Linux powercap).
    ``exposed`` is False where there are none or they may not be read."""

    def __init__(self, folder: Path = POWERCAP) -> None:
        self._counters = [path for path in sorted(folder.glob("intel-rapl:*")) if path.name.count(":") == 1 and _readable(path)]
        self.exposed = bool(self._counters)
        self._last = self._read()

    def take(self) -> float | None:
        """Joules since the last call; None where nothing is exposed. A counter that wrapped around once is understood."""
        if not self.exposed:
            return None
        now, joules = self._read(), 0.0
        for path, before, after in zip(self._counters, self._last, now, strict=True):
            if after < before:
                after += int((path / "max_energy_range_uj").read_text())
            joules += (after - before) / 1e6
        self._last = now
        return joules

    def _read(self) -> list[int]:
        return [int((path / "energy_uj").read_text()) for path in self._counters]


def _readable(path: Path) -> bool:
    return os.access(path / "energy_uj", os.R_OK)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
