"""The law of what is chosen: chi-square tests against probabilities worked out on paper's terms, at alpha 1e-4, fixed seeds.

Each test is run on a plain copy of the sampler too, once without a flaw (it must pass, and agree with the real one draw by
draw) and once with each of several deliberate flaws (it must fail), so that a pass means something.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from hasten.core.types import ROOT, DraftTree, SamplingParams
from hasten.sampling import noise
from hasten.sampling.choose import choose_row
from hasten.sampling.filters import History
from hasten.sampling.verify import verify_tree

ALPHA = 1e-4
DRAWS = 8_000
ROW = np.array([1.5, 0.25, 2.0, 0.25, -1.0, 1.25, -4.0])
PROMPT, OUTPUT = [1, 2], [2, 5, 5]

CASES: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 1.0},
    "cool": {"temperature": 0.6},
    "hot": {"temperature": 3.0},
    "top-k with a tie at the border": {"temperature": 1.0, "top_k": 4},
    "top-p": {"temperature": 1.0, "top_p": 0.8},
    "top-p of top-k": {"temperature": 1.0, "top_k": 3, "top_p": 0.75},
    "top-p, then min-p": {"temperature": 1.5, "top_p": 0.7, "min_p": 0.42},
    "min-p": {"temperature": 1.0, "min_p": 0.3},
    "penalties and bias": {
        "temperature": 0.8,
        "repetition_penalty": 1.4,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.3,
        "logit_bias": {4: 2.5},
    },
}


def paper_law(params: SamplingParams, row: np.ndarray = ROW, flaw: str = "") -> np.ndarray:
    """Probabilities from the definitions, in plain Python; ``flaw`` breaks one of them."""
    values = row.tolist()
    for token in set(PROMPT + OUTPUT):
        count = OUTPUT.count(token) + (PROMPT.count(token) if flaw == "prompt counts as output" else 0)
        values[token] *= params.repetition_penalty if values[token] < 0 else 1 / params.repetition_penalty
        values[token] -= params.frequency_penalty * count + (params.presence_penalty if count else 0.0)
    for token, bias in params.logit_bias.items():
        values[token] += bias
    left = sorted(range(len(values)), key=lambda i: (-values[i], i))
    weight = [math.exp((v - max(values)) / params.temperature) for v in values]
    if params.min_p and flaw == "min-p first":
        left = [i for i in left if weight[i] >= params.min_p]
    everything = sum(weight)
    if params.top_k:
        kth = values[left[params.top_k - 1]]
        left = [i for i in left if values[i] >= kth] if flaw == "top-k keeps ties" else left[: params.top_k]
    if params.top_p < 1:
        whole = everything if flaw == "top-p first" else sum(weight[i] for i in left)
        size = next((n for n in range(1, len(left)) if sum(weight[i] for i in left[:n]) >= params.top_p * whole), len(left))
        left = left[: size + {"top-p too wide": 1, "top-p too narrow": -1}.get(flaw, 0)]
    if params.min_p:
        left = [i for i in left if weight[i] >= params.min_p * weight[left[0]]]
    law = np.array([weight[i] if i in left else 0.0 for i in range(len(values))])
    return law / law.sum()


def surprise(draws: np.ndarray, law: np.ndarray) -> float:
    """p-value of the draws under the law; 0 when something impossible was drawn."""
    counts = np.bincount(draws, minlength=len(law))
    if counts[law == 0].sum():
        return 0.0
    possible = law > 0
    return 1.0 if possible.sum() == 1 else float(stats.chisquare(counts[possible], len(draws) * law[possible]).pvalue)


@cache
def real_draws(name: str) -> np.ndarray:
    params, history, row = SamplingParams(**CASES[name]), History(PROMPT, OUTPUT), torch.from_numpy(ROW)
    return np.array([choose_row(row, params, 1, position, history) for position in range(DRAWS)])


@pytest.mark.parametrize("name", CASES)
def test_law_over_positions(name: str) -> None:
    params = SamplingParams(**CASES[name])
    law = paper_law(params)
    assert surprise(real_draws(name), law) > ALPHA
    assert (law > 0).sum() > 1


def test_law_over_seeds() -> None:
    params = SamplingParams(**CASES["top-p"])
    row = torch.from_numpy(ROW)
    history = History(PROMPT, OUTPUT)
    for position in (0, 1000):
        draws = np.array([choose_row(row, params, seed, position, history) for seed in range(3000)])
        assert surprise(draws, paper_law(params)) > ALPHA
    derived = np.array([choose_row(row, params, noise.derive_seed(5, i), 7, history) for i in range(3000)])
    assert surprise(derived, paper_law(params)) > ALPHA


FILTER_FLAWS = [
    ("top-k keeps ties", "top-k with a tie at the border"),
    ("top-p too wide", "top-p"),
    ("top-p too narrow", "top-p"),
    ("top-p first", "top-p of top-k"),
    ("min-p first", "top-p, then min-p"),
    ("prompt counts as output", "penalties and bias"),
]


@pytest.mark.parametrize(("flaw", "name"), FILTER_FLAWS)
def test_a_flawed_filter_is_caught(flaw: str, name: str) -> None:
    """The real draws do not fit the law of the flawed filters, so a sampler with those filters would not fit the true law."""
    params = SamplingParams(**CASES[name])
    wrong = paper_law(params, flaw=flaw)
    assert surprise(real_draws(name), wrong) < 1e-9
    flawed_draws = np.random.default_rng(0).choice(len(wrong), DRAWS, p=wrong)
    assert surprise(flawed_draws, paper_law(params)) < 1e-9


def copied_draws(temperature: float, flaw: str, seed: int = 1, count: int = DRAWS) -> np.ndarray:
    """Gumbel-max written out, without filters; ``flaw`` breaks the noise."""
    ids = np.arange(len(ROW))
    field = np.empty((count, len(ROW)))
    for position in range(count):
        at = {"noise ignores position": 0, "noise shared by two positions": position // 2}.get(flaw, position)
        field[position] = noise.noise_of(seed, at, ids)
    if flaw == "noise ignores token":
        field[:] = field[:, :1]
    elif flaw == "noise shared by two tokens":
        field[:, 1::2] = field[:, 0:-1:2]
    elif flaw == "neighbouring positions overlap":  # token t at position p takes the noise of token t + 1 at p - 1
        field = np.stack([np.roll(field[position // 7], -(position % 7)) for position in range(count)])
    elif flaw == "normal instead of Gumbel":
        field = stats.norm.ppf(np.exp(-np.exp(-field))) * math.pi / math.sqrt(6)
    elif flaw == "reflected Gumbel":
        field = -field
    elif flaw == "coarse noise":
        field = -np.log(-np.log((np.floor(np.exp(-np.exp(-field)) * 8) + 0.5) / 8))
    if flaw == "temperature divides the noise too":
        return np.asarray(((ROW + field) / temperature).argmax(1))
    return np.asarray((ROW / temperature + field).argmax(1))


def worst(draws: np.ndarray, law: np.ndarray) -> float:
    """The least p-value of: the law of one token, and the joint law of pairs at distances 1, 2 and 7."""
    values = [surprise(draws, law)]
    merged = np.argsort(np.argsort(-law)).clip(max=3)  # rare tokens share a cell, so that pairs are common enough
    coarse = np.array([law[merged == cell].sum() for cell in range(4)])
    for lag in (1, 2, 7):
        pairs = merged[draws[:-lag]] * 4 + merged[draws[lag:]]
        values.append(surprise(pairs[:: lag + 1], np.outer(coarse, coarse).ravel()))
    return min(values)


NOISE_FLAWS = [
    "noise ignores position",
    "noise shared by two positions",
    "noise ignores token",
    "noise shared by two tokens",
    "neighbouring positions overlap",
    "normal instead of Gumbel",
    "reflected Gumbel",
    "coarse noise",
    "temperature divides the noise too",
]


@pytest.mark.parametrize("flaw", ["", *NOISE_FLAWS])
def test_joint_law_of_neighbours_and_flawed_noise(flaw: str) -> None:
    params = SamplingParams(**CASES["cool"])
    draws = copied_draws(params.temperature, flaw)
    if flaw:
        assert worst(draws, paper_law(params)) < 1e-7
    else:
        assert np.array_equal(draws, real_draws("cool"))
        assert worst(draws, paper_law(params)) > ALPHA


def test_law_of_a_large_vocabulary() -> None:
    """Where pruning is at work: thousands of tokens, most of the mass spread over the unlikely ones."""
    random = np.random.default_rng(9)
    row = np.sort(random.normal(size=6000) * 2.0)[::-1].copy()
    row[:3] = [9.0, 8.5, 8.0]
    tensor = torch.from_numpy(row)
    draws = np.array([choose_row(tensor, SamplingParams(temperature=1.0), 2, position) for position in range(4000)])
    law = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
    edges = [0, 1, 2, 3, 10, 30, 100, 300, 1000, 2500, 6000]
    cells = np.searchsorted(edges, draws, side="right") - 1
    masses = np.add.reduceat(law, edges[:-1])
    assert masses[3:].sum() > 0.3
    assert surprise(cells, masses) > ALPHA


def test_coupled_verification_keeps_the_joint_law_and_matches_drafts() -> None:
    """A draft of another law, drawn with the same noise: the output's pairs follow the target, and matches are as many as the
    formula says, 1 / sum_y max(p_y / p_x, q_y / q_x) summed over x (0.458936 for these laws)."""
    target = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64))
    draft = torch.log(torch.tensor([0.1, 0.1, 0.3, 0.5], dtype=torch.float64))
    after = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.25] * 4, [0.2, 0.2, 0.5, 0.1]]).double())
    params, rounds, matches = SamplingParams(temperature=1.0), 8_000, 0
    pairs = np.empty(rounds, np.int64)
    for seed in range(rounds):
        guess = choose_row(draft, params, seed, 10)
        tree = DraftTree()
        tree.add(ROOT, guess, 0.5, "test")
        tokens = verify_tree(tree, torch.stack([target, after[guess]]), params, seed, 10).tokens
        if len(tokens) == 1:
            tokens += verify_tree(DraftTree(), after[tokens[0]][None], params, seed, 11).tokens
        else:
            matches += 1
        pairs[seed] = tokens[0] * 4 + tokens[1]
    joint = (target.exp()[:, None] * after.exp()).numpy().ravel()
    assert surprise(pairs, joint) > ALPHA
    p, q = target.exp().numpy(), draft.exp().numpy()
    expected = sum(1 / np.maximum(p / p[x], q / q[x]).sum() for x in range(4))
    assert expected == pytest.approx(0.458936, abs=1e-6)
    assert abs(matches / rounds - expected) < 4 * math.sqrt(expected * (1 - expected) / rounds)
