"""``hasten prove``: show on the user's own models that drafts, batch, chunks and cache change no text."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from hasten.cli.generate import load
from hasten.cli.options import Verb, blaming, engine_config, engine_options, misuse, typed, without_past
from hasten.cli.prompts import alike, collect, for_batch
from hasten.core.types import SamplingParams

if TYPE_CHECKING:
    from hasten import LLM
    from hasten.bench.prove import Difference, Shown


@click.command(cls=Verb)
@click.option("--prompts", metavar="FILE", help="JSON lines with prompt, messages or turns, instead of the built-in prompts.")
@click.option("--max-tokens", type=click.INT, metavar="N", default=48, show_default=True, help="Tokens of each answer.")
@click.option("--seed", type=click.INT, metavar="N", default=1, show_default=True, help="Seed of the sampled answers.")
@click.option("--json", "as_json", is_flag=True, default=False, help="Print one JSON object a comparison.")
@engine_options
@click.pass_context
def prove(ctx: click.Context, /, prompts: str | None, max_tokens: int, seed: int, as_json: bool, **options: Any) -> None:
    """Show that this model, with these drafters, on this machine, says the same whatever decodes it.

    Every prompt is decoded in the plainest way: no drafts, alone, in one piece, nothing cached. Then with drafts, in a batch, in
    chunks and out of the prefix cache, greedy and sampled; every token is compared. The exit status is 1 when one differs.
    """
    config = without_past(engine_config(options))
    if config.draft == "none":
        raise misuse("Without drafters there is no promise to prove; give --draft auto or another choice than none.", "draft")
    if config.verify != "coupled" and typed("verify"):
        sentence = f"--verify {config.verify} keeps the law of a text and not its tokens, which are compared here"
        raise misuse(f"{sentence}; give --verify coupled.", "verify")
    config = replace(config, verify="coupled")
    with blaming("max_tokens", "seed"):
        params = SamplingParams(max_tokens=max_tokens, seed=seed)
    items = None if prompts is None else alike(prompts, "leave that out and give --max-tokens and --seed")
    from hasten.bench.example_prompts import EXAMPLE_PROMPTS
    from hasten.bench.prove import Proof
    from hasten.cli.screen import notes

    with closing(load(config)) as llm:
        if items is None:
            items = [item for text in EXAMPLE_PROMPTS for item in collect(text, None, params, False)]
        inputs = [llm.encode(each) for each in for_batch([replace(item, params=params) for item in items], llm, False)]
        proof = Proof(llm.engine, inputs, max_tokens, seed)
        found: list[Shown] = []
        with notes().status("") as status:
            for shown in proof.run(lambda text: status.update(text)):
                found.append(shown)
                if as_json:
                    click.echo(json.dumps(shown.to_json()))
        if not as_json:
            report(llm, found)
    if any(shown.difference is not None for shown in found):
        ctx.exit(1)


def report(llm: LLM, found: list[Shown]) -> None:
    """A row a comparison, then a sentence a promise, then every first difference."""
    from rich.table import Table
    from rich.text import Text

    from hasten.cli.screen import answers, print_table

    out = answers()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("PROMISE", "COMPARED WITH PLAIN DECODING"):
        table.add_column(title)
    for title in ("TOKENS", "WHAT WAS DIFFERENT"):
        table.add_column(title, justify="right")
    table.add_column("RESULT")
    styles = {"shown": "green", "broken": "bold red", "not shown": "yellow"}
    for shown in found:
        evidence = f"{shown.evidence} {shown.unit}"
        table.add_row(shown.promise, shown.way, str(shown.tokens), evidence, Text(shown.result, style=styles[shown.result]))
    print_table(out, table)
    out.print()
    for promise in dict.fromkeys(shown.promise for shown in found):
        out.print(summary(promise, [shown for shown in found if shown.promise == promise]))
    for shown in found:
        if shown.difference is not None:
            out.print(explain(llm, shown, shown.difference), style="red")
    broken = any(shown.difference is not None for shown in found)
    if broken and not llm.engine.executor.exact:
        out.print(
            f"{llm.precision} is exact up to rounding here: which of two nearly equal logits is larger may depend on the way."
        )
    out.print(f"{llm.name} {llm.precision}, drafters {', '.join(d.name for d in llm.engine.drafting.drafters)}", style="dim")


def summary(promise: str, of_it: list[Shown]) -> str:
    """What became of one promise over its comparisons."""
    if any(shown.difference is not None for shown in of_it):
        return f"{promise}: BROKEN"
    counted = [shown for shown in of_it if shown.result == "shown"]
    if not counted:
        return f"{promise}: not shown, for nothing was done differently ({of_it[0].unit}: 0)"
    tokens, evidence = sum(shown.tokens for shown in counted), sum(shown.evidence for shown in counted)
    return f"{promise}: shown by {tokens} equal tokens ({counted[0].unit}: {evidence})"


def explain(llm: LLM, shown: Shown, found: Difference) -> str:
    """The first token that differs, with both logits."""

    def side(token: int | None, logit: float | None) -> str:
        return "nothing" if token is None else f"{token} {llm.engine.tokenizer.token_text(token)!r} (logit {logit:.6f})"

    return (
        f"{shown.promise}, {shown.way}: prompt {found.prompt + 1}, token {found.position + 1}: plain decoding says "
        f"{side(found.expected, found.logits[0])}, this way says {side(found.found, found.logits[1])}; logits of one fresh pass"
    )
