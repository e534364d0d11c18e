"""Laws of arrival and length against the distributions that they name.

z-tests: a mean of n draws is compared with the law's, in units of its standard error. The last
test shows that a law 2 % off would be found.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from simulator.errors import InputError
from simulator.requests import laws
from simulator.requests.laws import ARRIVALS, LENGTHS, draw_arrivals, draw_lengths
from simulator.spec.requests import (
    ARRIVAL_LAWS,
    LENGTH_LAWS,
    MAX_TOKENS,
    Law,
    arrival_law,
    length_law,
)

N = 100_000
SEEDS = (0, 1, 2)
# Two-sided chance of 6e-5; the seeds are fixed, so a pass is a pass on every run.
LIMIT = 4.0


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, 99])


def z_of_mean(values: np.ndarray, mean: float, deviation: float) -> float:
    return (values.mean() - mean) / (deviation / math.sqrt(len(values)))


def z_of_gamma_cv(gaps: np.ndarray, cv: float) -> float:
    """The sample's coefficient of variation; for gamma its variance is cv^2 (1 + cv^2) / 2n, by the
    delta method from the skewness 2 cv and the kurtosis 3 + 6 cv^2.
    """
    error = cv * math.sqrt((1 + cv * cv) / (2 * len(gaps)))
    return (gaps.std() / gaps.mean() - cv) / error


def test_the_tables_of_names_agree():
    assert set(ARRIVALS) == set(ARRIVAL_LAWS)
    assert set(LENGTHS) == set(LENGTH_LAWS)
    assert set(laws.SCENARIOS) <= set(ARRIVALS)


@pytest.mark.parametrize("name", ARRIVAL_LAWS)
def test_every_law_of_arrival_keeps_the_contract(name: str):
    law = arrival_law(":".join([name, *(one.example for one in ARRIVAL_LAWS[name])]))
    long = ARRIVALS[name](rng(1), 500, *law.arguments)
    short = ARRIVALS[name](rng(1), 200, *law.arguments)
    assert long.shape == (500,)
    assert long.dtype == np.float64
    assert (long >= 0).all()
    assert (np.diff(long) >= 0).all()
    np.testing.assert_array_equal(long[:200], short)
    assert ARRIVALS[name](rng(1), 0, *law.arguments).shape == (0,)


@pytest.mark.parametrize("name", LENGTH_LAWS)
def test_every_law_of_lengths_keeps_the_contract(name: str):
    law = length_law(":".join([name, *(one.example for one in LENGTH_LAWS[name])]))
    long, cut = draw_lengths(law, rng(1), 500)
    short, _ = draw_lengths(law, rng(1), 200)
    assert long.dtype == np.int64
    assert long.min() >= 1
    assert cut == 0
    np.testing.assert_array_equal(long[:200], short)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["poisson", "server"])
def test_poisson_gaps(seed: int, name: str):
    rate = 7.0
    gaps = np.diff(ARRIVALS[name](rng(seed), N, rate), prepend=0.0)
    assert abs(z_of_mean(gaps, 1 / rate, 1 / rate)) < LIMIT
    assert abs(z_of_gamma_cv(gaps, 1.0)) < LIMIT
    assert stats.kstest(gaps, "expon", args=(0, 1 / rate)).pvalue > 1e-4
    # Gaps that know nothing of the one before.
    correlation = np.corrcoef(gaps[1:], gaps[:-1])[0, 1]
    assert abs(correlation * math.sqrt(N)) < LIMIT


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gamma_gaps(seed: int, cv: float):
    rate = 0.25
    gaps = np.diff(ARRIVALS["gamma"](rng(seed), N, rate, cv), prepend=0.0)
    assert abs(z_of_mean(gaps, 1 / rate, cv / rate)) < LIMIT
    assert abs(z_of_gamma_cv(gaps, cv)) < LIMIT
    if cv <= 1:
        # Above it the smallest gaps are lost when the times are differenced again.
        assert stats.kstest(gaps, "gamma", args=(cv**-2, 0, cv**2 / rate)).pvalue > 1e-4


def test_constant_gaps_begin_at_zero():
    np.testing.assert_allclose(
        ARRIVALS["constant"](rng(0), 5, 4.0), [0, 0.25, 0.5, 0.75, 1.0], rtol=1e-15
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_lognormal_lengths(seed: int):
    mean, cv = 1000.0, 1.2
    tokens = LENGTHS["lognormal"](rng(seed), N, mean, cv)
    assert abs(z_of_mean(tokens, mean, cv * mean)) < LIMIT
    # The logarithm is normal; rounding to tokens is far below the spread at a large mean.
    tokens = LENGTHS["lognormal"](rng(seed), N, 1e6, cv)
    sigma = math.sqrt(math.log(1 + cv * cv))
    logs = np.log(tokens / 1e6)
    assert stats.kstest(logs, "norm", args=(-sigma * sigma / 2, sigma)).pvalue > 1e-4


def test_a_lognormal_without_spread_is_fixed():
    assert set(LENGTHS["lognormal"](rng(0), 100, 700.0, 0.0)) == {700.0}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mean", [1.0, 1.5, 20.0, 500.0])
def test_exponential_lengths_are_geometric(seed: int, mean: float):
    tokens = LENGTHS["exponential"](rng(seed), N, mean)
    chance = 1 / mean
    if mean == 1.0:
        assert (tokens == 1).all()
        return
    assert abs(z_of_mean(tokens, mean, math.sqrt(1 - chance) / chance)) < LIMIT
    ones = (tokens == 1).astype(float)
    assert abs(z_of_mean(ones, chance, math.sqrt(chance * (1 - chance)))) < LIMIT
    assert tokens.min() == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_uniform_lengths_reach_both_ends_alike(seed: int):
    tokens = LENGTHS["uniform"](rng(seed), N, 3, 12)
    values, counts = np.unique(tokens, return_counts=True)
    assert values.tolist() == list(range(3, 13))
    assert stats.chisquare(counts).pvalue > 1e-4
    assert set(LENGTHS["uniform"](rng(seed), 50, 8, 8)) == {8.0}


def test_fixed_lengths():
    assert draw_lengths(Law("fixed", (17,)), rng(0), 3)[0].tolist() == [17, 17, 17]


def test_the_tests_would_find_a_law_that_is_two_percent_off():
    gaps = np.diff(ARRIVALS["poisson"](rng(0), N, 7.0 * 1.02), prepend=0.0)
    assert abs(z_of_mean(gaps, 1 / 7, 1 / 7)) > LIMIT
    gaps = np.diff(ARRIVALS["gamma"](rng(0), N, 1.0, 1.02), prepend=0.0)
    assert abs(z_of_gamma_cv(gaps, 1.0)) > LIMIT
    tokens = LENGTHS["lognormal"](rng(0), N, 1020.0, 1.0)
    assert abs(z_of_mean(tokens, 1000.0, 1000.0)) > LIMIT
    tokens = LENGTHS["exponential"](rng(0), N, 510.0)
    assert abs(z_of_mean(tokens, 500.0, 499.5)) > LIMIT


def test_too_long_lengths_are_cut_and_counted():
    tokens, cut = draw_lengths(Law("lognormal", (MAX_TOKENS, 1.0)), rng(0), 1000)
    assert tokens.max() == MAX_TOKENS
    assert cut == (tokens == MAX_TOKENS).sum() > 0


class TestDrawArrivals:
    def test_up_to_an_end(self):
        """Number of a Poisson process in a window: mean and variance rate * time."""
        counts = [
            len(draw_arrivals(Law("poisson", (50.0,)), lambda s=s: rng(s), None, 0.0, 200.0))
            for s in range(40)
        ]
        expected = 50 * 200
        assert abs(z_of_mean(np.array(counts), expected, math.sqrt(expected))) < LIMIT

    def test_a_limit_and_an_end(self):
        law = Law("constant", (2.0,))
        drawn = {
            (limit, start, end): draw_arrivals(law, lambda: rng(0), limit, start, end)
            for limit, start, end in [
                (3, 0.0, math.inf),
                (3, 10.0, math.inf),
                (50, 0.0, 2.0),
                (None, 1.0, 2.0),
            ]
        }
        within = [int((t >= start).sum()) for (_, start, _), t in drawn.items()]
        assert within[0] == 3
        assert within[1] >= 3
        assert within[2:] == [4, 2]
        assert all((times < end).all() for (_, _, end), times in drawn.items())

    def test_too_many(self):
        with pytest.raises(InputError, match="more than 20,000,000 requests"):
            draw_arrivals(Law("constant", (1e6,)), lambda: rng(0), None, 0.0, 1e6)
