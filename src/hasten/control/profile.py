"""Cost curves by measuring: once a model and machine, kept on disk, checked with a few passes at every later load. No torch.

Whoever owns the model gives ``timed(rows, context)``: seconds of one pass over that many rows of one sequence.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten import __version__
from hasten.control import store
from hasten.control.cost import CostCurve

ROWS = (1, 2, 4, 8, 16, 32, 64, 3, 6, 12, 24, 48)  # the frame first, then what lies between
FRAME = 7
FAR_ROWS = (1, 8, 32)
NEAR, FAR = 128, 1024  # contexts
BUDGET_S = 4.0  # after the frame was measured once, go on no longer than this
FRAME_S = 10.0  # and with the frame, of which two points are enough, no longer than this
REPEATS = 5
CHECKED_ROWS = (1, 16)
CHECK_REPEATS = 2
TURNS = 7
TURNS_S = 1.0  # passes that take turns go on no longer than this
AGREE = 1.35  # how far the checked points may disagree on how much faster or slower the machine is now
HOLDS = 3.0  # and how much faster or slower that may be
KNEE = 1.5  # the knee: most rows that cost at most this many one-row passes

Timed = Callable[[int, int], float]


@dataclass(frozen=True, slots=True)
class Setting:
    """What a curve holds for; all of it goes into the file's name, or is compared."""

    model: str  # fingerprint
    precision: str
    processor: str
    threads: int
    instructions: str  # level of the native kernels, or the device's name
    kernels: str = ""  # fingerprint of the native library

    def path(self) -> Path:
        return store.folder() / store.file_name("cost", self.model[:24], self.precision, self.instructions, str(self.threads))

    def facts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "precision": self.precision,
            "processor": self.processor,
            "threads": self.threads,
            "instructions": self.instructions,
            "kernels": self.kernels,
            "version": __version__,
        }


@dataclass(frozen=True, slots=True)
class Profile:
    """A curve and where it came from: "measured now", "kept" or "kept, scaled"; ``seconds`` is what finding it took."""

    curve: CostCurve
    origin: str
    seconds: float


