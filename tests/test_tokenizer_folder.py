"""Tokenizers of folders against transformers, and broken folders."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, processors

from hasten.core.errors import CorruptModel, ModelError, ModelNotFound, UnsupportedModel
from hasten.model.tokenizer import load_tokenizer
from vocabularies import (
    build,
    byte_level,
    hard_texts,
    sentencepiece,
)

TOLERANT = pytest.mark.filterwarnings("ignore")  # for code of others


def byte_level_folder(folder: Path, **config: Any) -> Path:
    """What the Hub stores of the byte-level vocabulary."""
    backend = build(byte_level())._backend
    backend.decoder = decoders.ByteLevel()
    begin = backend.token_to_id("<|begin|>")
    backend.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", begin)])
    backend.save(str(folder / "tokenizer.json"))
    names = {
        "bos_token": {"__type": "AddedToken", "content": "<|begin|>"},
        "eos_token": "<|im_end|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(names | config))
    return folder


def pieces_folder(folder: Path) -> Path:
    backend = build(sentencepiece(True))._backend
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


@TOLERANT
@pytest.mark.parametrize("make", [byte_level_folder, pieces_folder])
def test_folder_equals_transformers(make: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = make(tmp_path)
    ours, oracle = load_tokenizer(folder), transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
    draw = random.Random(2)
    for text in hard_texts(300):
        ids = oracle(text)["input_ids"]
        assert ours.encode(text, add_bos=True) == ids
        for skip in (True, False):
            assert ours.decode(ids, skip) == oracle.decode(ids, skip, clean_up_tokenization_spaces=False)
    # Two differences are meant. There, ill-formed bytes of SentencePiece become U+FFFD for a whole run, well-formed ones in
    # it included, which cannot be streamed; and the é of <toolé>, an added token, is read in the byte alphabet.
    for _ in range(300 if make is byte_level_folder else 0):
        ids = [draw.randrange(ours.vocabulary_size - 2) for _ in range(20)]
        assert ours.decode(ids) == oracle.decode(ids, True, clean_up_tokenization_spaces=False)


def test_folder_and_gguf_are_one_vocabulary(tmp_path: Path) -> None:
    folder, file = load_tokenizer(byte_level_folder(tmp_path)), build(byte_level())
    assert folder.prefix_ids == (file.bos_token_id,)
    assert folder.eos_token_ids == file.eos_token_ids
    assert folder.special_ids == file.special_ids


def test_folder_configuration(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path, add_bos_token=False, add_eos_token=True, chat_template="from the configuration")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    ours = load_tokenizer(folder)
    assert ours.prefix_ids == ()
    assert ours.suffix_ids == ours.eos_token_ids[:1]
    assert ours.eos_token_ids[1:] == (7, 8)
    assert ours.chat_template == "from the configuration"
    (folder / "chat_template.jinja").write_text("from its own file")
    assert load_tokenizer(folder).chat_template == "from its own file"
    byte_level_folder(tmp_path, chat_template=[{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}])
    (folder / "chat_template.jinja").unlink()
    assert load_tokenizer(folder).chat_template == "b"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "of a processor"}))
    assert load_tokenizer(folder).chat_template == "b"
    byte_level_folder(tmp_path)
    assert load_tokenizer(folder).chat_template == "of a processor"


def test_broken_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ModelNotFound, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(UnsupportedModel, match="SentencePiece"):
        load_tokenizer(tmp_path)
    for text in ("", "[]", "{", '{"decoder": {"type": "ByteLevel"}}', '{"decoder": 3}', "[" * 100_000, "\x00"):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(ModelError, match=r"\.$"):
            load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CorruptModel):
        load_tokenizer(tmp_path)
    byte_level_folder(tmp_path)
    for name, value in (
        ("generation_config.json", {"eos_token_id": "x"}),
        ("generation_config.json", {"eos_token_id": [-1]}),
        ("config.json", {"text_config": {"eos_token_id": [1.5]}}),
        ("tokenizer_config.json", {"chat_template": 3}),
        ("tokenizer_config.json", []),
    ):
        (tmp_path / name).write_text(json.dumps(value))
        with pytest.raises(CorruptModel):
            load_tokenizer(tmp_path)
        (tmp_path / name).unlink()


@pytest.mark.parametrize("text_config", [None, [], {}, {"eos_token_id": 9}, {"eos_token_id": [9, 7]}])
def test_ends_are_those_of_all_files_that_are_in_the_vocabulary(text_config: Any, tmp_path: Path) -> None:
    """Any of them ends an answer; what nobody can choose would break whoever is told that it ends one."""
    folder = byte_level_folder(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9999]}))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": [8, 7, 519], "text_config": text_config}))
    ours = load_tokenizer(folder)
    assert ours.vocabulary_size == 519
    assert ours.eos_token_ids[1:] == ((7, 8, 9) if text_config else (7, 8))
    assert ours.special_ids >= set(ours.eos_token_ids)
    assert max(ours.special_ids) < 519
    if text_config:
        assert 9 in ours.special_ids


@pytest.mark.parametrize("decoder", [decoders.WordPiece(), decoders.CTC(), decoders.BPEDecoder(), decoders.Strip("x", 1, 0)])
def test_unknown_spellings_are_refused(decoder: Any, tmp_path: Path) -> None:
    backend = Backend(models.BPE(vocab={"a": 0}, merges=[]))
    backend.decoder = decoder
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedModel, match="decoder"):
        load_tokenizer(tmp_path)
