"""``hasten roofline``: what steps must cost, from shapes, here or on a named machine, and what guessing would gain there."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasten.cli.bench_options import numbers, precision_of
from hasten.cli.options import Verb, blaming, engine_config, engine_options, misuse, typed
from hasten.cli.profile import check_picture
from hasten.cli.tables import show
from hasten.core.config import EngineConfig

if TYPE_CHECKING:
    from hasten.bench.hardware import Machine
    from hasten.bench.roofline import Checked, Counted, Form
    from hasten.core.registry import Spec
    from hasten.model.description import ModelDescription

PROMPT_TOKENS, ANSWER_TOKENS = 512, 128
CHECK_ROWS, CHECK_CONTEXTS = [1, 2, 4, 8, 16, 32], [64, 512, 2048]


@click.command(cls=Verb)
@click.option(
    "--on", default="phone,laptop,a100,h100,h200", show_default=True, metavar="LIST", help="Machines; 'here' is measured."
)
@click.option("--rows", metavar="LIST", default="1,4,16,64", show_default=True, help="New tokens of a step.")
@click.option("--contexts", metavar="LIST", default="128,2048", show_default=True, help="Positions before them.")
@click.option("--acceptance", type=click.FLOAT, metavar="X", default=0.8, show_default=True, help="Chance that a guess is right.")
@click.option("--check", is_flag=True, default=False, help="Measure here what is predicted, and show the error.")
@click.option("--picture", metavar="FILE", help="Draw the roofline into a .png or .svg file (needs matplotlib).")
@click.option("--dark", is_flag=True, default=False, help="Draw it for a dark page.")
@click.option("--json", "as_json", is_flag=True, default=False, help="Print one JSON object.")
@engine_options
def roofline(check: bool, picture: str | None, dark: bool, as_json: bool, **options: Any) -> None:
    """Predict a model's steps from its shapes: bytes, operations, floor and time, and the gain of guessing.

    Named machines are taken at their public peak figures. 'here' measures this machine with a few passes of the model.
    """
    config = engine_config(options)
    rows, contexts = numbers(options["rows"], int, 1, 4096, "rows"), numbers(options["contexts"], int, 0, 1 << 20, "contexts")
    if not 0.0 <= options["acceptance"] <= 1.0:
        raise misuse(f"--acceptance must be a number from 0 to 1, not {options['acceptance']:g}.", "acceptance")
    if picture is not None:
        check_picture(Path(picture))
    elif typed("dark"):
        raise misuse("--dark is for the picture; give --picture FILE too, or leave it out.", "dark")
    from hasten.bench.hardware import named

    names = [name.strip() for name in options["on"].split(",")]
    if check and "here" not in names:
        names.insert(0, "here")
    with blaming("on"):
        machines = [named(name) for name in names if name != "here"]
    (shape, form), draft = counted(config)
    checked: list[Checked] = []
    if "here" in names:
        here, checked = measured(config, form, check)
        machines.insert(names.index("here"), here)
    requests = gains(shape, draft, form, machines, contexts[0], options["acceptance"])
    if as_json:
        click.echo(json.dumps(facts(shape, form, machines, rows, contexts, checked) | {"requests": requests}, indent=1))
    else:
        report(shape, form, machines, rows, contexts, requests, options["acceptance"])
        if checked:
            report_check(checked)
    if picture is not None:
        draw(shape, form, machines, Path(picture), dark)


def counted(config: EngineConfig) -> tuple[Counted, Counted | None]:
    """The model and the first that drafts for it, if any does, each with how its precision counts. No weights are read."""
    from hasten.bench.roofline import form_of
    from hasten.engine.loading import choose_device
    from hasten.model.catalogue import resolve
    from hasten.model.kept_weights import draft_precision
    from hasten.model.loaders import open_source

    def found(config: EngineConfig) -> Counted:
        source = open_source(resolve(config.model, fetch=True).path)
        return source.description, form_of(precision_of(config), source)

    def of_draft(spec: Spec) -> EngineConfig:
        source = open_source(resolve(spec.arguments["model"], fetch=True).path)
        own = draft_precision(config.precision, choose_device(config.device), source)
        return replace(config, model=spec.arguments["model"], precision=str(spec.arguments.get("precision", own)))

    drafts = [of_draft(spec) for spec in config.model_drafters(resolve(config.model, fetch=True).draft)]
    return found(config), found(drafts[0]) if drafts else None


def measured(config: EngineConfig, form: Form, check: bool) -> tuple[Machine, list[Checked]]:
    """This machine, and with ``check`` the predictions beside measurements."""
    from hasten.bench.machine import read_bandwidth
    from hasten.bench.roofline import calibrated
    from hasten.bench.roofline import check as compare
    from hasten.cli.generate import load
    from hasten.engine.profiling import sample_tokens

    tokens = max(CHECK_CONTEXTS) + max(CHECK_ROWS)
    llm = load(replace(config, draft="none", precision=form.precision, cache_tokens=max(tokens, config.cache_tokens)))
    executor, text = llm.engine.executor, sample_tokens(llm.engine.tokenizer)
    speed = read_bandwidth()
    if check:
        found = compare(executor, text, form, speed, CHECK_ROWS, CHECK_CONTEXTS)
    else:
        found = (calibrated(executor, text, form, speed), [])
    llm.close()
    return found


def gains(
    shape: ModelDescription, draft: Counted | None, form: Form, machines: list[Machine], context: int, acceptance: float
) -> list[dict[str, Any]]:
    """For each machine the seconds of a request that is alone on it, and what guessing gains there: with free guesses, and with
    the draft model where there is one."""
    from hasten.bench.roofline import best_depth, idealised_seconds

    kinds = {"free": None} if draft is None else {"free": None, "draft": draft}
    out = []
    for machine in machines:
        prompt, answer = idealised_seconds(shape, form, machine, PROMPT_TOKENS, ANSWER_TOKENS)
        found: dict[str, Any] = {"machine": machine.name, "prompt_s": prompt, "answer_s": answer}
        for name, who in kinds.items():
            found[f"{name}_depth"], found[f"{name}_gain"] = best_depth(shape, who, form, machine, acceptance, context)
        out.append(found)
    return out


def facts(
    shape: ModelDescription, form: Form, machines: list[Machine], rows: list[int], contexts: list[int], checked: list[Checked]
) -> dict[str, Any]:
    """Machines and steps as --json gives them; seconds and bytes."""
    from dataclasses import asdict

    from hasten.bench.roofline import floor_seconds, seconds, step_work

    steps = []
    for machine in machines:
        for count in rows:
            for context in contexts:
                work = step_work(shape, form, count, context)
                cost = {"floor_s": floor_seconds(work, machine), "step_s": seconds(work, machine)}
                size = {"bytes": work.bytes, "operations": work.operations}
                steps.append({"machine": machine.name, "rows": count, "context": context, **size, **cost})
    out: dict[str, Any] = {"precision": form.precision, "machines": [asdict(machine) for machine in machines], "steps": steps}
    if checked:
        out["check"] = [asdict(found) | {"error": found.error} for found in checked]
        out["median_error"] = statistics.median(found.error for found in checked)
    return out


def report(
    shape: ModelDescription,
    form: Form,
    machines: list[Machine],
    rows: list[int],
    contexts: list[int],
    requests: list[dict[str, Any]],
    acceptance: float,
) -> None:
    """Steps, then gains, then where the figures come from."""
    from hasten.bench.roofline import cache_bytes, floor_seconds, seconds, step_work
    from hasten.bench.words import Table

    steps = []
    for machine in machines:
        for context in contexts:
            for count in rows:
                work = step_work(shape, form, count, context)
                cost = [f"{1e3 * floor_seconds(work, machine):.3f}", f"{1e3 * seconds(work, machine):.3f}"]
                amounts = [f"{work.bytes / 1e9:.3f}", f"{work.operations / 1e9:.2f}", f"{work.intensity:.1f}"]
                steps.append([machine.name, str(context), str(count), *amounts, *cost])
    per_token = cache_bytes(shape, form, 1)
    note = f"Keys and values take {per_token / 1e3:.1f} kB a position. The floor is reading alone."
    if form.precision == "file":
        note += f" A weight takes {form.weight_bytes:.3f} bytes in this file."
    header = ["machine", "context", "rows", "GB", "10^9 operations", "operations/byte", "floor ms", "step ms"]
    show(Table(f"Steps in {form.precision}", header, steps, note, keys=3))
    kinds = {"free": "gain, free guesses (depth)", "draft": "gain, draft model (depth)"}
    known = [kind for kind in kinds if f"{kind}_gain" in requests[0]]
    header = ["machine", f"{PROMPT_TOKENS} prompt tokens s", f"{ANSWER_TOKENS} answer tokens s", *(kinds[kind] for kind in known)]
    body = [
        [found["machine"], f"{found['prompt_s']:.3f}", f"{found['answer_s']:.3f}"]
        + [f"{found[f'{kind}_gain']:.2f} ({found[f'{kind}_depth']})" for kind in known]
        for found in requests
    ]
    note = (
        f"Idealised run time of a request alone on the machine; gain of chains whose guesses are right with chance {acceptance:g}."
    )
    show(Table("Requests and guessing", header, body, note))
    show(Table("Machines", ["machine", "source"], [[machine.name, machine.source] for machine in machines], words=2))


def report_check(checked: list[Checked]) -> None:
    from hasten.bench.words import Table

    body = [
        [str(c.context), str(c.rows), f"{1e3 * c.predicted_s:.2f}", f"{1e3 * c.measured_s:.2f}", f"{100 * c.error:.0f} %"]
        for c in checked
    ]
    note = (
        f"Median error {100 * statistics.median(c.error for c in checked):.1f} %; what the machine was calibrated with is left out."
    )
    show(Table("Predicted and measured here", ["context", "rows", "predicted ms", "measured ms", "error"], body, note, 0, keys=2))


def draw(shape: ModelDescription, form: Form, machines: list[Machine], path: Path, dark: bool) -> None:
    """Operations a second over operations a byte, a line a machine, with this model's steps as marks; both axes logarithmic."""
    from hasten.bench.plots import COLOURS, DARK, LIGHT, MARKERS, themed
    from hasten.bench.roofline import step_work

    with themed(DARK if dark else LIGHT) as figure:
        axes = figure.add_subplot()
        for at, machine in enumerate(machines):
            colour, peak = COLOURS[at % len(COLOURS)], machine.operations_s[form.speed]
            ridge = peak / machine.read_bytes_s
            points = [0.5, ridge, max(4.0 * ridge, 2000.0)]
            axes.plot(points, [min(peak, x * machine.read_bytes_s) / 1e9 for x in points], color=colour, label=machine.name)
            for count, marker in zip((1, 16, 128), MARKERS, strict=False):
                x = step_work(shape, form, count, 512).intensity
                axes.plot([x], [min(peak, x * machine.read_bytes_s) / 1e9], marker, color=colour, markersize=6)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("operations a byte (o 1 row, s 16, D 128, context 512)")
        axes.set_ylabel("billion operations a second")
        axes.grid()
        figure.legend(loc="outside upper center", ncols=3)
        figure.savefig(path, dpi=150)
