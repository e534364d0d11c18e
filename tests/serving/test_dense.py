"""Models without experts are served on every GPU by itself; figures of single groups."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.api import serve, simulate
from simulator.errors import InputError
from simulator.spec.load import load_inputs

SERVED = ("k8s-2node", "mlperf-summarization")
ONE = ["requests.limit=2", "requests.prompt=fixed:64", "requests.output=fixed:2"]


def test_steps_are_those_of_the_plan_engine():
    found = serve(*SERVED, overrides=ONE).summary["latency"]
    for phase, tokens, context, mean in (
        ("prefill", 64, 32, found["ttft_s"]["mean"]),
        ("decode", 1, 65, found["tpot_s"]["mean"]),
    ):
        given = [
            f"traffic.phase={phase}", f"traffic.tokens_per_gpu={tokens}",
            f"traffic.context={context}", "traffic.steps=1",
        ]  # fmt: skip
        step = simulate(*SERVED, overrides=given, trace_steps=0).summary["step_time_s"]["mean"]
        assert mean == pytest.approx(step, rel=1e-3)


@pytest.mark.parametrize("key", ["parallel={tp: 2}", "parallel={ep: 2}"])
def test_a_dense_model_is_on_one_gpu(key):
    with pytest.raises(InputError, match="parallel"):
        serve(*SERVED, overrides=[*ONE, key])


def test_each_group_has_its_own_speed_and_cold_start():
    given = ["serving.speed=[1, 2]", "serving.cold_start=[100 ms, 300 ms]"]
    plain = serve(*SERVED, overrides=[*ONE, "serving.shares=[1, 0.001]"])
    base = plain.summary["latency"]["e2e_s"]["max"] / 2  # both on one GPU, one after the other
    slow = serve(*SERVED, overrides=[*ONE, *given]).summary["latency"]["e2e_s"]
    assert slow["max"] == pytest.approx(2 * base + 0.3)
    assert 2 * slow["mean"] - slow["max"] == pytest.approx(base + 0.1)


def test_one_number_is_for_all_groups():
    workload = load_inputs(*SERVED, ["serving.failure_probability=0.5"]).workload
    assert workload.serving.failure_probability == (0.5,)
    assert workload.serving.cold_start_s == (0.0,)
    none = serve(*SERVED, overrides=["serving.failure_probability=[1, 0]"]).summary
    assert (none["finished"], none["failed"]) == (10, 10)
    every = [
        serve(*SERVED, seed=seed, overrides=["serving.failure_probability=0.5"]).summary["finished"]
        for seed in range(8)
    ]
    # Of 160 samples half finish, within four standard deviations.
    assert abs(np.sum(every) - 80) < 25


@pytest.mark.parametrize("value", ["[]", "[1.5]", "soon"])
def test_bad_lists_are_refused(value):
    with pytest.raises(InputError, match="failure_probability"):
        load_inputs(*SERVED, [f"serving.failure_probability={value}"])
