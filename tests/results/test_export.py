"""Exported traces of a real run: arrows, counters, windows, limits, and what other readers find."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import simulator.results.chrome as chrome
from simulator.api import simulate
from simulator.errors import InputError
from simulator.results.chrome import export
from simulator.results.kineto_read import read_traces
from simulator.results.kineto_write import Rates
from simulator.results.trace_summary import read_spans, summarize

RANKS = 16
HTA = Path(__file__).parents[2] / ".venv-hta" / "bin" / "python"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The main job with the traces of its four measured steps."""
    path = tmp_path_factory.mktemp("main") / "run"
    simulate("nvswitch16", "moe128", out=path)
    return path


@pytest.fixture(scope="module")
def overlapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded routing on two nodes, one micro-batch computing while the other is sent."""
    path = tmp_path_factory.mktemp("overlapped") / "run"
    simulate("h100x16-rail", "moe128", overrides=["overlap=two-batch", "model.layers=12"], out=path)
    return path


def events_of(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return found


def test_arrows_lead_from_dispatch_to_experts_to_combine(kept: Path) -> None:
    events = events_of(kept / "trace_rank5.json.gz")
    kernels = {(e["tid"], e["ts"]): e for e in events if e.get("cat") == "kernel"}
    tails = {e["id"]: e for e in events if e["ph"] == "s"}
    heads = {e["id"]: e for e in events if e["ph"] == "f"}
    assert len(tails) == sum(e["ph"] == "s" for e in events)
    assert tails.keys() == heads.keys()
    ends = Counter()
    led = defaultdict(list)
    for key, tail in tails.items():
        head = heads[key]
        assert head["bp"] == "e"
        assert head["ts"] >= tail["ts"]
        source, target = (kernels[e["tid"], e["ts"]] for e in (tail, head))
        ends[source["name"], target["name"]] += 1
        for name in ("layer", "microbatch", "chunk"):
            assert source["args"][name] == target["args"][name]
        led[source["name"]].append(source["args"]["correlation"])
    assert ends.keys() == {
        ("ncclDevKernel_dispatch", "experts"),
        ("experts", "ncclDevKernel_combine"),
    }
    assert all(len(set(of)) == len(of) for of in led.values())
    # Every combine that follows experts of its GPU has one.
    combines = Counter(e["name"] for e in kernels.values())["ncclDevKernel_combine"]
    assert 0.9 * combines <= ends["experts", "ncclDevKernel_combine"] <= combines


def test_ids_differ_between_ranks(kept: Path) -> None:
    ids = [
        {e["id"] for e in events_of(kept / f"trace_rank{rank}.json.gz") if e["ph"] == "s"}
        for rank in (0, 1, 15)
    ]
    assert sum(map(len, ids)) == len(set.union(*ids)) > 0


def test_counters_hold_the_bytes_and_accesses_of_the_tables(kept: Path) -> None:
    spans = pq.read_table(kept / "spans.parquet").to_pydict()
    accesses = pq.read_table(kept / "accesses.parquet").to_pydict()
    steps = pq.read_table(kept / "steps.parquet").to_pydict()
    shown = {n for n, warm in zip(steps["step"], steps["warmup"], strict=True) if not warm}
    for rank in (0, 9):
        counters = defaultdict(list)
        for event in events_of(kept / f"trace_rank{rank}.json.gz"):
            if event["ph"] == "C":
                counters[event["name"]].append((event["ts"], event["args"]))
        for stream, name in (("comm", "sent"), ("copy", "fetched")):
            at = np.array([ts for ts, _ in counters[name]])
            rate = np.array([args["GB/s"] for _, args in counters[name]])
            moved = float((np.diff(at) * rate[:-1]).sum()) * 1e3
            asked = sum(
                size
                for size, gpu, of, step in zip(
                    spans["bytes"], spans["gpu"], spans["stream"], spans["step"], strict=True
                )
                if gpu == rank and of == stream and step in shown
            )
            assert moved == pytest.approx(asked, rel=1e-2)
        for name in ("hit", "late", "miss"):
            told = sum(args[name] for _, args in counters["expert cache accesses"])
            rows = zip(accesses["gpu"], accesses["step"], accesses[name], strict=True)
            assert told == sum(n for gpu, step, n in rows if gpu == rank and step in shown)


def test_rates_are_bytes_over_the_time_within_each_interval() -> None:
    rates = Rates(2, 10.0, 5)
    lane = np.array([0, 0, 1])
    rates.add(
        lane, np.array([1.0, 2.0, 0.0]), np.array([5.0, 4.0, 10.0]), np.array([8.0, 6.0, 5.0])
    )
    # Lane 0: 2 B/s from 1 to 5, and 3 B/s more from 2 to 4; intervals of 2 s.
    assert rates.of(0) == pytest.approx([1.0, 5.0, 1.0, 0.0, 0.0])
    assert rates.of(1) == pytest.approx([0.5] * 5)


def test_a_window_of_steps_and_ranks(kept: Path, tmp_path: Path) -> None:
    found = export(kept, tmp_path, range(2, 4), np.array([2, 3]))
    assert [path.name for path in found.paths] == ["trace_rank2.json.gz", "trace_rank3.json.gz"]
    marks = [e["name"] for e in events_of(found.paths[0]) if e.get("cat") == "user_annotation"]
    assert marks == ["ProfilerStep#2", "ProfilerStep#3", "ProfilerStep#4"]
    table = pq.read_table(kept / "spans.parquet").to_pydict()
    count = sum(g == 3 and s in (2, 3) for g, s in zip(table["gpu"], table["step"], strict=True))
    assert sum(e.get("cat") == "kernel" for e in events_of(found.paths[1])) == count
    assert found.spans == sum(s in (2, 3) for s in table["step"])
    assert (found.first, found.last, found.cut) == (2, 3, None)
    with pytest.raises(InputError, match="has no step 9"):
        export(kept, tmp_path, range(2), np.array([3, 9]))


def test_the_limit_ends_the_export_at_a_whole_step(kept: Path, tmp_path: Path) -> None:
    whole = export(kept, tmp_path, range(1), np.array([1, 2, 3]))
    found = export(kept, tmp_path, range(1), np.array([1, 2, 3]), most_spans=whole.spans - 1)
    assert (found.first, found.last, found.cut) == (1, 2, 3)
    with pytest.raises(InputError, match=r"step 1 alone has .* spans, beyond the limit of 10"):
        export(kept, tmp_path, range(1), np.array([1, 2]), most_spans=10)


def test_ranks_in_several_passes_give_the_same_files(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chrome, "RANKS_AT_ONCE", 5)
    for path in export(kept, tmp_path, range(RANKS), np.arange(1, 5), gpus=RANKS).paths:
        assert path.read_bytes() == (kept / path.name).read_bytes()


def test_a_run_without_the_table_of_accesses_has_no_cache_counter(
    kept: Path, tmp_path: Path
) -> None:
    for name in ("spans", "steps"):
        (tmp_path / f"{name}.parquet").symlink_to(kept / f"{name}.parquet")
    path = export(tmp_path, tmp_path, range(1), np.array([1])).paths[0]
    names = {event["name"] for event in events_of(path) if event["ph"] == "C"}
    assert names == {"sent", "fetched"}


def by_hta(events: list[dict[str, Any]]) -> dict[str, float]:
    """HolisticTraceAnalysis' temporal breakdown and overlap, by its definitions, instant by
    instant: idle, compute and other time from the first kernel to the last, and the share of
    communication under compute (names with nccl communicate, Memcpy and Memset move memory).
    """
    kernels = [e for e in events if e["ph"] == "X" and "stream" in e["args"]]
    first = min(e["ts"] for e in kernels)
    length = max(e["ts"] + e["dur"] for e in kernels) - first
    on = {sort: np.zeros(length, dtype=bool) for sort in ("comm", "memory", "compute")}
    for e in kernels:
        name = e["name"]
        sort = "comm" if "nccl" in name else "memory" if name[:3] == "Mem" else "compute"
        on[sort][e["ts"] - first : e["ts"] - first + e["dur"]] = True
    busy = on["comm"] | on["memory"] | on["compute"]
    compute = int(on["compute"].sum())
    return {
        "idle_time(us)": length - int(busy.sum()),
        "compute_time(us)": compute,
        "non_compute_time(us)": int(busy.sum()) - compute,
        "kernel_time(us)": length,
        "overlap": float((on["comm"] & on["compute"]).sum() / on["comm"].sum()),
    }


def check_against(rows: list[dict[str, float]], run: Path, traces: Path) -> None:
    """Compare figures of HolisticTraceAnalysis [ranks] with ours: of the traces, which hold whole
    microseconds as it does, and of the run, which to 1 % each.
    """
    for mine, tolerance in (
        (summarize(read_traces(traces)), 1e-9),
        (summarize(read_spans(run)), 0.01),
    ):
        for row, of in zip(rows, mine["by_rank"], strict=True):
            moved_s = of["exposed_communication_s"] + of["exposed_copies_s"]
            pairs = (
                ("idle_time(us)", of["idle_s"]),
                ("compute_time(us)", of["compute_s"]),
                ("non_compute_time(us)", moved_s),
                ("kernel_time(us)", of["window_s"]),
            )
            for name, value_s in pairs:
                assert 1e6 * value_s == pytest.approx(row[name], rel=tolerance), name
            # It tells the overlap as a percentage with two decimals.
            overlap = pytest.approx(row["overlap"], rel=tolerance, abs=5e-5)
            assert of["overlap_achieved"] == overlap


@pytest.fixture(scope="module", params=["kept", "overlapped"])
def traced(request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A run, and a folder with its traces alone."""
    run: Path = request.getfixturevalue(request.param)
    folder = run.with_name("traces")
    folder.mkdir()
    for rank in range(RANKS):
        (folder / f"trace_rank{rank}.json.gz").symlink_to(run / f"trace_rank{rank}.json.gz")
    return run, folder


