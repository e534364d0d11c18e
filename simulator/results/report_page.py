"""The page of a report: sections under each other, in the theme of the system or one chosen."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from simulator.results.colours import palettes
from simulator.results.page import library_tag, script_json
from simulator.results.report_charts import Chart, Section
from simulator.results.report_script import script

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
@MARK@
<link rel="icon" href="data:,">
<title>@TITLE@</title>
<style>
@COLOURS@
* { box-sizing: border-box; }
html { scroll-padding-top: 3.2rem; }
body { margin: 0 auto; padding: 0 clamp(0.7rem, 2vw, 2rem) 3rem; max-width: 1760px;
  background: var(--page); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
header { padding: 1rem 0 0.2rem; }
h1 { margin: 0; font-size: 1.5rem; overflow-wrap: anywhere; line-height: 1.2; }
h2 { margin: 2.2rem 0 0.2rem; font-size: 1.15rem; }
p { margin: 0.25rem 0; overflow-wrap: anywhere; }
p.about, p.quiet { color: var(--quiet); font-size: 0.9rem; max-width: 72rem; }
p.limit { font-size: 1.12rem; margin: 0.7rem 0; padding: 0.6rem 0.9rem; background: var(--host);
  border-left: 4px solid var(--accent); border-radius: 4px; }
nav { position: sticky; top: 0; z-index: 5; display: flex; gap: 0.3rem 1rem; align-items: center;
  padding: 0.5rem 0; background: var(--page); border-bottom: 1px solid var(--frame);
  font-size: 0.86rem; }
nav .links { display: flex; gap: 0.1rem 0.9rem; overflow-x: auto; white-space: nowrap;
  scrollbar-width: thin; }
@media (min-width: 900px) { nav .links { flex-wrap: wrap; } }
nav a { color: var(--text); text-decoration: none; padding: 0.15rem 0; }
nav a:hover { text-decoration: underline; }
.themes { margin-left: auto; display: flex; flex: none; }
button { font: inherit; font-size: 0.82rem; color: var(--text); background: var(--host);
  border: 1px solid var(--frame); padding: 0.15rem 0.55rem; cursor: pointer; border-radius: 4px; }
.themes button { border-radius: 0; margin-left: -1px; }
.themes button:first-child { border-radius: 4px 0 0 4px; }
.themes button:last-child { border-radius: 0 4px 4px 0; }
button[aria-pressed=true] { background: var(--text); color: var(--page); }
button:focus-visible, a:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); }
.cards { display: grid; gap: 0.6rem; margin: 0.8rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 10.5rem), 1fr)); }
.cards div { background: var(--host); border: 1px solid var(--frame); border-radius: 6px;
  padding: 0.5rem 0.7rem; min-width: 0; }
.cards b { display: block; font-size: 1.2rem; font-variant-numeric: tabular-nums; }
.cards span { color: var(--quiet); font-size: 0.82rem; overflow-wrap: anywhere; display: block;
  line-height: 1.3; }
.warning { border: 2px solid var(--warn); border-radius: 6px; padding: 0.4rem 0.8rem;
  margin: 0.7rem 0; }
ul { margin: 0.3rem 0; padding-left: 1.2rem; }
li { overflow-wrap: anywhere; }
ul.notes { color: var(--quiet); font-size: 0.9rem; }
section { min-width: 0; }
.pair { display: grid; gap: 0.4rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 33rem), 1fr)); }
figure { margin: 0.3rem 0; min-width: 0; position: relative; }
.scroll { overflow-x: auto; }
.table { overflow-x: auto; margin: 0.4rem 0; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.18rem 0.9rem 0.18rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--frame); }
th { font-weight: 600; vertical-align: bottom; }
.left { text-align: left; }
td.left { white-space: normal; min-width: 9rem; }
.tip { position: absolute; z-index: 4; pointer-events: none; white-space: pre-line;
  background: var(--host); border: 1px solid var(--frame); border-radius: 4px; font-size: 0.8rem;
  padding: 0.25rem 0.5rem; max-width: min(22rem, 90vw); box-shadow: 0 1px 5px #0004; }
details { margin: 0.5rem 0; }
summary { cursor: pointer; }
.copied { position: relative; }
.copied button { position: absolute; top: 0.4rem; right: 0.4rem; }
pre { margin: 0.4rem 0; padding: 0.7rem 4.5rem 0.7rem 0.8rem; background: var(--host);
  border: 1px solid var(--frame); border-radius: 6px; overflow: auto; max-height: 32rem;
  font: 0.82rem/1.4 ui-monospace, monospace; }
pre[id^=command] { white-space: pre-wrap; overflow-wrap: anywhere; }
@media print { nav { display: none; } }
@media (max-width: 500px) { th, td { padding-inline: 0 0.5rem; } table { font-size: 0.8rem; } }
</style>
@LIBRARY@
</head>
<body>
<header>
<h1>@TITLE@</h1>
@LINES@
</header>
<nav><div class="links">@LINKS@</div>
<div class="themes" role="group" aria-label="colours">@SWITCHES@</div></nav>
<main>
@HEADLINE@
@SECTIONS@
</main>
<noscript><p>The pictures need JavaScript.</p></noscript>
<script type="application/json" id="charts">@CHARTS@</script>
<script>
@SCRIPT@
</script>
</body>
</html>
"""

