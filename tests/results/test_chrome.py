from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.results.chrome import write_traces
from simulator.runfiles.rundir import RunDir
from simulator.runfiles.spans import (
    COMM,
    COMPUTE,
    COPY,
    DEMAND,
    DISPATCH,
    EXPERTS,
    PREFETCH,
    STREAMS,
    SpanWriter,
    write_steps,
)

STEPS, GPUS, PER_STREAM = 5, 2, 40


def write_run(path: Path, step_s: float) -> Path:
    """Five steps (the first a warm-up), streams full of spans from 5 % to 250 % of a microsecond
    and more, back to back and not; the prefetches are written a step late.
    """
    files = RunDir(path)
    rng = np.random.default_rng(7)
    late: list[tuple[Any, ...]] = []
    with SpanWriter(files.spans) as spans:
        for step in range(STEPS):
            for gpu in range(GPUS):
                for stream, kind in ((COMPUTE, EXPERTS), (COMM, DISPATCH), (COPY, DEMAND)):
                    cuts = step_s * (step + np.sort(rng.random(PER_STREAM + 1)))
                    for i, (start, end) in enumerate(pairwise(cuts)):
                        row = (step, 0, 0, 1, gpu, stream, kind, start, end, start)
                        if stream == COPY and i % 2:
                            late.append((step, -1, 0, 1, gpu, COPY, PREFETCH, start, end, start))
                        else:
                            spans.append(*row, expert=3 if stream == COPY else -1)
            for row in late if step else []:
                spans.append(*row)
            late = late if not step else []
    write_steps(
        files.steps,
        range(STEPS),
        [step_s * s for s in range(STEPS)],
        [step_s * (s + 1) for s in range(STEPS)],
        [1] * STEPS,
        [s == 0 for s in range(STEPS)],
    )
    return path


def read(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return result


@pytest.mark.parametrize("step_s", [1e-2, 1e-4, 1e-5])
def test_a_trace_for_each_gpu(tmp_path: Path, step_s: float) -> None:
    paths = write_traces(write_run(tmp_path, step_s), GPUS, max_steps=3)
    assert [path.name for path in paths] == ["trace_rank0.json.gz", "trace_rank1.json.gz"]
    for rank, path in enumerate(paths):
        assert (
            f'"distributedInfo": {{"rank": {rank}}}' in gzip.decompress(path.read_bytes()).decode()
        )
        trace = read(path)
        events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
        assert all(type(e["ts"]) is int and type(e["dur"]) is int for e in events)
        assert all(e["ts"] >= 0 and e["dur"] >= 1 for e in events)
        count = Counter(event["cat"] for event in events)
        spans = 3 * len(STREAMS) * PER_STREAM
        assert count == {"kernel": spans, "cuda_runtime": spans, "user_annotation": 4}
        assert Counter(e["name"] for e in events if e["cat"] == "kernel") == {
            "experts": 3 * PER_STREAM,
            "ncclDevKernel_dispatch": 3 * PER_STREAM,
            "Memcpy HtoD (demand)": 3 * PER_STREAM // 2,
            "Memcpy HtoD (prefetch)": 3 * PER_STREAM // 2,
        }


@pytest.mark.parametrize("step_s", [1e-2, 1e-4, 1e-5])
def test_nothing_overlaps_on_a_row(tmp_path: Path, step_s: float) -> None:
    for path in write_traces(write_run(tmp_path, step_s), GPUS):
        rows = defaultdict(list)
        for event in read(path)["traceEvents"]:
            if event["ph"] == "X":
                rows[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        assert len(rows) == 2 * len(STREAMS) + 1
        for intervals in rows.values():
            intervals.sort()
            assert all(a[1] <= b[0] for a, b in pairwise(intervals))


def test_each_kernel_has_its_launch(tmp_path: Path) -> None:
    events = read(write_traces(write_run(tmp_path, 1e-4), GPUS)[1])["traceEvents"]
    launches = {e["args"]["correlation"]: e for e in events if e.get("cat") == "cuda_runtime"}
    kernels = [e for e in events if e.get("cat") == "kernel"]
    assert len(launches) == len(kernels)
    for kernel in kernels:
        launch = launches.pop(kernel["args"]["correlation"])
        assert launch["name"] == "cudaLaunchKernel"
        assert launch["ts"] <= kernel["ts"]
        assert kernel["args"]["stream"] == kernel["tid"]
        assert kernel["pid"] == kernel["args"]["device"] == 1


def test_times_are_those_of_the_spans(tmp_path: Path) -> None:
    files = RunDir(tmp_path)
    with SpanWriter(files.spans) as spans:
        spans.append(3, 0, 0, 0, 0, COMPUTE, EXPERTS, 1.0000104, 1.0000206, 1.0)
        spans.append(3, 0, 0, 0, 0, COMPUTE, EXPERTS, 1.0000206, 1.0000207, 1.0)
        spans.append(3, 0, 0, 0, 0, COMPUTE, EXPERTS, 1.0000207, 1.0000400, 1.0)
    write_steps(files.steps, [2, 3], [0.5, 1.0], [1.0, 1.00005], [1, 1], [True, False])
    events = read(write_traces(tmp_path, 1)[0])["traceEvents"]
    kernels = [(e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") == "kernel"]
    # 10.4..20.6, 20.6..20.7 and 20.7..40.0 us: the middle one is stretched, the last moved by it.
    assert kernels == [(10, 21), (21, 22), (22, 40)]
    steps = [(e["name"], e["ts"], e["dur"]) for e in events if e.get("cat") == "user_annotation"]
    assert steps == [("ProfilerStep#3", 0, 50), ("ProfilerStep#4", 50, 1)]


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = write_run(tmp_path, 1e-4)
    first = [path.read_bytes() for path in write_traces(run, GPUS)]
    assert [path.read_bytes() for path in write_traces(run, GPUS)] == first


def test_a_gpu_without_work_has_an_empty_trace(tmp_path: Path) -> None:
    paths = write_traces(write_run(tmp_path, 1e-4), GPUS + 1, max_steps=1)
    events = read(paths[GPUS])["traceEvents"]
    assert [e["name"] for e in events if e["ph"] == "X"] == ["ProfilerStep#1", "ProfilerStep#2"]


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"steps\.parquet: is missing"):
        write_traces(tmp_path, 1)
    write_run(tmp_path, 1e-4)
    with pytest.raises(InputError, match="row 100: gpu is 1, but the run had 1 GPU"):
        write_traces(tmp_path, 1)
    write_steps(RunDir(tmp_path).steps, [0], [0.0], [1.0], [1], [True])
    with pytest.raises(InputError, match="no step was measured"):
        write_traces(tmp_path, 2)
