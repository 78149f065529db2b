"""A timed comparison: contestants take turns on every task, each run is one line of a file, and a file is gone on with.

The file is JSON lines. Its first row is ``about`` (settings and machine); then ``run`` rows, one a contestant, task and repetition;
``floor`` rows (the memory's reading speed now and then); a ``failed`` row for a contestant that gave up; an ``end`` row when all is
done. Whatever is cut off, at most the last line is lost.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hasten.bench.samples import Sample
from hasten.bench.workloads import Load, Question
from hasten.core.errors import ConfigError, HastenError
from hasten.core.types import SamplingParams

FLOOR_EVERY = 8  # tasks between two measurements of the memory
Row = dict[str, Any]
Key = tuple[str, str, str, int]  # load, task, mode, repetition


class ContestantFailed(HastenError):
    """A contestant cannot go on: it did not install, crashed or refused. The comparison goes on without it."""


class Contestant(Protocol):
    """Whoever can answer. ``answer`` raises ContestantFailed when it cannot."""

    @property
    def name(self) -> str: ...

    def answer(self, prompts: list[list[int]], params: SamplingParams, repeat: int) -> list[Sample]:
        """Answer all prompts at once; samples in their order."""
        ...


class Together(Protocol):
    """Contestants that share an engine's weights and can step in turns, so that they see the same machine."""

    def fits(self, load: Load) -> bool:
        """Whether all of them have room for the load's questions at once; where not, they take turns question by question."""
        ...

    def answer(self, prompts: list[list[int]], params: SamplingParams, repeat: int) -> dict[str, list[Sample]]:
        """All of them answer all prompts; samples by name of the contestant. Times are of each one's own steps."""
        ...


@dataclass(slots=True)
class ResultFile:
    """The rows of one comparison, on disk from the moment they are made."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    done: set[Key] = field(default_factory=set)  # of all ``run`` rows

    @classmethod
    def open(cls, path: Path, settings: Row, machine: Row, restart: bool = False) -> ResultFile:
        """Begin a file, or go on with one of the same settings and commit. Raises ConfigError when it is of others: it
        says which."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [] if restart else read_rows(path)
        if not rows:
            path.write_text("", encoding="utf-8")
            out = cls(path)
            out.add({"kind": "about", "settings": settings, "machine": machine})
            return out
        about = rows[0]
        other = differing(about.get("settings", {}), json.loads(json.dumps(settings)))
        if other or about["machine"].get("commit") != machine.get("commit"):
            what = f"other settings ({', '.join(other)})" if other else "another commit"
            raise ConfigError(f"{path} holds results of {what}; give another --out, or --restart to begin anew.")
        with path.open("w", encoding="utf-8") as file:  # without a last line that was cut off
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return cls(path, rows, {key_of(row) for row in rows if row["kind"] == "run"})

    def add(self, row: Row) -> None:
        """Write a row at once, whole."""
        line = json.dumps(row) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)
        self.rows.append(json.loads(line))
        if row["kind"] == "run":
            self.done.add(key_of(row))


def differing(old: Row, new: Row) -> list[str]:
    """Names of the settings that are not the same; of a group of settings, those in it."""
    out: list[str] = []
    for name in dict.fromkeys([*old, *new]):
        one, other = old.get(name), new.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            out += differing(one, other)
        elif one != other:
            out.append(name)
    return out


def read_rows(path: Path) -> list[Row]:
    """All whole rows of a result file; none where there is no file. Raises ConfigError when it is something else."""
    if not path.exists():
        return []
    rows: list[Row] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows.append(row | {"kind": row["kind"]})
        except (ValueError, TypeError, KeyError) as problem:
            if number == len(lines):
                break
            raise ConfigError(f"{path}, line {number}, is no result of hasten bench; give another --out.") from problem
    if rows and rows[0]["kind"] != "about":
        raise ConfigError(f"{path} is no result file of hasten bench; give another --out.")
    return rows


def key_of(row: Row) -> Key:
    return row["load"], row["task"], row["mode"], row["repeat"]


@dataclass(frozen=True, slots=True)
class Task:
    """Questions of one load that run at once."""

    load: Load
    questions: list[Question]

    @property
    def name(self) -> str:
        return "+".join(question.name for question in self.questions)


