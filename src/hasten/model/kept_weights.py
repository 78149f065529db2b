"""Which file of converted weights a model is loaded from: what ``hasten quantize`` made where that is, else what a load makes."""

from __future__ import annotations

import logging
from pathlib import Path

from hasten.model import storage
from hasten.model.conversion import is_converted, set_aside
from hasten.model.precision import INT4, Precision
from hasten.model.weights import Weights, conversion_plan

log = logging.getLogger(__name__)


def kept_weights(source: Weights, precision: Precision, name: str) -> Path | None:
    """Where the converted weights of ``source`` are or will be kept; None for precisions that are not converted.

    Says in one line when int4 has to do with plain rounding. A calibrated file that does not fit is set aside, not used.
    """
    if not precision.quantised:
        return None
    if precision is INT4:
        calibrated = storage.calibrated_path(source.fingerprint, precision.name)
        if is_converted(calibrated, conversion_plan(source, precision), source.fingerprint):
            return calibrated
        if calibrated.exists():
            set_aside(calibrated, f"{calibrated} is damaged or of another version of Hasten")
        log.warning("int4 weights of '%s' are rounded plainly; run 'hasten quantize %s' once for better int4.", name, name)
    return storage.converted_path(source.fingerprint, precision.name)
