"""The noise: the same everywhere, inside its bounds, uniform, unrelated between neighbouring seeds, positions and tokens."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hasten.sampling import noise

PINNED = ["-0x1.6f67692385135p+0", "0x1.775b614b9f267p+2", "0x1.0f214b09360dep-1", "0x1.9ece3e66183d4p-1"]
PINNED_SEEDS = [7, 2218581976677719432, 15575787189759843042]

SEEDS = st.integers(0, 2**64 - 1)
POSITIONS = st.integers(0, 2**40)
TOKENS = st.integers(0, 2**31)


def reference_mix(state: int) -> int:
    """The next output of a SplitMix64 generator, from the paper's description."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def reference_bits(seed: int, position: int, token: int) -> int:
    golden = 0x9E3779B97F4A7C15
    key = reference_mix((reference_mix(seed ^ 0x6E6F697365) + position * golden) % 2**64)
    return reference_mix((key + (token - 1) * golden) % 2**64)


def reference_log(value: float) -> float:
    """The logarithm of the module, one Python float operation after the other."""
    mantissa, exponent = math.frexp(value)
    if mantissa < 0.7071067811865476:
        mantissa, exponent = mantissa * 2.0, exponent - 1
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    series = 1.0 / 23
    for odd in range(21, 0, -2):
        series = series * (ratio * ratio) + 1.0 / odd
    high, low = float.fromhex("0x1.62e42fefap-1"), float.fromhex("0x1.cf79abc9e3b39803p-40")
    return exponent * high + (exponent * low + 2.0 * ratio * series)


def reference_gumbel(seed: int, position: int, token: int) -> float:
    uniform = (2 * (reference_bits(seed, position, token) >> 12) + 1) * 2.0**-53
    return -reference_log(-reference_log(uniform))


@settings(deadline=None)
@given(SEEDS, POSITIONS, st.lists(TOKENS, min_size=1, max_size=9))
def test_equals_the_python_reference_bit_for_bit(seed: int, position: int, tokens: list[int]) -> None:
    got = noise.noise_of(seed, position, np.array(tokens, np.int64)).tolist()
    assert got == [reference_gumbel(seed, position, token) for token in tokens]
    for value, token in zip(got, tokens, strict=True):
        uniform = (2 * (reference_bits(seed, position, token) >> 12) + 1) * 2.0**-53
        assert value == pytest.approx(-math.log(-math.log(uniform)), rel=1e-14, abs=1e-15)


def test_noise_for_guesses_is_the_same_but_for_its_last_places() -> None:
    tokens = np.arange(20_000)
    assert np.allclose(noise.nearly(3, 14, tokens), noise.noise_of(3, 14, tokens), rtol=1e-13, atol=1e-13)


def test_the_mixer_is_splitmix64() -> None:
    golden = 0x9E3779B97F4A7C15
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # the generator's outputs from state 0
    assert [noise._mix(i * golden) for i in range(3)] == published


def test_values_are_pinned() -> None:
    """A change of any of these changes the text of every seed that anybody has written down."""
    got = noise.noise_of(0, 0, np.arange(3)).tolist() + noise.noise_of(2**64 - 1, 12345, np.array([151935])).tolist()
    assert [value.hex() for value in got] == PINNED
    assert [noise.derive_seed(7, i) for i in range(3)] == PINNED_SEEDS


def test_bounds_are_open_and_known() -> None:
    extreme = noise.from_bits(np.array([0, 2**12 - 1, 2**64 - 1, 2**64 - 2**12], np.uint64))
    assert np.isfinite(extreme).all()
    assert extreme[2] == extreme[3] == noise.MAX_NOISE == pytest.approx(53 * math.log(2), rel=1e-15)
    assert extreme[0] == extreme[1] == pytest.approx(-math.log(53 * math.log(2)), rel=1e-15)
    closed = (2**64 - 1 >> 12) / (2**52 - 1)  # the mutant: a closed grid
    with pytest.raises(ValueError, match=r"domain|positive"):
        math.log(-math.log(closed))


