"""``hasten bench``: measure modes, and other engines, side by side in one run."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasten.cli.bench_loads import all_loads, check_data, settings
from hasten.cli.bench_options import (
    automatic,
    check,
    check_folder,
    check_gguf,
    in_precisions,
    mode_names,
    numbers,
    with_named_drafters,
)
from hasten.cli.generate import load
from hasten.cli.options import Verb, WholeText, engine_config, engine_options, without_past
from hasten.cli.prompts import Prompt, alike
from hasten.cli.tables import show
from hasten.core.config import EngineConfig
from hasten.core.errors import ConfigError, HastenError

if TYPE_CHECKING:
    from hasten import LLM
    from hasten.bench.contestants import ModesInStep
    from hasten.bench.peers.process import Peer
    from hasten.bench.session import Contestant
    from hasten.bench.tables import Comparison
    from hasten.bench.workloads import Load

SAMPLED_BY = "leave that out and give --temperatures, --seed and --max-tokens"
CHUNKS_HELP = "Pieces of text whose perplexity stands beside --against and --also; 0 for none."
LEAST_ROOM, GUESS_ROOM = 1024, 64  # positions that other engines are given


@click.command(cls=Verb)
@click.option(
    "--workload",
    "workloads",
    type=WholeText(),
    multiple=True,
    metavar="NAME",
    help="examples, spec-bench (default where HASTEN_SHARED_DATA is set), humaneval, hostile, synthetic:PROMPTxANSWER.",
)
@click.option("--prompts", metavar="FILE", help="JSON lines with prompt, messages or turns, and no sampling fields.")
@click.option(
    "--compare",
    "modes",
    metavar="LIST",
    help="plain, off, auto, each, drafters such as suffix+lm; @RULE may follow.",
)
@click.option("--batches", metavar="LIST", default="1", show_default=True, help="How many requests run at once.")
@click.option("--temperatures", metavar="LIST", default="0", show_default=True, help="Temperatures to measure at.")
@click.option(
    "--per-group", type=click.INT, metavar="N", help="Questions of each group of a workload, and of --prompts; default all."
)
@click.option("--max-tokens", type=click.INT, metavar="N", default=64, show_default=True, help="Most tokens of an answer.")
@click.option(
    "--ignore-eos", is_flag=True, default=False, help="Go on to --max-tokens past the model's end; always so beside other engines."
)
@click.option("--repeats", type=click.INT, metavar="N", default=1, show_default=True, help="How often each question is asked.")
@click.option("--seed", type=click.INT, metavar="N", default=0, show_default=True, help="Seed of sampled answers.")
@click.option("--ablation", is_flag=True, default=False, help="Each drafter alone, pairs, all, and fixed depths against auto.")
@click.option("--never-slower", is_flag=True, default=False, help="Auto against plain on all workloads, hostile ones included.")
@click.option("--also", metavar="LIST", help="The same modes in other precisions too, such as int8,int4.")
@click.option("--against", metavar="LIST", help="llama.cpp, openvino, transformers, vllm.")
@click.option(
    "--server", is_flag=True, default=False, help="Through servers: --batches chats in parallel, each a client of its own."
)
@click.option("--perplexity-chunks", type=click.INT, metavar="N", default=4, show_default=True, help=CHUNKS_HELP)
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
    others_draft = bool(options["against"]) and not options["server"]  # other engines take the draft model too
    config = without_past(with_named_drafters(engine_config(options, others_draft), options["modes"]))
    folder = Path(out)
    from hasten.bench.plots import check_matplotlib, draw_all
    from hasten.bench.tables import Comparison
    from hasten.bench.words import all_tables, notes

    if plots:
        check_matplotlib()
    items = None if options["prompts"] is None else alike(options["prompts"], SAMPLED_BY)
    check_data(options)
    check_folder(folder)
    with ExitStack() as stack:
        llms = {each.precision: stack.enter_context(closing(load(each))) for each in in_precisions(config, options["also"])}
        stopped = measure(llms, config, folder, items, options)
    from hasten.bench.session import read_rows

    found = Comparison(read_rows(folder / "results.jsonl"))
    if not found.loads:
        say_notes([f"{mode} is left out: {why}" for mode, why in found.failures.items()])
        if stopped:
            say_notes(["Nothing measured yet; the same command begins again."])
            ctx.exit(130)
        raise nothing_measured(found)
    for table in all_tables(found):
        show(table)
    say_notes(notes(found))
    if plots:
        from hasten.bench.page import write_page

        say_notes([f"The page is {write_page(found, folder, draw_all(found, folder))}."])
    if stopped:
        ctx.exit(130)


def nothing_measured(found: Comparison) -> HastenError:
    """Why there is no result: nobody could answer, or the time was too short for one."""
    if set(found.modes_asked) <= set(found.failures):
        return HastenError("Nothing could be measured, for the reasons above; mend one of them and give the same command again.")
    return ConfigError("Nothing was measured yet; give --seconds more time, or the same command again.")


def measure(llms: dict[str, LLM], config: EngineConfig, folder: Path, items: list[Prompt] | None, options: dict[str, Any]) -> bool:
    """Run what is missing in the folder's results. ``llms`` by precision; the config's is the baseline. True when interrupted."""
    from hasten.bench.contestants import ModeContestant, ModesInStep
    from hasten.bench.machine import Energy, about_machine, peak_memory_bytes, read_bandwidth
    from hasten.bench.modes import Subject, parse_mode
    from hasten.bench.peer_quality import add_perplexities
    from hasten.bench.session import ResultFile, Session
    from hasten.cli.screen import notes, progress_on
    from hasten.draft.kept import free_drafters

    llm, together = llms[config.precision], max(config.max_sequences, *numbers(options["batches"], int, 1, 1024, "batches"))
    subject = Subject(llm.engine, together)
    free = free_drafters(llm.name, llm.engine.tokenizer.vocabulary_fingerprint)
    auto = automatic(config, subject.loaded, free) if options["draft"] == "auto" else None
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
                if session.run(progress) and (peers or also) and options["perplexity_chunks"]:
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
    check_gguf(config.model, target.path, *([] if path is None else [path]))
    threads = threads_and_level()[0]
    longest = max(
        (len(question.tokens) + (load.params.max_tokens or 0) for load in loads for question in load.questions), default=0
    )
    room = min(llm.context_length, max(LEAST_ROOM, longest + GUESS_ROOM))
    return make_peers(check_names(options["against"]), target.path, path, threads, room, notes().print, stack)


def say_notes(lines: list[str]) -> None:
    from hasten.cli.screen import notes

    for line in lines:
        notes().print(line)
