"""Which file of converted weights a model is loaded from: what ``hasten quantize`` or ``hasten draft quantize`` made where that
is, else what a load makes."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from hasten.core.damaged import set_aside
from hasten.model import storage
from hasten.model.conversion import is_converted
from hasten.model.linear_file import drafts_in_few_bits
from hasten.model.precision import INT3, INT4, Q4_0, Precision
from hasten.model.weights import Weights, conversion_plan

log = logging.getLogger(__name__)


def kept_weights(source: Weights, precision: Precision, name: str) -> Path | None:
    """Where the converted weights of ``source`` are or will be kept; None for precisions that are not converted.

    Says in one line when few bits have to do with plain rounding. A calibrated file that does not fit is set aside, not used.
    """
    if not precision.quantised:
        return None
    if precision.bits < 8:
        if (calibrated := _calibrated(source, precision)) is not None:
            return calibrated
        verb = f"quantize {name}" if precision is INT4 else f"draft quantize -m TARGET --draft-model {name}"
        log.warning("%s weights of '%s' are rounded plainly; run 'hasten %s' once for better ones.", precision.name, name, verb)
    return storage.converted_path(source.fingerprint, precision.name)


def draft_precision(name: str, device: torch.device, source: Weights) -> str:
    """What the draft model ``source`` runs in where the target's precision is called ``name``. A level of it costs what reading
    its weights costs, and its guesses are checked anyway (docs/drafters/lm.md). So beside integer weights, where there are native
    kernels, it has three bits where ``hasten draft quantize`` made them, else four, q4_0; elsewhere the target's own."""
    if not drafts_in_few_bits(name, device):
        return name
    return Q4_0.name if _calibrated(source, INT3) is None else INT3.name


def _calibrated(source: Weights, precision: Precision) -> Path | None:
    """The calibrated file of these weights, where there is one that fits."""
    path = storage.calibrated_path(source.fingerprint, precision.name)
    if not path.exists():
        return None
    if is_converted(path, conversion_plan(source, precision), source.fingerprint):
        return path
    set_aside(path, f"{path} is damaged or of another version of Hasten")
    return None
