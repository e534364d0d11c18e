"""The lines of a cluster's picture: which links are one line, where it runs, what it tells."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from simulator.results.colours import (
    LINK_NAMES,
    NODE_NAMES,
    Values,
    link_name,
    marked,
    scale_of,
    trace_of,
)
from simulator.results.placing import CURVE_ROWS, Link, Node, Placed
from simulator.results.summary import duration, size


class _Stroke(NamedTuple):
    """One line: from, to, kind, all directed links drawn by it, whether it has an arrow."""

    one: str
    other: str
    kind: str
    links: tuple[Link, ...]
    one_way: bool
    fold: int = -1


def link_traces(
    links: Sequence[Link], nodes: Mapping[str, Node], placed: Placed, values: Values | None
) -> list[dict[str, Any]]:
    """The traces of links: lines by kind, width and colour, points to point at, legend entries.

    nodes: name -> node. A line is wider the faster the link is.
    """
    strokes = _strokes(links, placed)
    rates = [link.bandwidth_bytes_per_s for link in links if link.bandwidth_bytes_per_s > 0.0]
    slowest, fastest = min(rates, default=1.0), max(rates, default=1.0)
    spread = math.log(fastest / slowest) or 1.0

    def width(stroke: _Stroke) -> float:
        best = max(link.bandwidth_bytes_per_s for link in stroke.links)
        return round(1.0 + 2.5 * math.log(max(best, slowest) / slowest) / spread, 1)

    ends = _fold_ends(strokes, placed)
    lines: dict[tuple[str, float, str, bool, bool], tuple[list[Any], list[Any]]] = {}
    points: dict[str, tuple[list[Any], list[Any], list[str]]] = {}
    for stroke in strokes:
        colour = f"@link-{stroke.kind}" if stroke.kind in LINK_NAMES else "@quiet"
        if values is not None:
            colour = f"@heat{values.step(max(values.of.get(x[:2], 0.0) for x in stroke.links))}"
        look = (stroke.kind, width(stroke), colour, stroke.one_way, stroke.fold >= 0)
        path = _path(stroke, placed, ends)
        xs, ys = lines.setdefault(look, ([], []))
        xs += [*(round(x, 3) for x, _ in path), None]
        ys += [*(round(y, 3) for _, y in path), None]
        where = points.setdefault(stroke.kind, ([], [], []))
        told = _link_text(stroke, nodes, placed, values)
        for share in (0.28, 0.5, 0.72):
            x, y = _along(path, share)
            where[0].append(round(x, 3))
            where[1].append(round(y, 3))
            where[2].append(told)
    traces: list[dict[str, Any]] = []
    order = [*LINK_NAMES, *sorted(set(points) - set(LINK_NAMES))]
    for (kind, thick, colour, arrow, dashed), (xs, ys) in sorted(
        lines.items(), key=lambda item: (order.index(item[0][0]), *item[0][1:])
    ):
        trace = trace_of(f"link {kind}", kind, xs, ys)
        trace |= {"mode": "lines", "hoverinfo": "skip", "showlegend": False}
        # Many lines of one sort lie over each other: they are drawn thinner and fainter.
        crowd = min(1.0, (40 / xs.count(None)) ** 0.5)
        trace["opacity"] = round(max(0.8 * crowd, 0.35), 2)
        trace["line"] = {
            "color": colour,
            "width": round(max(thick * crowd, 0.8), 1),
            "dash": "dot" if dashed else "solid",
        }
        if arrow:
            trace |= {"mode": "lines+markers", "marker": _arrow_heads(xs, colour)}
        traces.append(trace)
    for kind in [kind for kind in order if kind in points]:
        xs, ys, told_all = points[kind]
        here = [link for link in links if link.kind == kind]
        trace = trace_of(f"link {kind}", kind, xs, ys)
        trace |= {"mode": "markers", "hovertext": told_all, "showlegend": False}
        trace["marker"] = {"size": 12, "opacity": 0, "color": "@quiet"}
        traces.append(trace)
        key = trace_of(f"link {kind}", kind, [None], [None])
        key |= {"mode": "lines", "name": f"{link_name(kind)} {rate_range(here)}"}
        key["line"] = {
            "color": "@quiet" if values is not None or kind not in LINK_NAMES else f"@link-{kind}",
            "width": 3,
        }
        traces.append(key)
    if values is not None:
        key = trace_of("scale", "scale", [None], [None])
        key |= {"mode": "markers", "showlegend": False, "hoverinfo": "skip"}
        key["marker"] = {"color": [0.0], **scale_of(values, 0.0)}
        traces.append(key)
    return traces


def _arrow_heads(xs: Sequence[float | None], colour: str) -> dict[str, Any]:
    """Markers that put one arrow head on each path, three fifths along. xs: None ends a path."""
    begins = [0, *(at + 1 for at, x in enumerate(xs) if x is None)]
    sizes = [0] * len(xs)
    for begin, until in pairwise(begins):
        sizes[begin + max((until - 1 - begin) * 3 // 5, 1)] = 12
    return {
        "symbol": "arrow",
        "angleref": "previous",
        "size": sizes,
        "color": colour,
        "opacity": 1,
        "line": {"width": 0},
    }


def _strokes(links: Iterable[Link], placed: Placed) -> list[_Stroke]:
    """What is drawn as one line: two directions alike, or all links from a node into a fold."""
    pairs: dict[tuple[str, str], list[Link]] = defaultdict(list)
    bundles: dict[tuple[str, int, str], list[Link]] = defaultdict(list)
    for link in links:
        folds = placed.fold_of.get(link.source, -1), placed.fold_of.get(link.target, -1)
        if folds == (-1, -1):
            first, second = sorted((link.source, link.target))
            pairs[first, second].append(link)
        elif -1 in folds:
            outside = link.target if folds[1] == -1 else link.source
            bundles[outside, max(folds), link.kind].append(link)
    strokes = []
    for (one, other), both in pairs.items():
        if len(both) == 2 and both[0][2:] == both[1][2:]:
            strokes.append(_Stroke(one, other, both[0].kind, tuple(both), False))
        else:
            strokes += [_Stroke(x.source, x.target, x.kind, (x,), True) for x in both]
    for (outside, fold, kind), many in bundles.items():
        strokes.append(_Stroke(outside, "", kind, tuple(many), False, fold))
    return strokes


def _path(
    stroke: _Stroke, placed: Placed, ends: Mapping[tuple[str, int], float]
) -> list[tuple[float, float]]:
    """The points of a line: straight, or curved to keep off other nodes or the other direction."""
    start = placed.at[stroke.one]
    if stroke.fold >= 0:
        box = placed.folds[stroke.fold].box
        # Above the box the line ends at its top edge, below it at the bottom one.
        edge = box.top if start[1] > box.top else box.bottom
        return [start, (box.left + (box.right - box.left) * ends[stroke.one, stroke.fold], edge)]
    end = placed.at[stroke.other]
    bend_x = bend_y = 0.0
    if start[1] == end[1]:
        low, high = sorted((start[0], end[0]))
        if any(y == start[1] and low < x < high for x, y in placed.at.values()):
            gpus = {kind: y for y, kind in placed.rows}.get("gpu") == start[1]
            return _arch(low, high, start[1], -CURVE_ROWS if gpus else 0.6, placed)
    if stroke.one_way:
        # To its own left, so that the two directions keep apart.
        length = math.hypot(end[0] - start[0], end[1] - start[1]) or 1.0
        bend_x -= 0.35 * (end[1] - start[1]) / length
        bend_y += 0.35 * (end[0] - start[0]) / length
    if bend_x == bend_y == 0.0:
        return [start, end]
    middle = (start[0] + end[0]) / 2 + bend_x, (start[1] + end[1]) / 2 + bend_y
    points = []
    for step in range(15):
        t = step / 14
        weights = ((1 - t) ** 2, 2 * t * (1 - t), t**2)
        points.append(
            tuple(
                sum(w * p[axis] for w, p in zip(weights, (start, middle, end), strict=True))
                for axis in (0, 1)
            )
        )
    return [(x, y) for x, y in points]


def _arch(
    low: float, high: float, y: float, most: float, placed: Placed
) -> list[tuple[float, float]]:
    """Half an ellipse below (most < 0) or above a row; the longest of the row is `most` deep."""
    row = sorted(x for x, level in placed.at.values() if level == y)
    hosts = [box for box in placed.boxes if box.depth == 1 and box.left <= low <= box.right]
    if hosts:
        row = [x for x in row if hosts[0].left <= x <= hosts[0].right]
    depth = most * 0.94 * (high - low) / max(row[-1] - row[0], high - low)
    angles = [math.pi * step / 40 for step in range(41)]
    middle, half = (low + high) / 2, (high - low) / 2
    return [(middle - half * math.cos(a), y + depth * math.sin(a)) for a in angles]


def _along(path: Sequence[tuple[float, float]], share: float) -> tuple[float, float]:
    """A point of a path, `share` of the way along."""
    place_in = share * (len(path) - 1)
    low = min(int(place_in), len(path) - 2)
    (x0, y0), (x1, y1) = path[low], path[low + 1]
    return x0 + (x1 - x0) * (place_in - low), y0 + (y1 - y0) * (place_in - low)


def _fold_ends(strokes: Iterable[_Stroke], placed: Placed) -> dict[tuple[str, int], float]:
    """Where along a fold's edge the line from each node outside ends, 0 to 1, in their order."""
    ends = {}
    for number_of in range(len(placed.folds)):
        outside = sorted(
            {stroke.one for stroke in strokes if stroke.fold == number_of},
            key=lambda name: (placed.at[name][1] > 0, placed.at[name][0], name),
        )
        for place_in, name in enumerate(outside):
            ends[name, number_of] = (place_in + 0.5) / len(outside)
    return ends


