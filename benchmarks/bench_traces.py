"""Traces: spans per second exported, and analyzing a run or a trace against bare reads of the file.

The run is the main job's, its spans repeated with the steps and times of each copy moved on; only
the first copy has a warm-up.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from simulator.api import simulate
from simulator.results.analyzer import analyze_dir
from simulator.results.chrome import export
from simulator.results.kineto_read import read_traces
from simulator.runfiles.rundir import RunDir
from simulator.runfiles.spans import BLOCK_ROWS

COPIES = 230  # of 43,871 spans: 10 M
EXPORTED_SPANS = 2_000_000


def run() -> list[tuple[str, float, str]]:
    """Measure: rows (figure, value, goal)."""
    with tempfile.TemporaryDirectory(prefix="bench-traces-") as name:
        small, large = Path(name) / "small", Path(name) / "large"
        simulate("nvswitch16", "moe128", out=small, trace_steps=0)
        spans = repeat(small, large, COPIES)
        files = RunDir(large)
        steps = pq.read_table(files.steps)
        measured = steps["step"].to_numpy()[~steps["warmup"].to_numpy()]
        fraction = min(EXPORTED_SPANS / spans, 1.0)
        some = measured[: max(int(fraction * len(measured)), 1)]
        out = Path(name) / "traces"
        out.mkdir()
        export(small, small, range(16), measured[:1])
        written, export_s = 0, float("inf")
        for _ in range(2):
            start = time.perf_counter()
            written = export(large, out, range(16), some).spans
            export_s = min(export_s, time.perf_counter() - start)
        analyze_dir(small)
        read_s = _shortest(lambda: pq.read_table(files.spans), 3)
        analyze_s = _shortest(lambda: analyze_dir(large), 2)
        megabytes, traces_s = _read_back(out)
    return [
        ("spans in the run (M)", spans / 1e6, ""),
        ("spans exported per second", written / export_s, ">= 300000"),
        ("analyze, time over one pyarrow read of the spans", analyze_s / read_s, "<= 3"),
        ("analyze (M spans/s)", spans / analyze_s / 1e6, ""),
        ("traces read back (MB/s of JSON)", megabytes / traces_s, ""),
    ]


def repeat(small: Path, large: Path, copies: int) -> int:
    """Write a run of `copies` times the steps of `small`; how many spans it has."""
    large.mkdir()
    old, new = RunDir(small), RunDir(large)
    steps = pq.read_table(old.steps)
    count = len(steps)
    # A little more than the run's own length, that rounding makes no steps overlap.
    length_s = 1.001 * float(np.max(steps["end_s"].to_numpy()))
    pq.write_table(
        pa.concat_tables(_moved(steps, k, count, length_s) for k in range(copies)), new.steps
    )
    for name in ("links", "loads"):
        (large / f"{name}.parquet").write_bytes((small / f"{name}.parquet").read_bytes())
    result = json.loads(old.result.read_text(encoding="utf-8"))
    new.result.write_text(json.dumps(result), encoding="utf-8")
    total = 0
    for path, to in ((old.spans, new.spans), (old.accesses, new.accesses)):
        table = pq.read_table(path)
        total = max(total, len(table) * copies)
        with pq.ParquetWriter(to, table.schema, compression="zstd", compression_level=1) as writer:
            for k in range(copies):
                writer.write_table(_moved(table, k, count, length_s), row_group_size=BLOCK_ROWS)
    return total


def _moved(table: pa.Table, k: int, steps: int, length_s: float) -> pa.Table:
    """The table as of the k-th copy: so many steps, and their length, later."""
    for name, by in (("step", k * steps), ("start_s", k * length_s), ("end_s", k * length_s),
                     ("ready_s", k * length_s)):  # fmt: skip
        at = table.schema.get_field_index(name)
        if at >= 0:
            field = table.schema.field(at)
            values = table.column(at).to_numpy() + by
            table = table.set_column(at, field, pa.array(values, type=field.type))
    at = table.schema.get_field_index("warmup")
    if k and at >= 0:
        none = pa.array([False] * len(table))
        table = table.set_column(at, table.schema.field(at), none)
    return table


def _read_back(traces: Path) -> tuple[float, float]:
    """MB of JSON of the first trace, and seconds to read it."""
    import gzip

    path = traces / "trace_rank0.json.gz"
    with gzip.open(path) as file:
        size = 0
        while piece := file.read(1 << 20):
            size += len(piece)
    return size / 1e6, _shortest(lambda: read_traces(path), 2)


def _shortest(work: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)