@dataclass(slots=True)
class Session:
    """Runs ``loads`` with every contestant, ``repeats`` times. ``floor`` measures the memory (bytes a second); ``joules`` tells the
    energy since it was last asked. ``seconds`` bounds how long ``run`` goes on: a task that was begun is finished. ``together``
    answers for all contestants; their energy cannot be told apart then."""

    loads: Sequence[Load]
    contestants: Sequence[Contestant]
    results: ResultFile
    floor: Callable[[], float]
    joules: Callable[[], float | None] = lambda: None
    repeats: int = 1
    seconds: float = float("inf")
    clock: Callable[[], float] = time.perf_counter
    together: Together | None = None

    def tasks(self) -> list[Task]:
        """Tasks in turns over the loads, so that a comparison that is cut short has seen all of them."""
        by_load = [[Task(load, questions) for questions in load.tasks()] for load in self.loads]
        longest = max(map(len, by_load), default=0)
        return [tasks[at] for at in range(longest) for tasks in by_load if at < len(tasks)]

    def run(self, each: Callable[[str, int, int], None] = lambda *_: None) -> bool:
        """Measure what is not in the file yet. True when everything is done, False when time ran out."""
        begun, tasks = self.clock(), self.tasks()
        working = list(self.contestants)
        if not self._missing(tasks, working):
            return True
        self._warm_up(tasks[0], working)
        for number, (repeat, task) in enumerate((repeat, task) for repeat in range(self.repeats) for task in tasks):
            if number % FLOOR_EVERY == 0 and self._missing([task], working):
                self.results.add({"kind": "floor", "read_bytes_s": self.floor()})
            if self.together is not None and self.together.fits(task.load) and self._missing([task], working, [repeat]):
                if self.clock() - begun >= self.seconds:
                    return False
                each(f"{task.load.name}, in step", number, self.repeats * len(tasks))
                self._measure_together(task, self.together, repeat)
            for contestant in list(turn(working, number)):
                if (task.load.name, task.name, contestant.name, repeat) in self.results.done:
                    continue
                if self.clock() - begun >= self.seconds:
                    return False
                each(f"{task.load.name}: {contestant.name}", number, self.repeats * len(tasks))
                if not self._measure(task, contestant, repeat):
                    working.remove(contestant)
        self.results.add({"kind": "end"})
        return True

    def _missing(self, tasks: list[Task], working: Sequence[Contestant], repeats: Sequence[int] | None = None) -> bool:
        rounds = range(self.repeats) if repeats is None else repeats
        wanted = ((t.load.name, t.name, c.name, r) for t in tasks for c in working for r in rounds)
        return any(key not in self.results.done for key in wanted)

    def _warm_up(self, task: Task, working: list[Contestant]) -> None:
        """One short answer each, so that nobody's first run pays for caches and threads."""
        prompt = task.questions[0].tokens[-32:]
        for contestant in list(working):
            try:
                contestant.answer([prompt], SamplingParams(max_tokens=8, ignore_eos=True), -1)
            except ContestantFailed as problem:
                self._failed(contestant, problem)
                working.remove(contestant)

    def _measure(self, task: Task, contestant: Contestant, repeat: int) -> bool:
        self.joules()
        started = self.clock()
        try:
            samples = contestant.answer([question.tokens for question in task.questions], task.load.params, repeat)
        except ContestantFailed as problem:
            self._failed(contestant, problem)
            return False
        self._add(task, contestant.name, repeat, self.clock() - started, self.joules(), samples)
        return True

    def _measure_together(self, task: Task, together: Together, repeat: int) -> None:
        answers = together.answer([question.tokens for question in task.questions], task.load.params, repeat)
        for name, samples in answers.items():
            wall = max(sample.first_s + sample.decode_s for sample in samples)
            self._add(task, name, repeat, wall, None, samples)

    def _add(self, task: Task, name: str, repeat: int, wall: float, joules: float | None, samples: list[Sample]) -> None:
        self.results.add(
            {
                "kind": "run",
                "load": task.load.name,
                "task": task.name,
                "batch": task.load.batch,
                "temperature": task.load.params.temperature,
                "mode": name,
                "repeat": repeat,
                "wall_s": wall,
                "joules": joules,
                "samples": [asdict(sample) for sample in samples],
            }
        )

    def _failed(self, contestant: Contestant, problem: ContestantFailed) -> None:
        self.results.add({"kind": "failed", "mode": contestant.name, "why": str(problem)})


def turn(contestants: Sequence[Contestant], number: int) -> Iterator[Contestant]:
    """Who runs in which order: everyone begins in turn, and every other round goes backwards, so that neither drift nor a
    neighbour in the order favours anyone."""
    count = len(contestants)
    order = [contestants[(number // 2 + at) % count] for at in range(count)] if count else []
    return iter(order if number % 2 == 0 else order[::-1])
