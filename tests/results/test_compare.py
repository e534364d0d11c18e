"""Comparisons: the rows are those of the two summaries, and the parts add up to the change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from results.test_kineto_read import kernels, write

from simulator.api import simulate
from simulator.cli import main
from simulator.results.any_run import Read, read_any
from simulator.results.compare import Comparison, Row, compare, flat, json_rows
from simulator.results.compare_text import render, sentences, shown

SMALL = ("model.layers=4", "traffic.steps=2", "traffic.warmup_steps=1", "expert_slots=4")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and the same with two more slots and one more prefetch setting."""
    path = tmp_path_factory.mktemp("two")
    for name, more in (("a", ()), ("b", ("expert_slots=6",))):
        simulate("nvswitch16", "moe128", overrides=[*SMALL, *more], out=path / name)
    return path / "a", path / "b"


def of(two: tuple[Path, Path]) -> Comparison:
    return compare(*(read_any(path) for path in two))


def test_rows_are_those_of_the_summaries(two: tuple[Path, Path]) -> None:
    found = of(two)
    a, b = (json.loads((path / "result.json").read_text())["summary"] for path in two)
    rows = {row.figure: row for row in found.rows}
    assert len(rows) == len(found.rows)
    for key, one, other in (
        ("throughput_tokens_per_s", a["throughput_tokens_per_s"], b["throughput_tokens_per_s"]),
        ("step_time_s.mean", a["step_time_s"]["mean"], b["step_time_s"]["mean"]),
        ("cache_hit_rate", a["cache_hit_rate"], b["cache_hit_rate"]),
        (
            "breakdown_s.fetch_stall",
            a["breakdown_s"]["fetch_stall"],
            b["breakdown_s"]["fetch_stall"],
        ),
    ):
        row = rows[key]
        assert (row.a, row.b) == (one, other)
        assert row.difference == pytest.approx(other - one, rel=1e-12)
        assert row.ratio == pytest.approx(other / one, rel=1e-12)
    assert [(row.figure, row.a, row.b) for row in found.of("input")] == [
        ("workload.expert_slots", 4, 6)
    ]


def test_the_parts_add_up_to_the_change_of_the_step(two: tuple[Path, Path]) -> None:
    found = of(two)
    rows = {row.figure: row for row in found.rows}
    parts = sum(row.difference or 0.0 for row in found.of("breakdown"))
    assert parts == pytest.approx(rows["step_time_s.mean"].difference, rel=1e-9)
    text = " ".join(sentences(found))
    assert "B's step is" in text
    assert "fetch stall -" in text
    assert "misses less" in text


def test_links_are_the_most_changed_of_both(two: tuple[Path, Path]) -> None:
    named = [row for row in of(two).of("links") if " -> " in row.figure]
    changes = [abs(row.difference or 0.0) for row in named]
    assert len(named) == 8
    assert changes == sorted(changes, reverse=True)
    assert min(changes) > 0


def test_a_run_compared_with_itself_differs_in_nothing(two: tuple[Path, Path]) -> None:
    found = compare(read_any(two[0]), read_any(two[0]))
    assert all(row.same for row in found.rows)
    assert not found.of("input")
    text = render(found)
    assert "A step takes as long in both" in text
    assert "Inputs: the same" in text


def test_a_run_and_its_own_trace_agree(two: tuple[Path, Path], tmp_path: Path) -> None:
    for path in two[0].glob("trace_rank*.json.gz"):
        (tmp_path / path.name).symlink_to(path)
    found = compare(read_any(two[0]), read_any(tmp_path))
    assert found.kind == "trace"
    rows = {row.figure: row for row in found.rows}
    assert rows["kernels"].same
    assert rows["steps"].same
    for name in ("step_time_s.mean", "breakdown_s.compute", "breakdown_s.exposed_copies"):
        assert rows[name].ratio == pytest.approx(1, rel=0.01)
    # Below the two paths, which are as long as they are.
    assert max(map(len, render(found).splitlines()[2:])) <= 80


