"""A comparison of two runs as sentences and tables of at most 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from simulator.results.as_written import as_written
from simulator.results.summary import (
    ABSENT,
    dollars,
    duration,
    joules,
    number,
    percent,
    size,
    watts,
)
from simulator.results.text import WIDTH, lines_of, wrapped

if TYPE_CHECKING:
    from simulator.results.compare import Comparison, Row

_LABEL = 34
_COLUMN = 12
_MOST_INPUTS = 30
_UNTOLD = 5e-4
"""A smaller change of a time is not put in words: its three digits are the same."""

_UNTOLD_COST = 5e-3
_CLOSE = 1e-2
"""Rates this close are called about the same."""

_NAMES = {
    "throughput_tokens_per_s": "tokens/s",
    "throughput_tokens_per_s_per_gpu": "tokens/s per GPU",
    "tokens_per_s": "tokens/s",
    "tokens_per_s_per_gpu": "tokens/s per GPU",
    "tokens_per_step": "tokens per step",
    "step_time_s.mean": "step, mean",
    "step_time_s.max": "step, longest",
    "gpus": "GPUs",
    "mfu": "MFU",
    "overlap_achieved": "communication under compute",
    "compute_utilization": "compute stream busy",
    "comm_utilization": "comm stream busy",
    "copy_utilization": "copy stream busy",
    "hottest_link_utilization": "busiest link",
    "load_imbalance.gpus": "rows, busiest GPU / mean",
    "load_imbalance.experts": "rows, busiest expert / mean",
    "energy.joules_per_step": "energy per step",
    "energy.joules_per_token": "energy of a token",
    "energy.power_w": "mean power",
    "cost.usd_per_million_tokens": "cost of 1M tokens",
    "cost.usd_per_hour": "cost of an hour",
    "cost.usd_per_year": "cost of a year",
    "usd_per_1m_tokens": "cost of 1M tokens, in and out",
    "usd_per_1m_generated": "cost of 1M generated tokens",
    "window_s": "first to last kernel",
    "busy.compute": "computing",
    "busy.communication": "communicating",
    "busy.copies": "copying",
    "mean_step_s": "step, mean",
    "mean_step_tokens": "tokens per step",
    "peak_kv_share": "KV cache, most used",
    "cache_hit_rate": "hits",
    "cache_late_hit_rate": "late hits",
    "cache_miss_rate": "misses",
    "cache_accesses": "accesses",
    "prefetch_accuracy": "prefetches used",
    "prefetch_recall": "accesses foreseen",
    "demand_bytes": "fetched on demand",
    "prefetch_bytes": "prefetched",
    "wasted_prefetch_bytes": "prefetched in vain",
}
_PARTS = {
    "compute": "compute",
    "exposed_communication": "exposed communication",
    "fetch_stall": "fetch stall",
    "peer_wait": "waiting for a peer",
    "exposed_copies": "exposed copies",
    "idle": "idle",
}
_SHARES = ("_rate", "_share", "_utilization", "_accuracy", "_recall", "_achieved", "mfu")
_TITLES = {
    "figures": "Figure",
    "breakdown": "Where a GPU's time goes, a step",
    "cache": "Expert cache",
    "links": "Links busy",
}


def shown(key: str, value: object) -> str:
    """A figure with the unit that its dotted key tells."""
    if value is None:
        return ABSENT
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    name, last = key.rpartition(".")[0] or key, key.rpartition(".")[2]
    if last.endswith(_SHARES) or key.startswith(("busy.", "breakdown.", "critical_")):
        return percent(value)
    if last.endswith("_per_s") or last.endswith("_per_gpu"):
        return number(value, 4)
    if last.endswith("_s") or name.endswith("_s") or name in ("queue", "breakdown_s"):
        return duration(value)
    if last.endswith("bytes"):
        return size(value)
    if last.startswith("joules"):
        return joules(value)
    if last == "power_w":
        return watts(value)
    if last.startswith("usd"):
        return dollars(value)
    return f"{value:,}" if isinstance(value, int) else number(value, 4)


def _signed(key: str, row: Row) -> str:
    """B - A: shares in percentage points."""
    change = row.difference
    if change is None:
        return ABSENT
    if row.same:
        return "="
    text = shown(key, abs(change))
    if text.endswith(" %"):
        text = f"{text[:-2]} pp"
    if text.startswith("<"):
        return text
    return f"{'+' if change > 0 else '-'}{text}"


def _ratio(row: Row) -> str:
    if row.same or row.ratio is None:
        return ABSENT
    return f"{number(row.ratio)} x"


def told(row: Row, key: str | None = None) -> tuple[str, str, str, str, str]:
    """A row in words: its name, A, B, B - A and B / A. key: tells the unit in place of the name."""
    key = key or _key(row)
    return _label(row), shown(key, row.a), shown(key, row.b), _signed(key, row), _ratio(row)


def _label(row: Row) -> str:
    if row.section == "breakdown":
        return _PARTS[row.figure.rpartition(".")[2]]
    if row.section == "links":
        kind = row.figure.removeprefix("links.").removesuffix(".mean_utilization")
        return f"{kind}, mean" if kind != row.figure else row.figure
    if row.figure.startswith("latency."):
        _, name, of = row.figure.split(".")
        return f"{name.removesuffix('_s').upper()}, {of}"
    return _NAMES.get(row.figure, row.figure.replace("_", " ").replace(".", ", "))


def _key(row: Row) -> str:
    """What tells the unit of a row."""
    return "busy.link" if row.section == "links" else row.figure


def render(found: Comparison) -> str:
    """What differs and why, then the tables."""
    lines = [
        f"A  {found.a.path} ({words_of(found.a.kind)})",
        f"B  {found.b.path} ({words_of(found.b.kind)})",
    ]
    sections = ["\n".join(lines)]
    sections += [wrapped(sentence, "") for sentence in sentences(found)]
    for section, title in _TITLES.items():
        rows = found.of(section)
        if rows:
            sections.append(_table(title, rows))
    if found.a.input is not None and found.b.input is not None:
        sections.append(_inputs(found.of("input")))
    for note in notes_of(found):
        sections.append(wrapped(note, "note: "))
    return "\n\n".join(sections) + "\n"


def notes_of(found: Comparison) -> list[str]:
    """What was said of traces when they were read: files that were cut off, and the like."""
    return [
        f"{name}: {note}"
        for name, read in (("A", found.a), ("B", found.b))
        if read.kind == "trace"
        for note in read.summary.get("notes", [])
    ]


def words_of(kind: str) -> str:
    """What a run of this kind is called."""
    return {"run": "simulated", "serving": "serving run", "trace": "recorded"}[kind]


def _table(title: str, rows: Sequence[Row]) -> str:
    header = "".join(f"{name:>{_COLUMN}}" for name in ("A", "B", "B - A", "B / A"))
    lines = [f"{title:<{_LABEL - 2}}{header}"]
    for row in rows:
        label, *cells = told(row)
        values = "".join(f"{cell:>{_COLUMN}}" for cell in cells)
        if len(label) > _LABEL - 5:
            lines += [f"  {label[:78]}", f"{'':<{_LABEL - 2}}{values}"]
        else:
            lines.append(f"  {label:<{_LABEL - 4}}{values}")
    return "\n".join(lines)


def _inputs(rows: Sequence[Row]) -> str:
    if not rows:
        return "Inputs: the same"
    lines = [f"Inputs that differ ({len(rows):,})"]
    for row in rows[:_MOST_INPUTS]:
        key, a, b = given(row)
        lines += lines_of(f"{key}: {a} -> {b}", WIDTH, "  ", "      ")
    left = len(rows) - _MOST_INPUTS
    return "\n".join([*lines, *([f"  ... and {left:,} more; --json has all"] if left > 0 else [])])


def given(row: Row) -> tuple[str, str, str]:
    """A row of the inputs as they are written: its key, and what A and B were given."""
    key, a = as_written(row.figure, row.a)
    return key, a, as_written(row.figure, row.b)[1]


def sentences(found: Comparison) -> list[str]:
    """Which is faster and what explains it, most important first."""
    rows = {row.figure: row for row in found.rows}
    if found.kind == "serving":
        said = _serving(rows) + _speed(rows, found.kind)
    else:
        said = _speed(rows, found.kind) + _step(rows, found)
    said += _hits(rows)
    said += _link(found)
    said += _cost(rows)
    return said


def _speed(rows: dict[str, Row], kind: str) -> list[str]:
    """Tokens per second, and of each GPU where the numbers of GPUs differ."""
    names = ("throughput_tokens_per_s", "generated_tokens_per_s", "tokens_per_s")
    row = next((rows[name] for name in names if name in rows), None)
    if row is None or not row.ratio:
        return []
    rates = f"{number(row.a, 4)} -> {number(row.b, 4)} tokens/s ({_ratio(row)})"
    if kind != "run":
        # Requests come when they come: tokens per second are no speed.
        first = f"Tokens made: {rates}"
    elif _alike(row):
        return [f"B is as fast as A: {number(row.a, 4)} tokens/s."]
    elif abs(row.ratio - 1) < _CLOSE:
        first = f"B is about as fast as A: {rates}"
    else:
        first = f"B is {'faster' if row.b > row.a else 'slower'} than A: {rates}"
    gpus = rows.get("gpus")
    if gpus is None or gpus.difference is None:
        return [f"{first}."]
    if gpus.same:
        return [f"{first}, on {gpus.a:,} GPUs each."]
    each = number(row.ratio * gpus.a / gpus.b)
    return [f"{first}, on {gpus.a:,} -> {gpus.b:,} GPUs: {each} x per GPU."]


def _alike(row: Row) -> bool:
    return row.same or abs(row.b - row.a) < _UNTOLD * abs(row.a)


def _longer(row: Row, what: str) -> str:
    """How B's time compares with A's."""
    if _alike(row):
        return f"A {what} takes as long in both ({shown(row.figure, row.a)})"
    change = "longer" if row.b > row.a else "shorter"
    by = shown(row.figure, abs(row.b - row.a))
    a, b = shown(row.figure, row.a), shown(row.figure, row.b)
    if a == b:
        return f"B's {what} is {by} ({percent(abs(row.b / row.a - 1))}) {change} than A's {a}"
    of = f", {_ratio(row)} as long" if row.ratio is not None else ""
    return f"B's {what} is {by} {change} than A's ({a} -> {b}{of})"


def _step(rows: dict[str, Row], found: Comparison) -> list[str]:
    """The step time, and which parts of the breakdown made the difference."""
    time = rows.get("step_time_s.mean")
    parts = [row for row in found.of("breakdown") if row.difference is not None]
    if time is None or time.difference is None:
        return []
    first = _longer(time, "step")
    if not parts:
        return [f"{first}."]
    # What changed by a hundredth of a step, or made a tenth of its change.
    least = 0.01 * _least(time)
    if not _alike(time):
        least = min(least, 0.1 * abs(time.difference))
    moved = sorted(
        (row for row in parts if not row.same and abs(row.difference or 0.0) >= least),
        key=lambda row: -abs(row.difference or 0.0),
    )
    if not moved:
        return [f"{first}, and so do its parts."] if _alike(time) else [f"{first}."]
    changes = ", ".join(f"{_label(row)} {_signed(row.figure, row)}" for row in moved)
    total = sum(row.difference or 0.0 for row in parts)
    rest = time.difference - total
    more = ""
    if abs(rest) > max(0.02 * _least(time), least):
        # Of traces: the window is from the first kernel to the last, not the marked steps.
        sign = "+" if rest > 0 else "-"
        more = f"; {sign}{duration(abs(rest))} lies outside the kernels' window"
    return [f"{first}. By part: {changes}{more}."]


def _least(time: Row) -> float:
    return float(min(time.a, time.b))


def _hits(rows: dict[str, Row]) -> list[str]:
    misses = rows.get("cache_miss_rate")
    if misses is None or misses.difference is None or misses.same:
        return []
    hits = rows["cache_hit_rate"]
    return [
        f"The expert cache misses {'more' if misses.b > misses.a else 'less'}: "
        f"{percent(misses.a)} -> {percent(misses.b)} of the accesses "
        f"(hits {percent(hits.a)} -> {percent(hits.b)})."
    ]


def _link(found: Comparison) -> list[str]:
    named = [row for row in found.of("links") if " -> " in row.figure and row.difference]
    if not named:
        return []
    row = max(named, key=lambda one: abs(one.difference or 0.0))
    return [
        f"The link whose use changed most: {row.figure}, busy {percent(row.a)} -> {percent(row.b)}."
    ]


def _cost(rows: dict[str, Row]) -> list[str]:
    names = {
        "cost.usd_per_million_tokens": "tokens",
        "usd_per_1m_generated": "generated tokens",
    }
    for name, words in names.items():
        row = rows.get(name)
        if row is not None and row.ratio and abs(row.ratio - 1) > _UNTOLD_COST:
            return [f"A million {words} cost {dollars(row.a)} -> {dollars(row.b)} ({_ratio(row)})."]
    return []


def _serving(rows: dict[str, Row]) -> list[str]:
    said = []
    for name, words in (("ttft_s", "the first token"), ("tpot_s", "each further token")):
        row = rows.get(f"latency.{name}.p99")
        if row is None or row.difference is None:
            continue
        if row.same:
            said.append(f"{words} takes as long in both (p99 {duration(row.a)})")
        else:
            said.append(
                f"{words} takes {_ratio(row)} as long in B (p99 {duration(row.a)} -> "
                f"{duration(row.b)})"
            )
    wait = rows.get("queue.mean")
    ttft = rows.get("latency.ttft_s.mean")
    if wait is not None and ttft is not None and wait.difference and ttft.difference:
        part = wait.difference / ttft.difference
        if part > 0.01:
            said.append(
                f"waiting for admission makes up {percent(min(part, 1.0))} of TTFT's change"
            )
    good = rows.get("goodput_requests_per_s")
    if good is not None and good.difference and not good.same:
        said.append(f"goodput is {number(good.a)} -> {number(good.b)} requests/s")
    if not said:
        return []
    text = "; ".join(said)
    return [f"{text[0].upper()}{text[1:]}."]
