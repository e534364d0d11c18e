"""The breakdown of recorded traces as figures and as text; of a simulated run in the same terms."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from simulator.errors import InputError
from simulator.results.intervals import COMMUNICATING, PARTS, SORTS, GpuTime, gpu_time
from simulator.results.kineto_events import kernel_name
from simulator.results.kineto_read import Kernel, Recorded, sort_of
from simulator.results.summary import duration, percent
from simulator.runfiles.rundir import RunDir
from simulator.runfiles.spans import KINDS, SPAN_SCHEMA, STEP_SCHEMA, STREAMS
from simulator.runfiles.tables import iter_spans, read_table
from simulator.runfiles.values import Limits, gpus_of

WORDS = {
    "compute": "compute",
    "exposed_communication": "exposed communication",
    "exposed_copies": "exposed copies",
    "idle": "idle",
}
_MOST_RANKS = 16
_MOST_KERNELS = 10
_MOST_NAME = 36


def read_spans(run_dir: Path) -> Recorded:
    """The measured steps of a simulated run as a profiler would have recorded them.

    Memory: 21 B per span. Errors: InputError if the tables are missing or damaged, or no step was
    measured.
    """
    files = RunDir(run_dir)
    table = read_table(files.steps, STEP_SCHEMA)
    rows = np.flatnonzero(~table["warmup"])
    if not len(rows):
        raise InputError(f"{files.steps}: no step was measured")
    origin_s = float(np.min(table["start_s"][rows]))
    lengths = (table["end_s"][rows] - table["start_s"][rows]).tolist()
    found = Recorded(run_dir, steps_s=[lengths], files=1)
    sorts = np.array(
        [[sort_of(kernel_name(s, k)) for k in range(len(KINDS))] for s in range(len(STREAMS))],
        dtype=np.int8,
    )
    parts: list[tuple[Any, ...]] = []
    measured = np.sort(table["step"][rows])
    names = [name for name in SPAN_SCHEMA.names if name in _SPAN_COLUMNS]
    limits = Limits(gpus_of(run_dir), int(table["step"].max()))
    for block in iter_spans(files.spans, names, limits=limits):
        index = np.minimum(np.searchsorted(measured, block["step"]), len(measured) - 1)
        keep = measured[index] == block["step"]
        stream, kind = block["stream"][keep], block["kind"][keep]
        begin, end = (
            np.rint((block[name][keep] - origin_s) * 1e9).astype(np.int64)
            for name in ("start_s", "end_s")
        )
        parts.append((block["gpu"][keep], stream, sorts[stream, kind], begin, end))
        _count(found.kernels, sorts, stream, kind, end - begin)
    if not parts:
        raise InputError(f"{files.spans}: holds no span of a measured step")
    gpu, stream, sort, begin, end = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(gpu, kind="stable")
    ranks, firsts = np.unique(gpu[order], return_index=True)
    for rank, (low, high) in zip(
        ranks.tolist(), pairwise([*firsts.tolist(), len(gpu)]), strict=True
    ):
        mine = order[low:high]
        of = (begin[mine], end[mine], sort[mine], stream[mine], list(STREAMS))
        found.gpus.append(gpu_time(rank, str(rank), *of))
    if not found.gpus:
        raise InputError(f"{files.spans}: holds no span of a measured step")
    return found


_SPAN_COLUMNS = ("step", "gpu", "stream", "kind", "start_s", "end_s")


def _count(kernels: dict[str, Kernel], sorts: Any, stream: Any, kind: Any, length_ns: Any) -> None:
    """Add spans [n] to `kernels`."""
    code = stream.astype(np.int64) * len(KINDS) + kind
    size = len(STREAMS) * len(KINDS)
    counts = np.bincount(code, minlength=size)
    times = np.bincount(code, length_ns, minlength=size)
    for at in np.flatnonzero(counts).tolist():
        s, k = divmod(at, len(KINDS))
        kernel = kernels.setdefault(kernel_name(s, k), Kernel(int(sorts[s, k])))
        kernel.count += int(counts[at])
        kernel.time_s += float(times[at]) / 1e9


def summarize(found: Recorded) -> dict[str, Any]:
    """The figures of `found`; fractions are 0..1, means are over GPUs, what is unknown is None.

    breakdown: fractions of the window, from a GPU's first kernel to its last; breakdown_s: seconds
    per step, or of the window where no steps are marked;
    overlap_achieved: of the time of all communication, the share under compute of the same GPU.
    """
    windows = np.array([gpu.window_s for gpu in found.gpus])
    parts = np.array([gpu.parts_s for gpu in found.gpus])
    sorts = np.array([gpu.sorts_s for gpu in found.gpus])
    total_s = float(windows.sum())
    if not total_s > 0:
        raise InputError(f"{found.source}: the kernels take no time")
    lengths = np.array([length for steps in found.steps_s for length in steps])
    steps = round(len(lengths) / len(found.steps_s)) if len(lengths) else None
    fractions = (parts.sum(axis=0) / total_s).tolist()
    seconds = (parts.mean(axis=0) / (steps or 1)).tolist()
    communication_s = float(sorts[:, COMMUNICATING].sum())
    overlap_s = sum(gpu.overlap_s for gpu in found.gpus)
    return {
        "kind": "trace",
        "gpus": len(found.gpus),
        "kernels": sum(kernel.count for kernel in found.kernels.values()),
        "window_s": float(windows.mean()),
        "steps": steps,
        "step_time_s": None
        if steps is None
        else {
            "mean": float(lengths.mean()),
            "p50": float(np.median(lengths)),
            "min": float(lengths.min()),
            "max": float(lengths.max()),
        },
        "breakdown": dict(zip(PARTS, fractions, strict=True)),
        "breakdown_s": dict(zip(PARTS, seconds, strict=True)),
        "busy": {
            name: float(of) / total_s for name, of in zip(SORTS, sorts.sum(axis=0), strict=True)
        },
        "overlap_achieved": overlap_s / communication_s if communication_s else None,
        "by_rank": [_of_gpu(gpu) for gpu in found.gpus],
        "streams": [
            _of_stream(gpu, index) for gpu in found.gpus for index in range(len(gpu.streams))
        ],
        "top_kernels": _top(found.kernels),
        "notes": list(found.notes),
    }


def _of_gpu(gpu: GpuTime) -> dict[str, Any]:
    communication_s = float(gpu.sorts_s[COMMUNICATING])
    return {
        "rank": gpu.rank,
        "device": gpu.device,
        "window_s": gpu.window_s,
        **{f"{name}_s": float(of) for name, of in zip(PARTS, gpu.parts_s, strict=True)},
        "communication_s": communication_s,
        "overlap_achieved": gpu.overlap_s / communication_s if communication_s else None,
    }


def _of_stream(gpu: GpuTime, index: int) -> dict[str, Any]:
    stream = gpu.streams[index]
    return {
        "rank": gpu.rank,
        "device": gpu.device,
        "stream": stream.stream,
        "kernels": stream.kernels,
        "busy_s": stream.busy_s,
        "idle_s": gpu.window_s - stream.busy_s,
    }


def _top(kernels: Mapping[str, Kernel]) -> list[dict[str, Any]]:
    total_s = sum(kernel.time_s for kernel in kernels.values())
    ordered = sorted(kernels, key=lambda name: (-kernels[name].time_s, name))
    return [
        {
            "name": name,
            "sort": SORTS[kernels[name].sort],
            "count": kernels[name].count,
            "time_s": kernels[name].time_s,
            "share": kernels[name].time_s / total_s if total_s else 0.0,
        }
        for name in ordered[:_MOST_KERNELS]
    ]


def render(summary: Mapping[str, Any], width: int = 80) -> str:
    """The figures as text, in lines of at most `width` (at least 80) columns."""
    sections = [_head(summary), _breakdown(summary), _ranks(summary), _streams(summary)]
    sections.append(_kernels(summary))
    for note in summary["notes"]:
        sections.append(textwrap.wrap(f"note: {note}", width, subsequent_indent="      "))
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _head(summary: Mapping[str, Any]) -> list[str]:
    count = summary["gpus"]
    lines = [
        f"Trace   {summary['kernels']:,} kernel{'s' if summary['kernels'] != 1 else ''} on "
        f"{count:,} GPU{'s' if count != 1 else ''} "
        f"in {duration(summary['window_s'])}"
    ]
    times = summary["step_time_s"]
    if times is not None:
        span = f"{duration(times['min'])} to {duration(times['max'])} in {summary['steps']:,} steps"
        lines.append(f"Step    {duration(times['mean'])} on average; {span}")
    if summary["overlap_achieved"] is not None:
        lines.append(
            f"Overlap {percent(summary['overlap_achieved'])} of communication ran under compute"
        )
    return lines


def _breakdown(summary: Mapping[str, Any]) -> list[str]:
    per = "per step" if summary["steps"] is not None else "in all"
    title = "Where a GPU's time goes"
    lines = [f"{title:<36}{'of the time':>14}{per:>14}"]
    for part, words in WORDS.items():
        share, seconds = summary["breakdown"][part], summary["breakdown_s"][part]
        lines.append(f"  {words:<34}{percent(share):>14}{duration(seconds):>14}")
    return lines


def _ranks(summary: Mapping[str, Any]) -> list[str]:
    rows = summary["by_rank"]
    if len(rows) < 2:
        return []
    header = ("compute", "exp. comm.", "exp. copies", "idle", "overlap")
    lines = [f"{'Rank':<12}" + "".join(f"{name:>13}" for name in header)]
    several = len({row["rank"] for row in rows}) < len(rows)
    for row in rows[:_MOST_RANKS]:
        name = f"{row['rank']}:{row['device']}" if several else str(row["rank"])
        shares = [
            percent(row[f"{part}_s"] / row["window_s"]) if row["window_s"] else "-"
            for part in PARTS
        ]
        cells = [*shares, percent(row["overlap_achieved"])]
        lines.append(f"  {name[:10]:<10}" + "".join(f"{cell:>13}" for cell in cells))
    return [*lines, *_more(rows, _MOST_RANKS, "ranks")]


def _streams(summary: Mapping[str, Any]) -> list[str]:
    rows = summary["streams"]
    if not rows:
        return []
    lines = [f"{'Rank':<12}{'stream':<20}{'kernels':>12}{'busy':>12}{'idle':>12}"]
    for row in rows[:_MOST_RANKS]:
        times = f"{duration(row['busy_s']):>12}{duration(row['idle_s']):>12}"
        lines.append(f"  {row['rank']:<10}{row['stream'][:18]:<20}{row['kernels']:>12,}{times}")
    return [*lines, *_more(rows, _MOST_RANKS, "streams")]


def _kernels(summary: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{'Longest kernels':<{_MOST_NAME + 2}}{'sort':<15}{'count':>8}{'time':>10}{'share':>8}"
    ]
    for row in summary["top_kernels"]:
        name = (
            row["name"] if len(row["name"]) <= _MOST_NAME else row["name"][: _MOST_NAME - 3] + "..."
        )
        # What a file says is shown, but sends nothing to the terminal.
        name = "".join(letter if letter.isprintable() else "?" for letter in name)
        cells = f"{row['count']:>8,}{duration(row['time_s']):>10}{percent(row['share']):>8}"
        lines.append(f"  {name:<{_MOST_NAME}}{row['sort']:<15}{cells}")
    return lines


def _more(rows: Sequence[Any], shown: int, what: str) -> list[str]:
    left = len(rows) - shown
    return [f"  ... and {left:,} more {what}; --json has all"] if left > 0 else []
