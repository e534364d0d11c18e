"""The figures of a routing trace as one HTML page: loads as a heat map, and what follows.

The page is made of what `simulator.routing.stats.describe` returns and the loads themselves.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.results.colours import HEAT_STEPS, Figure, marked, palettes
from simulator.results.page import COLOURED, library_tag, script_json
from simulator.results.summary import ABSENT, number, percent

Floats = npt.NDArray[np.float64]

# More cells than these a screen cannot show: neighbours are then one cell, of their largest value.
MAX_COLUMNS, MAX_ROWS = 1024, 256

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>@TITLE@</title>
<style>
:root { --page: @LIGHT_PAGE@; --text: @LIGHT_TEXT@; --quiet: @LIGHT_QUIET@;
    --frame: @LIGHT_FRAME@; }
@media (prefers-color-scheme: dark) {
  :root { --page: @DARK_PAGE@; --text: @DARK_TEXT@; --quiet: @DARK_QUIET@;
    --frame: @DARK_FRAME@; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(0.6rem, 2vw, 2rem); max-width: 1400px;
  background: var(--page); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.35rem; overflow-wrap: anywhere; }
h2 { margin: 1.6rem 0 0; font-size: 1.05rem; }
p { margin: 0.25rem 0; overflow-wrap: anywhere; }
p.figures { font-variant-numeric: tabular-nums; }
p.quiet { color: var(--quiet); font-size: 0.87rem; max-width: 62rem; }
section { min-width: 0; }
.pair { display: grid; gap: 0 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.table { overflow-x: auto; }
summary { cursor: pointer; margin-top: 1.6rem; font-size: 1.05rem; font-weight: 600; }
table { border-collapse: collapse; font-size: 0.87rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.15rem 0.7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--frame); }
th { font-weight: 600; vertical-align: bottom; }
@media (max-width: 500px) { th, td { padding-inline: 0 0.5rem; } table { font-size: 0.8rem; } }
</style>
@LIBRARY@
</head>
<body>
<h1>@TITLE@</h1>
@LINES@
@SECTIONS@
<details>
<summary>Figures layer by layer</summary>
<div class="table">@TABLE@</div>
</details>
<noscript><p>The pictures need JavaScript.</p></noscript>
<script type="application/json" id="figures">@FIGURES@</script>
<script>
@SCRIPT@
</script>
</body>
</html>
"""

_SCRIPT = """"use strict";
const { figures, palettes } = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
@COLOURED@
// Named one by one: nothing that would send a picture anywhere.
const config = {
  responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]],
};
async function draw() {
  const palette = palettes[dark.matches ? "dark" : "light"];
  for (const [id, figure] of Object.entries(figures)) {
    const { data, layout } = coloured(figure, "", palette);
    // A finger that moves over a picture scrolls the page.
    layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
    const buttons = { ...config, toImageButtonOptions: { filename: id, scale: 2 } };
    await Plotly.react(document.getElementById(id), data, layout, buttons);
  }
}
draw().then(() => { document.body.dataset.ready = "true"; });
dark.addEventListener("change", draw);
"""

_COLUMNS: tuple[tuple[str, str, Any], ...] = (
    ("layer", "layer", str),
    ("recorded", "recorded", lambda value: f"{value:,}"),
    ("max / mean", "max_over_mean", number),
    ("Gini", "gini", number),
    ("entropy, bits", "entropy_bits", number),
    ("of log2 experts", "entropy_share", percent),
    ("hottest tenth", "hottest_tenth_share", percent),
    ("unused experts", "unused_experts", str),
    ("overlap", "overlap", percent),
    ("MI to next layer, bits", "mutual_information_bits", number),
    ("of next entropy", "mutual_information_share", percent),
)


def render_routing_page(
    title: str,
    lines: Sequence[tuple[str, str]],
    found: Mapping[str, Any],
    loads: Floats,
    plotlyjs: str = "inline",
) -> str:
    """The page. lines: (CSS class, text) of paragraphs above the pictures; all text is escaped.

    found: what `describe` returns, and `capacities` and `best_hit_rates` (in `per_layer` too), None
    if not known. loads: float64 [layers, experts]. plotlyjs: see `simulator.results.page`.
    """
    layers = [row["layer"] for row in found["per_layer"]]
    sections = [loads_section(loads, layers)]
    sections += [
        section
        for section in (
            _skew_section(found),
            _information_section(found),
            _overlap_section(found),
            _hit_section(found),
        )
        if section is not None
    ]
    palette = palettes()
    figures = {name: figure for name, _, _, figure in sections}
    drawn = [_section(name, heading, text) for name, heading, text, _ in sections]
    parts = {
        "TITLE": html.escape(title),
        "LINES": "\n".join(
            f'<p class="{html.escape(kind)}">{html.escape(line)}</p>' for kind, line in lines
        ),
        "SECTIONS": f'{drawn[0]}\n<div class="pair">\n' + "\n".join(drawn[1:]) + "\n</div>",
        "TABLE": _table(found),
        "LIBRARY": library_tag(plotlyjs),
        "FIGURES": script_json({"figures": figures, "palettes": palette}),
        "SCRIPT": _SCRIPT.replace("@COLOURED@", COLOURED),
    }
    for theme in ("light", "dark"):
        for colour in ("page", "text", "quiet", "frame"):
            parts[f"{theme}_{colour}".upper()] = palette[theme][colour]
    # In one pass, so that nothing put in is read again.
    return re.sub("@([A-Z_]+)@", lambda slot: parts[slot[1]], _PAGE)


