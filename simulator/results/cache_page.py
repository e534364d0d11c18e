"""Hit rates of expert caches as one HTML page: a line over the capacities for each policy."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from simulator.results.colours import Figure, palettes
from simulator.results.page import COLOURED, library_tag, script_json

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>@TITLE@</title>
<style>
:root { --page: @LIGHT_PAGE@; --text: @LIGHT_TEXT@; --frame: @LIGHT_FRAME@; }
@media (prefers-color-scheme: dark) {
  :root { --page: @DARK_PAGE@; --text: @DARK_TEXT@; --frame: @DARK_FRAME@; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(0.6rem, 2vw, 2rem); max-width: 1100px;
  background: var(--page); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.35rem; overflow-wrap: anywhere; }
p { margin: 0.25rem 0; overflow-wrap: anywhere; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.87rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.15rem 0.7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--frame); }
th:first-child, td:first-child { text-align: left; }
@media (max-width: 500px) { th, td { padding-inline: 0 0.5rem; } table { font-size: 0.8rem; } }
</style>
@LIBRARY@
</head>
<body>
<h1>@TITLE@</h1>
@LINES@
<div id="picture"></div>
<noscript><p>The picture needs JavaScript.</p></noscript>
<div class="table">@TABLE@</div>
<script type="application/json" id="figure">@FIGURE@</script>
<script>
@SCRIPT@
</script>
</body>
</html>
"""

_SCRIPT = """"use strict";
const { figure, palettes } = JSON.parse(document.getElementById("figure").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
@COLOURED@
// Named one by one: nothing that would send a picture anywhere.
const config = {
  responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]],
};
async function draw() {
  const { data, layout } = coloured(figure, "", palettes[dark.matches ? "dark" : "light"]);
  // A finger that moves over a picture scrolls the page.
  layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
  await Plotly.react(document.getElementById("picture"), data, layout, config);
}
draw().then(() => { document.body.dataset.ready = "true"; });
dark.addEventListener("change", draw);
"""

MAX_TICKS = 12
# Of each line by turns, so that they differ without colour too.
_COLOURS = ("link-network", "link-pcie", "link-nvlink", "link-membus", "gpu", "link-socket")
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star", "cross")


def render_cache_page(
    title: str,
    lines: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    plotlyjs: str = "inline",
) -> str:
    """The page. lines: paragraphs above the picture; rows: policy, capacity, hit_rate and more, in
    the order in which they are listed. All text is escaped. plotlyjs: see `simulator.results.page`.
    """
    palette = palettes()
    parts = {
        "TITLE": html.escape(title),
        "LINES": "\n".join(f"<p>{html.escape(line)}</p>" for line in lines),
        "TABLE": _table(rows),
        "LIBRARY": library_tag(plotlyjs),
        "FIGURE": script_json({"figure": hit_figure(rows), "palettes": palette}),
        "SCRIPT": _SCRIPT.replace("@COLOURED@", COLOURED),
    }
    for theme in ("light", "dark"):
        for colour in ("page", "text", "frame"):
            parts[f"{theme}_{colour}".upper()] = palette[theme][colour]
    # In one pass, so that nothing put in is read again.
    return re.sub("@([A-Z_]+)@", lambda slot: parts[slot[1]], _PAGE)


def hit_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Hit rate over capacity, a line for each policy; colours by name."""
    data: list[dict[str, Any]] = []
    for at, policy in enumerate(dict.fromkeys(row["policy"] for row in rows)):
        of = [row for row in rows if row["policy"] == policy]
        colour = f"@{_COLOURS[at % len(_COLOURS)]}"
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": html.escape(policy),
                "x": [row["capacity"] for row in of],
                "y": [row["hit_rate"] for row in of],
                "line": {"color": colour, "width": 2},
                "marker": {
                    "color": colour,
                    "size": 8,
                    "symbol": _SYMBOLS[at % len(_SYMBOLS)],
                },
                "hovertemplate": "capacity %{x}: %{y:.2%}",
            }
        )
    axis = {"gridcolor": "@frame", "zeroline": False, "automargin": True, "linecolor": "@frame"}
    capacities = list(dict.fromkeys(row["capacity"] for row in rows))
    ticks = {"tickvals": capacities} if len(capacities) <= MAX_TICKS else {}
    layout = {
        "height": 420,
        "margin": {"l": 10, "r": 10, "t": 40, "b": 10},
        "paper_bgcolor": "@page",
        "plot_bgcolor": "@page",
        "font": {"color": "@text"},
        "hovermode": "x unified",
        "hoverlabel": {"bgcolor": "@page"},
        "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom"},
        "showlegend": True,
        "xaxis": {**axis, "title": {"text": "experts per layer that a cache holds"}, **ticks},
        "yaxis": {**axis, "title": {"text": "hit rate"}, "tickformat": ".0%", "range": [0, 1]},
    }
    return {"data": data, "layout": layout}


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.4f}"
        return f"{value:,}" if isinstance(value, int) else html.escape(str(value))

    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{shown(value)}</td>" for value in row.values()) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
