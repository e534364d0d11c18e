"""The study `large-ep`: closed forms against hand counts, verdicts from the runs, routing."""

from __future__ import annotations

from dataclasses import replace
from math import log

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.studies.common.claims import DIRECTION, NOT, REPRODUCED, read_published
from simulator.studies.common.report import refuse_existing, render, write
from simulator.studies.common.runs import Outcome, outcome
from simulator.studies.large_ep import forms, routing
from simulator.studies.large_ep import runs as runs_of
from simulator.studies.large_ep.runs import GROWN, Runs
from simulator.studies.large_ep.spec import load_study
from simulator.studies.large_ep.study import refuse_other_model, report_of

# Round figures, so that all can be counted by hand: 1,000 tokens of 8 B, 64 FLOPs each and layer.
POINT = forms.Point(
    tokens=1000, hidden=4, intermediate=4, matrices=2, layers=4, top_k=1, experts=4, gpus=4,
    gpus_per_node=4, flops_per_s=64e3, dispatch_bytes_per_s=8e3, allreduce_bytes_per_s=8e3,
    send_bytes_per_s=8e3, network_bytes_per_s=0.0, in_switch=False, tp=2, pp=2, microbatches=4,
    overlapped=False,
)  # fmt: skip


def test_volumes_bubble_and_visits_by_hand():
    assert forms.ring_volume(8) == 1.75
    assert forms.switch_volume(8) == 1.125
    assert [forms.bubble(m, 2) for m in (1, 2, 4)] == [2.0, 1.5, 1.25]
    # Two of four experts, one per GPU: always two GPUs. Two of eight on four: 4 (1 - 15 / 28).
    assert forms.visits(4, 4, 2) == pytest.approx(2.0)
    assert forms.visits(4, 8, 2) == pytest.approx(4 * 13 / 28)


def test_a_batch_by_tp_and_pp_by_hand():
    # 250 tokens: 250 x 64 / 2 / 64e3 = 0.125 s, all-reduce of 2,000 B: 1 x 2,000 / 8e3 = 0.25 s.
    assert forms.stage_s(POINT) == pytest.approx(2 * 0.375)
    assert forms.send_s(POINT) == pytest.approx(0.25)
    assert forms.baseline_s(POINT) == pytest.approx((4 + 1) * 0.75 + 0.25)


def test_a_batch_by_ep_by_hand():
    # 250 tokens per GPU: 0.25 s; three quarters of 2,000 B leave, at 8e3: 0.1875 s each way.
    assert forms.expert_s(POINT) == pytest.approx((0.25, 0.375))
    assert forms.proposed_s(POINT) == pytest.approx(4 * 0.625)
    assert forms.proposed_s(POINT._replace(overlapped=True)) == pytest.approx(4 * 0.375)
    assert forms.speedup(POINT) == pytest.approx(4.0 / 2.5)
    assert forms.compute_bound_speedup(POINT) == pytest.approx(4.0)
    # Of 1,500 B two thirds go to the other node of two, at 1e3: 1 s, longer than 500 B at 8e3.
    far = POINT._replace(gpus_per_node=2, network_bytes_per_s=1e3)
    assert forms.sent_bytes(far) == pytest.approx((500.0, 1000.0))
    assert forms.expert_s(far)[1] == pytest.approx(2.0)
    assert forms.utilisation(POINT, 16e3, 0.0) == pytest.approx(2 * 4 * 1500 / (16e3 * 2.5))


def test_published_memory_is_the_whole_batch():
    study = load_study()
    given = study.assumptions
    at = POINT._replace(tokens=given.tokens, hidden=4096, intermediate=16384, experts=16, gpus=16)
    whole, split = forms.memory_bytes(at, 1), forms.memory_bytes(at, 16)
    assert whole["input"] == 128 * 10_000 * 4096 * 2 == 10_485_760_000
    assert split["input"] == pytest.approx(0.65536e9)
    assert whole["experts"] == 4 * 2 * 4096 * 16384 * 2


def test_holds_at_solves_the_form():
    told = forms.holds_at(POINT, read_published("2.0"))
    # m = 2: (3 x 1.5 + 0.5) / 2.5 = 2 exactly.
    assert "m = 2.00" in told
    assert "all-reduce bandwidth x" in told


def test_gate_balancing_fills_every_expert_evenly():
    rng = np.random.default_rng(1)
    choices = np.array(
        [[[rng.permutation(4) for _ in range(3)] for _ in range(40)] for _ in range(2)],
        dtype=np.int16,
    )
    choices[:, :, :, 0] = np.where(rng.random((2, 40, 3)) < 0.7, 0, choices[:, :, :, 0])
    ids, moved = routing.balanced(choices, 4, 1)
    for gpu in range(2):
        for layer in range(3):
            assert np.bincount(ids[gpu, :, layer, 0], minlength=4).tolist() == [10] * 4
    assert moved == pytest.approx(np.mean(ids[..., 0] != choices[..., 0]))


def test_balanced_choices_of_a_token_differ():
    choices = np.zeros((1, 6, 1, 4), dtype=np.int16)
    choices[...] = [0, 1, 2, 3]
    ids, moved = routing.balanced(choices, 4, 2)
    assert (ids[..., 0] != ids[..., 1]).all()
    assert np.bincount(ids.ravel(), minlength=4).tolist() == [3] * 4
    assert moved == pytest.approx(0.5)


