"""A serving run over time as one HTML page: tokens/s, requests running and waiting, and faults."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.results.cache_page import _PAGE, _SCRIPT
from simulator.results.colours import Figure, palettes
from simulator.results.page import COLOURED, library_tag, script_json
from simulator.results.serving_faults import Made, Spell, first_tokens, spells_of, steps_of
from simulator.results.summary import duration, number
from simulator.runfiles.incidents import read_incidents
from simulator.runfiles.serving import REQUEST_SCHEMA
from simulator.runfiles.tables import read_table

Floats = NDArray[np.float64]

BINS = 240
MOST_LABELS = 12

_MARKS = {"down": "@gpu", "degrade": "@nic", "slow": "@dram"}


def render_timeline(
    folder: Path, title: str, lines: Sequence[str], rows: Sequence[dict[str, Any]]
) -> str:
    """The page of the run in `folder`. lines: paragraphs above the picture; rows: of the table
    below it (`fault_windows`), may be none. All text is escaped.
    """
    palette = palettes()
    parts = {
        "TITLE": html.escape(title),
        "LINES": "\n".join(f"<p>{html.escape(line)}</p>" for line in lines),
        "TABLE": _table(rows) if rows else "",
        "LIBRARY": library_tag("inline"),
        "FIGURE": script_json({"figure": timeline_figure(folder), "palettes": palette}),
        "SCRIPT": _SCRIPT.replace("@COLOURED@", COLOURED),
    }
    for theme in ("light", "dark"):
        for colour in ("page", "text", "frame"):
            parts[f"{theme}_{colour}".upper()] = palette[theme][colour]
    # In one pass, so that nothing put in is read again.
    return re.sub("@([A-Z_]+)@", lambda slot: parts[slot[1]], _PAGE)


def timeline_figure(folder: Path) -> Figure:
    """Three plots over one time axis: tokens/s in bins, requests running, requests waiting (all
    that are in the system and not in a step); a coloured band for each fault.
    """
    table = read_table(folder / "requests.parquet", REQUEST_SCHEMA)
    incidents = read_incidents(folder)
    stop_s = max(float(table["end_s"].max()), 1e-9)
    edges = np.linspace(0.0, stop_s, BINS + 1)
    middle = ((edges[1:] + edges[:-1]) / 2.0).tolist()
    width_s = stop_s / BINS
    data: list[dict[str, Any]] = []
    for column, name, colour in (
        ("generated", "generated tokens/s", "@link-network"),
        ("prompt", "prompt tokens/s", "@link-pcie"),
    ):
        firsts_s = first_tokens(table) if column == "generated" else None
        rate = np.diff(Made(folder, column, firsts_s=firsts_s).up_to(edges)) / width_s
        data.append(_line(name, middle, rate, colour, "y" if column == "generated" else "y2"))
    at = np.array(middle)
    running = _running(folder, incidents, at)
    there = np.searchsorted(np.sort(table["arrival_s"]), at, side="right")
    there = there - np.searchsorted(np.sort(table["end_s"]), at, side="right")
    data.append(_line("running", middle, running, "@link-nvlink", "y3"))
    data.append(_line("waiting", middle, np.maximum(there - running, 0), "@link-membus", "y4"))
    spells = spells_of(incidents)
    axis = {"gridcolor": "@frame", "zeroline": False, "automargin": True, "linecolor": "@frame"}
    rows = {
        "yaxis": ("generated<br>tokens/s", (0.78, 1.0)),
        "yaxis2": ("prompt<br>tokens/s", (0.52, 0.74)),
        "yaxis3": ("requests<br>running", (0.26, 0.48)),
        "yaxis4": ("requests<br>waiting", (0.0, 0.22)),
    }
    layout = {
        "height": 640,
        "margin": {"l": 10, "r": 10, "t": 30 + 16 * min(len(spells), MOST_LABELS), "b": 10},
        "paper_bgcolor": "@page",
        "plot_bgcolor": "@page",
        "font": {"color": "@text"},
        "hovermode": "x unified",
        "hoverlabel": {"bgcolor": "@page"},
        "showlegend": False,
        "shapes": [_band(spell, stop_s) for spell in spells],
        "annotations": [
            _label(spell, place, stop_s) for place, spell in enumerate(spells[:MOST_LABELS])
        ],
        "xaxis": {**axis, "title": {"text": "seconds"}, "range": [0, stop_s], "anchor": "y4"},
    }
    for name, (title, domain) in rows.items():
        layout[name] = {
            **axis, "title": {"text": title}, "domain": list(domain), "rangemode": "tozero",
        }  # fmt: skip
    return {"data": data, "layout": layout}


def _running(folder: Path, incidents: Sequence[dict[str, Any]], at: Floats) -> Floats:
    """Requests in the steps of all groups at each time: as after the last step of each, none while
    it is not up.
    """
    steps = steps_of(folder, ("group", "running"))
    total = np.zeros(len(at))
    for group in np.unique(steps["group"]).tolist():
        mine = steps["group"] == group
        time_s, value = steps["end_s"][mine], steps["running"][mine]
        off = [row for row in incidents if row["kind"] == "group" and row["group"] == group]
        stopped = [row["time_s"] for row in off if row["state"] != "up"]
        time_s = np.concatenate([time_s, stopped])
        value = np.concatenate([value, np.zeros(len(stopped))])
        order = np.argsort(time_s, kind="stable")
        place = np.searchsorted(time_s[order], at, side="right") - 1
        total += np.where(place >= 0, value[order][np.maximum(place, 0)], 0.0)
    return total


def _line(name: str, x: list[float], y: Floats, colour: str, axis: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [float(f"{value:.7g}") for value in x],
        "y": [float(f"{value:.6g}") for value in y.tolist()],
        "yaxis": axis,
        "line": {"color": colour, "width": 1.8},
        "hovertemplate": "%{y:,.4~g} " + name + "<extra></extra>",
    }


def _band(spell: Spell, stop_s: float) -> dict[str, Any]:
    end_s = stop_s if spell.end_s is None else min(spell.end_s, stop_s)
    return {
        "type": "rect", "xref": "x", "yref": "paper", "x0": spell.begin_s, "x1": end_s,
        "y0": 0, "y1": 1, "fillcolor": _MARKS[spell.do], "opacity": 0.16, "layer": "below",
        "line": {"color": _MARKS[spell.do], "width": 1},
    }  # fmt: skip


def _label(spell: Spell, place: int, stop_s: float) -> dict[str, Any]:
    late = spell.begin_s > 0.6 * stop_s
    return {
        "x": spell.begin_s, "xref": "x", "y": 1, "yref": "paper", "yshift": 12 + 16 * place,
        "xanchor": "right" if late else "left", "showarrow": False,
        "text": html.escape(f"{spell.label} at {spell.begin_s:.4g} s"), "font": {"size": 12},
    }  # fmt: skip


def _table(rows: Sequence[dict[str, Any]]) -> str:
    head = ("fault", "from", "to", "before", "during", "after")
    body = []
    for row in rows:
        rates = ["-" if row[key] is None else number(row[key]) for key in head[3:]]
        to = "the end" if row["end_s"] is None else duration(row["end_s"])
        cells = [f"{row['name']} {row['do']}", duration(row["begin_s"]), to, *rates]
        body.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    titles = [*head[:3], *(f"{name},<br>tokens/s" for name in head[3:])]
    top = "".join(f"<th>{title}</th>" for title in titles)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table>"
