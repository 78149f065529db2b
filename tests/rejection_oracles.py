"""Rejection rules written out plainly, and chance by enumeration: every outcome of an experiment with its exact probability."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from itertools import pairwise, product
from typing import Any

import numpy as np

from hasten.core.types import ROOT, DraftTree
from hasten.sampling.laws import DraftLaws, Law
from hasten.sampling.rejection import Rule, decide

Path = tuple[int, ...]
Conditional = Callable[[Path], Sequence[Fraction]]
Outcome = tuple[DraftTree, list[int], int | None]
ONE = Fraction(1)

TOKENWISE_FLAWS = [
    "residual is the target",
    "residual is the target without the token",
    "residual not normalised",
    "draft law not normalised",
    "draft law not emptied",
    "siblings reversed",
    "drops unlikely drafts",
    "bonus from the parent",
    "bonus from the next row",
]
TRAVERSAL_FLAWS = [
    "weight stays",
    "weight not capped",
    "residual without weight",
    "decides on the way down",
    "draft law not emptied",
    "siblings reversed",
    "bonus from the parent",
]


@dataclass
class Chances:
    """One run of an experiment. A uniform number is known by its key, and only as well as was asked: each question splits the
    interval it lies in, so a number that is used twice gives answers that agree with each other."""

    script: list[int]
    probability: Fraction = ONE
    taken: list[tuple[int, int]] = field(default_factory=list)  # branch taken, branches there were
    known: dict[Any, tuple[Fraction, Fraction]] = field(default_factory=dict)

    def below(self, key: Any, mass: Any, of: Any) -> bool:
        return self._split(key, [min(ONE, Fraction(mass) / of)] if mass < of else [ONE]) == 0

    def pick(self, key: Any, masses: Iterable[Any]) -> int:
        whole = np.cumsum(np.array([Fraction(mass) for mass in masses], object))
        return self._split(key, [part / whole[-1] for part in whole])

    def _split(self, key: Any, borders: list[Fraction]) -> int:
        """Which of the cells that end at ``borders`` (and the rest, up to 1) the number lies in."""
        low, high = self.known.get(key, (Fraction(0), ONE))
        edges = [Fraction(0), *borders, ONE]
        cells = [(at, max(low, a), min(high, b)) for at, (a, b) in enumerate(pairwise(edges))]
        cells = [cell for cell in cells if cell[1] < cell[2]]
        step = len(self.taken)
        branch = self.script[step] if step < len(self.script) else 0
        if len(cells) > 1:
            self.taken.append((branch, len(cells)))
        else:
            branch = 0
        at, a, b = cells[branch]
        self.probability *= (b - a) / (high - low)
        self.known[key] = (a, b)
        return at


def enumerate_law(experiment: Callable[[Chances], Any]) -> dict[Any, Fraction]:
    """The exact law of an experiment's result."""
    law: dict[Any, Fraction] = {}
    script: list[int] | None = []
    while script is not None:
        run = Chances(script)
        result = experiment(run)
        law[result] = law.get(result, Fraction(0)) + run.probability
        taken = run.taken
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken.pop()
        script = [branch for branch, _ in taken[:-1]] + [taken[-1][0] + 1] if taken else None
    assert sum(law.values()) == 1
    return law


@dataclass
class ScriptedCoins:
    """``draws.Coins`` of one round. ``flaw`` uses a coin for two things."""

    chances: Chances
    round: Any = 0
    flaw: str = ""
    tree: DraftTree = field(default_factory=DraftTree)

    def below(self, node: int, mass: Any, of: Any) -> bool:
        key: Any = ("accept", self.round, node)
        if self.flaw == "one coin for all nodes":
            key = ("accept", self.round)
        elif self.flaw == "coin of the draw":
            siblings = [other for other in range(node) if self.tree.parents[other] == self.tree.parents[node]]
            key = ("draw", self.round, self.tree.parents[node], len(siblings))
        elif self.flaw == "coins of positions":
            key = ("accept", self.round + len(self.tree.path(node)))
        return self.chances.below(key, mass, of)

    def pick(self, masses: Iterable[Any]) -> int:
        key: Any = ("emit", self.round)
        return self.chances.pick(("accept", self.round, 0) if self.flaw == "token picked with a coin" else key, masses)


