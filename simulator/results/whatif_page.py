"""A what-if study as one HTML page: the answer, pictures of the points, the table."""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from simulator.results.colours import HEAT_STEPS, Figure, marked, palettes
from simulator.results.page import COLOURED, library_tag, script_json


class Dimension(NamedTuple):
    """One column of points: a name, a value for each point (None: none); `labels`: what the values
    0, 1, ... stand for, empty for plain numbers; unit: in the SI, empty for none, "share" for
    what is shown in percent.
    """

    name: str
    values: Sequence[float | None]
    labels: Sequence[str] = ()
    unit: str = ""

    @property
    def title(self) -> str:
        """The name with its unit."""
        told = self.unit not in ("", "share")
        return marked(self.name) + (f" ({marked(self.unit)})" if told else "")

    @property
    def ticks(self) -> str:
        """How plotly is to write its values."""
        return ".2~%" if self.unit == "share" else ".4~s"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>@TITLE@</title>
<style>
:root { --page: @LIGHT_PAGE@; --text: @LIGHT_TEXT@; --frame: @LIGHT_FRAME@;
  --quiet: @LIGHT_QUIET@; }
@media (prefers-color-scheme: dark) {
  :root { --page: @DARK_PAGE@; --text: @DARK_TEXT@; --frame: @DARK_FRAME@;
    --quiet: @DARK_QUIET@; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(0.6rem, 2vw, 2rem); max-width: 1200px;
  background: var(--page); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.35rem; overflow-wrap: anywhere; }
h2 { margin: 1.4rem 0 0.2rem; font-size: 1.05rem; }
p { margin: 0.4rem 0; overflow-wrap: anywhere; }
p.question { font-style: italic; }
p.quiet { color: var(--quiet); font-size: 0.87rem; }
pre { overflow-x: auto; font-size: 0.85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.87rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.15rem 0.7rem 0.15rem 0; text-align: left;
  border-bottom: 1px solid var(--frame); }
th, td { white-space: nowrap; }
th.right, td.right { text-align: right; }
td:last-child:not(.right) { white-space: normal; min-width: 18rem; }
@media (max-width: 500px) { th, td { padding-inline: 0 0.5rem; } table { font-size: 0.8rem; } }
</style>
@LIBRARY@
</head>
<body>
<h1>@TITLE@</h1>
<p class="question">@QUESTION@</p>
<p id="answer">@ANSWER@</p>
@PICTURES@
<noscript><p>The pictures need JavaScript.</p></noscript>
<h2>All points</h2>
<div class="scroll">@TABLE@</div>
@NOTES@
<h2>To run it again</h2>
<pre>@COMMAND@</pre>
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
  responsive: true, displaylogo: false, modeBarButtons: [["toImage"]],
};
async function draw() {
  for (const [at, figure] of figures.entries()) {
    const { data, layout } = coloured(figure, "", palettes[dark.matches ? "dark" : "light"]);
    layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
    await Plotly.react(document.getElementById("picture" + at), data, layout, config);
  }
}
draw().then(() => { document.body.dataset.ready = "true"; });
dark.addEventListener("change", draw);
"""

_COLOUR_STEPS = [[step / (HEAT_STEPS - 1), f"@heat{step}"] for step in range(HEAT_STEPS)]
_LABEL = 24  # letters of a value that are shown
_LETTER_PX = 5.5
_COLUMN_PX = 110  # below this the names of neighbouring axes run into each other


def render_whatif_page(
    title: str,
    question: str,
    answer: str,
    pictures: Sequence[tuple[str, str, Figure]],
    table: tuple[Sequence[str], Sequence[Sequence[str]], Collection[int]],
    notes: Sequence[str],
    command: str,
    plotlyjs: str = "inline",
) -> str:
    """The page. pictures: (heading, how to read it, figure); table: a header, rows, and the
    columns that are set flush right. All text is escaped. plotlyjs: see `simulator.results.page`.
    """
    palette = palettes()
    shown = "\n".join(
        f'<h2>{html.escape(heading)}</h2>\n<p class="quiet">{html.escape(note)}</p>\n'
        f'<div class="scroll"><div id="picture{at}"'
        f' style="min-width:{int(figure["layout"].get("meta", {}).get("width", 0))}px"></div></div>'
        for at, (heading, note, figure) in enumerate(pictures)
    )
    parts = {
        "TITLE": html.escape(title),
        "QUESTION": html.escape(question),
        "ANSWER": html.escape(answer),
        "PICTURES": shown,
        "TABLE": _table(*table),
        "NOTES": "\n".join(f'<p class="quiet">{html.escape(note)}</p>' for note in notes),
        "COMMAND": html.escape(command),
        "LIBRARY": library_tag(plotlyjs),
        "FIGURES": script_json({"figures": [f for _, _, f in pictures], "palettes": palette}),
        "SCRIPT": _SCRIPT.replace("@COLOURED@", COLOURED),
    }
    for theme in ("light", "dark"):
        for colour in ("page", "text", "frame", "quiet"):
            parts[f"{theme}_{colour}".upper()] = palette[theme][colour]
    # In one pass, so that nothing put in is read again.
    return re.sub("@([A-Z_]+)@", lambda slot: parts[slot[1]], _PAGE)


def parallel_figure(dimensions: Sequence[Dimension], colour: Dimension | None) -> Figure:
    """Parallel coordinates: a line for each point that has all values; `colour` colours them."""
    count = len(dimensions[0].values)
    whole = [n for n in range(count) if all(d.values[n] is not None for d in dimensions)]
    drawn = []
    for dimension in dimensions:
        one: dict[str, Any] = {
            "label": dimension.title,
            "values": [dimension.values[n] for n in whole],
        }
        if dimension.labels:
            one["tickvals"] = list(range(len(dimension.labels)))
            one["ticktext"] = [marked(label, _LABEL) for label in dimension.labels]
            one["range"] = [-0.2, len(dimension.labels) - 0.8]
        else:
            one["tickformat"] = dimension.ticks
        drawn.append(one)
    line: dict[str, Any] = {"color": "@link-network"}
    if colour is not None:
        line = {
            "color": [colour.values[n] for n in whole],
            "colorscale": _COLOUR_STEPS,
            "showscale": True,
            "colorbar": {
                "title": {"text": colour.title, "side": "right"},
                "thickness": 12,
                "tickformat": colour.ticks,
            },
        }
    data = {
        "type": "parcoords",
        "dimensions": drawn,
        "line": line,
        "labelfont": {"color": "@text", "size": 12},
        "tickfont": {"color": "@text", "size": 11},
        "rangefont": {"color": "@quiet", "size": 10},
    }
    widest = min(max(map(len, dimensions[0].labels), default=0), _LABEL)
    layout = _layout(height=380) | {
        "margin": {"l": 50 + round(_LETTER_PX * widest), "r": 60, "t": 50, "b": 30},
        "meta": {"width": _COLUMN_PX * len(drawn)},
    }
    return {"data": [data], "layout": layout}


def front_figure(
    x: Dimension, y: Dimension, names: Sequence[str], kept: Sequence[bool], best: Sequence[bool]
) -> Figure:
    """Two objectives against each other: the Pareto front, the other points, those that miss a
    constraint.
    """
    groups = {
        "Pareto front": [n for n, on in enumerate(best) if on],
        "beaten": [n for n, on in enumerate(best) if not on and kept[n]],
        "misses a constraint": [n for n, on in enumerate(kept) if not on],
    }
    looks = {
        "Pareto front": ("@gpu", "star", 13),
        "beaten": ("@link-network", "circle", 8),
        "misses a constraint": ("@quiet", "x", 7),
    }
    data = []
    for name, members in groups.items():
        there = [n for n in members if x.values[n] is not None and y.values[n] is not None]
        if not there:
            continue
        if name == "Pareto front":
            there.sort(key=lambda n: (x.values[n] or 0.0, y.values[n] or 0.0))
        colour, symbol, size = looks[name]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if name == "Pareto front" else "markers",
                "name": name,
                "x": [x.values[n] for n in there],
                "y": [y.values[n] for n in there],
                "text": [marked(names[n], 120) for n in there],
                "hovertemplate": "%{text}<br>%{x}, %{y}<extra></extra>",
                "line": {"color": colour, "width": 1, "dash": "dot"},
                "marker": {"color": colour, "symbol": symbol, "size": size},
            }
        )
    layout = _layout(height=420) | {"showlegend": True}
    layout["xaxis"] = _axis(x.title) | {"tickformat": x.ticks}
    layout["yaxis"] = _axis(y.title) | {"tickformat": y.ticks}
    return {"data": data, "layout": layout}


def share_figure(axes: Sequence[str], shares: Mapping[str, Sequence[float]]) -> Figure:
    """Bars: the share of the variance of each metric that each axis explains."""
    colours = ("@link-network", "@link-pcie", "@link-nvlink", "@link-membus")
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": marked(metric),
            "y": [marked(axis, 30) for axis in axes],
            "x": list(values),
            "marker": {"color": colours[at % len(colours)]},
            "hovertemplate": "%{y}: %{x:.1%}",
        }
        for at, (metric, values) in enumerate(shares.items())
    ]
    layout = _layout(height=120 + 34 * len(axes) * max(1, len(data) // 2)) | {"showlegend": True}
    share = {"tickformat": ".0%", "range": [0, 1]}
    layout["xaxis"] = _axis("share of the variance") | share
    layout["yaxis"] = _axis("") | {"autorange": "reversed", "type": "category"}
    return {"data": data, "layout": layout}


def _layout(height: int) -> dict[str, Any]:
    return {
        "height": height,
        "margin": {"l": 10, "r": 10, "t": 40, "b": 10},
        "paper_bgcolor": "@page",
        "plot_bgcolor": "@page",
        "font": {"color": "@text"},
        "hoverlabel": {"bgcolor": "@page"},
        "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom"},
    }


def _axis(title: str) -> dict[str, Any]:
    line = {"gridcolor": "@frame", "zeroline": False, "automargin": True, "linecolor": "@frame"}
    return {**line, "title": {"text": title}}


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        told = (
            f"<{tag}{' class=right' if at in right else ''}>{html.escape(cell)}</{tag}>"
            for at, cell in enumerate(cells)
        )
        return f"<tr>{''.join(told)}</tr>\n"

    body = "".join(line("td", row) for row in rows)
    return f"<table>\n{line('th', header)}{body}</table>"
