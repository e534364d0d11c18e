"""Figures of studies: one look, and their export as PDF and PNG.

A figure is plain plotly data (`{"data": [...], "layout": {...}}`). Export takes kaleido and a
Chromium of the system (the extra `figures`); without them figures are written as HTML, and the
caller is told so.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from simulator.errors import InputError
from simulator.results.colours import THEMES, Figure, marked

FORMATS = ("pdf", "png")
PATIENCE_S = 120.0  # for the browser to start and draw all figures

_LIGHT = THEMES["light"]
# Okabe and Ito's colours by what they show; patterns tell them apart in grey too.
COLOURS = {
    "published": _LIGHT["cpu"],
    "form": _LIGHT["leaf"],
    "first": _LIGHT["spine"],
    "second": _LIGHT["gpu"],
    "third": _LIGHT["nvswitch"],
    "fourth": _LIGHT["pcie"],
}
PATTERNS = {"published": "", "form": "/", "first": "", "second": ".", "third": "x", "fourth": "-"}
DASHES = {
    "published": "dot",
    "form": "dash",
    "first": "solid",
    "second": "longdash",
    "third": "dashdot",
    "fourth": "longdashdot",
}
MARKERS = {
    "published": "diamond",
    "form": "x",
    "first": "circle",
    "second": "square",
    "third": "triangle-up",
    "fourth": "star",
}
WIDTH, HEIGHT, SCALE = 900, 480, 2
TOP, BOTTOM = 120, 90


class Panel(NamedTuple):
    """One set of axes: titles, and how y is scaled (`linear` or `log`)."""

    title: str
    x: str
    y: str
    scale: str = "linear"
    x_scale: str = "linear"


def bars(
    name: str, role: str, x: Sequence[str], y: Sequence[float | None], texts: Sequence[str] = ()
) -> dict[str, Any]:
    """A series of bars; role: one of COLOURS. texts: above the bars."""
    return {
        "type": "bar",
        "name": marked(name, 80),
        "x": list(x),
        "y": list(y),
        "text": list(texts) or None,
        "textposition": "outside",
        "textangle": 0,
        "textfont": {"size": 9},
        "cliponaxis": False,
        "marker": {
            "color": COLOURS[role],
            "pattern": {
                "shape": PATTERNS[role],
                "fgcolor": "#ffffff",
                "bgcolor": COLOURS[role],
                "fillmode": "overlay",
                "size": 6,
            },
            "line": {"color": _LIGHT["outline"], "width": 0.5},
        },
    }


def curve(
    name: str, role: str, x: Sequence[float], y: Sequence[float | None], panel: int
) -> dict[str, Any]:
    """A series of points joined by lines in a panel (from 1); the bars of that role are in the
    legend.
    """
    suffix = "" if panel == 1 else str(panel)
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": marked(name, 80),
        "showlegend": False,
        "x": list(x),
        "y": list(y),
        "xaxis": f"x{suffix}",
        "yaxis": f"y{suffix}",
        "line": {"color": COLOURS[role], "width": 2, "dash": DASHES[role]},
        "marker": {"color": COLOURS[role], "size": 8, "symbol": MARKERS[role]},
    }


def figure(
    title: str,
    panels: Sequence[Panel],
    data: Sequence[Mapping[str, Any]],
    note: str = "",
    wide_first: bool = False,
    height: int = HEIGHT,
) -> Figure:
    """A figure in the one look: its panels side by side, or below the first, which then has the
    whole width. note: one line below all.
    """
    inner = float(height - TOP - BOTTOM)
    layout: dict[str, Any] = {
        "title": {
            "text": marked(title, 120),
            "font": {"size": 16},
            "x": 0.01,
            "xanchor": "left",
            "y": 1.0 - 16.0 / height,
            "yanchor": "top",
        },
        "font": {"family": "DejaVu Sans, Arial, sans-serif", "size": 12, "color": _LIGHT["text"]},
        "paper_bgcolor": _LIGHT["page"],
        "plot_bgcolor": _LIGHT["page"],
        "width": WIDTH,
        "height": height,
        "margin": {"l": 70, "r": 20, "t": TOP, "b": BOTTOM},
        "uniformtext": {"minsize": 8, "mode": "show"},
        "barmode": "group",
        "bargap": 0.15,
        "bargroupgap": 0.06,
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.0 + 28.0 / inner,
            "yanchor": "bottom",
        },
        "annotations": [],
    }
    for index, (panel, at) in enumerate(zip(panels, _places(len(panels), wide_first), strict=True)):
        suffix = "" if index == 0 else str(index + 1)
        layout[f"xaxis{suffix}"] = {
            **_axis(panel.x, panel.x_scale, at[0]),
            "showgrid": False,
            "zeroline": False,
            "anchor": f"y{suffix}",
        }
        layout[f"yaxis{suffix}"] = {
            **_axis(panel.y, panel.scale, at[1]),
            "rangemode": "tozero" if panel.scale == "linear" else None,
            "anchor": f"x{suffix}",
        }
        if panel.title:
            layout["annotations"].append(_line(panel.title, at[0][0], at[1][1], "bottom", 13))
    if note:
        layout["annotations"].append(_line(note, 0.0, -62.0 / inner, "top", 10))
    return {"data": [dict(series) for series in data], "layout": layout}


Domain = tuple[float, float]


def _places(count: int, wide_first: bool) -> list[tuple[Domain, Domain]]:
    """Where each panel lies, x and y, in shares of the whole."""
    gap, rise = 0.09, 0.2
    below = count - 1 if wide_first and count > 1 else count
    width = (1.0 - gap * (below - 1)) / below
    tall = (1.0 - rise) / 2.0
    y = (0.0, tall) if below < count else (0.0, 1.0)
    first: list[tuple[Domain, Domain]] = [((0.0, 1.0), (1.0 - tall, 1.0))] * (count - below)
    lefts = [place * (width + gap) for place in range(below)]
    # Rounding may lead beyond 1.
    return first + [((left, min(left + width, 1.0)), y) for left in lefts]


def _axis(title: str, scale: str, domain: Domain) -> dict[str, Any]:
    found: dict[str, Any] = {
        "domain": list(domain),
        "title": {"text": marked(title, 80), "standoff": 6},
        "gridcolor": _LIGHT["tile"],
        "linecolor": _LIGHT["frame"],
        "zerolinecolor": _LIGHT["frame"],
        "showline": True,
        "ticks": "outside",
    }
    if scale == "log":
        ticks = [digit * 10.0**power for power in range(-6, 13) for digit in (1, 2, 5)]
        found |= {"type": "log", "tickvals": ticks, "ticktext": [f"{t:,.10g}" for t in ticks]}
    return found


def _line(text: str, x: float, y: float, anchor: str, points: int) -> dict[str, Any]:
    return {
        "text": marked(text, 200),
        "x": x,
        "y": y,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": anchor,
        "showarrow": False,
        "font": {"size": points},
    }


def write_figures(named: Mapping[str, Figure], folder: Path) -> str | None:
    """Write every figure as NAME.pdf and NAME.png into a folder that exists.

    Where kaleido or its browser are missing, or do not answer, as NAME.html instead; the line that
    says so is returned.
    """
    reason = _missing()
    if reason is None:
        try:
            _export(named, folder)
        except _NoExport as error:
            reason = str(error)
    if reason is None:
        return None
    for name in named:
        for suffix in FORMATS:
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)
    _as_html(named, folder)
    return f"figures were written as HTML, not as PDF and PNG: {reason}"


class _NoExport(Exception):
    """The browser did not draw; the text says why."""


def _missing() -> str | None:
    """What export needs and is not there."""
    try:
        from choreographer.browsers.chromium import Chromium
        from kaleido import Kaleido  # noqa: F401
    except ImportError:
        return "kaleido 1 or later is not installed (pip install 'moe-cluster-simulator[figures]')"
    path = Chromium.find_browser(skip_local=False)
    if not path or not Path(path).is_file():
        return "no Chromium was found (apt install chromium)"
    return None


def _export(named: Mapping[str, Figure], folder: Path) -> None:
    """Draw all figures in one browser; raises _NoExport."""
    from kaleido import Kaleido

    wanted = [
        {
            "fig": drawn,
            "path": str(folder / f"{name}.{suffix}"),
            "opts": {
                "format": suffix,
                "width": drawn["layout"]["width"],
                "height": drawn["layout"]["height"],
                "scale": SCALE if suffix == "png" else 1,
            },
        }
        for name, drawn in named.items()
        for suffix in FORMATS
    ]
    failed: list[str] = []

    async def draw() -> None:
        # Without mathjax=False the page waits for a network.
        async with Kaleido(mathjax=False) as kaleido:
            await kaleido.write_fig_from_object(wanted, cancel_on_error=True)

    def work() -> None:
        try:
            asyncio.run(asyncio.wait_for(draw(), PATIENCE_S))
        except Exception as error:
            failed.append(f"{type(error).__name__}: {error}".splitlines()[0])

    # In a thread of its own: whoever calls may have an event loop that runs.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE_S + 10.0)
    if thread.is_alive():
        failed.append("the browser does not answer")
    empty = [one["path"] for one in wanted if not _filled(Path(str(one["path"])))]
    if failed or empty:
        raise _NoExport(failed[0] if failed else f"{Path(str(empty[0])).name} was not drawn")


def _filled(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _as_html(named: Mapping[str, Figure], folder: Path) -> None:
    import plotly.graph_objects as go

    try:
        for name, drawn in named.items():
            go.Figure(drawn).write_html(folder / f"{name}.html", include_plotlyjs="directory")
    except OSError as error:
        raise InputError(f"{folder}: figures cannot be written: {error.strerror}") from error