def test_two_traces(tmp_path: Path) -> None:
    a = write(tmp_path / "a.json", kernels())
    longer = [one | {"ts": 2 * one["ts"], "dur": 2 * one["dur"]} for one in kernels()]
    b = write(tmp_path / "b.json", longer)
    rows = {row.figure: row for row in compare(read_any(a), read_any(b)).rows}
    assert rows["window_s"].ratio == pytest.approx(2)
    assert rows["breakdown_s.idle"].difference == pytest.approx(10e-6)
    assert rows["busy.compute"].same


def test_json_rows_are_flat(two: tuple[Path, Path]) -> None:
    rows = json_rows(of(two))
    assert {"section", "figure", "a", "b", "difference", "ratio"} == set(rows[0])
    assert {row["section"] for row in rows} == {"figures", "breakdown", "cache", "links", "input"}
    json.dumps(rows, allow_nan=False)


def test_text_fits_and_says_the_same(two: tuple[Path, Path]) -> None:
    text = render(of(two))
    assert max(map(len, text.splitlines())) <= 80
    assert "workload.expert_slots: 4 -> 6" in text


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("step_time_s.mean", 0.0123, "12.3 ms"),
        ("latency.ttft_s.p99", 1.5, "1.50 s"),
        ("cache_hit_rate", 0.25, "25.0 %"),
        ("links.pcie.bytes", 2e9, "2.00 GB"),
        ("throughput_tokens_per_s", 1234.4, "1,234"),
        ("gpus", 16, "16"),
        ("anything", None, "-"),
    ],
)
def test_figures_have_their_units(key: str, value: object, text: str) -> None:
    assert shown(key, value) == text


def test_a_figure_that_only_one_has() -> None:
    row = Row("figures", "x", None, 3)
    assert (row.difference, row.ratio, row.same) == (None, None, False)
    assert Row("figures", "x", 0, 3).ratio is None
    assert flat({"a": {"b": 1, "c": [1, 2]}, "d": [{}]}) == {"a.b": 1, "a.c": "1, 2"}


