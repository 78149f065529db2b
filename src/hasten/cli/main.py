"""``hasten``: the table of verbs and the way in. A verb's module is imported when it is chosen; ``--help`` imports none."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import click

from hasten import __version__
from hasten.cli.settings import common_options, with_settings
from hasten.cli.show_errors import Shell, shown
from hasten.core.registry import nearest


class Row(NamedTuple):
    """Where a verb lives ("module:command") and the line that ``hasten --help`` shows for it."""

    target: str
    help: str


VERBS = {
    "generate": Row("hasten.cli.generate:generate", "Answer a prompt, or a file of prompts."),
    "chat": Row("hasten.cli.chat:chat", "Talk with a model in the terminal."),
    "serve": Row("hasten.cli.serve:serve", "Serve models to OpenAI's and Anthropic's clients."),
    "pull": Row("hasten.cli.models:pull", "Fetch a model and check it."),
    "ls": Row("hasten.cli.models:ls", "List the models you have and those you can pull."),
    "show": Row("hasten.cli.models:show", "Show what a model is: family, size, context, licence."),
    "quantize": Row("hasten.cli.quantise:quantize", "Make better four-bit weights of a model, for --precision int4."),
    "draft": Row("hasten.cli.draft:draft", "Prepare what guesses ahead: databases, the draft model's vocabulary."),
    "rm": Row("hasten.cli.models:rm", "Remove a model from this disk."),
    "profile": Row("hasten.cli.profile:profile", "Show what a pass of a model costs here, and measure it again."),
    "prove": Row("hasten.cli.prove:prove", "Show on your own models that drafts, batch and cache change no text."),
    "bench": Row("hasten.cli.bench:bench", "Measure speeds side by side: modes, drafters, other engines."),
    "eval": Row("hasten.cli.eval:evaluate", "Measure quality with and without drafts: solved problems, perplexity."),
    "roofline": Row("hasten.cli.roofline:roofline", "Predict steps and speed-ups from shapes, here or on a named machine."),
    "doctor": Row("hasten.cli.doctor:doctor", "Look at this machine and say what would make it faster."),
}

# Verbs of other programs for the same things.
USUAL_ELSEWHERE = {"run": ("chat", "generate"), "list": ("ls",), "download": ("pull",), "remove": ("rm",), "delete": ("rm",)}

EPILOG = """Every option can also be given as an environment variable (--max-tokens as HASTEN_MAX_TOKENS) or in a TOML file
(--config FILE, HASTEN_CONFIG, or ~/.config/hasten/config.toml). An option wins over a variable, and that over the file.
The file has tables [engine] and [sampling] for all verbs, and one for each verb, such as [serve] or [draft.trim], which wins."""


class LazyGroup(click.Group):
    """A group whose commands are rows of a table, imported one at a time."""

    def __init__(self, *arguments: Any, rows: dict[str, Row], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.no_args_is_help = False
        self.rows = rows

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Without any argument: print the help."""
        if not args:
            click.echo(ctx.get_help())
            ctx.exit()
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.rows)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of that name with its settings attached, or None."""
        row = self.rows.get(cmd_name)
        if row is None:
            return None
        module, _, attribute = row.target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return with_settings(command)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.rows and not args[0].startswith("-"):
            known = [name for name in USUAL_ELSEWHERE.get(args[0], ()) if name in self.rows]
            hint = f"; did you mean {' or '.join(map(repr, known))}?" if known else nearest(args[0], list(self.rows))
            raise click.UsageError(f"There is no verb called '{args[0]}'{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, row.help) for name, row in self.rows.items()])


@click.group(
    cls=LazyGroup,
    rows=VERBS,
    epilog=EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, message="hasten %(version)s")
@common_options
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Run a language model on this machine: exactly the text it would have given, sooner.

    Start with 'hasten generate "Why is the sky blue?"' or 'hasten chat'.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status: 0 done, 1 an error of Hasten's, 2 wrong usage, 130 interrupted."""
    shell = Shell(debug=os.environ.get("HASTEN_DEBUG", "") not in ("", "0"))
    words = None if arguments is None else list(arguments)
    return shown(lambda: cli.main(words, prog_name="hasten", standalone_mode=False, obj=shell), shell)


def open_what_is_closed() -> None:
    """A standard stream that was closed, as a daemon's may be, is an empty file, or goes nowhere.

    In the order of their numbers, for the system gives each the lowest free one. A file of ours that got it would get all that
    libraries write to the standard stream of that number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (for the whole process)


def main() -> None:
    """The console script. A character that the terminal cannot show becomes '?', never an error."""
    open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    logging.basicConfig(format="hasten: %(message)s", level=logging.WARNING)
    sys.exit(run())
