"""The page of a report: what is in it, what is escaped, and what a damaged run still shows."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from results.runs import HOSTILE, hostile_result, write_result, write_serving, write_tables

from simulator.errors import InputError
from simulator.reporting import drawn_cluster, memory_of, write_report
from simulator.results import report
from simulator.results.report_facts import command_of
from simulator.runfiles.incidents import write_incidents
from simulator.runfiles.rundir import RunDir

TABLES = ("spans", "links", "steps", "accesses", "loads")


def page_of(folder: Path, **more: Any) -> str:
    run = report.read(folder)
    drawn = None
    if "input" in run.result:
        drawn = drawn_cluster(run.result["input"]["topology"])
    # The library is left out: 5 MB that no test looks at.
    return report.render(run, drawn, "directory", **more)


def charts_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.S)
    assert found is not None
    charts: dict[str, Any] = json.loads(found[1])["charts"]
    return charts


class Elements(HTMLParser):
    """Names of the elements of a page, their ids, and its text outside scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self._inside = tag
        self.ids += [str(value) for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return write_tables(tmp_path / "run")


def test_tables_alone_make_a_report(run: RunDir) -> None:
    page = page_of(run.path)
    charts = charts_of(page)
    assert list(charts) == [
        *("timeline", "busy", "busy-compute", "busy-comm", "busy-copy", "layers"),
        *("layer-streams", "loads", "hottest", "cache-steps", "cache-layers"),
    ]
    assert "result.json: is missing" in Elements(page).text
    # In the measured step 1 hit, 1 late hit and 1 miss on GPU 0, and 2 hits on GPU 1.
    hit, late, miss = charts["cache-steps"]["figure"]["data"]
    assert [one["y"] for one in (hit, late, miss)] == [[0, 0.6], [0, 0.2], [1, 0.2]]
    loads = charts["loads"]["figure"]["data"][0]
    assert loads["z"] == [[1.5, 0.5], [0, 2]]
    hottest = charts["hottest"]["figure"]["data"]
    assert [one["y"] for one in hottest] == [[1.5, 2], [1.5, 2]]
    # 2 GB of 1 GB/s in the 10 s that were measured.
    assert "20.0 %" in Elements(page).text


def test_every_axis_of_every_chart_says_what_it_shows(run: RunDir, tmp_path: Path) -> None:
    write_serving(tmp_path / "served")
    for folder in (run.path, tmp_path / "served"):
        for name, chart in charts_of(page_of(folder)).items():
            if chart["kind"] == "timeline":
                assert chart["figure"]["x"].endswith(", s")
                continue
            layout = chart["figure"]["layout"]
            said = [layout[axis].get("title", {}).get("text") for axis in ("xaxis", "yaxis")]
            # A heat map has the title of x as an annotation, clear of the colour bar.
            said[0] = said[0] or layout["annotations"][0]["text"]
            assert all(said), name


@pytest.mark.parametrize("missing", [*TABLES, "result"])
@pytest.mark.parametrize("how", ["gone", "cut", "empty"])
def test_a_run_that_lacks_a_file_shows_the_rest(run: RunDir, missing: str, how: str) -> None:
    write_result(run, hostile_result())
    path = {"result": run.result}.get(missing, run.path / f"{missing}.parquet")
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: -40 if how == "cut" else 0])
    page = Elements(page_of(run.path))
    assert page.text.count(path.name) >= 1
    assert "Not all of this run could be read" in page.text
    assert ("timeline" in page.ids) == (missing != "spans")
    assert ("loads" in page.ids) == (missing != "loads")
    assert ("cache-steps" in page.ids) == (missing != "accesses")


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "spans.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError) as raised:
        write_report(tmp_path / "run")
    assert "nothing of a run can be read there" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["spans.parquet"]


