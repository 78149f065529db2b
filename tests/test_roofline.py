"""The roofline: counts against brute force over shapes, a machine found again from its own timings, monotone predictions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gguf.constants import GGMLQuantizationType

import hasten.cli.roofline as verb
from hasten.bench.hardware import DENSE, INT8, MACHINES, Machine, named
from hasten.bench.machine import step_bytes
from hasten.bench.roofline import (
    CALIBRATED,
    FORMS,
    Checked,
    best_depth,
    cache_bytes,
    check,
    expected_tokens,
    floor_seconds,
    form_of,
    idealised_seconds,
    seconds,
    solved,
    speedup,
    step_work,
    weights_of,
)
from hasten.cli.main import run
from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError
from hasten.model.description import ModelDescription
from hasten.model.loaders.gguf_source import open_gguf
from hasten.model.precision import FILE, Q4_0, Precision
from hasten.model.weights import load_decoder
from hasten.native.loader import load, status
from loader_files import write_gguf
from tiny import DESCRIPTIONS, tiny_executor

SHAPE = ModelDescription("qwen2", 151_936, 1536, 8960, 28, 12, 2, 128, 32_768, 1e-6, 1e6)
SMALL = ModelDescription("qwen2", 151_936, 896, 4864, 24, 14, 2, 64, 32_768, 1e-6, 1e6)


def test_weights_are_those_of_the_model() -> None:
    body, head = weights_of(SHAPE)
    # Qwen2.5-1.5B: 1.54e9 parameters, of them 1.31e9 outside the embedding, which is the head too.
    assert body == pytest.approx(1.31e9, rel=0.01)
    assert head == 151_936 * 1536
    weights = tiny_executor("llama").decoder.weights
    counted = sum(
        p.outputs * p.inputs for layer in weights.layers for p in (layer.qkv, layer.output, layer.mlp.gate_up, layer.mlp.down)
    )
    assert weights_of(DESCRIPTIONS["llama"]) == (counted, weights.head.outputs * weights.head.inputs)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "mistral"])
@pytest.mark.parametrize(("rows", "context"), [(1, 0), (1, 100), (7, 50), (16, 3)])
def test_attention_counts_keys_that_are_seen(kind: str, rows: int, context: int) -> None:
    """Against a count row by row. A sliding layer sees a window; the closed form may be half a row off per layer."""
    shape = DESCRIPTIONS[kind]
    sliding = shape.sliding or (False,) * shape.layers
    exact = sum(min(context + row + 1, shape.sliding_window if slides else 10**9) for slides in sliding for row in range(rows))
    work = step_work(shape, FORMS["bf16"], rows, context)
    assert work.attention / (4 * shape.heads * shape.head_dim) == pytest.approx(exact, abs=shape.layers * rows * (rows / 2 + 1))


def test_batches_read_each_cache_and_the_weights_once() -> None:
    one, eight = step_work(SHAPE, FORMS["int8"], 1, 1000), step_work(SHAPE, FORMS["int8"], 8, 1000, sequences=8)
    assert eight.weights == one.weights
    assert eight.cache == pytest.approx(8 * one.cache)
    assert eight.operations == pytest.approx(8 * one.operations)
    assert cache_bytes(SHAPE, FORMS["int8"], 1000) == 2 * 28 * 2 * 128 * 2 * 1000


def bytes_of_a_step(precision: Precision, kind: str, tied: bool, path: Path) -> tuple[float, float]:
    """Of weights, for a file of such codes: what the roofline counts, and what the kernels' own matrices have once loaded."""
    if load() is None:
        pytest.skip(f"native kernels: {status()['reason']}")
    write_gguf(path, kind=GGMLQuantizationType[kind], tied=tied)
    source = open_gguf(path)
    weights = load_decoder(source, precision, torch.device("cpu"), None).weights
    return step_work(source.description, form_of(precision.name, source), 1, 0).weights, step_bytes(weights, 0)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0"])
def test_precision_file_counts_what_a_step_reads(kind: str, tied: bool, tmp_path: Path) -> None:
    counted, read = bytes_of_a_step(FILE, kind, tied, tmp_path / "a.gguf")
    assert counted == pytest.approx(read, rel=0.02)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["F32", "Q4_0", "Q5_1", "Q8_0"])
