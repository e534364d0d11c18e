"""What printed figures allow: against brute force, and each conclusion turns with the figure."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.studies.mlperf.checks import (
    all_checks,
    extreme,
    most_mean_rate,
    sd_range,
    span,
    whole_shares,
)
from simulator.studies.mlperf.spec import load_study
from simulator.studies.mlperf.study import checks_of

PRINTED = load_study().printed
WEIGHTS, MEMORY = 16.06e9, 32e9


def test_a_printed_figure_stands_for_what_rounds_to_it():
    assert span("2.05") == pytest.approx((2.045, 2.055))
    assert span("980") == pytest.approx((979.5, 980.5))
    assert span("50-100") == (50.0, 100.0)


def test_deviation_of_five_samples_by_hand():
    # 860, 1610 and three others of 2650 in all: 883.3 each, or 860, 860, 930.
    even = [860.0, 1610.0, 2650 / 3, 2650 / 3, 2650 / 3]
    uneven = [860.0, 1610.0, 860.0, 860.0, 930.0]
    for freedom in (0, 1):
        low, high = sd_range(5, 1024.0, 860.0, 1610.0, freedom)
        assert low == pytest.approx(np.std(even, ddof=freedom))
        assert high == pytest.approx(np.std(uneven, ddof=freedom))
    assert sd_range(5, 1024.0, 860.0, 1610.0, 1) == pytest.approx((327.7, 329.0), abs=0.1)
    assert sd_range(5, 500.0, 860.0, 1610.0, 1) is None


def test_no_samples_leave_the_range():
    rng = np.random.default_rng(0)
    for _ in range(300):
        number = int(rng.integers(3, 9))
        values = rng.uniform(1.0, 10.0, number) ** rng.choice([0.2, 1.0, 3.0])
        ends = values.mean(), values.min(), values.max()
        for freedom in (0, 1):
            low, high = sd_range(number, *ends, freedom)
            assert low - 1e-9 <= values.std(ddof=freedom) <= high + 1e-9
        assert (32.0 / values).mean() <= most_mean_rate(number, *ends, 32.0) + 1e-9


def test_extreme_values_keep_sum_and_ends():
    for total in (8.0, 11.0, 13.5, 20.0):
        found = extreme(4, total, 2.0, 5.0)
        assert sum(found) == pytest.approx(total)
        assert sum(2.0 < x < 5.0 for x in found) <= 1
        assert min(found) >= 2.0
        assert max(found) <= 5.0


def test_counts_that_round_to_a_share():
    assert whole_shares(10, *span("84")) == []
    assert whole_shares(25, *span("84")) == [21]
    assert whole_shares(10, *span("80")) == [8]


def test_the_cells_that_cannot_be():
    found = checks_of(load_study())
    assert {name for name, one in found.items() if not one.possible} == {
        "rate_single", "efficiency", "tokens_single", "tokens_both", "tokens_jw2", "tokens_jw3",
        "latency_both", "sd_jw2", "cold_excess", "within_15", "throughput_lost", "memory_node",
        "memory_share",
    }  # fmt: skip
    assert found["rate_single"].nearest == pytest.approx(1.0225)
    assert found["latency_both"].nearest == pytest.approx((5 * 1024 + 10 * 936) / 15, abs=0.51)
    assert found["cold_excess"].nearest == pytest.approx(100 * (1610 / 1024 - 1), abs=0.2)
    assert found["peak_rate"].possible
    assert found["sd_jw3"].possible


@pytest.mark.parametrize(
    ("cell", "printed"),
    [
        ("rate_single", "1.03"), ("efficiency", "100.0"), ("latency_both", "965"),
        ("sd_jw2", "328"), ("sd_jw2", "294"), ("cold_excess", "57"), ("within_15", "80"),
        ("throughput_lost", "24"), ("throughput_lost", "0"), ("memory_node", "16.10"),
        ("memory_share", "49.5"), ("tokens_jw3", "34.2"), ("tokens_both", "65.0"),
    ],
)  # fmt: skip
def test_another_figure_there_could_be(cell, printed):
    assert all_checks(PRINTED | {cell: printed}, WEIGHTS, MEMORY)[cell].possible


@pytest.mark.parametrize(
    ("cell", "printed"),
    [
        ("rate_both", "2.10"), ("rate_jw2", "0.99"), ("rate_variance", "11.0"), ("sd_jw3", "170"),
        ("latency_gap", "90"), ("tokens_variance", "7.5"), ("peak_rate", "37.30"),
        ("lowest_rate", "16.70"), ("memory_total", "31.70"), ("success_jw2", "60"),
    ],
)  # fmt: skip
def test_another_figure_there_could_not_be(cell, printed):
    assert all_checks(PRINTED, WEIGHTS, MEMORY)[cell].possible
    assert not all_checks(PRINTED | {cell: printed}, WEIGHTS, MEMORY)[cell].possible


def test_gigabytes_of_another_gpu():
    # 15.83 of 31.75 GiB, as a V100 of 32 GB tells, may have been 49.8 %.
    assert all_checks(PRINTED, WEIGHTS, 31.748e9)["memory_share"].possible
