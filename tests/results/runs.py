"""Run directories written by hand, for the tests of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from simulator.runfiles import serving, spans
from simulator.runfiles.rundir import RunDir

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"&"

# step, microbatch, layer, gpu, stream, kind, start, end, fetch wait (s); two GPUs, two steps of
# 10 s, the first a warm-up.
ROWS = (
    (0, 0, 0, 0, spans.COMPUTE, spans.ATTENTION, 0.0, 2.0, 0.0),
    (0, 0, 0, 1, spans.COMPUTE, spans.ATTENTION, 0.0, 4.0, 0.0),
    (1, 0, 0, 0, spans.COMPUTE, spans.ATTENTION, 10.0, 12.0, 0.0),
    (1, 0, 0, 0, spans.COMM, spans.DISPATCH, 12.0, 13.0, 0.0),
    (1, 0, 0, 0, spans.COMPUTE, spans.EXPERTS, 16.0, 18.0, 3.0),
    (1, 0, 1, 0, spans.COMPUTE, spans.LM_HEAD, 19.0, 20.0, 0.0),
    (1, 0, 0, 1, spans.COMPUTE, spans.ATTENTION, 11.0, 15.0, 0.0),
    (1, 0, 0, 0, spans.COPY, spans.DEMAND, 13.0, 16.0, 0.0),
)


def write_spans(path: Path, rows: Any = ROWS) -> None:
    with spans.SpanWriter(path) as writer:
        for step, batch, layer, gpu, stream, kind, start_s, end_s, wait_s in rows:
            expert = 5 if stream == spans.COPY else -1
            writer.append(
                *(step, batch, 0, layer, gpu, stream, kind, start_s, end_s, start_s),
                fetch_wait_s=wait_s, expert=expert, bytes_=1e6,
            )  # fmt: skip


def write_tables(folder: Path, name: str = "gpu0") -> RunDir:
    """The five tables of a run of two GPUs, without `result.json`; name: of a node."""
    folder.mkdir()
    run = RunDir(folder)
    write_spans(run.spans)
    spans.write_steps(run.steps, [0, 1], [0.0, 10.0], [10.0, 20.0], [4, 4], [True, False])
    spans.write_links(run.links, [f"{name} -> gpu1"], ["nvlink"], [1e9], [2e9])
    spans.write_loads(run.loads, [0, 0, 1], [0, 1, 1], [0, 1, 1], [3, 1, 2])
    with spans.AccessWriter(run.accesses) as writer:
        writer.append(0, [0], [0], [0], [0], [4])
        writer.append(1, [0, 1], [0, 0], [1, 2], [1, 0], [1, 0])
    return run


def write_serving(folder: Path, requests: int = 20) -> RunDir:
    """A serving run of one group: request i comes at i s, has its first token 0.1 s later, then 10
    a second for a second; the last one fails.
    """
    folder.mkdir()
    run = RunDir(folder)
    arrival_s = np.arange(requests, dtype=np.float64)
    outcome = np.ones(requests, dtype=np.int8)
    outcome[-1] = serving.OUTCOMES.index("failed")
    ones = np.ones(requests, dtype=np.int32)
    serving.write_requests(
        run.requests,
        *(arrival_s, 100 * ones, 11 * ones, 0 * ones, outcome, ones, 0 * ones),
        *(arrival_s + 0.05, arrival_s + 0.1, arrival_s + 1.1, arrival_s + 1.1),
        *(11 * ones, 0 * ones, 0 * ones, 0 * ones, 0.1 + 0 * arrival_s),
    )
    with serving.StepWriter(run.steps) as writer:
        for at in range(requests):
            writer.append(0, float(at), at + 1.0, 100, 11, 1, 2, 7)
    return run


def hostile_result(**more: Any) -> dict[str, Any]:
    """A `result.json` in which every text is hostile."""
    node = {"kind": "gpu", "host": 0, "capacity_bytes": None}
    link = {"source": HOSTILE, "target": "gpu1", "both": True, "kind": "nvlink"}
    build = {
        "kind": "explicit",
        "nodes": [{"name": HOSTILE, **node}, {"name": "gpu1", **node}],
        "links": [{**link, "bandwidth_bytes_per_s": 1e9, "latency_s": 1e-6}],
    }
    gpu = {
        "name": HOSTILE,
        "flops_per_s": {"bf16": 1e12},
        "hbm_capacity_bytes": 1e9,
        "hbm_bandwidth_bytes_per_s": 1e9,
    }
    topology = {"name": HOSTILE, "description": HOSTILE, "gpu": gpu, "build": build}
    return {
        "given": {
            "command": "run", "overrides": [f"name={HOSTILE}"], "routing": HOSTILE,
            "requests": None, "faults": None,
        },
        "input": {
            "topology": topology,
            "workload": {"name": HOSTILE, "description": HOSTILE},
            "topology_given": HOSTILE,
            "workload_given": HOSTILE,
        },
        "notes": [HOSTILE],
        "seed": 7,
        "summary": {},
        "versions": {HOSTILE: HOSTILE},
        **more,
    }  # fmt: skip


def write_result(run: RunDir, result: dict[str, Any]) -> None:
    run.result.write_text(json.dumps(result))
