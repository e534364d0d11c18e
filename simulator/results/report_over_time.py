"""What happened over the time of a serving run: requests, tokens, queues, KV cache, faults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.results.colours import Figure
from simulator.results.report_charts import (
    Chart,
    Section,
    layout,
    line,
    rounded,
    table,
    time_unit,
)
from simulator.results.report_read import Run
from simulator.results.report_scan import add_to_bins
from simulator.results.serving_faults import Spell, first_tokens, spells_of
from simulator.results.summary import duration
from simulator.runfiles.incidents import read_incidents
from simulator.runfiles.serving import OUTCOMES
from simulator.runfiles.tables import Columns

Floats = npt.NDArray[np.float64]

MOST_BINS = 200
_MOST_FAULTS = 50
_OUTCOMES = {"finished": "@nvswitch", "failed": "@gpu", "rejected": "@pcie", "pending": "@cpu"}


def over_time_section(run: Run) -> Section | None:
    """Requests, tokens, queue, running requests, KV and TTFT over the time of the run."""
    ends = [
        float(found[name].max())
        for found, name in ((run.requests, "end_s"), (run.steps, "end_s"))
        if found is not None
    ]
    if not ends or max(ends) <= 0.0:
        return None
    # Five requests a piece, so that their rate is more than whether there was one.
    count = len(run.requests["end_s"]) if run.requests is not None else 5 * MOST_BINS
    bins = 4 * min(max(count // 20, 5), MOST_BINS // 4)
    bin_s = max(ends) / bins
    scale, unit = time_unit(max(ends))
    x = rounded((np.arange(bins) + 0.5) * bin_s * scale, 6)
    charts = []
    if run.requests is not None:
        charts.append(_requests_over_time(run.requests, x, unit, bin_s))
    if run.steps is not None:
        charts += _steps_over_time(run, run.steps, x, unit, bin_s)
    if run.requests is not None:
        charts.append(_ttft_over_time(run, run.requests, x, unit, bin_s))
    text = f"In {bins} pieces of {duration(bin_s)}."
    spells = _spells(run)
    if spells:
        text += " Shaded: from the begin to the end of a fault."
        bands = _bands(spells, max(ends), scale)
        for chart in charts:
            chart.figure["layout"]["shapes"] = bands
    body = _fault_table(spells)
    return Section("over-time", "Over time", text, tuple(charts), body=body, pair=True)


def _spells(run: Run) -> list[Spell]:
    """The faults of the run."""
    try:
        return spells_of(read_incidents(run.path))
    except InputError as error:
        run.faults.append(str(error).replace(f"{run.path}/", ""))
        return []


def _bands(spells: Sequence[Spell], end_s: float, scale: float) -> list[dict[str, Any]]:
    return [
        {
            "type": "rect",
            "layer": "below",
            "yref": "paper",
            "x0": spell.begin_s * scale,
            "x1": (end_s if spell.end_s is None else spell.end_s) * scale,
            "y0": 0,
            "y1": 1,
            "line": {"width": 1, "color": "@gpu", "dash": "dot"},
            "fillcolor": "@folded",
        }
        for spell in spells[:_MOST_FAULTS]
    ]


def _fault_table(spells: Sequence[Spell]) -> str:
    rows = [
        (
            spell.label,
            duration(spell.begin_s),
            "lasts" if spell.end_s is None else duration(spell.end_s),
        )
        for spell in spells[:_MOST_FAULTS]
    ]
    return table(("fault", "from", "to"), rows) if rows else ""


def _requests_over_time(requests: Columns, x: list[Any], unit: str, bin_s: float) -> Chart:
    def rate(times: Floats) -> list[Any]:
        return rounded(_binned(times, np.ones(len(times)), bin_s, len(x)) / bin_s)

    told = f"%{{x}} {unit}: %{{y:.3g}} requests/s"
    data = [line("arrived", x, rate(requests["arrival_s"]), "@cpu", told, "dot", "hvh")]
    for name, colour in _OUTCOMES.items():
        mine = requests["outcome"] == OUTCOMES.index(name)
        if mine.any():
            data.append(line(name, x, rate(requests["end_s"][mine]), colour, told, shape="hvh"))
    figure: Figure = {"data": data, "layout": layout(f"time, {unit}", "requests/s", 280)}
    figure["layout"]["yaxis"]["rangemode"] = "tozero"
    return Chart("requests-time", "requests that arrived and ended over time", figure)


def _steps_over_time(
    run: Run, steps: Columns, x: list[Any], unit: str, bin_s: float
) -> list[Chart]:
    told = f"%{{x}} {unit}: %{{y:.3g}} tokens/s"
    made = {name: _spread(steps, name, bin_s, len(x)) for name in ("prompt", "generated")}
    if run.requests is not None:
        firsts_s = first_tokens(run.requests)
        made["generated"] += _binned(firsts_s, np.ones(len(firsts_s)), bin_s, len(x))
    tokens: Figure = {
        "data": [
            line(name, x, rounded(made[name] / bin_s), colour, told, shape="hvh")
            for name, colour in (("prompt", "@pcie"), ("generated", "@spine"))
        ],
        "layout": layout(f"time, {unit}", "tokens/s", 280),
    }
    states = {
        name: _level(steps, name, bin_s, len(x)) for name in ("waiting", "running", "used_blocks")
    }
    told = f"%{{x}} {unit}: %{{y:.3g}} requests"
    queue: Figure = {
        "data": [
            line(name, x, rounded(states[name].sum(axis=0)), colour, told, shape="hvh")
            for name, colour in (("running", "@nvswitch"), ("waiting", "@gpu"))
        ],
        "layout": layout(f"time, {unit}", "requests", 280),
    }
    charts = [
        Chart("tokens-time", "tokens per second over time", tokens),
        Chart("queue-time", "requests running and waiting over time", queue),
    ]
    context = run.result.get("serving_context")
    if context is not None and context["groups"]:
        room = context["kv_blocks"] * (context["gpus"] // context["groups"])
        used = states["used_blocks"] / room
        data = [
            line(
                "mean group",
                x,
                rounded(used.mean(axis=0)),
                "@spine",
                f"%{{x}} {unit}: %{{y:.2%}}",
                shape="hvh",
            )
        ]
        if len(used) > 1:
            highest = rounded(used.max(axis=0))
            told = f"%{{x}} {unit}: %{{y:.2%}}"
            data.append(line("fullest group", x, highest, "@gpu", told, "dot", "hvh"))
        kv: Figure = {
            "data": data,
            "layout": layout(f"time, {unit}", "KV cache in use", 280, share=True),
        }
        charts.append(Chart("kv-time", "KV cache in use over time", kv))
    for chart in charts:
        chart.figure["layout"]["yaxis"]["rangemode"] = "tozero"
    return charts


def _ttft_over_time(run: Run, requests: Columns, x: list[Any], unit: str, bin_s: float) -> Chart:
    """Median and 99th percentile of TTFT by when requests arrived, in pieces four times as long."""
    finished = requests["outcome"] == OUTCOMES.index("finished")
    arrival_s = requests["arrival_s"][finished]
    ttft_s = requests["first_s"][finished] - arrival_s
    y_scale, y_unit = time_unit(float(ttft_s.max(initial=0.0)))
    pieces = len(x) // 4
    piece = np.minimum((arrival_s / (4 * bin_s)).astype(np.int64), pieces - 1)
    found = {50: np.full(pieces, np.nan), 99: np.full(pieces, np.nan)}
    for at in np.unique(piece).tolist():
        for share, values in found.items():
            values[at] = np.percentile(ttft_s[piece == at], share) * y_scale
    told = f"arrived at %{{x}} {unit}: %{{y:.3g}} {y_unit}"
    data = [
        {
            **line(f"p{share}", x[2::4], rounded(values), colour, told),
            "mode": "lines+markers",
            "marker": {"size": 5, "color": colour},
        }
        for (share, values), colour in zip(found.items(), ("@spine", "@gpu"), strict=True)
    ]
    figure: Figure = {"data": data, "layout": layout(f"arrival, {unit}", f"TTFT, {y_unit}", 280)}
    figure["layout"]["yaxis"]["rangemode"] = "tozero"
    return Chart("ttft-time", "TTFT by time of arrival", figure)


def _binned(times: Floats, weights: Floats, bin_s: float, bins: int) -> Floats:
    index = np.clip((times / bin_s).astype(np.int64), 0, bins - 1)
    return np.bincount(index, weights, bins).astype(np.float64)


def _spread(steps: Columns, name: str, bin_s: float, bins: int) -> Floats:
    """Sums of a column in each piece, those of a row spread evenly over its time."""
    begin, end = steps["start_s"] / bin_s, steps["end_s"] / bin_s
    end = np.maximum(end, begin + 1e-9)
    total, change = np.zeros((1, bins)), np.zeros(bins + 1)
    row = np.zeros(len(begin), dtype=np.int64)
    add_to_bins(total, change, row, begin, end, steps[name] / (end - begin))
    found: Floats = total[0] + np.cumsum(change)[:bins]
    return found


def _level(steps: Columns, name: str, bin_s: float, bins: int) -> Floats:
    """What a column told of the last step that began before each piece's end, [groups, bins]."""
    groups = int(steps["group"].max()) + 1
    found = np.zeros((groups, bins))
    for group in range(groups):
        mine = steps["group"] == group
        start_s, values = steps["start_s"][mine], steps[name][mine]
        order = np.argsort(start_s, kind="stable")
        at = np.searchsorted(start_s[order], (np.arange(bins) + 1) * bin_s, "left") - 1
        known = at >= 0
        found[group, known] = values[order][at[known]]
    return found
