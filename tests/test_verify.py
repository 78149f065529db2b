"""Coupled verification by exhaustion: for every noise and every small tree it emits what choosing one token at a time emits.

The noise is replaced by a grid small enough to enumerate: each (position, token) takes one of a few values, and every
assignment is tried. Assignments that differ only where nobody looked are tried once and counted as many. Verifiers with one
deliberate flaw each must be caught by the same enumeration.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache, partial

import numpy as np
import pytest
import torch

from hasten.core.errors import ModelError
from hasten.core.types import ROOT, DraftTree, SamplingParams, Verdict
from hasten.sampling import noise
from hasten.sampling.choose import choose_row, token_logprob
from hasten.sampling.filters import History, adjusted
from hasten.sampling.verify import verify_tree

START = 5  # position of the first token emitted
PROMPT = (1, 0)
PLAIN = SamplingParams(temperature=0.9)
PENALISED = SamplingParams(temperature=0.9, frequency_penalty=0.7, presence_penalty=0.3, repetition_penalty=1.3)
FILTERED = SamplingParams(temperature=1.3, top_p=0.75, min_p=0.05)
FLAWS = [
    "bonus from the parent",
    "bonus from the next row",
    "wrong sibling",
    "position off by one",
    "history stays at the root",
]
FLAWS += ["emits after stop", "accepts every first child"]

Grid = np.ndarray  # [positions, tokens] of 64-bit words


class Noise:
    """A grid in place of the generator; positions beyond its end are a test's own mistake."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.grid: Grid = np.zeros((0, 0), np.uint64)
        self._choices: Grid | None = None  # what a row of the grid can be, while all grids are tried
        self._read: dict[int, int] = {}  # the choice at each position that was looked at, in the order of the looks
        self._positions = 0
        patch.setattr(noise, "token_bits", lambda seed, position, tokens: self.row(position - START)[tokens])
        patch.setattr(noise, "noise_of", lambda seed, position, tokens: noise_of_row(self.row(position - START).tobytes())[tokens])

    def row(self, at: int) -> Grid:
        if self._choices is not None and at < self._positions and at not in self._read:
            self._read[at] = 0
            self.grid[at] = self._choices[0]
        return self.grid[at]

    def every(self, positions: int, vocabulary: int, levels: int, zeros: int = 0) -> Iterator[None]:
        """Every grid, followed by ``zeros`` rows of 0. A position gets its values when it is first looked at: what is done with
        one grid is a function of the values it looks at, and so the same for all ``alike`` grids, which have these in common."""
        values = (np.arange(levels) * 2 + 1).astype(np.uint64) * np.uint64(2**63 // levels)
        self._choices = values[list(itertools.product(range(levels), repeat=vocabulary))]
        self._positions, self._read = positions, {}
        self.grid = np.zeros((positions + zeros, vocabulary), np.uint64)
        tried = 0
        while True:
            yield
            tried += self.alike
            while self._read:
                at, choice = self._read.popitem()
                if choice + 1 < len(self._choices):
                    self._read[at], self.grid[at] = choice + 1, self._choices[choice + 1]
                    break
            if not self._read:
                break
        assert tried == len(self._choices) ** positions
        self._choices = None

    @property
    def alike(self) -> int:
        """How many grids have all the values in common that were looked at in the present one."""
        assert self._choices is not None
        return len(self._choices) ** (self._positions - len(self._read))


@cache
def noise_of_row(row: bytes) -> np.ndarray:
    return noise.from_bits(np.frombuffer(row, np.uint64))


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch) -> Noise:
    return Noise(monkeypatch)


@cache
def row_after(path: tuple[int, ...], vocabulary: int) -> torch.Tensor:
    """A target that looks at everything since the prompt: its logits after ``path``."""
    mixed = np.random.default_rng([len(path), *path, 77])
    return torch.from_numpy(np.round(mixed.normal(size=vocabulary) * 4) / 8)


