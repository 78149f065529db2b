"""Modes of one loaded model as contestants, and which of them an ablation wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from hasten.bench.modes import Mode, Subject, single_drafters
from hasten.bench.samples import Sample
from hasten.bench.session import ContestantFailed
from hasten.bench.workloads import Load
from hasten.core.errors import InvalidRequest
from hasten.core.types import SamplingParams

FIXED_DEPTHS = range(1, 9)


@dataclass(frozen=True, slots=True)
class ModeContestant:
    """Hasten in one mode, of another ``precision`` than the comparison's own where one is named. Each repetition asks the drafters
    as another tenant, so that none has seen the answer before."""

    subject: Subject
    mode: Mode
    precision: str = ""

    @property
    def name(self) -> str:
        return f"{self.precision} {self.mode.name}".strip()

    def answer(self, prompts: list[list[int]], params: SamplingParams, repeat: int) -> list[Sample]:
        try:
            return self.subject.run(self.mode, prompts, [params] * len(prompts), f"repetition {repeat}")
        except InvalidRequest as problem:
            raise ContestantFailed(str(problem)) from problem


@dataclass(frozen=True, slots=True)
class ModesInStep:
    """Modes of one model that take turns step by step: what disturbs the machine disturbs all of them alike, so that small
    differences show."""

    subject: Subject
    modes: Sequence[Mode]

    def fits(self, load: Load) -> bool:
        room, needed = self.subject.room_in_step(len(self.modes), load)
        return room >= needed

    def answer(self, prompts: list[list[int]], params: SamplingParams, repeat: int) -> dict[str, list[Sample]]:
        try:
            found = self.subject.run_in_step(self.modes, prompts, [params] * len(prompts), f"repetition {repeat}")
        except InvalidRequest as problem:
            raise ContestantFailed(str(problem)) from problem
        return {mode.name: samples for mode, samples in zip(self.modes, found, strict=True)}


def each_mode(loaded: Sequence[str]) -> list[str]:
    """Plain decoding, every drafter by itself, and all together."""
    return ["plain", *single_drafters(loaded), "auto"]


def ablation_modes(loaded: Sequence[str]) -> list[str]:
    """Each drafter alone, pairs, all; and fixed depths against auto, of the draft model's chain where there is one."""
    singles = single_drafters(loaded)
    pairs = ["+".join(pair) for pair in combinations(singles, 2)] if len(singles) > 2 else []
    fixed = "lm" if "lm" in loaded else "auto"
    return ["plain", *singles, *pairs, "auto", *(f"{fixed}@fixed({depth})" for depth in FIXED_DEPTHS)]
