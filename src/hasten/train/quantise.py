"""Making weights of few bits that know what they will be given: four for a model (``hasten quantize``), three for one that drafts
(``hasten draft quantize``).

The model is read layer by layer over a calibration text, and each projection is rounded for the rows that really arrive there, with
everything before it rounded already (``model.calibration``, ``model.linear_rounding``). A model's text is its own, sampled in int8
from beginnings of many kinds (data-free: LLM-QAT, 2305.17888, section 2.1), a draft model's is what its target answers to questions
that it asks itself; or files that the user gives.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from torch import Tensor

from hasten.core.config import EngineConfig
from hasten.core.errors import InvalidRequest, ModelError
from hasten.core.progress import Progress, counted, silent
from hasten.core.replacement import refusal
from hasten.core.types import SamplingParams
from hasten.model import catalogue, storage
from hasten.model.calibration import Reader, Rows, input_moments
from hasten.model.kernels import set_threads, torch_at_work
from hasten.model.linear import Linear, int8_linear
from hasten.model.linear_packed import LAYOUTS, kernels, pack_calibrated, packed_linear
from hasten.model.loaders import open_source
from hasten.model.partial import PartialConversion, partial_of
from hasten.model.precision import INT3, INT4, Precision
from hasten.model.tokenizer import Tokenizer, load_tokenizer
from hasten.model.weights import (
    FusedLinear,
    Weights,
    conversion_plan,
    embedding_table,
    projection_bits,
    projection_rows,
    projections,
    quantise_weights,
)
from hasten.train.alone import alone
from hasten.train.beginnings import BEGINNINGS
from hasten.train.own_questions import own_questions

LENGTH = 512  # tokens of each piece of calibration text
TOKENS = 49152  # of calibration text altogether: several for each of the inputs of the widest projection
FEWEST_PIECES = 8
TALKS = 64  # conversations of a target with itself, for its draft model
TALK_TEMPERATURE = 0.7
MOST_CHARACTERS = 4 << 20
PASSAGE = 64  # tokens of a model's own text from one beginning on
TOGETHER = 64  # passages that are written at once


@dataclass(frozen=True, slots=True)
class Outcome:
    """``path`` holds the weights now, ``bytes`` of them; ``tokens`` of text were read. ``resumed``: an earlier call had begun."""

    name: str
    path: Path
    bytes: int
    tokens: int
    resumed: bool


def quantise(config: EngineConfig, texts: Sequence[str] = (), progress: Progress = silent) -> Outcome:
    """Round ``config.model`` to int4 and keep it where the next load in int4 finds it. Goes on where an earlier call stopped,
    unless that had another text.

    ``texts``: what to calibrate on instead of the model's own text. Raises a HastenError, one sentence, when it cannot be.
    """
    kernels()  # where they are missing that is said now, not after the text is written
    return _quantise(config.model, INT4, config.threads, texts, lambda _: sample_text(config, progress), progress)


def quantise_draft(config: EngineConfig, texts: Sequence[str] = (), progress: Progress = silent) -> Outcome:
    """Round the draft model of ``config`` to int3, for what its target says, and keep it where it is found whenever that model
    drafts beside integer weights. Otherwise as ``quantise``."""
    kernels()
    target = catalogue.resolve(config.model, fetch=True, progress=progress)
    name = catalogue.draft_name(target, config.draft_model)
    return _quantise(name, INT3, config.threads, texts, lambda tokenizer: target_text(config, tokenizer, progress), progress)


def _quantise(
    name: str,
    precision: Precision,
    threads: int,
    texts: Sequence[str],
    write: Callable[[Tokenizer], list[list[int]]],
    progress: Progress,
) -> Outcome:
    """``write`` gives the pieces where there are no ``texts``, and none that an interrupted call has kept."""
    resolved = catalogue.resolve(name, fetch=True, progress=progress)
    source, tokenizer = open_source(resolved.path), load_tokenizer(resolved.path)
    given = pieces_of(tokenizer, texts) if texts else []
    path = storage.calibrated_path(source.fingerprint, precision.name)
    with alone(path, source.path, "quantised"):
        text = path.with_suffix(".text")
        kept = _kept_text(text)
        pieces = given or kept or write(tokenizer)
        if pieces != kept:
            _begin_anew(path)
        _keep_text(text, pieces)
        set_threads(threads, precision)
        resumed = round_weights(source, path, pieces, precision, progress)
        text.unlink()
    return Outcome(resolved.name, path, path.stat().st_size, sum(map(len, pieces)), resumed)


def _kept_text(path: Path) -> list[list[int]]:
    """The token ids that an interrupted call was given or had the model write; none where there are none, or not whole."""
    try:
        pieces = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [[int(token) for token in piece] for piece in pieces]


def _begin_anew(path: Path) -> None:
    """Let go of layers that were rounded for another text. Raises ModelError when the disk refuses."""
    try:
        partial_of(path).unlink(missing_ok=True)
    except OSError as problem:
        raise ModelError(f"{partial_of(path)} cannot be removed ({problem.strerror}); check its permissions.") from problem


def _keep_text(path: Path, pieces: list[list[int]]) -> None:
    try:
        path.write_text(json.dumps(pieces), encoding="utf-8")
    except OSError as problem:
        raise ModelError(refusal(path, problem)) from problem


def sample_text(config: EngineConfig, progress: Progress) -> list[list[int]]:
    """What the model says in int8 when it goes on from ``BEGINNINGS``, from each several times, at temperature 1: pieces of several
    passages as token ids, the same each time."""
    from hasten import LLM

    settings = replace(
        config,
        precision="int8",
        device="cpu",
        draft="none",
        context_length=0,
        cache_tokens=TOGETHER * PASSAGE,
        max_sequences=TOGETHER,
        prefix_cache=False,
    )
    with LLM(settings, progress=progress) as llm:
        tokenizer = llm.engine.tokenizer
        lead, end = list(tokenizer.prefix_ids), tokenizer.encode("\n\n", add_bos=False)
        count, room = TOKENS // LENGTH, min(LENGTH, llm.context_length) - len(lead)
        in_piece = max(1, round(room / PASSAGE))
        size = room // in_piece - len(end)
        begun = [tokenizer.encode(text, add_bos=False)[: size // 2] for text in BEGINNINGS]
        starts = [begun[place % len(begun)] for place in range(count * in_piece)]
        params = [
            SamplingParams(max_tokens=size - len(start), temperature=1.0, seed=seed, ignore_eos=True)
            for seed, start in enumerate(starts)
        ]
        done = llm.generate([lead + start for start in starts], params, on_done=counted(progress, "writing text", len(starts)))
    del llm
    gc.collect()
    passages = [[*start, *written.tokens, *end] for start, written in zip(starts, done, strict=True)]
    return [[*lead, *chain(*passages[first : first + in_piece])] for first in range(0, len(passages), in_piece)]


def target_text(config: EngineConfig, tokenizer: Tokenizer, progress: Progress) -> list[list[int]]:
    """Conversations of ``config.model`` with itself as pieces for a draft model with that ``tokenizer``: the same each time. Of a
    target with another vocabulary its answers alone, whose words both know."""
    from hasten import LLM

    settings = replace(config, draft="none", context_length=0, cache_tokens=TALKS * LENGTH, prefix_cache=False)
    with LLM(settings, progress=progress) as llm:
        prompts = [prompt[: LENGTH // 2] for prompt in own_questions(llm, TALKS, progress)]
        params = [
            SamplingParams(max_tokens=LENGTH - len(prompt), temperature=TALK_TEMPERATURE, seed=seed)
            for seed, prompt in enumerate(prompts)
        ]
        done = llm.generate(prompts, params, on_done=counted(progress, "writing text", len(prompts)))
        alike = llm.engine.tokenizer.vocabulary_fingerprint == tokenizer.vocabulary_fingerprint
    gc.collect()
    if not alike:
        return pieces_of(tokenizer, [completion.text for completion in done])
    stream = [token for prompt, completion in zip(prompts, done, strict=True) for token in (*prompt, *completion.tokens)]
    return _cut(stream, [])


def pieces_of(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """About ``TOKENS`` tokens from all over the texts, in pieces of ``LENGTH``. Raises InvalidRequest where there is too little."""
    lead = list(tokenizer.prefix_ids)
    return _cut([token for text in texts for token in tokenizer.encode(text[:MOST_CHARACTERS], add_bos=False)], lead)


def _cut(tokens: list[int], lead: list[int]) -> list[list[int]]:
    """``tokens`` in pieces of ``LENGTH``, from all over them where there are many, each behind ``lead``. Raises InvalidRequest."""
    size = LENGTH - len(lead)
    starts = list(range(0, len(tokens) - size + 1, size))
    if len(starts) < FEWEST_PIECES:
        least = FEWEST_PIECES * size
        raise InvalidRequest(f"The text has {len(tokens)} tokens and at least {least} are needed; give more with --text.")
    wanted = min(len(starts), TOKENS // LENGTH)
    chosen = [starts[place * len(starts) // wanted] for place in range(wanted)]
    return [lead + tokens[start : start + size] for start in chosen]


def round_weights(source: Weights, path: Path, pieces: list[list[int]], precision: Precision, progress: Progress = silent) -> bool:
    """Write the weights of ``source`` in ``precision``, calibrated on ``pieces`` (token ids), to ``path``. Whether it was begun
    before.

    Where this is interrupted, whatever is finished stays beside ``path``, and the next call goes on from there.
    """
    file = PartialConversion(path, conversion_plan(source, precision), source.fingerprint)
    try:
        resumed = file.present > 0
        _Rounding(source, file, precision, progress).run(pieces)
        file.finish()
    finally:
        file.close()
    return resumed


class _Rounding:
    """Writes the tensors of the plan in its order, those that are there already left out."""

    def __init__(self, source: Weights, file: PartialConversion, precision: Precision, progress: Progress) -> None:
        self._source, self._file, self._precision, self._progress = source, file, precision, progress
        self._total = sum(linear.outputs * linear.inputs for linear in projections(source))
        self._done = 0

    def run(self, pieces: list[list[int]]) -> None:
        self._keep("embedding", lambda: (embedding_table(self._source, self._precision.embedding),))
        head = projections(self._source)[0]
        self._keep(
            "head.codes head.scale", lambda: quantise_weights(projection_rows(self._source, head), head.outputs, head.inputs)
        )
        self._count(head)
        reader = Reader(self._source, self._precision, pieces)
        for layer in range(self._source.description.layers):
            reader.layer(layer, self._linear)

    def _linear(self, linear: FusedLinear, bias: Tensor | None, rows: Rows) -> Linear:
        if (bits := projection_bits(linear, self._precision)) == 8:
            return int8_linear(*self._eight_bits(linear), bias)
        names = f"{linear.name}.{LAYOUTS[bits]} {linear.name}.scale"
        weights = projection_rows(self._source, linear)
        with torch_at_work():
            packed, scale = self._keep(names, lambda: pack_calibrated(weights, input_moments(rows), bits))
        self._count(linear)
        return packed_linear(packed, scale, bias, linear.inputs, bits)

    def _eight_bits(self, linear: FusedLinear) -> tuple[Tensor, Tensor]:
        weights = projection_rows(self._source, linear)
        names = f"{linear.name}.codes {linear.name}.scale"
        codes, scale = self._keep(names, lambda: quantise_weights(weights, linear.outputs, linear.inputs))
        self._count(linear)
        return codes, scale

    def _keep(self, names: str, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The tensors of these names, read where all are there, else made and written."""
        wanted = names.split()
        if all(self._file.has(name) for name in wanted):
            return tuple(self._file.read(name) for name in wanted)
        made = make()
        for name, tensor in zip(wanted, made, strict=True):
            if not self._file.has(name):
                self._file.write(name, tensor)
        return made

    def _count(self, linear: FusedLinear) -> None:
        self._done += linear.outputs * linear.inputs
        self._progress("rounding weights", self._done, self._total)
