"""One self-contained HTML file around a figure: readable wide and narrow, light and dark."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from simulator.errors import InputError
from simulator.results.colours import Figure, palettes
from simulator.spec.units import did_you_mean

LIBRARY = "plotly.min.js"
PLOTLYJS = ("inline", "cdn", "directory")

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>@TITLE@</title>
<style>
:root { --page: @LIGHT_PAGE@; --text: @LIGHT_TEXT@; --quiet: @LIGHT_QUIET@; }
@media (prefers-color-scheme: dark) {
  :root { --page: @DARK_PAGE@; --text: @DARK_TEXT@; --quiet: @DARK_QUIET@; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(0.6rem, 2vw, 2rem); max-width: 1800px;
  background: var(--page); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.35rem; overflow-wrap: anywhere; }
p { margin: 0.25rem 0; overflow-wrap: anywhere; }
p.figures { font-variant-numeric: tabular-nums; }
p.quiet { color: var(--quiet); font-size: 0.87rem; }
#scroll { overflow-x: auto; margin-top: 0.6rem; }
</style>
@LIBRARY@
</head>
<body>
<h1>@HEADING@</h1>
@LINES@
<div id="scroll"><div id="picture"></div></div>
<p class="quiet" id="help"></p>
<noscript><p>The picture needs JavaScript.</p></noscript>
<script type="application/json" id="figure">@FIGURE@</script>
<script>
@SCRIPT@
</script>
</body>
</html>
"""

# JavaScript that turns the names of colours in a figure into those of a theme.
COLOURED = """// Colours are names, "@gpu", of which each theme has its own.
function coloured(value, key, palette) {
  if (Array.isArray(value)) return value.map((inner) => coloured(inner, key, palette));
  if (value !== null && typeof value === "object") {
    const pairs = Object.entries(value).map(([k, v]) => [k, coloured(v, k, palette)]);
    return Object.fromEntries(pairs);
  }
  const named = typeof value === "string" && value.startsWith("@") && key.includes("color");
  return named ? palette[value.slice(1)] : value;
}
"""

# JavaScript that gives the picture of a cluster its height, and its markers their sizes.
PICTURE = """function pictureHeight(picture, figure) {
  const meta = figure.layout.meta;
  const narrow = picture.clientWidth < 600;
  const legend = figure.data.filter((trace) => trace.showlegend !== false).length;
  const entries = narrow ? legend * 20 : 60;
  return Math.round(meta.rows * (narrow ? 46 : 62) + entries + (meta.scales ? 70 : 10));
}

// Markers grow with the room that a column has.
function fit(picture, anew = false) {
  const area = picture.querySelector(".nsewdrag");
  if (!area) return;
  const box = area.getBoundingClientRect();
  const [x, y] = [picture.layout.xaxis.range, picture.layout.yaxis.range];
  const row = box.height / Math.abs(y[1] - y[0]);
  const column = Math.min(box.width / Math.abs(x[1] - x[0]), 0.8 * row);
  if (!anew && Math.abs(column - picture.column) < 0.2) return;
  picture.column = column;
  const at = [], sizes = [], modes = [], fonts = [];
  picture.data.forEach((trace, index) => {
    if (!trace.meta.share) return;
    const size = Math.max(4, Math.min(30, Math.round(column * trace.meta.share)));
    at.push(index);
    sizes.push(size);
    const longest = Math.max(2, ...(trace.text || []).map((label) => label.length));
    const font = Math.min(size * 0.48, size * 1.35 / longest);
    modes.push(trace.text && font >= 6 ? "markers+text" : "markers");
    fonts.push(Math.max(6, font));
  });
  if (at.length) {
    Plotly.restyle(picture, { "marker.size": sizes, mode: modes, "textfont.size": fonts }, at);
  }
}
"""

_SCRIPT = """"use strict";
@COLOURED@
@PICTURE@
const { figure, palettes, name } = JSON.parse(document.getElementById("figure").textContent);
const picture = document.getElementById("picture");
const meta = figure.layout.meta;
const dark = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse)").matches;

// Hosts that are too many for the screen are reached by scrolling.
picture.style.minWidth = Math.min(meta.columns * 14, 14000) + "px";

function drawn() {
  const painted = coloured(figure, "", palettes[dark.matches ? "dark" : "light"]);
  painted.layout.height = pictureHeight(picture, figure);
  painted.layout.dragmode = touch ? false : "pan";
  if (picture.layout) {
    painted.layout.xaxis.range = picture.layout.xaxis.range;
    painted.layout.yaxis.range = picture.layout.yaxis.range;
    picture.data.forEach((trace, at) => {
      if (trace.visible !== undefined) painted.data[at].visible = trace.visible;
    });
  }
  return painted;
}

const config = {
  responsive: true, displaylogo: false, scrollZoom: !touch,
  // Named one by one: nothing that would send the picture anywhere.
  modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
  toImageButtonOptions: { filename: name, scale: 2 },
};

async function draw() {
  const { data, layout } = drawn();
  await Plotly.react(picture, data, layout, config);
  fit(picture, true);
}

const scroll = document.getElementById("scroll");
document.getElementById("help").textContent = (touch
  ? "Tap a node or a link for what it is. Tap an entry of the legend to hide its kind."
  : "Point at a node or a link for what it is. Wheel: zoom; drag: move; double click: back. "
    + "Click an entry of the legend to hide its kind.")
  + (scroll.scrollWidth > scroll.clientWidth ? " The picture goes on to the right: scroll." : "");
draw().then(() => {
  picture.on("plotly_relayout", () => fit(picture));
  picture.dataset.ready = "true";
});
dark.addEventListener("change", draw);
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width) { width = innerWidth; draw(); }
});
"""


