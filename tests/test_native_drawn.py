"""Who may be drawn from a row: the winner is always among them, hardly anybody else is, and every level says the same."""

from __future__ import annotations

import numpy as np
import pytest

from hasten.native.drawn import MOST, may_be_drawn
from hasten.native.loader import LEVELS, NativeLibrary
from hasten.sampling import contenders
from hasten.sampling.contenders import may_win
from hasten.sampling.noise import noise_of

SIZES = (1, 15, 16, 17, 2049, 16_384, 16_385, 50_000)


def levels(native: NativeLibrary) -> list[str]:
    return [level for level in LEVELS if LEVELS.index(level) <= LEVELS.index(native.best_isa)]


def scores_of(values: np.ndarray, ids: np.ndarray | None, temperature: float, seed: int, position: int) -> np.ndarray:
    tokens = np.arange(len(values)) if ids is None else ids
    return (values.astype(np.float64) - np.float64(values.max())) / temperature + noise_of(seed, position, tokens)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_winner_is_always_among_them(native: NativeLibrary, threads: int) -> None:
    random = np.random.default_rng(threads)
    native.set_threads(threads)
    several = 0
    for trial in range(300):
        size = int(random.choice(SIZES))
        temperature = float(random.choice([1e-3, 0.1, 0.8, 1.0, 2.0, 1e6]))
        spread, offset = random.choice([0.0, 1e-6, 1.0, 8.0, 1e4]), random.choice([0.0, -40.0, 1e5])
        values = (random.normal(size=size) * spread + offset).astype(np.float32)
        if trial % 3 == 0:
            values[random.random(size) < 0.7] = -np.inf
            values[random.integers(size)] = 1.0
        seed, position = int(random.integers(0, 2**64, dtype=np.uint64)), int(random.integers(0, 2**31))
        ids = None if trial % 2 else np.sort(random.choice(200_000, size, replace=False))
        scores = scores_of(values, ids, temperature, seed, position)
        found = []
        for level in levels(native):
            native.set_isa(level)
            found.append(may_be_drawn(native, values, ids, temperature, seed, position))
        for places in found:
            assert places is not None
            assert np.array_equal(places, found[0])
            assert int(scores.argmax()) in places
            assert (np.diff(places) > 0).all()
            assert (scores[places] >= scores.max() - 1e-5).all()
        several += len(found[0]) > 1
    assert several < 60


def test_more_than_can_be_told_are_looked_through_otherwise(native: NativeLibrary) -> None:
    """Values that make up for their noise: nearly all have one score."""
    temperature, size = 1e-3, 5000
    values = (-noise_of(5, 9, np.arange(size)) * temperature).astype(np.float32)
    assert may_be_drawn(native, values, None, temperature, 5, 9) is None
    scores = scores_of(values, None, temperature, 5, 9)
    assert (scores >= scores.max() - 1e-6).sum() > MOST
    assert int(scores.argmax()) in may_win(values, None, temperature, 5, 9)


def test_rows_that_no_kernel_takes(native: NativeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.zeros(3000, np.float32)
    for bad in (values.astype(np.float64), np.zeros((2, 3000), np.float32), np.zeros(6000, np.float32)[::2]):
        with pytest.raises(ValueError, match="one row of float32"):
            may_be_drawn(native, bad, None, 1.0, 0, 0)
    for bad_ids in (np.arange(2999), np.arange(3000, dtype=np.int32), np.arange(6000)[::2]):
        with pytest.raises(ValueError, match="as many int64"):
            may_be_drawn(native, values, bad_ids, 1.0, 0, 0)
    for temperature in (0.0, 9e-4, float("nan"), -1.0):
        with pytest.raises(ValueError, match="refused its arguments"):
            may_be_drawn(native, values, None, temperature, 0, 0)

    def never(*arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr(contenders, "may_be_drawn", never)
    for row, temperature in ((values.astype(np.float64), 1.0), (values, 9e-4), (np.zeros(6000, np.float32)[::2], 1.0)):
        assert len(may_win(row, None, temperature, 1, 2))
    assert len(may_win(values, np.arange(6000)[::2], 1.0, 1, 2))
    with pytest.raises(AssertionError):
        may_win(values, None, 1.0, 1, 2)
