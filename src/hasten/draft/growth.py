"""How the tree of a draft model grows, level by level: which children a node gets, which of them stay, and which are drafted on.

Four shapes (the setting ``tree``):

- "chain": one node of a level is drafted on; ``width`` children a node, the others are leaves that cost no draft pass.
- "rsd-c": constant branching (RSD-C, 2402.14160, section 3.2.1): every node is drafted on, ``branching[level]`` children each.
- "rsd-s": stochastic beam search (RSD-S, section 3.2.2; Kool et al. 2019): the ``width`` best of a level by perturbed score.
- "top-k": beam search without chance: the ``width`` likeliest paths of a level.

Under coupled verification the perturbation of the first three is the target's own noise, so what they prefer is what the target
will draw where the two agree. For verification by rejection they are draws without replacement, with noise of their own, in the
order in which siblings stand. At temperature 0 there is no noise: "rsd-s" is then "top-k".

Whether a drawn node is there must not depend on its own token (``laws.DraftLaws``), so its confidence, by which levels are counted
and growth ends, is computed from the law and the node's place among its siblings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt

import numpy as np

from hasten.core.config import GAMMA
from hasten.core.errors import ConfigError
from hasten.core.types import ROOT, DraftTree, Sequence
from hasten.draft.base import DraftBudget
from hasten.sampling.draws import Beam, Candidate, draw_without_replacement, keep_best
from hasten.sampling.guess import Guess
from hasten.sampling.laws import DraftLaws, Law

TREES = ("chain", "rsd-c", "rsd-s", "top-k")
MOST_CHILDREN = 64
LEAST_BOUND = 0.05


@dataclass(frozen=True, slots=True)
class Shape:
    """``width`` is used by all but "rsd-c", which uses ``branching``, and 1 below its end. Raises ConfigError."""

    tree: str = "chain"
    width: int = 3
    branching: tuple[int, ...] = (2, 2)

    def __post_init__(self) -> None:
        if self.tree not in TREES:
            raise ConfigError(f"tree of a draft model must be one of {', '.join(TREES)}, not {self.tree!r}.")
        object.__setattr__(self, "branching", tuple(self.branching) if isinstance(self.branching, list | tuple) else ())
        for name, counts in (("width", (self.width,)), ("branching", self.branching)):
            if not counts or not all(type(count) is int and 1 <= count <= MOST_CHILDREN for count in counts):
                raise ConfigError(f"{name} of a draft model must be made of whole numbers from 1 to {MOST_CHILDREN}.")

    @property
    def linear(self) -> bool:
        return self.tree == "chain"

    def children(self, level: int) -> int:
        """How many children of a node on that level (0: the root) to look for."""
        if self.tree != "rsd-c":
            return self.width
        return self.branching[level] if level < len(self.branching) else 1

    def keep(self, beams: list[Beam], found: list[list[Guess]], noisy: bool) -> list[Candidate]:
        """The next level, in the order of the tree's nodes: siblings stand in the order in which they were found."""
        if self.tree == "rsd-s" and noisy:
            return keep_best(beams, found, self.width)
        out = [
            Candidate(parent, guess.token, beam.log_probability + guess.log_probability, guess.score)
            for parent, (beam, guesses) in enumerate(zip(beams, found, strict=True))
            for guess in guesses
        ]
        if self.tree in ("rsd-s", "top-k"):
            out = sorted(out, key=lambda candidate: -candidate.log_probability)[: self.width]
        return out


@dataclass(slots=True)
class Growing:
    """One sequence's tree while it is drafted. ``frontier`` are the nodes that are drafted on next, of ``level`` (0: the root);
    ``drawn`` says that children are drawn by chance, and ``laws`` from what."""

    sequence: Sequence
    budget: DraftBudget
    shape: Shape
    drafter: str
    drawn: bool
    tree: DraftTree = field(default_factory=DraftTree)
    laws: DraftLaws = field(default_factory=DraftLaws)
    frontier: list[Beam] = field(default_factory=lambda: [Beam()])
    level: int = 0
    unsure: bool = False  # the next level has more entropy than the budget allows
    _survivals: dict[int, float] = field(default_factory=lambda: {ROOT: 1.0})

    @property
    def noisy(self) -> bool:
        return self.shape.tree != "top-k" and not self.sequence.params.greedy

    def path(self, node: int) -> list[int]:
        """The tokens down to a node."""
        return [self.tree.tokens[above] for above in self.tree.path(node)]

    def draw(self, node: int, law: Law) -> list[Guess]:
        """Children of ``node`` drawn from ``law``, for verification by rejection."""
        self.laws.at[node] = law
        count = self.shape.children(self.level)
        drawn = draw_without_replacement(law, count, self.sequence.seed, len(self.sequence.tokens), node)
        chances = chances_of_draws(law, len(drawn))
        return [
            Guess(child.token, child.log_probability, child.score, chance) for child, chance in zip(drawn, chances, strict=True)
        ]

    def add_level(self, found: list[list[Guess]]) -> None:
        """Hang the children that stay below the frontier, and go one level down."""
        confidences = {(parent, guess.token): guess.confidence for parent, each in enumerate(found) for guess in each}
        below: list[Beam] = []
        for candidate in self.shape.keep(self.frontier, found, self.noisy):
            if len(self.tree) >= self.budget.nodes:
                break
            parent = self.frontier[candidate.parent].node
            confidence = confidences[candidate.parent, candidate.token]
            node = self.tree.add(parent, candidate.token, confidence, self.drafter)
            if self.drawn:
                self.laws.drawn.add(node)
            self._survivals[node] = self._survivals[parent] * self.budget.calibrated(confidence)
            below.append(Beam(node, candidate.log_probability, candidate.score))
        self.frontier = below[:1] if self.shape.linear else below
        self.level += 1

    @property
    def continues(self) -> bool:
        """Whether another level may pay; the context's end is not looked at."""
        return (
            bool(self.frontier)
            and not self.unsure
            and self.level < self.budget.depth
            and len(self.tree) < self.budget.nodes
            and max(self._survivals[beam.node] for beam in self.frontier) >= self.budget.minimum_survival
        )


def chances_of_draws(law: Law, count: int) -> list[float]:
    """Estimates of P(accepted) of the first ``count`` draws from a law: AdaEDL's lower bound of the first one's, and of each
    further one as if it were as good where the earlier ones failed."""
    masses = law.masses[law.masses > 0]
    entropy = float(-(masses * np.log(masses)).sum())
    first = max(LEAST_BOUND, 1.0 - sqrt(max(0.0, GAMMA * entropy)))
    return [first * (1.0 - first) ** rank for rank in range(count)]
