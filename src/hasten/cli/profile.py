"""``hasten profile``: what a pass of the model costs on this machine, and from how many rows on they stop being free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasten.cli.options import Verb, engine_config, engine_options, misuse
from hasten.core.errors import ConfigError

if TYPE_CHECKING:
    from hasten.control.cost import CostCurve
    from hasten.control.profile import Profile

PICTURES = (".png", ".svg")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito's


@click.command(cls=Verb)
@click.option("--redo", is_flag=True, default=False, help="Measure again even where a good profile is kept.")
@click.option("--picture", metavar="FILE", help="Draw the curves into a .png or .svg file (needs matplotlib).")
@click.option("--json", "as_json", is_flag=True, default=False, help="Print the curves as one JSON object.")
@engine_options
def profile(redo: bool, picture: str | None, as_json: bool, **options: Any) -> None:
    """Show what a pass of a model costs here, by rows and by context; the controller decides by it what to draft.

    The profile is measured when a model is first loaded, in a few seconds, and kept.
    """
    config = engine_config(options)
    if config.draft == "none":
        raise misuse("Without drafters nothing is profiled; give --draft auto or another choice than none.", "draft")
    if picture is not None:
        check_picture(Path(picture))
    from hasten.cli.screen import notes, progress_on
    from hasten.engine.loading import load_engine

    with progress_on(notes(), f"Loading {config.model}") as progress:
        engine = load_engine(config, progress, redo)
    profiles = engine.profiles
    if as_json:
        click.echo(json.dumps({name: facts(found) for name, found in profiles.items()}, indent=2))
    else:
        for name, found in profiles.items():
            show(engine.model if name == "target" else f"{name} (draft)", found)
    if picture is not None:
        draw({engine.model if name == "target" else name: found.curve for name, found in profiles.items()}, Path(picture))
        notes().print(f"The picture is in {picture}.")


def facts(found: Profile) -> dict[str, Any]:
    """A profile as --json gives it; seconds of one sequence's pass."""
    from hasten.control.profile import floor_and_knee

    curve = found.curve
    if not curve.known:
        return {"origin": found.origin, "rows": []}
    floor, knee = floor_and_knee(curve)
    return {
        "origin": found.origin,
        "measuring_s": round(found.seconds, 3),
        "machine_now": round(curve.drift, 3),
        "context": curve.reference,
        "rows": curve.rows,
        "seconds": [curve.shape_at(rows, curve.reference) for rows in curve.rows],
        "seconds_per_position": curve.slopes,
        "floor_s": floor,
        "knee_rows": knee,
    }


def show(title: str, found: Profile) -> None:
    """A table of milliseconds, rows down and contexts across, with floor and knee below."""
    from rich.table import Table

    from hasten.cli.screen import answers, print_table
    from hasten.control.profile import KNEE, floor_and_knee

    out, curve = answers(), found.curve
    if not curve.known:
        out.print(f"{title}: the key-value pool is too small to measure anything; raise --cache-tokens.")
        return
    contexts = _contexts(curve)
    floor, knee = floor_and_knee(curve)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("ROWS", justify="right")
    for context in contexts:
        table.add_column(f"CONTEXT {context}", justify="right")
    table.add_column("OF ONE ROW", justify="right")
    table.add_column("A ROW", justify="right")
    for rows in curve.rows:
        seconds = curve.shape_at(rows, curve.reference)
        cells = [f"{1e3 * curve.shape_at(rows, context):.2f}" for context in contexts]
        table.add_row(
            str(rows), *cells, f"{seconds / floor:.2f}", f"{1e3 * seconds / rows:.2f}", style="green" if rows <= knee else None
        )
    out.print(f"{title}: ms a pass", style="italic")
    print_table(out, table)
    out.print(f"floor {1e3 * floor:.2f} ms (one row, context {curve.reference}), about {1 / floor:.1f} plain tokens a second")
    out.print(f"knee  {knee} rows: up to there a pass costs at most {KNEE:g} one-row passes")
    now = "" if abs(curve.drift - 1) < 0.02 else f"; the machine now takes {curve.drift:.2f} times as long as then"
    out.print(f"{found.origin} in {found.seconds:.1f} s{now}\n", style="dim")


def draw(curves: dict[str, CostCurve], path: Path) -> None:
    """Milliseconds over rows, one colour a model and one line style a context; the knee is marked."""
    from matplotlib.figure import Figure

    from hasten.control.profile import KNEE, floor_and_knee

    known = {name: curve for name, curve in curves.items() if curve.known}
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for at, (name, curve) in enumerate(known.items()):
        colour = COLOURS[at % len(COLOURS)]
        floor, knee = floor_and_knee(curve)
        for context, style in zip(_contexts(curve), ("-", "--"), strict=False):
            values = [1e3 * curve.shape_at(rows, context) for rows in curve.rows]
            axes.plot(curve.rows, values, style, color=colour, marker=".", label=f"{name}, context {context}")
        axes.axhline(1e3 * floor, color=colour, linewidth=0.7, linestyle=":")
        axes.plot([knee], [1e3 * curve.shape_at(knee, curve.reference)], "o", color=colour, markersize=10, fillstyle="none")
        axes.annotate(
            f"knee {knee}",
            (knee, 1e3 * curve.shape_at(knee, curve.reference)),
            xytext=(6, -14),
            textcoords="offset points",
            color=colour,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({rows for curve in known.values() for rows in curve.rows})
    axes.set_xticks(ticks, [str(rows) for rows in ticks])
    axes.minorticks_off()
    axes.set_ylim(top=axes.get_ylim()[1] * 1.1)
    values = [
        value for value in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if axes.get_ylim()[0] <= value <= axes.get_ylim()[1]
    ]
    axes.set_yticks(values, [str(value) for value in values])
    axes.set_xlabel("rows in one pass")
    axes.set_ylabel("milliseconds")
    axes.set_title(f"Cost of a pass; dotted: one row, circle: the most rows within {KNEE:g} of that", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _contexts(curve: CostCurve) -> list[int]:
    from hasten.control.profile import FAR

    return [curve.reference, FAR] if curve.slopes and any(curve.slopes) else [curve.reference]


def check_picture(path: Path) -> None:
    """Told before the model is loaded."""
    if path.suffix.lower() not in PICTURES:
        raise misuse(f"--picture must name a {' or '.join(PICTURES)} file, not '{path}'.", "picture")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"There is no folder '{path.absolute().parent}' for the picture; create it first.")
    try:
        import matplotlib  # noqa: F401
    except ImportError as problem:
        raise ConfigError("--picture needs matplotlib; install it with 'pip install matplotlib' and run this again.") from problem
