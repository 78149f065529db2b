"""``hasten draft build``: make the databases of the hierarchy drafter from the model's own answers and from any text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasten.cli.options import Verb, engine_config, engine_options, misuse, sampling_options, sampling_params, text_option
from hasten.cli.prompts import Prompt, collect, for_batch, read_text
from hasten.core.config import EngineConfig
from hasten.core.errors import HastenError, InvalidRequest
from hasten.core.progress import Progress, counted
from hasten.core.replacement import refusal
from hasten.core.types import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

QUESTIONS = 1000
MOST_QUESTIONS = 65536
PIECE = 1 << 16  # characters that are made tokens at once, up to the next line's end


@click.command(cls=Verb)
@click.option("--prompts", metavar="FILE", help="JSON lines with prompt, messages or turns: the model's answers are kept.")
@click.option(
    "--questions",
    type=click.IntRange(0, MOST_QUESTIONS),
    metavar="N",
    help=f"Questions that the model asks itself, to answer them; {QUESTIONS} where no file is given.",
)
@text_option("A text file (UTF-8)")
@sampling_options(without=("n", "logprobs"))
@engine_options
def build(prompts: str | None, questions: int | None, texts: tuple[str, ...], **options: Any) -> None:
    """Make draft databases: of the model's own answers, and of --text files.

    Each replaces the one that was made before, at once or not at all. Where there is one of answers, `--draft auto` takes
    `hierarchy` for `suffix`. The model answers questions that it asks itself, or --prompts: like those it will be asked are best.
    """
    config, params = engine_config(options), sampling_params(options)
    files = prompts is not None or bool(texts)
    if questions is None:
        questions = 0 if files else QUESTIONS
    if not files and not questions:
        raise misuse("There is nothing to build from; give --questions N, --prompts FILE or --text FILE.", "questions")
    items = [] if prompts is None else collect(None, prompts, params, False)
    contents = [read_text(name) for name in texts]
    _build(config, Asked(items, questions, params), contents)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the model answers: ``items``, and as many ``questions`` of its own, with ``params``."""

    items: list[Prompt]
    questions: int
    params: SamplingParams


def _build(config: EngineConfig, asked: Asked, contents: list[str]) -> None:
    from hasten.cli.screen import notes, progress_on
    from hasten.draft.kept import database_paths
    from hasten.model.catalogue import resolve
    from hasten.model.tokenizer import load_tokenizer

    with progress_on(notes(), f"Loading {config.model}") as progress:
        resolved = resolve(config.model, fetch=True, progress=progress)
        tokenizer = load_tokenizer(resolved.path)
    vocabulary = tokenizer.vocabulary_fingerprint
    model_path, statistics_path = database_paths(vocabulary, resolved.name)
    if asked.items or asked.questions:
        answers = _answers(config, asked)
        with progress_on(notes(), "sorting") as progress:
            made = _make("model", "prompts", model_path, answers, vocabulary, progress)
        click.echo(made)
    if contents:
        with progress_on(notes(), "reading") as progress:
            encoded = _encoded(contents, lambda text: tokenizer.encode(text, add_bos=False), progress)
            made = _make("statistics", "text", statistics_path, encoded, vocabulary, progress)
        click.echo(made)


def _make(kind: str, source: str, path: Path, texts: list[npt.NDArray[np.int32]], vocabulary: str, progress: Progress) -> str:
    """Write one database; a line that says so. ``source`` is what it takes more of. Raises HastenError, one sentence, when it
    cannot be."""
    from hasten.draft import ngrams

    try:
        tokens = ngrams.build(path, texts, vocabulary, progress)
    except ValueError as problem:
        raise InvalidRequest(f"The {kind} database cannot be built: {problem}; give more {source}.") from problem
    except OSError as problem:
        raise HastenError(refusal(path, problem)) from problem
    full = " (full; the rest was left out)" if tokens >= ngrams.MOST_TOKENS - 2 * ngrams.DEPTH else ""
    return f"{kind} database: {tokens:,} tokens{full}, {path}"


def _answers(config: EngineConfig, asked: Asked) -> list[npt.NDArray[np.int32]]:
    """The token ids of the model's answers, in the order of the prompts, its own questions' last."""
    import numpy as np

    from hasten.cli.generate import load
    from hasten.cli.screen import counting, notes
    from hasten.train.own_questions import own_questions

    with closing(load(config)) as llm:
        prompts = for_batch(asked.items, llm, False)
        if asked.questions:
            with counting(notes(), f"Asking {llm.name} for questions", asked.questions) as (_, progress):
                prompts += own_questions(llm, asked.questions, progress)
        params = [item.params for item in asked.items]
        params += [asked.params] * (len(prompts) - len(params))
        with counting(notes(), f"Answering with {llm.name}", len(prompts)) as (_, progress):
            completions = llm.generate(prompts, params, on_done=counted(progress, "", len(prompts)))
    return [np.array(answer.tokens, dtype=np.int32) for completion in completions for answer in completion.answers]


def _encoded(contents: list[str], encode: Callable[[str], list[int]], progress: Progress) -> list[npt.NDArray[np.int32]]:
    """Token ids of each text, made piece by piece; stops where a database is full."""
    import numpy as np

    from hasten.draft.ngrams import MOST_TOKENS

    total, done, tokens = sum(map(len, contents)), 0, 0
    out = []
    for content in contents:
        pieces = [np.zeros(0, dtype=np.int32)]
        for piece in _pieces(content):
            if tokens > MOST_TOKENS:
                break
            pieces.append(np.array(encode(piece), dtype=np.int32))
            tokens += len(pieces[-1])
            done += len(piece)
            progress("reading", done, total)
        out.append(np.concatenate(pieces))
    return out


def _pieces(content: str) -> Iterator[str]:
    start = 0
    while start < len(content):
        line_end = content.find("\n", start + PIECE, start + 2 * PIECE)
        end = start + 2 * PIECE if line_end < 0 else line_end + 1
        yield content[start:end]
        start = end