def test_breakdown_idle_and_overlap_by_the_definitions_of_hta(traced: tuple[Path, Path]) -> None:
    run, folder = traced
    rows = [by_hta(events_of(folder / f"trace_rank{rank}.json.gz")) for rank in range(RANKS)]
    check_against(rows, run, folder)


SCRIPT = """
import json, sys
from hta.trace_analysis import TraceAnalysis
analysis = TraceAnalysis(trace_dir=sys.argv[1])
shown = analysis.get_temporal_breakdown(visualize=False)
overlap = analysis.get_comm_comp_overlap(visualize=False)
rows = shown.to_dict("records")
for row, of in zip(rows, overlap.to_dict("records")):
    row["overlap"] = of["comp_comm_overlap_pctg"] / 100
print(json.dumps([{k: float(v) for k, v in row.items()} for row in rows]))
"""


@pytest.mark.skipif(not HTA.exists(), reason="no .venv-hta: make hta installs it (500 MB)")
def test_hta_itself_finds_the_same(traced: tuple[Path, Path]) -> None:
    run, folder = traced
    done = subprocess.run(
        [str(HTA), "-c", SCRIPT, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [row["rank"] for row in rows] == list(range(RANKS))
    check_against(rows, run, folder)


def test_exporting_twice_in_other_processes_gives_the_same_bytes(
    kept: Path, tmp_path: Path
) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from simulator.results.chrome import export\n"
        "export(Path(sys.argv[1]), Path(sys.argv[2]), range(2), np.array([1]))"
    )
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        env = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(
            [sys.executable, "-c", code, str(kept), str(tmp_path / seed)], env=env, check=True
        )
    for rank in range(2):
        name = f"trace_rank{rank}.json.gz"
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
