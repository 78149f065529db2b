"""``hasten generate``: answer one prompt, streaming, or many as one batch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from hasten.cli.options import (
    Verb,
    blaming,
    engine_config,
    engine_options,
    misuse,
    sampling_options,
    sampling_params,
    speculation_options,
    speculation_params,
    typed,
)
from hasten.cli.prompts import PROMPT, Prompt, collect, for_batch
from hasten.cli.standard_input import typed_text
from hasten.core.config import EngineConfig, SpeculationParams, draft_specs
from hasten.core.errors import InvalidRequest
from hasten.core.progress import counted
from hasten.core.results import Completion

if TYPE_CHECKING:
    from hasten.engine.llm import LLM


@click.command(cls=Verb)
@click.argument("text", required=False)
@click.option("-p", "--prompt", metavar="TEXT", help="What to answer; the same as TEXT without a name.")
@click.option("--prompts", metavar="FILE", help="JSON lines with prompt, messages or turns; '-' is standard input.")
@click.option("--system", metavar="TEXT", default="", help="How the model is told to behave.")
@click.option("--raw", is_flag=True, default=False, help="Continue the text as it stands: no chat template.")
@click.option("--json", "as_json", is_flag=True, default=False, help="Print one JSON object a prompt.")
@sampling_options()
@engine_options
@speculation_options
def generate(
    text: str | None, prompt: str | None, prompts: str | None, system: str, raw: bool, as_json: bool, **options: Any
) -> None:
    """Answer TEXT, or each prompt of a file, or what comes on standard input.

    The prompt is a message to a chat model: its chat template is applied where it has one, unless --raw is given.
    The answer goes to standard output; a line on speed and guesses goes to standard error.
    """
    if text is not None and prompt is not None:
        raise misuse("Give the prompt once: as TEXT or by --prompt.", *PROMPT)
    if raw and typed("system"):
        raise misuse("--raw applies no chat template, which --system needs; leave one of the two out.", "system")
    if typed("logprobs") and not as_json:
        raise misuse("--logprobs appear in the JSON form only; add --json.", "logprobs")
    options["logprobs"] = options["logprobs"] if as_json else None  # a setting for other calls
    with blaming("system"):
        system = typed_text(system, "--system")
    config = engine_config(options)
    speculation = speculation_params(options)
    items = collect(text if prompt is None else prompt, prompts, sampling_params(options), raw)
    if not as_json and (asked := [item.line for item in items if "logprobs" in item.own]):
        raise InvalidRequest(f"{asked[0]}: logprobs appear in the JSON form only; add --json.")
    items = [item.told(system) for item in items] if system and not raw else items
    with closing(load(config)) as llm:
        if len(items) == 1 and items[0].params.n == 1 and not as_json:
            _stream_one(llm, items[0], raw, speculation)
        else:
            _answer_all(llm, items, raw, as_json, speculation)


def load(config: EngineConfig) -> LLM:
    """The model of ``config``, with progress on standard error while it is fetched and loaded. Raises Misuse where --draft is
    wrong."""
    from hasten.cli.screen import notes, progress_on

    with progress_on(notes(), f"Loading {config.model}") as progress:
        from hasten.engine.interrupts import interrupts_held_back

        with interrupts_held_back():  # packages that are being imported may swallow it
            from hasten import LLM
            from hasten.draft.specs import check_specs

        with blaming("draft"):
            check_specs(draft_specs(config.draft))
        return LLM(config, progress=progress)


def _stream_one(llm: LLM, item: Prompt, raw: bool, speculation: SpeculationParams) -> None:
    from hasten.cli.screen import Streaming, account, notes

    completion, silent = None, True
    with Streaming() as answer:
        for event in llm.stream(item.for_model(llm, raw), item.params, speculation=speculation):
            answer.say(event.text)
            silent = silent and not event.text
            completion = event.completion or completion
        if answer.on_line or silent:
            answer.say("\n")
    if completion is not None:
        notes().print(account(completion), style="dim")
        for line in completion.speculation.decisions.values():
            notes().print(line, style="dim")


def _answer_all(llm: LLM, items: list[Prompt], raw: bool, as_json: bool, speculation: SpeculationParams) -> None:
    """Run all prompts as one batch; print each answer as soon as those before it are out."""
    from hasten.cli.screen import answers, batch_account, counting, notes, printable, say

    inputs = for_batch(items, llm, raw)
    started = time.monotonic()
    screen = notes()
    with counting(screen, f"Answering with {llm.name}", len(items)) as (above, progress):
        one_screen = answers().is_terminal and screen.is_terminal

        def show(index: int, completion: Completion) -> None:
            text = _shown(items[index], index, len(items), completion, as_json)
            if one_screen:  # lines have to appear above the bar
                above.print(printable(text), end="")
            else:
                say(text)

        write = InOrder(show)

        count = counted(progress, "", len(items))

        def on_done(index: int, completion: Completion) -> None:
            count(index, completion)
            write(index, completion)

        completions = llm.generate(inputs, [item.params for item in items], on_done=on_done, speculation=speculation)
    if not as_json:
        screen.print(batch_account(completions, time.monotonic() - started), style="dim")


class InOrder:
    """Hands results on in the order of their indices, whatever order they come in."""

    def __init__(self, write: Callable[[int, Completion], None]) -> None:
        self.write = write
        self.waiting: dict[int, Completion] = {}
        self.next = 0

    def __call__(self, index: int, completion: Completion) -> None:
        self.waiting[index] = completion
        while self.next in self.waiting:
            self.write(self.next, self.waiting.pop(self.next))
            self.next += 1


def _shown(item: Prompt, index: int, total: int, completion: Completion, as_json: bool) -> str:
    """The text that stands for one prompt on standard output, with its end of line."""
    if as_json:
        row = completion.to_json()
        if item.id is not None:
            row["id"] = item.id
        return json.dumps(row, ensure_ascii=False) + "\n"
    out = []
    for answer in completion.answers:
        name = f"{index + 1}/{total}" if item.id is None else f"{item.id} ({index + 1}/{total})"
        name += f", answer {answer.index + 1}" if len(completion.answers) > 1 else ""
        out.append(f"--- {name}\n{answer.text.rstrip()}\n\n")
    return "".join(out)
