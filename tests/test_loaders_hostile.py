"""Files made to do harm: each either loads or raises ModelError, quickly and without taking memory it announces."""

from __future__ import annotations

import json
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hasten.core.errors import CorruptModel, ModelError, ModelNotFound, UnsupportedModel
from hasten.model.loaders import open_source
from hasten.model.loaders.gguf_file import MAXIMUM_DEPTH, read_gguf
from hasten.model.loaders.safetensors_file import read_safetensors
from loader_files import KIND, bounded_memory, rewrite, write_gguf


def load_all(path: Path) -> bool:
    """Open and read everything; False when that raised ModelError. Any other exception is the caller's failure."""
    try:
        source = open_source(path)
        for name in source.names():
            source.read(name)
    except ModelError as error:
        refusal = str(error)
    else:
        return True
    assert refusal.isprintable()
    assert len(refusal) < 1000
    return False


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "model.gguf"
    values = {"tokenizer.ggml.tokens": [f"t{index}" for index in range(40)], "tokenizer.ggml.token_type": [1] * 40}
    write_gguf(path, "llama", layers=1, values=values, kind=KIND.Q4_0)
    return path.read_bytes()


def test_every_truncation(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    data = read_gguf_bytes(sound, path).data_start
    lengths = [*range(data + 200), *range(data + 200, len(sound), 997), len(sound) - 1]
    for length in lengths:
        rewrite(path, sound[:length])
        with pytest.raises((CorruptModel, UnsupportedModel), match=r"cut\.gguf"):
            open_source(path)


def read_gguf_bytes(content: bytes, path: Path) -> Any:
    rewrite(path, content)
    return read_gguf(path)


def test_flipped_bytes_load_or_are_refused(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "flipped.gguf"
    data = read_gguf_bytes(sound, path).data_start
    assert load_all(path)
    dice = random.Random(7)
    loaded = 0
    with bounded_memory(32 << 20):
        for _ in range(3000):
            changed = bytearray(sound)
            for _ in range(dice.choice((1, 1, 1, 2, 8))):
                changed[dice.randrange(data)] = dice.choice((0, 1, 127, 128, 255, dice.randrange(256)))
            rewrite(path, changed)
            loaded += load_all(path)
    assert 10 < loaded < 2900


def test_flipped_words_load_or_are_refused(sound: bytes, tmp_path: Path) -> None:
    """Every 64-bit and 32-bit place of the header with the numbers that break arithmetic."""
    path = tmp_path / "words.gguf"
    data = read_gguf_bytes(sound, path).data_start
    with bounded_memory(32 << 20):
        for position in range(0, data - 8, 3):
            for word in (b"\xff" * 8, struct.pack("<Q", 1 << 63), struct.pack("<Q", len(sound) - position)):
                rewrite(path, sound[:position] + word + sound[position + 8 :])
                load_all(path)


# --- GGUF headers by hand


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def header(keys: list[bytes] = [], tensors: list[bytes] = [], version: int = 3, **counts: int) -> bytes:  # noqa: B006
    numbers = struct.pack("<IQQ", version, counts.get("tensors_said", len(tensors)), counts.get("keys_said", len(keys)))
    return b"GGUF" + numbers + b"".join(keys) + b"".join(tensors)


def tensor(name: str = "t", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0, dims: int | None = None) -> bytes:
    dimensions = len(shape) if dims is None else dims
    return text(name) + struct.pack("<I", dimensions) + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, offset)


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + values


DATA = bytes(4096)
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "past the end"),
    "magic": (b"GGML" + DATA, "starts with"),
    "keys": (header(keys_said=1 << 60) + DATA, "metadata keys"),
    "tensors": (header(tensors_said=1 << 60) + DATA, "tensors"),
    "key length": (header([struct.pack("<Q", 1 << 40) + b"a"], keys_said=1) + DATA, "metadata key"),
    "string length": (header([key("a", 8, struct.pack("<Q", 1 << 62))]) + DATA, "'a'"),
    "array count": (header([key("a", 9, array(4, 1 << 61, b""))]) + DATA, "entries"),
    "array of strings count": (header([key("a", 9, array(8, 1 << 40, b""))]) + DATA, "entries"),
    "array string length": (header([key("a", 9, array(8, 1, struct.pack("<Q", 1 << 50)))]) + DATA, "entry of"),
    "array type": (header([key("a", 9, array(77, 1, b""))]) + DATA, "entry type 77"),
    "value type": (header([key("a", 13, b"")]) + DATA, "value type 13"),
    "truth": (header([key("a", 7, b"\x02")]) + DATA, "truth value"),
    "nesting": (header([key("a", 9, array(9, 1, b"") * 50)]) + DATA, "deep"),
    "doubled key": (header([key("a", 0, b"1")] * 2) + DATA, "twice"),
    "doubled tensor": (header([], [tensor()] * 2) + DATA, "twice"),
    "alignment 0": (header([key("general.alignment", 4, struct.pack("<I", 0))]) + DATA, "alignment"),
    "alignment 3": (header([key("general.alignment", 4, struct.pack("<I", 3))]) + DATA, "alignment"),
    "alignment 2^31": (header([key("general.alignment", 4, struct.pack("<I", 1 << 31))]) + DATA, "alignment"),
    "alignment text": (header([key("general.alignment", 8, text("32"))]) + DATA, "alignment"),
    "no dimensions": (header([], [tensor(shape=())]) + DATA, "0 dimensions"),
    "five dimensions": (header([], [tensor(shape=(1,) * 5)]) + DATA, "5 dimensions"),
    "many dimensions": (header([], [tensor(dims=1 << 31)]) + DATA, "dimensions"),
    "empty tensor": (header([], [tensor(shape=(0, 4))]) + DATA, "does not fit"),
    "product wraps": (header([], [tensor(shape=(1 << 32, 1 << 32))]) + DATA, "does not fit"),
    "product wraps small": (header([], [tensor(shape=((1 << 62) + 1, 4))]) + DATA, "does not fit"),
    "half a block": (header([], [tensor(shape=(16, 2), kind=2)]) + DATA, "multiple of Q4_0"),
    "offset wraps": (header([], [tensor(offset=(1 << 64) - 32)]) + DATA, "ends at byte"),
    "offset odd": (header([], [tensor(offset=4)]) + DATA, "alignment"),
    "past the end": (header([], [tensor(shape=(1024,), offset=64)]) + DATA, "cut short"),
    "overlap": (header([], [tensor("a", (64,)), tensor("b", (64,), offset=32)]) + DATA, "overlaps"),
    "long name": (header([], [tensor("n" * 2000)]) + DATA, "tensor name"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers(case: str, tmp_path: Path) -> None:
    content, reason = HOSTILE[case]
    path = tmp_path / "hostile.gguf"
    rewrite(path, content)
    with pytest.raises(CorruptModel, match=rf"hostile\.gguf.*{reason}"):
        read_gguf(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"GGUF" + struct.pack(">I", 3) + DATA, "big-endian"),
        (header(version=1) + DATA, "version 1"),
        (header(version=4) + DATA, "version 4"),
        (header([], [tensor(kind=999)]) + DATA, "type number 999"),
        (header([], [tensor(kind=4)]) + DATA, "type number 4"),
    ],
)
def test_unsupported_headers(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    rewrite(path, content)
    with pytest.raises(UnsupportedModel, match=reason):
        read_gguf(path)


def test_what_a_header_may_hold(tmp_path: Path) -> None:
    path = tmp_path / "fine.gguf"
    nested = array(9, 2, array(4, 2, struct.pack("<II", 1, 2)) + array(8, 1, text("x")))
    keys = [
        key("a", 9, nested),
        key("b", 9, array(7, 3, b"\x01\x00\x01")),
        key("c", 9, array(12, 1, struct.pack("<d", 0.5))),
        key("d", 8, text(b"\xff\xfeok")),
        key("e", 11, struct.pack("<q", -5)),
        key("f", 7, b"\x01"),
        key("g", 9, array(8, 2, text(b"\xe2\x96\x81") + text(b"\xe2"))),
        key("h", 9, array(4, 0, b"")),
        key("general.alignment", 4, struct.pack("<I", 8)),
    ]
    for version in (2, 3):
        rewrite(path, header(keys, [tensor("t", (4, 3))], version) + DATA)
        made = read_gguf(path)
        assert made.metadata["a"] == [[1, 2], ["x"]]
        assert made.metadata["b"] == [True, False, True]
        assert [made.metadata[name] for name in "cefh"] == [[0.5], -5, True, []]
        assert made.metadata["d"].encode("utf-8", "surrogateescape") == b"\xff\xfeok"
        assert made.metadata["g"] == ["▁", "\udce2"]
        assert made.tensors["t"].shape == (3, 4)
        assert made.tensors["t"].offset == made.data_start
        assert made.data_start % 8 == 0
    deepest = b"".join(array(9, 1, b"") for _ in range(MAXIMUM_DEPTH - 1)) + array(0, 1, b"\x05")
    rewrite(path, header([key("a", 9, deepest)]) + DATA)
    assert read_gguf(path).metadata["a"] == [[[[5]]]]


def test_a_big_vocabulary_is_read_quickly(tmp_path: Path) -> None:
    path = tmp_path / "wide.gguf"
    words = b"".join(text(f"token{index}") for index in range(150_000))
    numbers = np.arange(150_000, dtype="<i4").tobytes()
    rewrite(path, header([key("w", 9, array(8, 150_000, words)), key("n", 9, array(5, 150_000, numbers))]) + DATA)
    start = time.perf_counter()
    made = read_gguf(path)
    assert time.perf_counter() - start < 1.0
    assert made.metadata["w"][149_999] == "token149999"
    assert made.metadata["n"] == list(range(150_000))


# --- safetensors and JSON by hand


def safetensors(entries: Any, data: int = 64, said: int | None = None) -> bytes:
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(raw) if said is None else said) + raw + bytes(data)