def test_noise_rises_with_the_bits() -> None:
    ends = np.concatenate([np.arange(2000), 2**52 - 1 - np.arange(2000)[::-1]]).astype(np.uint64) << np.uint64(12)
    assert (np.diff(noise.from_bits(ends)) > 0).all()
    some = np.sort(np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64))
    assert (np.diff(noise.from_bits(some)) >= 0).all()


def test_the_logarithm_is_within_two_units_of_the_last_place() -> None:
    random = np.random.default_rng(1)
    values = np.concatenate([random.random(3000), 1 - 2.0 ** -random.integers(2, 54, 60), 2.0 ** random.uniform(-53, 5.3, 3000)])
    got = noise._log(values)
    with localcontext() as context:
        context.prec = 40
        for value, log in zip(values[::7].tolist(), got[::7].tolist(), strict=True):
            exact = Decimal(value).ln()
            assert abs(Decimal(log) - exact) <= 2 * abs(Decimal(math.ulp(float(exact)))), value


def test_shape_and_dtype() -> None:
    out = noise.noise_of(1, 2, np.arange(12))
    assert out.shape == (12,)
    assert out.dtype == np.float64
    assert noise.noise_of(1, 2, np.empty(0, np.int64)).shape == (0,)


def bits_of(seed: int, position: int, token: int) -> int:
    return int(noise.token_bits(seed, position, np.array([token]))[0])


