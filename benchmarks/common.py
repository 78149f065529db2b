"""What the benchmark scripts share: most of it is ``hasten.bench``'s."""

from __future__ import annotations

from collections.abc import Iterable

from hasten.bench.machine import about_machine as machine
from hasten.bench.machine import read_bandwidth, step_bytes
from hasten.bench.workloads import data_file

__all__ = ["data_file", "machine", "read_bandwidth", "step_bytes", "table"]


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [" | ".join(header)]
    lines.append(" | ".join("---" for _ in lines[0].split(" | ")))
    lines += [" | ".join(row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