def _section(name: str, heading: str, text: str) -> str:
    return (
        f"<section><h2>{html.escape(heading)}</h2>"
        f'<p class="quiet">{html.escape(text)}</p><div id="{name}"></div></section>'
    )


def loads_section(loads: Floats, layers: Sequence[int]) -> tuple[str, str, str, Figure]:
    """Name, heading, text and figure of loads, float64 [layers, experts], over the layer's mean."""
    mean = loads.mean(axis=1, keepdims=True)
    over = np.divide(loads, mean, out=np.full(loads.shape, np.nan), where=mean > 0)
    experts_each = -(-over.shape[1] // MAX_COLUMNS)
    layers_each = -(-over.shape[0] // MAX_ROWS)
    over = _largest(_largest(over, experts_each).T, layers_each).T
    text = "Tokens of each expert over the mean of its layer: 1 is an even share."
    if experts_each > 1 or layers_each > 1:
        text += f" A cell is the largest of {experts_each} experts x {layers_each} layers."
    there = over[~np.isnan(over)]
    # One expert far above all others would make these all of one colour.
    high = max(float(np.quantile(there, 0.995)), 1.5) if there.size else 1.5
    clipped = bool((there > high).any())
    if clipped:
        text += f" The colours end at {number(high)}; point at a cell for its value."
    rounded = [[None if math.isnan(v) else round(v, 3) for v in row] for row in over.tolist()]
    heat = {
        "type": "heatmap",
        "z": rounded,
        "x": [index * experts_each for index in range(over.shape[1])],
        "y": [layers[index * layers_each] for index in range(over.shape[0])],
        "zmin": 0.0,
        "zmax": high,
        "colorscale": [[step / (HEAT_STEPS - 1), f"@heat{step}"] for step in range(HEAT_STEPS)],
        "hovertemplate": "layer %{y}, expert %{x}<br>%{z} x the mean<extra></extra>",
        "hoverongaps": False,
        "colorbar": {
            "orientation": "h",
            "x": 0.0,
            "xanchor": "left",
            "len": 0.5,
            "y": 1.0,
            "yanchor": "bottom",
            "thickness": 10,
            "outlinewidth": 0,
            "nticks": 5,
            "title": {"text": "load / mean" + (", clipped" if clipped else ""), "side": "top"},
        },
    }
    layout = _layout("expert", "layer", min(max(140 + 14 * over.shape[0], 260), 900))
    layout["yaxis"]["autorange"] = "reversed"
    # Beside a colour bar plotly puts the title of this axis among its numbers.
    del layout["xaxis"]["title"]
    layout["xaxis"]["automargin"] = False
    layout["annotations"] = [
        {
            "text": "expert",
            "xref": "paper",
            "yref": "paper",
            "x": 0.5,
            "y": 0.0,
            "yanchor": "top",
            "yshift": -20,
            "showarrow": False,
            "font": {"size": 14},
        }
    ]
    layout["margin"] |= {"t": 70, "b": 46}
    return "loads", "Load of each expert", text, {"data": [heat], "layout": layout}


def _largest(values: Floats, each: int) -> Floats:
    """The largest of each `each` neighbours along the second axis; NaN where all are."""
    if each == 1:
        return values
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % each)), constant_values=np.nan)
    groups = padded.reshape(len(values), -1, each)
    # -1 stands for what is not there, since a load is 0 or more.
    highest = np.where(np.isnan(groups), -1.0, groups).max(axis=2)
    return np.where(highest < 0, np.nan, highest)


def _skew_section(found: Mapping[str, Any]) -> tuple[str, str, str, Figure] | None:
    rows = [row for row in found["per_layer"] if row["max_over_mean"] is not None]
    if not rows:
        return None
    x = [row["layer"] for row in rows]
    data = [
        _bars("hottest expert", x, [row["max_over_mean"] for row in rows]),
        _level("mean", x, 1.0),
    ]
    figure = {"data": data, "layout": _layout("layer", "load / mean", 300)}
    return "skew", "The hottest expert", "Load of a layer's hottest expert over the mean.", figure


