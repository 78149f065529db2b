"""Precision ``file``: a GGUF model on its own codes is exact, faithful to the file, and says plainly where it cannot run."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType

from hasten import LLM, SamplingParams
from hasten.core.config import SpeculationParams
from hasten.core.errors import ConfigError, CorruptModel
from hasten.model.linear_file import (
    FileEmbedding,
    choose_precision,
    file_linear,
    file_runs_best,
    has_codes,
    read_embedding,
    read_matrix,
    tensors_without_codes,
)
from hasten.model.loaders.gguf_source import GGUFSource, open_gguf
from hasten.model.precision import BF16, FILE, FP32, INT8
from hasten.model.weights import load_decoder
from hasten.native.grouped import GroupedLinear
from hasten.native.loader import load, status
from loader_files import write_gguf
from real import model_path
from test_native_grouped import blocks

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _kernels() -> None:
    if load() is None:
        pytest.skip(f"native kernels: {status()['reason']}")


def tiny(path: Path, kind: GGMLQuantizationType, **changes: object) -> GGUFSource:
    """A two-layer llama file whose matrices are of ``kind``."""
    write_gguf(path, kind=kind, **changes)  # type: ignore[arg-type]
    return open_gguf(path)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_packed_tensors_hold_what_the_file_says(kind: str, tmp_path: Path) -> None:
    source = tiny(tmp_path / "a.gguf", GGMLQuantizationType[kind])
    assert tensors_without_codes(source) == {}
    for name in ("layers.0.q", "layers.1.k", "layers.0.v", "layers.1.down", "embedding", "head"):  # q and k change their order
        matrix = read_matrix(source, name)
        assert torch.equal(matrix.rows(torch.arange(matrix.outputs)), source.read(name)) or torch.isnan(source.read(name)).any()
        unequal = matrix.rows(torch.arange(matrix.outputs)) != source.read(name)
        assert torch.equal(unequal, torch.isnan(source.read(name))), name
    table = read_embedding(source)
    assert isinstance(table, FileEmbedding)
    load_decoder(source, FILE, CPU, None)


def test_a_piece_may_begin_anywhere(tmp_path: Path) -> None:
    source = tiny(tmp_path / "a.gguf", GGMLQuantizationType.Q8_0)
    whole = source.read_blocks("layers.0.q", 0, 64)
    for start, stop in ((0, 8), (8, 24), (5, 43), (63, 64), (7, 7)):
        assert torch.equal(source.read_blocks("layers.0.q", start, stop), whole[start:stop])


def test_tensors_without_codes_become_int8_and_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mixed.gguf"
    write_mixed(path)
    source = open_gguf(path)
    assert tensors_without_codes(source) == {"layers.0.v": "f16", "head": "f32"}
    decoder = load_decoder(source, FILE, CPU, None)
    layer = decoder.weights.layers[0].qkv
    x = torch.randn(5, 64)
    wanted = torch.cat([x @ source.read(f"layers.0.{part}").T for part in "qkv"], dim=1)
    assert (layer(x) - wanted).norm() < 0.02 * wanted.norm()
    alone = torch.cat([layer(x[i : i + 1]) for i in range(5)])
    assert torch.equal(alone, layer(x))


def write_mixed(path: Path) -> None:
    """A tiny file most of whose matrices are Q8_0, one F16 and the head F32."""
    from loader_files import add_value, metadata, tensor_shapes

    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata("llama", 1).items():
        add_value(writer, key, value)
    random = np.random.default_rng(0)
    for name, shape in tensor_shapes("llama", 1, False).items():
        values = random.standard_normal(shape).astype(np.float32)
        if len(shape) == 1 or name == "output.weight":
            writer.add_tensor(name, values)
        elif "attn_v" in name:
            writer.add_tensor(name, values.astype(np.float16))
        else:
            writer.add_tensor(name, blocks("Q8_0", *shape).numpy(), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_auto_takes_it_where_it_is_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = load()
    assert library is not None
    codes = tiny(tmp_path / "codes.gguf", GGMLQuantizationType.Q8_0)
    floats = tiny(tmp_path / "floats.gguf", GGMLQuantizationType.F16)
    for level in library.available_isas():
        monkeypatch.setattr(type(library), "isa", level)
        assert file_runs_best(codes) == (level in ("avx2", "vnni"))
        assert not file_runs_best(floats)
    assert choose_precision("auto", CPU, True) is FILE
    assert choose_precision("auto", CPU, False) is INT8
    assert choose_precision("int8", CPU, True) is INT8
    assert choose_precision("auto", torch.device("cuda"), True) is BF16


def test_auto_without_kernels_is_what_pytorch_multiplies_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_NATIVE", "off")
    for capability, expected in (("AVX512", BF16), ("AVX512_AMX", BF16), ("AVX2", FP32), ("DEFAULT", FP32)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        assert choose_precision("auto", CPU) is expected
    assert choose_precision("int8", CPU) is INT8


def test_where_it_cannot_run_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="F32 only; use bf16 or int8"):
        load_decoder(tiny(tmp_path / "floats.gguf", GGMLQuantizationType.F32), FILE, CPU, None)
    source = tiny(tmp_path / "codes.gguf", GGMLQuantizationType.Q4_0)

    class Folder:
        description = source.description

    with pytest.raises(ConfigError, match="folder of safetensors; use int8"):
        load_decoder(Folder(), FILE, CPU, None)  # type: ignore[arg-type]
    monkeypatch.setenv("HASTEN_NATIVE", "off")
    with pytest.raises(ConfigError, match="native kernels"):
        load_decoder(source, FILE, CPU, None)


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    source = tiny(path, GGMLQuantizationType.Q4_0)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptModel, match="shorter"):
        load_decoder(source, FILE, CPU, None)
    with pytest.raises(CorruptModel, match="cut short"):
        open_gguf(path)


def test_floats_are_no_codes() -> None:
    assert not any(has_codes(kind) for kind in ("f32", "f16", "bf16"))
    assert all(has_codes(kind) for kind in ("q4_k", "q6_k", "q8_0"))


@pytest.mark.real
def test_layers_of_a_real_file_are_close_to_its_floats() -> None:
    source = open_gguf(model_path("smollm2-135m"))
    for names in (("layers.3.q", "layers.3.k", "layers.3.v"), ("layers.3.down",), ("embedding",)):
        layer = file_linear([read_matrix(source, name) for name in names], None)
        assert isinstance(layer, GroupedLinear)
        x = torch.randn(9, layer.inputs)
        wanted = x @ torch.cat([source.read(name) for name in names]).T
        assert (layer(x) - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.real
def test_drafts_change_no_token() -> None:
    model_path("smollm2-135m")
    with LLM("smollm2-135m", precision="file", draft="auto", cache_tokens=4096) as llm:
        assert llm.precision == "file"
        prompts = [llm.encode(text) for text in ("def add(a, b):\n    return a + b\n\ndef add(a, b):", "Once upon a time, once")]
        drafters = llm.engine.drafting.drafters
        for params in (
            SamplingParams(max_tokens=48, ignore_eos=True),
            SamplingParams(max_tokens=48, ignore_eos=True, temperature=0.8, seed=7),
        ):
            llm.engine.drafting.drafters = []
            plain = [llm.generate([prompt], params)[0].tokens for prompt in prompts]
            llm.engine.drafting.drafters = drafters
            drafted = llm.generate(prompts, params, speculation=SpeculationParams(mode="on"))
            assert [completion.tokens for completion in drafted] == plain
            assert sum(completion.speculation.drafted for completion in drafted) > 0
