"""The controller over recorded answers, on a simulated clock: what its decisions bring, from many cold starts in a minute.

    python benchmarks/replay_control.py pair.json --starts 16 --per-group 5

``replay_recording.py`` makes the file. Which guesses come true is known from the recording, a pass takes what its cost curve
says, drafting what ``--look`` says, and noise is added. Free drafters are the real ones; of rejected guesses they learn nothing,
for nobody recorded what follows them. Prints, by group, speed over plain decoding (geometric mean over answers, decoding alone),
and of single answers the lowest and the second, fifth and tenth percentile. A simulation ranks rules; how fast they are only a
machine says.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hasten.engine.drafting as drafting_module
from common import table
from hasten.bench.statistics import geometric_mean, percentile
from hasten.control.controller import Controller
from hasten.control.cost import CostCurve
from hasten.control.step_costs import StepCosts
from hasten.core.types import ROOT, DraftTree, SamplingParams, Sequence, Verdict
from hasten.draft.base import DraftBudget, Drafter
from hasten.draft.recycled_rows import TenantRows
from hasten.draft.recycling import RecyclingDrafter
from hasten.draft.suffix import SuffixDrafter
from hasten.engine.drafting import Drafting
from hasten.engine.scheduler import Scheduled

VOCABULARY = 1 << 20
NOISE = 0.03
OVERHEAD = 0.0004  # of a step outside the pass
PASSES = 0.85  # of a draft model, a level: guesses ahead save some
NOTHING_KNOWN = (0.3, 0.95)  # how sure a draft model is where it has left the text
Text = dict[str, Any]


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class RecordedRows:
    """Stands where the target's logits do: its likeliest tokens of each row, as far as they were recorded."""

    rows: list[list[int]]

    def __getitem__(self, _: object) -> RecordedRows:
        return self


class Timed(Drafter):
    """A free drafter that takes ``look`` seconds for a tree, and as long for learning."""

    def __init__(self, inner: Drafter, clock: Clock, look: float) -> None:
        self._inner, self._clock, self._look = inner, clock, look
        self.name, self.likeliest_wanted = inner.name, inner.likeliest_wanted
        self.begin, self.serves, self.end = inner.begin, inner.serves, inner.end  # type: ignore[method-assign]

    def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
        self._clock.now += self._look
        return self._inner.propose(sequences, budgets)

    def observe(self, sequence: Sequence, tree: DraftTree, verdict: Verdict) -> None:
        self._clock.now += self._look
        self._inner.observe(sequence, tree, verdict)


class RecordedModel(Drafter):
    """Guesses what the draft model guessed while the text went on as it guessed; behind that, tokens that nobody chooses."""

    name, paid = "lm", True

    def __init__(self, clock: Clock, texts: list[Text], curve: CostCurve) -> None:
        self._clock, self._texts, self._curve = clock, texts, curve
        self._read: dict[int, int] = {}
        self._rng = random.Random(3)

    def propose(self, sequences: list[Sequence], budgets: list[DraftBudget]) -> list[DraftTree]:
        trees = [self._tree(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)]
        for sequence in sequences:
            unread = len(sequence.tokens) - self._read.get(sequence.id, 0)
            self._read[sequence.id] = len(sequence.tokens)
            self._clock.now += unread / 64 * self._curve.predict(64) if unread > 8 else 0.0
        levels = max((max(tree.depths(), default=0) for tree in trees), default=0)
        if levels:
            self.seconds_per_pass = self._curve.predict(len(sequences)) * (1 + NOISE * abs(self._rng.gauss(0, 1)))
            self.passes, self.foreseen = max(1, round(1 + (levels - 1) * PASSES)), 1.0 - PASSES
            self._clock.now += self.passes * self.seconds_per_pass
        return trees

    def _tree(self, sequence: Sequence, budget: DraftBudget) -> DraftTree:
        text, tree = self._texts[sequence.id], DraftTree()
        at, survival, follows, level = ROOT, 1.0, True, 0
        while level < budget.depth and len(tree) < budget.nodes and (level == 0 or survival >= budget.minimum_survival):
            place = sequence.output_length + level
            follows = follows and place < len(text["guesses"])
            ids, chances = text["guesses"][place] if follows else ([VOCABULARY - 1 - level], [self._rng.uniform(*NOTHING_KNOWN)])
            nodes = [tree.add(at, *guess, self.name) for guess in [*zip(ids, chances, strict=True)][: budget.nodes - len(tree)]]
            at, survival, level = nodes[0], survival * budget.calibrated(chances[0]), level + 1
            follows = follows and place < len(text["answer"]) and ids[0] == text["answer"][place]
        return tree