@cache
def all_trees(most: int, vocabulary: int) -> tuple[DraftTree, ...]:
    """Every prefix tree of at most ``most`` nodes, each in one topological order."""
    seen: set[frozenset[tuple[int, ...]]] = {frozenset()}
    frontier = set(seen)
    for _ in range(most):
        larger = {paths | {(*parent, token)} for paths in frontier for parent in [(), *paths] for token in range(vocabulary)}
        frontier = {paths for paths in larger if paths not in seen}
        seen |= frontier
    return tuple(tree_of(sorted(paths, key=lambda path: (len(path), path[::-1]))) for paths in seen if len(paths) <= most)


def tree_of(paths: list[tuple[int, ...]]) -> DraftTree:
    tree, index = DraftTree(), {(): ROOT}
    for path in paths:
        index[path] = tree.add(index[path[:-1]], path[-1], 0.5, "test")
    return tree


@cache
def _rows(tokens: tuple[int, ...], parents: tuple[int, ...], before: tuple[int, ...], vocabulary: int) -> torch.Tensor:
    tree = DraftTree(list(tokens), list(parents))
    paths = [()] + [tuple(tree.tokens[n] for n in tree.path(node)) for node in range(len(tree))]
    return torch.stack([row_after(before + path, vocabulary) for path in paths])


def rows_of(tree: DraftTree, before: tuple[int, ...], vocabulary: int) -> torch.Tensor:
    return _rows(tuple(tree.tokens), tuple(tree.parents), before, vocabulary)


def one_by_one(count: int, vocabulary: int, params: SamplingParams) -> list[int]:
    out: list[int] = []
    for step in range(count):
        out.append(choose_row(row_after(tuple(out), vocabulary), params, 0, START + step, History(PROMPT, out)))
    return out


_PLAIN: dict[tuple[bytes, int, str], list[int]] = {}


def plain(grid: Noise, count: int, params: SamplingParams) -> list[int]:
    """``one_by_one`` under the present grid, remembered."""
    rows = b"".join(grid.row(at).tobytes() for at in range(count))
    key = (rows, count, repr(params))
    if key not in _PLAIN:
        _PLAIN[key] = one_by_one(count, grid.grid.shape[1], params)
    return _PLAIN[key]


def depth(tree: DraftTree) -> int:
    return max(tree.depths(), default=0)


def flawed(tree: DraftTree, rows: torch.Tensor, params: SamplingParams, position: int, history: History, flaw: str) -> Verdict:
    """A verifier written out plainly, with one flaw or (flaw "") none."""
    node, verdict = ROOT, Verdict([], [])
    while True:
        kids = [n for n in range(len(tree)) if tree.parents[n] == node]
        row = node + 1
        if flaw == "bonus from the parent" and node != ROOT and not kids:
            row = tree.parents[node] + 1
        if flaw == "bonus from the next row" and not kids:
            row = min(node + 2, len(rows) - 1)
        at = position + len(verdict.tokens) + (flaw == "position off by one" and node != ROOT)
        past = history if flaw == "history stays at the root" else history.with_path(verdict.tokens)
        token = choose_row(rows[row], params, 0, at, past)
        verdict.tokens.append(token)
        child = tree.child(node, token)
        if flaw == "wrong sibling" and child is not None:
            child = kids[-1]
        if flaw == "accepts every first child" and kids:
            child = kids[0]
        if child is None:
            if flaw == "emits after stop" and kids:
                verdict.tokens.append(tree.tokens[kids[0]])
            return verdict
        verdict.path.append(child)
        node = child