def test_greedy_placement_puts_an_expert_where_it_is_asked_for():
    # Two nodes of two GPUs: experts are asked for by the node that does not hold them by number.
    wanted = np.array([[0, 0, 9, 1], [0, 0, 1, 9], [9, 1, 0, 0], [1, 9, 0, 0]], dtype=np.float64)
    near = np.array([[True, True, False, False]] * 2 + [[False, False, True, True]] * 2)
    bandwidth = np.where(near, 100.0, 1.0)
    placed = routing.place(wanted, bandwidth, np.zeros((4, 4)), 1.0)
    assert placed.tolist() == [2, 3, 0, 1]


def test_matrices_are_the_topologys():
    bandwidth, latency_s = routing.matrices("h100x16-fat-tree", ())
    assert bandwidth[0, 1] == 450e9
    assert bandwidth[0, 8] == 25e9
    assert latency_s[0, 1] == pytest.approx(2 * 468e-9)
    assert np.isinf(np.diag(bandwidth)).all()


def test_a_small_baseline_and_ep_are_simulated():
    study = load_study(["assumptions.batch=16", "assumptions.sequence=160"])
    base = runs_of.baseline_cases(study, quick=True)["nvswitch", 1, 1, 1.0, False]
    expert = runs_of.expert_cases(study, quick=True)["nvswitch", 1, 16, GROWN, "none", 1.0]
    for case in (base, expert):
        found = outcome(case)
        assert found.refused == ""
        assert found.tokens_per_s == pytest.approx(2560 / found.step_s)
    refused = outcome(replace(base, overrides=(*base.overrides, "workload.parallel={tp: 3}")))
    assert "tp" in refused.refused
    assert refused.tokens_per_s is None


def made_up(base: float, ep: float) -> Runs:
    """Runs of which only the throughputs are set: of the baseline and of EP per GPU."""
    study = load_study()

    def run(rate: float) -> Outcome:
        return Outcome(
            tokens_per_s=rate, step_s=study.assumptions.tokens / rate, compute=0.5, exposed=0.1,
            nvlink=0.65, mfu=0.5, imbalance=1.0, overlap=0.0, limit="compute",
        )  # fmt: skip

    of_base = {
        key: run(base * key[2] / (key[2] + 1)) for key in runs_of.baseline_cases(study, quick=True)
    }
    of_ep = {key: run(ep * key[2]) for key in runs_of.expert_cases(study, quick=True)}
    ablation = {
        (name, on, overlap): run(ep)
        for name in study.networks
        for on in runs_of.combinations_of_switches()
        for overlap in (study.assumptions.overlaps if "overlap" in on else ("none",))
    }
    memory = {(1, 16, GROWN): {"experts": 1e9, "activations": 12e9}}
    return Runs(of_base, of_ep, ablation, 0.1, memory)


@pytest.mark.parametrize(
    ("ep", "verdict"), [(3.75 / 16, REPRODUCED), (1.5 / 16, DIRECTION), (0.9 / 16, NOT)]
)
def test_verdicts_follow_from_the_runs(ep, verdict):
    # The fastest baseline is that of 64 micro-batches.
    report = report_of(load_study(), made_up(65 / 64, ep), quick=True)
    judged = {row.text: row for row in report.judged}
    assert judged["EP 16: throughput x TP8 PP2"].verdict == verdict
    assert judged["EP 16: mean network utilisation, %"].verdict == REPRODUCED
    assert judged["EP 128 is limited by the network"].verdict == NOT
    assert judged["memory per GPU, BF16, GB"].verdict == REPRODUCED


def test_where_it_would_hold_is_interpolated_between_micro_batches():
    report = report_of(load_study(), made_up(65 / 64, 2.0 / 16), quick=True)
    found = report.judged[0].simulated["nvswitch"]
    assert found.verdict == DIRECTION
    # 2 / (65 / 64 x m / (m + 1)): 3.94 at m = 1, 2.46 at 4; log by log between.
    first, second = 2 * 64 / 65 * 2, 2 * 64 / 65 * 5 / 4
    assert found.holds_at == f"m = {4 ** (log(first / 3.75) / log(first / second)):.3g}"


def test_the_text_is_80_columns_wide_and_files_go_to_a_new_directory_only(tmp_path, monkeypatch):
    report = report_of(load_study(), made_up(1.0, 0.1), quick=True)
    text = render(report)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "NCCL_TREE_THRESHOLD" in text
    monkeypatch.setattr("simulator.studies.common.report.write_figures", lambda *given: None)
    out = tmp_path / "new"
    write(report, out, print)
    assert sorted(path.name for path in out.iterdir()) == [
        "SUMMARY.md", "ablation.csv", "baseline.csv", "claims.csv", "figures", "memory.csv",
        "scaling.csv",
    ]  # fmt: skip
    rows = (out / "claims.csv").read_text().splitlines()
    assert len(rows) == 1 + len(report.judged)
    with pytest.raises(InputError, match="is there already"):
        write(report, out, print)
    with pytest.raises(InputError, match="is no directory"):
        refuse_existing(tmp_path / "no" / "where")


def test_every_published_figure_is_a_claim():
    published = {claim.published for claim in load_study().claims}
    assert {
        "3.75", "7.2", "14.1", "27.3", "3.8", "7.1", "13.5", "25.2", "0.26", "65", "72", "78",
        "85", "10.5", "12-15",
    } <= published  # fmt: skip


def test_assumptions_can_be_set_and_are_checked():
    assert load_study(["assumptions.layers=2"]).assumptions.layers == 2
    with pytest.raises(InputError, match="did you mean 'layers'"):
        load_study(["assumptions.layer=2"])
    with pytest.raises(InputError, match="write 5461"):
        refuse_other_model(load_study(["assumptions.intermediate=8192"]))
