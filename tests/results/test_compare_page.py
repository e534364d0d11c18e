"""The page of a comparison: its figures are those of the runs' files, and all text is escaped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from results.runs import HOSTILE, hostile_result, write_result, write_serving, write_tables
from results.test_kineto_read import kernels, write

from simulator.api import simulate
from simulator.results.any_run import read_any
from simulator.results.compare import compare
from simulator.results.compare_page import MOST_INPUTS, render_comparison
from simulator.results.report import is_report

SMALL = ("model.layers=3", "traffic.steps=2", "traffic.warmup_steps=1", "expert_slots=4")


def page_of(a: Path, b: Path) -> str:
    return render_comparison(compare(read_any(a), read_any(b)), "cdn")


def charts_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page)
    assert found is not None
    return {name: one["figure"] for name, one in json.loads(found[1])["charts"].items()}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    path = tmp_path_factory.mktemp("two")
    for name, more in (("a", ()), ("b", ("expert_slots=6",))):
        simulate("nvswitch16", "moe128", overrides=[*SMALL, *more], out=path / name)
    return path / "a", path / "b"


def test_two_runs(two: tuple[Path, Path]) -> None:
    page = page_of(*two)
    charts = charts_of(page)
    assert charts.keys() == {
        "parts", "parts-change", "kinds", "layers", "layers-change", "links", "cache",
        "cache-layers", "energy",
    }  # fmt: skip
    assert '<p class="limit">B is faster than A: ' in page
    assert "workload.expert_slots" in page
    assert "--set expert_slots=6" in page
    summaries = [json.loads((path / "result.json").read_text())["summary"] for path in two]
    # The bars of a step add up to it, and so do the changes.
    for row, name in enumerate("BA"):
        whole_s = summaries["AB".index(name)]["step_time_s"]["mean"]
        shown = sum(trace["x"][row] for trace in charts["parts"]["data"])
        assert shown / 1e3 == pytest.approx(whole_s, rel=1e-9)
    change_s = summaries[1]["step_time_s"]["mean"] - summaries[0]["step_time_s"]["mean"]
    assert sum(charts["parts-change"]["data"][0]["x"]) / 1e3 == pytest.approx(change_s, rel=1e-6)
    by_layer = charts["layers-change"]["data"]
    assert len(by_layer[0]["x"]) == 4  # and the LM head
    cache = {trace["name"]: trace["x"] for trace in charts["cache"]["data"]}
    assert cache["hit"] == [one["cache_hit_rate"] for one in reversed(summaries)]


def test_kinds_are_the_sums_of_the_spans(two: tuple[Path, Path]) -> None:
    figure = charts_of(page_of(*two))["kinds"]
    assert figure["layout"]["xaxis"]["title"]["text"] == "time in a step, ms"
    for path, trace in zip(two, figure["data"], strict=True):
        spans = pq.read_table(path / "spans.parquet").to_pandas()
        steps = pq.read_table(path / "steps.parquet").to_pandas()
        measured = steps.step[~steps.warmup]
        spans = spans[spans.step.isin(measured)]
        length_s = spans.end_s - spans.start_s
        by_kind = length_s.groupby(spans.stream.astype(str) + ": " + spans.kind.astype(str)).sum()
        truth = {name.replace("_", " "): value for name, value in by_kind.items()}
        shown = dict(zip(trace["y"], trace["x"], strict=True))
        assert shown.keys() == truth.keys()
        for name, value in shown.items():
            assert value / 1e3 == pytest.approx(truth[name] / (len(measured) * 16), rel=1e-9)


def test_a_run_with_itself_and_with_its_traces(two: tuple[Path, Path], tmp_path: Path) -> None:
    page = page_of(two[0], two[0])
    assert "B is as fast as A" in page
    assert "A and B had the same." in page
    traces = tmp_path / "traces"
    traces.mkdir()
    for path in two[0].glob("trace_rank*.json.gz"):
        (traces / path.name).symlink_to(path)
    charts = charts_of(page_of(two[0], traces))
    assert charts.keys() == {"parts", "parts-change", "kinds", "rank-idle", "rank-overlap"}
    a, b = charts["rank-idle"]["data"]
    assert a["x"] == b["x"] == list(range(16))
    assert b["y"] == pytest.approx(a["y"], rel=0.01)


def test_other_kinds(two: tuple[Path, Path], tmp_path: Path) -> None:
    trace = write(tmp_path / "a.json", kernels())
    assert charts_of(page_of(trace, trace)).keys() >= {"parts", "kinds"}
    served = tmp_path / "served"
    write_serving(served)
    # Its result.json is lost, so only its tables are left.
    page = page_of(served, served)
    assert "Not all of this could be read" in page
    assert {"cdf-ttft", "generated-time"} <= charts_of(page).keys()
    assert "result.json" in page_of(two[0], served)


def test_names_of_the_user_are_escaped(tmp_path: Path) -> None:
    paths = []
    for at, name in enumerate("ab"):
        run = write_tables(tmp_path / name, HOSTILE)
        write_result(run, hostile_result(seed=at, given=None))
        paths.append(run.path)
    page = page_of(*paths)
    assert HOSTILE not in page
    assert "<img" not in page
    assert page.count("</script>") == 3
    named = [one | {"name": f"{HOSTILE}{one['name']}"} for one in kernels()]
    page = page_of(*[write(tmp_path / f"{name}.json", named) for name in "ab"])
    assert HOSTILE not in page
    assert "<img" not in page


def test_many_inputs_are_cut_and_it_says_so(two: tuple[Path, Path]) -> None:
    a, b = (read_any(path) for path in two)
    assert b.input is not None
    b.input = b.input | {"more": {f"key{at}": at for at in range(MOST_INPUTS + 9)}}
    page = render_comparison(compare(a, b), "cdn")
    assert "10 more are left out" in page


def test_it_is_no_report(two: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "x.html"
    file.write_text(page_of(*two))
    assert not is_report(file)
