"""Sampling parameters as a value: what may be given, what is kept of it, and that it stays as it is."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from hasten.core.errors import InvalidRequest
from hasten.core.types import SamplingParams


def test_numbers_of_other_libraries_are_taken_as_python_s_own() -> None:
    given = SamplingParams(
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        top_p=Fraction(1, 2),  # type: ignore[arg-type]
        top_k=np.int64(3),  # type: ignore[arg-type]
        seed=np.uint64(2**64 - 1),  # type: ignore[arg-type]
        max_tokens=torch.tensor(7),  # type: ignore[arg-type]
        n=np.int8(2),  # type: ignore[arg-type]
        logprobs=np.int32(1),  # type: ignore[arg-type]
        stop_token_ids=[np.int64(4)],  # type: ignore[list-item]
        logit_bias={np.int64(5): np.float16(1.5)},  # type: ignore[dict-item]
    )
    own = SamplingParams(
        temperature=0.5,
        top_p=0.5,
        top_k=3,
        seed=2**64 - 1,
        max_tokens=7,
        n=2,
        logprobs=1,
        stop_token_ids=[4],
        logit_bias={5: 1.5},
    )
    assert repr(given) == repr(own)
    assert json.loads(json.dumps(asdict(given)))["logit_bias"] == {"5": 1.5}


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "seed", "max_tokens", "n", "logprobs", "frequency_penalty"])
@pytest.mark.parametrize("value", [True, np.bool_(True), "1", np.array([1, 2]), torch.tensor([1.5]), float("nan"), 10**400, [1]])
def test_what_is_no_number_is_refused_in_one_sentence(name: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=rf"^{name} must be a .*, not .*\.$"):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [{True: 1.0}, {1: True}, {1: float("nan")}, {1: 101.0}, {"a": 1.0}, {-1: 1.0}])
def test_a_bias_that_is_none_is_refused(bias: dict[int, float]) -> None:
    with pytest.raises(InvalidRequest, match=r"^each logit_bias"):
        SamplingParams(logit_bias=bias)


def test_a_bias_stays_as_it_was_checked() -> None:
    bias = {5: 1.0}
    params = SamplingParams(logit_bias=bias)
    bias[5] = float("nan")
    assert params.logit_bias == {5: 1.0}
    assert params == SamplingParams(logit_bias={5: 1.0}) != SamplingParams(logit_bias={5: 2.0})
    kept: dict[int, float] = params.logit_bias  # type: ignore[assignment]
    for change in (lambda: kept.update({5: 2.0}), lambda: kept.pop(5), kept.clear, lambda: kept.__setitem__(5, 2.0)):
        with pytest.raises(TypeError, match=r"^SamplingParams cannot be changed; make others with dataclasses\.replace\.$"):
            change()


def test_parameters_are_a_value() -> None:
    params = SamplingParams(logit_bias={5: 1.0, 3: -1.0}, stop=["a"], seed=1)
    same = SamplingParams(logit_bias={3: -1.0, 5: 1.0}, stop="a", seed=1)
    assert {params: 1}[same] == 1
    for made in (pickle.loads(pickle.dumps(params)), copy.deepcopy(params), replace(params), replace(params, stop=("a",))):
        assert made == params
        assert hash(made) == hash(params)
        assert made.logit_bias == {5: 1.0, 3: -1.0}


USER = """
from dataclasses import replace
from hasten.core.types import SamplingParams
params = SamplingParams(stop="x")
params = SamplingParams(stop=["a"], stop_token_ids=[2])
params = replace(params, stop="y", stop_token_ids=(1,))
stops: tuple[str, ...] = params.stop
ids: tuple[int, ...] = params.stop_token_ids
"""


@pytest.mark.slow
def test_a_user_s_type_checker_takes_what_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = pytest.importorskip("mypy.api")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user.py").write_text(USER, encoding="utf-8")
    said, problems, status = api.run(["--strict", "--cache-dir", "cache", "user.py"])
    assert (status, problems) == (0, ""), said
    (tmp_path / "user.py").write_text(USER + "SamplingParams(stop=5)\nparams.stop = stops\n", encoding="utf-8")
    said, problems, status = api.run(["--strict", "--cache-dir", "cache", "user.py"])
    assert status == 1
    assert [line.split(":")[1] for line in said.splitlines() if " error: " in line] == ["9", "10"]
