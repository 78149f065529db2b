"""Where a training stands, on disk, so that an interrupted one goes on from there to the very same end."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hasten.core.replacement import Replacement, refusal

FORMAT = "hasten-training-2"
SECONDS = 60.0  # of work that an interruption may cost
MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW knows of each parameter, besides how many steps it has taken
PRODUCTS = {str(dtype): dtype for dtype in (torch.bfloat16, torch.float32)}  # what a training may multiply in
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Checkpoint:
    """``key`` tells trainings apart: what another one left is not gone on from, and replaced. What a training multiplies in is no
    part of it, but kept: a timing chose that, and may choose otherwise another time. A disk that refuses is said once and costs the
    checkpoint, not the training."""

    path: Path
    key: str
    _kept: float = 0.0
    _refused: bool = False

    def resume(self, weights: dict[str, Tensor], optimiser: torch.optim.AdamW) -> tuple[int, torch.dtype | None]:
        """Put ``weights`` and the optimiser where this training was; returns how many steps it had taken and what it multiplied in,
        0 and None for a new one."""
        self._kept = time.monotonic()
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                if (metadata.get("format"), metadata.get("key")) != (FORMAT, self.key):
                    return 0, None
                step, products = int(metadata["step"]), PRODUCTS[metadata["products"]]
                found = {name: {part: file.get_tensor(f"{name}.{part}") for part in ("now", *MOMENTS)} for name in weights}
        except FileNotFoundError:
            return 0, None
        except (OSError, SafetensorError, KeyError, ValueError) as problem:
            log.warning("%s is not whole (%s); the training begins anew.", self.path, problem)
            return 0, None
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(found[name]["now"])
                moments = {part: found[name][part].to(weight.device) for part in MOMENTS}
                optimiser.state[weight] = {"step": torch.tensor(float(step)), **moments}
        return step, products

    def keep(self, weights: dict[str, Tensor], optimiser: torch.optim.AdamW, step: int, products: torch.dtype) -> None:
        """Write where the training stands behind so many steps, if the last time is some while ago."""
        if self._refused or time.monotonic() - self._kept < SECONDS:
            return
        tensors = {f"{name}.now": weight.detach().cpu() for name, weight in weights.items()}
        tensors |= {f"{name}.{part}": optimiser.state[weight][part].cpu() for name, weight in weights.items() for part in MOMENTS}
        metadata = {"format": FORMAT, "key": self.key, "step": str(step), "products": str(products)}
        try:
            with Replacement(self.path) as replacement:
                replacement.file.write(safetensors.torch.save(tensors, metadata))
        except OSError as problem:
            self._refused = True
            log.warning("%s An interrupted training will begin anew.", refusal(self.path, problem))
        self._kept = time.monotonic()

    def remove(self) -> None:
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
