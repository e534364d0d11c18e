"""The study `deepseek-v3`: its law, its steps against `serve`, figures and verdicts from runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulator.cli import main
from simulator.errors import InputError
from simulator.routing.laws import zipf
from simulator.spec.load import load_inputs
from simulator.studies.common.claims import DIRECTION, NOT, REPRODUCED
from simulator.studies.common.report import render, write
from simulator.studies.deepseek_v3 import cases
from simulator.studies.deepseek_v3.cases import Runs, most_sequences, sequences_that_fit
from simulator.studies.deepseek_v3.routing import limited
from simulator.studies.deepseek_v3.runs import (
    DECODE,
    EVEN,
    ORDER,
    PREFILL,
    Case,
    Outcome,
    outcome,
    run_all,
)
from simulator.studies.deepseek_v3.spec import load_study, recorded
from simulator.studies.deepseek_v3.study import break_even, figures_of, own_rate, report_of
from simulator.studies.deepseek_v3.tables import dollars

# A small one: 16 GPUs, 3 dense and 2 MoE layers, few tokens.
SMALL = ("parallel.ep=16", "model.layers=5")
RECORDED = Path(__file__).parents[2].parent / "shared/reference/routing/local_only"


def small(phase: str = PREFILL, **more) -> Case:
    tokens, length = (512, 256) if phase == PREFILL else (32, 2048)
    base = Case(
        phase, "h100x16-rail", f"deepseek-v3-{phase}", tokens, length, "zipf:0.79", more=SMALL
    )
    return replace(base, **more)


# --- inputs ------------------------------------------------------------------------------


def test_every_published_figure_is_a_claim():
    published = {claim.published for claim in load_study().claims}
    assert {
        "57674", "54543", "50302", "22282", "27-35", "27", "64-128", "25.5", "1.564", "0.109",
        "14800", "0.20",
    } <= published  # fmt: skip


def test_derived_claims_follow_from_published_ones():
    claims = {claim.figure: claim.published for claim in load_study().claims}
    low, high = (float(text) for text in claims["prefill_alone"].split("-"))
    assert (low, high) == pytest.approx((54543 / 1.35, 54543 / 1.27), abs=0.5)
    assert float(claims["decode_alone"]) == pytest.approx(22282 / 1.255, abs=0.5)
    assert float(claims["longer"]) == pytest.approx(100 * (1 - 50302 / 57674), abs=0.05)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_workloads_run_on_the_topologies_of_the_study(phase):
    server = getattr(load_study().assumptions, phase)
    inputs = load_inputs(server.topology, server.workload)
    work = inputs.workload
    assert (
        inputs.topology.build.nodes * 8 == work.parallel.ep == {"prefill": 32, "decode": 72}[phase]
    )
    assert work.model.moe.experts + work.redundant_experts == 288
    assert (work.placement, work.overlap, work.traffic.phase) == ("eplb", "two-batch", phase)
    plain = load_inputs(server.topology, "deepseek-v3").workload
    assert work.model == plain.model


def test_the_law_has_the_published_imbalance():
    """Linear order on 32 GPUs, max/mean 3.04 averaged over 58 MoE layers."""
    exponent = float(load_study().assumptions.law.partition(":")[2])
    found = []
    for seed in range(8):
        ids = zipf(np.random.default_rng([seed, 9]), 2048, 58, 256, 8, exponent)
        counts = np.stack(
            [np.bincount(ids[:, layer].ravel() // 8, minlength=32) for layer in range(58)]
        )
        found.append((counts.max(axis=1) / counts.mean(axis=1)).mean())
    # A standard deviation of 0.07 from seed to seed.
    assert np.mean(found) == pytest.approx(3.04, abs=3 * 0.07 / 8**0.5)


def test_what_the_study_may_not_say():
    with pytest.raises(InputError, match=r"lengths.*no whole number of prompts of 3000"):
        load_study(["assumptions.prefill.lengths=[2048, 3000]"])
    with pytest.raises(InputError, match=r"judged.*write one of 32, 64"):
        load_study(["assumptions.decode.sequences=[32, 64]"])
    with pytest.raises(InputError, match=r"assumptions.price.*has no unit"):
        load_study(["assumptions.price=2"])
    with pytest.raises(InputError, match="no such file"):
        recorded("nowhere.json")


# --- the gate of DeepSeek-V3 -------------------------------------------------------------


def test_tokens_take_experts_of_four_groups():
    ids = limited(np.random.default_rng([0, 1]), 500, 3, 256, 8, 0.79)
    assert ids.shape == (500, 3, 8)
    assert ids.min() >= 0
    assert ids.max() < 256
    ordered = np.sort(ids, axis=2)
    assert (np.diff(ordered, axis=2) > 0).all()  # distinct
    groups = [len(set(row)) for row in (ids // 32).reshape(-1, 8).tolist()]
    assert max(groups) == 4
    # Of 256 equally likely experts without groups, 8 are in 5.3 of 8 groups on average.
    free = zipf(np.random.default_rng([0, 1]), 500, 3, 256, 8, 0.79)
    assert np.mean([len(set(row)) for row in (free // 32).reshape(-1, 8).tolist()]) > 5.0


def test_a_limited_token_takes_the_best_of_its_groups():
    from simulator.studies.deepseek_v3.routing import _restricted

    # Groups of 4: experts 31, 0, 5, 9, 12 appear first, of groups 7, 0, 1, 2, 3; group 3 is out.
    scored = np.array([[31, 0, 5, 9, 12, 1, 13, 30]], dtype=np.int16)
    assert _restricted(scored, 32, 5).tolist() == [[31, 0, 5, 9, 1]]
    # Too few: the best of the others.
    assert _restricted(scored, 32, 7).tolist() == [[31, 0, 5, 9, 1, 30, 12]]


def test_groups_that_cannot_be_made():
    with pytest.raises(InputError, match="250 experts in 8 groups"):
        limited(np.random.default_rng(0), 1, 1, 250, 8)


# --- steps -------------------------------------------------------------------------------


def test_a_step_of_prefill_is_that_of_serve(tmp_path):
    from simulator.api import serve

    case = small()
    found = outcome(case)
    assert found.refused == ""
    assert found.gpus == 16
    assert found.tokens_per_s == pytest.approx(16 * 512 / found.step_s)
    assert found.per_node == pytest.approx(found.tokens_per_s / 2)
    overrides = [*case.overrides, "requests.limit=32"]
    served = serve(case.topology, case.workload, overrides=overrides, routing=case.routing)
    # 32 prompts of 256 tokens on 16 GPUs: one step, in which all end.
    assert served.summary["duration_s"] == pytest.approx(found.step_s, rel=1e-12)


def test_parts_of_a_step_without_overlap_add_up():
    found = outcome(small(overlap=False))
    both = found.compute_s + found.seconds("dispatch", "combine")
    slowest = found.slowest_s - found.seconds("experts")
    # Shared experts run beside the dispatch; every layer waits for its slowest GPU.
    assert both - found.seconds("ffn") - 1e-9 <= found.step_s <= both + slowest + 1e-9
    assert found.step_s > found.compute_s


def test_decode_generates_a_token_per_sequence_and_step():
    found = outcome(small(DECODE, steps=3))
    assert found.tokens_per_s == pytest.approx(16 * 32 / found.step_s)
    longer = outcome(small(DECODE, steps=3, length=8192))
    assert longer.step_s > found.step_s
    assert longer.seconds("experts") == pytest.approx(found.seconds("experts"))
    assert longer.seconds("attention") > found.seconds("attention")


def test_eplb_evens_out_what_order_does_not():
    order, eplb, even = (outcome(small(placing=name)) for name in (ORDER, "eplb", EVEN))
    assert order.imbalance > 2 * eplb.imbalance
    assert order.step_s > eplb.step_s
    assert even.imbalance < 0.2
    slower = outcome(small(more=(*SMALL, "serving.speed=[1.5]")))
    assert slower.compute_s == pytest.approx(1.5 * eplb.compute_s)


def test_a_refused_run_says_why():
    found = outcome(small(more=("parallel.ep=7",)))
    assert "parallel.ep: 7 does not divide" in found.refused
    found = outcome(small(DECODE, length=1_000_000))
    assert "32 sequences of 1,000,000 tokens: the KV cache of a GPU holds" in found.refused


def test_message_by_message_a_step_is_that_of_the_step_engine():
    of = small(DECODE, overlap=False, length=512)
    whole, exact = outcome(of), outcome(replace(of, network="exact"))
    assert exact.refused == ""
    assert exact.tokens_per_s == pytest.approx(16 * 32 / exact.step_s)
    # Without overlap the same transfers, each as fast as its slowest link or faster.
    assert exact.step_s == pytest.approx(whole.step_s, rel=0.1)


def test_runs_of_the_same_servers_go_together():
    first, second = small(), small(length=128)
    assert first.servers == second.servers != small(overlap=False).servers
    assert list(run_all([second, first, second], workers=1)) == [second, first]


# --- figures -----------------------------------------------------------------------------


def test_as_many_sequences_as_fit_beside_their_activations():
    """Room for 1,000 tokens less 2 for each sequence; sequences of 15 tokens and one more."""
    room = {n: 1000 - 2 * n for n in (8, 32)}
    most = most_sequences(room, 15)
    assert most * 16 <= 1000 - 2 * most
    assert (most + 1) * 16 > 1000 - 2 * (most + 1)
    assert most_sequences({8: 10, 32: 4}, 15) == 0


def test_sequences_that_fit_by_hand():
    # 2,049 tokens are 129 blocks of 16, 2,064 tokens.
    assert sequences_that_fit(2064 * 7, 2048) == 7
    assert sequences_that_fit(2064 * 7 - 1, 2048) == 6
    assert sequences_that_fit(100, 2048) == 0


def test_the_published_cost_is_that_of_the_published_rate():
    study = load_study()
    assert dollars(study, 22282) == pytest.approx(16 / 3600 / 22282 * 1e6)
    assert round(dollars(study, 22282), 2) == 0.20


def made_up(change=lambda case, step_s: step_s) -> Runs:
    """Runs that are what was published, but for `change`."""
    study = load_study()
    of = cases.readings(study, None)
    assert {case.network for case in cases.all_cases(study, of, quick=False)} == {"coflow", "exact"}
    gains = {32: 0.73, 64: 0.95, 128: 1.1, 256: 1.255}
    rates = {1024: 57674.0, 2048: 54543.0, 4096: 50302.0}
    found = {}
    for case in cases.all_cases(study, of, quick=False):
        if case.phase == PREFILL:
            step_s = 8 * case.tokens / rates[case.length]
            step_s *= 1.0 if case.overlap else 1.31
        else:
            step_s = 8 * case.tokens / 22282.0 * (1.0 if case.overlap else gains[case.tokens])
        if case.placing == ORDER:
            step_s *= 1.49 if case.phase == PREFILL else 2.54
        if case.topology == study.assumptions.own.topology:
            step_s = case.tokens / 96 / 21.0  # 96 sequences at 21 token/s of each
        gpus = {PREFILL: 32, DECODE: 72}[case.phase]
        gpus = 144 if case.topology == study.assumptions.own.topology else gpus
        step_s = change(case, step_s)
        found[case] = Outcome(
            gpus=gpus,
            step_s=step_s,
            tokens_per_s=gpus * case.tokens / step_s,
            parts=(("attention", 0.3 * step_s), ("dispatch", 0.8 * step_s)),
            imbalance=0.109,
            kv_tokens=600_000,
        )
    return Runs(found, of, {2048: (290, found[cases.decode(study, of[0], 256)])})


def test_what_is_as_published_is_reproduced():
    study = load_study()
    report = report_of(study, made_up(), quick=False)
    verdicts = {row.text: row.verdict for row in report.judged}
    # The law's imbalance in order is of other data.
    assert verdicts.pop("imbalance, EP32, in order (loads)") == NOT
    # 96 sequences at 21 token/s of each are 16,128 a node.
    assert set(verdicts.values()) == {REPRODUCED}, verdicts
    row = report.judged[0]
    assert row.simulated["law"].value == pytest.approx(57674)
    form = {row.text: row.form for row in report.judged}["decode, $ per 1M output tokens"]
    assert form is not None
    assert form.verdict == REPRODUCED


def test_a_slower_step_is_told_as_time():
    study = load_study()

    def half(case, step_s):
        return 0.5 * step_s

    report = report_of(study, made_up(half), quick=False)
    row = next(row for row in report.judged if row.text.startswith("decode, 256 per GPU, token"))
    assert row.verdict == NOT
    # 2,048 tokens of a node at 22,282 token/s are 91.9 ms.
    assert row.simulated["law"].holds_at == "a step 46 ms longer than 46 ms"


def test_gains_and_break_even_by_hand():
    study = load_study()
    runs = made_up()
    law = runs.readings[0]
    found = figures_of(study, runs, law)
    assert found["loss@32"] == pytest.approx(0.27)
    assert found["gain@256"] == pytest.approx(0.255)
    assert found["prefill_gain"] == pytest.approx(0.31)
    assert found["decode_eplb"] == pytest.approx(2.54)
    # From -5 % at 64 to +10 % at 128: a third of the way in logarithms.
    assert break_even(study, runs, law) == pytest.approx(64 * 2 ** (1 / 3))
    assert own_rate(study, runs, law) == pytest.approx(8 * 96 * 21.0)

    def always(case, step_s):
        return step_s if case.overlap else 2.0 * step_s

    assert break_even(study, made_up(always), law) is None


def test_a_gain_of_the_same_sign_is_the_direction_only():
    study = load_study()

    def more(case, step_s):
        return step_s if case.overlap else 1.5 * step_s

    rows = report_of(study, made_up(more), quick=False).judged
    verdicts = {row.text: row.verdict for row in rows}
    assert verdicts["two-batch overlap, prefill, gain %"] == DIRECTION
    assert verdicts["decode, 256 per GPU, gain %"] == DIRECTION
    assert verdicts["decode, 32 per GPU, loss %"] == NOT


def test_the_text_is_80_columns_wide_and_files_go_to_a_new_directory_only(tmp_path, monkeypatch):
    study = load_study()
    runs = made_up()
    third = cases.Reading(cases.RECORDED, "recording.json")
    more = {
        replace(case, routing=third.routing): run
        for case, run in runs.found.items()
        if case.placing != EVEN
    }
    monkeypatch.setattr("simulator.studies.deepseek_v3.study.by_loads", lambda *given: (2.0, 0.3))
    monkeypatch.setattr("simulator.studies.deepseek_v3.balance.by_loads", lambda *given: (2.0, 0.3))
    runs = Runs(runs.found | more, [*runs.readings, third], runs.fitting)
    report = report_of(study, runs, quick=False)
    text = render(report)
    assert max(len(line) for line in text.splitlines()) <= 80
    for assumed in study.sources:
        assert " ".join(assumed.split()[:3]) in " ".join(text.split())
    monkeypatch.setattr("simulator.studies.common.report.write_figures", lambda *given: None)
    write(report, tmp_path / "new", print)
    assert (tmp_path / "new" / "rates.csv").is_file()
    with pytest.raises(InputError, match="is there already"):
        write(report, tmp_path / "new", print)


@pytest.mark.skipif(not RECORDED.is_dir(), reason="no recorded loads of DeepSeek-V3 here")
def test_recorded_loads_are_one_more_reading():
    path = RECORDED / "deepseek_v3_prefill_in4096.json"
    study = load_study()
    of = cases.readings(study, recorded(str(path)))
    assert [reading.name for reading in of] == ["law", "even", "exact", "recorded"]
    assert [reading.name for reading in cases.readings(study, None, quick=True)] == ["law", "even"]
    from simulator.studies.deepseek_v3.balance import by_loads

    server = study.assumptions.prefill
    order, eplb = by_loads(str(path), server.topology, server.workload)
    assert order == pytest.approx(3.04 - 1, abs=0.005)
    assert eplb < 0.4


# --- the command -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["deepseek-v3", "--eviction", "lru"], "--eviction goes with study cache"),
        (["layerwise", "--routing", "zipf"], "--routing goes with study cache and deepseek-v3"),
        (["deepseek-v3", "--routing", "nowhere.json"], "--routing nowhere.json: no such file"),
        (["deepseek-v3", "--set", "assumptions.laws=zipf"], "did you mean"),
    ],
)
def test_what_the_command_refuses(given, said, capsys):
    assert main(["study", *given]) == 2
    assert said in capsys.readouterr().err