def _link_text(
    stroke: _Stroke, nodes: Mapping[str, Node], placed: Placed, values: Values | None
) -> str:
    first = stroke.links[0]
    if stroke.fold >= 0:
        out = sum(link.source == stroke.one for link in stroke.links)
        lines = [
            f"<b>{marked(stroke.one)} and the folded hosts</b>",
            f"{link_name(stroke.kind)}, {out:,} links there, {len(stroke.links) - out:,} back",
            f"{rate_range(stroke.links)} each one way, {_latencies(stroke.links)}",
        ]
    else:
        joint = "→" if stroke.one_way else "↔"
        ends = [marked(name, 40) for name in (stroke.one, stroke.other)]
        kinds = [NODE_NAMES.get(nodes[n].kind, "node") for n in (stroke.one, stroke.other)]
        way = "this way" if stroke.one_way else "each way"
        lines = [
            f"<b>{ends[0]} {joint} {ends[1]}</b>",
            f"{link_name(stroke.kind)} ({' to '.join(kinds)})",
            f"{_rate(first)} {way}, latency {duration(first.latency_s)}",
        ]
    if values is not None:
        known = [(values.of[link[:2]], link) for link in stroke.links if link[:2] in values.of]
        if stroke.fold >= 0 and known:
            mean = sum(value for value, _ in known) / len(known)
            lines.append(
                f"{marked(values.title)}: mean {values.told(mean)}, "
                f"highest {values.told(max(known)[0])}"
            )
        else:
            lines += [
                f"{marked(values.title)} {marked(link.source, 30)} → {marked(link.target, 30)}: "
                f"{values.told(value)}"
                for value, link in known
            ]
    return "<br>".join(lines)


def _rate(link: Link) -> str:
    return f"{size(link.bandwidth_bytes_per_s)}/s"


def rate_range(links: Sequence[Link]) -> str:
    """The bandwidth of links, or from which to which."""
    rates = sorted(link.bandwidth_bytes_per_s for link in links)
    low, high = f"{size(rates[0])}/s", f"{size(rates[-1])}/s"
    return low if low == high else f"{low} to {high}"


def _latencies(links: Sequence[Link]) -> str:
    low, high = (duration(pick(link.latency_s for link in links)) for pick in (min, max))
    return f"latency {low}" if low == high else f"latency {low} to {high}"
