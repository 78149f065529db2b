"""``hasten eval``: what a model can do, and that drafts take nothing from it."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import click

from hasten.cli.bench import say_notes
from hasten.cli.generate import load
from hasten.cli.options import Verb, engine_config, engine_options, misuse, typed, without_past
from hasten.cli.prompts import read_text
from hasten.cli.tables import show
from hasten.core.errors import InvalidRequest
from hasten.core.types import BLOCK_SIZE, SamplingParams

if TYPE_CHECKING:
    from hasten import LLM
    from hasten.bench.quality import Solved

TASKS = ("humaneval", "perplexity")
OPTIONS_OF = {"problems": "humaneval", "max_tokens": "humaneval", "chunks": "perplexity", "text": "perplexity"}
TOGETHER = 8
CHUNK = 512


@dataclass(slots=True)
class Found:
    """What was measured; a text that differs between the modes is named."""

    problems: int = 0
    solved: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    different: list[str] = field(default_factory=list)
    tokens: int = 0
    text: str | None = None  # the file that the perplexity is of
    perplexity: dict[str, float] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        return not self.different and len(set(self.perplexity.values())) <= 1 and len(set(self.solved.values())) <= 1


@click.command("eval", cls=Verb)
@click.option("--tasks", metavar="LIST", default="humaneval,perplexity", show_default=True, help="What to measure.")
@click.option(
    "--problems", type=click.IntRange(1), metavar="N", help="HumanEval problems, the first N; default all that are there."
)
@click.option(
    "--chunks", type=click.IntRange(1), metavar="N", default=8, show_default=True, help=f"Pieces of {CHUNK} tokens of text."
)
@click.option("--text", metavar="FILE", help="UTF-8 text whose perplexity is measured, instead of WikiText-2's.")
@click.option("--max-tokens", type=click.IntRange(1), metavar="N", default=384, show_default=True, help="Tokens of an answer.")
@click.option("--json", "as_json", is_flag=True, default=False, help="Print one JSON object.")
@engine_options
@click.pass_context
def evaluate(ctx: click.Context, /, tasks: str, problems: int | None, chunks: int, text: str | None, **options: Any) -> None:
    """Solve HumanEval problems (pass@1, greedy) and compute perplexity, both with and without drafts.

    Problems and text are files of the folder that HASTEN_SHARED_DATA names; --tasks perplexity --text FILE does without.

    Generated code runs locked in: no network, no other process, no file is written, little time and memory. The exit status is 1
    when drafts changed a text or a number.
    """
    names = task_names(tasks)
    config = without_past(engine_config(options))
    if config.draft == "none":
        raise misuse("This compares with and without drafts; give --draft auto or another choice than none.", "draft")
    from hasten.bench.sandbox import check_sandbox
    from hasten.bench.workloads import TEXT_FILE, data_file, humaneval

    if "humaneval" in names:
        check_sandbox()
    rows = humaneval(problems, "give --tasks perplexity --text FILE") if "humaneval" in names else []
    content = None
    if "perplexity" in names:
        content = read_text(str(data_file(TEXT_FILE, "give --text FILE")) if text is None else text)
    found = Found()
    with closing(load(config)) as llm:
        pieces = [] if content is None else pieces_of(llm, content, chunks, text or TEXT_FILE)
        if rows:
            solve(llm, rows, options["max_tokens"], found)
        if pieces:
            found.text = text or TEXT_FILE
            measure_perplexity(llm, pieces, found)
        report(llm, found, options["as_json"])
    if not found.equal:
        ctx.exit(1)


def task_names(tasks: str) -> list[str]:
    """What --tasks lists. Raises ConfigError for a task that there is not, and for an option of one that is left out."""
    names = [name.strip() for name in tasks.split(",")]
    for name in names:
        if name not in TASKS:
            raise misuse(f"There is no task called '{name}'; give {' or '.join(TASKS)}, or both with a comma between.", "tasks")
    for option, task in OPTIONS_OF.items():
        if typed(option) and task not in names:
            which = f"--{option.replace('_', '-')}"
            raise misuse(f"{which} is for the task {task}, which --tasks leaves out; leave it out too.", option)
    return names


def pieces_of(llm: LLM, text: str, chunks: int, file: str) -> list[list[int]]:
    """The first pieces of the text. Raises InvalidRequest where it fills none, or the pool cannot hold one."""
    from hasten.bench.perplexity import chunks_of

    pieces = chunks_of(llm.engine.tokenizer, text, CHUNK, chunks)
    if not pieces:
        raise InvalidRequest(f"The text of '{file}' has fewer than {CHUNK} tokens, which make one piece; give a longer one.")
    room = llm.engine.scheduler.blocks.num_blocks * BLOCK_SIZE
    if room < CHUNK:
        raise InvalidRequest(f"A piece of {CHUNK} tokens does not fit a cache of {room}; give --cache-tokens {CHUNK} or more.")
    return pieces


def solve(llm: LLM, rows: list[dict[str, Any]], max_tokens: int, found: Found) -> None:
    """Every problem in both modes, some at a time; each text is run once."""
    from hasten.bench.modes import PLAIN, Mode, Subject
    from hasten.bench.quality import judge
    from hasten.bench.workloads import code_tokens
    from hasten.cli.screen import notes, progress_on

    subject, params = Subject(llm.engine, TOGETHER), SamplingParams(max_tokens=max_tokens)
    found.problems = len(rows)
    judged: dict[tuple[int, ...], Solved] = {}
    with progress_on(notes(), "HumanEval") as progress:
        for start in range(0, len(rows), TOGETHER):
            part = rows[start : start + TOGETHER]
            prompts = [code_tokens(llm, row["prompt"]) for row in part]
            said: dict[str, list[list[int]]] = {}
            for mode in (PLAIN, Mode("auto")):
                samples = subject.run(mode, prompts, [params] * len(part))
                said[mode.name] = [sample.tokens for sample in samples]
                for row, sample in zip(part, samples, strict=True):
                    key = (start, *sample.tokens)
                    judged[key] = judged.get(key) or judge(row, sample.text, sample.tokens, llm.has_chat_template)
                    found.solved[mode.name] = found.solved.get(mode.name, 0) + judged[key].outcome.passed
                    if mode is PLAIN:
                        found.tokens += len(sample.tokens)
                        if not judged[key].outcome.passed:
                            found.failures[row["task_id"]] = judged[key].outcome.why
            found.different += [row["task_id"] for row, a, b in zip(part, said["plain"], said["auto"], strict=True) if a != b]
            progress("HumanEval", start + len(part), len(rows))


def measure_perplexity(llm: LLM, pieces: list[list[int]], found: Found) -> None:
    """Perplexity in whole pieces, and in passes as verification makes them."""
    from hasten.bench.perplexity import perplexity
    from hasten.bench.quality import verified_perplexity

    llm.engine.scheduler.blocks.clear_cache()
    found.perplexity["whole pieces"] = perplexity(llm.engine.executor, pieces)
    found.perplexity["verified"] = verified_perplexity(llm.engine.executor, pieces)


def report(llm: LLM, found: Found, as_json: bool) -> None:
    """A row a measurement, with the machine and commit that it belongs to."""
    from hasten.bench.machine import about_machine
    from hasten.bench.words import Table

    about = about_machine()
    if as_json:
        click.echo(json.dumps({"model": llm.name, "precision": llm.precision, **asdict(found), "machine": about}))
        return
    rows = []
    if found.problems:
        plain, auto = (f"{found.solved[mode]} of {found.problems}" for mode in ("plain", "auto"))
        same = f"{found.problems - len(found.different)} of {found.problems} texts equal ({found.tokens} tokens)"
        rows.append(["HumanEval pass@1", plain, auto, same])
    if found.perplexity:
        whole, verified = found.perplexity["whole pieces"], found.perplexity["verified"]
        compared = "equal" if whole == verified else f"differ by {verified - whole:.2e}"
        rows.append([f"perplexity of {found.text}", f"{whole:.4f}", f"{verified:.4f}", compared])
    note = f"{llm.name} {llm.precision}; {about['processor']}, commit {about['commit']}, {about['date']}."
    show(Table("Quality with and without drafts", ["measured", "plain", "drafted", "compared"], rows, note, 1))
    say_notes([f"{task}: {why}" for task, why in found.failures.items()])
