"""Pictures of a comparison, in light and dark: speeds, ratios to plain decoding, acceptance by position. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from hasten.bench.statistics import Estimate
from hasten.bench.tables import ALL, Cell, Comparison
from hasten.core.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#999999")  # Okabe and Ito's first
MARKERS = "osD^vPX*"
DEEPEST = 16  # positions shown
MOST_BARS = 6  # modes whose bars are drawn for every load
ROW_LETTERS = 22  # of a row's name in a line
LEGEND_LETTERS = 76  # of a picture's width
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
    """Tokens a second, a bar a mode, with 95 % intervals; the memory's floor as a line where one request runs at a time. By load,
    or with many modes over all loads alone."""
    cells = found.cells()
    if not cells:
        return False
    modes = found.modes
    whole = [cell for cell in cells if cell.load == ALL or len(found.loads) == 1]
    axes = figure.add_subplot()
    if len(modes) > MOST_BARS and whole:
        cells = whole
        figure.set_size_inches(7.0, 1.6 + max(0.36, _height([cell.mode for cell in whole])) * len(whole))
        _bars(axes, [(place, cell) for place, cell in enumerate(whole)], 0.75, [_colour(modes.index(cell.mode)) for cell in whole])
        _name_rows(axes, [cell.mode for cell in whole])
    else:
        loads, height = _loads(cells), 0.8 / len(modes)
        figure.set_size_inches(7.0, 1.9 + max(0.32 * len(modes), 0.6, _height(loads)) * len(loads))
        for at, mode in enumerate(modes):
            middle = (at - (len(modes) - 1) / 2) * height
            own = [(loads.index(cell.load) + middle, cell) for cell in cells if cell.mode == mode]
            _bars(axes, own, 0.9 * height, [_colour(at)] * len(own), mode)
        _name_rows(axes, loads)
    _name_values(figure, "tokens a second (median, 95 % interval)")
    floor = found.floor_speed if any(cell.of_floor is not None for cell in cells) else None
    if floor:
        axes.axvline(floor, color=_ink(figure), linestyle="--", linewidth=1, label="a plain step at full memory speed")
    axes.set_xlim(0, 1.06 * max([floor or 0.0, *(cell.speed.high for cell in cells)]))
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    _legend(figure, axes)
    return True


def _bars(axes: Axes, placed: list[tuple[float, Cell]], height: float, colours: list[str], label: str | None = None) -> None:
    speeds = [cell.speed for _, cell in placed]
    bars = {"ecolor": _ink(axes.get_figure()), "capsize": 2, "elinewidth": 1}
    places = [place for place, _ in placed]
    axes.barh(places, [speed.value for speed in speeds], height, xerr=_errors(speeds), color=colours, label=label, error_kw=bars)


def ratios(found: Comparison, figure: Figure) -> bool:
    """Speed over plain decoding by load, a mark a mode, with 95 % intervals; the line at 1 is plain decoding itself."""
    cells = [cell for cell in found.cells() if cell.ratio is not None]
    loads, modes = _loads(cells), [mode for mode in found.modes if any(cell.mode == mode for cell in cells)]
    if not cells:
        return False
    figure.set_size_inches(7.0, 1.9 + max(0.2 * len(modes), 0.5, _height(loads)) * len(loads))
    axes = figure.add_subplot()
    for at, mode in enumerate(modes):
        own = [cell for cell in cells if cell.mode == mode]
        places = [loads.index(cell.load) + 0.7 * ((at + 0.5) / len(modes) - 0.5) for cell in own]
        found_ratios = [cell.ratio for cell in own if cell.ratio is not None]
        values = [ratio.value for ratio in found_ratios]
        filled = "full" if at < len(COLOURS) - 1 else "none"  # colours come round again
        axes.errorbar(
            values,
            places,
            xerr=_errors(found_ratios),
            fmt=MARKERS[at % len(MARKERS)],
            fillstyle=filled,
            color=_colour(at + 1),
            label=mode,
            capsize=2,
        )
    axes.axvline(1.0, color=_ink(figure), linewidth=1)
    axes.hlines(
        [at + 0.5 for at in range(len(loads) - 1)], 0, 1, transform=axes.get_yaxis_transform(), color=_ink(figure), linewidth=0.3
    )
    _name_rows(axes, loads)
    axes.set_xlim(0, 1.06 * max(1.0, *(cell.ratio.high for cell in cells if cell.ratio is not None)))
    _name_values(figure, f"speed over {found.baseline} (geometric mean, 95 % interval)")
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    _legend(figure, axes)
    return True


def acceptance(found: Comparison, figure: Figure) -> bool:
    """Share of rounds that accepted a guess at each depth, of those that guessed so deep, over all loads."""
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_subplot()
    deepest = 0
    for at, mode in enumerate(found.modes):
        counts = found.by_position(ALL, mode)[:DEEPEST]
        if counts:
            depths = range(1, len(counts) + 1)
            shares = [right / tried for tried, right in counts]
            axes.plot(depths, shares, marker=MARKERS[at % len(MARKERS)], markersize=5, color=_colour(at), label=mode)
            deepest = max(deepest, len(counts))
    axes.set_ylim(0, 1)
    axes.set_xlim(0, deepest + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("position of the guess in its round")
    axes.set_ylabel("share accepted")
    axes.grid()
    _legend(figure, axes)
    return deepest > 0


def _loads(cells: list[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.load for cell in cells))


def _errors(estimates: list[Estimate]) -> list[list[float]]:
    """How far the ends of the intervals are; nothing is drawn where there is only one task."""
    shown = [estimate if estimate.count > 1 else None for estimate in estimates]
    return [
        [float("nan") if one is None else one.value - one.low for one in shown],
        [float("nan") if one is None else one.high - one.value for one in shown],
    ]


def _name_values(figure: Figure, text: str) -> None:
    """Below the whole picture: under the axes, which long names of rows make narrow, it would be cut off."""
    figure.supxlabel(text, fontsize="medium")


def _in_lines(name: str) -> list[str]:
    return wrap(name, ROW_LETTERS) or [""]


def _height(names: list[str]) -> float:
    """Inches that a row needs for its name."""
    return 0.1 + 0.22 * max(len(_in_lines(name)) for name in names)


def _name_rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), ["\n".join(_in_lines(name)) for name in names])
    axes.set_ylim(len(names) - 0.45, -0.55)


def _legend(figure: Figure, axes: Axes) -> None:
    """Above the picture, in as many columns as fit."""
    handles, names = axes.get_legend_handles_labels()
    if names:
        figure.legend(
            handles, names, loc="outside upper center", ncols=max(1, min(3, LEGEND_LETTERS // (max(map(len, names)) + 8)))
        )


def _ink(figure: Any) -> str:
    return str(figure.ink)


def _colour(at: int) -> str:
    return COLOURS[at % len(COLOURS)]
