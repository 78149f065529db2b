"""What the terminal shows besides the answer: progress, the account of a request, and who guessed which token.

Answers go to standard output, everything else to standard error. Colours appear only on a terminal and never under NO_COLOR.
No text is markup: names of files and models may have brackets.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from textwrap import fill

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from hasten.core.progress import Progress, silent
from hasten.core.results import Completion, Speed, StreamEvent
from hasten.core.types import MODEL_SOURCE

PATIENCE_S = 5.0  # silence before a screen without bars is told that work goes on, and between two such lines

WIDEST = 10_000  # of a line that no screen bounds
BETWEEN_COLUMNS = 2

# Okabe and Ito's colours, told apart with every kind of colour vision; each has its own line or weight too.
DRAFTER_STYLES = ("#56b4e9 underline", "#e69f00 bold", "#009e73 italic", "#cc79a7 underline2", "#f0e442 bold underline")

CUT = {
    "cache_tokens": "cut: the cache is full (raise --cache-tokens)",
    "context_length": "cut: the context is full (raise --context-length)",
    "model": "cut: the model's context is full",
}

CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def answers() -> Console:
    """Standard output, for answers and tables."""
    return Console(highlight=False, markup=False, soft_wrap=True)


def notes() -> Console:
    """Standard error, for everything that is not the answer."""
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=not sys.stderr.isatty())


def print_table(out: Console, table: Table) -> None:
    """A table in which nothing is shortened or left out, so that what is copied from it, or read by a program, is whole. Columns
    are as wide as what they hold; on a terminal that is narrower, headings and sentences are broken at their spaces where that
    makes it fit, and else lines go on in the next ones."""
    wide = out.options.update(width=WIDEST)
    fits = not out.is_terminal or Measurement.get(out, wide, table).maximum <= out.width
    broken = not fits and _broken_at_spaces(table, out, wide)
    for line in out.render_lines(table, out.options if broken else wide, pad=False):
        text = Text.assemble(*((segment.text, segment.style or "") for segment in line))
        text.rstrip()
        out.print(text)


def least_width(table: Table, out: Console) -> int:
    """What ``print_table`` can make do with, headings and sentences broken at their spaces, before it lets lines go on in the next
    ones."""
    least, _ = _widths(table, out, out.options.update(width=WIDEST))
    return sum(least) + BETWEEN_COLUMNS * (len(least) - 1)


def _widths(table: Table, out: Console, wide: ConsoleOptions) -> tuple[list[int], list[int]]:
    """Of each column the least width and the most that it has any use for: numbers stay whole, words do everywhere."""
    least, most = [], []
    for column in table.columns:
        sizes = [Measurement.get(out, wide, cell) for cell in column.cells]
        title, own = Measurement.get(out, wide, column.header), column.min_width or 0
        whole = column.no_wrap or column.justify == "right"
        body = max((size.maximum for size in sizes), default=0)
        least.append(max(body if whole else max((size.minimum for size in sizes), default=0), title.minimum, own))
        most.append(max(least[-1], 0 if whole else body, 0 if column.justify == "right" else title.maximum))
    return least, most


def _broken_at_spaces(table: Table, out: Console, wide: ConsoleOptions) -> bool:
    """Have the table take no more than the screen's width. False, with nothing changed, where that is too much for it."""
    least, most = _widths(table, out, wide)
    room = out.width - sum(least) - BETWEEN_COLUMNS * (len(least) - 1)
    if room < 0:
        return False
    for at in sorted(range(len(least)), key=lambda at: most[at] - least[at]):  # so that few columns are broken, the widest ones
        column, more = table.columns[at], min(room, most[at] - least[at])
        column.width, room = least[at] + more, room - more
        if column.justify == "right":
            column.header = fill(str(column.header), column.width, break_long_words=False, break_on_hyphens=False)
    return True


def printable(text: str) -> str:
    """``text`` without control characters when it goes to a terminal: a model must not be able to steer the screen."""
    return text.translate(CONTROLS) if sys.stdout.isatty() else text


def say(text: str) -> None:
    """Write a piece of an answer at once."""
    sys.stdout.write(printable(text))
    sys.stdout.flush()


class Streaming(logging.Filter):
    """While an answer streams, warnings begin on lines of their own: not behind its text, where both go to the same place."""

    def __init__(self) -> None:
        super().__init__()
        self.on_line = False  # whether the line that the text has come to has anything on it

    def __enter__(self) -> Streaming:
        for handler in logging.getLogger().handlers:
            handler.addFilter(self)
        return self

    def __exit__(self, *_: object) -> None:
        for handler in logging.getLogger().handlers:
            handler.removeFilter(self)

    def say(self, text: str) -> None:
        say(text)
        self.on_line = not text.endswith("\n") if text else self.on_line

    def filter(self, record: logging.LogRecord) -> bool:
        """Called before a warning is written; all are."""
        if self.on_line and _one_place():
            sys.stderr.write("\n")
            self.on_line = False
        return True


def _one_place() -> bool:
    """Whether answers and notes go to one terminal or file."""
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError):  # a stream that is no file, or closed
        return False


@contextmanager
def resumable(waiting_for: str, kept: str, again: str) -> Iterator[Progress]:
    """A progress report of long work; where that is interrupted, a line says what is ``kept``, and the command that goes on."""
    try:
        with progress_on(notes(), waiting_for) as progress:
            yield progress
    except KeyboardInterrupt:
        notes().print(f"{kept}; '{again}' goes on from there.")
        raise


