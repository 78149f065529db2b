"""How many threads compute: what the machine and a container allow, and what happens where the system gives fewer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hasten.model import kernels
from hasten.model.precision import BF16, INT8
from hasten.native.loader import load, status
from hasten.native.processors import usable_cores


def system(tmp_path: Path, siblings: dict[int, str], files: dict[str, str]) -> Path:
    """What /sys says."""
    for thread, text in siblings.items():
        folder = tmp_path / f"devices/system/cpu/cpu{thread}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text + "\n")
    for name, text in files.items():
        path = tmp_path / "fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return tmp_path


EIGHT = {thread: f"{thread % 4},{thread % 4 + 4}" for thread in range(8)}  # four cores of two hardware threads


@pytest.mark.parametrize(
    ("allowed", "siblings", "files", "cores"),
    [
        (range(8), EIGHT, {}, 4),
        (range(8), {}, {}, 8),  # nothing is told
        ((0, 4), EIGHT, {}, 1),
        ((1, 2, 6), EIGHT, {}, 2),
        (range(8), EIGHT, {"cpu.max": "max 100000"}, 4),
        (range(8), EIGHT, {"cpu.max": "250000 100000"}, 3),
        (range(8), EIGHT, {"cpu.max": "1000 100000"}, 1),
        (range(8), EIGHT, {"cpu.max": "900000 100000"}, 4),
        (range(8), EIGHT, {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        (range(8), EIGHT, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
        (range(8), EIGHT, {"cpu.max": "nonsense 0"}, 4),
    ],
)
def test_threads_are_cores_that_may_be_used(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    allowed: tuple[int, ...],
    siblings: dict[int, str],
    files: dict[str, str],
    cores: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(allowed), raising=False)
    assert usable_cores(system(tmp_path, siblings, files)) == cores


FEW_THREADS = """
import resource
from hasten.native.loader import load
library = load()
library.set_threads({threads})
size = [line for line in open("/proc/self/status") if line.startswith("VmSize")][0]
most = int(size.split()[1]) * 1024 + ({room} << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
memory = bytearray(8 << 20)
import ctypes
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
for _ in range(50):
    library.call["hst_read"](address, len(memory), 0)
print("threads", library.threads)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and sizes are Linux's")
@pytest.mark.parametrize("threads", [64, 100_000])
def test_where_the_system_gives_fewer_threads_those_do_the_work(threads: int) -> None:
    """One that could not be begun ended the process."""
    if load() is None:
        pytest.skip(f"native kernels: {status()['reason']}")
    code = FEW_THREADS.format(threads=threads, room=64)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("threads ")


def test_pytorch_has_its_threads_again_behind_a_model_of_integers() -> None:
    if load() is None:
        pytest.skip(f"native kernels: {status()['reason']}")
    before = torch.get_num_threads()
    try:
        kernels.set_threads(0, INT8)
        assert torch.get_num_threads() == 1
        torch.set_num_threads(1)
        kernels.set_threads(3, BF16)
        assert torch.get_num_threads() == 3
        kernels.set_threads(0, BF16)
        assert torch.get_num_threads() == kernels.TORCH_THREADS
    finally:
        torch.set_num_threads(before)
