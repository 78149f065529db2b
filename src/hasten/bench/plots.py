"""Pictures of a comparison, in light and dark: speeds, ratios to plain decoding, acceptance by position. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.bench.tables import ALL, Cell, Comparison
from hasten.core.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#999999")  # Okabe and Ito's first
MARKERS = "osD^vPX*"
DEEPEST = 16  # positions shown
FORMATS = ("svg", "png")


@dataclass(frozen=True, slots=True)
class Theme:
    name: str
    paper: str
    ink: str
    faint: str


LIGHT = Theme("light", "#ffffff", "#1a1a1a", "#d9d9d9")
DARK = Theme("dark", "#14171c", "#e8e8e8", "#3a3f47")
THEMES = (LIGHT, DARK)


def check_matplotlib() -> None:
    """Raises ConfigError, with what to do, where it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as problem:
        raise ConfigError("Pictures need matplotlib; install it with 'pip install hasten[plot]', or give --no-plots.") from problem


def draw_all(found: Comparison, folder: Path) -> list[str]:
    """Write every picture that the rows allow as NAME-THEME.FORMAT; returns their names."""
    names = []
    for name, draw in (("speeds", speeds), ("ratios", ratios), ("acceptance", acceptance)):
        for theme in THEMES:
            with themed(theme) as figure:
                if not draw(found, figure):
                    break
                save(figure, folder, name, theme)
        else:
            names.append(name)
    return names


@contextmanager
def themed(theme: Theme, size: tuple[float, float] = (7.0, 4.6)) -> Iterator[Figure]:
    """A figure in a theme's colours whose words can still be read at half its width."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "font.size": 13,
        "axes.titlesize": 13,
        "text.color": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.edgecolor": theme.ink,
        "axes.facecolor": theme.paper,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "grid.color": theme.faint,
        "legend.frameon": False,
        "legend.fontsize": 11,
        "svg.hashsalt": "hasten",  # equal numbers give equal files
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained", facecolor=theme.paper)
        figure.ink = theme.ink  # type: ignore[attr-defined]
        yield figure


def save(figure: Figure, folder: Path, name: str, theme: Theme) -> None:
    for kind in FORMATS:
        metadata = {"Date": None} if kind == "svg" else {}
        figure.savefig(folder / f"{name}-{theme.name}.{kind}", dpi=150, metadata=metadata)


def speeds(found: Comparison, figure: Figure) -> bool:
    """Tokens a second by load, a bar a mode, with 95 % intervals; the memory's floor as a line where one request runs at a time."""
    cells = found.cells()
    loads, modes = _loads(cells), found.modes
    if not cells:
        return False
    height = 0.8 / len(modes)
    figure.set_size_inches(7.0, 1.9 + max(0.32 * len(modes), 0.6) * len(loads))
    axes = figure.add_subplot()
    for at, mode in enumerate(modes):
        chosen = [(loads.index(cell.load), cell) for cell in cells if cell.mode == mode]
        places = [load + (at - (len(modes) - 1) / 2) * height for load, _ in chosen]
        values = [cell.speed.value for _, cell in chosen]
        below = [cell.speed.value - cell.speed.low for _, cell in chosen]
        above = [cell.speed.high - cell.speed.value for _, cell in chosen]
        ink = figure.ink  # type: ignore[attr-defined]
        bars = {"ecolor": ink, "capsize": 2, "elinewidth": 1}
        axes.barh(places, values, 0.9 * height, xerr=[below, above], color=_colour(at), label=mode, error_kw=bars)
    _name_loads(axes, loads)
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens a second (median over prompts, 95 % interval)")
    if found.floor_speed and any(cell.of_floor is not None for cell in cells):
        label = "a plain step at full memory speed"
        axes.axvline(found.floor_speed, color=figure.ink, linestyle="--", linewidth=1, label=label)  # type: ignore[attr-defined]
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=2)
    return True


def ratios(found: Comparison, figure: Figure) -> bool:
    """Speed over plain decoding by load, a mark a mode, with 95 % intervals; the line at 1 is plain decoding itself."""
    cells = [cell for cell in found.cells() if cell.ratio is not None]
    loads, modes = _loads(cells), [mode for mode in found.modes if any(cell.mode == mode for cell in cells)]
    if not cells:
        return False
    figure.set_size_inches(7.0, 1.9 + max(0.2 * len(modes), 0.5) * len(loads))
    axes = figure.add_subplot()
    for at, mode in enumerate(modes):
        own = [cell for cell in cells if cell.mode == mode]
        places = [loads.index(cell.load) + 0.7 * ((at + 0.5) / len(modes) - 0.5) for cell in own]
        found_ratios = [cell.ratio for cell in own if cell.ratio is not None]
        values = [ratio.value for ratio in found_ratios]
        errors = [[r.value - r.low for r in found_ratios], [r.high - r.value for r in found_ratios]]
        axes.errorbar(values, places, xerr=errors, fmt=MARKERS[at % len(MARKERS)], color=_colour(at + 1), label=mode, capsize=2)
    axes.axvline(1.0, color=figure.ink, linewidth=1)  # type: ignore[attr-defined]
    _name_loads(axes, loads)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"speed over {found.baseline} (geometric mean, 95 % interval)")
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=min(3, len(modes)))
    return True


def acceptance(found: Comparison, figure: Figure) -> bool:
    """Share of rounds that accepted a guess at each depth, of those that guessed so deep, over all loads."""
    axes = figure.add_subplot()
    drawn = False
    for at, mode in enumerate(found.modes):
        counts = found.by_position(ALL, mode)[:DEEPEST]
        if counts:
            depths = range(1, len(counts) + 1)
            shares = [right / tried for tried, right in counts]
            axes.plot(depths, shares, marker=MARKERS[at % len(MARKERS)], markersize=5, color=_colour(at), label=mode)
            drawn = True
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0)
    axes.set_xlabel("position of the guess in its round")
    axes.set_ylabel("share accepted")
    axes.grid()
    if drawn:
        figure.legend(loc="outside upper center", ncols=3)
    return drawn


def _loads(cells: list[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.load for cell in cells))


def _name_loads(axes: Axes, loads: list[str]) -> None:
    axes.set_yticks(range(len(loads)), loads)
    axes.set_ylim(len(loads) - 0.45, -0.55)


def _colour(at: int) -> str:
    return COLOURS[at % len(COLOURS)]
