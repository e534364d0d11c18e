"""The study `mlperf-summarization`: what goes in comes out again, and the rest by closed forms."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from simulator.cli import main
from simulator.errors import InputError
from simulator.studies.common.claims import DIRECTION, NOT, REPRODUCED
from simulator.studies.common.report import flat, render, write
from simulator.studies.mlperf.figures import (
    balance_gains,
    batch_gains,
    node_gains,
    once_figures,
    service_figures,
)
from simulator.studies.mlperf.runs import (
    RANDOM,
    STOPS,
    Ask,
    batch_for,
    calibrate,
    memory_of,
    over_seeds,
    serve,
)
from simulator.studies.mlperf.spec import Limit, load_study
from simulator.studies.mlperf.study import report_of
from simulator.studies.mlperf.what_ifs import AWARE, _largest_rate, run_everything

SMALL = [
    "what_ifs.batches=[1, 4, 8]",
    "what_ifs.dtypes=[bf16, fp16]",
    "what_ifs.rates=[0.5, 2.0, 8.0]",
    "what_ifs.attempts=[1, 4]",
    "assumptions.server_requests=100",
]


@pytest.fixture(scope="module")
def study():
    return load_study(SMALL)


@pytest.fixture(scope="module")
def bench(study):
    return calibrate(study)


@pytest.fixture(scope="module")
def runs(study):
    return run_everything(study, quick=True)


# --- inputs ------------------------------------------------------------------------------


def test_the_samples_are_those_of_the_text(study):
    given, printed = study.assumptions, study.printed
    assert len(given.outputs) == int(printed["samples"])
    assert (min(given.prompts), max(given.prompts), np.mean(given.prompts)) == (59, 71, 66.8)
    assert (min(given.outputs), max(given.outputs)) == (27, 32)
    assert np.mean(given.outputs) == pytest.approx(float(printed["mean_tokens"]))


def test_inputs_follow_from_the_text(study):
    value = {name: float(text) for name, text in study.printed.items() if "-" not in text}
    jw2, jw3 = study.inputs.each
    assert jw2.warm_tokens_per_s == pytest.approx(
        (5 * value["tokens_jw2"] - value["lowest_rate"]) / 4, abs=0.005
    )
    slow = study.assumptions.outputs[0] / (value["high_jw3"] / 1e3)
    assert jw3.warm_tokens_per_s == pytest.approx((10 * value["tokens_jw3"] - slow) / 9, abs=0.005)
    assert (jw2.first_sample_s, jw3.first_sample_s) == (1.610, 1.348)
    assert study.assumptions.outputs[0] == round(value["lowest_rate"] * jw2.first_sample_s)


def test_warm_rates_and_first_samples_come_out_as_they_went_in(study, bench):
    run = serve(bench, Ask())
    for number, node in enumerate(study.inputs.each):
        latency, rates = run.latency_s(number), run.rates(number)
        assert latency[0] == pytest.approx(node.first_sample_s)
        assert rates[1:].mean() == pytest.approx(node.warm_tokens_per_s)
    other = load_study([*SMALL, "inputs.nodes.jw3.warm_tokens_per_s=20"])
    slow = serve(calibrate(other), Ask())
    assert slow.rates(1)[1:].mean() == pytest.approx(20.0)
    assert slow.rates(0)[1:].mean() == pytest.approx(run.rates(0)[1:].mean())


def test_a_first_sample_faster_than_warm_ones_is_refused(bench):
    with pytest.raises(InputError, match="is faster than"):
        serve(bench, Ask(first=0.1))


def test_a_node_that_stops(study, bench):
    run = serve(bench, Ask(failing=STOPS))
    mine, other = run.node == 0, run.node == 1
    assert (run.done & mine).sum() == 5
    assert (run.done & other).sum() == 10
    assert len(run.done) == 20
    first = run.latency_s(0)
    whole = serve(bench, Ask())
    assert first == pytest.approx(whole.latency_s(0)[:5])
    none = serve(bench, Ask(failing=STOPS, failed=1.0))
    assert none.done.sum() == 10
    assert serve(bench, Ask(failing=STOPS, failed=0.0)).done.all()
    both = load_study([*SMALL, "inputs.nodes.jw3.failure_probability=0.2"])
    run = serve(calibrate(both), Ask(failing=STOPS))
    assert [int(run.done[run.node == node].sum()) for node in (0, 1)] == [5, 8]


def test_failures_at_random_are_of_jw2_alone(bench):
    always = serve(bench, Ask(failing=RANDOM, failed=1.0))
    assert not always.done[always.node == 0].any()
    assert always.done[always.node == 1].all()
    assert serve(bench, Ask(failing=RANDOM, failed=0.0)).done.all()


def test_retries_serve_what_probability_says(bench):
    # Shares are static but count tries: a retry goes to either node, and half of jw2's fail again.
    seeds = 40
    once = over_seeds(bench, Ask(failing=RANDOM), seeds)
    served = sum(int(run.done[run.node == 0].sum()) for run in once)
    number = 10 * seeds
    assert abs(served - 0.5 * number) < 4 * math.sqrt(0.25 * number)
    again = over_seeds(bench, Ask(failing=RANDOM, attempts=12), 4)
    assert all(run.done.all() for run in again)
    assert all(run.attempts > 20 for run in again)


# --- outputs -----------------------------------------------------------------------------


def test_latency_is_prefill_and_steps_of_the_plan_engine(study, bench, runs):
    # The plan engine's steps at speed 1, two nodes as replicas; contexts are means.
    split = runs.parallel["25 Gb/s, 10 us", "replicas"]
    run = serve(bench, Ask(cold=False), plain=True)
    assert run.latency_s().mean() == pytest.approx(split.latency_s, rel=2e-3)


def test_figures_of_both_nodes_by_hand(bench):
    run = serve(bench, Ask(failing=STOPS))
    found = service_figures(run)
    jw2, jw3 = run.latency_s(0), run.latency_s(1)
    assert found["rate_both"] == pytest.approx(5 / jw2.sum() + 10 / jw3.sum())
    assert found["sd_jw2"] == pytest.approx(np.std(jw2, ddof=1))
    assert found["latency_both"] == pytest.approx((jw2.sum() + jw3.sum()) / 15)
    assert found["cold_excess"] == pytest.approx(jw2[0] / jw2.mean() - 1)
    assert found["within_15"] == 0.9


def test_nodes_that_share_nothing_scale_linearly(study, runs):
    figures = once_figures(study, runs)
    assert figures["beyond_linear"] == pytest.approx(0.0, abs=1e-12)
    assert figures["network_matters"] is False
    assert node_gains(runs, once=True) == pytest.approx({2: 1.0, 4: 2.0, 8: 4.0})


def test_balancing_gains_half_of_what_a_node_is_slower(bench):
    ask = Ask(repeats=8, cold=False)
    for ratio in (1.0, 1.2, 1.5):
        static = serve(bench, replace(ask, slower=(ratio,)))
        aware = serve(bench, replace(ask, slower=(ratio,), dispatch=AWARE, closed=2))
        gain = aware.delivered_per_s / static.delivered_per_s - 1.0
        # 160 samples are dealt whole: one at the end is up to 1 / 80 of the time.
        assert gain == pytest.approx((ratio - 1.0) / 2.0, abs=0.0125)


def test_batches_gain_less_than_their_size(runs):
    for dtype in ("bf16", "fp16"):
        gains = batch_gains(runs, dtype, once=False)
        assert gains["batch_gain@1"] == 1.0
        assert 1.0 < gains["batch_gain@4"] < 4.0
        assert gains["batch_gain@4"] < gains["batch_gain@8"] < 8.0
    assert batch_gains(runs, "fp16", False)["batch_gain@8"] > gains["batch_gain@4"]


def test_memory_by_hand(study):
    weights, kv = memory_of(study)
    # 8.03 B parameters of 2 B; 32 layers x 2 x 8 heads x 128 x 2 B per token.
    assert weights == pytest.approx(2 * 8.03e9, rel=1e-3)
    assert kv == 32 * 2 * 8 * 128 * 2
    held, _ = memory_of(study, 65)
    samples = (0.8 * 32e9 - held) / (7 * 16 * kv)  # 71 + 32 tokens are 7 blocks of 16
    assert batch_for(study, 0.8) == int(samples)


def test_memory_is_never_above_its_share(runs):
    assert 0.7 * 32e9 < runs.memory.used_bytes <= 0.8 * 32e9


def test_largest_rate_is_between_the_rates_that_keep_the_limits():
    # A server whose P99 is the rate itself, in seconds.
    def at(rate):
        return replace(made, first_s=made.arrival_s + rate, end_s=made.arrival_s + rate + 0.1)

    none = np.zeros(4)
    made = _run(none)
    limit = Limit(ttft="2.3 s", tpot="100 ms")
    found = _largest_rate(at, limit, (1.0, 2.0, 4.0))
    assert 2.3 - 2.0 / 2**4 <= found <= 2.3
    assert _largest_rate(at, limit, (3.0, 4.0)) is None
    assert _largest_rate(at, limit, (1.0, 2.0)) == 2.0


def _run(times):
    from simulator.studies.mlperf.runs import Run

    return Run(
        node=np.zeros(4, dtype=np.int32), arrival_s=times, start_s=times, first_s=times,
        end_s=times, tokens=np.full(4, 11, dtype=np.int32), done=np.ones(4, dtype=np.bool_),
        attempts=4, span_s=1.0, batch=1, used_bytes=0.0,
    )  # fmt: skip


# --- the report --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(study, runs):
    return report_of(study, runs, quick=True)


def test_verdicts_follow_from_the_runs(report):
    verdict = {row.text: row.verdict for row in report.judged}
    assert verdict["samples/s of both"] == REPRODUCED
    assert verdict["standard deviation, jw3, ms"] == REPRODUCED
    assert verdict["above linear scaling: efficiency - 100 %"] == NOT
    assert verdict["performance-aware balancing: samples/s more, %"] == NOT
    assert verdict["first sample of jw2 above the average, %"] == DIRECTION
    assert verdict["network latency between nodes adds to latency"] == NOT


def test_a_slower_node_makes_the_gain_of_balancing_come_true(study, runs, report):
    row = next(row for row in report.judged if row.text.startswith("performance-aware"))
    told = row.simulated["as run"].holds_at
    low, high = (float(x) for x in told.split()[2].split("-"))
    # (ratio - 1) / 2 of 10 and 15 %; of 50 samples per node one more or less is 2 % of the gain.
    assert (low, high) == pytest.approx((1.2, 1.3), abs=0.05)
    assert balance_gains(runs)[1.0] == pytest.approx(0.0, abs=1e-9)


def test_cells_are_inputs_outputs_or_impossible(report):
    kinds = {(t.name, row[0].strip()): row[2] for t in report.tables[:5] for row in t.rows}
    assert kinds["latency", "deviation, jw2, ms"] == "impossible"
    assert kinds["latency", "deviation, jw3, ms"] == "output"
    assert kinds["latency", "maximum, jw2, ms"] == "input"
    assert {*kinds.values()} == {"input", "output", "impossible"}
    told = [note for note in report.notes if note.startswith("Impossible")]
    assert len(told) == len({*told}) == 13


def test_text_files_and_rows(report, tmp_path, monkeypatch):
    lines = render(report).splitlines()
    assert max(map(len, lines)) <= 80
    monkeypatch.setattr("simulator.studies.common.report.write_figures", lambda *given: None)
    write(report, tmp_path / "new", print)
    assert (tmp_path / "new" / "what-ifs.csv").is_file()
    assert "| batch 8 |" in (tmp_path / "new" / "SUMMARY.md").read_text()
    rows = flat(report)
    assert {row["system"] for row in rows} == {"mlperf-summarization"}
    json.dumps(rows)


def test_every_claim_has_a_figure(report):
    for row in report.judged:
        given = [found.value for found in row.simulated.values()]
        # INT8 is left out of a quick run.
        assert any(value is not None for value in given) or row.text.startswith("INT8"), row.text


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("inputs.nodes.jw2.failure_probability=2", "failure_probability"),
        ("inputs.nodes.jw4.first_sample=1 s", "unknown key"),
        ("inputs.nodes.jw2.first_sample=1", "no unit"),
        ("inputs.nodes.jw2.first_sample=100 ms", "is faster than"),
        ("what_ifs.batches=[2, 4]", "without 1"),
        ("assumptions.outputs=[3]", "numbers for"),
    ],
)
def test_command_refuses_in_one_line(override, told, capsys):
    assert main(["study", "mlperf-summarization", "--quick", "--set", override]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len([line for line in error.splitlines() if line.startswith("error")]) == 1
