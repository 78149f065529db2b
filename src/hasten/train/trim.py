"""Choosing the ids of a trimmed draft head: count what the target says, sweep the number of ids, keep the fastest.

The target answers prompts once, greedily. Two thirds of the answers are counted; on the others each size is timed: the draft
model really drafts them round by round, next to the other sizes so that the machine's moods are shared, and what it would be
given as accepted is known from the answer. A round is charged the drafting and one measured pass of the target over its rows. The
choice is then made from all answers. VocabTrim (2506.22694, section 4) compares sizes by a model of this time; here it is measured.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from hasten.cache.blocks import BlockManager
from hasten.core.config import EngineConfig
from hasten.core.errors import InvalidRequest, ModelError, VocabularyMismatch
from hasten.core.progress import Progress, counted, silent
from hasten.core.types import BLOCK_SIZE, ROOT, Batch, DraftTree, SamplingParams, Segment, Verdict
from hasten.core.types import Sequence as RunningText
from hasten.draft.base import DraftBudget
from hasten.draft.lm import LanguageModelDrafter
from hasten.draft.shortlist import Shortlists
from hasten.draft.trim import TrimmedVocabulary, count_tokens, save, trimmed
from hasten.engine.loading import choose_device
from hasten.model import catalogue, storage
from hasten.model.executor import Executor
from hasten.model.head import HeadRows, TrimmedHead, head_rows
from hasten.model.kept_weights import draft_precision, kept_weights
from hasten.model.kernels import set_threads
from hasten.model.linear_file import choose_precision
from hasten.model.loaders import open_source
from hasten.model.tokenizer import Tokenizer, load_tokenizer
from hasten.model.weights import load_decoder
from hasten.sampling.likeliest import likeliest

if TYPE_CHECKING:
    from hasten import LLM

SIZES = (16384, 32768, 49152, 65536)
ANSWER_TOKENS = 160
LONGEST_PROMPT = 2048
DRAFT_POSITIONS = 4096
DEPTH = 8
PIECE = 1 << 18  # characters of text that become tokens at once
TIMED_ROWS = (1, 4, 8, 16, 32)

Ask = Callable[["LLM"], str | list[int]]  # makes the input of LLM.generate out of a prompt


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt, the target's answer, and for each token of the answer what the target thought likely in its place."""

    prompt: list[int]
    output: list[int]
    likeliest: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Timed:
    """What one size did: ``ids`` is the number of ids, ``level_seconds`` one pass of the draft with its choice."""

    ids: int
    tokens_per_second: float
    tokens_per_round: float
    level_seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """``rows`` by size, ``best`` one of them, and where the choice was written."""

    rows: list[Timed]
    best: Timed
    counted: int
    path: Path


@dataclass(slots=True)
class Tally:
    """Of one size: tokens that were emitted, rounds, and the draft's seconds and levels in each."""

    tokens: int = 0
    rows: list[int] = field(default_factory=list)
    drafting: list[float] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)

    def timed(self, ids: int, seconds: Callable[[int], float]) -> Timed:
        """A level counts as long as the median one, so that a disturbance of the machine is not charged to one size."""
        level = median(spent / levels for spent, levels in zip(self.drafting, self.levels, strict=True))
        total = level * sum(self.levels) + sum(seconds(rows) for rows in self.rows)
        return Timed(ids, self.tokens / total, self.tokens / len(self.rows), level)


