"""Figures and picture of a serving run with faults, from tables made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.api import serve
from simulator.errors import InputError
from simulator.results.serving_faults import Made, fault_figures, first_tokens, spells_of
from simulator.results.serving_timeline import render_timeline, timeline_figure
from simulator.runfiles.incidents import read_incidents, write_incidents
from simulator.runfiles.serving import REQUEST_SCHEMA, StepWriter, write_requests
from simulator.runfiles.tables import read_table

NAMES = {"what": "gpu", "name": "gpu1", "do": "down"}
ROWS: list[dict[str, Any]] = [
    {"time_s": 4.0, "kind": "begin", "fault": 0, **NAMES},
    {"time_s": 4.0, "kind": "group", "group": 0, "state": "forming", "gpus": 0, "way": "reload"},
    {"time_s": 5.0, "kind": "group", "group": 0, "state": "up", "gpus": 1, "way": "reload"},
    {"time_s": 7.0, "kind": "end", "fault": 0, **NAMES},
    {"time_s": 7.0, "kind": "group", "group": 0, "state": "up", "gpus": 2, "way": "whole"},
    {"time_s": 8.0, "kind": "begin", "fault": 1, **(NAMES | {"name": "gpu3"})},
    {"time_s": 8.0, "kind": "group", "group": 1, "state": "down", "gpus": 0, "way": "drain"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two groups of two GPUs; group 0 makes 10 tokens in each second until 10, but for one."""
    write_incidents(tmp_path, ROWS)
    with StepWriter(tmp_path / "steps.parquet") as steps:
        for second in range(10):
            if second != 4:
                steps.append(0, float(second), second + 1.0, 100, 10, 3, 5, 7)
            if second < 8:
                steps.append(1, float(second), second + 1.0, 0, 4, 0, 2, 7)
    _requests(tmp_path, [0.0, 1.0, 10.0])
    return tmp_path


def _requests(folder: Path, arrival_s: list[float]) -> None:
    arrival = np.array(arrival_s)
    i32 = np.ones(3, dtype=np.int32)
    ended = np.array([9.0, 12.0, 12.5])
    write_requests(
        folder / "requests.parquet", arrival, i32, i32, np.zeros(3, dtype=np.int16),
        np.array([1, 1, 2], dtype=np.int8), i32, i32, arrival, arrival, ended, ended, i32, i32,
        i32, i32, np.zeros(3),
    )  # fmt: skip


def test_availability_and_windows_by_hand(folder: Path) -> None:
    found = fault_figures(folder, 4, 2, 1, warmup_s=1.0)
    assert (found["faults"], found["lost_requests"]) == (2, 1)
    # Until 12.5 s: group 0 without 4 to 5, group 1 until 8; GPUs: one of group 0 from 4 to 7 too.
    assert found["availability"] == pytest.approx((11.5 + 8.0) / 25.0, rel=1e-12)
    assert found["availability_gpus"] == pytest.approx((2 * 9.5 + 2.0 + 16.0) / 50.0, rel=1e-12)
    first, second = found["fault_windows"]
    assert (first["begin_s"], first["end_s"]) == (4.0, 7.0)
    assert (second["begin_s"], second["end_s"]) == (8.0, None)
    assert first["before"] == pytest.approx(14.0, rel=1e-12)
    assert first["during"] == pytest.approx((20.0 + 12.0) / 3.0, rel=1e-12)
    assert first["after"] == pytest.approx(14.0, rel=1e-12)
    assert second["before"] == pytest.approx(14.0, rel=1e-12)
    # To the last arrival, at 10 s, with that request's first token.
    assert second["during"] == pytest.approx((20.0 + 1.0) / 2.0, rel=1e-12)
    assert second["after"] is None


def test_faults_after_the_last_arrival_have_windows_to_the_end(folder: Path) -> None:
    _requests(folder, [0.0, 0.0, 0.0])
    second = fault_figures(folder, 4, 2, 1)["fault_windows"][1]
    assert second["during"] == pytest.approx(2 * 10.0 / 4.5, rel=1e-12)


def test_tokens_of_a_step_come_evenly_over_it(folder: Path) -> None:
    made = Made(folder, "generated", "prompt")
    assert made.up_to(np.array([0.0, 0.5, 1.0, 4.0, 20.0])) == pytest.approx(
        [0.0, 57.0, 114.0, 456.0, 9 * 110.0 + 8 * 4.0]
    )
    assert made.rate(2.0, 2.0) is None
    assert made.rate(2.25, 2.75) == pytest.approx(114.0)


