"""``hasten eval``: what a model can do, and that drafts take nothing from it."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import click

from hasten.cli.bench import say_notes, show
from hasten.cli.generate import load
from hasten.cli.options import Verb, engine_config, engine_options, typed, without_past
from hasten.core.errors import ConfigError
from hasten.core.types import SamplingParams

if TYPE_CHECKING:
    from hasten import LLM
    from hasten.bench.quality import Solved

TASKS = ("humaneval", "perplexity")
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
@click.option("--max-tokens", type=click.IntRange(1), metavar="N", default=384, show_default=True, help="Tokens of an answer.")
@click.option("--json", "as_json", is_flag=True, default=False, help="Print one JSON object.")
@engine_options
@click.pass_context
def evaluate(ctx: click.Context, /, tasks: str, problems: int | None, chunks: int, **options: Any) -> None:
    """Solve HumanEval problems (pass@1, greedy) and compute perplexity, both with and without drafts.

    Generated code runs locked in: no network, no other process, no file is written, little time and memory. The exit status is 1
    when drafts changed a text or a number.
    """
    names = [name.strip() for name in tasks.split(",")]
    for name in names:
        if name not in TASKS:
            raise ConfigError(f"There is no task called '{name}'; give {' or '.join(TASKS)}, or both with a comma between.")
    for option, task in (("problems", "humaneval"), ("max_tokens", "humaneval"), ("chunks", "perplexity")):
        if typed(option) and task not in names:
            raise ConfigError(f"--{option.replace('_', '-')} is for the task {task}, which --tasks leaves out; leave it out too.")
    config = without_past(engine_config(options))
    if config.draft == "none":
        raise ConfigError("This compares with and without drafts; give --draft auto or another choice than none.")
    from hasten.bench.sandbox import check_sandbox
    from hasten.bench.workloads import data_file, humaneval

    if "humaneval" in names:
        check_sandbox()
    rows = humaneval(problems) if "humaneval" in names else []
    text = data_file("wikitext2_test_part.txt").read_text(encoding="utf-8") if "perplexity" in names else ""
    found = Found()
    with closing(load(config)) as llm:
        if rows:
            solve(llm, rows, options["max_tokens"], found)
        if text:
            measure_perplexity(llm, text, chunks, found)
        report(llm, found, options["as_json"])
    if not found.equal:
        ctx.exit(1)


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


def measure_perplexity(llm: LLM, text: str, chunks: int, found: Found) -> None:
    """Perplexity in whole pieces, and in passes as verification makes them."""
    from hasten.bench.perplexity import chunks_of, perplexity
    from hasten.bench.quality import verified_perplexity

    llm.engine.scheduler.blocks.clear_cache()
    pieces = chunks_of(llm.engine.tokenizer, text, CHUNK, chunks)
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
        rows.append(["perplexity", f"{whole:.4f}", f"{verified:.4f}", compared])
    note = f"{llm.name} {llm.precision}; {about['processor']}, commit {about['commit']}, {about['date']}."
    show(Table("Quality with and without drafts", ["measured", "plain", "drafted", "compared"], rows, note, 1))
    say_notes([f"{task}: {why}" for task, why in found.failures.items()])
