"""The study `layerwise`: closed forms against hand counts, verdicts from the runs, L2."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.cli import main
from simulator.errors import InputError
from simulator.studies.common.claims import DIRECTION, NOT, REPRODUCED, read_published
from simulator.studies.common.report import render, write
from simulator.studies.common.runs import Outcome, outcome
from simulator.studies.layerwise import forms
from simulator.studies.layerwise import runs as runs_of
from simulator.studies.layerwise.l2 import cached, gemms, rows_of
from simulator.studies.layerwise.runs import LAYER_TP, TP_PP, Runs, key, strong_key, weak_key
from simulator.studies.layerwise.spec import load_study
from simulator.studies.layerwise.study import form_figures, pieces_of, report_of

# Round figures: 1,000 tokens of 8 B; a layer has 4 x 4 x 4 + 2 x 4 x 8 = 128 weights.
POINT = forms.Point(
    tokens=1000, hidden=4, width=8, matrices=2, attention_width=4, layers=4, keys=0, decode=False,
    tp=8, stages=2, pieces=4, flops_per_s=8e3, hbm_bytes_per_s=1e9, allreduce_bytes_per_s=7e3,
    send_bytes_per_s=8e3, in_switch=False,
)  # fmt: skip
LAYERWISE = POINT._replace(tp=4, stages=4)


def test_the_stated_dimensions_have_3_2_billion_parameters():
    study = load_study()
    form = form_figures(study, Runs({}))
    assert form["parameters_b"] == pytest.approx(4 * (4 * 16384 * 4096 + 2 * 16384**2) / 1e9)
    assert form["parameters_b"] == pytest.approx(3.221225472)
    assert form["activations_gb"] == pytest.approx(39.0625)
    assert form["chunk_mb"] == pytest.approx(268.435456)
    assert form["comm_gib"] == pytest.approx(2 * 1.75 * 39.0625)


@pytest.mark.parametrize(("model", "billions"), [("3.2", 3.22), ("4.3", 4.29), ("30", 30.0)])
def test_readings_of_the_model_have_their_parameters(model, billions):
    given = load_study().assumptions
    width = given.models[model].intermediate
    at = POINT._replace(hidden=16384, width=width, matrices=3, attention_width=4096)
    assert 4 * forms.layer_parameters(at) / 1e9 == pytest.approx(billions, rel=2e-3)
    assert width % 16 == 0
    assert forms.width_of(4 * forms.layer_parameters(at), at) == pytest.approx(width)


def test_a_flushed_batch_by_hand():
    # 250 tokens: 250 x 256 / 8 / 8e3 = 1 s; two all-reduces of 1.75 x 2,000 B at 7e3: 1 s.
    assert forms.layer_s(POINT) == pytest.approx(2.0)
    assert forms.batch_s(POINT) == pytest.approx((4 + 1) * 4.0 + 0.25)
    # Among four: 2 s, and 2 x 1.5 x 2,000 / 7e3.
    each = 2.0 + 6 / 7
    assert forms.batch_s(LAYERWISE) == pytest.approx((4 + 3) * each + 3 * 0.25)
    assert forms.gain(POINT, LAYERWISE) == pytest.approx(20.25 / (7 * each + 0.75) - 1)
    switched = POINT._replace(in_switch=True)
    assert forms.allreduce_sent(switched) == pytest.approx(2 * 1.125 * 8000)


def test_steady_decode_has_no_bubble_and_reads_weights_and_cache():
    at = POINT._replace(decode=True, keys=10, hbm_bytes_per_s=1.0, flops_per_s=1e12)
    # 128 weights and 250 tokens x 10 keys x 2 x 4 elements, 2 B each, over 8 GPUs.
    assert forms.layer_bytes(at) == pytest.approx(2 * (128 + 250 * 10 * 8))
    layer_s = 2 * (128 + 20_000) / 8 + 1.0
    assert forms.layer_s(at) == pytest.approx(layer_s)
    assert forms.batch_s(at) == pytest.approx(4 * 2 * layer_s)
    one = at._replace(pieces=1, tokens=250)
    assert forms.batch_s(one) == pytest.approx(2 * (2 * layer_s + 0.25))


def test_hit_rates_as_claimed_would_gain_more_than_claimed():
    # Requests that take twice as long from HBM as computing: 30 % hits 1.4 s, 95 % 1 s.
    assert forms.cached_layer_s(1.0, 2.0, 0.30) == pytest.approx(1.4)
    assert forms.cached_layer_s(1.0, 2.0, 0.95) == 1.0
    assert forms.hit_for(0.2, 1.0, 2.0, 0.95) == pytest.approx(0.4)
    assert forms.hit_for(0.2, 1.0, 1.0, 0.95) is None


def test_holds_at_solves_the_form():
    told = forms.holds_at(POINT, LAYERWISE, "gain", read_published("0"), 100.0)
    assert "all-reduce bandwidth x" in told
    factor = float(told.rpartition(" x ")[2])
    pair = [
        at._replace(allreduce_bytes_per_s=at.allreduce_bytes_per_s * factor)
        for at in (POINT, LAYERWISE)
    ]
    assert forms.gain(*pair) == pytest.approx(0.0, abs=5e-3)


def test_gemms_of_a_layer_and_their_traffic():
    study = load_study()
    assert list(gemms(study, "4.3", 8, 100)) == [
        (100, 3 * 512, 16384), (100, 16384, 512), (100, 2 * 2048, 16384), (100, 16384, 2048),
    ]  # fmt: skip
    found = cached(study, "4.3", 8, 256, 1e12, "row")
    weights = 16384 * (4 * 512 + 3 * 2048) * 2
    rows = 256 * (2 * 16384 + 512 + 2048) * 2
    assert found.read == pytest.approx(weights + rows)  # all that is asked for twice is there
    assert found.requested == pytest.approx(
        sum(forms.requested_bytes(m, n, k, (128, 128)) for m, n, k in gemms(study, "4.3", 8, 256))
    )
    assert rows_of(1000, "microbatches: 8", 4) == 125
    assert rows_of(1000, "chunk: 800 B", 4) == 100


def test_plans_of_both_layouts():
    study = load_study()
    base = replace(key(study, "prefill", "3.2", TP_PP), pieces="microbatches: 8")
    layer = replace(base, layout=LAYER_TP, pieces="chunk: 12000000 B")
    assert "workload.parallel={tp: 8, pp: 2, microbatches: 8, sequence_parallel: false}" in (
        runs_of.case_of(study, base).overrides
    )
    told = next(text for text in runs_of.case_of(study, layer).overrides if "parallel=" in text)
    assert "{layers: 3, gpus: 12-15, tp: 4}], chunk: 12000000 B" in told
    assert pieces_of(study, layer) == pytest.approx(128 * 10_000 * 16384 * 2 / 12e6)
    two = strong_key(study, "decode", "30", 2)
    assert (two.gpus, two.layers) == (2, 2)
    grown = weak_key(study, "decode", "30", 4)
    assert (grown.gpus, grown.layers) == (64, 16)


def test_both_layouts_are_simulated_in_decode():
    study = load_study()
    for layout in (TP_PP, LAYER_TP):
        of = replace(key(study, "decode", "3.2", layout), pieces="microbatches: 4")
        found = outcome(runs_of.case_of(study, of))
        assert found.refused == ""
        assert found.tokens_per_s == pytest.approx(128 / found.step_s)
        assert 0.0 < found.hbm < 1.0
        assert found.joules_per_token > 0.0


def made_up(gain: float) -> Runs:
    """Runs in which layer-wise is as much faster as said, and scales by GPUs per layer."""
    study = load_study()
    found = {}
    for one in dict.fromkeys(runs_of.all_keys(study, quick=True)):
        rate = 12_800.0 if one.layout == TP_PP else 12_800.0 * (1 + gain) * one.gpus / 16
        joules = 1.0 if one.layout == TP_PP else 1 / (1 + gain)
        found[one] = Outcome(
            tokens_per_s=rate, step_s=1.0, compute=0.5, exposed=0.1, hbm=0.85,
            joules_per_token=joules, mfu=0.1,
        )  # fmt: skip
    return Runs(found)


@pytest.mark.parametrize(("gain", "verdict"), [(0.2, REPRODUCED), (0.1, DIRECTION), (-0.1, NOT)])
def test_verdicts_follow_from_the_runs(gain, verdict):
    report = report_of(load_study(), made_up(gain), quick=True)
    judged = {row.text: row for row in report.judged}
    for text in ("throughput gained, %", "time per token saved, %", "energy per token saved, %"):
        assert judged[text].verdict == verdict
    assert judged["token/s, TP8 PP2"].verdict == REPRODUCED
    assert judged["token/s on 4 GPUs"].verdict == (REPRODUCED if gain > 0.05 else NOT)
    assert judged["scaling is linear (16 over 4 GPUs within 10 %)"].verdict == REPRODUCED
    assert judged["HBM bandwidth used, TP8 PP2, %"].verdict == REPRODUCED


def test_the_text_is_80_columns_wide_and_files_go_to_a_new_directory_only(tmp_path, monkeypatch):
    report = report_of(load_study(), made_up(0.1), quick=True)
    text = render(report)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "41.9 GB" in text
    monkeypatch.setattr("simulator.studies.common.report.write_figures", lambda *given: None)
    write(report, tmp_path / "new", print)
    with pytest.raises(InputError, match="is there already"):
        write(report, tmp_path / "new", print)


def test_every_published_figure_is_a_claim():
    published = {claim.published for claim in load_study().claims}
    assert {
        "12800", "15360", "20", "0.078", "0.065", "16.67", "16.7", "1920", "3840", "7680", "30",
        "95", "80-100", "60", "15", "39.06", "12", "50", "90", "39",
    } <= published  # fmt: skip


def test_command_refuses_an_existing_directory(tmp_path, capsys):
    for name in ("large-ep", "layerwise"):
        assert main(["study", name, "--quick", "--out", str(tmp_path)]) == 2
        assert "is there already" in capsys.readouterr().err