COIN_FLAWS = ["one coin for all nodes", "coin of the draw", "token picked with a coin"]


def law_of(masses: Sequence[Fraction]) -> Law:
    return Law(np.arange(len(masses)), np.array(list(masses), object))


def random_conditional(key: int, vocabulary: int, zeros: bool = False) -> Conditional:
    """A law after every path: small fractions, some of them 0 if wanted."""

    @cache
    def after(path: Path) -> tuple[Fraction, ...]:
        random = np.random.default_rng([key, len(path), *path])
        parts = [int(part) for part in random.integers(0 if zeros else 1, 6, vocabulary)]
        parts[int(random.integers(vocabulary))] += 1
        return tuple(Fraction(part, sum(parts)) for part in parts)

    return after


Shape = tuple[Any, ...]
"""The shapes of the children of a node."""


def all_shapes(nodes: int, width: int) -> list[Shape]:
    """Every ordered tree below a root with exactly ``nodes`` nodes and at most ``width`` children a node."""
    if nodes == 0:
        return [()]
    if width == 0:
        return []
    return [
        (first, *rest)
        for below in range(nodes)
        for first in all_shapes(below, MOST_WIDE)
        for rest in all_shapes(nodes - 1 - below, width - 1)
    ]


MOST_WIDE = 3


def level_shape(widths: Sequence[int]) -> Shape:
    return (level_shape(widths[1:]),) * widths[0] if widths else ()


def draw_tree(
    chances: Chances, draft: Conditional, shape: Shape, before: Path = (), round: Any = 0, replacement: bool = False
) -> tuple[DraftTree, DraftLaws]:
    """A tree of that shape whose every child is drawn from ``draft``; fewer children where the law has no more."""
    tree, laws = DraftTree(), DraftLaws(replacement=replacement)

    def grow(node: int, path: Path, shape: Shape) -> None:
        if not shape:
            return
        masses = list(draft(before + path))
        laws.at[node] = law_of(masses)
        for rank, below in enumerate(shape):
            if sum(masses) == 0:
                return
            token = chances.pick(("draw", round, node, rank), masses)
            masses[token] *= replacement
            tree.tokens.append(token)
            tree.parents.append(node)
            tree.scores.append(0.5)
            tree.drafters.append("test")
            laws.drawn.add(len(tree) - 1)
            grow(len(tree) - 1, (*path, token), below)

    grow(ROOT, (), shape)
    return tree, laws


def path_tokens(tree: DraftTree, node: int) -> Path:
    return tuple(tree.tokens[above] for above in tree.path(node))


def target_of(tree: DraftTree, target: Conditional, before: Path = ()) -> Callable[[int], Law]:
    return lambda node: law_of(target(before + path_tokens(tree, node)))


def joint(target: Conditional, length: int) -> dict[Path, Fraction]:
    """The target's law of the next ``length`` tokens."""
    out: dict[Path, Fraction] = {(): ONE}
    for _ in range(length):
        out = {(*path, x): p * mass for path, p in out.items() for x, mass in enumerate(target(path)) if p * mass}
    return out


def continued(law: dict[Path, Fraction], target: Conditional, length: int) -> dict[Path, Fraction]:
    """The law of ``length`` tokens when shorter results go on as the target does."""
    out: dict[Path, Fraction] = {}
    for tokens, probability in law.items():
        for rest in product(range(len(target(()))), repeat=length - len(tokens)):
            p = probability
            for at, x in enumerate(rest):
                p *= target(tokens + rest[:at])[x]
            if p:
                out[tokens + rest] = out.get(tokens + rest, Fraction(0)) + p
    return out


