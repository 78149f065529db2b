"""``hasten bench``: measure modes, and other engines, side by side in one run."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasten.cli.generate import load
from hasten.cli.options import Verb, engine_config, engine_options, without_past
from hasten.cli.prompts import Prompt, collect
from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError
from hasten.core.types import SamplingParams

if TYPE_CHECKING:
    from hasten import LLM
    from hasten.bench.contestants import ModesInStep
    from hasten.bench.peers.process import Peer
    from hasten.bench.session import Contestant
    from hasten.bench.words import Table
    from hasten.bench.workloads import Load

LEAST_ROOM, GUESS_ROOM = 1024, 64  # positions that other engines are given
NEVER_SLOWER_WORKLOADS = ("spec-bench", "humaneval", "hostile")


@click.command(cls=Verb)
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    metavar="NAME",
    help="spec-bench (default), humaneval, hostile, synthetic:PROMPTxANSWER.",
)
@click.option("--prompts", metavar="FILE", help="JSON lines with prompt, messages or turns.")
@click.option(
    "--compare",
    "modes",
    metavar="LIST",
    help="plain, off, auto, each, drafters such as suffix+lm; @RULE may follow.",
)
@click.option("--batches", metavar="LIST", default="1", show_default=True, help="How many requests run at once.")
@click.option("--temperatures", metavar="LIST", default="0", show_default=True, help="Temperatures to measure at.")
@click.option("--per-group", type=click.INT, metavar="N", help="Questions of each group of a workload; default all.")
@click.option("--max-tokens", type=click.INT, metavar="N", default=64, show_default=True, help="Tokens of every answer.")
@click.option("--repeats", type=click.INT, metavar="N", default=1, show_default=True, help="How often each question is asked.")
@click.option("--seed", type=click.INT, metavar="N", default=0, show_default=True, help="Seed of sampled answers.")
@click.option("--ablation", is_flag=True, default=False, help="Each drafter alone, pairs, all, and fixed depths against auto.")
@click.option("--never-slower", is_flag=True, default=False, help="Auto against plain on all workloads, hostile ones included.")
@click.option("--also", metavar="LIST", help="The same modes in other precisions too, such as int8,int4.")
@click.option("--against", metavar="LIST", help="llama.cpp, openvino, transformers, vllm.")
@click.option(
    "--server", is_flag=True, default=False, help="Through servers: --batches chats in parallel, each a client of its own."
)
@click.option("--perplexity-chunks", type=click.INT, metavar="N", default=4, show_default=True, help="Text beside --against.")
@click.option(
    "--out",
    metavar="FOLDER",
    default="hasten-bench",
    show_default=True,
    help="Results; a run there goes on.",
)
@click.option("--restart", is_flag=True, default=False, help="Begin anew what is in --out.")
@click.option("--seconds", type=click.FLOAT, metavar="S", help="Stop after so long; the same command goes on later.")
@click.option("--plots/--no-plots", default=True, show_default=True, help="Draw pictures and write the page (needs matplotlib).")
@engine_options
@click.pass_context
def bench(ctx: click.Context, /, out: str, plots: bool, **options: Any) -> None:
    """Measure how fast a model answers in several modes, in turns in one run, and how much of the memory's speed that is.

    Results are one JSON line a run in FOLDER/results.jsonl, a table here, pictures and a page beside it. Ctrl-C keeps what has been
    measured; the same command goes on with it. Works offline once models and other engines are there.
    """
    check(options)
    config = without_past(with_named_drafters(engine_config(options), options["modes"]))
    folder = Path(out)
    from hasten.bench.plots import check_matplotlib, draw_all
    from hasten.bench.tables import Comparison
    from hasten.bench.words import all_tables, notes

    if plots:
        check_matplotlib()
    items = None if options["prompts"] is None else collect(None, options["prompts"], SamplingParams(), False)
    with ExitStack() as stack:
        llms = {each.precision: stack.enter_context(closing(load(each))) for each in in_precisions(config, options["also"])}
        stopped = measure(llms, config, folder, items, options)
    from hasten.bench.session import read_rows

    found = Comparison(read_rows(folder / "results.jsonl"))
    if not found.loads:
        raise ConfigError("Nothing was measured yet; give --seconds more time, or the same command again.")
    for table in all_tables(found):
        show(table)
    say_notes(notes(found))
    if plots:
        from hasten.bench.page import write_page

        say_notes([f"The page is {write_page(found, folder, draw_all(found, folder))}."])
    if stopped:
        ctx.exit(130)


def check(options: dict[str, Any]) -> None:
    """Raise ConfigError for what does not go together, before a model is loaded."""
    for name, low in (("max_tokens", 2), ("repeats", 1), ("per_group", 1), ("seed", 0), ("perplexity_chunks", 1)):
        value = options[name]
        if value is not None and value < low:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {low}, not {value}.")
    if options["ablation"] and options["never_slower"]:
        raise ConfigError("Give --ablation or --never-slower, not both; each is a comparison of its own.")
    if (options["ablation"] or options["never_slower"]) and options["modes"]:
        raise ConfigError("--ablation and --never-slower choose the modes; leave --compare out.")
    if options["server"] and (options["ablation"] or options["never_slower"]):
        raise ConfigError("--server compares plain, auto and other engines; leave --ablation and --never-slower out.")
    if options["also"] and (options["server"] or options["ablation"] or options["never_slower"]):
        raise ConfigError("--also stands beside --compare and --against; leave --server, --ablation and --never-slower out.")
    if options["draft"] == "none":
        raise ConfigError("A comparison needs drafters; for plain decoding alone give --compare plain.")
    if options["against"]:
        from hasten.bench.peers import check_names

        check_names(options["against"])
    numbers(options["batches"], int, 1, 1024, "batches")
    numbers(options["temperatures"], float, 0.0, 100.0, "temperatures")


def numbers(text: str, kind: type, low: float, high: float, name: str) -> list[Any]:
    """A list such as "1,8". Raises ConfigError."""
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError as problem:
        raise ConfigError(f"--{name} must be numbers with commas between them, not '{text}'.") from problem
    if not all(low <= value <= high for value in values):
        raise ConfigError(f"--{name} must lie between {low:g} and {high:g}, not '{text}'.")
    return values


def with_named_drafters(config: EngineConfig, modes: str | None) -> EngineConfig:
    """Where drafters are chosen automatically, those that modes name are loaded too; the mode "auto" stays without them."""
    from hasten.draft import DRAFTERS

    named = [name for mode in (modes or "").split(",") for name in mode.strip().partition("@")[0].split("+")]
    known = [name for name in dict.fromkeys(named) if name in DRAFTERS.names() and name != "none"]
    return replace(config, draft="+".join(["auto", *known])) if config.draft == "auto" and known else config


def automatic(config: EngineConfig, loaded: list[str]) -> tuple[str, ...] | None:
    """Whom the mode "auto" asks where others are loaded beside them, None where nobody is."""
    from hasten.engine.loading import FREE_DRAFTERS

    beside = config.draft.startswith("auto+")
    return tuple(name for name in loaded if name in (*FREE_DRAFTERS, "lm")) if beside else None


def in_precisions(config: EngineConfig, also: str | None) -> list[EngineConfig]:
    """The model as it is asked for, and in each of the other precisions. Raises ConfigError where one is none, or named twice."""
    names = [] if also is None else [name.strip() for name in also.split(",")]
    if len({config.precision, *names}) <= len(names):
        raise ConfigError(f"--also must name precisions once each, and not '{config.precision}' again, not '{also}'.")
    return [config, *(replace(config, precision=name) for name in names)]


def measure(llms: dict[str, LLM], config: EngineConfig, folder: Path, items: list[Prompt] | None, options: dict[str, Any]) -> bool:
    """Run what is missing in the folder's results. ``llms`` by precision; the config's is the baseline. True when interrupted."""
    from hasten.bench.contestants import ModeContestant, ModesInStep
    from hasten.bench.machine import Energy, about_machine, peak_memory_bytes, read_bandwidth
    from hasten.bench.modes import Subject, parse_mode
    from hasten.bench.peer_quality import add_perplexities
    from hasten.bench.session import ResultFile, Session
    from hasten.cli.screen import notes, progress_on

    llm, together = llms[config.precision], max(config.max_sequences, *numbers(options["batches"], int, 1, 1024, "batches"))
    subject = Subject(llm.engine, together)
    auto = automatic(config, subject.loaded) if engine_config(options).draft == "auto" else None
    modes = [parse_mode(name, subject.loaded, auto) for name in mode_names(options, subject.loaded)]
    loads = all_loads(llm, items, options)
    also = {name: Subject(each.engine, together) for name, each in llms.items() if each is not llm}
    energy = Energy()
    with ExitStack() as stack:
        peers = other_engines(llm, config, options, loads, stack) if options["against"] and not options["server"] else []
        ours = [ModeContestant(each, mode, name) for name, each in {"": subject, **also}.items() for mode in modes]
        own: list[Contestant] = [*ours]
        foreign: list[Contestant] = [*peers]
        if options["server"]:
            from hasten.cli.bench_servers import servers

            own, foreign = servers(config, [mode.name for mode in modes], loads, options, stack)
        others = [one.name for one in foreign]
        wanted = settings(llm, config, [*(one.name for one in own), *others], others, loads, options)
        if also:
            wanted["plain_of"] = {one.name: f"{one.precision} plain" for one in ours if one.precision}
        results = ResultFile.open(folder / "results.jsonl", wanted, about_machine(), options["restart"])
        contestants = [*own, *foreign]
        seconds = options["seconds"] or float("inf")
        in_step = None if foreign or also else ModesInStep(subject, modes)
        if in_step is not None:
            say_who_does_not_fit(in_step, loads)
        session = Session(loads, contestants, results, read_bandwidth, energy.take, options["repeats"], seconds, together=in_step)
        with progress_on(notes(), "Measuring") as progress:
            try:
                if session.run(progress) and (peers or also):
                    progress("perplexity", 0, 1)
                    engines = {one.name: one.subject.engine for one in ours}
                    add_perplexities(engines, peers, results, options["perplexity_chunks"])
            except KeyboardInterrupt:
                return True
            finally:
                results.add({"kind": "memory", "peak_bytes": peak_memory_bytes()})
    return False


def say_who_does_not_fit(in_step: ModesInStep, loads: list[Load]) -> None:
    """Which loads are compared less exactly, and what to do about it."""
    for each in loads:
        if not in_step.fits(each):
            modes = len(in_step.modes)
            needed = modes * in_step.subject.room_in_step(modes, each)[1]
            say_notes(
                [
                    f"{modes} modes of {each.name} do not fit the key-value pool together and take turns question by question, "
                    f"which is less exact; --cache-tokens {needed} lets them take turns step by step."
                ]
            )


def other_engines(llm: LLM, config: EngineConfig, options: dict[str, Any], loads: list[Load], stack: ExitStack) -> list[Peer]:
    """The contestants of --against, on this model's own file, with room for the longest question and its answer. Raises ConfigError
    where that is no GGUF."""
    from hasten.bench.peers import check_names, make_peers
    from hasten.cli.screen import notes
    from hasten.model.catalogue import resolve
    from hasten.model.kernels import threads_and_level

    target = resolve(config.model, fetch=True)
    draft = config.draft_model or target.draft
    path = None if draft is None else resolve(draft, fetch=True).path
    if target.path.suffix != ".gguf" or (path is not None and path.suffix != ".gguf"):
        raise ConfigError(f"Other engines are given the GGUF file of a model, and '{config.model}' is none; name one that is.")
    say = partial(notes().print, markup=False)
    threads = threads_and_level()[0]
    longest = max(
        (len(question.tokens) + (load.params.max_tokens or 0) for load in loads for question in load.questions), default=0
    )
    room = min(llm.context_length, max(LEAST_ROOM, longest + GUESS_ROOM))
    return make_peers(check_names(options["against"]), target.path, path, threads, room, say, stack)


def mode_names(options: dict[str, Any], loaded: list[str]) -> list[str]:
    """Names of the modes that are asked for; plain decoding is always among them, first."""
    from hasten.bench.contestants import ablation_modes, each_mode

    if options["ablation"]:
        return ablation_modes(loaded)
    if options["never_slower"]:
        return ["plain", "off", "auto"]
    asked = (options["modes"] or "plain,auto").split(",")
    names = [name.strip() for part in asked for name in (each_mode(loaded) if part.strip() == "each" else [part])]
    return list(dict.fromkeys(["plain", *names]))


def all_loads(llm: LLM, items: list[Prompt] | None, options: dict[str, Any]) -> list[Load]:
    """Every workload in every batch size at every temperature, under names that tell them apart."""
    from hasten.bench.workloads import from_prompts, loads

    vocabulary = llm.engine.vocabulary
    workloads = options["workloads"] or (NEVER_SLOWER_WORKLOADS if options["never_slower"] else () if items else ("spec-bench",))
    temperatures = numbers(options["temperatures"], float, 0.0, 100.0, "temperatures")
    out: list[Load] = []
    for temperature in temperatures:
        params = SamplingParams(temperature=temperature, seed=options["seed"], max_tokens=options["max_tokens"], ignore_eos=True)
        for batch in numbers(options["batches"], int, 1, 1024, "batches"):
            found = [load for name in workloads for load in loads(llm, name, params, options["per_group"], batch, vocabulary)]
            if items is not None:
                name = Path(options["prompts"]).stem
                found += from_prompts(llm, name, [item.for_model(llm, False) for item in items], params, batch)
            suffix = f", T={temperature:g}" if len(temperatures) > 1 and temperature else ""
            out += [replace(load, name=load.name + suffix) for load in found]
    return list({load.name: load for load in out}.values())


def settings(
    llm: LLM, config: EngineConfig, modes: list[str], peers: list[str], loads: list[Load], options: dict[str, Any]
) -> dict[str, Any]:
    """What must be the same for two runs to be one comparison."""
    from hasten.bench.machine import step_bytes

    decoder = llm.engine.executor.decoder
    return {
        "model": llm.name,
        "precision": llm.precision,
        "drafters": [drafter.name for drafter in llm.engine.drafting.drafters],
        "draft_model": config.draft_model,
        "modes": modes,
        "other_engines": peers,
        "loads": [{"name": load.name, "questions": len(load.questions), "batch": load.batch} for load in loads],
        "max_tokens": options["max_tokens"],
        "repeats": options["repeats"],
        "seed": options["seed"],
        "ablation": options["ablation"],
        "never_slower": options["never_slower"],
        "server": options["server"],
        "step_bytes": step_bytes(decoder.weights, decoder.precision.weights.itemsize),
    }


def show(table: Table) -> None:
    """A table on standard output: drawn for a terminal, Markdown for a file or a pipe."""
    from hasten.cli.screen import answers

    out = answers()
    if not out.is_terminal:
        click.echo(f"{table.title}\n\n{table.markdown()}\n\n{table.note}\n")
        return
    from rich.table import Table as Drawn

    drawn = Drawn(box=None, pad_edge=False, header_style="bold", title=table.title, title_justify="left")
    for at, title in enumerate(table.header):
        drawn.add_column(title.upper(), justify="left" if at < table.words else "right")
    for row in table.rows:
        drawn.add_row(*(f"[bold red]{cell}[/]" if cell in table.marked else cell for cell in row))
    out.print(drawn)
    out.print(table.note, style="dim")
    out.print()


def say_notes(lines: list[str]) -> None:
    from hasten.cli.screen import notes

    for line in lines:
        notes().print(line, markup=False)
