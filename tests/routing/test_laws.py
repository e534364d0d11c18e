"""Synthetic laws against the distributions that they state, by exact enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.routing.laws import (
    LAWS,
    is_law,
    markov,
    markov_overlap,
    parse_law,
    power_law,
    uniform,
    zipf,
)

# P(chi-square above) = 1e-4; the seeds are fixed, so a test passes or fails for good.
CHI_SQUARE_1E4 = {7: 29.88, 15: 44.26, 55: 102.9}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, 1])


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def ordered_probabilities(weight: np.ndarray, k: int) -> dict[tuple[int, ...], float]:
    """Probability of every ordered draw of k without replacement, by enumeration."""
    out = {}
    for draw in itertools.permutations(range(len(weight)), k):
        left, probability = weight.sum(), 1.0
        for expert in draw:
            probability *= weight[expert] / left
            left -= weight[expert]
        out[draw] = probability
    return out


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize(("experts", "k"), [(1, 1), (7, 7), (8, 2), (128, 8)])
def test_k_distinct_experts_per_token_and_layer(name, experts, k):
    ids = LAWS[name](rng(), 40, 3, experts, k)
    assert ids.shape == (40, 3, k)
    assert ids.dtype == np.int16
    assert ids.min() >= 0
    assert ids.max() < experts
    ordered = np.sort(ids, axis=2)
    assert (ordered[:, :, 1:] > ordered[:, :, :-1]).all()
    assert np.array_equal(ids, LAWS[name](rng(), 40, 3, experts, k)), "one seed, one outcome"
    assert LAWS[name](rng(), 0, 3, experts, k).shape == (0, 3, k)


def test_uniform_is_uniform():
    counts = np.bincount(uniform(rng(), 40_000, 1, 16, 1).ravel(), minlength=16)
    assert chi_square(counts, np.full(16, 2500.0)) < CHI_SQUARE_1E4[15]


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0, 2.0])
def test_zipf_marginals_and_inclusion(exponent):
    draws = 60_000
    weight = np.arange(1, 9.0) ** -exponent
    counts = np.sort(np.bincount(zipf(rng(), draws, 1, 8, 1, exponent).ravel(), minlength=8))[::-1]
    if exponent > 0:
        assert chi_square(counts, draws * weight / weight.sum()) < CHI_SQUARE_1E4[7]
    # k = 2: which expert has which rank is found from many draws of one, of the same generator.
    generator = rng()
    rank = np.argsort(-np.bincount(zipf(generator, draws, 1, 8, 1, exponent).ravel()))
    of_expert = np.empty(8, dtype=int)
    of_expert[rank] = np.arange(8)
    pairs = of_expert[zipf(generator, draws, 1, 8, 2, exponent)[:, 0]]
    expected = ordered_probabilities(weight, 2)
    found = np.bincount(pairs[:, 0] * 8 + pairs[:, 1], minlength=64)
    keys = [a * 8 + b for a, b in expected]
    assert found.sum() == found[keys].sum()
    value = chi_square(found[keys], draws * np.array(list(expected.values())))
    assert value < CHI_SQUARE_1E4[55]


def test_inclusion_under_heavy_skew_takes_the_slow_path():
    # The weights 1, 3^-8, 6^-8... leave an alias draw hopeless after the first expert.
    draws = 40_000
    generator = rng(3)
    ids = zipf(generator, draws, 1, 4, 3, 8.0)[:, 0]
    rank = np.argsort(-np.bincount(zipf(generator, draws, 1, 4, 2, 8.0)[:, 0].ravel()))
    of_expert = np.empty(4, dtype=int)
    of_expert[rank] = np.arange(4)
    expected = ordered_probabilities(np.arange(1, 5.0) ** -8, 3)
    found = of_expert[ids]
    for draw, probability in expected.items():
        count = int((found == draw).all(axis=1).sum())
        sigma = math.sqrt(draws * probability * (1 - probability))
        assert abs(count - draws * probability) < 4.5 * sigma + 1


def test_popularity_differs_between_layers_and_belongs_to_the_generator():
    generator = rng()
    first = zipf(generator, 2000, 6, 64, 1, 2.0)
    generator.random(17)
    second = zipf(generator, 2000, 6, 64, 1, 2.0)
    hottest = [
        [int(np.bincount(ids[:, layer, 0]).argmax()) for layer in range(6)]
        for ids in (first, second)
    ]
    assert hottest[0] == hottest[1]
    assert len(set(hottest[0])) >= 5
    other = zipf(rng(9), 2000, 6, 64, 1, 2.0)
    assert [int(np.bincount(other[:, layer, 0]).argmax()) for layer in range(6)] != hottest[0]


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.0 + 1e-9, 1.2, 3.0])
def test_power_law_loads_have_the_stated_density(exponent):
    # One expert per layer is hot in proportion to its weight; compare two experts over many layers:
    # the share of the first is w1 / (w1 + w2), whose mean is 1/2, and whose mean square follows
    # from the density by quadrature.
    layers, tokens = 3000, 60
    ids = power_law(rng(), tokens, layers, 2, 1, exponent)
    share = (ids[:, :, 0] == 0).mean(axis=0)
    u = (np.arange(400) + 0.5) / 400
    power = 1.0 - exponent
    near_one = abs(power) < 1e-6
    w = 1000.0**u if near_one else (1 + u * (1000.0**power - 1)) ** (1 / power)
    p = w[:, None] / (w[:, None] + w[None, :])
    mean_square = float((p**2 + p * (1 - p) / tokens).mean())
    fourth = float((share**4).mean())
    sigma = math.sqrt((fourth - mean_square**2) / layers)
    assert abs((share**2).mean() - mean_square) < 4 * sigma


def test_power_law_is_even_at_both_ends_and_skewed_between():
    # Mean weight: 500.5 at exponent 0, 999 / ln 1000 at 1, 1 at infinity; the largest is 1000 or 1.
    skew = {}
    for exponent in (0.0, 1.0, 100.0):
        ids = power_law(rng(), 2000, 20, 64, 1, exponent)[:, :, 0]
        loads = np.stack([np.bincount(ids[:, layer], minlength=64) for layer in range(20)])
        skew[exponent] = float((loads.max(axis=1) / (2000 / 64)).mean())
    assert 1.7 < skew[0.0] < 1.7 * 1000 / 500.5
    assert 0.7 * math.log(1000) < skew[1.0] < 1.3 * math.log(1000)
    assert skew[100.0] < 1.7


@pytest.mark.parametrize("stickiness", [0.0, 0.25, 0.6, 1.0])
@pytest.mark.parametrize(("experts", "k"), [(8, 2), (16, 4), (4, 4), (32, 1)])
def test_markov_overlap(stickiness, experts, k):
    before = uniform(rng(), 20_000, 1, experts, k)
    after = markov(rng(1), 20_000, 1, experts, k, stickiness, previous=before)
    same = (after[:, 0, :, None] == before[:, 0, None, :]).any(axis=2).mean(axis=1)
    expected = markov_overlap(stickiness, experts, k)
    assert abs(same.mean() - expected) <= 4.5 * same.std() / math.sqrt(20_000)
    # Sets that do not depend on each other overlap by k / E; sticking adds to that.
    assert expected >= k / experts - 1e-12
    # Loads stay uniform: the chain's law is symmetric in the experts.
    counts = np.bincount(after.ravel(), minlength=experts)
    sigma = math.sqrt(20_000 * k / experts)
    assert np.abs(counts - 20_000 * k / experts).max() <= 5 * sigma


def test_markov_overlap_closed_forms():
    for experts, k in ((8, 2), (128, 4)):
        assert markov_overlap(0.0, experts, k) == pytest.approx(k / experts, rel=1e-12)
        assert markov_overlap(1.0, experts, k) == 1.0
    # k = 1: it stays, or one of all E comes, the same one among them.
    assert markov_overlap(0.3, 10, 1) == pytest.approx(0.3 + 0.7 / 10, rel=1e-12)
    # k = 2 of 3 at s = 1/2: m = 0, 1, 2 with 1/4, 1/2, 1/4 gives (4/3 + 2 (1 + 1/2) + 2) / 4 / 2.
    assert markov_overlap(0.5, 3, 2) == pytest.approx((4 / 3 + 3 + 2) / 8, rel=1e-12)


def test_markov_continues_sequences():
    before = np.array([[[3, 1]], [[-1, -1]]], dtype=np.int16)
    ids = markov(rng(), 6, 1, 50, 2, 1.0, previous=before)
    assert ids[:3, 0].tolist() == [[3, 1]] * 3, "the first sequence, in its gate order"
    assert ids[3, 0].tolist() != [3, 1]
    assert ids[4:, 0].tolist() == [ids[3, 0].tolist()] * 2
    with pytest.raises(ValueError, match="does not fit"):
        markov(rng(), 5, 1, 50, 2, 1.0, previous=before)
    with pytest.raises(ValueError, match="not below 3"):
        markov(rng(), 6, 1, 3, 2, 1.0, previous=before)


def test_laws_are_named():
    assert parse_law("zipf:1.2") == (zipf, (1.2,))
    assert parse_law("uniform") == (uniform, ())
    law, parameters = parse_law("simulator.routing.laws:zipf:2")
    assert parameters == (2.0,)
    assert np.array_equal(law(rng(), 9, 2, 8, 2, 2.0), zipf(rng(), 9, 2, 8, 2, 2.0))
    assert [is_law(t) for t in ("zipf", "markov:0.5", "a.b:c", "a.b:c:1.5")] == [True] * 4
    assert not any(is_law(t) for t in ("trace.parquet", "x/y.z:a", "zip", "dir/zipf"))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("zipff:1", "routing law 'zipff' is unknown; did you mean 'zipf'?"),
        ("qqq", "routing law 'qqq' is unknown; write one of uniform, zipf, power-law, markov"),
        ("zipf:hot", "routing law 'zipf:hot': 'hot' is not a number; write zipf:1.2"),
        ("zipf:1,2", "routing law 'zipf:1,2': too many positional arguments"),
        ("uniform:1", "routing law 'uniform:1': too many positional arguments"),
        ("no.such:law", "routing law 'no.such:law' cannot be imported: No module named 'no'"),
        ("math:pi", "routing law 'math' is unknown; write one of uniform, zipf, power-law, markov"),
        ("os.path:sep", "routing law 'os.path:sep' is not a function"),
    ],
)
def test_laws_that_are_wrong(text, what):
    with pytest.raises(InputError) as caught:
        parse_law(text)
    assert str(caught.value) == what


@pytest.mark.parametrize(
    ("law", "value"),
    [(zipf, -1.0), (zipf, math.nan), (zipf, 101.0), (power_law, -0.1), (markov, 1.1)],
)
def test_parameters_out_of_range(law, value):
    with pytest.raises(InputError, match="is not in 0"):
        law(rng(), 1, 1, 4, 2, value)


def test_more_experts_than_there_are():
    for law in LAWS.values():
        with pytest.raises(InputError, match="5 of 4 experts"):
            law(rng(), 1, 1, 4, 5)
