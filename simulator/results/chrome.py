"""Spans as Chrome traces, one per GPU, in the dialect that PyTorch's profiler (Kineto) writes.

Perfetto and chrome://tracing show them; HolisticTraceAnalysis reads them as it reads recorded ones.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.runfiles.rundir import RunDir
from simulator.runfiles.spans import (
    COMM,
    COPY,
    KINDS,
    PREFETCH,
    REBALANCE,
    SEND,
    STEP_SCHEMA,
    STREAMS,
)
from simulator.runfiles.tables import Columns, iter_spans, read_table

_HOST_PID = 1_000_000
"""Process of the launches and step marks; kernels lie in the process of their GPU's index."""

_STEP_TID = 0
_MIN_US = 1


def write_traces(run_dir: Path, gpus: int, max_steps: int = 4) -> list[Path]:
    """Write `trace_rank{N}.json.gz` for each of `gpus` GPUs into `run_dir`; their paths.

    They hold the first `max_steps` measured steps, with the fetches asked for in them. Times are
    whole microseconds: a shorter kernel lasts 1, and what follows it on its stream is moved later
    where it would overlap. The last `ProfilerStep` is empty, since readers drop the last.

    Errors: InputError if a table is missing or damaged, or no step was measured.
    """
    files = RunDir(run_dir)
    steps = read_table(files.steps, STEP_SCHEMA)
    chosen = np.flatnonzero(~steps["warmup"])[:max_steps]
    if not len(chosen):
        raise InputError(f"{files.steps}: no step was measured, so there is nothing to trace")
    spans = _spans_of(files.spans, steps["step"][chosen])
    if len(spans["gpu"]) and int(spans["gpu"].max()) >= gpus:
        raise InputError(f"{files.spans}: GPU {int(spans['gpu'].max())}, but the run had {gpus}")
    origin_s = float(
        min(np.min(steps["start_s"][chosen]), np.min(spans["start_s"], initial=np.inf))
    )
    marks = [
        (
            int(steps["step"][row]),
            _us(steps["start_s"][row], origin_s),
            _us(steps["end_s"][row], origin_s),
        )
        for row in chosen
    ]
    paths = []
    for gpu in range(gpus):
        path = run_dir / f"trace_rank{gpu}.json.gz"
        mine = {name: values[spans["gpu"] == gpu] for name, values in spans.items()}
        _write(path, gpu, _events(gpu, mine, marks, origin_s))
        paths.append(path)
    return paths


def _spans_of(path: Path, steps: npt.NDArray[Any]) -> Columns:
    """The spans of `steps`, sorted by stream and time; all of the file is looked through."""
    parts: list[Columns] = []
    for block in iter_spans(path):
        keep = np.isin(block["step"], steps)
        parts.append({name: values[keep] for name, values in block.items()})
    if not parts:
        raise InputError(f"{path}: holds no spans")
    spans = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((spans["start_s"], spans["stream"], spans["gpu"]))
    return {name: values[order] for name, values in spans.items()}


def _events(
    gpu: int, spans: Columns, marks: list[tuple[int, int, int]], origin_s: float
) -> Iterator[dict[str, object]]:
    """Events of one GPU: names of the rows, steps, then each span with its launch."""
    yield _name("process_name", gpu, 0, f"GPU {gpu}")
    yield _name("process_name", _HOST_PID, 0, "launches")
    yield _name("thread_name", _HOST_PID, _STEP_TID, "steps")
    for stream, name in enumerate(STREAMS):
        yield _name("thread_name", gpu, _stream_id(stream), f"{name} stream")
        yield _name("thread_name", _HOST_PID, _stream_id(stream), f"launches on {name}")
    for step, begin, end in marks:
        yield _complete(
            f"ProfilerStep#{step}", "user_annotation", _HOST_PID, _STEP_TID, begin, end, {}
        )
    step, _, end = marks[-1]
    yield _complete(
        f"ProfilerStep#{step + 1}", "user_annotation", _HOST_PID, _STEP_TID, end, end + _MIN_US, {}
    )

    free = [0] * len(STREAMS)
    columns = {name: values.tolist() for name, values in spans.items()}
    for row in range(len(columns["gpu"])):
        span = {name: values[row] for name, values in columns.items()}
        stream = span["stream"]
        begin = max(_us(span["start_s"], origin_s), free[stream])
        end = max(_us(span["end_s"], origin_s), begin + _MIN_US)
        free[stream] = end
        tid, correlation = _stream_id(stream), row + 1
        link = {"correlation": correlation}
        yield _complete(
            "cudaLaunchKernel", "cuda_runtime", _HOST_PID, tid, begin, begin + _MIN_US, link
        )
        yield _complete(
            _kernel_name(span),
            "kernel",
            gpu,
            tid,
            begin,
            end,
            {"device": gpu, "stream": tid, **link, **_details(span)},
        )


def _details(span: dict[str, Any]) -> dict[str, object]:
    """What the reader of a trace may want to know about a span, in its `args`."""
    details: dict[str, object] = {"layer": span["layer"], "microbatch": span["microbatch"]}
    if span["stream"] == COPY:
        details |= {"expert": span["expert"], "bytes": span["bytes"]}
        if span["kind"] == PREFETCH:
            details["used"] = span["used"]
    elif span["stream"] == COMM:
        details |= {"chunk": span["chunk"], "bytes": span["bytes"]}
    else:
        details |= {"chunk": span["chunk"], "rows": span["rows"], "flops": span["flops"]}
        details |= {"peer": span["peer"], "fetch_wait_us": 1e6 * span["fetch_wait_s"]}
        if span["expert"] >= 0:
            details["expert"] = span["expert"]
    return details


def _kernel_name(span: dict[str, Any]) -> str:
    """A name by which readers tell communication, copies and compute apart."""
    kind = KINDS[span["kind"]]
    if span["stream"] == COMM:
        return f"ncclDevKernel_{kind}"
    if span["kind"] in (SEND, REBALANCE):
        return f"Memcpy PtoP ({kind})"
    return f"Memcpy HtoD ({kind})" if span["stream"] == COPY else kind


def _stream_id(stream: int) -> int:
    return stream + 1


def _us(t_s: float, origin_s: float) -> int:
    return round((float(t_s) - origin_s) * 1e6)


def _name(what: str, pid: int, tid: int, name: str) -> dict[str, object]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "ts": 0, "args": {"name": name}}


def _complete(
    name: str, category: str, pid: int, tid: int, begin: int, end: int, args: dict[str, Any]
) -> dict[str, object]:
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "pid": pid,
        "tid": tid,
        "ts": begin,
        "dur": end - begin,
        "args": args,
    }


def _write(path: Path, rank: int, events: Iterator[dict[str, object]]) -> None:
    """Write one trace; the same events give the same bytes (no file name or time in the header)."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as file,
    ):
        # Readers look for the rank as text, with this very space after each colon.
        head = f'{{"schemaVersion": 1, "distributedInfo": {{"rank": {rank}}}, "traceEvents": ['
        file.write(head.encode())
        before = "\n"
        for event in events:
            file.write((before + json.dumps(event, allow_nan=False)).encode())
            before = ",\n"
        file.write(b"\n]}\n")
