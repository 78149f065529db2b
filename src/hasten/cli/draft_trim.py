"""``hasten draft trim``: leave out of the draft model's head what the target hardly ever says."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from hasten.cli.options import Verb, blaming, engine_config, engine_options, text_option
from hasten.cli.prompts import Prompt, alike, read_text
from hasten.core.errors import InvalidRequest
from hasten.core.types import SamplingParams

if TYPE_CHECKING:
    from hasten.train.trim import Outcome

QUESTIONS = (
    "Write a Python function that merges two sorted lists, and explain how it works.",
    "Explain to a student why the sky is blue and sunsets are red.",
    "A train leaves at 9:40 and travels 210 km at 84 km/h. When does it arrive? Show each step.",
    "Write a short story about a lighthouse keeper who finds a letter.",
    "Compare relational and document databases: when is each the better choice?",
    "Write a class in TypeScript that keeps the most recently used items, with a test.",
    "Summarise the causes and consequences of the Industrial Revolution.",
    "Draft a polite e-mail that asks a supplier to deliver two weeks earlier.",
    "Write a SQL query that finds the three best customers of each month, and describe its plan.",
    "Plan a healthy week of dinners for four people, with a shopping list.",
    "What is the difference between a virus and a bacterium, and why does it matter for treatment?",
    "Write a shell script that removes backups older than thirty days and logs what it does.",
)


@click.command(cls=Verb)
@click.option("--prompts", metavar="FILE", help="JSON lines with prompt, messages or turns, which the target answers.")
@text_option("Text to count as well (UTF-8)")
@click.option("--sizes", metavar="N,N,...", default="16384,32768,49152,65536", show_default=True, help="Numbers of ids to try.")
@engine_options
def trim(prompts: str | None, texts: tuple[str, ...], sizes: str, **options: Any) -> None:
    """Choose the ids that the draft model of --model computes, by counting and measuring.

    The target answers prompts (a dozen of its own without --prompts) and its tokens are counted; each size is then timed on
    answers that were not counted, and the fastest is kept and used from now on. It changes the speed and never the text.
    """
    config = engine_config(options, others_draft=True)
    own = [Prompt(SamplingParams(), text=question) for question in QUESTIONS]
    items = own if prompts is None else alike(prompts, "leave that out")
    with blaming("sizes"):
        wanted = _sizes(sizes)
    contents = [read_text(name) for name in texts]
    from hasten.cli.screen import notes, progress_on
    from hasten.train.trim import find_trim

    asks = [partial(item.for_model, raw=False) for item in items]
    with progress_on(notes(), f"Loading {config.model}") as progress:
        outcome = find_trim(config, asks, contents, wanted, progress)
    _show(outcome)


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError as problem:
        raise InvalidRequest(f"--sizes takes whole numbers with commas between them, not '{text}'.") from problem
    if min(sizes) < 1:
        raise InvalidRequest(f"--sizes takes numbers from 1 up, not {min(sizes)}.")
    return sizes


def _show(outcome: Outcome) -> None:
    from rich.table import Table

    from hasten.cli.screen import answers, print_table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("IDS", "TOKENS/S", "TOKENS A ROUND", "MS A LEVEL", ""):
        table.add_column(title, justify="left" if title == "" else "right")
    for row in outcome.rows:
        mark = "kept" if row is outcome.best else ""
        table.add_row(
            f"{row.ids:,}", f"{row.tokens_per_second:.2f}", f"{row.tokens_per_round:.2f}", f"{1e3 * row.level_seconds:.1f}", mark
        )
    print_table(answers(), table)
    click.echo(f"{outcome.counted:,} tokens were counted; the choice is in {outcome.path}")