def processor_name() -> str:
    """The name that the processor gives itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def curve_of(setting: Setting, timed: Timed, positions: int, redo: bool = False) -> Profile:
    """The curve of this setting: the kept one where a few passes say that it still holds, else measured now and kept.

    ``positions`` is what the pool holds. One measured in a small pool says less: it is measured again in a larger one, and never
    takes the place of one that says more. ``redo`` measures in any case.
    """
    started = time.perf_counter()
    path = setting.path()
    kept = load(path, setting)
    near, far = contexts(positions)
    if kept is not None and not redo and _says_as_much(kept, near, far > 0):
        scale = checked(kept, timed, positions)
        if scale is not None:
            kept.drift = scale
            return Profile(kept, "kept", time.perf_counter() - started)
    curve = measure(timed, positions)
    if curve.known and (kept is None or _says_as_much(curve, kept.reference, bool(kept.slopes))):
        save(path, setting, curve)
    return Profile(curve, "measured now", time.perf_counter() - started)


def _says_as_much(curve: CostCurve, reference: int, slopes: bool) -> bool:
    """As one that was measured at context ``reference``, with or without slopes."""
    return curve.reference >= reference and (bool(curve.slopes) or not slopes)


def contexts(positions: int) -> tuple[int, int]:
    """Where a curve is measured in a pool that holds so many positions: near, and far (0: no slopes are measured there). Near is
    not above 0 where the pool is too small to tell anything."""
    near = min(NEAR, positions - max((count for count in ROWS if count < positions), default=positions))
    far = min(FAR, positions - max(FAR_ROWS))
    return near, far if far > 2 * near else 0


def measure(timed: Timed, positions: int, clock: Callable[[], float] = time.perf_counter) -> CostCurve:
    """Least seconds of a few passes at each point, the most important points first, within ``BUDGET_S`` or once the frame
    within ``FRAME_S``.

    An empty curve where the pool is too small to tell anything.
    """
    rows = [count for count in ROWS if count < positions]
    near, far = contexts(positions)
    if near <= 0:
        return CostCurve()
    started = clock()
    end, frame_end = started + BUDGET_S, started + FRAME_S
    points: dict[int, float] = {}
    distant: dict[int, float] = {}
    timed(1, near)  # the first pass pays for what is set up once
    for turn in range(REPEATS):
        for place, count in enumerate(rows):
            if clock() > (end if turn or place >= FRAME else frame_end) and len(points) > 1:
                break
            points[count] = min(points.get(count, math.inf), timed(count, near))
        for count in FAR_ROWS if far else ():
            if clock() > (end if turn else frame_end):
                break
            distant[count] = min(distant.get(count, math.inf), timed(count, far))
    slopes = {count: (distant[count] - points[count]) / (far - near) for count in distant if count in points}
    return CostCurve.measured(points, slopes, near)


def checked(curve: CostCurve, timed: Timed, positions: int) -> float | None:
    """How much slower the machine is now than when the curve was measured, 1 where the pool is too small to tell; None where its
    shape no longer holds."""
    rows = [count for count in CHECKED_ROWS if count + curve.reference < positions]
    if not rows:
        return 1.0
    timed(1, curve.reference)
    ratios = [min(timed(count, curve.reference) for _ in range(CHECK_REPEATS)) / curve.predict(count) for count in rows]
    if max(ratios) > AGREE * min(ratios):
        return None
    scale = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return scale if 1 / HOLDS < scale < HOLDS else None


def level(curve: CostCurve, timed: Timed, other: CostCurve, other_timed: Timed, positions: int) -> None:
    """Scale ``other`` so that it stands to ``curve`` as one-row passes do that take turns; both pools hold ``positions``. Each was
    measured at a time of its own, and memory that other programs use may be half as fast at one as at the other. Nothing happens
    where one of them is not known. Goes on no longer than ``TURNS_S``, but for one turn."""
    context = min(curve.reference, other.reference, positions - 1)
    if context < 0 or not (curve.known and other.known):
        return
    ratios: list[float] = []
    spent = timed(1, context) + other_timed(1, context)
    while len(ratios) < TURNS and (spent < TURNS_S or not ratios):
        own, others = timed(1, context), other_timed(1, context)
        ratios.append(others / own)
        spent += own + others
    found = sorted(ratios)[len(ratios) // 2] * curve.step([(1, context)]) / other.step([(1, context)])
    other.drift *= min(HOLDS, max(1 / HOLDS, found))


def floor_and_knee(curve: CostCurve) -> tuple[float, int]:
    """Seconds of a one-row pass, and the most rows that cost at most ``KNEE`` of them."""
    floor = curve.shape_at(1, curve.reference)
    most = curve.rows[-1]
    return floor, max(count for count in range(1, most + 1) if curve.shape_at(count, curve.reference) <= KNEE * floor)


def save(path: Path, setting: Setting, curve: CostCurve) -> None:
    content = {"rows": curve.rows, "seconds": curve.seconds, "slopes": curve.slopes, "reference": curve.reference}
    store.write(path, setting.facts() | content)


def load(path: Path, setting: Setting) -> CostCurve | None:
    """The kept curve; None where there is none, it is of another setting, or it is damaged (then it is set aside)."""
    content = store.read(path)
    if content is None or any(content.get(name) != value for name, value in setting.facts().items()):
        return None
    try:
        rows = [int(count) for count in store.numbers(content.get("rows"), 1, 1 << 16)]
        seconds = store.numbers(content.get("seconds"), 1e-9, 1e6)
        slopes = store.numbers(content.get("slopes"), 0.0, 1e6)
        reference = int(store.number(content.get("reference"), 0, 1 << 24))
        if not rows or rows != sorted(set(rows)) or len(seconds) != len(rows) or len(slopes) not in (0, len(rows)):
            raise ValueError("its lists do not fit together")
    except ValueError as problem:
        store.discard(path, str(problem))
        return None
    return CostCurve(rows, seconds, slopes=slopes, reference=reference)
