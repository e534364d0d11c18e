"""The study `prophet` as a whole, at its smallest: what is simulated, judged, written and read."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace

import pytest
from needed import needed

from simulator.cli import main
from simulator.errors import InputError
from simulator.studies.common import claims, figures
from simulator.studies.common.claims import DIRECTION, NOT, REPRODUCED, Found, Judged
from simulator.studies.prophet import files as prophet_files
from simulator.studies.prophet import text as prophet_text
from simulator.studies.prophet.claims import _without_coincidence
from simulator.studies.prophet.notes import misfits, oddities
from simulator.studies.prophet.result import flat_rows, hybrid_parallel, readings
from simulator.studies.prophet.runs import (
    GIB,
    Case,
    dynamic,
    left_out,
    link_bandwidths,
    outcome,
    parallel,
    refuse_other_experts,
    run_all,
    slots_of,
    steps_to_fill,
)
from simulator.studies.prophet.spec import load_study
from simulator.studies.prophet.study import run_study

SMALLEST = [
    "simulation.quick.steps=1",
    "simulation.quick.warmup_steps=3",
    "simulation.quick.accuracies=[0.8]",
    "simulation.quick.memory_reductions=[1, 4]",
    "simulation.quick.link_factors=[1]",
]
STARTED = datetime(2026, 1, 2, 3, 4, 5)
# 3 matrices of 4096 x 2544 in 2 bytes, and 32 layers.
EXPERT_LAYER_BYTES = 3 * 4096 * 2544 * 2
LAYERS = 32


@pytest.fixture(scope="module")
def result():
    return run_study(load_study(SMALLEST), quick=True, workers=1)


@pytest.fixture(scope="module")
def written(result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "out"
    return folder, prophet_files.write_study(result, folder, STARTED)


# --- What is simulated


@pytest.mark.parametrize(
    ("ep", "access", "m", "slots"),
    [(8, "dispatch", 4.0, (4, 16)), (5, "dispatch", 4.0, (7, 26)), (8, "fetch", 4.0, (32, 128)),
     (1, "dispatch", 1.0, (128, 128)), (1, "dispatch", 1.5, (86, 128)),
     (10, "dispatch", 64.0, (1, 13))],
)  # fmt: skip
def test_a_gpu_keeps_one_mth_of_what_it_serves(ep, access, m, slots):
    case = Case("8xA100", parallel(ep=ep), access, "none", m)
    assert slots_of(load_study(), case) == slots


def test_warm_up_lasts_until_the_cache_can_be_full():
    # One token asks for 4 of 128: (31 / 32)^n of the experts are new after n steps.
    assert steps_to_fill(0.5, 31 / 32) == math.ceil(2 * math.log(2) / math.log(32 / 31)) == 44
    assert steps_to_fill(0.5, (31 / 32) ** 8) == 6
    assert steps_to_fill(117 / 128, 31 / 32) == 155


def test_memory_is_the_sum_of_its_parts_by_hand(result):
    case = Case("8xA100", parallel(ep=4), "dispatch", "none", 4.0)
    memory = result.runs[case].memory
    # 32 of 128 experts served, 8 kept; attention, embedding and head, gates; KV of 1024 tokens.
    dense = 2 * (LAYERS * 4 * 4096**2 + 2 * 32000 * 4096 + LAYERS * 4096 * 128)
    cache = 1024 * LAYERS * 2 * 32 * 128 * 2
    assert memory.parts["experts"] == pytest.approx(8 * LAYERS * EXPERT_LAYER_BYTES)
    by_hand = 8 * LAYERS * EXPERT_LAYER_BYTES + dense + cache
    assert memory.needed == pytest.approx(by_hand, rel=1e-3)  # and a token's activations
    assert memory.room == pytest.approx(0.95 * 81920 * 2**20)
    assert memory.fits


def test_what_does_not_fit_is_told_with_the_sum(result):
    unfit = {line.partition(":")[0] for line in misfits(result)}
    # 256 GB for data parallel everywhere, 128 and 64 for others; with 4x only the A6000's DP.
    assert {line for line in unfit if line.endswith("dispatch")} == {
        "2xA100 expert parallel 2x1, m = 1, dispatch",
        "2xA100 data parallel 1x2, m = 1, dispatch",
        "2xA100 hybrid 1x2, m = 1, dispatch",
        "4xH100 data parallel 1x4, m = 1, dispatch",
        "4xH100 hybrid 2x2, m = 1, dispatch",
        "8xA100 data parallel 1x8, m = 1, dispatch",
        "10xA6000 data parallel 1x10, m = 1, dispatch",
        "10xA6000 data parallel 1x10, m = 4, dispatch",
        "10xA6000 hybrid 5x2, m = 1, dispatch",
    }
    (line,) = [one for one in misfits(result) if one.startswith("10xA6000 hybrid 5x2, m = 1")]
    memory = result.runs[Case("10xA6000", parallel(ep=5), "dispatch", "none", 1.0)].memory
    assert f"needs {memory.needed / GIB:.1f} GiB per GPU (dense weights" in line
    assert memory.parts["experts"] == pytest.approx(26 * LAYERS * EXPERT_LAYER_BYTES)


def test_replicas_that_share_nothing_are_as_fast_as_one_each(result):
    for name, system in result.study.systems.items():
        alone = Case(name, parallel(ep=1), "dispatch", "none", 1.0, gpus=1)
        one, all_ = result.runs[alone], result.runs[replace(alone, gpus=0)]
        assert all_.tokens_per_s == pytest.approx(system.gpus * one.tokens_per_s, rel=1e-9)
        assert (all_.communication, all_.bytes_per_token, all_.hit_rate) == (0.0, 0.0, None)


def test_a_miss_moves_one_expert_and_no_link_is_outrun(result):
    case = Case("4xH100", parallel(ep=1), "dispatch", "none", 4.0)
    run = result.runs[case]
    missed = (1.0 - run.hit_rate) * LAYERS * 4 * EXPERT_LAYER_BYTES
    assert run.bytes_per_token == pytest.approx(missed, rel=1e-9)
    # Each GPU has PCIe Gen5 x16 to itself, of which copies reach 85.6 %.
    assert run.tokens_per_s < 4 * 64e9 * 0.856 / run.bytes_per_token


def test_the_same_case_gives_the_same_figures(result):
    study, extent = result.study, result.extent
    case = Case("8xA100", parallel(ep=4), "dispatch", "none", 4.0)
    again = run_all(study, extent, [case, case], workers=1)
    assert again == {case: result.runs[case]}


def test_strategies_that_were_left_out_are_simulated(result):
    of = left_out(result.study, "8xA100")
    pipeline = result.runs[Case("8xA100", of["pipeline"], "dispatch", "none", 1.0)]
    assert pipeline.memory.fits
    # Four layers of 128 experts per GPU.
    assert pipeline.memory.parts["experts"] == pytest.approx(4 * 128 * EXPERT_LAYER_BYTES)
    mixed = result.runs[Case("8xA100", of["mixed"], "dispatch", "none", 1.0)]
    assert not mixed.memory.fits
    assert mixed.memory.parts["experts"] == pytest.approx(16 * 128 * EXPERT_LAYER_BYTES)
    rows = [row for row in flat_rows(result) if row["strategy"] in of]
    assert len(rows) == 2 * len(result.study.systems)


def test_dynamic_placement_is_simulated(result):
    study = result.study
    cases = {name: dynamic(study, name) for name in study.systems}
    assert cases["2xA100"] is None, "its hybrid has all experts on every GPU"
    rows = [row for row in flat_rows(result) if row["strategy"] == "dynamic_placement"]
    assert len(rows) == 3
    # The first placement is made after four steps, and moves in the next ones.
    extent = result.extent.model_copy(update={"steps": 3, "warmup_steps": 4})
    case = cases["8xA100"]
    moving, fixed = (outcome(study, extent, one) for one in (case, replace(case, rebalance="")))
    assert moving.memory == fixed.memory
    assert moving.bytes_per_token > 2 * fixed.bytes_per_token, "what moves is counted"


def test_every_link_is_sped_up():
    assert link_bandwidths("a6000x10") == {
        "bridge": 56.25e9, "pcie": 32e9, "socket_link": 67.2e9, "dram": 204.8e9,
    }  # fmt: skip


def test_the_workload_must_have_the_experts_of_the_closed_form():
    refuse_other_experts(load_study())
    with pytest.raises(InputError, match=r"^assumptions: 64 experts of 2 GB, 4 per token, but"):
        refuse_other_experts(load_study(["assumptions.experts=64"]))


# --- What is judged


def test_the_form_reproduces_the_table_and_not_what_contradicts_it(result):
    by_text = {(j.system, j.text): j for j in result.judged}
    for system in result.study.systems:
        for text in ("baseline token/s", "Prophet token/s", "speed-up", "$ saved per year"):
            assert by_text[system, text].form.verdict == REPRODUCED
    for key, form in {
        ("2xA100", "communication, baseline, %"): 0.0,
        ("2xA100", "communication, Prophet, %"): 0.0,
        ("10xA6000", "... (text)"): 100 * (50 / 7) / (57 / 7),
    }.items():
        assert by_text[key].form.verdict == NOT
        assert by_text[key].form.value == pytest.approx(form)


def test_every_claim_is_judged_on_every_reading_that_there_is(result):
    assert len(result.judged) == len(result.study.claims) + len(result.study.orders)
    for judged in result.judged:
        if judged.system == "all":
            continue
        assert list(judged.simulated) == readings(result.study, judged.system)
        for found in judged.simulated.values():
            assert found.value is None or math.isfinite(found.value)
            assert bool(found.holds_at) == (found.verdict != REPRODUCED)
    for row in map(claims.flat, result.judged):
        json.dumps(row, allow_nan=False)


def test_a_saving_that_agrees_while_its_costs_do_not_is_a_coincidence(result):
    study = result.study
    claim = next(one for one in study.claims if one.figure == "saving_per_year")
    costs = [one for one in study.claims if one.system == claim.system and "cost_" in one.figure]

    def judged(verdict: str) -> Judged:
        return Judged(claim.system, "", "1", None, {"dispatch": Found(1.0, verdict, "")})

    fake = SimpleNamespace(study=SimpleNamespace(claims=(claim, *costs)))
    for verdict, expected in ((REPRODUCED, REPRODUCED), (NOT, DIRECTION)):
        every = [judged(REPRODUCED), *(judged(verdict) for _ in costs)]
        found = _without_coincidence(fake, claim, every[0], every).simulated["dispatch"]
        assert found.verdict == expected
        assert ("coincidence" in found.holds_at) == (expected == DIRECTION)


def test_the_oddities_are_said_with_their_figures(result):
    said = " ".join(oddities(result))
    for words in (
        "8xA100 counts 4 of 8", "its 20.8 % would be 21.1 %", "92.8 % where the table says 87.7 %",
        "128 GB (2xA100), 64.0 GB (4xH100), 32.0 GB (8xA100), 25.6 GB (10xA6000)",
        "256 GB (2xA100), 128 GB (4xH100), 64.0 GB (8xA100), 51.2 GB (10xA6000)",
        "in pairs only", "250 token/s", "4xH100 1.89, 8xA100 1.75, 10xA6000 1.14",
        "does not depend on the number of GPUs", "8xA100 DP 800.0 / 3,200, EP 342.9 / 2,526",
        "41-85 % per counted unit", "sizes differ by one", "keeps 1/m", "8.00 GB if nothing",
        "$12.82 per million",
    ):  # fmt: skip
        assert words in said, words


# --- What is written


def test_the_text_has_at_most_80_columns(result):
    text = prophet_text.render(result)
    assert max(map(len, text.splitlines())) <= 80
    for judged in result.judged:
        assert judged.text.split()[0] in text


def test_the_tree_is_the_documented_one(written, result):
    folder, said = written
    suffixes = ("pdf", "png") if not said else ("html",)
    plots = [
        f"{kind}_{gpus}gpu"
        for kind in ("throughput_comparison", "communication_overhead", "cost_efficiency")
        for gpus in (2, 4, 8, 10)
    ]
    expected = {
        f"figures/{name}.{s}" for name in [*plots, "cross_system_comparison"] for s in suffixes
    }
    expected |= {"figures/plotly.min.js"} if said else set()
    expected |= {f"data/results_{name}.csv" for name in result.study.systems}
    expected |= {f"SUMMARY_{name}.md" for name in result.study.systems}
    expected |= {"data/all_systems_comparison.csv", "data/all_systems_comparison.tex"}
    expected |= {"logs/multi_gpu_analysis_20260102_030405.log"}
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == expected
    log = folder / "logs" / "multi_gpu_analysis_20260102_030405.log"
    lines = log.read_text().splitlines()
    assert lines[-1].endswith("ANALYSIS COMPLETED SUCCESSFULLY")
    assert not re.search("ERROR|WARNING", "\n".join(lines))


def test_figures_are_what_their_names_say(written):
    folder, said = written
    needed(said[0] if said else None)
    for path in (folder / "figures").iterdir():
        head = b"%PDF-" if path.suffix == ".pdf" else b"\x89PNG\r\n"
        assert path.read_bytes().startswith(head)


def test_column_9_of_the_hybrid_rows_is_the_speed_up(written):
    folder, _ = written
    # grep hybrid all_systems_comparison.csv | cut -d, -f9
    lines = (folder / "data" / "all_systems_comparison.csv").read_text().splitlines()
    assert lines[0].split(",")[8] == "speedup"
    column = [line.split(",")[8] for line in lines if "hybrid" in line]
    assert [f"{float(x):.2f}" for x in column] == ["4.00", "6.42", "7.37", "13.41"]
    assert '"' not in "".join(lines)


def test_every_run_is_a_row_of_its_systems_table(written, result):
    folder, _ = written
    for name in result.study.systems:
        with (folder / "data" / f"results_{name}.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        simulated = [row for row in rows if row["method"].startswith("simulated")]
        assert len(simulated) == sum(case.system == name for case in result.runs)
        assert {row["strategy"] for row in rows} >= {"hybrid", "expert_parallel", "data_parallel"}
        case = Case(name, hybrid_parallel(result.study, name), "dispatch", "none", 4.0)
        (row,) = [
            r for r in simulated
            if (r["strategy"], r["predictor"], r["memory_reduction"]) == ("hybrid", "none", "4")
            and (r["method"], r["links"]) == ("simulated-dispatch", "1")
        ] if name != "2xA100" else [None]  # fmt: skip
        if row is not None:
            assert float(row["tokens_per_s"]) == pytest.approx(result.runs[case].tokens_per_s)


def test_latex_and_markdown_are_escaped(written):
    assert prophet_files.latex_escaped(r"50 % of a_b & $c {d} #e ~f ^g \h") == (
        r"50 \% of a\_b \& \$c \{d\} \#e \textasciitilde{}f \textasciicircum{}g \textbackslash{}h"
    )
    assert prophet_files.markdown_escaped("a|b *c* _d_ <e> $f") == r"a\|b \*c\* \_d\_ \<e\> \$f"
    folder, _ = written
    table = (folder / "data" / "all_systems_comparison.tex").read_text().splitlines()
    rows = [line for line in table if line.startswith(("2x", "4x", "8x", "10x"))]
    assert len(rows) == 4
    assert all(row.count(" & ") == 7 and row.endswith(r"\\") for row in rows)
    for line in (folder / "SUMMARY_8xA100.md").read_text().splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (10, 11)  # claims, strategies


def test_an_existing_directory_is_refused_and_nothing_half_written_stays(
    result, tmp_path, monkeypatch
):
    taken = tmp_path / "taken"
    taken.mkdir()
    with pytest.raises(InputError, match=r"^--out .*taken: exists already; give the name of a new"):
        prophet_files.write_study(result, taken, STARTED)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prophet_files, "write_figures", stop)
    with pytest.raises(KeyboardInterrupt):
        prophet_files.write_study(result, tmp_path / "new", STARTED)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_without_a_browser_figures_are_html(result, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "_missing", lambda: "no Chromium was found")
    drawn = figures.figure(
        "a < b", [figures.Panel("", "x", "y")], [figures.bars("n", "form", ["x"], [1.0])]
    )
    said = figures.write_figures({"one": drawn}, tmp_path)
    assert said == "figures were written as HTML, not as PDF and PNG: no Chromium was found"
    assert (tmp_path / "one.html").is_file()
    assert not (tmp_path / "one.png").exists()
    assert drawn["layout"]["title"]["text"] == "a &lt; b"


def test_a_browser_that_fails_is_told_and_leaves_html(tmp_path, monkeypatch):
    def fails(*_: object) -> None:
        (tmp_path / "one.png").write_bytes(b"half")
        raise figures._NoExport("it fell over")

    monkeypatch.setattr(figures, "_missing", lambda: None)
    monkeypatch.setattr(figures, "_export", fails)
    drawn = figures.figure("t", [figures.Panel("", "x", "y")], [])
    said = figures.write_figures({"one": drawn}, tmp_path)
    assert said.endswith("not as PDF and PNG: it fell over")
    assert not (tmp_path / "one.png").exists()


# --- The commands


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(list(argv))
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_study_prints_and_analyze_reads_what_it_left(call, result, monkeypatch, tmp_path):
    monkeypatch.setattr("simulator.studies.prophet.study.run_study", lambda *_: result)
    monkeypatch.setattr(figures, "_missing", lambda: "no Chromium was found")
    status, out, err = call("study", "prophet", "--quick", "--out", "kept")
    assert status == 0, err
    assert out == prophet_text.render(result)
    assert err.splitlines() == [
        "figures were written as HTML, not as PDF and PNG: no Chromium was found", "kept in kept",
    ]  # fmt: skip
    status, out, _ = call("analyze", "kept")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "data/all_systems_comparison.csv" in out
    assert out.splitlines()[-1].endswith("ANALYSIS COMPLETED SUCCESSFULLY")
    status, out, _ = call("analyze", "kept", "--json")
    left = json.loads(out)
    assert (status, len(left["log"]), len(left["systems"])) == (0, 20, 4)
    assert left["systems"][2]["speedup"] == pytest.approx(7.36842, rel=1e-5)
    status, out, _ = call("study", "prophet", "--json")
    assert (status, len(json.loads(out))) == (0, len(result.judged))
    (log,) = (tmp_path / "kept" / "logs").iterdir()
    log.write_text("\n".join(log.read_text().splitlines()[:-1]))
    status, _, err = call("analyze", "kept")
    assert status == 2
    assert "does not end in ANALYSIS COMPLETED SUCCESSFULLY; the study was not finished" in err


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (("study", "profet"), "error: study: no 'profet' (did you mean 'prophet'?); known: "),
        (("study", "prophet", "--workers", "0"), "error: --workers 0: at least one process"),
        (("study", "prophet", "--out", "."), "error: --out .: exists already; give the name of"),
        (
            ("study", "prophet", "--set", "systems.8xA100.gpus=7"),
            "error: prophet.yaml:",
        ),
    ],
)
def test_study_refuses_in_one_line(call, argv, line):
    status, out, err = call(*argv)
    assert (status, out) == (2, "")
    (told,) = err.splitlines()
    assert told.startswith(line)
