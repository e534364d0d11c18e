"""What the charts of a report share: a section, an axis, bars, lines, a heat map, a table.

Colours are names of `simulator.results.colours`; titles and labels are escaped here.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.results.colours import HEAT_STEPS, Figure, marked

Floats = npt.NDArray[np.float64]


class Chart(NamedTuple):
    """A figure with the name of its element; kind: "plot", "cluster" (the picture of one) or
    "timeline" (drawn from columns); label: what it shows, for those who cannot see it.
    """

    name: str
    label: str
    figure: Figure
    kind: str = "plot"


class Section(NamedTuple):
    """A part of the page. text: a plain sentence; charts are drawn after it, two side by side where
    there is room if `pair`; body: HTML after them, made by functions that escape; help: how to use
    a chart with a pointer, and by touch.
    """

    name: str
    heading: str
    text: str = ""
    charts: tuple[Chart, ...] = ()
    body: str = ""
    pair: bool = False
    help: tuple[str, str] = ("", "")


AXIS = {
    "zeroline": False,
    "gridcolor": "@frame",
    "linecolor": "@frame",
    "tickcolor": "@frame",
    "automargin": True,
}
HOVER = {
    "align": "left",
    "bgcolor": "@host",
    "bordercolor": "@frame",
    "font": {"color": "@text", "size": 12},
}


def layout(x: str, y: str, height: int, share: bool = False) -> Figure:
    """A layout with titled axes; share: y is a fraction, shown in percent."""
    return {
        "height": height,
        "xaxis": {**AXIS, "title": {"text": marked(x), "standoff": 8}, "showgrid": False},
        "yaxis": {
            **AXIS,
            "title": {"text": marked(y), "standoff": 8},
            **({"tickformat": ".2~%"} if share else {}),
        },
        "hovermode": "closest",
        "hoverlabel": HOVER,
        "paper_bgcolor": "@page",
        "plot_bgcolor": "@page",
        "font": {"color": "@text", "family": "system-ui, sans-serif", "size": 12},
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "traceorder": "normal",
        },
        "margin": {"l": 8, "r": 12, "t": 34, "b": 8},
        "uirevision": "kept",
        "barmode": "stack",
        "bargap": 0.15,
    }


def bars(
    name: str, x: Sequence[Any], y: Sequence[Any], colour: str, told: str, sideways: bool = False
) -> Figure:
    """Bars. told: the hover line, in plotly's terms (%{x}, %{y})."""
    return {
        "type": "bar",
        "name": marked(name),
        "x": list(x),
        "y": list(y),
        "orientation": "h" if sideways else "v",
        "marker": {"color": colour, "line": {"width": 0}},
        "hovertemplate": told + "<extra>" + marked(name) + "</extra>",
    }


def line(
    name: str,
    x: Sequence[Any],
    y: Sequence[Any],
    colour: str,
    told: str,
    dash: str = "solid",
    shape: str = "linear",
) -> Figure:
    """A line; shape "hv" for steps."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": marked(name),
        "x": list(x),
        "y": list(y),
        "line": {"color": colour, "width": 2, "dash": dash, "shape": shape},
        "hovertemplate": told + "<extra>" + marked(name) + "</extra>",
    }


def heat(z: Sequence[Sequence[Any]], told: str, title: str, high: float | None) -> Figure:
    """A heat map from 0 to `high` with its bar above it; x, y are put in by the caller."""
    return {
        "type": "heatmap",
        "z": z,
        "zmin": 0.0,
        **({} if high is None else {"zmax": high}),
        "colorscale": [[step / (HEAT_STEPS - 1), f"@heat{step}"] for step in range(HEAT_STEPS)],
        "hovertemplate": told + "<extra></extra>",
        "hoverongaps": False,
        "colorbar": {
            "orientation": "h",
            "x": 0.0,
            "xanchor": "left",
            "len": 0.6,
            "y": 1.0,
            "yanchor": "bottom",
            "thickness": 10,
            "outlinewidth": 0,
            "nticks": 5,
            "title": {"text": marked(title), "side": "top"},
        },
    }


def beside_bar(figure: Figure, x: str) -> None:
    """Put the title of x below its numbers: beside a colour bar plotly puts it among them."""
    layout_of = figure["layout"]
    del layout_of["xaxis"]["title"]
    layout_of["xaxis"]["automargin"] = False
    layout_of["annotations"] = [
        {
            "text": marked(x),
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
    layout_of["margin"] |= {"t": 70, "b": 46}


def rounded(values: npt.NDArray[Any], digits: int = 4) -> list[Any]:
    """Values as a list of numbers of few digits, NaN as None: shorter in the page."""
    kept = [float(f"{value:.{digits}g}") for value in np.ravel(values)]
    flat = [None if value != value else value for value in kept]
    if values.ndim == 1:
        return flat
    width = values.shape[1]
    return [flat[at : at + width] for at in range(0, len(flat), width)]


def time_unit(longest_s: float) -> tuple[float, str]:
    """Units per second, and the name of the unit, that suit times up to `longest_s`."""
    for scale, unit in ((1.0, "s"), (1e3, "ms")):
        if longest_s * scale >= 1.0:
            return scale, unit
    return 1e6, "us"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """An HTML table; the first `left` columns are set left, the others right."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=left' if at < left else ''}>{html.escape(cell)}</{tag}>"
            for at, cell in enumerate(row)
        )

    head = f"<thead><tr>{cells(header, 'th')}</tr></thead>" if header else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="table"><table>{head}<tbody>{body}</tbody></table></div>'
