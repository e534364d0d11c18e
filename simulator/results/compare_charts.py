"""The charts of a comparison of runs and of traces: parts, kernels, layers, links, cache, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simulator.errors import InputError
from simulator.results.colours import LINK_NAMES, Figure, marked
from simulator.results.compare import Comparison, Row, flat
from simulator.results.compare_serving import LOOKS
from simulator.results.compare_text import told
from simulator.results.report_charts import (
    Chart,
    Section,
    bars,
    layout,
    line,
    rounded,
    table,
    time_unit,
)
from simulator.results.report_read import Run
from simulator.results.report_run import LAYER_WORDS, PARTS, accesses_of, use_of
from simulator.results.report_scan import LAYER_PARTS
from simulator.results.summary import energy_parts
from simulator.runfiles.spans import KINDS, STREAMS
from simulator.runfiles.tables import iter_spans

MOST_LINKS = 12
_MOST_NAME = 48

_HEADER = ("", "A", "B", "B - A", "B / A")

# Of the parts of a run's step, and of those that only traces have.
_COLOURS = {part: colour for part, (_, colour) in PARTS.items()} | {
    "exposed_communication": PARTS["communication"][1],
    "exposed_copies": PARTS["fetch_stall"][1],
}

Pair = tuple[Run, Run]


def time_section(found: Comparison) -> Section | None:
    """A GPU's step of A and of B part by part, and the change of each part."""
    rows = [row for row in found.of("breakdown") if row.a is not None and row.b is not None]
    if not rows:
        return None
    names = [told(row)[0] for row in rows]
    scale, unit = time_unit(max(sum(row.a for row in rows), sum(row.b for row in rows)))
    data = [
        bars(
            name,
            [row.b * scale, row.a * scale],
            ["B", "A"],
            _COLOURS[row.figure.rpartition(".")[2]],
            f"%{{y}}: %{{x:.4g}} {unit}",
            sideways=True,
        )
        for name, row in zip(names, rows, strict=True)
        if row.a or row.b
    ]
    first = _sideways(data, f"time in a step, {unit}", 200)
    changes = [(row.difference or 0.0) * scale for row in rows]
    change = bars("B - A", changes, names, "@pcie", f"%{{y}}: %{{x:+.4g}} {unit}", sideways=True)
    second = _sideways([change], f"B - A, {unit} of a step", 110 + 28 * len(rows))
    second["layout"] |= {"showlegend": False}
    second["layout"]["yaxis"]["autorange"] = "reversed"
    second["layout"]["xaxis"] |= {"zeroline": True, "zerolinecolor": "@text"}
    text = "What the mean GPU does in a step. The parts add up to the step; so do their changes."
    if found.kind == "trace":
        text = (
            "What the mean GPU does between its first and its last kernel, in a step or in all. "
            "Traces do not tell what it waits for: that is idle."
        )
    charts = (
        Chart("parts", "time of a step by part, A and B", first),
        Chart("parts-change", "change of each part from A to B", second),
    )
    return Section("time", "Where the time goes", text, charts, table_of(rows), pair=True)


def kinds_section(runs: Pair) -> Section | None:
    """How long each kind of kernel, transfer and fetch works in a step of the mean GPU."""
    a, b = (_kinds(run) for run in runs)
    text = (
        "How long the streams of the mean GPU work in a step, by kind: hidden behind others or not."
    )
    return _names(a, b, text)


