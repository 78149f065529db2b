"""The decoder on tiny random models: a row's logits depend on its own past alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from hasten.core.errors import CorruptModel
from hasten.core.types import ROOT, Batch, DraftTree, Segment
from hasten.model.conversion import ConvertedReader, ConvertedWriter, Planned, header
from hasten.model.executor import Executor
from hasten.model.precision import BF16, FP32, INT3, INT4, INT8, Q4_0, Precision
from hasten.model.weights import conversion_plan, load_decoder
from hasten.native.loader import load
from tiny import DESCRIPTIONS, VOCABULARY, RandomSource, tiny_executor

KINDS = list(DESCRIPTIONS)


def tokens_of(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(VOCABULARY), k=length)


def random_tree(rng: random.Random, nodes: int) -> DraftTree:
    tree = DraftTree()
    while len(tree) < nodes:
        tree.add(rng.randrange(ROOT, len(tree)), rng.randrange(VOCABULARY), 0.5, "test")
    return tree


def plain_logits(kind: str, tokens: list[int]) -> torch.Tensor:
    """All rows at once, in one fresh pool."""
    executor = tiny_executor(kind)
    return executor.forward(Batch([Segment(list(range(16)), 0, tokens)]))


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_and_single_steps_equal_one_pass(kind: str) -> None:
    tokens = tokens_of(150, 1)
    whole = plain_logits(kind, tokens)
    executor = tiny_executor(kind)
    blocks = [7, 3, 11]
    at, rows = 0, []
    for size in (1, 63, 2, 50, *[1] * 34):
        rows.append(executor.forward(Batch([Segment(blocks, at, tokens[at : at + size])])))
        at += size
    torch.testing.assert_close(torch.cat(rows), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", [0, 5, 60, 63, 64, 100])
def test_every_node_sees_its_path_only(kind: str, context: int) -> None:
    """Tree logits equal those of the plain sequence root-to-node, with a block border inside the tree."""
    rng = random.Random(context)
    tokens, tree = tokens_of(context + 2, 2), random_tree(rng, 12)
    executor = tiny_executor(kind)
    blocks = [5, 9, 1]
    if context:
        executor.forward(Batch([Segment(blocks, 0, tokens[:context])]))
    logits = executor.forward(Batch([Segment(blocks, context, tokens[context:], tree)]))
    for node in range(len(tree)):
        path = [tree.tokens[step] for step in tree.path(node)]
        expected = plain_logits(kind, tokens + path)[-1]
        torch.testing.assert_close(logits[2 + node], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_commit_leaves_the_memory_of_plain_decoding(kind: str) -> None:
    rng = random.Random(3)
    tokens, tree = tokens_of(61, 4), random_tree(rng, 10)
    path = tree.path(max(range(len(tree)), key=lambda node: len(tree.path(node))))
    executor = tiny_executor(kind)
    blocks = [2, 0]
    executor.forward(Batch([Segment(blocks, 0, tokens[:-1])]))
    executor.forward(Batch([Segment(blocks, 60, tokens[-1:], tree)]))
    executor.commit(blocks, 60, [0, *(1 + node for node in path)])
    accepted = [tree.tokens[node] for node in path]
    after = executor.forward(Batch([Segment(blocks, 61 + len(path), [17])]))
    expected = plain_logits(kind, [*tokens, *accepted, 17])[-1:]
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-10)


def test_segments_of_a_batch_do_not_meet() -> None:
    first, second = tokens_of(70, 5), tokens_of(9, 6)
    executor = tiny_executor("gemma3")
    both = executor.forward(Batch([Segment([4, 8], 0, first), Segment([1], 0, second, first_logit=8)]))
    torch.testing.assert_close(both[:70], plain_logits("gemma3", first), rtol=0, atol=1e-10)
    torch.testing.assert_close(both[70:], plain_logits("gemma3", second)[-1:], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("precision", "bound"), [(FP32, 1e-4), (BF16, 0.4), (INT8, 0.4)])
def test_precisions_stay_near_double(kind: str, precision: Precision, bound: float) -> None:
    tokens = tokens_of(40, 7)
    reference = plain_logits(kind, tokens)
    executor = tiny_executor(kind, precision)
    logits = executor.forward(Batch([Segment([0], 0, tokens)]))
    spread = reference.std()
    assert ((logits - reference).abs().mean() / spread).item() < bound


def test_converted_weights_are_read_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    source = RandomSource(DESCRIPTIONS["qwen2"])
    cpu = torch.device("cpu")
    first = load_decoder(source, INT8, cpu, path)
    assert path.exists()
    stamp = path.stat().st_mtime_ns
    second = load_decoder(source, INT8, cpu, path)
    assert path.stat().st_mtime_ns == stamp
    batch = Batch([Segment([0], 0, tokens_of(30, 8))])
    assert torch.equal(Executor(first, 2, cpu).forward(batch), Executor(second, 2, cpu).forward(batch))


@pytest.mark.parametrize("damage", ["shorter", "longer", "other header"])
def test_damaged_converted_weights_are_converted_again(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "weights"
    source, cpu = RandomSource(DESCRIPTIONS["llama"]), torch.device("cpu")
    load_decoder(source, INT8, cpu, path)
    good = path.read_bytes()
    path.write_bytes({"shorter": good[:-1], "longer": good + b"x", "other header": good[:20] + b"#" + good[21:]}[damage])
    load_decoder(source, INT8, cpu, path)
    assert path.read_bytes() == good


@pytest.mark.parametrize("damage", ["flipped bit", "page of zeros", "words of two pages", "checksum", "last byte of a tensor"])
def test_converted_weights_that_were_changed_on_disk_are_not_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "weights.weights"
    source, cpu = RandomSource(DESCRIPTIONS["llama"]), torch.device("cpu")
    first = load_decoder(source, INT8, cpu, path)
    plan, good = conversion_plan(source, INT8), path.read_bytes()
    start = len(header(plan, source.fingerprint))
    assert plan[0].bytes >= 2 * 2048 + 1
    changed = bytearray(good)
    if damage == "flipped bit":
        changed[start + plan[0].bytes + 7] ^= 0x10
    elif damage == "page of zeros":
        changed[start : start + 2048] = bytes(2048)
    elif damage == "words of two pages":
        changed[start : start + 4104] = good[start + 4096 : start + 4104] + good[start + 8 : start + 4096] + good[start : start + 8]
    elif damage == "checksum":
        changed[-1] ^= 1
    else:
        changed[start + plan[0].bytes - 1] ^= 1
    path.write_bytes(changed)
    second = load_decoder(source, INT8, cpu, path)
    assert "damaged" in caplog.text
    assert (tmp_path / "weights.damaged").read_bytes() == changed
    batch = Batch([Segment([0], 0, tokens_of(30, 8))])
    assert torch.equal(Executor(first, 2, cpu).forward(batch), Executor(second, 2, cpu).forward(batch))
    load_decoder(source, INT8, cpu, path)
    assert path.read_bytes() == good
    assert len(caplog.records) == 1


def test_two_conversions_at_once_do_not_mix(tmp_path: Path) -> None:
    """With the same process number, as threads and containers have it; and one of them is killed."""
    path, plan = tmp_path / "weights", [Planned("a", (50_000,), torch.uint8), Planned("b", (70_000,), torch.uint8)]
    parts = [torch.full((item.bytes,), 7, dtype=torch.uint8) for item in plan]
    first = ConvertedWriter(path, plan, "f")
    first.write(parts[0])
    second = ConvertedWriter(path, plan, "f")
    first.write(parts[1])
    first.finish()
    reader = ConvertedReader(path, plan, "f")
    assert all(torch.equal(reader.read(item.name), part) for item, part in zip(plan, parts, strict=True))
    reader.close()
    second.abandon()
    assert [file.name for file in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize("precision", [FP32, INT8, INT4, INT3, Q4_0])
@pytest.mark.parametrize("name", ["final_norm", "layers.1.mlp_norm", "layers.0.k_norm", "layers.1.v_bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_vectors_that_are_not_finite_are_refused(precision: Precision, name: str, value: float, tmp_path: Path) -> None:
    if precision in (INT4, INT3, Q4_0) and load() is None:
        pytest.skip("needs the native kernels")
    source = RandomSource(DESCRIPTIONS["qwen2" if name.endswith("bias") else "qwen3"])
    source._tensors[name][3] = value
    with pytest.raises(CorruptModel, match=f"'{name}' holds NaN or infinity"):
        load_decoder(source, precision, torch.device("cpu"), tmp_path / "weights")


@pytest.mark.parametrize("precision", [INT8, INT4, INT3])
@pytest.mark.parametrize("name", ["head", "layers.1.k", "layers.0.down"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_where_they_are_rounded(
    precision: Precision, name: str, value: float, tmp_path: Path
) -> None:
    if precision.bits < 8 and load() is None:
        pytest.skip("needs the native kernels")
    source = RandomSource(DESCRIPTIONS["llama"])
    source._tensors[name][2, 3] = value
    with pytest.raises(CorruptModel, match="holds NaN or infinity"):
        load_decoder(source, precision, torch.device("cpu"), tmp_path / "weights")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_costs_the_conversion_file_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    load_decoder(RandomSource(DESCRIPTIONS["llama"]), INT8, torch.device("cpu"), blocked / "weights")
    assert "could not be kept" in caplog.text


@pytest.mark.parametrize("cache", [None, torch.float32, torch.int8])
@pytest.mark.parametrize("blocks", [[0, 2], [0, 1_000_000], [-1, 0], [0, 1, 2]])
def test_a_batch_that_reaches_past_the_pool_is_refused_before_anything_is_written(
    blocks: list[int], cache: torch.dtype | None
) -> None:
    if cache is torch.int8 and load() is None:
        pytest.skip("int8 keys and values need the native kernels")
    executor = tiny_executor(precision=FP32 if cache is None else INT8, num_blocks=2, cache=cache)
    with pytest.raises(IndexError, match="pool of 2"):
        executor.forward(Batch([Segment(blocks, 60, [1] * 8)]))
    with pytest.raises(IndexError, match="pool of 2"):
        executor.hidden(Batch([Segment([1], 0, [1]), Segment(blocks, 60, [1] * 8)]))
    with pytest.raises(IndexError):
        executor.forward(Batch([Segment([0], 60, [1] * 8)]))
    assert all(not tensor.any() for tensor in executor.pool.tensors)