_VARIABLES = {
    "page": "page",
    "text": "text",
    "quiet": "quiet",
    "host": "host",
    "frame": "frame",
    "accent": "link-network",
    "warn": "link-pcie",
}


def render(
    title: str,
    lines: Sequence[tuple[str, str]],
    headline: str,
    sections: Sequence[Section],
    plotlyjs: str,
    kind: str = "report",
) -> str:
    """The page. lines: (CSS class, text) of paragraphs under the title; headline: HTML.

    kind: by which `mark` knows it again; plotlyjs: see `simulator.results.page.render_page`.
    """
    charts = {
        chart.name: {"kind": chart.kind, "figure": chart.figure}
        for section in sections
        for chart in section.charts
    }
    parts = {
        "MARK": mark(kind),
        "TITLE": html.escape(title),
        "COLOURS": _colours(),
        "LINES": "\n".join(
            f'<p class="{html.escape(kind)}">{html.escape(text)}</p>' for kind, text in lines
        ),
        "LINKS": "".join(
            f'<a href="#to-{section.name}">{html.escape(section.heading)}</a>'
            for section in sections
        ),
        "SWITCHES": "".join(
            f'<button type="button" data-set-theme="{theme}" aria-pressed="false">{theme}</button>'
            for theme in ("auto", "light", "dark")
        ),
        "HEADLINE": headline,
        "SECTIONS": "\n".join(_section(section) for section in sections),
        "LIBRARY": library_tag(plotlyjs),
        "CHARTS": script_json({"charts": charts, "palettes": palettes()}),
        "SCRIPT": script(),
    }
    # In one pass, so that nothing put in is read again.
    return re.sub("@([A-Z]+)@", lambda slot: parts[slot[1]], _PAGE)


def mark(kind: str) -> str:
    """What stands in the head of a page of this kind."""
    return f'<meta name="generator" content="moe-cluster-simulator {kind}">'


def _colours() -> str:
    """The colours of both themes: that of the system, unless another is chosen."""
    found = palettes()

    def rules(theme: str) -> str:
        return " ".join(f"--{name}: {found[theme][of]};" for name, of in _VARIABLES.items())

    return (
        f":root {{ {rules('light')} }}\n"
        "@media (prefers-color-scheme: dark) { :root:not([data-theme=light]) "
        f"{{ {rules('dark')} }} }}\n"
        f":root[data-theme=dark] {{ {rules('dark')} color-scheme: dark; }}\n"
        ":root[data-theme=light] { color-scheme: light; }"
    )


def _section(section: Section) -> str:
    text = f'<p class="quiet">{html.escape(section.text)}</p>' if section.text else ""
    if section.help[0]:
        pointer, touch = (html.escape(words, quote=True) for words in section.help)
        text += f'<p class="quiet" data-touch="{touch}">{pointer}</p>'
    charts = "\n".join(_chart(chart) for chart in section.charts)
    kind = ' class="pair"' if section.pair else ""
    # A table beside a single chart, and below several.
    beside = section.pair and len(section.charts) <= 1
    inside = f"<div{kind}>\n{charts}\n{section.body if beside else ''}\n</div>"
    inside += "" if beside else f"\n{section.body}"
    return (
        f'<section id="to-{section.name}"><h2>{html.escape(section.heading)}</h2>\n{text}\n'
        f"{inside}</section>"
    )


def _chart(chart: Chart) -> str:
    # Room is kept for what is drawn when it comes into sight.
    height = chart.figure.get("layout", {}).get("height", 400)
    label = html.escape(chart.label, quote=True)
    return (
        f'<figure class="scroll" role="img" aria-label="{label}">'
        f'<div id="{chart.name}" style="min-height: {height}px"></div></figure>'
        if chart.kind == "cluster"
        else f'<figure role="img" aria-label="{label}">'
        f'<div id="{chart.name}" style="min-height: {height}px"></div></figure>'
    )