@pytest.mark.parametrize("which", ["seed", "position", "token"])
def test_avalanche(which: str) -> None:
    """Flipping any one input bit flips every output bit in half of the cases."""
    random = np.random.default_rng(2)
    widths = {"seed": 64, "position": 20, "token": 18}
    trials = 400 if which != "token" else 2000
    for bit in range(widths[which]):
        flips = np.zeros(64)
        if which == "token":
            tokens = random.integers(0, 2**18, trials)
            change = noise.token_bits(5, 9, tokens) ^ noise.token_bits(5, 9, tokens ^ (1 << bit))
            flips = ((change[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).sum(0)
        else:
            for _ in range(trials):
                seed, position = int(random.integers(0, 2**63)), int(random.integers(0, 2**20))
                other = (seed ^ 1 << bit, position) if which == "seed" else (seed, position ^ 1 << bit)
                change_bits = noise._key(seed, position) ^ noise._key(*other)
                flips += [change_bits >> i & 1 for i in range(64)]
        assert (np.abs(flips / trials - 0.5) < 6 * 0.5 / math.sqrt(trials)).all(), (which, bit)


def uniforms(seed: int, position: int, tokens: np.ndarray) -> np.ndarray:
    return noise.token_bits(seed, position, tokens).astype(np.float64) * 2.0**-64


def test_uniform_and_gumbel() -> None:
    for seed, position in [(0, 0), (0, 1), (1, 0), (2**64 - 1, 4095)]:
        tokens = np.arange(151_936)
        bits = noise.token_bits(seed, position, tokens)
        for shift in (0, 12, 30, 54):  # every part of the word
            cells = np.bincount(((bits >> np.uint64(shift)) & np.uint64(1023)).astype(np.int64), minlength=1024)
            assert stats.chisquare(cells).pvalue > 1e-5
        assert stats.kstest(noise.noise_of(seed, position, tokens[:20_000]), "gumbel_r").pvalue > 1e-5
    across = np.array([noise.noise_of(7, position, np.array([100]))[0] for position in range(4000)])
    assert stats.kstest(across, "gumbel_r").pvalue > 1e-5


def test_neighbours_are_unrelated() -> None:
    tokens = np.arange(1, 60_001)
    base = uniforms(11, 500, tokens)
    golden = 0x9E3779B97F4A7C15
    others = [
        uniforms(12, 500, tokens),
        uniforms(11, 501, tokens),
        uniforms(12, 501, tokens),
        uniforms(10, 501, tokens),
        uniforms(11, 500, tokens + 1),
        uniforms(11, 501, tokens - 1),
        uniforms((11 + golden) % 2**64, 499, tokens),
        uniforms(noise.derive_seed(11, 1), 500, tokens),
        uniforms(500, 11, tokens),
    ]
    for other in others:
        assert abs(np.corrcoef(base, other)[0, 1]) < 5 / math.sqrt(len(tokens))
        pairs = np.histogram2d(base, other, bins=16, range=[[0, 1], [0, 1]])[0].ravel()
        assert stats.chisquare(pairs).pvalue > 1e-5
        assert not np.isin(base, other).any() or other is others[4]  # lag 1 shares its values by construction


def test_first_tokens_of_neighbouring_positions_are_unrelated() -> None:
    """What a generation sees: few tokens matter, many positions follow each other, seeds are 0, 1, 2."""
    table = np.array([uniforms(seed, position, np.arange(4)) for seed in range(3) for position in range(4000)])
    for first, second in [(table[:-1], table[1:]), (table[:-2], table[2:]), (table[:4000], table[4000:8000])]:
        for token in range(4):
            for other in range(4):
                pairs = np.histogram2d(first[:, token], second[:, other], bins=8, range=[[0, 1], [0, 1]])[0].ravel()
                assert stats.chisquare(pairs).pvalue > 1e-5


@settings(deadline=None)
@given(SEEDS, POSITIONS, st.floats(-5, 40), st.sampled_from([0, 1, 50, 16384, 16385, 40_000]))
def test_candidates_are_all_and_hardly_more(seed: int, position: int, least: float, total: int) -> None:
    values = noise.noise_of(seed, position, np.arange(total))
    found = noise.candidates(seed, position, total, least)
    assert np.isin(np.flatnonzero(values >= least), found).all()
    assert (values[found] >= least - 1e-6).all()
    assert (np.diff(found) > 0).all()
    ids = np.arange(total)[::3]
    assert np.array_equal(ids[noise.candidates(seed, position, ids, least)], found[found % 3 == 0])


@pytest.mark.parametrize("least", [-math.inf, -800.0, -3.7, 36.736800569677, noise.MAX_NOISE, 40.0, 800.0, math.inf])
def test_candidates_at_extremes(least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    bits = np.array([0, 2**63, 2**64 - 2**13, 2**64 - 2**12, 2**64 - 1], np.uint64)
    monkeypatch.setattr(noise, "token_bits", lambda seed, position, tokens: bits[tokens])
    values = noise.from_bits(bits)
    assert np.isin(np.flatnonzero(values >= least), noise.candidates(0, 0, 5, least)).all()
    reach = noise.can_reach(0, 0, np.arange(5), np.full(5, least))
    assert reach[values >= least].all()


@settings(deadline=None)
@given(SEEDS, st.floats(-5, 37))
def test_can_reach_never_misses(seed: int, least: float) -> None:
    tokens = np.arange(3000)
    values = noise.noise_of(seed, 3, tokens)
    bounds = least + np.random.default_rng(seed).normal(size=3000)
    reach = noise.can_reach(seed, 3, tokens, bounds)
    assert reach[values >= bounds].all()
    assert noise.can_reach(seed, 3, tokens, values.copy()).all()
    if least > 5:
        assert reach.sum() <= 3 * (values >= bounds).sum() + 20


def test_keys_and_derived_seeds_do_not_collide() -> None:
    keys = {noise._key(seed, position) for seed in range(200) for position in range(300)}
    assert len(keys) == 200 * 300
    seeds = {noise.derive_seed(seed, index) for seed in range(500) for index in range(1, 65)}
    assert len(seeds) == 500 * 64
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert noise.derive_seed(2**64 - 1, 0) == 2**64 - 1


def test_fresh_seeds_fit_json_and_differ() -> None:
    seeds = {noise.fresh_seed() for _ in range(200)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**53 for seed in seeds)
    assert max(seeds) > 2**50