def test_only_the_figures_are_left(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    run = RunDir(tmp_path / "run")
    write_result(run, {"summary": {"bottleneck_sentence": "x: 50 % of a step"}})
    text = Elements(page_of(run.path)).text
    assert "x: 50 % of a step" in text
    assert text.count("is missing") == 5
    assert "result.json: 'summary' is not of this version" in text


@pytest.mark.parametrize("served", [False, True])
def test_hostile_texts_stay_texts(tmp_path: Path, served: bool) -> None:
    folder = tmp_path / "run"
    run = write_serving(folder) if served else write_tables(folder, HOSTILE)
    result = hostile_result()
    write_result(run, result)
    page = page_of(folder)
    elements = Elements(page)
    assert "img" not in elements.names
    # Ours: the library, the charts, the code.
    assert elements.names.count("script") == 3
    assert HOSTILE in elements.text
    assert page.count("alert(1)</script>") == 0
    # Inside a chart, what plotly takes for markup is escaped as well.
    drawn = json.dumps(charts_of(page)["cluster"]["figure"])
    assert "<script" not in drawn
    assert "<img" not in drawn
    assert "&lt;/script&gt;" in drawn


def test_serving_distributions(tmp_path: Path) -> None:
    write_serving(tmp_path / "run")
    charts = charts_of(page_of(tmp_path / "run"))
    assert {"cdf-ttft", "cdf-tpot", "cdf-e2e", "cdf-queue"} <= set(charts)
    ttft = charts["cdf-ttft"]["figure"]["data"][0]
    # 100 ms all, of the 19 that finished.
    assert ttft["x"] == pytest.approx([100.0] * 19)
    assert ttft["y"] == pytest.approx([(at + 1) / 19 for at in range(19)], abs=1e-4)
    tpot = charts["cdf-tpot"]["figure"]["data"][0]
    assert tpot["x"] == pytest.approx([100.0] * 19)
    rates = {one["name"]: one for one in charts["requests-time"]["figure"]["data"]}
    assert set(rates) == {"arrived", "finished", "failed"}
    bin_s = rates["arrived"]["x"][1] - rates["arrived"]["x"][0]
    assert sum(rates["finished"]["y"]) * bin_s == pytest.approx(19, rel=1e-3)
    assert sum(rates["failed"]["y"]) * bin_s == pytest.approx(1, rel=1e-3)
    tokens = {one["name"]: one for one in charts["tokens-time"]["figure"]["data"]}
    assert sum(tokens["prompt"]["y"]) * bin_s == pytest.approx(2000, rel=1e-3)
    running = {one["name"]: one for one in charts["queue-time"]["figure"]["data"]}
    assert set(running["running"]["y"][8:]) == {2}


def test_faults_are_shaded_and_listed(tmp_path: Path) -> None:
    write_serving(tmp_path / "run")
    what = {"fault": 0, "what": "gpu", "name": HOSTILE, "do": "down"}
    begin, end = {"time_s": 4.0, "kind": "begin", **what}, {"time_s": 9.0, "kind": "end", **what}
    write_incidents(tmp_path / "run", [begin, end])
    page = page_of(tmp_path / "run")
    shapes = charts_of(page)["queue-time"]["figure"]["layout"]["shapes"]
    assert [(band["x0"], band["x1"]) for band in shapes] == [(4.0, 9.0)]
    assert f"{HOSTILE} down" in Elements(page).text
    (tmp_path / "run" / "incidents.json").write_text("[{")
    assert "incidents.json" in Elements(page_of(tmp_path / "run")).text


def test_the_same_run_gives_the_same_page(run: RunDir) -> None:
    write_result(run, hostile_result())
    assert page_of(run.path) == page_of(run.path)


def test_the_command_can_be_given_to_a_shell() -> None:
    words = command_of(hostile_result())
    assert words[:3] == ["python", "-m", "simulator"]
    assert words[3:] == [
        *("--topology", HOSTILE, "--workload", HOSTILE, "--routing", HOSTILE),
        *("--set", f"name={HOSTILE}", "--seed", "7"),
    ]
    assert command_of({"input": {}}) == []


def test_a_report_is_replaced_and_nothing_else(run: RunDir, tmp_path: Path) -> None:
    first = write_report(run.path, plotlyjs="cdn")
    assert first == run.path / "report.html"
    before = first.read_bytes()
    assert report.is_report(first)
    write_report(run.path, plotlyjs="cdn", steps=(0, 0))
    assert first.read_bytes() != before
    assert not list(run.path.glob(".report*"))
    first.write_text("dear to me")
    with pytest.raises(InputError, match="is there already and no report"):
        write_report(run.path)
    assert first.read_text() == "dear to me"
    other = tmp_path / "other.html"
    write_report(run.path, other, plotlyjs="directory")
    assert (tmp_path / "plotly.min.js").stat().st_size > 1e6
    with pytest.raises(InputError, match="exists already"):
        write_report(run.path, other)


def test_memory_of_runs_of_each_kind() -> None:
    from simulator.model import footprint, sizes
    from simulator.spec.load import load_inputs

    inputs = load_inputs("nvswitch16", "moe128", ["expert_slots=4"])
    found = memory_of(inputs)
    model = inputs.workload.model
    # 4 slots in each of 36 layers, 3 matrices of 3072 x 3008 in 2 bytes.
    assert found["gpus"][0]["bytes"]["experts"] == 4 * 36 * 3 * 3072 * 3008 * 2
    assert (found["gpus"][0]["first"], found["gpus"][0]["last"]) == (0, 15)
    assert found["capacity_bytes"] == inputs.topology.gpu.hbm_capacity_bytes
    assert found["reserved_share"] == footprint.RESERVED
    served = memory_of(load_inputs("nvswitch16", "moe128-serving"), 1000)
    per_token = 36 * sizes.kv_bytes_per_token_layer(model)
    assert served["gpus"][0]["bytes"]["KV cache"] == 1000 * 16 * per_token
    # Two layers on the first stage, one on the second.
    two_stages = ["parallel.pp=2", "model.layers=3"]
    planned = memory_of(load_inputs("nvswitch16", "moe128", [*two_stages, "expert_slots=null"]))
    assert [(row["first"], row["last"]) for row in planned["gpus"]] == [(0, 7), (8, 15)]