def _kinds(run: Run) -> dict[str, float]:
    """Seconds of the mean GPU in a step by kind, of the measured steps."""
    if run.scan is None:
        return {}
    steps = run.scan.steps
    measured = steps.step[steps.measured]
    if not len(measured):
        return {}
    sums = np.zeros(len(STREAMS) * len(KINDS))
    for block in iter_spans(run.files.spans, ("step", "stream", "kind", "start_s", "end_s")):
        at = np.minimum(np.searchsorted(measured, block["step"]), len(measured) - 1)
        mine = measured[at] == block["step"]
        code = block["stream"][mine].astype(np.int64) * len(KINDS) + block["kind"][mine]
        length_s = (block["end_s"] - block["start_s"])[mine]
        sums += np.bincount(code, length_s, minlength=len(sums))
    mean_s = sums / (len(measured) * max(run.gpus, 1))
    return {
        f"{STREAMS[at // len(KINDS)]}: {KINDS[at % len(KINDS)].replace('_', ' ')}": float(
            mean_s[at]
        )
        for at in np.flatnonzero(mean_s)
    }


def names_section(found: Comparison) -> Section | None:
    """The longest kernels of either, by name."""
    each: list[dict[str, float]] = []
    for summary in found.summaries:
        over = summary["gpus"] * (summary["steps"] or 1)
        each.append({row["name"]: row["time_s"] / over for row in summary["top_kernels"]})
    a, b = each
    text = (
        "The longest kernels of each by name: how long they run on the mean GPU in a step, or in "
        "all where no steps are marked."
    )
    return _names(a, b, text)


def _names(a: Mapping[str, float], b: Mapping[str, float], text: str) -> Section | None:
    """Bars of A and B side by side by name, the longest first."""
    names = sorted({**a, **b}, key=lambda name: -max(a.get(name, 0.0), b.get(name, 0.0)))
    if not names:
        return None
    scale, unit = time_unit(max([*a.values(), *b.values()]))
    figure = _grouped(
        names,
        [[None if name not in of else of[name] * scale for name in names] for of in (a, b)],
        f"time in a step, {unit}",
        f"%{{y}}: %{{x:.4g}} {unit}",
    )
    rows = [Row("kernels", name, a.get(name), b.get(name)) for name in names]
    cells = [(row.figure, *told(row, "time_s")[1:]) for row in rows]
    chart = Chart("kinds", "time of kernels by kind, A and B", figure)
    return Section("by-kind", "Kernel by kernel", text, (chart,), table(_HEADER, cells), pair=True)


def ranks_section(found: Comparison) -> Section | None:
    """Idle time and overlap of each rank."""
    charts = []
    for key, words in (("idle", "time idle"), ("overlap", "hidden communication")):
        data = []
        for summary, (name, colour, dash) in zip(found.summaries, LOOKS, strict=True):
            rows = summary["by_rank"]
            values = [_of_rank(row, key) for row in rows]
            x = [row["rank"] for row in rows]
            one = line(name, x, values, colour, "rank %{x}: %{y:.1%}", dash)
            data.append(one | {"mode": "lines+markers", "marker": {"color": colour, "size": 6}})
        if any(value is not None for one in data for value in one["y"]):
            figure: Figure = {"data": data, "layout": layout("rank", words, 280, share=True)}
            figure["layout"]["yaxis"]["rangemode"] = "tozero"
            charts.append(Chart(f"rank-{key}", f"{words} by rank", figure))
    text = (
        "From a rank's first kernel to its last: the share of the time in which nothing runs, and "
        "of the time of communication the share that compute hides."
    )
    return Section("by-rank", "Rank by rank", text, tuple(charts), pair=True) if charts else None


def _of_rank(row: Mapping[str, Any], key: str) -> float | None:
    if key == "overlap":
        share: float | None = row["overlap_achieved"]
        return share
    return row["idle_s"] / row["window_s"] if row["window_s"] else None


