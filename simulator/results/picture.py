"""The picture of a cluster as a plotly figure: nodes by kind, links by kind and bandwidth."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from simulator.results.colours import (
    NODE_NAMES,
    SYMBOLS,
    Figure,
    Values,
    link_name,
    marked,
    scale_of,
    trace_of,
)
from simulator.results.link_lines import link_traces
from simulator.results.placing import Fold, Link, Node, Placed, place
from simulator.results.summary import size


def cluster_figure(
    nodes: Sequence[Node],
    links: Sequence[Link],
    link_values: Values | None = None,
    gpu_values: Values | None = None,
    shared_word: str = "NVLink domain",
) -> Figure:
    """The cluster drawn in layers; every node and link tells what it is when pointed at.

    nodes, links: each direction of a link is one of `links`; the two are drawn as one line unless
    they differ. link_values, gpu_values: colour links and GPUs by these (a line by the higher of
    its directions, a folded host by its highest GPU). shared_word: what hosts on one NVSwitch
    fabric are called. `layout.meta` has `columns` and `rows`, the extent of the drawing, and
    `note`, a sentence on what is folded ("" if nothing is).
    """
    placed = place(nodes, links, shared_word)
    by_name = {node.name: node for node in nodes}
    data = [
        *link_traces(links, by_name, placed, link_values),
        *_node_traces(nodes, links, placed, gpu_values, link_values is not None),
        *_tile_traces(by_name, placed, gpu_values),
    ]
    return {"data": data, "layout": _layout(placed, link_values, gpu_values)}


def _node_traces(
    nodes: Sequence[Node],
    links: Sequence[Link],
    placed: Placed,
    values: Values | None,
    plain: bool,
) -> list[dict[str, Any]]:
    """A trace for each kind; plain: in grey, so that colour means a value alone."""
    at_node: dict[str, list[Link]] = defaultdict(list)
    for link in links:
        at_node[link.source].append(link)
    counts = Counter(node.kind for node in nodes)
    grey = plain or values is not None
    traces = []
    gpu_number = {
        node.name: str(index)
        for index, node in enumerate(node for node in nodes if node.kind == "gpu")
    }
    for kind in [*NODE_NAMES, *sorted(set(counts) - set(NODE_NAMES))]:
        shown = [node for node in nodes if node.kind == kind and node.name in placed.at]
        if not shown:
            continue
        at = [placed.at[node.name] for node in shown]
        trace = trace_of(kind, f"node {kind}", [round(x, 3) for x, _ in at], [y for _, y in at])
        trace["name"] = f"{NODE_NAMES.get(kind, marked(kind))} ({counts[kind]:,})"
        trace["hovertext"] = [_node_text(node, at_node[node.name], values) for node in shown]
        trace["mode"] = "markers"
        trace["meta"] = {"role": kind, "share": 0.66 if kind == "gpu" else 0.6}
        marker: dict[str, Any] = {
            "symbol": SYMBOLS.get(kind, "circle"),
            "size": 14,
            "color": f"@{kind}" if kind in SYMBOLS and not grey else "@tile",
            "line": {"color": "@outline", "width": 1},
            "opacity": 1,
        }
        if kind == "gpu":
            trace["text"] = [gpu_number[node.name] for node in shown]
            trace["textfont"] = {"color": "@text" if grey else "@glyph", "size": 9}
            trace["cliponaxis"] = False
            if values is not None:
                busy = [values.of.get(node.name, 0.0) for node in shown]
                marker |= {"color": busy, **scale_of(values, 0.55)}
                # On the colours of a scale no one colour of text can be read.
                del trace["text"], trace["textfont"]
        trace["marker"] = marker
        traces.append(trace)
    return traces


def _tile_traces(
    nodes: Mapping[str, Node], placed: Placed, values: Values | None
) -> list[dict[str, Any]]:
    """A tile for each folded host."""
    tiles = [(fold, tile) for fold in placed.folds for tile in fold.tiles]
    if not tiles:
        return []
    trace = trace_of("tile", "tile", [tile.x for _, tile in tiles], [tile.y for _, tile in tiles])
    marker: dict[str, Any] = {
        "symbol": "square",
        "size": 12,
        "color": "@tile",
        "line": {"color": "@frame", "width": 1},
        "opacity": 1,
    }
    if values is None:
        trace["text"] = [str(tile.host) for _, tile in tiles]
        trace["textfont"] = {"color": "@text", "size": 9}
    texts = []
    highest = []
    for fold, tile in tiles:
        told = _tile_text(fold, tile.host, [nodes[name] for name in tile.nodes])
        if values is not None:
            busy = [values.of.get(n, 0.0) for n in tile.nodes if nodes[n].kind == "gpu"] or [0.0]
            highest.append(max(busy))
            mean = sum(busy) / len(busy)
            told += (
                f"<br>{marked(values.title)}: mean {values.told(mean)}, "
                f"highest {values.told(max(busy))}"
            )
        texts.append(told)
    if values is not None:
        marker |= {"color": highest, **scale_of(values, 0.55)}
        del marker["colorbar"]
        marker["showscale"] = False
    trace |= {"mode": "markers", "hovertext": texts, "name": f"host, folded ({len(tiles):,})"}
    trace["marker"] = marker
    trace["meta"] = {"role": "tile", "share": 0.7}
    return [trace]


def _layout(placed: Placed, links: Values | None, gpus: Values | None) -> dict[str, Any]:
    left, bottom, right, top = placed.extent()
    shapes, notes = [], []
    for box in [*placed.boxes, *(fold.box for fold in placed.folds)]:
        fill = ("@page", "@host", "@folded")[box.depth]
        shapes.append(
            {
                "type": "rect",
                "layer": "below",
                "x0": box.left,
                "x1": box.right,
                "y0": box.bottom,
                "y1": box.top,
                "line": {
                    "color": "@frame",
                    "width": 1,
                    "dash": "dot" if box.depth == 2 else "solid",
                },
                "fillcolor": fill,
            }
        )
        notes.append(
            {
                "x": box.left,
                "y": box.top,
                "xanchor": "left",
                "yanchor": "top",
                "text": box.label if box.depth else f"<b>{box.label}</b>",
                "showarrow": False,
                "align": "left",
                "font": {"color": "@text" if box.depth == 0 else "@quiet", "size": 11},
                # Lines that pass behind it leave it readable.
                "bgcolor": fill,
                "xshift": 1,
                "yshift": -1,
            }
        )
    seen: dict[float, list[str]] = defaultdict(list)
    for y, row in placed.rows:
        kind = row.rstrip("0123456789")
        seen[y].append(
            {"spine": "spine", "leaf": "leaf", "cpu": "CPU", "pcie": "PCIe"}.get(kind)
            or NODE_NAMES[kind]
        )
    axis = {"showgrid": False, "zeroline": False, "ticks": "", "showline": False}
    hosts = sum(len(fold.tiles) for fold in placed.folds)
    note = ""
    if hosts:
        whole = len(placed.boxes) - sum(box.depth == 0 for box in placed.boxes)
        note = (
            f"{whole} of {whole + hosts:,} hosts are drawn in full; each small square is one of "
            f"the other {hosts:,}, and a dotted line is all links between a node and them."
        )
        if gpus is not None:
            note += " A square has the colour of its highest GPU."
    return {
        "meta": {
            "columns": round(right - left + 1.0, 3),
            "rows": round(top - bottom + 1.0, 3),
            "note": note,
            "scales": links is not None or gpus is not None,
        },
        "xaxis": {**axis, "range": [left - 0.5, right + 0.5], "showticklabels": False},
        "yaxis": {
            **axis,
            "range": [bottom - 0.3, top + 0.7],
            "tickvals": list(seen),
            "ticktext": [", ".join(names) for names in seen.values()],
            "tickfont": {"color": "@quiet", "size": 11},
            "automargin": True,
            "fixedrange": False,
        },
        "shapes": shapes,
        "annotations": notes,
        "hovermode": "closest",
        "hoverdistance": 14,
        "hoverlabel": {
            "align": "left",
            "bgcolor": "@host",
            "bordercolor": "@frame",
            "font": {"color": "@text", "size": 12},
        },
        "paper_bgcolor": "@page",
        "plot_bgcolor": "@page",
        "font": {"color": "@text", "family": "system-ui, sans-serif", "size": 12},
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": -0.01,
            "yanchor": "top",
            "groupclick": "togglegroup",
            "itemsizing": "constant",
            "tracegroupgap": 0,
        },
        "margin": {"l": 8, "r": 8, "t": 70 if links is not None or gpus is not None else 8, "b": 8},
    }


def _node_text(node: Node, out: Sequence[Link], values: Values | None) -> str:
    where = f", host {node.host}" if node.host >= 0 and node.kind not in ("leaf", "spine") else ""
    lines = [f"<b>{marked(node.name)}</b>", NODE_NAMES.get(node.kind, marked(node.kind)) + where]
    if node.model:
        lines.append(marked(node.model, 80))
    alike: dict[tuple[str, float], list[str]] = defaultdict(list)
    for link in out:
        alike[link.kind, link.bandwidth_bytes_per_s].append(link.target)
    for (kind, rate), to in list(alike.items())[:8]:
        whom = marked(to[0], 40) if len(to) == 1 else f"{len(to):,} nodes"
        each = "" if len(to) == 1 else " each"
        lines.append(f"{link_name(kind)} to {whom}: {size(rate)}/s{each}")
    if values is not None and node.name in values.of:
        lines.append(f"{marked(values.title)}: {values.told(values.of[node.name])}")
    return "<br>".join(lines)


def _tile_text(fold: Fold, host: int, nodes: Sequence[Node]) -> str:
    counts = Counter(node.kind for node in nodes)
    held = ", ".join(
        f"{count:,} {NODE_NAMES.get(kind, marked(kind))}" for kind, count in counts.items()
    )
    like = f"<br>like host {fold.like}" if fold.like >= 0 else ""
    return f"<b>host {host}</b> (folded)<br>{held}{like}"
