"""Facts about this machine, read off the system. Linux, macOS and others; what is not known is left out."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

X86_SETS = ("avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
ARM_SETS = ("asimd", "asimddp", "i8mm", "bf16", "sve")
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def processor_name() -> str:
    """The model name that the processor gives itself."""
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    if platform.system() == "Darwin":
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        if asked.returncode == 0 and asked.stdout.strip():
            return asked.stdout.strip()
    return platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Of the sets that matter here, those the processor reports; empty where the system does not tell."""
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            present = set(line.partition(":")[2].split())
            return [name for name in (*X86_SETS, *ARM_SETS) if name in present]
    return []


def physical_cores() -> int | None:
    """Cores without their second threads, or None where the system does not tell."""
    cores: set[tuple[str, str]] = set()
    package = ""
    for line in _cpuinfo():
        name, _, value = line.partition(":")
        if name.strip() == "physical id":
            package = value.strip()
        elif name.strip() == "core id":
            cores.add((package, value.strip()))
    return len(cores) or None


def usable_threads() -> int:
    """Hardware threads that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> tuple[int | None, int | None]:
    """Memory this process can have, and what of it is free now. A container's limit counts as the whole."""
    total = available = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    for limit in CGROUP_LIMITS:
        for line in _lines(limit):
            if line.strip().isdecimal() and total is not None:
                total = min(total, int(line))
    return total, available if available is None or total is None else min(available, total)


def disk_free_bytes(folder: Path) -> int:
    """Free space of the disk that holds ``folder``, which need not exist yet."""
    return shutil.disk_usage(_existing(folder)).free


def why_not_writable(folder: Path) -> str | None:
    """Why no file can be made in ``folder``, which need not exist yet, in the system's words; None where it can. Leaves nothing."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return None
    except OSError as problem:
        return problem.strerror or str(problem)


def _existing(folder: Path) -> Path:
    while not os.path.exists(folder):  # of a folder that may not be looked into Path.exists raises
        folder = folder.parent
    return folder


def _cpuinfo() -> list[str]:
    return _lines("/proc/cpuinfo")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
