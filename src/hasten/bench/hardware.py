"""Machines as the roofline sees them: speed of memory, speed of multiplication, what every layer costs besides. Public figures."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.core.errors import ConfigError
from hasten.core.registry import nearest

DENSE, INT8 = "dense", "int8"


@dataclass(frozen=True, slots=True)
class Machine:
    """``read_bytes_s`` of memory; ``operations_s`` (a multiplication and an addition are two) with 16-bit floats and with 8-bit
    integers; ``layer_s`` are the seconds that a layer takes besides reading and computing (calls, barriers). ``source`` says where
    the figures come from: of named machines they are peaks, which nobody reaches.

    ``overlapping``: whether weights are read while others are multiplied. ``cache_bytes_s`` and ``attention_operations_s`` are the
    speeds of attention where they were measured; else it is as fast as the rest, in dense arithmetic."""

    name: str
    read_bytes_s: float
    operations_s: dict[str, float]
    layer_s: float
    source: str
    overlapping: bool = True
    cache_bytes_s: float | None = None
    attention_operations_s: float | None = None


# layer_s of the graphics processors: some ten launches of 3 us each, hidden where they are recorded as one graph.
MACHINES = {
    machine.name: machine
    for machine in (
        Machine(
            "phone",
            76.8e9,
            {DENSE: 0.7e12, INT8: 1.4e12},
            40e-6,
            "Snapdragon 8 Gen 3, processor cores (product brief): 64 bits of LPDDR5X at 4,800 MHz; one Cortex-X4 of 4 "
            "vector pipes at 3.3 GHz, five A720 of 2 at 3.0 to 3.2 GHz, 32 int8 operations a pipe and cycle, half in 16 bits",
        ),
        Machine(
            "laptop",
            89.6e9,
            {DENSE: 0.9e12, INT8: 3.5e12},
            20e-6,
            "Core Ultra 7 155H, its six fast cores (Intel's data): two channels of DDR5-5600; two 256-bit AVX-VNNI ports at "
            "4.5 of at most 4.8 GHz; 16-bit floats computed as 32-bit ones",
        ),
        Machine(
            "a100",
            2.039e12,
            {DENSE: 312e12, INT8: 624e12},
            30e-6,
            "A100 80 GB SXM (NVIDIA A100 data sheet, figures without sparsity)",
        ),
        Machine(
            "h100",
            3.35e12,
            {DENSE: 989e12, INT8: 1979e12},
            30e-6,
            "H100 SXM (NVIDIA H100 data sheet; half of its figures with sparsity)",
        ),
        Machine(
            "h200",
            4.8e12,
            {DENSE: 989e12, INT8: 1979e12},
            30e-6,
            "H200 SXM (NVIDIA H200 data sheet; half of its figures with sparsity)",
        ),
    )
}


def named(name: str) -> Machine:
    """Raises ConfigError when there is no machine of that name."""
    if name not in MACHINES:
        raise ConfigError(f"There is no machine called '{name}'{nearest(name, ['here', *MACHINES])}")
    return MACHINES[name]
