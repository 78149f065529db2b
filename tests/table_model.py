"""A model that is a table of next-token laws, behind the executor's interface: its cache holds the tokens themselves, so that a row
reads the very path that engine, block tables and commits give it. Laws are known exactly and a pass costs nothing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from hasten.cache.blocks import BlockManager
from hasten.control.controller import Controller
from hasten.control.step_costs import StepCosts
from hasten.core.types import BLOCK_SIZE, Batch, Segment
from hasten.draft.base import Drafter
from hasten.draft.lm import LanguageModelDrafter
from hasten.draft.speculator import SpeculatorDrafter
from hasten.engine.drafting import Drafting
from hasten.engine.engine import Engine
from hasten.engine.scheduler import Scheduler
from hasten.model.head import DenseRows, TrimmedHead
from rejection_oracles import Conditional, Path
from tiny import FrozenCurve

BLOCKS = 4


class TableExecutor:
    """``law`` gives the law after the last ``order`` tokens of a path."""

    def __init__(self, law: Conditional, order: int = 2) -> None:
        self.law = law
        self.order = order
        self.slots = np.full(BLOCKS * BLOCK_SIZE, -1)
        shape = SimpleNamespace(context_length=BLOCKS * BLOCK_SIZE)
        self.precision = "table"
        self.states: torch.Tensor | None = None  # the last tokens of each wanted row's path
        self.likeliest: torch.Tensor | None = None  # nobody has told
        self.decoder = SimpleNamespace(description=shape)

    def forward(self, batch: Batch) -> torch.Tensor:
        paths = [path for segment in batch.segments for path in self._paths(segment)]
        self.states = torch.tensor([[-1, *path][-self.order :] for path in paths]) if paths else None
        rows = [self._logits(tuple(path)) for path in paths]
        return torch.stack(rows) if rows else torch.empty(0, len(self.law(())))

    def _paths(self, segment: Segment) -> list[list[int]]:
        for row, token in enumerate([*segment.chain, *segment.tree.tokens]):
            self.slots[self._slot(segment.blocks, segment.context + row)] = token
        known = [int(self.slots[self._slot(segment.blocks, at)]) for at in range(segment.context + len(segment.chain))]
        paths: list[list[int]] = [known[: segment.context + row + 1] for row in range(len(segment.chain))]
        for node in range(len(segment.tree)):
            paths.append(known + [segment.tree.tokens[above] for above in segment.tree.path(node)])
        return paths[segment.first_logit :]

    def _logits(self, path: Path) -> torch.Tensor:
        masses = torch.tensor([float(mass) for mass in self.law(path[-self.order :])], dtype=torch.float64)
        return torch.log(masses)

    def commit(self, blocks: list[int], context: int, kept: list[int]) -> None:
        values = [self.slots[self._slot(blocks, context + row)] for row in kept]
        for place, value in enumerate(values):
            self.slots[self._slot(blocks, context + place)] = value

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        for source, destination in pairs:
            for at in range(BLOCK_SIZE):
                self.slots[destination * BLOCK_SIZE + at] = self.slots[source * BLOCK_SIZE + at]

    @staticmethod
    def _slot(blocks: list[int], index: int) -> int:
        return blocks[index // BLOCK_SIZE] * BLOCK_SIZE + index % BLOCK_SIZE


class Words:
    """One letter a token, no end."""

    special_ids: frozenset[int] = frozenset()
    eos_token_ids: tuple[int, ...] = ()
    strips_space = False

    def token_bytes(self, token: int) -> bytes:
        return bytes([97 + token])


def table_drafter(law: Conditional, **shape: object) -> LanguageModelDrafter:
    executor = TableExecutor(law)
    blocks = BlockManager(BLOCKS, prefix_cache=False)
    return LanguageModelDrafter(executor.forward, blocks, len(law(())), BLOCKS * BLOCK_SIZE, **shape)  # type: ignore[arg-type]


class TableNetwork:
    """A speculator's network whose states are the last tokens, as the table's are."""

    def __init__(self, law: Conditional) -> None:
        self._law = law

    def blank(self, rows: int) -> torch.Tensor:
        return torch.zeros(rows, 2, dtype=torch.int64)

    def __call__(self, states: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        following = torch.stack([states[:, -1], tokens], dim=1)
        masses = [[float(mass) for mass in self._law(tuple(path))] for path in following.tolist()]
        return following, torch.log(torch.tensor(masses, dtype=torch.float64))


def table_speculator(law: Conditional, **shape: object) -> SpeculatorDrafter:
    vocabulary = len(law(()))
    head = TrimmedHead(DenseRows(torch.zeros(vocabulary, 1)), np.arange(vocabulary))
    return SpeculatorDrafter(TableNetwork(law), head, vocabulary, BLOCKS * BLOCK_SIZE, **shape)  # type: ignore[arg-type]


def table_engine(law: Conditional, drafters: list[Drafter], rule: str, control: str = "auto", depth: int = 0) -> Engine:
    executor = TableExecutor(law)
    blocks = BlockManager(BLOCKS)
    vocabulary = len(law(()))
    controller = Controller(StepCosts(FrozenCurve()), rule=control, depth=depth)
    return Engine(
        executor=executor,  # type: ignore[arg-type]
        scheduler=Scheduler(blocks, BLOCKS * BLOCK_SIZE, 64, 4),
        drafting=Drafting(drafters, controller, vocabulary, rule=rule),
        controller=controller,
        tokenizer=Words(),  # type: ignore[arg-type]
        eos=frozenset(),
        vocabulary=vocabulary,
        max_rows=64,
        model="table",
    )


def after(law: Conditional, prompt: Path, order: int = 2) -> Conditional:
    """The law of what follows the prompt."""
    return lambda path: law((*prompt, *path)[-order:])
