"""The sections of a report on a run: where the time goes, the cluster, layers, loads, caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.results.colours import LINK_NAMES, Figure, Values
from simulator.results.picture import cluster_figure
from simulator.results.placing import Link, Node
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
from simulator.results.report_scan import LAYER_PARTS, Scan
from simulator.results.routing_page import loads_section
from simulator.results.summary import number, percent, size
from simulator.runfiles.spans import ACCESS_SCHEMA, STREAMS
from simulator.runfiles.tables import iter_table

# How the time of a step is told, with colours in the order of the parts.
PARTS = {
    "compute": ("compute", "@nvswitch"),
    "communication": ("communication", "@pcie"),
    "fetch_stall": ("waiting for weights", "@gpu"),
    "peer_wait": ("waiting for a peer", "@dram"),
    "idle": ("idle", "@cpu"),
}
LAYER_WORDS = {
    "attention": ("attention", "@spine"),
    "ffn": ("dense FFN", "@leaf"),
    "experts": ("experts", "@nvswitch"),
    "lm_head": ("LM head", "@cpu"),
    "weights": ("waiting for weights", "@gpu"),
    "tokens": ("waiting for tokens", "@pcie"),
}
_MOST_STEPS = 400
_TOP_LINKS = 10
_LEAST_END = 10.0


def time_section(run: Run) -> Section | None:
    """Where a GPU's time goes, and what the critical path of a step consists of."""
    summary = run.summary
    if "breakdown" not in summary:
        return None
    rows = {
        "critical path": summary["critical_path"],
        "mean GPU": dict(summary["breakdown"]),
    }
    # Of a GPU's communication only what is exposed takes time; one name and colour for both rows.
    rows["mean GPU"]["communication"] = rows["mean GPU"].pop("exposed_communication")
    step_s = summary["step_time_s"]["mean"]
    scale, unit = time_unit(step_s)
    data = []
    for part, (words, colour) in PARTS.items():
        there = {row: shares[part] for row, shares in rows.items() if shares.get(part)}
        if there:
            told = [f"{percent(share)} of a step" for share in there.values()]
            one = bars(
                words,
                [share * step_s * scale for share in there.values()],
                list(there),
                colour,
                f"%{{x:.4g}} {unit}, %{{customdata}}",
                sideways=True,
            )
            data.append({**one, "customdata": told})
    figure: Figure = {"data": data, "layout": layout(f"time of a step, {unit}", "", 210)}
    figure["layout"]["yaxis"] |= {"title": {"text": ""}, "showgrid": False}
    figure["layout"]["xaxis"]["showgrid"] = True
    text = (
        "Critical path: the chain of work and waiting, from GPU to GPU, that makes a step as long "
        "as it is. Mean GPU: what a GPU does in that time; of its communication, what is exposed."
    )
    return Section("time", "Where the time goes", text, (Chart("parts", text, figure),))


def cluster_section(
    run: Run, drawn: tuple[Sequence[Node], Sequence[Link], str] | None
) -> Section | None:
    """The cluster with its links coloured by use and its GPUs by busy time, and the busiest links.

    drawn: nodes, links, and the word for hosts on one fabric; None: only the links are listed.
    """
    used = use_of(run)
    busy = _busy(run)
    body = _busiest(run, used) + _moved(run)
    if drawn is None:
        return Section("cluster", "The cluster", body=body) if body else None
    nodes, links, word = drawn
    pairs = {f"{link.source} -> {link.target}": (link.source, link.target) for link in links}
    on_links = {pairs[name]: 100.0 * share for name, share in used.items() if name in pairs}
    gpus = [node.name for node in nodes if node.kind == "gpu"]
    on_gpus = {name: 100.0 * share for name, share in zip(gpus, busy, strict=False)}
    word_of = "group busy" if run.is_serving else "GPU computing"
    figure = cluster_figure(
        nodes,
        links,
        _values("link in use", on_links),
        _values(word_of, on_gpus),
        shared_word=word,
    )
    told = []
    if on_links:
        told.append("Links are coloured by the bytes over them against what they could carry")
    if on_gpus:
        told.append(
            "GPUs are coloured by the share of time in which their group has a step under way"
            if run.is_serving
            else "GPUs are coloured by the share of time in which they compute"
        )
    text = "; ".join(told) + ("" if not told else ". ")
    text += "Point at one for its figures. " + figure["layout"]["meta"]["note"]
    chart = Chart("cluster", "the cluster, links coloured by use, GPUs by busy time", figure)
    return Section("cluster", "The cluster", text.strip(), (chart._replace(kind="cluster"),), body)


