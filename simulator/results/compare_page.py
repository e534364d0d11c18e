"""A comparison as one HTML page: which is faster and why, then what both did side by side."""

from __future__ import annotations

import html
import shlex
from collections.abc import Callable, Sequence

from simulator.errors import InputError
from simulator.results import compare_charts, compare_serving, report_page
from simulator.results.compare import Comparison, Row
from simulator.results.compare_text import given, notes_of, sentences, told, words_of
from simulator.results.report import title_of
from simulator.results.report_charts import Section, table
from simulator.results.report_facts import command_of, copied
from simulator.results.report_read import Run, read_run

MOST_INPUTS = 200

_CARDS = {
    "run": (
        "throughput_tokens_per_s", "step_time_s.mean", "cost.usd_per_million_tokens",
        "cache_hit_rate", "overlap_achieved", "hottest_link_utilization", "energy.joules_per_step",
    ),
    "serving": (
        "latency.ttft_s.p99", "latency.tpot_s.p99", "latency.e2e_s.p99", "goodput_requests_per_s",
        "generated_tokens_per_s", "usd_per_1m_generated", "peak_kv_share",
    ),
    "trace": (
        "step_time_s.mean", "window_s", "busy.compute", "busy.communication", "overlap_achieved",
    ),
    "mixed": (
        "tokens_per_s", "step_time_s.mean", "tokens_per_step", "cost.usd_per_million_tokens",
    ),
}  # fmt: skip

Pair = tuple[Run, Run]
"""What of A and of B can be read."""


def render_comparison(found: Comparison, plotlyjs: str = "inline") -> str:
    """The page. plotlyjs: one of `simulator.results.page.PLOTLYJS`. All text is escaped."""
    faults = [*found.a.faults, *found.b.faults]
    runs: Pair | None = None
    if found.kind in ("run", "serving"):
        try:
            runs = read_run(found.a.path), read_run(found.b.path)
        except InputError as error:
            faults.append(str(error))
    sections = [*_charts(found, runs, faults), _figures(found), *_inputs(found), *_commands(runs)]
    for name, run in zip("AB", runs or (), strict=False):
        known = " ".join(faults)
        faults += [f"{name}: {fault}" for fault in run.faults if fault.split(":")[0] not in known]
    lines = [
        ("figures", f"{name}: {read.path} ({words_of(read.kind)})")
        for name, read in (("A", found.a), ("B", found.b))
    ]
    title = _title(found, runs)
    return report_page.render(
        title, lines, _headline(found, faults), sections, plotlyjs, kind="comparison"
    )


def _title(found: Comparison, runs: Pair | None) -> str:
    if runs is None:
        a, b = (read.path.resolve().name for read in (found.a, found.b))
    else:
        a, b = map(title_of, runs)
    return f"{a}: A and B" if a == b else f"A: {a}, B: {b}"


def _headline(found: Comparison, faults: Sequence[str]) -> str:
    """The answer, what explains it, and the figures that matter."""
    parts = []
    if faults:
        lines = "".join(f"<li>{html.escape(fault)}</li>" for fault in faults)
        parts.append(
            '<div class="warning"><p>Not all of this could be read; the rest is shown.</p>'
            f"<ul>{lines}</ul></div>"
        )
    first, *others = sentences(found) or ["Nothing that both have differs."]
    parts.append(f'<p class="limit">{html.escape(first)}</p>')
    parts += [f"<p>{html.escape(sentence)}</p>" for sentence in others]
    rows = {row.figure: row for row in found.rows}
    cards = [_card(rows[name]) for name in _CARDS[found.kind] if name in rows]
    parts.append(f'<div class="cards">{"".join(cards)}</div>')
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in notes_of(found))
    if notes:
        parts.append(f'<ul class="notes">{notes}</ul>')
    return "\n".join(parts)


def _card(row: Row) -> str:
    label, a, b, _, ratio = told(row)
    words = f"{label}, A → B" + ("" if row.ratio is None or row.same else f" ({ratio})")
    # A value and its unit stay on one line.
    values = f"{a} → {b}".replace(" ", "\N{NO-BREAK SPACE}").replace("→\N{NO-BREAK SPACE}", "→ ")
    return f"<div><b>{html.escape(values)}</b><span>{html.escape(words)}</span></div>"


def _charts(found: Comparison, runs: Pair | None, faults: list[str]) -> list[Section]:
    """The sections that A and B have something for."""
    makers: dict[str, Callable[[], Section | None]] = {
        "where the time goes": lambda: compare_charts.time_section(found),
    }
    if found.kind == "trace":
        makers["the kernels"] = lambda: compare_charts.names_section(found)
        makers["the ranks"] = lambda: compare_charts.ranks_section(found)
    elif runs is not None and found.kind == "serving":
        makers["latency"] = lambda: compare_serving.latency_section(runs)
        makers["over time"] = lambda: compare_serving.over_time_section(runs)
    elif runs is not None:
        makers["the kernels"] = lambda: compare_charts.kinds_section(runs)
        makers["the layers"] = lambda: compare_charts.layers_section(runs)
        makers["the links"] = lambda: compare_charts.links_section(found, runs)
        makers["the cache"] = lambda: compare_charts.cache_section(found, runs)
    makers["cost and energy"] = lambda: compare_charts.cost_section(found)
    sections = []
    for name, make in makers.items():
        try:
            section = make()
        except (InputError, KeyError, TypeError) as error:
            faults.append(f"{name}: left out, {error}")
            continue
        if section is not None:
            sections.append(section)
    return sections


def _figures(found: Comparison) -> Section:
    return Section("figures", "Figures", body=compare_charts.table_of(found.of("figures")))


def _inputs(found: Comparison) -> list[Section]:
    if found.a.input is None or found.b.input is None:
        return []
    rows = found.of("input")
    if not rows:
        return [Section("inputs", "Inputs", "A and B had the same.")]
    cells = [given(row) for row in rows[:MOST_INPUTS]]
    left = len(rows) - MOST_INPUTS
    text = "What differs in the resolved inputs and in the commands."
    text += f" {left:,} more are left out; compare --json has all." if left > 0 else ""
    return [
        Section("inputs", "Inputs that differ", text, body=table(("", "A", "B"), cells, left=3))
    ]


def _commands(runs: Pair | None) -> list[Section]:
    parts = []
    for name, run in zip("AB", runs or (), strict=False):
        command = command_of(run.result)
        if command:
            parts.append(f"<p>{name}</p>{copied(f'command-{name}', shlex.join(command))}")
    return [Section("commands", "Run them again", body="\n".join(parts))] if parts else []