def test_precision_q4_0_counts_what_a_step_reads(kind: str, tied: bool, tmp_path: Path) -> None:
    counted, read = bytes_of_a_step(Q4_0, kind, tied, tmp_path / "a.gguf")
    # The kernels fill up 40 outputs to 48 and 96 inputs to 128: 2 % of matrices this small.
    assert counted == pytest.approx(read, rel=0.025)


@pytest.mark.parametrize(
    ("draft", "precision", "expected"),
    [("none", "int8", None), ("suffix", "int8", None), ("auto", "int8", "q4_0"), ("auto", "bf16", "bf16"), ("lm", "int4", "q4_0"),
     ("lm(precision=int8)", "bf16", "int8"), ("suffix+lm(model='{model}')", "file", "q4_0")],
)  # fmt: skip
def test_a_draft_model_is_counted_in_the_precision_that_it_runs_in(
    draft: str, precision: str, expected: str | None, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.model.linear_file.load", lambda: object())
    named = None if "model" in draft else str(tiny_model)
    config = EngineConfig(
        model=str(tiny_model), draft=draft.format(model=tiny_model), draft_model=named, precision=precision, device="cpu"
    )
    (_, form), beside = verb.counted(config)
    assert form.precision == precision
    assert (None if beside is None else beside[1].precision) == expected


def test_precisions_without_an_account_are_refused(tiny_model: Path) -> None:
    source = open_gguf(tiny_model)
    assert form_of("int8", source) is FORMS["int8"]
    assert form_of("file", source).weight_bytes == pytest.approx(FORMS["int8"].weight_bytes), "floats become int8"
    with pytest.raises(ConfigError, match="knows the precisions int8, int4, int3, bf16, fp32, file, q4_0, not 'fp64'"):
        form_of("fp64", source)


def test_a_known_machine_gives_known_times() -> None:
    machine = Machine("test", 1e9, {DENSE: 1e12, INT8: 2e12}, 1e-3, "")
    work = step_work(SHAPE, FORMS["int8"], 1, 0)
    assert floor_seconds(work, machine) == pytest.approx(work.bytes / 1e9)
    assert seconds(work, machine) == pytest.approx(28e-3 + work.bytes / 1e9, rel=1e-3), "one row is bound by memory"
    many = step_work(SHAPE, FORMS["int8"], 100_000, 0)
    assert seconds(many, machine) >= many.linear / 2e12
    reading, answering = idealised_seconds(SHAPE, FORMS["int8"], machine, 600, 11)
    assert answering == pytest.approx(10 * seconds(step_work(SHAPE, FORMS["int8"], 1, 605), machine))
    assert reading > seconds(step_work(SHAPE, FORMS["int8"], 512, 0, logits=0), machine)


@pytest.mark.parametrize("overlapping", [True, False])
def test_a_machine_is_found_again_from_its_own_timings(overlapping: bool) -> None:
    truth = Machine("here", 30e9, {DENSE: 2e11, INT8: 2e11}, 2e-4, "", overlapping, 4e9, 3e10)
    measured = {point: seconds(step_work(SHAPE, FORMS["int8"], *point), truth) for point in CALIBRATED}
    found = solved(SHAPE, FORMS["int8"], 30e9, measured)
    assert found.overlapping is overlapping
    assert found.cache_bytes_s == pytest.approx(4e9, rel=1e-3)
    assert found.attention_operations_s == pytest.approx(3e10, rel=1e-3)
    for rows in (1, 2, 16, 200):
        for context in (0, 300, 5000):
            for shape in (SHAPE, SMALL):
                work = step_work(shape, FORMS["int8"], rows, context)
                assert seconds(work, found) == pytest.approx(seconds(work, truth), rel=0.02)


def test_speedups() -> None:
    assert expected_tokens(0.5, 2) == pytest.approx(1 + 0.5 + 0.25)
    assert expected_tokens(1.0, 4) == 5.0
    assert expected_tokens(0.0, 4) == 1.0
    machine = named("h100")
    assert speedup(SHAPE, (SMALL, FORMS["bf16"]), FORMS["bf16"], machine, 0.9, 0, 128) == pytest.approx(1.0)
    free_depth, free = best_depth(SHAPE, None, FORMS["bf16"], machine, 0.8, 128)
    depth, gain = best_depth(SHAPE, (SMALL, FORMS["bf16"]), FORMS["bf16"], machine, 0.8, 128)
    assert free > gain >= 1.0
    assert free_depth >= depth
    assert best_depth(SHAPE, (SMALL, FORMS["bf16"]), FORMS["bf16"], machine, 0.0, 128) == (0, 1.0), (
        "guesses that are never right are not made"
    )
    slow = replace(machine, operations_s={DENSE: 1e10, INT8: 1e10})
    assert best_depth(SHAPE, None, FORMS["bf16"], slow, 0.6, 128)[1] < free, "where computing binds, rows are not free"


def test_named_machines_say_where_their_figures_come_from() -> None:
    assert set(MACHINES) == {"phone", "laptop", "a100", "h100", "h200"}
    assert all(len(machine.source) > 20 for machine in MACHINES.values())
    with pytest.raises(ConfigError, match="did you mean 'h100'"):
        named("h10")


def test_check_leaves_out_what_was_calibrated_with() -> None:
    executor = tiny_executor("llama", num_blocks=18)
    machine, found = check(executor, [1, 2, 3], FORMS["fp32"], 1e10, [1, 2, 8, 1100], [64, 128], rounds=1)
    assert machine.name == "here"
    assert {(one.rows, one.context) for one in found} == {(1, 128), (2, 64), (2, 128), (8, 128)}
    assert all(one.measured_s > 0 for one in found)
    assert Checked(1, 1, 1.1, 1.0).error == pytest.approx(0.1)


@pytest.fixture
def without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "counted", lambda config: ((SHAPE, FORMS["int8"]), (SMALL, FORMS["int8"])))


