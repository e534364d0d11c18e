"""The sections of a report on a serving run: latencies and groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.results.colours import Figure
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
from simulator.results.serving import latencies_of, within
from simulator.results.serving_summary import COLUMNS, SHOWN
from simulator.results.summary import duration, number, percent
from simulator.runfiles.serving import OUTCOMES
from simulator.runfiles.tables import Columns

Floats = npt.NDArray[np.float64]

_POINTS = 400


def latency_section(run: Run) -> Section | None:
    """Distributions of TTFT, TPOT and E2E with the objectives, and their percentiles."""
    table_of = run.requests
    if table_of is None:
        return None
    finished = counted(run, table_of) & (table_of["outcome"] == OUTCOMES.index("finished"))
    if not finished.any():
        return None
    slo: Mapping[str, Any] = run.summary.get("slo", {})
    latencies = latencies_of(table_of, finished)
    words = {key: name for key, name, _ in SHOWN}
    charts = []
    for key, values in latencies.items():
        there = np.sort(values[~np.isnan(values)])
        if len(there):
            charts.append(_distribution(key, words[key], there, slo.get(key)))
    gaps = _gaps(run)
    if gaps is not None:
        charts.append(gaps)
    waited = np.sort((table_of["admitted_s"] - table_of["arrival_s"])[finished])
    charts.append(_distribution("queue", "wait in the queue", waited, None))
    text = (
        f"Of {int(finished.sum()):,} requests that finished: the share that took so long at most. "
        "Dashed: the objective."
        if any(limit is not None for limit in slo.values())
        else f"Of {int(finished.sum()):,} requests that finished: the share that took so long at "
        "most."
    )
    return Section(
        "latency", "Latency", text, tuple(charts), body=_percentiles(run.summary), pair=True
    )


def _distribution(key: str, name: str, values: Floats, limit: float | None) -> Chart:
    """The share of `values` (sorted, s) up to each."""
    scale, unit = time_unit(float(values[-1]))
    at = np.unique(np.linspace(0, len(values) - 1, min(len(values), _POINTS)).astype(np.int64))
    share = (at + 1) / len(values)
    x, y = rounded(values[at] * scale), rounded(share)
    data = [line(name, x, y, "@spine", f"%{{y:.1%}} take %{{x:.4g}} {unit} at most", shape="hv")]
    figure: Figure = {
        "data": data,
        "layout": layout(f"{name}, {unit}", "share of requests", 260, share=True),
    }
    figure["layout"] |= {"showlegend": False}
    figure["layout"]["yaxis"]["range"] = [0, 1.02]
    figure["layout"]["xaxis"]["rangemode"] = "tozero"
    longest = float(values[-1])
    if limit is not None and limit < 1.5 * longest:
        level = line("objective", [limit * scale] * 2, [0, 1], "@gpu", "", "dash")
        data.append(level | {"hovertemplate": f"objective {duration(limit)}<extra></extra>"})
    elif limit is not None:
        # To scale, the rest would be a vertical line.
        figure["layout"]["annotations"] = [
            {
                "text": f"objective {duration(limit)}, beyond the right edge",
                "xref": "paper",
                "yref": "paper",
                "x": 0.02,
                "y": 0.95,
                "xanchor": "left",
                "showarrow": False,
                "font": {"color": "@gpu", "size": 12},
            }
        ]
    return Chart(f"cdf-{key.removesuffix('_s')}", f"distribution of {name}", figure)


def _gaps(run: Run) -> Chart | None:
    """The share of gaps between two tokens up to each, from the bins that the run counted in."""
    context = run.result.get("serving_context", {})
    counts = np.array(context.get("gap_counts", []), dtype=np.float64)
    if not counts.any():
        return None
    last_s = context["gap_first_s"] * context["gap_factor"] ** np.arange(1, len(counts) + 1)
    kept = np.flatnonzero(counts)
    share = np.cumsum(counts)[kept] / counts.sum()
    scale, unit = time_unit(float(last_s[-1]))
    told = f"%{{y:.1%}} take %{{x:.4g}} {unit} at most"
    x, y = rounded(last_s[kept] * scale), rounded(share)
    figure: Figure = {
        "data": [line("ITL", x, y, "@spine", told, shape="hv")],
        "layout": layout(f"ITL, {unit}", "share of gaps", 260, share=True),
    }
    figure["layout"] |= {"showlegend": False}
    figure["layout"]["yaxis"]["range"] = [0, 1.02]
    figure["layout"]["xaxis"]["rangemode"] = "tozero"
    return Chart("cdf-itl", "distribution of ITL", figure)


def _percentiles(summary: Mapping[str, Any]) -> str:
    rows = []
    for key, name, words in SHOWN:
        found = summary.get("latency", {}).get(key)
        if found is not None:
            rows.append((f"{name}, {words}", *(duration(found[column]) for column in COLUMNS)))
    return table(("latency", *COLUMNS), rows) if rows else ""


def counted(run: Run, requests: Columns) -> npt.NDArray[np.bool_]:
    """Which requests came after the warm-up."""
    warmup_s = run.result.get("serving_context", {}).get("warmup_s", 0.0)
    found: npt.NDArray[np.bool_] = requests["arrival_s"] >= warmup_s
    return found


def groups_section(run: Run) -> Section | None:
    """How evenly the groups are busy and share the work."""
    summary = run.summary
    busy, work = summary.get("busy_share", []), summary.get("work_share", [])
    if not busy:
        return None
    names = list(range(len(busy)))
    even = 1.0 / len(busy)
    figure: Figure = {
        "data": [
            bars("busy", names, rounded(np.array(busy)), "@spine", "group %{x}: %{y:.1%} busy"),
            bars(
                "share of the tokens",
                names,
                rounded(np.array(work)),
                "@pcie",
                f"group %{{x}}: %{{y:.1%}} of the tokens, {percent(even)} if even",
            ),
        ],
        "layout": layout("group", "share", 280, share=True),
    }
    figure["layout"] |= {"barmode": "group"}
    figure["layout"]["xaxis"]["dtick"] = 1 if len(busy) <= 24 else None
    text = (
        "Busy: the share of the time in which a group has a step under way. The busiest is "
        f"{number(max(busy) / (sum(busy) / len(busy)) if sum(busy) else None)} x the mean."
    )
    chart = Chart("groups", "busy share and share of tokens by group", figure)
    return Section("by-group", "Groups", text, (chart,), body=outcomes_table(run), pair=True)


def outcomes_table(run: Run) -> str:
    """What became of the requests."""
    requests, summary = run.requests, run.summary
    rows = []
    if requests is not None:
        after = counted(run, requests)
        for number_of, name in enumerate(OUTCOMES):
            count = int((after & (requests["outcome"] == number_of)).sum())
            if count or name == "finished":
                rows.append((name, f"{count:,}", percent(count / max(int(after.sum()), 1))))
        if "slo" in summary:
            finished = after & (requests["outcome"] == OUTCOMES.index("finished"))
            good = int(within(latencies_of(requests, finished), summary["slo"]).sum())
            rows.append(
                ("within the objectives", f"{good:,}", percent(good / max(int(after.sum()), 1)))
            )
    for key, words in (
        ("retries", "retries"),
        ("preemptions", "preemptions"),
        ("wasted_tokens", "tokens generated in vain"),
        ("prefix_tokens_reused", "prompt tokens reused"),
    ):
        if summary.get(key):
            rows.append((words, f"{summary[key]:,}", ""))
    return table(("requests", "number", "share"), rows) if rows else ""
