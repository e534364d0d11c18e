"""The charts of a comparison of two serving runs: latencies, and what happened over time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulator.results.colours import Figure
from simulator.results.report_charts import Chart, Section, layout, line, rounded, time_unit
from simulator.results.report_read import Run
from simulator.results.report_serving import counted
from simulator.results.serving import latencies_of
from simulator.results.serving_summary import SHOWN
from simulator.runfiles.serving import OUTCOMES

LOOKS = (("A", "@spine", "solid"), ("B", "@pcie", "dash"))
"""Names, colours and dashes of the two."""

_POINTS, _BINS = 400, 60

Floats = npt.NDArray[np.float64]


def latency_section(runs: tuple[Run, Run]) -> Section | None:
    """Distributions of the latencies of the requests that finished, A's over B's."""
    each = [_latencies(run) for run in runs]
    words = {key: name for key, name, _ in SHOWN} | {"queue": "wait in the queue"}
    charts = []
    for key, told in words.items():
        values = [found.get(key, np.zeros(0)) for found in each]
        if not all(map(len, values)):
            continue
        longest = max(float(of[-1]) for of in values)
        scale, unit = time_unit(longest)
        data = []
        for of, (name, colour, dash) in zip(values, LOOKS, strict=True):
            at = np.unique(np.linspace(0, len(of) - 1, min(len(of), _POINTS)).astype(np.int64))
            x, y = rounded(of[at] * scale), rounded((at + 1) / len(of))
            hover = f"%{{y:.1%}} take %{{x:.4g}} {unit} at most"
            data.append(line(name, x, y, colour, hover, dash, shape="hv"))
        figure: Figure = {
            "data": data,
            "layout": layout(f"{told}, {unit}", "share of requests", 280, share=True),
        }
        figure["layout"]["yaxis"]["range"] = [0, 1.02]
        figure["layout"]["xaxis"]["rangemode"] = "tozero"
        charts.append(Chart(f"cdf-{key.removesuffix('_s')}", f"distribution of {told}", figure))
    if not charts:
        return None
    long = "; ".join(f"{name}: {told}" for key, name, told in SHOWN if key in each[0])
    text = f"Of the requests that finished: the share that took so long at most. {long}."
    return Section("latency", "Latency", text, tuple(charts), pair=True)


def _latencies(run: Run) -> dict[str, Floats]:
    """Sorted latencies in s of the counted requests that finished, by their names."""
    requests = run.requests
    if requests is None:
        return {}
    finished = counted(run, requests) & (requests["outcome"] == OUTCOMES.index("finished"))
    found = {
        key: np.sort(of[~np.isnan(of)]) for key, of in latencies_of(requests, finished).items()
    }
    waited: Floats = (requests["admitted_s"] - requests["arrival_s"])[finished]
    return found | {"queue": np.sort(waited)}


def over_time_section(runs: tuple[Run, Run]) -> Section | None:
    """Tokens made, requests waiting and running, and KV blocks in use over time."""
    steps = [run.steps for run in runs]
    if any(of is None or not len(of["end_s"]) for of in steps):
        return None
    end_s = max(float(of["end_s"].max()) for of in steps if of is not None)
    scale, unit = time_unit(end_s)
    edges_s = np.linspace(0.0, end_s, _BINS + 1)
    x = rounded((edges_s[:-1] + edges_s[1:]) / 2 * scale, 6)
    charts = []
    for key, words, told in (
        ("generated", "tokens generated per s", "%{y:.4g} tokens/s"),
        ("waiting", "waiting requests, a group", "%{y:.3g} waiting"),
        ("running", "running requests, a group", "%{y:.3g} running"),
        ("used_blocks", "KV blocks in use, a group", "%{y:.4g} blocks"),
    ):
        data = []
        for of, (name, colour, dash) in zip(steps, LOOKS, strict=True):
            if of is None:
                continue
            at = np.clip(np.searchsorted(edges_s, of["end_s"], "right") - 1, 0, _BINS - 1)
            sums = np.bincount(at, of[key], minlength=_BINS)
            counts = np.bincount(at, minlength=_BINS)
            # A rate is over the piece of time; a level the mean of the steps that ended in it.
            over = np.full(_BINS, edges_s[1]) if key == "generated" else counts
            y = np.divide(sums, over, out=np.full(_BINS, np.nan), where=over > 0)
            hover = f"%{{x:.4g}} {unit}: {told}"
            data.append(line(name, x, rounded(y), colour, hover, dash))
        figure: Figure = {"data": data, "layout": layout(f"time, {unit}", words, 260)}
        figure["layout"]["yaxis"]["rangemode"] = "tozero"
        charts.append(Chart(f"{key.replace('_', '-')}-time", f"{words} over time", figure))
    text = f"In {_BINS} pieces of time; levels are means over the steps that end in one."
    return Section("over-time", "Over time", text, tuple(charts), pair=True)