def test_the_verb(without_files: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["roofline", "-m", "x", "--on", "laptop,h100"]) == 0
    out = capsys.readouterr().out
    for words in ("Steps in int8", "gain, draft model (depth)", "NVIDIA H100 data sheet", "Keys and values take 28.7 kB"):
        assert words in out
    assert run(["roofline", "-m", "x", "--on", "h200", "--json", "--rows", "1", "--contexts", "0"]) == 0
    found = json.loads(capsys.readouterr().out)
    (step,), (request,) = found["steps"], found["requests"]
    assert step["floor_s"] == pytest.approx(1.44e9 / 4.8e12, rel=0.02)  # of the head its sketch is read
    assert (request["machine"], request["prompt_s"] > 0, request["answer_s"] > 0) == ("h200", True, True)
    assert request["free_gain"] > request["draft_gain"] > 1
    assert run(["roofline", "-m", "x", "--on", "h200", "--json", "--rows", "1", "--contexts", "0", "--acceptance", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["requests"][0]["free_gain"] == 1
    assert run(["roofline", "-m", "x", "--dark"]) == 2
    assert "give --picture FILE" in capsys.readouterr().err
    assert run(["roofline", "-m", "x", "--on", "moon"]) == 2
    assert "There is no machine called 'moon'" in capsys.readouterr().err
    pytest.importorskip("matplotlib", reason="matplotlib is an optional extra")
    for dark in ([], ["--dark"]):
        path = tmp_path / f"roof{len(dark)}.png"
        assert run(["roofline", "-m", "x", "--picture", str(path), *dark]) == 0
        assert path.stat().st_size > 5000


def test_the_verb_counts_in_the_precision_that_runs(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``auto`` is whatever it is on this machine."""
    for best, precision in ((True, "file"), (False, "int8")):
        monkeypatch.setattr("hasten.model.linear_file.file_runs_best", lambda source, best=best: best)
        assert run(["roofline", "-m", str(tiny_model), "--on", "laptop"]) == 0
        out = capsys.readouterr().out
        assert f"Steps in {precision}" in out
        assert ("bytes in this file" in out) == best
    assert run(["roofline", "-m", str(tiny_model), "--on", "laptop", "--precision", "fp64"]) == 1
    assert "knows the precisions" in capsys.readouterr().err


def test_the_check_is_reported(without_files: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    checked = [Checked(2, 64, 0.011, 0.010), Checked(4, 64, 0.012, 0.010), Checked(8, 64, 0.010, 0.010)]
    here = SimpleNamespace(**{name: getattr(named("laptop"), name) for name in Machine.__slots__} | {"name": "here"})

    def measured(*_: Any) -> Any:
        return Machine(**vars(here)), checked

    monkeypatch.setattr(verb, "measured", measured)
    assert run(["roofline", "-m", "x", "--on", "here", "--check"]) == 0
    assert "Median error 10.0 %" in capsys.readouterr().out