def test_all_tokens_of_a_run_are_made_at_some_time(tmp_path: Path) -> None:
    """A request's first token comes with its prompt: the steps do not count it as generated."""
    served = serve(
        "nvswitch16", "moe128-serving", requests="offline", out=tmp_path / "run",
        overrides=["model.layers=2", "requests.limit=20", "requests.output=uniform:1:3"],
    )  # fmt: skip
    table = read_table(tmp_path / "run" / "requests.parquet", REQUEST_SCHEMA)
    assert served.summary["finished"] == 20
    for column, total in (("generated", table["output"].sum()), ("prompt", table["prompt"].sum())):
        firsts_s = first_tokens(table) if column == "generated" else None
        made = Made(tmp_path / "run", column, firsts_s=firsts_s)
        assert made.up_to(np.array([0.0, 1e9])) == pytest.approx([0.0, total], rel=1e-12)
    figure = timeline_figure(tmp_path / "run")
    line = next(line for line in figure["data"] if line["name"] == "generated tokens/s")
    width_s = table["end_s"].max() / len(line["x"])
    assert sum(line["y"]) * width_s == pytest.approx(table["output"].sum(), rel=1e-3)


def test_the_figure_has_a_band_for_each_fault(folder: Path) -> None:
    figure = timeline_figure(folder)
    bands = [(shape["x0"], shape["x1"]) for shape in figure["layout"]["shapes"]]
    assert bands == [(4.0, 7.0), (8.0, 12.5)]
    lines = {line["name"]: dict(zip(line["x"], line["y"], strict=True)) for line in figure["data"]}
    assert set(lines) == {"generated tokens/s", "prompt tokens/s", "running", "waiting"}

    def near(name: str, time_s: float) -> float:
        return lines[name][min(lines[name], key=lambda x: abs(x - time_s))]

    assert near("generated tokens/s", 2.5) == pytest.approx(14.0, rel=1e-4)
    assert near("running", 3.5) == 7
    assert near("running", 4.5) == 2  # group 0 forms anew
    assert near("running", 9.5) == 5
    assert near("waiting", 0.5) == 1  # one has come, and no step has ended


def test_spells_of_a_fault_that_comes_again() -> None:
    rows = [
        {"time_s": float(time), "kind": kind, "fault": 0, **NAMES}
        for time, kind in ((1, "begin"), (2, "end"), (5, "begin"))
    ]
    assert [(s.begin_s, s.end_s) for s in spells_of(rows)] == [(1.0, 2.0), (5.0, None)]


def test_text_of_the_page_is_escaped(folder: Path) -> None:
    page = render_timeline(folder, "<b>", ["<i>"], fault_figures(folder, 4, 2, 0)["fault_windows"])
    assert "<b>" not in page
    assert "&lt;i&gt;" in page
    assert "<td>gpu1 down</td>" in page


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    assert read_incidents(tmp_path) == []
    (tmp_path / "incidents.json").write_text("[{")
    with pytest.raises(InputError, match=r"incidents\.json: cannot be read"):
        read_incidents(tmp_path)


SMALL = [
    "model.layers=1",
    "requests.limit=60",
    "requests.source=closed:32",
    "requests.output=fixed:8",
    "serving.warmup=0 s",
]


def test_a_run_with_faults_ends_to_end(tmp_path: Path) -> None:
    timeline = tmp_path / "faults.yaml"
    timeline.write_text(
        "on_member_loss: replicas\nfaults:\n"
        "  - {at: 1 ms, what: nic, name: nic3, do: down}\n"
        "  - {at: 3 ms, what: gpu, name: gpu5, for: 2 ms}\n"
    )
    given: dict[str, Any] = {"overrides": SMALL, "routing": "uniform", "faults": str(timeline)}
    out, html = tmp_path / "run", tmp_path / "page.html"
    served = serve("h100x16-rail", "moe128-faults", out=out, html=html, **given)
    again = serve("h100x16-rail", "moe128-faults", **given)
    assert served.summary == again.summary
    assert served.summary["finished"] == 60
    assert served.summary["faults"] == 2
    assert served.summary["availability"] == 1.0
    assert served.summary["availability_gpus"] < 1.0
    assert json.loads((out / "result.json").read_text())["summary"]["lost_requests"] == 0
    assert len(read_incidents(out)) >= 4
    assert "gpu5 down at 0.003 s" in html.read_text()
    text = served.render()
    assert "Faults    2; groups up 100.0 % of the time" in text
    assert max(map(len, text.splitlines())) <= 80
    with pytest.raises(InputError, match="exists already"):
        serve("h100x16-rail", "moe128-faults", html=html, **given)


def test_a_run_without_faults_says_nothing_of_them() -> None:
    served = serve(
        "h100x16-rail", "moe128-faults", overrides=[*SMALL, "faults=[]"], routing="uniform"
    )
    assert "faults" not in served.summary
    assert "Faults" not in served.render()