def find_trim(
    config: EngineConfig, asks: Sequence[Ask], texts: Sequence[str], sizes: Sequence[int] = SIZES, progress: Progress = silent
) -> Outcome:
    """Choose the ids for ``config``'s draft model, write the choice where the lm drafter finds it, and say what was measured.

    ``asks``: prompts that the target answers, at least three. ``texts``: more text to count. Raises ConfigError, InvalidRequest or
    ModelError, one sentence, when that cannot be.
    """
    resolved = catalogue.resolve(config.model, fetch=True, progress=progress)
    name = catalogue.draft_name(resolved, config.draft_model)
    if len(asks) < 3:
        raise InvalidRequest("At least three prompts are needed: two to count, one to measure; give more of them.")
    draft_path = catalogue.resolve(name, fetch=True, progress=progress).path
    tokenizer = load_tokenizer(draft_path)
    if load_tokenizer(resolved.path).vocabulary_fingerprint != tokenizer.vocabulary_fingerprint:
        raise VocabularyMismatch(f"'{name}' and '{resolved.name}' have different vocabularies; choose a draft of the same family.")
    total = tokenizer.vocabulary_size
    for size in sizes:
        if not 1 <= size <= total:
            raise InvalidRequest(f"A size must be from 1 to {total}, the vocabulary of '{name}', not {size}.")
    answers, seconds = _answers(config, asks, progress)
    held_out = answers[2::3]
    counted = [answer.output for place, answer in enumerate(answers) if place % 3 != 2]
    other = count_tokens(_encoded(tokenizer, texts, progress), total)
    draft = Draft.load(name, draft_path, config, progress)
    counts = count_tokens(counted, total) + other
    tried = {size: draft.head(trimmed(tokenizer, size, counts)) for size in sorted({*sizes} - {total})}
    rows = _sweep(draft, {**tried, total: None}, held_out, seconds, progress)
    best = max(rows.values(), key=lambda row: row.tokens_per_second)
    size = next(size for size, row in rows.items() if row is best)
    counts += count_tokens([answer.output for answer in held_out], total)
    path = storage.trim_path(draft.fingerprint, tokenizer.vocabulary_fingerprint)
    try:
        save(trimmed(tokenizer, size, counts, f"{int(counts.sum())} tokens of output and text"), path, draft.fingerprint, tokenizer)
    except OSError as problem:
        raise ModelError(f"{path} could not be written ({problem.strerror}); check its permissions and free space.") from problem
    return Outcome(list(rows.values()), best, int(counts.sum()), path)


def _answers(config: EngineConfig, asks: Sequence[Ask], progress: Progress) -> tuple[list[Answer], Callable[[int], float]]:
    """The target's greedy answers with what it thought likely, and how long its pass over so many rows takes."""
    from hasten import LLM

    with LLM(replace(config, draft="none"), progress=progress) as llm:
        inputs = [llm.encode(ask(llm))[-LONGEST_PROMPT:] for ask in asks]
        on_done = counted(progress, "answering", len(inputs))
        params = SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0.0)
        outputs = [completion.answers[0].tokens for completion in llm.generate(inputs, params, on_done=on_done)]
        executor, vocabulary = llm.engine.executor, llm.engine.vocabulary
        answers = [Answer(prompt, output) for prompt, output in zip(inputs, outputs, strict=True) if len(output) > 2 * DEPTH]
        if len(answers) < 3:
            raise InvalidRequest("The target's answers are too short to measure anything; give prompts that ask for more text.")
        for place in range(2, len(answers), 3):
            answers[place] = replace(answers[place], likeliest=_likeliest(executor, answers[place], vocabulary))
            progress("reading answers", place + 1, len(answers))
        seconds = _pass_seconds(executor)
    del llm, executor
    gc.collect()
    return answers, seconds


