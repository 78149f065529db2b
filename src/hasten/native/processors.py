"""How many threads compute best on this machine: one for each core that this process may use. No torch."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

SYSTEM = Path("/sys")


def usable_cores(system: Path = SYSTEM) -> int:
    """Cores that this process may run on, a core with two hardware threads counted once, and no more than a container's share of
    processor time is worth: threads beyond that wait for each other. Where the system does not tell, hardware threads."""
    threads = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    cores = {_siblings(system / f"devices/system/cpu/cpu{thread}/topology", thread) for thread in threads}
    return max(1, min(len(cores), _quota(system / "fs/cgroup")))


def _siblings(topology: Path, thread: int) -> str:
    """The hardware threads of a thread's core, in the system's writing; the thread alone where it does not tell."""
    for name in ("core_cpus_list", "thread_siblings_list"):
        if found := _read(topology / name):
            return found
    return str(thread)


def _quota(groups: Path) -> int:
    """Processors' worth of time that this container is given, rounded up: cgroups of version 2, then 1."""
    limit, _, period = _read(groups / "cpu.max").partition(" ")
    if not period:
        limit, period = (_read(groups / "cpu" / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    if limit.isdigit() and period.isdigit() and int(limit) > 0 and int(period) > 0:
        return math.ceil(int(limit) / int(period))
    return sys.maxsize


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
