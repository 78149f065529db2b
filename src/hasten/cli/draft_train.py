"""``hasten draft train``: train a speculator for a model."""

from __future__ import annotations

from typing import Any

import click

from hasten.cli.options import Verb, engine_config, engine_options
from hasten.cli.screen import resumable

QUESTIONS = 2048
MOST_QUESTIONS = 65536


@click.command(cls=Verb)
@click.option(
    "--questions",
    type=click.IntRange(1, MOST_QUESTIONS),
    default=QUESTIONS,
    show_default=True,
    metavar="N",
    help="Questions that the model asks itself, to learn from its answers.",
)
@engine_options
def train(questions: int, **options: Any) -> None:
    """Train a speculator for --model: a small network that goes on from the model's own states, at next to no cost.

    The model answers questions that it asks itself, and the network learns to say what it said. `--draft auto` takes it from then
    on; the text stays the model's own. That takes an hour for a model of a billion weights on a few cores; more questions make
    it better. Ctrl-C keeps what is done, and the same command goes on from there.
    """
    config = engine_config(options)
    from hasten.train.speculator import train_speculator

    again = f"hasten draft train -m {config.model}"
    with resumable(f"Loading {config.model}", "What is done is kept", again) as progress:
        outcome = train_speculator(config, questions, progress)
    right = ", ".join(f"{share:.2f}" for share in outcome.right)
    click.echo(f"{outcome.name}: learnt from {outcome.tokens:,} tokens; the first guesses are right {right} of the time.")
    click.echo(f"{outcome.path}")
    click.echo(f"{outcome.answers} keeps the answers: more --questions go on from them, and it can be removed.")
