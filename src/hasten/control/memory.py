"""What the controller has learnt, kept over restarts: one small file a pairing of target and drafters."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.control import store
from hasten.control.accounts import Standing
from hasten.control.calibrator import Calibrator
from hasten.control.controller import Controller
from hasten.control.lengths import Lengths

VERSION = 3
SAVE_EVERY_S = 30.0


@dataclass(slots=True)
class Memory:
    """``load`` fills a controller with what ``save`` kept of an earlier one. ``path`` names the pairing."""

    path: Path
    _saved: float = 0.0

    @classmethod
    def of(cls, target: str, precision: str, drafters: list[str]) -> Memory:
        """``target`` is the model's fingerprint; ``drafters`` name each drafter and, for a model, its fingerprint."""
        return cls(store.folder() / store.file_name("drafting", target[:24], precision, *(name[:40] for name in drafters)))

    def load(self, controller: Controller) -> bool:
        """True where there was something to remember. A damaged file is set aside with a warning."""
        content = store.read(self.path)
        if content is None or content.get("version") != VERSION:
            return False
        try:
            calibrator = Calibrator.from_json(content.get("calibrator"))
            standings = _standings(content.get("standings"))
            lengths = Lengths.from_json(content.get("lengths"))
            upkeep = {name: store.number(balance, -1e6, 1e6) for name, balance in store.table(content.get("upkeep", {})).items()}
        except ValueError as problem:
            store.discard(self.path, str(problem))
            return False
        controller.calibrator, controller.lengths = calibrator, lengths
        controller.standings.update(standings)
        controller.upkeep.accounts.update({name: Standing(balance) for name, balance in upkeep.items()})
        return True

    def save(self, controller: Controller) -> None:
        """Write it all. Does nothing while nothing was learnt."""
        if controller.standings:
            store.write(self.path, _content(controller))
        self._saved = time.monotonic()

    def save_sometimes(self, controller: Controller) -> None:
        """``save``, at most every ``SAVE_EVERY_S`` seconds."""
        if time.monotonic() - self._saved >= SAVE_EVERY_S:
            self.save(controller)


def _content(controller: Controller) -> dict[str, Any]:
    return {
        "version": VERSION,
        "calibrator": controller.calibrator.to_json(),
        "standings": {f"{name}/{kind}": standing.to_json() for (name, kind), standing in _opened(controller).items()},
        "lengths": controller.lengths.to_json(),
        "upkeep": {name: account.balance or 0.0 for name, account in controller.upkeep.accounts.items()},
    }


def _opened(controller: Controller) -> dict[tuple[str, str], Standing]:
    """Those that have had a step on their account; the others still have their credit to begin with."""
    return {key: standing for key, standing in controller.standings.items() if standing.balance is not None}


def _standings(content: object) -> dict[tuple[str, str], Standing]:
    out = {}
    for name, values in store.table(content).items():
        drafter, _, kind = name.rpartition("/")
        if not drafter:
            raise ValueError(f"{name[:40]!r} names no drafter")
        out[drafter, kind] = Standing.from_json(values)
    return out