@pytest.mark.parametrize("params", [PLAIN, PENALISED, FILTERED, SamplingParams()])
def test_every_noise_and_every_tree_of_four_nodes(grid: Noise, params: SamplingParams) -> None:
    cases, lengths = 0, Counter[int]()
    for tree in all_trees(4 if params is PENALISED else 3, 2):
        rows, history = rows_of(tree, (), 2), History(PROMPT)
        for _ in grid.every(depth(tree) + 1, 2, 2):
            verdict = verify_tree(tree, rows, params, 0, START, history=history)
            assert verdict.tokens == plain(grid, len(verdict.tokens), params)
            assert [tree.tokens[node] for node in verdict.path] == verdict.tokens[:-1]
            assert [tree.parents[node] for node in verdict.path] == [ROOT, *verdict.path][: len(verdict.path)]
            last = verdict.path[-1] if verdict.path else ROOT
            assert tree.child(last, verdict.tokens[-1]) is None  # it stops only where the tree ends
            cases += grid.alike
            lengths[len(verdict.tokens)] += 1
    assert cases > 500
    assert len(lengths) >= 3 or params.greedy


def test_three_tokens_and_three_levels_of_noise(grid: Noise) -> None:
    for tree in all_trees(2, 3):
        rows = rows_of(tree, (), 3)
        for _ in grid.every(depth(tree) + 1, 3, 2):
            verdict = verify_tree(tree, rows, PLAIN, 0, START)
            assert verdict.tokens == plain(grid, len(verdict.tokens), PLAIN)
    for tree in all_trees(2, 2):
        rows = rows_of(tree, (), 2)
        for _ in grid.every(depth(tree) + 1, 2, 3):
            verdict = verify_tree(tree, rows, PENALISED, 0, START, history=History(PROMPT))
            assert verdict.tokens == plain(grid, len(verdict.tokens), PENALISED)


def test_every_tree_of_four_nodes_and_three_tokens_under_random_noise(grid: Noise) -> None:
    random = np.random.default_rng(0)
    trees = all_trees(4, 3)
    assert len(trees) == 1 + 3 + 12 + 55 + 273
    for tree in trees:
        rows = rows_of(tree, (), 3)
        for _ in range(8):
            grid.grid = random.integers(0, 2**64, (6, 3), dtype=np.uint64)
            verdict = verify_tree(tree, rows, PENALISED, 0, START, history=History(PROMPT))
            assert verdict.tokens == plain(grid, len(verdict.tokens), PENALISED)


@pytest.mark.parametrize("flaw", ["", *FLAWS])
def test_a_flawed_verifier_is_caught(grid: Noise, flaw: str) -> None:
    def wrong() -> bool:
        for tree in all_trees(3, 2):
            rows, history = rows_of(tree, (), 2), History(PROMPT)
            for _ in grid.every(depth(tree) + 1, 2, 2):
                try:
                    verdict = flawed(tree, rows, PENALISED, START, history, flaw)
                    if verdict.tokens != plain(grid, len(verdict.tokens), PENALISED):
                        return True
                except IndexError:  # asked for noise beyond the positions there are
                    return True
        return False

    assert wrong() == (flaw != "")


def law(outcomes: Counter[tuple[int, ...]]) -> dict[tuple[int, ...], Fraction]:
    return {tokens: Fraction(count, outcomes.total()) for tokens, count in outcomes.items()}


def law_of_three(
    grid: Noise, positions: int, zeros: int, draw: Callable[[list[int]], list[int]]
) -> dict[tuple[int, ...], Fraction]:
    """Of three tokens, drawn in as many rounds as it takes: what ``draw`` gives after those that are there."""
    outcomes: Counter[tuple[int, ...]] = Counter()
    for _ in grid.every(positions, 2, 2, zeros):
        out: list[int] = []
        while len(out) < 3:
            out += draw(out)
        outcomes[tuple(out[:3])] += grid.alike
    return law(outcomes)


def plain_law_of_three(grid: Noise, params: SamplingParams) -> dict[tuple[int, ...], Fraction]:
    return law_of_three(grid, 3, 0, lambda out: one_by_one(3, 2, params))


