"""The summary of a run as text for a terminal."""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ABSENT = "-"

_LABEL = 24
_COLUMN = 11
_TAB = " " * 8

_BARS = ("█", "▏▎▍▌▋▊▉")
_PART_NAMES = {
    "compute": "compute",
    "exposed_communication": "exposed communication",
    "fetch_stall": "fetch stall",
    "peer_wait": "waiting for a peer",
    "idle": "idle",
}
_PATH_NAMES = {
    "compute": "compute",
    "communication": "communication",
    "fetch_stall": "weight fetches",
    "idle": "idle",
}


def render(
    summary: Mapping[str, Any],
    notes: Sequence[str] = (),
    width: int = 80,
    unicode: bool | None = None,
) -> str:
    """What `analyze` found, in lines of at most `width` (at least 80) columns.

    The first three lines say how fast it is and what limits it. notes: sentences put at the end.
    unicode: whether bars may be drawn with block characters; None: if stdout can print them.
    """
    if width < 80:
        raise ValueError(f"width={width}: a summary needs at least 80 columns")
    if unicode is None:
        unicode = _stdout_prints("".join(_BARS))
    sections = [
        _headline(summary, width),
        _breakdown(summary, width, unicode),
        _streams(summary),
        _links(summary, width),
        _cache(summary),
        _traffic(summary),
        _load(summary),
        _energy(summary, width),
        _cost(summary),
        _saving(summary),
        _notes([*_of_empty_steps(summary), *notes], width),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def number(value: float | None, digits: int = 3) -> str:
    """`value` to `digits` significant digits, thousands apart: 0.0123, 4.57, 12,300."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    rounded = round(value, digits - 1 - magnitude)
    # Rounding may carry into a further digit (999.7 -> 1,000).
    magnitude = math.floor(math.log10(abs(rounded)))
    if magnitude < -6:
        return f"{rounded:.{digits - 1}e}"
    return f"{rounded:,.{max(digits - 1 - magnitude, 0)}f}"


def duration(seconds: float | None) -> str:
    """A time with the unit that suits it: 12.3 us, 4.57 ms, 1.2 s."""
    return _scaled(seconds, ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")))


def size(count: float | None) -> str:
    """A number of bytes with the decimal unit that suits it: 512 B, 4.57 GB."""
    units = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
    return _scaled(count, units)


def joules(value: float | None) -> str:
    """An energy with the unit that suits it: 12.3 kJ, 4.57 mJ."""
    if value == 0:
        return "0 J"
    return _scaled(value, ((1e6, "MJ"), (1e3, "kJ"), (1.0, "J"), (1e-3, "mJ"), (1e-6, "uJ")))


def watts(value: float | None) -> str:
    """A power with the unit that suits it: 230 W, 3.75 kW."""
    if value == 0:
        return "0 W"
    return _scaled(value, ((1e6, "MW"), (1e3, "kW"), (1.0, "W"), (1e-3, "mW")))


def dollars(value: float | None) -> str:
    """An amount of money to four significant digits: $0.01234, $41.98, $425,200, $1.120M."""
    if value is None or not math.isfinite(value):
        return ABSENT
    amount, unit = abs(value), ""
    for scale, word in ((1e9, "B"), (1e6, "M")):
        if amount >= scale:
            amount, unit = amount / scale, word
            break
    return f"{'-' if value < 0 else ''}${number(amount, 4)}{unit}"


def percent(fraction: float | None) -> str:
    """A fraction as a percentage with one digit after the point; what is not 0 never shows as 0."""
    if fraction is None or not math.isfinite(fraction):
        return ABSENT
    if 0 < fraction < 0.0005:
        return "<0.1 %"
    return f"{100 * fraction:.1f} %"


def _scaled(value: float | None, units: Sequence[tuple[float, str]]) -> str:
    if value is None or not math.isfinite(value):
        return ABSENT
    if value == 0:
        return f"0 {units[-1][1] if units[-1][1] == 'B' else 's'}"
    for scale, unit in units:
        # 0.9995 of a unit is shown as 1.00 of it, not as 1,000 of the next.
        if abs(value) >= 0.9995 * scale:
            return f"{number(value / scale)} {unit}"
    scale, unit = units[-1]
    return f"{number(value / scale)} {unit}"


def _headline(summary: Mapping[str, Any], width: int) -> list[str]:
    gpus, steps, times = summary["gpus"], summary["steps"], summary["step_time_s"]
    path = summary["critical_path"]
    ordered = sorted((name for name in path if path[name] > 0), key=lambda name: -path[name])
    span = f"{duration(times['min'])} to {duration(times['max'])} in {steps:,} measured steps"
    tokens = summary["tokens"] / steps
    batch = f"{tokens:,.0f}" if tokens == int(tokens) else number(tokens, 4)
    lines = (
        f"Speed   {number(summary['throughput_tokens_per_s'], 4)} tokens/s on "
        f"{gpus:,} GPU{'s' if gpus != 1 else ''} "
        f"({number(summary['throughput_tokens_per_s_per_gpu'])} tokens/s per GPU)",
        f"Step    {duration(times['mean'])} for {batch} tokens; "
        f"{span if steps > 1 else '1 measured step'}",
        f"Limit   {summary['bottleneck_sentence']}",
        f"Path    {', '.join(f'{_PATH_NAMES[name]} {percent(path[name])}' for name in ordered)}",
    )
    return [part for line in lines for part in textwrap.wrap(line, width, subsequent_indent=_TAB)]


def _breakdown(summary: Mapping[str, Any], width: int, unicode: bool) -> list[str]:
    fractions, seconds = summary["breakdown"], summary["breakdown_s"]
    space = width - _LABEL - 2 * _COLUMN - 3
    lines = [
        _row("Where a GPU's time goes", "of a step", "per step", label=width - 2 * _COLUMN - 1)
    ]
    for part, words in _PART_NAMES.items():
        label = f"  {words:<{_LABEL - 2}}{_bar(fractions[part], space, unicode)}"
        values = (percent(fractions[part]), duration(seconds[part]))
        lines.append(_row(label, *values, label=_LABEL + space + 2))
    return lines


def _streams(summary: Mapping[str, Any]) -> list[str]:
    lines = [_row("Streams busy", "mean GPU", "busiest")]
    for stream in ("compute", "comm", "copy"):
        names = (f"{stream}_utilization", f"{stream}_max_utilization")
        lines.append(_row(f"  {stream}", *(percent(summary[name]) for name in names)))
    asides = (
        ("overlap", "overlap_achieved", "of communication ran under compute"),
        ("MFU", "mfu", "of the GPUs' peak FLOP/s"),
    )
    for label, name, words in asides:
        value = summary[name]
        lines.append(
            _row(f"  {label}", percent(value)) + (f"  {words}" if value is not None else "")
        )
    return lines


def _links(summary: Mapping[str, Any], width: int) -> list[str]:
    if not summary["links"]:
        return []
    lines = [_row("Links busy", "mean link", "busiest", "links", "per step")]
    for kind, link in summary["links"].items():
        lines.append(
            _row(
                f"  {kind}",
                percent(link["mean_utilization"]),
                percent(link["max_utilization"]),
                f"{link['links']:,}",
                size(link["bytes"] / summary["steps"]),
            )
        )
    hottest = f"busiest: {summary['hottest_link']}"
    return lines + textwrap.wrap(hottest, width, initial_indent="  ", subsequent_indent="    ")


def _cache(summary: Mapping[str, Any]) -> list[str]:
    count = summary["cache_accesses"]
    if not count:
        return []
    names = ("cache_hit_rate", "cache_late_hit_rate", "cache_miss_rate")
    return [
        _row("Expert cache", "hit", "late hit", "miss", "accesses"),
        _row(
            "  all GPUs",
            *(percent(summary[name]) for name in names),
            f"{count:,}" if count < 10**8 else f"{count:.2e}",
        ),
    ]


def _traffic(summary: Mapping[str, Any]) -> list[str]:
    names = ("dispatch", "combine", "demand", "prefetch", "wasted_prefetch")
    between = ("allreduce", "allgather", "reducescatter", "send")
    per_step = [summary[f"{name}_bytes"] / summary["steps"] for name in names]
    of_plan = [summary.get(f"{name}_bytes", 0.0) / summary["steps"] for name in between]
    lines = []
    if any(per_step):
        lines += [
            _row("Bytes per step", "dispatch", "combine", "demand", "prefetch", "unused"),
            _row("  all GPUs", *(size(value) for value in per_step)),
        ]
    if any(of_plan):
        lines += [
            _row("Bytes per step", "all-reduce", "all-gather", "red.-scat.", "to stages"),
            _row("  all GPUs", *(size(value) for value in of_plan)),
        ]
    if summary.get("rebalance_bytes"):
        moved = size(summary["rebalance_bytes"] / summary["steps"])
        lines.append(_row("  experts moved", moved))
    accuracy, recall = summary["prefetch_accuracy"], summary.get("prefetch_recall")
    if accuracy is not None or recall is not None:
        never = f"{summary.get('prefetches_cancelled', 0):,} never begun"
        lines.append(_row("  prefetches used", percent(accuracy)) + f"  {never}")
        lines.append(_row("  accesses foreseen", percent(recall)))
    if summary.get("peer_fetch_share"):
        lines.append(_row("  from peers", percent(summary["peer_fetch_share"])) + "  of fetches")
    return lines


def _load(summary: Mapping[str, Any]) -> list[str]:
    load = summary["load_imbalance"]
    if load["gpus"] is None and load["experts"] is None:
        return []
    return [
        _row("Load imbalance", "GPUs", "experts"),
        _row("  largest / mean rows", number(load["gpus"]), number(load["experts"])),
    ]


ENERGY_PARTS = {
    "gpu_idle": "GPUs, idle power",
    "gpu_compute": "GPUs, FLOPs",
    "gpu_hbm": "GPUs, HBM",
    "nvswitch": "NVSwitch",
    "nic": "NICs",
    "cpu": "CPUs",
    "site": "site (PUE)",
}

_LINKS_AFTER = list(ENERGY_PARTS).index("gpu_hbm")


def energy_parts(names: Iterable[str]) -> dict[str, str]:
    """Parts of the energy to what they are called, in the order in which they are shown."""
    told = {name: ENERGY_PARTS.get(name, name.replace("link_", "links, ")) for name in names}
    place = {name: float(at) for at, name in enumerate(ENERGY_PARTS)}
    return dict(sorted(told.items(), key=lambda one: (place.get(one[0], _LINKS_AFTER + 0.5), one)))


def _energy(summary: Mapping[str, Any], width: int) -> list[str]:
    found = summary.get("energy")
    if not found:
        return []
    per_step, tokens = found["joules_per_step"], summary["tokens"] / summary["steps"]
    lines = [_row("Energy", "per step", "per token", "of all", "mean power")]
    by_part = found["joules_per_step_by_part"]
    parts = {"all that is counted": per_step} | {
        words: by_part[name] for name, words in energy_parts(by_part).items() if by_part[name]
    }
    for words, value in parts.items():
        share = value / per_step if per_step else 0.0
        power_w = found["power_w"] * share
        per_token = joules(value / tokens) if tokens else ABSENT
        lines.append(_row(f"  {words}", joules(value), per_token, percent(share), watts(power_w)))
    gpu, boundary = found["gpu_power_w"], found["boundary"]
    excluded = [ENERGY_PARTS[name] for name, state in boundary.items() if state == "excluded"]
    told = [
        f"a GPU draws {watts(gpu['mean'])} on average, the busiest {watts(gpu['max'])} "
        f"(idle {watts(gpu['idle'])}, TDP {watts(gpu['tdp'])})",
        f"not counted: {', '.join([*excluded, 'switches of the network'])}"
        + ("; no cooling (PUE 1)" if boundary["pue"] == 1 else ""),
    ]
    if found["over_tdp_joules_per_step"] > 0:
        told.append(
            f"above TDP, cut off: {joules(found['over_tdp_joules_per_step'])} per step in "
            f"{percent(found['over_tdp_time_fraction'])} of the time; a real GPU would slow down"
        )
    for words in told:
        lines += textwrap.wrap(words, width, initial_indent="  ", subsequent_indent="    ")
    return lines


def _cost(summary: Mapping[str, Any]) -> list[str]:
    found = summary.get("cost")
    if not found:
        return []
    prompt = found["usd_per_million_prompt_tokens"] is not None
    lines = [
        _row("Cost", "1M tokens", "an hour", "a year"),
        _row(
            f"  {'prompt' if prompt else 'generated'} tokens",
            dollars(found["usd_per_million_tokens"]),
            dollars(found["usd_per_hour"]),
            dollars(found["usd_per_year"]),
        )
        + f"  at {number(found['volume_tokens_per_year'] / 12e9)}B tokens/month",
    ]
    if found["electricity_usd_per_hour"] is not None:
        inside = "in the price" if found["electricity_in_price"] else "added above"
        names = ("million_tokens", "hour", "year")
        amounts = (dollars(found[f"electricity_usd_per_{name}"]) for name in names)
        lines.append(_row("  electricity", *amounts) + f"  {inside}")
        kwh = found["kwh_per_year"]
        per_million = summary["energy"]["kwh_per_million_tokens"] if summary["energy"] else None
        lines.append(_row("  kWh", number(per_million), number(_kw(summary)), number(kwh)))
    return lines


def _kw(summary: Mapping[str, Any]) -> float | None:
    return summary["energy"]["power_w"] / 1000.0 if summary["energy"] else None


def _saving(summary: Mapping[str, Any]) -> list[str]:
    found = summary.get("saving")
    if not found:
        return []
    return [
        _row("Against the baseline", "speed", "$/1M", "saved", "a year"),
        _row(
            "  saving",
            f"{number(found['speed_up'])} x",
            dollars(found["saved_usd_per_million_tokens"]),
            percent(found["saved_fraction"]),
            dollars(found["saved_usd_per_year"]),
        ),
        _row("  energy per token", joules(found["saved_joules_per_token"]))
        + f"  {number(found['saved_kwh_per_year'])} kWh a year",
    ]


def _row(text: str, *values: str, label: int = _LABEL) -> str:
    """One line of a table; all tables share the same columns."""
    return f"{text:<{label}}" + "".join(f"{value:>{_COLUMN}}" for value in values)


def _of_empty_steps(summary: Mapping[str, Any]) -> list[str]:
    empty = summary.get("steps_without_spans")
    return [empty_steps_note(empty, summary["steps"])] if empty else []


def empty_steps_note(empty: int, measured: int) -> str:
    """What to know of a run that says of `empty` measured steps only how long they took."""
    verb = "has" if empty == 1 else "have"
    return f"{empty:,} of {measured:,} measured steps {verb} no spans: counted as idle"


def _notes(notes: Sequence[str], width: int) -> list[str]:
    lines: list[str] = []
    for note in notes:
        lines += textwrap.wrap(note, width, initial_indent="- ", subsequent_indent="  ")
    return ["Notes", *lines] if lines else []


def _bar(fraction: float, space: int, unicode: bool) -> str:
    """A bar of `fraction` of `space` columns."""
    if not unicode:
        return "#" * round(fraction * space)
    whole, eighths = divmod(round(fraction * space * 8), 8)
    full, partial = _BARS
    return full * whole + (partial[eighths - 1] if eighths else "")


def _stdout_prints(characters: str) -> bool:
    try:
        characters.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
