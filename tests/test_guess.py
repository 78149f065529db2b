"""What a draft proposes: its first guess is the choice of plain decoding, the others are distinct, in order, with sane odds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.errors import ModelError
from hasten.core.types import SamplingParams
from hasten.sampling import guess
from hasten.sampling.choose import choose_row
from hasten.sampling.filters import History
from hasten.sampling.guess import guesses as guesses_of
from hasten.sampling.noise import noise_of

PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 1.0},
    "cold": {"temperature": 0.05},
    "hot": {"temperature": 2.0},
    "top_k": {"temperature": 0.8, "top_k": 5},
    "top_k 1": {"temperature": 0.8, "top_k": 1},
    "top_p": {"temperature": 1.0, "top_p": 0.7},
    "top_p 0": {"temperature": 1.0, "top_p": 0.0},
    "min_p": {"temperature": 1.3, "min_p": 0.1},
    "all filters": {"temperature": 1.1, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    "penalties": {"temperature": 0.9, "repetition_penalty": 1.7, "presence_penalty": 0.8, "frequency_penalty": 0.5},
    "greedy penalties": {"temperature": 0.0, "repetition_penalty": 2.0, "frequency_penalty": 1.5},
    "bias": {"temperature": 0.7, "logit_bias": {3: 6.0, 17: -100.0, 40: 100.0}},
}


def choose_several(*arguments: Any, **named: Any) -> list[tuple[int, float]]:
    """Guesses as pairs of token and confidence."""
    return [(guess.token, guess.confidence) for guess in guesses_of(*arguments, **named)]


def row_of(seed: int, size: int, sharpness: float) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * sharpness


def params_of(name: str) -> SamplingParams:
    return SamplingParams(**PARAMS[name])


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize("size", [50, 3000])
def test_the_first_is_the_choice_of_plain_decoding(name: str, size: int) -> None:
    params = params_of(name)
    history = History([1, 2, 3, 3], [5, 5, 17, 40])
    for seed in range(12):
        for sharpness in (0.0, 0.5, 4.0, 30.0):
            row = row_of(seed, size, sharpness)
            guesses = choose_several(row, params, seed, 7, 4, history=history, vocabulary_size=size - 3)
            plain = choose_row(row, params, seed, 7, history, vocabulary_size=size - 3)
            assert guesses[0][0] == plain
            check_sane(guesses, 4, size - 3)


def check_sane(guesses: list[tuple[int, float]], count: int, size: int) -> None:
    tokens, confidences = [token for token, _ in guesses], [confidence for _, confidence in guesses]
    assert 1 <= len(guesses) <= count
    assert len(set(tokens)) == len(tokens)
    assert all(0 <= token < size for token in tokens)
    assert all(0.0 <= confidence <= 1.0 for confidence in confidences)
    assert sum(confidences) <= 1.0 + 1e-9
    assert confidences == sorted(confidences, reverse=True)


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0, 1.7])
def test_runners_up_are_those_of_scoring_every_token(temperature: float) -> None:
    params = SamplingParams(temperature=temperature)
    for seed in range(40):
        row = row_of(seed, 200, 2.0).double()
        scores = row / (temperature or 1.0)
        if temperature:
            scores = scores + torch.from_numpy(noise_of(seed, 11, np.arange(200)))
        near = row >= row.max() - 10.0 * (temperature or 1.0)
        scores[~near] = -torch.inf
        best = torch.argsort(scores, descending=True, stable=True)[:4].tolist()
        odds = torch.softmax(scores, 0)
        guesses = choose_several(row, params, seed, 11, 4)
        assert [token for token, _ in guesses] == best
        assert [confidence for _, confidence in guesses] == pytest.approx([float(odds[token]) for token in best], abs=1e-9)


def test_filters_leave_out_what_can_never_be_drawn() -> None:
    row = row_of(1, 300, 2.0)
    for seed in range(30):
        guesses = choose_several(row, SamplingParams(temperature=1.5, top_k=2), seed, 0, 8)
        assert {token for token, _ in guesses} <= set(torch.topk(row, 2).indices.tolist())


def test_ties_go_to_the_lowest_id() -> None:
    assert [token for token, _ in choose_several(torch.zeros(9), SamplingParams(temperature=0.0), 0, 0, 3)] == [0, 1, 2]


def test_one_guess_is_one_guess() -> None:
    for name in PARAMS:
        if "penalties" not in name:
            assert len(choose_several(row_of(0, 60, 1.0), params_of(name), 0, 0, 1)) == 1


def test_only_possible_tokens_are_guessed() -> None:
    row = torch.full((40,), -torch.inf)
    row[[4, 9]] = torch.tensor([1.0, 2.0])
    assert [token for token, _ in choose_several(row, SamplingParams(temperature=0.0), 0, 0, 5)] == [9, 4]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(PARAMS)),
    st.integers(0, 2**32),
    st.sets(st.integers(0, 119), min_size=1, max_size=119),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.randoms(use_true_random=False),
)
def test_part_of_a_vocabulary_is_the_whole_one_with_the_rest_forbidden(
    name: str, seed: int, kept: set[int], dtype: torch.dtype, randomness: Any
) -> None:
    """Noise, history and bias go by true ids, in whatever order the ids stand."""
    row, params = row_of(seed % 1000, 120, 3.0).to(dtype), params_of(name)
    history = History([1, 2, 3, 3], [5, 5, 17, 40])
    ids = sorted(kept)
    randomness.shuffle(ids)
    given_ids = np.array(ids, np.int64)
    allowed = torch.zeros(120, dtype=torch.bool)
    allowed[ids] = True
    if not allowed[:110].any():
        with pytest.raises(ModelError):
            choose_several(row[ids], params, seed, 5, 3, history=history, vocabulary_size=110, ids=given_ids)
        return
    guesses = choose_several(row[ids], params, seed, 5, 3, history=history, vocabulary_size=110, ids=given_ids)
    assert guesses[0][0] == choose_row(row, params, seed, 5, history, allowed, 110)
    assert {token for token, _ in guesses} <= kept
    check_sane(guesses, 3, 110)


@pytest.mark.parametrize("name", ["greedy", "plain", "cold", "hot", "penalties", "bias"])
def test_a_choice_that_is_kept_is_chosen_again(name: str) -> None:
    """The coupling of a trimmed draft: where the whole draft's choice is among the ids, the trimmed one's is the same."""
    params, history, agreed = params_of(name), History([1, 2], [5, 40]), 0
    for seed in range(120):
        row = row_of(seed, 400, 2.5)
        ids = np.sort(np.random.default_rng(seed).choice(400, 200, replace=False))
        whole = choose_several(row, params, seed, 3, 3, history=history)
        part = choose_several(row[torch.from_numpy(ids)], params, seed, 3, 3, history=history, ids=ids)
        if whole[0][0] in ids:
            assert part[0][0] == whole[0][0]
            agreed += 1
        if all(token in ids for token, _ in whole):
            assert [token for token, _ in part] == [token for token, _ in whole]
    assert agreed > 30


def test_noise_of_places_instead_of_ids_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant that these tests are there for: a trimmed row taken as if its places were ids."""
    places = guess._places
    monkeypatch.setattr(guess, "_places", lambda *arguments: (places(*arguments)[0], None))
    with pytest.raises(AssertionError):
        test_a_choice_that_is_kept_is_chosen_again("plain")


def test_all_ids_are_the_whole_vocabulary() -> None:
    row = row_of(5, 500, 2.0)
    for name in PARAMS:
        history = History([1, 2, 3], [4])
        whole = choose_several(row, params_of(name), 9, 1, 4, history=history, vocabulary_size=480)
        assert choose_several(row, params_of(name), 9, 1, 4, history=history, vocabulary_size=480, ids=np.arange(500)) == whole


def test_a_damaged_row_is_an_error() -> None:
    row = row_of(0, 10, 1.0)
    row[4] = torch.nan
    for ids in (None, np.arange(10)):
        with pytest.raises(ModelError, match="NaN"):
            choose_several(row, SamplingParams(), 0, 0, 2, ids=ids)
