"""`serve --repeat`: means and Student's intervals over seeds."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.api import serve
from simulator.cli import main
from simulator.studies.repeats import figures, mean_and_half, over_seeds, render, row_of, t_quantile

SERVED = ("k8s-2node", "mlperf-summarization")
FAILING = ["serving.failure_probability=[0.5, 0]"]


@pytest.mark.parametrize(
    ("degrees", "quantile"),  # Abramowitz and Stegun, table 26.10
    [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (29, 2.045), (120, 1.980)],
)
def test_quantiles_are_those_of_the_table(degrees, quantile):
    assert t_quantile(degrees) == pytest.approx(quantile, abs=6e-4)


def test_interval_by_hand():
    # Mean 3, deviation sqrt(2.5), five values: 2.7764 x sqrt(2.5 / 5).
    mean, half = mean_and_half([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0
    assert half == pytest.approx(1.9632, abs=1e-4)
    assert row_of("x", [7.0]) == {
        "metric": "x", "runs": 1, "mean": 7.0, "ci95_low": None, "ci95_high": None,
    }  # fmt: skip


def test_95_of_100_intervals_hold_the_mean():
    rng = np.random.default_rng(1)
    held = 0
    for values in rng.normal(10.0, 3.0, (2000, 6)):
        mean, half = mean_and_half(values)
        held += abs(mean - 10.0) <= half
    # Binomial with p = 0.95: four standard deviations are 1.95 %.
    assert held / 2000 == pytest.approx(0.95, abs=0.0195)


def test_numbers_of_a_summary_by_name():
    summary = {"a": 1, "b": None, "c": {"d": 2.5, "e": {"f": 3}}, "flag": True, "slo": {"g": 1}}
    assert dict(figures(summary)) == {"a": 1.0, "c.d": 2.5, "c.e.f": 3.0}


def test_seeds_are_those_of_single_runs():
    told = []
    rows = over_seeds(*SERVED, 3, 4, lambda *done: told.append(done), overrides=FAILING)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    alone = [
        serve(*SERVED, seed=seed, overrides=FAILING).summary["finished"] for seed in range(3, 7)
    ]
    row = next(row for row in rows if row["metric"] == "finished")
    assert row["mean"] == pytest.approx(np.mean(alone))
    assert len({*alone}) > 1
    assert row["ci95_low"] < row["mean"] < row["ci95_high"]
    lines = render(rows).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("requests_per_s") for line in lines)


def test_command(capsys):
    given = ["serve", "--topology", SERVED[0], "--workload", SERVED[1], "--repeat", "2"]
    assert main(given) == 0
    assert "95 % confidence" in capsys.readouterr().out
    assert main([*given, "--out", "somewhere"]) == 2
