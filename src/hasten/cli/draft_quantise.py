"""``hasten draft quantize``: round a draft model to three bits, for what its target says."""

from __future__ import annotations

from typing import Any

import click

from hasten.cli.options import Verb, engine_config, engine_options, text_option
from hasten.cli.quantise import report


@click.command(cls=Verb)
@text_option("Text to round it for instead (UTF-8)")
@engine_options
def quantize(texts: tuple[str, ...], **options: Any) -> None:
    """Make three-bit weights of the draft model of --model: a guess then takes a third less time.

    The target answers questions that it asks itself, and the draft's weights are rounded so that what each loses is made good by
    others, for what the target says. They are used from then on wherever this model drafts beside integer weights; the text stays
    the target's own. That takes minutes. Ctrl-C keeps what is done, and the same command goes on from there.
    """
    config = engine_config(options, others_draft=True)
    from hasten.train.quantise import quantise_draft

    named = f" --draft-model {config.draft_model}" if config.draft_model else ""
    report(quantise_draft, config, texts, f"hasten draft quantize -m {config.model}{named}")