def entry(dtype: Any = "F32", shape: Any = (16,), offsets: Any = (0, 64)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BAD_TENSORS: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"1234567",
    "huge header": safetensors({"a": entry()}, said=1 << 62),
    "header to the end": safetensors({"a": entry()}, said=1 << 10),
    "no header": safetensors(b"", said=0),
    "no object": safetensors([1, 2]),
    "no json": safetensors(b"{'a': 1}"),
    "not utf-8": safetensors(b'{"\xff": 1}'),
    "deep": safetensors(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "doubled": safetensors(b'{"a": {"dtype":"F32","shape":[16],"data_offsets":[0,64]}, "a": 3}'),
    "long number": safetensors(b'{"a": ' + b"9" * 10_000 + b"}"),
    "entry no object": safetensors({"a": 3}),
    "no dtype": safetensors({"a": {"shape": [16], "data_offsets": [0, 64]}}),
    "dtype": safetensors({"a": entry("F4")}),
    "dtype list": safetensors({"a": entry(["F32"])}),
    "size": safetensors({"a": entry(shape=[17])}),
    "negative": safetensors({"a": entry(shape=[-16])}),
    "negative twice": safetensors({"a": entry(shape=[-4, -4])}),
    "fraction": safetensors({"a": entry(shape=[16.0])}),
    "truth": safetensors({"a": entry(shape=[True, 16])}),
    "dimensions": safetensors({"a": entry(shape=[1] * 40 + [16])}),
    "huge": safetensors({"a": entry(shape=[1 << 62, 1 << 62], offsets=[0, 1 << 126])}),
    "reversed": safetensors({"a": entry(offsets=[64, 0])}),
    "past the end": safetensors({"a": entry(shape=[17], offsets=[0, 68])}),
    "three offsets": safetensors({"a": entry(offsets=[0, 32, 64])}),
    "overlap": safetensors({"a": entry(), "b": entry(shape=[8], offsets=[32, 64])}),
    "gap": safetensors({"a": entry(shape=[4], offsets=[0, 16]), "b": entry(shape=[8], offsets=[32, 64])}),
    "trailing": safetensors({"a": entry()}, data=65),
    "late start": safetensors({"a": entry(shape=[8], offsets=[32, 64])}),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_hostile_safetensors(case: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.safetensors"
    rewrite(path, BAD_TENSORS[case])
    with bounded_memory(32 << 20), pytest.raises(CorruptModel, match=r"hostile\.safetensors"):
        read_safetensors(path)


CONFIG = {
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}


def write_folder(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any] = len) -> None:
    """A llama folder by hand, small enough to break in thousands of ways."""
    shapes = {"q_proj": (8, 8), "k_proj": (4, 8), "v_proj": (4, 8), "o_proj": (8, 8)}
    tensors = {f"model.layers.0.self_attn.{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    tensors |= {f"model.layers.0.mlp.{name}.weight": torch.randn(8, 8) for name in ("gate_proj", "up_proj", "down_proj")}
    for name in ("layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm"):
        tensors[f"model.{name}.weight"] = torch.randn(8)
    tensors["model.embed_tokens.weight"] = torch.randn(8, 8).bfloat16()
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))


def test_flipped_bytes_in_a_folder(tmp_path: Path) -> None:
    write_folder(tmp_path)
    assert load_all(tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    end, loaded = 8 + struct.unpack("<Q", content[:8])[0], 0
    dice = random.Random(11)
    with bounded_memory(32 << 20):
        for _ in range(1500):
            changed = bytearray(content)
            for _ in range(dice.choice((1, 2, 5))):
                changed[dice.randrange(end)] = dice.choice((dice.randrange(256), dice.choice(b'0123456789[]{},":')))
            rewrite(path, changed)
            loaded += load_all(tmp_path)
    for length in range(0, len(content), 3):
        rewrite(path, content[:length])
        assert not load_all(tmp_path)
    assert 0 < loaded < 1400


def test_flipped_configurations(tmp_path: Path) -> None:
    write_folder(tmp_path)
    wrong: list[Any] = [
        None,
        -1,
        0,
        1,
        2.5,
        1e40,
        float("nan"),
        10**400,
        "word",
        "\ud800",
        True,
        [],
        [1],
        {},
        {"a": 1},
        1 << 40,
        3,
    ]
    path = tmp_path / "config.json"
    extra = ("head_dim", "rope_theta", "rope_scaling", "rope_parameters", "eos_token_id", "bos_token_id", "hidden_act")
    extra += ("attention_bias", "mlp_bias", "max_position_embeddings", "rms_norm_eps", "quantization_config")
    scalings = [{"rope_type": kind, "factor": value} for kind in ("yarn", "llama3", "linear", 3) for value in (*wrong, 4.0)]
    loaded = 0
    with bounded_memory(32 << 20):
        for kind in ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3", "gemma3_text"):
            for name in (*CONFIG, *extra, "sliding_window", "layer_types", "text_config", "use_sliding_window", "no_rope_layers"):
                for value in (*wrong, *(scalings if name.startswith("rope_") else ())):
                    rewrite(path, json.dumps(CONFIG | {"model_type": kind, name: value}).encode())
                    loaded += load_all(tmp_path)
    assert loaded > 100


def test_missing_and_wrong_tensors_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path, lambda tensors: tensors.update({"model.norm.weight": torch.ones(9)}))
    with pytest.raises(CorruptModel, match=r"model\.norm\.weight.*\[9\].*\[8\]"):
        open_source(tmp_path)
    write_folder(tmp_path, lambda tensors: tensors.__delitem__("model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(CorruptModel, match=r"layers\.0\.up"):
        open_source(tmp_path)
    write_folder(tmp_path, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(8)}))
    with pytest.raises(CorruptModel, match=r"q_proj\.bias.*no place"):
        open_source(tmp_path)
    write_folder(tmp_path, lambda tensors: tensors.update({"model.norm.weight": torch.ones(8, dtype=torch.int32)}))
    with pytest.raises(UnsupportedModel, match=r"model\.norm\.weight.*I32"):
        open_source(tmp_path)
    write_folder(tmp_path, lambda tensors: tensors.update({"model.layers.0.block_sparse_moe.gate.weight": torch.ones(8, 8)}))
    with pytest.raises(UnsupportedModel, match="block_sparse_moe"):
        open_source(tmp_path)
    write_folder(tmp_path, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}))
    assert load_all(tmp_path)


def test_no_pickle_and_no_paths_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ModelNotFound, match="neither"):
        open_source(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(UnsupportedModel, match="safetensors"):
        open_source(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for shard in (
        "../model.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "a\\b.safetensors",
        "..",
        "",
        "x.bin",
        "a\0.safetensors",
        "C:x.safetensors",
    ):
        index.write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
        with pytest.raises(CorruptModel, match="plain file name"):
            open_source(tmp_path)
    for weight_map in (None, [], {"a": 3}, 7):
        index.write_text(json.dumps({"weight_map": weight_map}))
        assert not load_all(tmp_path)
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "gone.safetensors"}}))
    with pytest.raises(ModelNotFound, match=r"gone\.safetensors"):
        open_source(tmp_path)