def render_page(
    title: str, lines: Sequence[tuple[str, str]], figure: Figure, plotlyjs: str = "inline"
) -> str:
    """The page. lines: (CSS class, text) of paragraphs above the figure; all text is escaped.

    plotlyjs: "inline" puts plotly's library (5 MB) into the page, "cdn" has it loaded from the
    network, "directory" from the file LIBRARY beside the page (see `library`).
    """
    palette = palettes()
    data = {"figure": figure, "palettes": palette, "name": _file_stem(title)}
    note = figure["layout"]["meta"]["note"]
    paragraphs = [*lines, *([("quiet", note)] if note else [])]
    parts = {
        "TITLE": html.escape(title),
        "HEADING": html.escape(title),
        "LINES": "\n".join(
            f'<p class="{html.escape(kind)}">{html.escape(text)}</p>' for kind, text in paragraphs
        ),
        "LIBRARY": library_tag(plotlyjs),
        "FIGURE": script_json(data),
        "SCRIPT": _SCRIPT.replace("@COLOURED@", COLOURED).replace("@PICTURE@", PICTURE),
    }
    for theme in ("light", "dark"):
        for colour in ("page", "text", "quiet"):
            parts[f"{theme}_{colour}".upper()] = palette[theme][colour]
    # In one pass, so that nothing put in is read again.
    return re.sub("@([A-Z_]+)@", lambda slot: parts[slot[1]], _PAGE)


def check_plotlyjs(given: str, name: str = "plotlyjs") -> None:
    """Raise InputError (that begins with `name`) for what is none of PLOTLYJS."""
    if given not in PLOTLYJS:
        hint = did_you_mean(given, list(PLOTLYJS))
        raise InputError(f"{name}: no {given!r}{hint}; write {', '.join(PLOTLYJS)}")


def library() -> str:
    """The JavaScript of plotly."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def write_page(path: Path, page: str, plotlyjs: str = "inline") -> None:
    """Write a page to a file that must not exist, and with "directory" LIBRARY beside it.

    A LIBRARY that is there already is used if it is the same one. Raises InputError; nothing is
    left then of what was begun.
    """
    beside = path.parent / LIBRARY
    code = library() if plotlyjs == "directory" else ""
    new = plotlyjs == "directory" and not beside.exists()
    if plotlyjs == "directory" and not new and not _holds(beside, code):
        raise InputError(f"{beside}: is there already and another version; write elsewhere")
    _write(path, page)
    if new:
        try:
            _write(beside, code)
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _write(path: Path, text: str) -> None:
    try:
        stream = path.open("x", encoding="utf-8", newline="\n")
    except FileExistsError:
        raise InputError(f"{path}: exists already; remove it or write another file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with stream:
            stream.write(text)
    except BaseException as error:
        with suppress(OSError):
            path.unlink()
        if isinstance(error, OSError):
            raise InputError(f"{path}: cannot be written: {error.strerror}") from None
        raise


def library_tag(plotlyjs: str) -> str:
    """The script element that brings plotly: one of PLOTLYJS."""
    if plotlyjs == "directory":
        return f'<script src="{LIBRARY}" charset="utf-8"></script>'
    code = library()
    if plotlyjs == "inline":
        return f'<script charset="utf-8">{code}</script>'
    from plotly.offline import get_plotlyjs_version

    # The browser refuses the file if it is not the one that the figure was made for.
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    address = f"https://cdn.plot.ly/plotly-{get_plotlyjs_version()}.min.js"
    return (
        f'<script src="{address}" integrity="sha256-{digest}" crossorigin="anonymous" '
        'charset="utf-8"></script>'
    )


def script_json(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _file_stem(title: str) -> str:
    kept = "".join(
        sign if sign.isascii() and (sign.isalnum() or sign in "-_") else "-" for sign in title
    )
    return kept[:60].strip("-") or "cluster"