def _values(title: str, percents: dict[Any, float]) -> Values | None:
    """A scale to the highest, but not below 10 %: what is hardly used must not look busy."""
    if not percents:
        return None
    return Values(title, "%", percents, max(_LEAST_END, *percents.values()))


def use_of(run: Run) -> dict[str, float]:
    """Link -> share of its bandwidth that was used in the measured time."""
    time_s = run.summary.get("simulated_time_s")
    if time_s is None and run.scan is not None:
        steps = run.scan.steps
        time_s = float(np.sum((steps.end_s - steps.start_s)[steps.measured]))
    if run.links is None or not time_s:
        return {}
    share = run.links["bytes"] / (run.links["bandwidth_bytes_per_s"] * time_s)
    return dict(zip(run.links["link"].tolist(), share.tolist(), strict=True))


def _busy(run: Run) -> list[float]:
    """Share of the measured time in which each GPU computes (serving: its group has a step)."""
    if run.is_serving:
        shares = run.summary.get("busy_share", [])
        each = run.gpus // max(len(shares), 1)
        return [share for share in shares for _ in range(each)]
    if run.scan is None:
        return []
    steps = run.scan.steps
    time_s = float(np.sum((steps.end_s - steps.start_s)[steps.measured]))
    return (run.scan.busy_s[0] / time_s).tolist() if time_s else []


def _busiest(run: Run, used: dict[str, float]) -> str:
    if run.links is None or not used:
        return ""
    order = np.argsort([-share for share in used.values()], kind="stable")[:_TOP_LINKS]
    count = run.summary.get("steps")
    rows = []
    for at in order:
        name, moved = str(run.links["link"][at]), float(run.links["bytes"][at])
        kind = str(run.links["kind"][at])
        rows.append(
            (
                name,
                LINK_NAMES.get(kind, kind),
                percent(used[name]),
                f"{size(float(run.links['bandwidth_bytes_per_s'][at]))}/s",
                size(moved / count) if count else size(moved),
            )
        )
    each = "per step" if count else "in all"
    return table(("busiest links", "kind", "in use", "bandwidth", each), rows, left=2)


def _moved(run: Run) -> str:
    """Bytes per step by purpose."""
    steps = run.summary.get("steps")
    if run.is_serving or not steps:
        return ""
    rows = [
        (name.removesuffix("_bytes").replace("_", " "), size(value / steps))
        for name, value in run.summary.items()
        if name.endswith("_bytes") and value
    ]
    return table(("moved, all GPUs", "per step"), rows) if rows else ""


def layers_section(scan: Scan) -> Section | None:
    """A GPU's step layer by layer: kernels, and what the compute stream waits for before them."""
    steps = int(np.count_nonzero(scan.steps.measured))
    if not steps or not scan.layer_s.any():
        return None
    mean_s = scan.layer_s / (steps * scan.gpus)
    scale, unit = time_unit(float(mean_s.sum(axis=1).max()))
    layers = np.arange(len(mean_s)).tolist()
    data = [
        bars(
            LAYER_WORDS[part][0],
            layers,
            rounded(mean_s[:, at] * scale),
            LAYER_WORDS[part][1],
            f"layer %{{x}}: %{{y:.3g}} {unit}",
        )
        for at, part in enumerate(LAYER_PARTS)
        if mean_s[:, at].any()
    ]
    first: Figure = {"data": data, "layout": layout("layer", f"time of a step, {unit}", 320)}
    stream_s = scan.stream_s / (steps * scan.gpus)
    scale, unit = time_unit(float(stream_s.max()))
    colours = ("@spine", "@pcie", "@dram")
    busy = [
        line(
            stream,
            layers,
            rounded(stream_s[at] * scale),
            colours[at],
            f"layer %{{x}}: %{{y:.3g}} {unit}",
            shape="hvh",
        )
        for at, stream in enumerate(STREAMS)
        if stream_s[at].any()
    ]
    second: Figure = {"data": busy, "layout": layout("layer", f"busy in a step, {unit}", 320)}
    second["layout"]["yaxis"]["rangemode"] = "tozero"
    text = (
        "Left: the compute stream of the mean GPU, kernels and the waits before them. Right: how "
        "long each stream works for a layer, hidden behind others or not. The LM head is the last."
    )
    charts = (
        Chart("layers", "time of a step by layer", first),
        Chart("layer-streams", "busy time of each stream by layer", second),
    )
    return Section("by-layer", "Layer by layer", text, charts, pair=True)