@pytest.mark.parametrize(
    ("params", "nodes"),
    [(PLAIN, 3), (PENALISED, 4), pytest.param(PLAIN, 4, marks=pytest.mark.slow)],  # without penalties all takes the same path
)
def test_joint_law_of_three_tokens_over_rounds(grid: Noise, params: SamplingParams, nodes: int) -> None:
    """Drafting the same tree again until three tokens are out: for every tree, the law of the three is the target's."""
    expected = plain_law_of_three(grid, params)
    assert sum(expected.values()) == 1
    assert len(expected) >= 4

    def drafted(out: list[int], tree: DraftTree) -> list[int]:
        rows, history = rows_of(tree, tuple(out), 2), History(PROMPT, out)
        return verify_tree(tree, rows, params, 0, START + len(out), history=history, limit=3 - len(out)).tokens

    for tree in all_trees(nodes, 2):
        assert law_of_three(grid, 3, 0, partial(drafted, tree=tree)) == expected


@pytest.mark.parametrize("flaw", ["", *FLAWS])
def test_joint_law_catches_flaws(grid: Noise, flaw: str) -> None:
    """Also a position off by one, which leaves the law of each token alone and makes neighbours depend on each other."""
    trees = [tree_of([(0,), (1,), (0, 1), (1, 0)]), tree_of([(1,), (0,), (1, 1)])]

    def drafted(out: list[int], tree: DraftTree, params: SamplingParams) -> list[int]:
        rows, history = rows_of(tree, tuple(out), 2), History(PROMPT, out)
        return flawed(tree, rows, params, START + len(out), history, flaw).tokens

    def caught() -> bool:
        for params in (PLAIN, PENALISED):
            expected = plain_law_of_three(grid, params)
            if any(law_of_three(grid, 4, 3, partial(drafted, tree=tree, params=params)) != expected for tree in trees):
                return True
        return False

    assert caught() == (flaw != "")


def random_case(random: np.random.Generator, vocabulary: int = 6) -> tuple[DraftTree, torch.Tensor]:
    tree = DraftTree()
    for _ in range(int(random.integers(0, 15))):
        tree.add(int(random.integers(-1, len(tree))), int(random.integers(0, vocabulary)), 0.5, "test")
    return tree, rows_of(tree, (), vocabulary)


def test_only_rows_on_the_path_are_read() -> None:
    random = np.random.default_rng(1)
    for seed in range(300):
        tree, rows = random_case(random)
        asked: list[int] = []

        def row(index: int, asked: list[int] = asked, rows: torch.Tensor = rows) -> torch.Tensor:
            asked.append(index)
            return rows[index]

        lazy = verify_tree(tree, row, PLAIN, seed, START)
        assert asked == [0, *(node + 1 for node in lazy.path)]
        assert lazy == verify_tree(tree, rows, PLAIN, seed, START)


def test_limit_and_stop_cut_the_same_tokens() -> None:
    random = np.random.default_rng(2)
    for seed in range(300):
        tree, rows = random_case(random)
        whole = verify_tree(tree, rows, PLAIN, seed, START)
        for limit in range(1, 7):
            cut = verify_tree(tree, rows, PLAIN, seed, START, limit=limit)
            assert cut.tokens == whole.tokens[:limit]
            assert cut.path == whole.path[: limit - 1]
        for stop in ({0}, {1, 2}, set(range(6)), {99}):
            cut = verify_tree(tree, rows, PLAIN, seed, START, stop_tokens=stop)
            at = next((i for i, token in enumerate(whole.tokens) if token in stop), len(whole.tokens) - 1)
            assert cut.tokens == whole.tokens[: at + 1]
            assert cut.path == whole.path[:at]
    with pytest.raises(AssertionError):
        verify_tree(DraftTree(), torch.zeros(1, 3), PLAIN, 0, START, limit=0)


