"""Precision ``q4_0``: any weights in blocks of four bits, rounded as the format wants, and what draft models run in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import quants
from gguf.constants import GGMLQuantizationType

from hasten import LLM, SamplingParams
from hasten.core.config import SpeculationParams
from hasten.model import storage
from hasten.model.kept_weights import draft_precision, kept_weights
from hasten.model.linear_file import FileEmbedding, rounded_matrix
from hasten.model.linear_file import round_to_blocks as round_to
from hasten.model.loaders import open_source
from hasten.model.precision import INT3, Q4_0
from hasten.model.weights import load_decoder
from hasten.native.grouped import GroupedLinear
from hasten.native.loader import load, status
from hasten.train.quantise import round_weights
from loader_files import write_gguf
from real import model_path
from test_exact import prompt_of
from tiny import CPU, DESCRIPTIONS, RandomSource


@pytest.fixture(autouse=True)
def _kernels() -> None:
    if load() is None:
        pytest.skip(f"native kernels: {status()['reason']}")


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_blocks_are_those_of_the_reference_package(kind: str) -> None:
    torch.manual_seed(0)
    weights = torch.randn(40, 192) * torch.logspace(-2, 3, 40)[:, None]
    weights[3] = 0.0
    weights[4, :32] = -1.0  # all at the end of the grid
    raw = round_to(weights, kind)
    wanted = quants.quantize(weights.numpy(), GGMLQuantizationType[kind])
    ours, theirs = (quants.dequantize(each, GGMLQuantizationType[kind]) for each in (raw.numpy(), wanted))
    step = np.abs(weights.numpy().reshape(-1, 32)).max(1).repeat(32).reshape(weights.shape) / (8 if kind == "Q4_0" else 127)
    # Half a step, a whole one where Q4_0's grid has one step less, and what a scale in float16 adds.
    bound = step * (1.0 if kind == "Q4_0" else 0.5) + np.abs(weights.numpy()) * 2.0**-10 + 2.0**-24 * 8
    assert (np.abs(ours - weights.numpy()) <= bound).all()
    assert (ours == theirs).mean() > 0.98, "it divides by the scale before that is rounded to float16"


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_a_matrix_is_rounded_piece_by_piece(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.model.linear_file.PIECE_BYTES", 4 * 64 * 16)
    weights = torch.randn(71, 64)
    asked: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> torch.Tensor:
        asked.append((start, stop))
        return weights[start:stop]

    matrix = rounded_matrix(read, kind, 71, 64)
    assert asked == [(0, 16), (16, 32), (32, 48), (48, 64), (64, 71)]
    wanted = quants.dequantize(round_to(weights, kind).numpy(), GGMLQuantizationType[kind])
    assert torch.equal(matrix.rows(torch.arange(71)), torch.from_numpy(wanted))


def test_a_file_keeps_its_four_bit_codes_and_its_head(tmp_path: Path) -> None:
    for name, kept in (("Q4_1", "Q4_1"), ("Q8_0", "Q4_0"), ("F16", "Q4_0")):
        write_gguf(tmp_path / "a.gguf", kind=GGMLQuantizationType[name])
        decoder = load_decoder(open_source(tmp_path / "a.gguf"), Q4_0, CPU, None)
        layer, head = decoder.weights.layers[0], decoder.weights.head
        assert isinstance(layer.qkv, GroupedLinear)
        assert isinstance(layer.mlp.down, GroupedLinear)
        assert isinstance(head, GroupedLinear)
        assert {part.kind for part in (*layer.qkv.parts, *layer.mlp.down.parts)} == {kept}
        assert {part.kind for part in head.parts} == {"Q4_1" if kept == "Q4_1" else "Q8_0"}
        assert isinstance(decoder.weights.embedding, FileEmbedding) == (name != "F16")


INTEGERS = ("auto", "int8", "int4", "file", "q4_0")


def test_drafts_run_in_four_bits_beside_integer_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    source = RandomSource(DESCRIPTIONS["llama"])
    for name in INTEGERS:
        assert draft_precision(name, CPU, source) == "q4_0"
        assert draft_precision(name, torch.device("cuda"), source) == name
    for name in ("bf16", "fp32", "fp64"):
        assert draft_precision(name, CPU, source) == name
    monkeypatch.setattr("hasten.model.linear_file.load", lambda: None)
    assert [draft_precision(name, CPU, source) for name in INTEGERS] == list(INTEGERS)


def test_drafts_run_in_three_bits_once_they_were_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    source, other = RandomSource(DESCRIPTIONS["llama"]), RandomSource(DESCRIPTIONS["llama"], seed=1)
    path = storage.calibrated_path(source.fingerprint, "int3")
    round_weights(source, path, [list(prompt_of(64, seed)) for seed in range(4)], INT3)
    assert {draft_precision(name, CPU, source) for name in INTEGERS} == {"int3"}
    assert draft_precision("bf16", CPU, source) == "bf16"
    assert draft_precision("int8", torch.device("cuda"), source) == "int8"
    assert draft_precision("int8", CPU, other) == "q4_0"
    assert kept_weights(source, INT3, "tiny") == path
    assert caplog.text == ""
    path.write_bytes(path.read_bytes()[:-1])
    assert draft_precision("int8", CPU, source) == "q4_0"
    assert "set aside" in caplog.text
    kept_weights(source, INT3, "tiny")
    assert "run 'hasten draft quantize -m TARGET --draft-model tiny' once" in caplog.text


@pytest.mark.real
@pytest.mark.parametrize(("precision", "least"), [("q4_0", 0.4), pytest.param("int3", 0.1, marks=pytest.mark.slow)])
def test_a_model_drafts_for_itself_in_few_bits(precision: str, least: float) -> None:
    """The same text, most guesses right: rounding changes what is proposed, never what is said."""
    path = str(model_path("smollm2-135m"))
    params = [SamplingParams(max_tokens=48, temperature=temperature, seed=5) for temperature in (0.0, 0.8)]
    prompt = "The lighthouse keeper climbed the stairs and"
    with LLM(path, draft="none", precision="int8", cache_tokens=1024) as llm:
        plain = [llm.generate(prompt, each)[0] for each in params]
    with LLM(path, draft=f"lm(model={path!r}, width=1, precision={precision})", precision="int8", cache_tokens=1024) as llm:
        assert [drafter.name for drafter in llm.engine.drafting.drafters] == ["lm"]
        drafted = [llm.generate(prompt, each, speculation=SpeculationParams(mode="on"))[0] for each in params]
    for one, other in zip(plain, drafted, strict=True):
        assert other.tokens == one.tokens
        assert other.precision == "int8"
        assert other.speculation.accepted > least * other.speculation.drafted


@pytest.mark.real
def test_a_model_may_run_in_it() -> None:
    with LLM(str(model_path("smollm2-135m")), draft="suffix", precision="q4_0", cache_tokens=1024) as llm:
        first = llm.generate("One, two, three, four,", SamplingParams(max_tokens=24))[0]
        again = llm.generate("One, two, three, four,", SamplingParams(max_tokens=24), speculation=SpeculationParams(mode="off"))[0]
    assert first.tokens == again.tokens
    assert first.precision == "q4_0"
