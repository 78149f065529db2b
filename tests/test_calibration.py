"""Reading a text layer by layer is the model itself, and what is written on the way is what a load finds."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hasten.core.types import Batch, Segment
from hasten.model import storage
from hasten.model.calibration import Reader, Rows, input_moments
from hasten.model.conversion import Planned, is_converted
from hasten.model.executor import Executor
from hasten.model.hadamard import hadamard_block, rotate
from hasten.model.kept_weights import kept_weights
from hasten.model.linear import DenseLinear, Linear, rms_norm
from hasten.model.linear_packed import pack, pack_calibrated, packed_linear
from hasten.model.partial import PartialConversion
from hasten.model.precision import FP32, INT3, INT4, INT8, Precision
from hasten.model.weights import FusedLinear, conversion_plan, load_decoder, projection_rows
from hasten.native.loader import load, status
from hasten.train import quantise
from hasten.train.quantise import round_weights
from test_exact import prompt_of
from tiny import CPU, DESCRIPTIONS, RandomSource

needs_kernels = pytest.mark.skipif(load() is None, reason=f"native kernels: {status().get('reason')}")
TEXTS = [list(prompt_of(length, length)) for length in (70, 5, 64, 130)]


def dense(source: RandomSource) -> object:
    def make(linear: FusedLinear, bias: Tensor | None, rows: Rows) -> Linear:
        weight = torch.cat(list(projection_rows(source, linear)))
        assert all(piece.shape[1] == linear.inputs for piece in rows)
        assert weight.shape == (linear.outputs, linear.inputs)
        return DenseLinear(weight, bias)

    return make


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_reading_layer_by_layer_is_the_model(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.model.calibration.ROWS", 100)  # two batches
    source = RandomSource(DESCRIPTIONS[kind])
    shape = source.description
    reader = Reader(source, FP32, TEXTS)
    for layer in range(shape.layers):
        reader.layer(layer, dense(source))  # type: ignore[arg-type]
    assert len(reader.hidden) == 2
    executor = Executor(load_decoder(source, FP32, CPU, None), 8, CPU)
    head = source.read("embedding" if shape.tied_head else "head")
    hidden = torch.cat(reader.hidden)
    logits = rms_norm(hidden, source.read("final_norm"), shape.norm_eps) @ head.T
    if shape.final_softcap:
        logits = torch.tanh(logits / shape.final_softcap) * shape.final_softcap
    expected = torch.cat([executor.forward(Batch([Segment([0, 1, 2], 0, text)])) for text in TEXTS])
    assert torch.allclose(logits, expected, atol=2e-3 * float(expected.std()), rtol=1e-3)


def test_moments_are_of_the_rows_that_the_kernels_see() -> None:
    torch.manual_seed(0)
    rows = [torch.randn(40, 48), torch.randn(7, 48)]
    rotated = rotate(torch.cat(rows), hadamard_block(48))
    step = rotated.abs().amax(1, keepdim=True) / 127
    seen = ((rotated / step).round() * step).double()
    assert torch.allclose(input_moments(rows).double(), seen.T @ seen / 47, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("bits", [4, 3])
def test_calibrated_rounding_is_better_on_its_inputs(bits: int) -> None:
    torch.manual_seed(1)
    weight = torch.randn(32, 128)
    rows = torch.randn(600, 12) @ torch.randn(12, 128) + 0.1 * torch.randn(600, 128)
    moments = input_moments([rows])
    block = hadamard_block(128)
    exact = rows @ weight.T
    plain = packed_linear(*pack(iter([weight]), 32, bits), None, 128, bits)(rows)
    ours = packed_linear(*pack_calibrated(iter([weight[:20], weight[20:]]), moments, bits), None, 128, bits)(rows)
    assert block == 128
    assert (ours - exact).square().sum() < 0.3 * (plain - exact).square().sum()


def hidden_error(source: RandomSource, precision: Precision, path: Path | None) -> float:
    exact = Executor(load_decoder(source, FP32, CPU, None), 8, CPU)
    ours = Executor(load_decoder(source, precision, CPU, path), 8, CPU)
    text = list(prompt_of(120, 999))
    batch = Batch([Segment([0, 1], 0, text)])
    wanted, found = exact.forward(batch), ours.forward(batch)
    return float((found - wanted).square().mean() / wanted.var())


@needs_kernels
@pytest.mark.parametrize("kind", ["llama", "gemma3", "qwen2"])
@pytest.mark.parametrize("precision", [INT4, INT3], ids=["int4", "int3"])
def test_a_whole_model_gains(tmp_path: Path, kind: str, precision: Precision) -> None:
    """Random weights leave little to make good, yet what the layers are given is known, and that must show."""
    source, path = RandomSource(DESCRIPTIONS[kind]), tmp_path / "w.weights"
    texts = [list(prompt_of(200, seed)) for seed in range(12)]
    assert round_weights(source, path, texts, precision) is False
    assert is_converted(path, conversion_plan(source, precision), source.fingerprint)
    assert hidden_error(source, precision, path) < hidden_error(source, precision, None)


class Interrupted(Exception):
    pass


@needs_kernels
def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source = RandomSource(DESCRIPTIONS["gemma3"])
    whole = tmp_path / "whole.weights"
    round_weights(source, whole, TEXTS, INT4)
    steps: list[int] = []
    round_weights(source, tmp_path / "counted.weights", TEXTS, INT4, lambda label, done, total: steps.append(done))
    assert steps == sorted(set(steps))
    for stop in range(len(steps)):
        path = tmp_path / f"{stop}.weights"

        def interrupt(label: str, done: int, total: int, stop: int = stop) -> None:
            if done >= steps[stop]:
                raise Interrupted

        with pytest.raises(Interrupted):
            round_weights(source, path, TEXTS, INT4, interrupt)
        assert not path.exists()
        assert round_weights(source, path, TEXTS, INT4) is True
        assert path.read_bytes() == whole.read_bytes()
        assert not list(tmp_path.glob("*.partial"))


PLAN = [Planned("a", (3,), torch.float32), Planned("b", (2, 5), torch.int8), Planned("c", (7,), torch.uint8)]
TENSORS = [torch.arange(3.0), torch.arange(10, dtype=torch.int8).view(2, 5), torch.arange(7, dtype=torch.uint8)]


def write_all(path: Path, fingerprint: str = "f") -> int:
    file = PartialConversion(path, PLAN, fingerprint)
    present = file.present
    for item, tensor in list(zip(PLAN, TENSORS, strict=True))[present:]:
        file.write(item.name, tensor)
    assert all(torch.equal(file.read(item.name), tensor) for item, tensor in zip(PLAN, TENSORS, strict=True))
    file.finish()
    return present


def test_a_partial_file_cut_or_spoilt_anywhere_ends_right(tmp_path: Path) -> None:
    path = tmp_path / "w"
    assert write_all(path) == 0
    good = path.read_bytes()
    partial = tmp_path / "w.partial"
    seen = set()
    for size in range(len(good) + 9):
        partial.write_bytes((good + b"more than all")[:size])
        seen.add(write_all(path))
        assert path.read_bytes() == good
    assert seen == {0, 1, 2, 3}
    partial.write_bytes(b"#" + good[1:])
    assert write_all(path) == 0
    partial.write_bytes(good)
    assert write_all(path, "another model") == 0


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(quantise.ModelError, match="cannot be written"):
        PartialConversion(tmp_path / "file" / "w", PLAN, "f")


@needs_kernels
def test_a_load_finds_what_was_made_and_sets_damage_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    source = RandomSource(DESCRIPTIONS["llama"])
    plain = storage.converted_path(source.fingerprint, "int4")
    assert kept_weights(source, FP32, "tiny") is None
    assert kept_weights(source, INT8, "tiny") == storage.converted_path(source.fingerprint, "int8")
    assert caplog.text == ""
    assert kept_weights(source, INT4, "tiny") == plain
    assert "run 'hasten quantize tiny' once" in caplog.text
    assert len(caplog.records) == 1
    caplog.clear()
    calibrated = storage.calibrated_path(source.fingerprint, "int4")
    round_weights(source, calibrated, TEXTS, INT4)
    assert kept_weights(source, INT4, "tiny") == calibrated
    assert caplog.text == ""
    good = calibrated.read_bytes()
    with caplog.at_level(logging.WARNING):
        for damage in (good[:-1], good + b"x", b"", good[:90] + b"#" + good[91:]):
            calibrated.write_bytes(damage)
            caplog.clear()
            assert kept_weights(source, INT4, "tiny") == plain
            assert "set aside" in caplog.text
            assert not calibrated.exists()
            assert calibrated.with_name(f"{calibrated.stem}.damaged").read_bytes() == damage
    other = RandomSource(DESCRIPTIONS["llama"], seed=1)
    calibrated.write_bytes(good)
    storage.calibrated_path(other.fingerprint, "int4").write_bytes(good)  # of another model
    assert kept_weights(other, INT4, "tiny") == storage.converted_path(other.fingerprint, "int4")
