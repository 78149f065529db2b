"""``hasten quantize``: round a model to four bits with regard to what its weights are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from hasten.cli.options import blaming, text_option, warn_of_threads
from hasten.cli.prompts import read_text
from hasten.cli.screen import resumable
from hasten.core.config import EngineConfig
from hasten.core.progress import Progress

if TYPE_CHECKING:
    from hasten.train.quantise import Outcome


@click.command()
@click.argument("model")
@text_option("Text to calibrate on (UTF-8)")
@click.option("--threads", metavar="N", default=0, show_default=True, help="CPU threads; 0 takes every physical core.")
def quantize(model: str, texts: tuple[str, ...], threads: int) -> None:
    """Make the four-bit weights that --precision int4 of MODEL uses from then on.

    Every weight is rounded so that what it loses is made good by others, for inputs as they come in a text: the model's own,
    unless --text gives others. That takes minutes for a small model and much longer for a large one. Ctrl-C keeps what is done, and
    the same command goes on from there; another text begins anew.
    """
    with blaming("threads"):
        config = EngineConfig(model=model, threads=threads)
    warn_of_threads(config)
    from hasten.train.quantise import quantise

    report(quantise, config, texts, f"hasten quantize {model}")


def report(
    make: Callable[[EngineConfig, list[str], Progress], Outcome], config: EngineConfig, texts: Sequence[str], again: str
) -> None:
    """Have the weights made, for the files ``texts``, and say in a line what came of it. ``again``: the command that goes on."""
    contents = [read_text(name) for name in texts]
    with resumable(f"Loading {config.model}", "What was done is kept", again) as progress:
        outcome = make(config, contents, progress)
    how = "went on from what was there, " if outcome.resumed else ""
    click.echo(f"{outcome.name}: {how}{outcome.tokens:,} tokens read, {outcome.bytes / 1e6:,.0f} MB in {outcome.path}")