def _normalised(masses: dict[int, Any]) -> dict[int, Any]:
    total = sum(masses.values())
    return {x: mass / total for x, mass in masses.items()} if total > 0 else masses


def _children(tree: DraftTree, laws: DraftLaws, node: int, flaw: str) -> tuple[list[int], dict[int, Any]]:
    """The children in the order in which they are tried, and the law that the drawn ones come from."""
    children = [child for child in range(len(tree)) if tree.parents[child] == node]
    certain = [child for child in children if child not in laws.drawn]
    drawn = [child for child in children if child in laws.drawn]
    law = laws.at.get(node)
    q = {} if law is None else dict(zip(law.ids.tolist(), law.masses, strict=True))
    q = _normalised({x: 0 if x in [tree.tokens[child] for child in certain] else mass for x, mass in q.items()})
    if flaw == "siblings reversed":
        drawn.reverse()
    if flaw == "drops unlikely drafts":
        drawn = [child for child in drawn if q[tree.tokens[child]] * 2 > max(q.values())]
    return drawn + certain, q


def _after(q: dict[int, Any], token: int, replacement: bool, flaw: str) -> dict[int, Any]:
    """The law of the next draw."""
    if replacement or flaw == "draft law not emptied":
        return q
    rest = {x: 0 if x == token else mass for x, mass in q.items()}
    return rest if flaw == "draft law not normalised" else _normalised(rest)


def plain_tokenwise(
    tree: DraftTree, laws: DraftLaws, target: Callable[[int], Law], coins: Any, flaw: str = ""
) -> tuple[list[int], int]:
    node = ROOT
    while True:
        row = target(node)
        p = dict(zip(row.ids.tolist(), row.masses, strict=True))
        children, q = _children(tree, laws, node, flaw)
        for child in children:
            x = tree.tokens[child]
            proposal = q if child in laws.drawn else {x: 1}
            if coins.below(child, p.get(x, 0), proposal[x]):
                node = child
                break
            residual = {y: max(mass - proposal.get(y, 0), 0) for y, mass in p.items()}
            if flaw == "residual is the target":
                residual = p
            elif flaw == "residual is the target without the token":
                residual = {y: 0 if y == x else mass for y, mass in p.items()}
            p = residual if flaw == "residual not normalised" or sum(residual.values()) == 0 else _normalised(residual)
            if child in laws.drawn:
                q = _after(q, x, laws.replacement, flaw)
        else:
            if flaw == "bonus from the parent" and node != ROOT and not children:
                p = dict(enumerate(target(tree.parents[node]).masses))
            if flaw == "bonus from the next row" and not children:
                p = dict(enumerate(target(min(node + 1, len(tree) - 1)).masses))
            return tree.path(node), list(p)[coins.pick(p.values())]


def plain_traversal(
    tree: DraftTree, laws: DraftLaws, target: Callable[[int], Law], coins: Any, flaw: str = ""
) -> tuple[list[int], int]:
    def visit(node: int, weight: Any) -> tuple[list[int], int] | None:
        row = target(node)
        p = dict(zip(row.ids.tolist(), row.masses, strict=True))
        children, q = _children(tree, laws, node, flaw)
        if flaw == "decides on the way down" and node != ROOT and not coins.below(node, weight, 1):
            return None
        for child in children:
            x = tree.tokens[child]
            proposal = q if child in laws.drawn else {x: 1}
            ratio = weight * p.get(x, 0) / proposal[x]
            found = visit(child, ratio if flaw == "weight not capped" else min(1, ratio))
            if found is not None:
                return found
            share = 1 if flaw == "residual without weight" else weight
            residual = {y: max(share * mass - proposal.get(y, 0), 0) for y, mass in p.items()}
            total = sum(residual.values())
            p = _normalised(residual) if total > 0 else p
            if flaw != "weight stays":
                weight = total / (total + 1 - weight) if total + 1 - weight > 0 else 1
            if child in laws.drawn:
                q = _after(q, x, laws.replacement, flaw)
        if node == ROOT or flaw == "decides on the way down" or coins.below(node, weight, 1):
            if flaw == "bonus from the parent" and node != ROOT and not children:
                p = dict(enumerate(target(tree.parents[node]).masses))
            return tree.path(node), list(p)[coins.pick(p.values())]
        return None

    found = visit(ROOT, 1)
    assert found is not None
    return found


