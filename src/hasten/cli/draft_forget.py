"""``hasten draft forget``: remove what drafting has kept. No torch."""

from __future__ import annotations

import click

from hasten.cli.models import confirm_removal
from hasten.model import storage


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
def forget(yes: bool) -> None:
    """Remove what guessing ahead has kept: texts of past answers, databases, chosen vocabularies, measured costs.

    Of all models and all tenants. Answers stay the same; the next ones are guessed worse until enough has been learnt again.
    Stop servers first: a running one goes on with what it has in memory, and keeps it when it stops.
    """
    what = storage.learnings()
    if not what.paths:
        click.echo(f"Nothing is kept in {storage.home()}; there is nothing to forget.")
        return
    confirm_removal(what, yes)