def test_a_serving_run_and_others_are_compared_in_what_all_have(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    run = read_any(two[0])
    served = Read(tmp_path, "serving", {
        "gpus": 8, "generated_tokens_per_s": 400.0, "mean_step_s": 0.02, "mean_step_tokens": 8.0,
        "usd_per_1m_generated": 3.0,
    })  # fmt: skip
    found = compare(run, served)
    assert found.kind == "mixed"
    rows = {row.figure: (row.a, row.b) for row in found.rows}
    of = run.summary
    assert rows == {
        "tokens_per_s": (of["throughput_tokens_per_s"], 400.0),
        "tokens_per_s_per_gpu": (pytest.approx(of["throughput_tokens_per_s_per_gpu"]), 50.0),
        "step_time_s.mean": (of["step_time_s"]["mean"], 0.02),
        "tokens_per_step": (of["tokens"] / of["steps"], 8.0),
        "gpus": (16, 8),
        "cost.usd_per_million_tokens": (of["cost"]["usd_per_million_tokens"], 3.0),
    }
    # Requests come when they come: their rate is no speed.
    assert "faster" not in render(found)
    trace = read_any(write(tmp_path / "a.json", kernels()))
    assert {row.figure for row in compare(trace, served).rows if row.b is not None} == rows.keys()


def test_which_is_faster_comes_first(two: tuple[Path, Path]) -> None:
    found = of(two)
    a, b = (read.summary["throughput_tokens_per_s"] for read in (found.a, found.b))
    assert b > a
    first = sentences(found)[0]
    assert first.startswith("B is faster than A: ")
    assert first.endswith(f"({b / a:.2f} x), on 16 GPUs each.")


def test_prose_of_the_inputs_is_no_difference_and_the_seed_is_one(two: tuple[Path, Path]) -> None:
    a, b = read_any(two[0]), read_any(two[0])
    assert a.input is not None
    b.input = json.loads(json.dumps(a.input))
    b.input["topology"]["description"] = "another"
    b.input["topology"]["sources"] = []
    b.asked = {**a.asked, "seed": 7}
    found = compare(a, b)
    assert [(row.figure, row.a, row.b) for row in found.of("input")] == [("seed", 0, 7)]


def cut(two: tuple[Path, Path], to: Path, *absent: str) -> Path:
    """A copy of the first run that lacks files, and whose spans were cut off."""
    to.mkdir()
    for path in two[0].iterdir():
        if path.is_file() and path.name not in absent and not path.name.startswith("trace"):
            (to / path.name).write_bytes(path.read_bytes())
    spans = to / "spans.parquet"
    spans.write_bytes(spans.read_bytes()[:1000])
    return to


def test_a_damaged_run_gives_what_it_left(two: tuple[Path, Path], tmp_path: Path) -> None:
    whole = read_any(two[0])
    kept = read_any(cut(two, tmp_path / "kept"))
    assert kept.whole
    assert kept.summary == whole.summary
    assert "spans.parquet: cannot be read" in kept.faults[0]
    assert "what follows is the summary that the run left" in kept.faults[1]
    rest = read_any(cut(two, tmp_path / "rest", "result.json", "links.parquet"))
    assert not rest.whole
    assert [fault.split(":")[0].rpartition("/")[2] for fault in rest.faults] == [
        "result.json", "spans.parquet", "links.parquet"
    ]  # fmt: skip
    for key in ("steps", "tokens", "throughput_tokens_per_s"):
        assert rest.summary[key] == whole.summary[key]
    assert rest.summary["step_time_s"]["mean"] == whole.summary["step_time_s"]["mean"]
    assert "gpus" not in rest.summary


@pytest.mark.parametrize(
    ("key", "value"),
    [("gpus", None), ("step_time_s", {"mean": 1.0}), ("breakdown", {}), ("gpus", "sixteen")],
)
def test_a_summary_that_is_not_whole_is_not_shown(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: Any
) -> None:
    """Beside damaged tables; what the other tables hold is."""
    path = cut(two, tmp_path / "x")
    result = json.loads((path / "result.json").read_text())
    tokens_per_s = result["summary"]["throughput_tokens_per_s"]
    if value is None:
        del result["summary"][key]
    else:
        result["summary"][key] = value
    (path / "result.json").write_text(json.dumps(result))
    found = read_any(path)
    assert not found.whole
    assert found.summary["throughput_tokens_per_s"] == pytest.approx(tokens_per_s, rel=1e-12)
    assert [fault.partition(":")[0] for fault in found.faults] == [
        str(path / "spans.parquet"), str(path / "result.json")
    ]  # fmt: skip
    assert main(["analyze", str(path)]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("what can be read")
    assert "result.json: 'summary' is not of this version" in said.err
    assert main(["report", str(path)]) == 2
    assert capsys.readouterr().err.count("'summary' is not of this version") <= 1
    assert main(["compare", str(two[1]), str(path)]) == 2
    assert capsys.readouterr().err.count("error: ") == 2


def test_without_its_result_the_spans_still_tell(two: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for name in ("spans", "steps"):
        path = two[0] / f"{name}.parquet"
        (tmp_path / "x" / path.name).write_bytes(path.read_bytes())
    found = read_any(tmp_path / "x")
    whole = read_any(two[0])
    assert found.summary["gpus"] == 16
    assert found.summary["overlap_achieved"] == pytest.approx(
        whole.summary["overlap_achieved"], rel=1e-3
    )
    compute_s = whole.summary["breakdown_s"]["compute"]
    assert found.summary["by_stream_s"]["compute"] == pytest.approx(compute_s, rel=1e-4)
