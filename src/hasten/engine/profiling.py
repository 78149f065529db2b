"""The controller of an engine: cost curves of target and drafts on this machine, and what earlier runs have learnt."""

from __future__ import annotations

import hashlib
import time
import weakref

import torch

from hasten.control import profile
from hasten.control.controller import Controller
from hasten.control.cost import CostCurve
from hasten.control.memory import Memory
from hasten.control.profile import Profile, Setting, Timed
from hasten.control.step_costs import StepCosts
from hasten.core.config import EngineConfig, parse_control
from hasten.core.types import BLOCK_SIZE, Batch, Segment
from hasten.draft.base import Drafter
from hasten.engine.drafting import Drafting
from hasten.model.executor import Executor
from hasten.model.kernels import kernels_fingerprint, threads_and_level
from hasten.model.tokenizer import Tokenizer

SAMPLE = (
    "Rivers carry sand and stones from the mountains to the sea. Where the water slows down, the heavy stones are left behind "
    "first, then the gravel, and at last the fine sand. def mean(values): return sum(values) / len(values)"
)


def make_drafting(
    config: EngineConfig,
    executor: Executor,
    fingerprint: str,
    tokenizer: Tokenizer,
    drafters: list[Drafter],
    vocabulary: int,
    redo: bool = False,
) -> tuple[Drafting, dict[str, Profile]]:
    """Drafting with its controller, and the profiles that this rests on: the target's and those of drafters that are models.

    Without drafters nothing is measured, and nothing is kept. ``redo`` measures curves even where good ones are kept.
    """
    rule, depth = parse_control(config.control)
    if not drafters:
        return Drafting([], Controller(StepCosts(CostCurve()), rule=rule, depth=depth), vocabulary), {}
    precision = executor.precision
    setting = _setting(fingerprint, precision, executor.device)
    positions = executor.pool.num_blocks * BLOCK_SIZE
    timed = timed_passes(executor, sample_tokens(tokenizer))
    profiles = {"target": profile.curve_of(setting, timed, positions, redo)}
    for drafter in drafters:
        if drafter.identity:
            own = _setting(drafter.identity, precision, executor.device)
            profiles[drafter.name] = profile.curve_of(own, drafter.pass_seconds, drafter.positions, redo)
            both = min(positions, drafter.positions)
            profile.level(profiles["target"].curve, timed, profiles[drafter.name].curve, drafter.pass_seconds, both)
    controller = Controller(
        StepCosts(profiles["target"].curve, {name: found.curve for name, found in profiles.items() if name != "target"}),
        rule=rule,
        depth=depth,
    )
    learners = sorted(drafter.name + _short(drafter.identity) for drafter in drafters)
    learners += [] if config.verify == "coupled" else [config.verify]  # what is accepted depends on the rule
    memory = Memory.of(fingerprint, precision, learners)
    memory.load(controller)
    drafting = Drafting(drafters, controller, vocabulary, memory, rule=config.verify)
    weakref.finalize(drafting, memory.save, controller)  # also when the program ends
    return drafting, profiles


def _short(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:12] if identity else ""


def sample_tokens(tokenizer: Tokenizer) -> list[int]:
    """A few dozen tokens of ordinary text."""
    return tokenizer.encode(SAMPLE, add_bos=True) or [0]


def timed_passes(executor: Executor, text: list[int]) -> Timed:
    """Times one pass of some rows of ``text``, again and again, behind a context of it; the pool must not be in use.

    Rows that mean nothing would not do: where no token leads, a sketched head has many to look at twice. And a pool that nothing
    was written to is one page of zeros, which takes no time to read.
    """
    filled = 0

    def fill(blocks: int) -> None:
        nonlocal filled
        if filled == 0:
            executor.forward(Batch([Segment([0], 0, _repeated(text, BLOCK_SIZE), first_logit=BLOCK_SIZE)]))
            filled = 1
        if blocks > filled:
            executor.copy_blocks([(0, block) for block in range(filled, blocks)])
            filled = blocks

    def timed(rows: int, context: int) -> float:
        blocks = list(range(-(-(context + rows) // BLOCK_SIZE)))
        fill(len(blocks))
        batch = Batch([Segment(blocks, context, _repeated(text, rows), leaders=1)])
        started = time.perf_counter()
        executor.forward(batch)
        if executor.device.type == "cuda":
            torch.cuda.synchronize(executor.device)
        return time.perf_counter() - started

    return timed


def _repeated(tokens: list[int], count: int) -> list[int]:
    return (tokens * -(-count // len(tokens)))[:count]


def _setting(model: str, precision: str, device: torch.device) -> Setting:
    if device.type == "cuda":
        return Setting(model, precision, torch.cuda.get_device_name(device), 0, "cuda")
    threads, level = threads_and_level()
    return Setting(model, precision, profile.processor_name(), threads, level, kernels_fingerprint())
