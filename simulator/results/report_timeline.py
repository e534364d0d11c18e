"""The timeline of a run: kernels, transfers and fetches of a window, and an overview of it all."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.results.colours import Figure
from simulator.results.report_charts import (
    Chart,
    Section,
    beside_bar,
    heat,
    layout,
    line,
    rounded,
    time_unit,
)
from simulator.results.report_scan import BINS, Scan
from simulator.results.summary import duration, number
from simulator.runfiles.spans import DEMAND, KINDS, PREFETCH, STREAMS

# A stream has a row of its own, so colours need to differ within a stream alone; Okabe and Ito's.
_KINDS = {
    "attention": ("attention", "@spine"),
    "ffn": ("dense FFN", "@leaf"),
    "experts": ("experts", "@nvswitch"),
    "lm_head": ("LM head", "@cpu"),
    "dispatch": ("dispatch", "@pcie"),
    "combine": ("combine", "@dram"),
    "demand": ("demand fetch", "@gpu"),
    "prefetch": ("prefetch", "@leaf"),
    "allreduce": ("all-reduce", "@nvswitch"),
    "allgather": ("all-gather", "@leaf"),
    "reducescatter": ("reduce-scatter", "@spine"),
    "send": ("to the next stage", "@nvswitch"),
    "rebalance": ("expert moved", "@cpu"),
}
_HELP = (
    "Drag over a time to zoom in, double click to zoom out. Point at a bar for what it is; click "
    "an entry of the legend to hide its kind.",
    "Zoom with the buttons; tap a bar for what it is, and an entry of the legend to hide its kind.",
)
WAITING = ("waiting for weights", "@frame")
STREAM_COLOURS = dict(zip(STREAMS, ("@spine", "@pcie", "@dram"), strict=True))


def timeline_sections(scan: Scan, default: bool) -> list[Section]:
    """The window and the overview; default: whether the window was not asked for."""
    return [_window(scan, default), _overview(scan)]


def _window(scan: Scan, default: bool) -> Section:
    window = scan.window
    one = window.first == window.last
    text = f"Step {window.first}" if one else f"Steps {window.first} to {window.last}"
    text += f" of {scan.steps.step[0]} to {scan.steps.step[-1]}"
    if len(window.gpus) < scan.gpus:
        text += f", {len(window.gpus)} of {scan.gpus:,} GPUs"
    if scan.cut:
        text += ", not to its end" if one else ", not to their end"
    text += f": {len(scan.spans.get('gpu', ())):,} of the run's {scan.count:,} spans."
    if not default and window.last < window.asked_last:
        text += f" The steps up to {window.asked_last} would be too many for one page."
    if window.last < scan.steps.step[-1] and default:
        text += " Another window: report RUN --steps A-B."
    charts = (
        (Chart("timeline", "timeline of the streams of each GPU", _columns(scan), "timeline"),)
        if scan.spans
        else ()
    )
    return Section("streams", "Timeline of the streams", text, charts, help=_HELP)


def _columns(scan: Scan) -> dict[str, Any]:
    """The window as columns of numbers, from which the page draws what is in sight."""
    spans, window = scan.spans, scan.window
    scale, unit = time_unit(window.end_s - window.start_s)
    used = [
        stream for stream in range(len(STREAMS)) if np.any(spans["stream"] == stream)
    ]  # a stream that did nothing has no row
    stream_row = np.zeros(len(STREAMS), dtype=np.int64)
    stream_row[used] = np.arange(len(used))
    gpu_row = np.zeros(scan.gpus, dtype=np.int64)
    gpu_row[window.gpus] = np.arange(len(window.gpus))
    rows = gpu_row[spans["gpu"]] * len(used) + stream_row[spans["stream"]]
    kinds = [_KINDS[kind] for kind in KINDS]
    inside = (scan.steps.end_s > window.start_s) & (scan.steps.start_s < window.end_s)
    return {
        "unit": unit,
        "end": (window.end_s - window.start_s) * scale,
        "rows": [f"GPU {gpu} {STREAMS[stream]}" for gpu in window.gpus.tolist() for stream in used],
        "labels": [
            f"GPU {gpu}" if len(used) > 1 else f"GPU {gpu} {STREAMS[used[0]]}"
            for gpu in window.gpus.tolist()
        ],
        "each": len(used),
        "kinds": [name for name, _ in [*kinds, WAITING]],
        "fetches": [DEMAND, PREFETCH],
        "colors": [colour for _, colour in [*kinds, WAITING]],
        "steps": [
            [int(step), round((start - window.start_s) * scale, 9)]
            for step, start in zip(scan.steps.step[inside], scan.steps.start_s[inside], strict=True)
        ],
        "x": f"time from the start of step {window.first}, {unit}",
        "columns": {
            "row": _encoded(rows, "u2"),
            "kind": _encoded(spans["kind"], "u1"),
            "start": _encoded((spans["start_s"] - window.start_s) * scale, "f4"),
            "took": _encoded((spans["end_s"] - spans["start_s"]) * scale, "f4"),
            "wait": _encoded(spans["fetch_wait_s"] * scale, "f4"),
            "layer": _encoded(spans["layer"], "i2"),
            "batch": _encoded(spans["microbatch"], "i2"),
            "expert": _encoded(spans["expert"], "i4"),
            "peer": _encoded(spans["peer"], "i4"),
            "bytes": _encoded(spans["bytes"], "f4"),
        },
    }


def _encoded(values: npt.NDArray[Any], kind: str) -> dict[str, str]:
    """Numbers [n] as base64 of little-endian `kind`."""
    packed = np.ascontiguousarray(values, dtype=f"<{kind}").tobytes()
    return {"kind": kind, "base64": base64.b64encode(packed).decode()}


def _overview(scan: Scan) -> Section:
    """Busy shares over the whole run, of the mean GPU and GPU by GPU."""
    length_s = scan.bin_s * BINS
    scale, unit = time_unit(length_s)
    x = ((np.arange(BINS) + 0.5) * scan.bin_s * scale).round(9)
    figure: Figure = {
        "data": [
            line(
                stream,
                rounded(x, 6),
                rounded(busy.mean(axis=0), 3),
                STREAM_COLOURS[stream],
                f"%{{x}} {unit}: %{{y:.1%}} busy",
            )
            for stream, busy in zip(STREAMS, scan.busy, strict=True)
            if busy.any()
        ],
        "layout": layout(f"time, {unit}", "busy, mean GPU", 260, share=True),
    }
    figure["layout"]["yaxis"]["rangemode"] = "tozero"
    figure["layout"]["shapes"] = _warm_up(scan, scale)
    text = (
        f"{duration(length_s)} from first to last step, in {BINS} pieces of {duration(scan.bin_s)}."
    )
    if figure["layout"]["shapes"]:
        text += " Shaded: warm-up, which no figure counts."
    charts = [Chart("busy", "busy share of each stream over time", figure)]
    for stream, busy in zip(STREAMS, scan.busy, strict=True):
        if busy.any():
            charts.append(_lanes(scan, stream, busy, rounded(x, 6), unit))
    return Section("overview", "The whole run", text, tuple(charts), pair=True)


def _warm_up(scan: Scan, scale: float) -> list[dict[str, Any]]:
    cold = np.flatnonzero(~scan.steps.measured)
    if not len(cold) or scan.steps.measured.all():
        return []
    end_s = float(scan.steps.end_s[cold[-1]]) - scan.start_s
    return [
        {
            "type": "rect",
            "layer": "below",
            "xref": "x",
            "yref": "paper",
            "x0": 0.0,
            "x1": end_s * scale,
            "y0": 0,
            "y1": 1,
            "line": {"width": 0},
            "fillcolor": "@folded",
        }
    ]


def _lanes(
    scan: Scan, stream: str, busy: npt.NDArray[np.float64], x: Sequence[float], unit: str
) -> Chart:
    lanes = len(busy)
    first = [-(-lane * scan.gpus // lanes) for lane in range(lanes)]
    shown = heat(
        rounded(100.0 * busy, 3),
        f"GPU %{{y}}, %{{x}} {unit}<br>{stream} busy %{{z:.3g}} %",
        f"{stream} stream busy, %",
        100.0,
    )
    shown |= {"x": list(x), "y": first}
    figure: Figure = {
        "data": [shown],
        "layout": layout(f"time, {unit}", "GPU", min(max(120 + 8 * lanes, 220), 420)),
    }
    figure["layout"]["yaxis"] |= {"autorange": "reversed", "tickformat": "d"}
    if lanes <= 8:
        figure["layout"]["yaxis"]["tickvals"] = first
    beside_bar(figure, f"time, {unit}")
    told = "" if lanes == scan.gpus else f", the mean of {number(scan.gpus / lanes)} GPUs a row"
    return Chart(f"busy-{stream}", f"{stream} busy by GPU over time{told}", figure)