def layers_section(runs: Pair) -> Section | None:
    """The compute stream of the mean GPU layer by layer, and the change by part."""
    each = []
    for run in runs:
        if run.scan is None or not run.scan.layer_s.any():
            return None
        over = int(np.count_nonzero(run.scan.steps.measured)) * run.scan.gpus
        each.append(run.scan.layer_s / max(over, 1))
    totals = [of.sum(axis=1) for of in each]
    scale, unit = time_unit(max(float(of.max()) for of in totals))
    data = [
        line(
            name, list(range(len(of))), rounded(of * scale), colour,
            f"layer %{{x}}: %{{y:.3g}} {unit}", dash, shape="hvh",
        )
        for of, (name, colour, dash) in zip(totals, LOOKS, strict=True)
    ]  # fmt: skip
    first: Figure = {"data": data, "layout": layout("layer", f"time of a step, {unit}", 320)}
    first["layout"]["yaxis"]["rangemode"] = "tozero"
    charts = [Chart("layers", "time of a step by layer, A and B", first)]
    text = (
        "The compute stream of the mean GPU, kernels and the waits before them. The LM head is the "
        "last layer."
    )
    if len(totals[0]) == len(totals[1]):
        change = each[1] - each[0]
        scale, unit = time_unit(float(np.abs(change).max()))
        parts = [
            bars(
                LAYER_WORDS[part][0], list(range(len(change))), rounded(change[:, at] * scale),
                LAYER_WORDS[part][1], f"layer %{{x}}: %{{y:+.3g}} {unit}",
            )
            for at, part in enumerate(LAYER_PARTS)
            if change[:, at].any()
        ]  # fmt: skip
        if parts:
            second: Figure = {"data": parts, "layout": layout("layer", f"B - A, {unit}", 320)}
            second["layout"]["barmode"] = "relative"
            second["layout"]["yaxis"] |= {"zeroline": True, "zerolinecolor": "@text"}
            charts.append(Chart("layers-change", "change by layer and part", second))
    else:
        text += " The models have different numbers of layers, so no layer is set against another."
    return Section("by-layer", "Layer by layer", text, tuple(charts), pair=True)


def links_section(found: Comparison, runs: Pair) -> Section | None:
    """The links whose use differs most, and the mean of each kind."""
    a, b = map(use_of, runs)
    rows = [row for row in found.of("links") if row.figure.startswith("links.")]
    if not rows and not (a and b):
        return None
    if a.keys() == b.keys():
        rank = {name: abs(b[name] - a[name]) for name in a}
        names = sorted(a, key=lambda name: (-rank[name], name))[:MOST_LINKS]
        text = "The links whose use differs most, in all measured steps."
    else:
        names = list(dict.fromkeys([*_busiest(a), *_busiest(b)]))
        rank = {name: max(a.get(name, 0.0), b.get(name, 0.0)) for name in names}
        text = "The busiest links of each; one without a bar is not there, or no route uses it."
    charts: tuple[Chart, ...] = ()
    if names and rank[names[0]] > 0.0:
        figure = _grouped(
            names,
            [[of.get(name) for name in names] for of in (a, b)],
            "share of bandwidth in use",
            "%{y}: %{x:.1%}",
        )
        figure["layout"]["xaxis"] |= {"tickformat": ".2~%"}
        charts = (Chart("links", "use of links, A and B", figure),)
    # A link's kind in words, as in the table below the cluster of a report.
    cells = []
    for row in rows:
        kind = row.figure.split(".")[1]
        cells.append((f"{LINK_NAMES.get(kind, kind)}, mean", *told(row)[1:]))
    return Section(
        "links", "Links", text if charts else "", charts, table(_HEADER, cells), pair=True
    )