@contextmanager
def progress_on(console: Console, waiting_for: str) -> Iterator[Progress]:
    """A progress report drawn as one bar a label; on a screen without bars, a line now and then while work is long."""
    if not console.is_terminal:
        yield _plain_lines(console)
        return
    columns: list[ProgressColumn] = [
        SpinnerColumn(),
        _label(),
        BarColumn(30),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    ]
    with _bars(console, *columns) as bars:
        tasks = {waiting_for: bars.add_task(waiting_for, total=None)}

        def report(label: str, done: int, total: int) -> None:
            if label not in tasks:
                for task in tasks.values():
                    bars.update(task, visible=False)
                tasks[label] = bars.add_task(label, total=total)
            bars.update(tasks[label], completed=done, total=total, visible=True)

        yield report


@contextmanager
def counting(console: Console, label: str, total: int) -> Iterator[tuple[Console, Progress]]:
    """A bar that counts finished answers, and the console on which lines appear above it."""
    if not console.is_terminal:
        yield console, silent
        return
    with _bars(console, SpinnerColumn(), _label(), BarColumn(30), MofNCompleteColumn()) as bars:
        task = bars.add_task(label, total=total)
        yield bars.console, lambda _, done, total: bars.update(task, completed=done, total=total)


def _label() -> TextColumn:
    return TextColumn("{task.description}", markup=False)


def _bars(console: Console, *columns: ProgressColumn) -> Bars:
    # Redirecting would send answers meant for a pipe to the terminal.
    return Bars(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)


def _plain_lines(console: Console) -> Progress:
    last = time.monotonic()

    def report(label: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PATIENCE_S and done < total:
            last = now
            console.print(f"{label}: {100 * done // total} %")

    return report


def account(completion: Completion) -> str:
    """One line on a finished request: length, speed, speed-up, guesses, exactness."""
    tokens = completion.usage.completion_tokens
    parts = [f"{tokens} token{'' if tokens == 1 else 's'}", *_speed_parts(completion.speed)]
    speculation = completion.speculation
    parts.append(_guesses(speculation.drafted, speculation.accepted))
    parts.append("exact" if completion.exact else "exact up to rounding")
    parts.append(f"{completion.model} {completion.precision}")
    if completion.finish_reason == "length":
        parts.append(CUT.get(completion.cut_by or "", "cut at the length limit"))
    return " · ".join(parts)


def batch_account(completions: Sequence[Completion], seconds: float) -> str:
    """One line on many requests that ran together: the tokens a second are those of the whole batch."""
    tokens = sum(completion.usage.completion_tokens for completion in completions)
    gains = [completion.speed.speedup for completion in completions if completion.speed.speedup]
    prompts, made = len(completions), sum(len(completion.answers) for completion in completions)
    parts = [f"{prompts} prompt{'' if prompts == 1 else 's'}"]
    if made != prompts:
        parts.append(f"{made} answers")
    parts += [f"{tokens} tokens", f"{tokens / max(seconds, 1e-9):.1f} tok/s together"]
    if gains:
        parts.append(f"{sum(gains) / len(gains):.2f}x plain on average")
    drafted = sum(completion.speculation.drafted for completion in completions)
    parts.append(_guesses(drafted, sum(completion.speculation.accepted for completion in completions)))
    parts.append("exact" if all(completion.exact for completion in completions) else "exact up to rounding")
    return " · ".join(parts)


def _speed_parts(speed: Speed) -> list[str]:
    out = [] if speed.tokens_per_second is None else [f"{speed.tokens_per_second:.1f} tok/s"]
    return out if speed.speedup is None else [*out, f"{speed.speedup:.2f}x plain"]


def _guesses(drafted: int, accepted: int) -> str:
    return f"{accepted} of {drafted} guesses right" if drafted else "no guesses made"


class Provenance:
    """Paints answers by who guessed each token. A drafter keeps the style it first got; the model's own tokens stay plain.

    ``decode`` gives the text of token ids. Text arrives later than its tokens (whole characters only, stop strings held back),
    so each character waits in line with its owner. Of an answer with a thought, of whose text some is left out, each piece has the
    style of the token that let it go.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self.decode = decode
        self.styles: dict[str, str] = {MODEL_SOURCE: ""}
        self.counts: Counter[str] = Counter()
        self.begin()

    def begin(self) -> None:
        """A new answer starts."""
        self.tokens: list[int] = []
        self.characters = 0
        self.by_pieces = False
        self.owners: deque[str] = deque()

    def paint(self, event: StreamEvent) -> Text:
        """The event's text, or thought, each character in the style of the token that brought it."""
        self.by_pieces |= event.thinks
        if self.by_pieces:
            self.counts.update(event.provenance)
            parts = zip(event.pieces, event.provenance, strict=True)
            return Text().join(Text(printable(piece), style=self._style(source)) for piece, source in parts)
        for token, source in zip(event.tokens, event.provenance, strict=True):
            self.tokens.append(token)
            # Without its last, unfinished character, which belongs to the token that will complete it.
            characters = len(self.decode(self.tokens).rstrip("\ufffd"))
            self.owners.extend([source] * (characters - self.characters))
            self.characters = max(characters, self.characters)
        self.counts.update(event.provenance)
        out = Text()
        for character in event.text:
            source = self.owners.popleft() if self.owners else MODEL_SOURCE
            out.append(printable(character), style=self._style(source))
        return out

    def legend(self) -> Text:
        """Each source in its own style with its share of the tokens so far."""
        total = max(1, self.counts.total())
        shares = ((source, f"{source} {100 * self.counts[source] / total:.0f} %") for source in self.styles)
        return Text(" · ").join(Text(share, style=self._style(source)) for source, share in shares)

    def _style(self, source: str) -> str:
        if source not in self.styles:
            self.styles[source] = DRAFTER_STYLES[(len(self.styles) - 1) % len(DRAFTER_STYLES)]
        return self.styles[source]
