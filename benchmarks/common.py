"""What the benchmark scripts share: prompts, the machine's memory floor, a description of machine and commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hasten.native.loader import load
from hasten.native.memory import aligned_bytes

READ_KINDS = 4  # as in native/read.h
ROOT = Path(__file__).resolve().parent.parent
GROUPS = {
    **dict.fromkeys(
        ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"), "multi-turn conversation"
    ),
    "translation": "translation",
    "summarization": "summarization",
    "qa": "qa",
    "math_reasoning": "math_reasoning",
    "rag": "rag",
}


def data_file(name: str) -> Path:
    """A file of the shared measuring data: HASTEN_SHARED_DATA, or ../shared/data beside the repository."""
    folder = Path(os.environ.get("HASTEN_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / name).exists():
        sys.exit(f"{name} is not in {folder}; set HASTEN_SHARED_DATA to the folder that holds it.")
    return folder / name


def spec_bench(per_category: int | None = None) -> list[dict[str, Any]]:
    """The dev questions, optionally the first few of each category."""
    taken: dict[str, int] = {}
    out = []
    for line in data_file("spec_bench_dev.jsonl").read_text().splitlines():
        question = json.loads(line)
        taken[question["category"]] = taken.get(question["category"], 0) + 1
        if per_category is None or taken[question["category"]] <= per_category:
            out.append(question)
    return out


def read_bandwidth(megabytes: int = 512, repeats: int = 4) -> float:
    """Bytes a second that all threads together read from memory: the best of a few passes over a buffer far beyond the caches, by
    PyTorch's sum and, where they are built, by the native read kernels (some prefetch)."""
    buffer = aligned_bytes(megabytes << 20).fill_(1)
    words = buffer.view(torch.int32)
    ways: list[Callable[[], object]] = [words.sum]
    library = load()
    if library is not None:
        ways += [partial(library.call["hst_read"], buffer.data_ptr(), buffer.numel(), kind) for kind in range(READ_KINDS)]
    best = 0.0
    for _ in range(repeats):
        for read in ways:
            started = time.perf_counter()
            read()
            best = max(best, buffer.numel() / (time.perf_counter() - started))
    return best


def machine() -> dict[str, str]:
    """Where and of what a number was made."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor() or "unknown"
    return platform.processor() or "unknown"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [" | ".join(header)]
    lines.append(" | ".join("---" for _ in lines[0].split(" | ")))
    lines += [" | ".join(row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