def test_a_row_that_cannot_be_used_ends_the_round_before_it() -> None:
    """What was chosen by then stays; the last of it is nobody's guess any more, so that the next round begins there."""
    random = np.random.default_rng(5)
    ended = 0
    for seed in range(300):
        tree, rows = random_case(random)
        whole = verify_tree(tree, rows, PLAIN, seed, START)
        bad = set(random.integers(0, 15, 3).tolist())
        damaged = rows.clone()
        damaged[[node + 1 for node in bad if node < len(tree)]] = torch.nan

        def allowed_after(path: Sequence[int], bad: set[int] = bad, whole: Verdict = whole) -> None:
            assert not bad & set(whole.path[: len(path)])

        met = next((depth for depth, node in enumerate(whole.path, 1) if node in bad), len(whole.tokens))
        ended += met < len(whole.tokens)
        for cut in (
            verify_tree(tree, damaged, PLAIN, seed, START),
            verify_tree(tree, rows, PLAIN, seed, START, allowed_after=allowed_after),
        ):
            assert (cut.tokens, cut.path) == (whole.tokens[:met], whole.path[: met - 1])
    assert ended > 10
    with pytest.raises(ModelError):
        verify_tree(tree_of([(1,)]), torch.full((2, 6), torch.nan), PLAIN, 0, START)


def test_wild_draft_tokens_match_nothing() -> None:
    tree = DraftTree()
    for token in (-1, -(10**9), 10**9, 6, 2**63, 3):
        tree.add(ROOT, token, 0.9, "test")
        tree.add(len(tree) - 1, token, 0.9, "test")
    rows = torch.randn(1 + len(tree), 6, generator=torch.Generator().manual_seed(0))
    for seed in range(100):
        verdict = verify_tree(tree, rows, PENALISED, seed, START, history=History(PROMPT))
        assert all(0 <= token < 6 for token in verdict.tokens)
        assert len(verdict.tokens) == len(verdict.path) + 1
        assert len(verdict.path) == 0 or verdict.tokens[0] == 3


def test_an_empty_tree_is_plain_decoding() -> None:
    row = torch.randn(50, generator=torch.Generator().manual_seed(0))
    for seed in range(50):
        verdict = verify_tree(DraftTree(), row[None], PLAIN, seed, START)
        assert verdict.tokens == [choose_row(row, PLAIN, seed, START)]
        assert verdict.path == []
        assert verdict.logprobs == []


def test_logprobs_are_those_of_each_node_with_its_own_history() -> None:
    random = np.random.default_rng(3)
    params = SamplingParams(temperature=0.9, frequency_penalty=0.7, logprobs=3, logit_bias={1: 0.5})
    longest = 0
    for seed in range(100):
        tree, rows = random_case(random)
        verdict = verify_tree(tree, rows, params, seed, START, history=History(PROMPT))
        for i, (node, token) in enumerate(zip([ROOT, *verdict.path], verdict.tokens, strict=True)):
            values = adjusted(rows[node + 1], params, 0, History(PROMPT, verdict.tokens[:i]))
            assert verdict.logprobs[i] == token_logprob(values, token, 3)
        longest = max(longest, len(verdict.tokens))
    assert longest >= 3


def test_masks_follow_the_path() -> None:
    """A constraint that forbids repeating the token before: each node is masked by its own path."""
    random = np.random.default_rng(4)

    def allowed_after(path: tuple[int, ...] | list[int]) -> torch.Tensor | None:
        if not path:
            return None
        mask = torch.ones(6, dtype=torch.bool)
        mask[path[-1]] = False
        return mask

    longest = 0
    for seed in range(300):
        tree, rows = random_case(random)
        verdict = verify_tree(tree, rows, PLAIN, seed, START, allowed_after=allowed_after)  # type: ignore[arg-type]
        assert all(a != b for a, b in itertools.pairwise(verdict.tokens))
        out: list[int] = []
        for step in range(len(verdict.tokens)):
            out.append(choose_row(row_after(tuple(out), 6), PLAIN, seed, START + step, allowed=allowed_after(out)))
        assert verdict.tokens == out
        longest = max(longest, len(out))
    assert longest >= 3


def test_padding_of_the_vocabulary_is_never_emitted() -> None:
    rows = torch.zeros(2, 10)
    rows[:, 7:] = 50.0
    tree = tree_of([(8,)])
    for seed in range(50):
        verdict = verify_tree(tree, rows, PLAIN, seed, START, vocabulary_size=7)
        assert verdict.tokens[0] < 7
        assert verdict.path == []