def _likeliest(executor: Executor, answer: Answer, vocabulary: int) -> list[list[int]]:
    """For each token of the answer the target's likeliest tokens in its place."""
    tokens = answer.prompt + answer.output[:-1]
    blocks = list(range(-(-len(tokens) // BLOCK_SIZE)))
    out: list[list[int]] = []
    for start in range(0, len(tokens), BLOCK_SIZE):
        chunk = tokens[start : start + BLOCK_SIZE]
        first = min(max(0, len(answer.prompt) - 1 - start), len(chunk))
        logits = executor.forward(Batch([Segment(blocks, start, chunk, first_logit=first)]))
        out += likeliest(logits[:, :vocabulary], Shortlists.likeliest_wanted)
    return out


def _pass_seconds(executor: Executor) -> Callable[[int], float]:
    """Seconds of a pass of one text over so many rows: the median of a few, straight lines between."""
    blocks = list(range(6))
    spent: dict[int, list[float]] = {rows: [] for rows in TIMED_ROWS}
    for _ in range(7):
        for rows, seen in spent.items():
            started = time.perf_counter()
            executor.forward(Batch([Segment(blocks, 4 * BLOCK_SIZE, [0] * rows, leaders=1)])).sum().item()
            seen.append(time.perf_counter() - started)
    known = [median(spent[rows]) for rows in TIMED_ROWS]
    return lambda rows: float(np.interp(rows, TIMED_ROWS, known))


def _encoded(tokenizer: Tokenizer, texts: Sequence[str], progress: Progress) -> list[list[int]]:
    out = []
    total, done = sum(map(len, texts)), 0
    for text in texts:
        for start in range(0, len(text), PIECE):
            out.append(tokenizer.encode(text[start : start + PIECE], add_bos=False))
            done += min(PIECE, len(text) - start)
            progress("counting text", done, total)
    return out


class Draft:
    """The draft model on its own, whose head can be changed."""

    def __init__(self, executor: Executor, rows: HeadRows, fingerprint: str, vocabulary: int) -> None:
        self.executor, self.rows, self.fingerprint, self.vocabulary = executor, rows, fingerprint, vocabulary
        self._whole = executor.decoder

    @staticmethod
    def load(name: str, path: Path, config: EngineConfig, progress: Progress) -> Draft:
        """Raises ModelError when its head cannot be trimmed here."""
        source = open_source(path)
        device = choose_device(config.device)
        precision = choose_precision(draft_precision(config.precision, device, source), device)
        converted = kept_weights(source, precision, name)
        decoder = load_decoder(source, precision, device, converted, progress)
        rows = head_rows(source, decoder, converted)
        if rows is None:
            raise ModelError(
                f"The draft model's weights could not be kept in {storage.home()}, which trimming needs; free some space."
            )
        set_threads(config.threads, precision)
        executor = Executor(decoder, DRAFT_POSITIONS // BLOCK_SIZE, device)
        return Draft(executor, rows, source.fingerprint, load_tokenizer(path).vocabulary_size)

    def head(self, trim: TrimmedVocabulary) -> TrimmedHead:
        return TrimmedHead(self.rows, trim.ids)

    def drafter(self, head: TrimmedHead | None) -> LanguageModelDrafter:
        """A drafter with that head (None: the whole one); the one that was made before must not be used any more."""
        self.executor.decoder = self._whole if head is None else self._whole.with_head(head)
        blocks = BlockManager(self.executor.pool.num_blocks, prefix_cache=False)
        return LanguageModelDrafter(self.executor.forward, blocks, self.vocabulary, DRAFT_POSITIONS, head=head)


def _sweep(
    draft: Draft,
    heads: dict[int, TrimmedHead | None],
    answers: list[Answer],
    seconds: Callable[[int], float],
    progress: Progress,
) -> dict[int, Timed]:
    tallies = {size: Tally() for size in heads}
    done = 0
    for answer in answers:
        for size, head in heads.items():
            replay(draft.drafter(head), answer, tallies[size], seconds)
            done += 1
            progress("measuring sizes", done, len(answers) * len(heads))
    return {
        size: tallies[size].timed(draft.vocabulary if head is None else len(head.fixed), seconds) for size, head in heads.items()
    }


def replay(drafter: LanguageModelDrafter, answer: Answer, tally: Tally, seconds: Callable[[int], float]) -> None:
    """Draft a known answer round by round. The first round, which reads the prompt, is not counted."""
    text = RunningText(
        0, "replay", SamplingParams(temperature=0.0), 0, answer.prompt + answer.output[:1], len(answer.prompt), DRAFT_POSITIONS
    )
    drafter.begin(text)
    while (left := len(answer.output) - text.output_length) > 1:
        level = drafter.seconds_per_pass
        floor = 0.3 if level is None else min(0.95, level / seconds(1))
        budget = DraftBudget(3 * DEPTH, min(DEPTH, left - 1), floor)
        started = time.perf_counter()
        (tree,) = drafter.propose([text], [budget])
        spent = time.perf_counter() - started
        path = _accepted(tree, answer.output[text.output_length :])
        at = text.output_length
        emitted = answer.output[at : at + len(path) + 1]
        if at > 1 and len(tree):
            tally.tokens += len(emitted)
            tally.rows.append(1 + len(tree))
            tally.drafting.append(spent)
            tally.levels.append(max(tree.depths()))
        text.tokens += emitted
        drafter.observe(text, tree, Verdict(path, emitted, [], answer.likeliest[at : at + len(emitted)]))
    drafter.end(text)


def _accepted(tree: DraftTree, ahead: list[int]) -> list[int]:
    node, path = ROOT, []
    for token in ahead[:-1]:
        child = tree.child(node, token)
        if child is None:
            break
        path.append(child)
        node = child
    return path