def plain_block(tree: DraftTree, laws: DraftLaws, target: Callable[[int], Law], coins: Any) -> tuple[list[int], int]:
    """Block verification (2403.10444) of a chain, as the paper writes it: all weights first, then from the end."""
    size = len(tree)
    p = [target(node).masses for node in range(-1, size)]  # p[i]: after i tokens
    q = [laws.at[node].masses for node in range(-1, size - 1)]
    weights: list[Any] = [ONE]
    for i, x in enumerate(tree.tokens):
        weights.append(min(ONE, weights[-1] * p[i][x] / q[i][x]))
    residuals = [np.maximum(weights[i] * p[i] - q[i], 0) for i in range(size)] + [p[size]]
    kept = 0
    for i in range(size, 0, -1):
        whole = residuals[i].sum() + 1 - weights[i]
        threshold = weights[i] if i == size else residuals[i].sum() / whole if whole else ONE
        if coins.below(i - 1, threshold, 1):
            kept = i
            break
    return list(range(kept)), coins.pick(residuals[kept])


TARGET = (Fraction(4, 10), Fraction(3, 10), Fraction(2, 10), Fraction(1, 10))
DRAFT = (Fraction(1, 10), Fraction(1, 10), Fraction(3, 10), Fraction(5, 10))
PLAIN = {"tokenwise": plain_tokenwise, "traversal": plain_traversal}


def binary(root: Any, *others: Any) -> Conditional:
    """Laws of two tokens from P(0) after (), 0, 1, 00, 01, 10, 11."""
    paths: list[Path] = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)]
    first = dict(zip(paths, (root, *others), strict=False))
    return lambda path: (Fraction(first[path]), ONE - Fraction(first[path]))


BINARY_TARGET = binary(
    Fraction(3, 10), Fraction(6, 10), Fraction(2, 10), Fraction(1, 2), Fraction(1, 4), Fraction(9, 10), Fraction(1, 3)
)
BINARY_DRAFT = binary(Fraction(6, 10), Fraction(1, 10), Fraction(5, 10))


def run(
    chances: Chances,
    rule: Rule,
    target: Conditional,
    tree: DraftTree,
    laws: DraftLaws,
    flaw: str = "",
    before: Path = (),
    round: Any = 0,
) -> tuple[list[int], Path]:
    """One round: accepted nodes and tokens. Without a flaw of its own, the plain rule must agree on the same coins."""
    rows = target_of(tree, target, before)
    coins = ScriptedCoins(chances, round, flaw, tree)
    if flaw and flaw not in COIN_FLAWS:
        path, token = PLAIN[rule](tree, laws, rows, coins, flaw)
    else:
        path, token = decide(tree, laws, rows, coins, rule)
        if not flaw:
            assert PLAIN[rule](tree, laws, rows, coins) == (path, token)
    return path, (*(tree.tokens[node] for node in path), token)


def drafted(
    rule: Rule, target: Conditional, draft: Conditional, shape: Shape, flaw: str = "", replacement: bool = False
) -> tuple[dict[Path, Fraction], Fraction]:
    """The law of a round's tokens, and the expected number that are accepted."""

    def experiment(chances: Chances) -> Path:
        tree, laws = draw_tree(chances, draft, shape, replacement=replacement)
        return run(chances, rule, target, tree, laws, flaw)[1]

    law = enumerate_law(experiment)
    return law, sum((p * (len(tokens) - 1) for tokens, p in law.items()), Fraction(0))


def is_exact(law: dict[Path, Fraction], target: Conditional, length: int) -> bool:
    return continued(law, target, length) == joint(target, length)


def flat(masses: Sequence[Fraction]) -> Conditional:
    return lambda path: masses
