"""A tokenizer from a model folder: ``tokenizer.json``, and what its companions say of begin, end and chat template.

The folder is taken to be hostile until read: sizes are bounded, JSON is checked, code is never loaded. The post-processor
of ``tokenizer.json`` is asked once what it puts around a prompt, and not used again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from hasten.core.errors import CorruptModel, ModelNotFound, UnsupportedModel
from hasten.model.tokenizer import SPACE_MARK, Tokenizer

__all__ = ["tokenizer_from_folder"]

MAXIMUM_BYTES = 1 << 28  # the largest published tokenizer.json files have about 1 << 25


def tokenizer_from_folder(folder: Path) -> Tokenizer:
    """Read a folder as the Hub stores it. Raises ModelNotFound, CorruptModel or UnsupportedModel."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        if any((folder / name).is_file() for name in ("tokenizer.model", "spiece.model")):
            raise UnsupportedModel(
                f"{folder} has a SentencePiece model and no tokenizer.json; save the tokenizer again as a fast one, "
                "or use a GGUF file of the model."
            )
        raise ModelNotFound(f"{folder} has no tokenizer.json; give a complete model folder or a .gguf file.")
    text = _read(path)
    byte_level, strips_space = _spelling(_json_object(path, text).get("decoder"), path)
    backend = _backend(path, text)
    config = _optional(folder / "tokenizer_config.json")
    names = {**_optional(folder / "special_tokens_map.json"), **config}
    bos, eos = _named(backend, names.get("bos_token")), _named(backend, names.get("eos_token"))
    ends = [eos, *_end_ids(folder / "generation_config.json"), *_end_ids(folder / "config.json")]  # each may know ends of its own
    eos_ids = tuple(dict.fromkeys(token for token in ends if token is not None))
    prefix, suffix = _surroundings(backend)
    if isinstance(config.get("add_bos_token"), bool):
        prefix = (bos,) if config["add_bos_token"] and bos is not None else ()
    if isinstance(config.get("add_eos_token"), bool):
        suffix = (eos,) if config["add_eos_token"] and eos is not None else ()
    special = {token for token, added in backend.get_added_tokens_decoder().items() if added.special}
    return Tokenizer(
        backend,
        byte_level=byte_level,
        strips_space=strips_space,
        special_ids={*special, *eos_ids, *(() if bos is None else (bos,))},
        prefix_ids=prefix,
        suffix_ids=suffix,
        bos_token_id=bos,
        eos_token_ids=eos_ids,
        chat_template=_chat_template(folder, config),
    )


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAXIMUM_BYTES:
            raise CorruptModel(f"{path} is larger than {MAXIMUM_BYTES >> 20} MiB; fetch the model again.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise CorruptModel(f"{path} cannot be read ({problem}); fetch the model again.") from problem


def _json_object(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise CorruptModel(f"{path} is not JSON ({problem}); fetch the model again.") from problem
    if not isinstance(value, dict):
        raise CorruptModel(f"{path} holds a {type(value).__name__} where an object is allowed; fetch the model again.")
    return value


def _optional(path: Path) -> dict[str, Any]:
    return _json_object(path, _read(path)) if path.is_file() else {}


def _backend(path: Path, text: str) -> Backend:
    try:
        backend = Backend.from_str(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as problem:  # a panic of the library is no Exception
        raise CorruptModel(f"{path} is no tokenizer ({problem}); fetch the model again.") from problem
    backend.no_truncation()
    backend.no_padding()
    return backend


def _spelling(decoder: Any, path: Path) -> tuple[bool, bool]:
    """How tokens are spelled, read off the decoder: (byte level, decoding drops a leading space)."""
    steps = decoder.get("decoders") if isinstance(decoder, dict) and decoder.get("type") == "Sequence" else [decoder]
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        steps = []
    kinds = [step.get("type") for step in steps]
    if kinds and set(kinds) == {"ByteLevel"}:
        return True, False
    if kinds == ["Metaspace"] and steps[0].get("replacement") == SPACE_MARK:
        return False, steps[0].get("prepend_scheme", "always") != "never"
    if kinds.count("Replace") == 1 and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
        marks = steps[kinds.index("Replace")]
        strip = steps[kinds.index("Strip")] if "Strip" in kinds else {"content": " ", "start": 0, "stop": 0}
        known = [strip.get("content"), strip.get("stop"), marks.get("content"), marks.get("pattern")]
        if known == [" ", 0, " ", {"String": SPACE_MARK}] and strip.get("start") in (0, 1):
            return False, strip["start"] == 1
    raise UnsupportedModel(
        f"{path} spells tokens in a way that Hasten does not read (decoder {kinds}); "
        "it reads byte-level and SentencePiece tokenizers."
    )


def _named(backend: Backend, name: Any) -> int | None:
    """The id of a begin or end token, which becomes a control token if it was none; None where it is not in the vocabulary."""
    text = name.get("content") if isinstance(name, dict) else name
    token = backend.token_to_id(text) if isinstance(text, str) else None
    if token is not None and token not in backend.get_added_tokens_decoder():
        backend.add_special_tokens([AddedToken(str(text), normalized=False, special=True)])
    return token


def _end_ids(path: Path) -> list[int]:
    """The ends that a file names, those of a model of pictures and text by its text part too."""
    top, found = _optional(path), []
    for fields in (top, top.get("text_config")):
        value = fields.get("eos_token_id") if isinstance(fields, dict) else None
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(token) is not int or token < 0 for token in ids):
            raise CorruptModel(f"{path} says that eos_token_id is {value!r:.60} where a token id or a list of them is allowed.")
        found += ids
    return found


def _surroundings(backend: Backend) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the post-processor puts in front of and behind a text."""
    plain, whole = backend.encode("a", add_special_tokens=False).ids, backend.encode("a", add_special_tokens=True).ids
    for at in range(len(whole) - len(plain) + 1):
        if whole[at : at + len(plain)] == plain:
            return tuple(whole[:at]), tuple(whole[at + len(plain) :])
    return (), ()


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """``chat_template.jinja`` before the configuration's, and that before ``chat_template.json``, in which processors of pictures
    and text keep theirs; of several named ones, the one called default."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return _read(path)
    value = config.get("chat_template")
    if value is None:
        value = _optional(folder / "chat_template.json").get("chat_template")
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    if value is not None and not isinstance(value, str):
        raise CorruptModel(f"{folder} has a chat template that is no text; fetch the model again.")
    return value