def _busiest(used: Mapping[str, float]) -> list[str]:
    return sorted(used, key=lambda name: (-used[name], name))[: MOST_LINKS // 2]


def cache_section(found: Comparison, runs: Pair) -> Section | None:
    """Hits, late hits and misses of both, and the misses layer by layer."""
    rows = found.of("cache")
    if not any(row.figure == "cache_miss_rate" and (row.a or row.b) for row in rows):
        return None
    values = {row.figure: row for row in rows}
    data = [
        bars(name, [row.b, row.a], ["B", "A"], colour, "%{y}: %{x:.1%}", sideways=True)
        for key, name, colour in (
            ("cache_hit_rate", "hit", "@nvswitch"),
            ("cache_late_hit_rate", "late hit", "@nic"),
            ("cache_miss_rate", "miss", "@gpu"),
        )
        if (row := values.get(key)) is not None
    ]
    first = _sideways(data, "share of accesses", 200)
    first["layout"]["xaxis"] |= {"tickformat": ".0%", "range": [0, 1]}
    charts = [Chart("cache", "hits, late hits and misses, A and B", first)]
    lines = []
    for run, (name, colour, dash) in zip(runs, LOOKS, strict=True):
        try:
            by_layer = accesses_of(run)[1]
        except InputError:
            continue  # told among the faults of the run: its summary lacks the table too
        layers = sorted(by_layer)
        misses = [by_layer[layer][2] / max(sum(by_layer[layer]), 1) for layer in layers]
        lines.append(line(name, layers, misses, colour, "layer %{x}: %{y:.1%}", dash, shape="hvh"))
    if lines:
        second: Figure = {"data": lines, "layout": layout("layer", "misses", 280, share=True)}
        second["layout"]["yaxis"]["rangemode"] = "tozero"
        charts.append(Chart("cache-layers", "share of misses by layer", second))
    text = (
        "Of the experts that a micro-batch needed on a GPU: there already (hit), on the way (late "
        "hit), or not asked for (miss)."
    )
    return Section("cache", "Expert cache", text, tuple(charts), table_of(rows), pair=True)


def cost_section(found: Comparison) -> Section | None:
    """What tokens cost and where the energy goes, where both know it."""
    left, right = map(flat, found.summaries)
    keys = (
        "cost.usd_per_million_tokens", "cost.usd_per_hour", "cost.usd_per_year",
        "usd_per_1m_generated", "usd_per_1m_tokens", "energy.joules_per_step",
        "energy.joules_per_token", "energy.power_w",
    )  # fmt: skip
    rows = [Row("cost", key, left.get(key), right.get(key)) for key in keys]
    rows = [row for row in rows if row.difference is not None]
    if not rows:
        return None
    charts: tuple[Chart, ...] = ()
    before = "energy.joules_per_step_by_part."
    parts = [key for key in left if key.startswith(before) and (left[key] or right.get(key))]
    if parts and any(right.get(key) for key in parts):
        names = energy_parts(key.removeprefix(before) for key in parts)
        figure = _grouped(
            list(names.values()),
            [[of.get(before + name) for name in names] for of in (left, right)],
            "energy of a step, J",
            "%{y}: %{x:.4g} J",
        )
        charts = (Chart("energy", "energy of a step by part, A and B", figure),)
    return Section("cost", "Cost and energy", "", charts, table_of(rows), pair=True)


def table_of(rows: Sequence[Row]) -> str:
    """Rows as a table of A, B, difference and ratio."""
    return table(_HEADER, [told(row) for row in rows])


def _sideways(data: list[Figure], x: str, height: int) -> Figure:
    figure: Figure = {"data": data, "layout": layout(x, "", height)}
    figure["layout"]["yaxis"] |= {"title": {"text": ""}, "type": "category", "showgrid": False}
    figure["layout"]["xaxis"]["showgrid"] = True
    return figure


def _grouped(
    names: Sequence[str], values: Sequence[Sequence[float | None]], x: str, hover: str
) -> Figure:
    """Bars of A over those of B for each name, from the top."""
    labels: list[str] = []
    for name in names:
        label = marked(name, _MOST_NAME)
        # Those that are alike where they were cut would share a bar.
        labels.append(label if label not in labels else f"{label} ({len(labels) + 1})")
    data = [
        bars(name, of, labels, colour, hover, sideways=True)
        for of, (name, colour, _) in zip(values, LOOKS, strict=True)
    ]
    figure = _sideways(data, x, 110 + 34 * len(names))
    figure["layout"] |= {"barmode": "group"}
    figure["layout"]["yaxis"]["autorange"] = "reversed"
    return figure