@dataclass
class Start:
    """A controller that knows nothing yet, and one answer after the other."""

    texts: list[Text]
    target_points: dict[int, float]
    draft_points: dict[int, float]  # empty: no draft model
    look: float
    seed: int
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        drafters: list[Drafter] = [Timed(each, self.clock, self.look) for each in (SuffixDrafter(), RecyclingDrafter())]
        # The controller's curves follow what it sees; those that say what passes really take are others.
        self.target, believed = CostCurve.measured(self.target_points), StepCosts(CostCurve.measured(self.target_points))
        if self.draft_points:
            believed.draft_curves["lm"] = CostCurve.measured(self.draft_points)
            drafters.append(RecordedModel(self.clock, self.texts, CostCurve.measured(self.draft_points)))
        self.controller = Controller(believed)
        self.drafting = Drafting(drafters, self.controller, VOCABULARY, clock=self.clock)
        self.plain_step = self.target.predict(1) * (1 + NOISE * 0.8) + OVERHEAD  # the mean of |noise|

    def run(self) -> Iterator[tuple[str, float]]:
        """Of each answer its group and how many times as fast as plain decoding it was."""
        for number, text in enumerate(self.texts):
            if len(text["answer"]) > 1:
                began = self.clock.now
                self._answer(number, text)
                yield text["group"], (len(text["answer"]) - 1) * self.plain_step / (self.clock.now - began)

    def _answer(self, number: int, text: Text) -> None:
        prompt, answer = text["prompt"], text["answer"]
        sequence = Sequence(number, str(number), SamplingParams(), 0, [*prompt, answer[0]], len(prompt), len(prompt) + text["most"])
        self.drafting.begin(sequence)
        self._observe(sequence, DraftTree(), Verdict([], answer[:1]), [text["likeliest"][0]])
        while sequence.output_length < len(answer):
            item, began = Scheduled(sequence, 1), self.clock.now
            sequence.computed = len(sequence.tokens) - 1
            self.drafting.propose([item], 512)
            rows = 1 + len(item.tree)
            forward = self.target.predict(rows) * (1 + NOISE * abs(self.rng.gauss(0, 1)))
            self.clock.now += forward + OVERHEAD
            self._verify(sequence, item.tree, text)
            self.drafting.settle([item], rows, forward, self.clock.now - began)
        sequence.finish_reason = "stop"
        self.drafting.end(sequence)

    def _verify(self, sequence: Sequence, tree: DraftTree, text: Text) -> None:
        answer, done = text["answer"], sequence.output_length
        path: list[int] = []
        while done + len(path) + 1 < len(answer):
            node = tree.child(path[-1] if path else ROOT, answer[done + len(path)])
            if node is None:
                break
            path.append(node)
        rows: list[list[int]] = [[] for _ in range(1 + len(tree))]
        for depth, row in enumerate([0, *(node + 1 for node in path)]):
            rows[row] = text["likeliest"][done + depth]
        verdict = Verdict(path, answer[done : done + len(path) + 1])
        sequence.tokens += verdict.tokens
        self._observe(sequence, tree, verdict, rows)

    def _observe(self, sequence: Sequence, tree: DraftTree, verdict: Verdict, rows: list[list[int]]) -> None:
        self.drafting.observe(sequence, tree, verdict, RecordedRows(rows))  # type: ignore[arg-type]


def leave_out_what_was_not_recorded() -> None:
    """The engine looks into logits for the likeliest tokens, and recycling keeps them of every row."""
    write = TenantRows._write
    drafting_module.likeliest = lambda logits, count: [row[:count] for row in logits.rows]  # type: ignore[attr-defined]
    TenantRows._write = lambda self, place, row: write(self, place, row) if len(row) else None  # type: ignore[method-assign]


def chosen(texts: list[Text], per_group: int, seed: int) -> list[Text]:
    """So many of each group, in an order of this seed."""
    rng, groups = random.Random(seed), defaultdict(list)
    for text in rng.sample(texts, len(texts)):
        groups[text["group"]].append(text)
    some = [text for group in groups.values() for text in group[:per_group]]
    return rng.sample(some, len(some))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--starts", type=int, default=8)
    parser.add_argument("--per-group", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--look", type=float, default=0.0003, help="seconds that a free drafter takes for a tree, and to learn")
    parser.add_argument("--no-lm", action="store_true", help="without the draft model")
    args = parser.parse_args()
    leave_out_what_was_not_recorded()
    recording = json.loads(args.recording.read_text())
    texts = [text | {"answer": text["answer"][: args.max_tokens], "most": args.max_tokens} for text in recording["texts"]]
    target, draft = ({int(rows): seconds for rows, seconds in (recording[name] or {}).items()} for name in ("costs", "draft_costs"))
    by_group: dict[str, list[float]] = defaultdict(list)
    for seed in range(args.starts):
        start = Start(chosen(texts, args.per_group, seed), target, {} if args.no_lm else draft, args.look, seed)
        for group, ratio in start.run():
            by_group[group].append(ratio)
    every = [ratio for ratios in by_group.values() for ratio in ratios]
    rows = [
        [group, f"{geometric_mean(ratios).value:.3f}", *(f"{percentile(ratios, share):.2f}" for share in (0.0, 0.02, 0.05, 0.1))]
        for group, ratios in [*by_group.items(), ("all", every)]
    ]
    print(table(["group", "over plain", "lowest answer", "2 %", "5 %", "10 %"], rows))


if __name__ == "__main__":
    main()