def _information_section(found: Mapping[str, Any]) -> tuple[str, str, str, Figure] | None:
    rows = [row for row in found["per_layer"] if row["mutual_information_bits"] is not None]
    if not rows:
        return None
    x = [row["layer"] for row in rows]
    data = [
        _bars("corrected", x, [row["mutual_information_bits"] for row in rows]),
        _dots("raw", x, [row["mutual_information_raw_bits"] for row in rows]),
    ]
    text = (
        "Bits that one expert of a token tells of one of its experts in the next layer. "
        "Corrected: less what unrelated tokens seem to tell."
    )
    figure = {"data": data, "layout": _layout("layer", "bits to the next layer", 300)}
    return "information", "What a layer tells of the next", text, figure


def _overlap_section(found: Mapping[str, Any]) -> tuple[str, str, str, Figure] | None:
    rows = [row for row in found["per_layer"] if row["overlap"] is not None]
    if not rows:
        return None
    x = [row["layer"] for row in rows]
    data = [
        _bars("recorded", x, [row["overlap"] for row in rows]),
        _level("if uniform", x, found["uniform_overlap"]),
    ]
    text = "Share of a token's experts that the token before it in the same request took as well."
    figure = {"data": data, "layout": _layout("layer", "overlap", 300, share=True)}
    return "overlap", "How alike successive tokens are", text, figure


def _hit_section(found: Mapping[str, Any]) -> tuple[str, str, str, Figure] | None:
    if not found["capacities"]:
        return None
    x = found["capacities"]
    by_layer = [row["best_hit_rates"] for row in found["per_layer"] if row["best_hit_rates"]]
    columns = list(zip(*by_layer, strict=True))
    data = []
    if len(by_layer) > 1:
        data.append(_dashes("best layer", x, [max(column) for column in columns]))
    data.append(
        {
            **_dots("all layers", x, found["best_hit_rates"]),
            "mode": "lines+markers",
            "line": {"color": "@link-network", "width": 2},
            "marker": {"color": "@link-network", "size": 8},
        }
    )
    if len(by_layer) > 1:
        data.append(_dashes("worst layer", x, [min(column) for column in columns]))
    layout = _layout("experts that a layer's cache holds", "hit rate", 300, share=True)
    layout["yaxis"]["range"] = [0, 1]
    layout["xaxis"] |= {"type": "log", "tickvals": x, "ticktext": [str(value) for value in x]}
    text = (
        "Of a cache that knows the future (Belady), one per layer, empty at the start of each "
        "request: no policy does better without prefetch."
    )
    return "hits", "Best possible hit rate", text, {"data": data, "layout": layout}


def _bars(name: str, x: Sequence[int], y: Sequence[float | None]) -> Figure:
    return {
        "type": "bar",
        "name": name,
        "x": list(x),
        "y": list(y),
        "marker": {"color": "@link-network"},
        "hovertemplate": "%{y}<extra></extra>",
    }


def _dots(name: str, x: Sequence[int], y: Sequence[float | None]) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": list(x),
        "y": list(y),
        "marker": {"color": "@link-pcie", "size": 7, "symbol": "diamond"},
        "hovertemplate": "%{y}<extra></extra>",
    }


def _dashes(name: str, x: Sequence[int], y: Sequence[float | None]) -> Figure:
    line = {"color": "@quiet", "width": 1.5, "dash": "dot"}
    return {**_dots(name, x, y), "mode": "lines", "line": line}


def _level(name: str, x: Sequence[int], y: float) -> Figure:
    ends = [min(x) - 0.5, max(x) + 0.5]
    line = {"color": "@link-pcie", "width": 2, "dash": "dash"}
    return {**_dots(name, [], []), "mode": "lines", "x": ends, "y": [y, y], "line": line}


def _layout(x: str, y: str, height: int, share: bool = False) -> Figure:
    axis = {"zeroline": False, "gridcolor": "@frame", "linecolor": "@frame", "automargin": True}
    return {
        "height": height,
        "xaxis": {**axis, "title": {"text": marked(x), "standoff": 10}, "showgrid": False},
        "yaxis": {
            **axis,
            "title": {"text": marked(y), "standoff": 8},
            **({"tickformat": ".0%"} if share else {}),
        },
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": "@host",
            "bordercolor": "@frame",
            "font": {"color": "@text", "size": 12},
        },
        "paper_bgcolor": "@page",
        "plot_bgcolor": "@page",
        "font": {"color": "@text", "family": "system-ui, sans-serif", "size": 12},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "margin": {"l": 8, "r": 8, "t": 30, "b": 8},
    }


def _table(found: Mapping[str, Any]) -> str:
    capacities = found["capacities"] or []
    header = [title for title, _, _ in _COLUMNS]
    header += [f"best hit rate, {capacity} experts" for capacity in capacities]
    rows = []
    for row in found["per_layer"]:
        cells = [ABSENT if row[key] is None else told(row[key]) for _, key, told in _COLUMNS]
        cells += [percent(rate) for rate in row["best_hit_rates"] or [None] * len(capacities)]
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in header)
    return (
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "</tbody></table>"
    )
