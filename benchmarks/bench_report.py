"""The report of a long run: memory, size and time for a run of 5 M spans."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from simulator.runfiles import spans as tables
from simulator.runfiles.rundir import RunDir

GPUS, LAYERS, SPANS = 64, 60, 5_000_000
# A layer of a GPU: attention, dispatch, experts, combine, a demand fetch.
KINDS = (tables.ATTENTION, tables.DISPATCH, tables.EXPERTS, tables.COMBINE, tables.DEMAND)
STREAMS = (tables.COMPUTE, tables.COMM, tables.COMPUTE, tables.COMM, tables.COPY)
PIECE_S = 20e-6


def run() -> list[tuple[str, float, str]]:
    """Time over that of one read of the file by pyarrow; size; peak of a process of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-report-") as name:
        folder = Path(name)
        long, short = RunDir(folder / "long"), RunDir(folder / "short")
        written = write_run(long, SPANS)
        write_run(short, SPANS // 20)
        read_s = np.inf
        for _ in range(3):
            begun = time.perf_counter()
            pq.read_table(long.spans)
            read_s = min(read_s, time.perf_counter() - begun)
        took, peaks = {}, {}
        for of in (short, long):
            begun = time.perf_counter()
            child = [sys.executable, "-m", __name__, str(of.path)]
            done = subprocess.run(child, check=True, capture_output=True, text=True)
            took[of.path], peaks[of.path] = time.perf_counter() - begun, float(done.stdout)
        size = (long.path / "report.html").stat().st_size
    growth = peaks[long.path] / peaks[short.path]
    return [
        ("spans in the run (M)", written / 1e6, ""),
        ("report, whole process (s)", took[long.path], ""),
        ("report / one read of the spans by pyarrow", took[long.path] / read_s, "<= 10"),
        ("report, peak RSS of the process (MiB)", peaks[long.path], "<= 300"),
        ("peak RSS, 5 M spans / 0.25 M spans", growth, "<= 1.3"),
        ("report.html (MB)", size / 1e6, "<= 20"),
    ]


def write_run(run_dir: RunDir, spans: int) -> int:
    """A run of at least `spans` spans, as a simulation would leave it; how many it has."""
    run_dir.path.mkdir()
    each = GPUS * LAYERS * len(KINDS)
    steps = -(-spans // each)
    step = np.zeros((LAYERS, len(KINDS), GPUS), dtype=tables.RECORD)
    step["layer"] = np.arange(LAYERS)[:, None, None]
    step["gpu"] = np.arange(GPUS)
    step["stream"] = np.array(STREAMS)[:, None]
    step["kind"] = np.array(KINDS)[:, None]
    step["peer"] = step["expert"] = -1
    step["bytes"] = 1e6
    begin_s = (np.arange(LAYERS)[:, None] * len(KINDS) + np.arange(len(KINDS)))[:, :, None]
    rng = np.random.default_rng(7)
    step_s = LAYERS * len(KINDS) * PIECE_S
    with tables.SpanWriter(run_dir.spans) as writer:
        for number in range(steps):
            step["step"] = number
            step["start_s"] = number * step_s + begin_s * PIECE_S
            step["end_s"] = step["start_s"] + PIECE_S * rng.uniform(0.2, 1.0, step.shape)
            step["ready_s"] = step["start_s"]
            writer.extend(step.reshape(-1))
    start_s = np.arange(steps) * step_s
    tables.write_steps(
        run_dir.steps,
        np.arange(steps),
        start_s,
        start_s + step_s,
        np.full(steps, 64),
        np.arange(steps) < 1,
    )
    run_dir.result.write_text(json.dumps({"summary": {}, "notes": []}))
    return steps * each


def main(path: str) -> None:
    """The child: one report; prints its peak RSS in MiB."""
    from simulator.reporting import write_report

    write_report(path)
    # From /proc: getrusage counts what the parent had at the fork as the child's.
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)


if __name__ == "__main__":
    main(sys.argv[1])