def loads_section_of(run: Run) -> Section | None:
    """The expert load heat map, and how evenly the GPUs are loaded."""
    loads = run.loads
    if loads is None:
        return None
    layers, layer = np.unique(loads["layer"], return_inverse=True)
    by_expert = _pivot(layer, loads["expert"], loads["rows"], len(layers))
    _, heading, text, figure = loads_section(by_expert, layers.tolist())
    figure["layout"]["uirevision"] = "kept"
    by_gpu = _pivot(layer, loads["gpu"], loads["rows"], len(layers))
    worst = []
    for name, sums in (("hottest GPU", by_gpu), ("hottest expert", by_expert)):
        mean = sums.mean(axis=1)
        over = np.divide(sums.max(axis=1), mean, out=np.full(len(sums), np.nan), where=mean > 0)
        colour, dash = ("@gpu", "solid") if name == "hottest GPU" else ("@spine", "dot")
        worst.append(
            line(name, layers.tolist(), rounded(over), colour, "layer %{x}: %{y} x the mean", dash)
        )
    lines: Figure = {"data": worst, "layout": layout("layer", "load / mean", 300)}
    charts = (
        Chart("loads", "load of each expert by layer", figure),
        Chart("hottest", "load of the hottest GPU and expert by layer", lines),
    )
    return Section("expert-load", heading, text, charts)


def _pivot(
    layer: npt.NDArray[Any], by: npt.NDArray[Any], rows: npt.NDArray[Any], layers: int
) -> npt.NDArray[np.float64]:
    """Sums of rows, float64 [layers, largest of `by` + 1]."""
    width = int(by.max()) + 1
    found = np.bincount(layer * width + by, weights=rows, minlength=layers * width)
    return found.reshape(layers, width).astype(np.float64)


def cache_section(run: Run) -> Section | None:
    """Hits, late hits and misses step by step, and layer by layer."""
    try:
        by_step, by_layer = accesses_of(run)
    except InputError as error:
        run.faults.append(str(error).replace(f"{run.path}/", ""))
        return None
    if not any(late or miss for _, late, miss in by_step.values()):
        return None  # every expert was there all the time
    steps = sorted(by_step)
    counts = np.array([by_step[step] for step in steps], dtype=np.float64)
    each = -(-len(steps) // _MOST_STEPS)
    if each > 1:
        padded = np.pad(counts, ((0, -len(counts) % each), (0, 0)))
        counts, steps = padded.reshape(-1, each, 3).sum(axis=1), steps[::each]
    text = (
        "Of the experts that a micro-batch needed on a GPU: there already (hit), on the way (late "
        "hit), or not asked for (miss)."
    )
    if each > 1:
        text += f" A bar over time stands for {each} steps."
    layers = sorted(by_layer)
    of_layer = np.array([by_layer[layer] for layer in layers], dtype=np.float64)
    charts = (
        Chart("cache-steps", "hit, late and miss by step", _shares("step", steps, counts)),
        Chart("cache-layers", "hit, late and miss by layer", _shares("layer", layers, of_layer)),
    )
    return Section("cache", "Expert cache", text, charts, pair=True)


def accesses_of(run: Run) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Hits, late hits and misses by step and by layer."""
    names = ("hit", "late", "miss")
    found: tuple[dict[int, list[int]], dict[int, list[int]]] = ({}, {})
    for block in iter_table(run.files.accesses, ACCESS_SCHEMA):
        for key, sums in zip(("step", "layer"), found, strict=True):
            values, index = np.unique(block[key], return_inverse=True)
            counted = [np.bincount(index, block[name], len(values)) for name in names]
            for at, value in enumerate(values.tolist()):
                had = sums.setdefault(value, [0, 0, 0])
                for which in range(3):
                    had[which] += int(counted[which][at])
    return found


def _shares(by: str, x: Sequence[int], counts: npt.NDArray[np.float64]) -> Figure:
    total = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    names = (("hit", "@nvswitch"), ("late hit", "@nic"), ("miss", "@gpu"))
    data = [
        {
            **bars(
                name,
                x,
                rounded(shares[:, at]),
                colour,
                f"{by} %{{x}}: %{{y:.1%}} of %{{customdata}}",
            ),
            "customdata": [f"{number(value)} accesses" for value in total[:, 0]],
        }
        for at, (name, colour) in enumerate(names)
    ]
    figure: Figure = {"data": data, "layout": layout(by, "share of accesses", 300, share=True)}
    figure["layout"]["yaxis"]["range"] = [0, 1]
    if len(x) <= 12:
        figure["layout"]["xaxis"]["dtick"] = 1
    return figure
