"""The summary of a serving run as text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from simulator.results.summary import duration, number, percent, size
from simulator.results.text import lines_of

Summary = Mapping[str, Any]

SHOWN = (
    ("ttft_s", "TTFT", "to the first token"),
    ("tpot_s", "TPOT", "per token after it, mean of a request"),
    ("itl_s", "ITL", "between two tokens"),
    ("e2e_s", "E2E", "to the last token"),
)
_REASONS = {
    "kv_memory": "prompt and output of up to {longest:,} tokens, but the KV cache of a GPU holds "
    "{limit:,}",
    "step_tokens": "prompts of up to {longest:,} tokens, which are not cut (chunked_prefill: "
    "false), but a step takes {limit:,}",
}
COLUMNS = ("mean", "p50", "p90", "p95", "p99", "max")


def render(summary: Summary, notes: Sequence[str], width: int = 80) -> str:
    """Lines of at most `width` columns: what was served, how fast, how late, and what it cost."""
    lines = [*_head(summary), "", *_latencies(summary), "", *_inside(summary)]
    lines += _faults(summary)
    if notes:
        lines.append("")
        for note in notes:
            lines += textwrap.wrap(
                f"note: {note}", width, subsequent_indent="      ", break_long_words=False
            )
    return "\n".join(lines) + "\n"


def _head(summary: Summary) -> list[str]:
    counts = [f"{summary['finished']:,} finished"]
    counts += [f"{summary[name]:,} {name}" for name in ("failed", "rejected") if summary[name]]
    lines = [
        f"Requests  {summary['requests']:,} in {duration(summary['duration_s'])}: "
        + ", ".join(counts)
    ]
    for told in rejections(summary):
        lines += lines_of(told, first=" " * 10, then=" " * 12)
    if summary["not_counted"]:
        lines.append(f"          {summary['not_counted']:,} more came in the warm-up")
    if summary["requests_per_s"] is None:
        return lines
    per_gpu = summary["tokens_per_s_per_gpu"]
    lines.append(
        f"Speed     {number(summary['requests_per_s'])} requests/s; "
        f"{number(summary['prompt_tokens_per_s'])} prompt and "
        f"{number(summary['generated_tokens_per_s'])} generated tokens/s"
    )
    lines.append(
        f"          on {summary['gpus']} GPUs in {summary['groups']} "
        f"group{'s' if summary['groups'] > 1 else ''} "
        f"({number(per_gpu)} generated tokens/s per GPU)"
    )
    limits = [
        f"{name.removesuffix('_s').upper()} <= {duration(limit)}"
        for name in ("ttft_s", "tpot_s", "e2e_s")
        if (limit := summary["slo"].get(name)) is not None
    ]
    if limits:
        lines.append(
            f"Goodput   {number(summary['goodput_requests_per_s'])} requests/s, "
            f"{percent(summary['goodput_share'])} within {', '.join(limits)}"
        )
    if summary["usd_per_1m_generated"] is not None:
        lines.append(
            f"Cost      ${summary['usd_per_1m_generated']:.2f} per 1 M generated tokens, "
            f"${summary['usd_per_1m_tokens']:.2f} per 1 M tokens in and out"
        )
    return lines


def rejections(summary: Summary) -> list[str]:
    """Why requests were rejected, a sentence for each reason."""
    return [
        f"{found['requests']:,} rejected: " + _REASONS[found["reason"]].format(**found)
        for found in summary.get("rejections", [])
    ]


def _latencies(summary: Summary) -> list[str]:
    lines = ["Latency " + "".join(f"{name:>10}" for name in COLUMNS)]
    for key, name, _ in SHOWN:
        found = summary["latency"][key]
        shown = ["-"] * len(COLUMNS) if found is None else [duration(found[c]) for c in COLUMNS]
        lines.append(f"{name:<8}" + "".join(f"{one:>10}" for one in shown))
    return lines


def _faults(summary: Summary) -> list[str]:
    if "faults" not in summary:
        return []
    lines = [
        f"Faults    {summary['faults']:,}; groups up {percent(summary['availability'])} of the "
        f"time, GPUs {percent(summary['availability_gpus'])}; "
        f"{summary['lost_requests']:,} requests lost"
    ]
    if summary["fault_windows"]:
        lines += ["", f"{'Generated tokens/s':<40}{'before':>10}{'during':>10}{'after':>10}"]
    for row in summary["fault_windows"]:
        rates = ["-" if row[k] is None else number(row[k]) for k in ("before", "during", "after")]
        when = duration(row["begin_s"]) + (
            " for good" if row["end_s"] is None else f" to {duration(row['end_s'])}"
        )
        told = f"{row['name']} {row['do']}, {when}"
        lines.append(f"{told[:50]:<40}" + "".join(f"{rate:>10}" for rate in rates))
    if summary["faults"] > len(summary["fault_windows"]):
        lines.append(f"and {summary['faults'] - len(summary['fault_windows']):,} more")
    return lines


def _inside(summary: Summary) -> list[str]:
    if not summary["steps"]:
        return ["Steps     none"]
    lines = [
        f"Steps     {summary['steps']:,}, of {number(summary['mean_step_tokens'])} tokens and "
        f"{duration(summary['mean_step_s'])} on average; the longest "
        f"{duration(summary['longest_step_s'])}",
    ]
    least, most = (percent(of(summary["busy_share"])) for of in (min, max))
    busy = least if least == most else f"{least} to {most}"
    lines.append(f"Groups    busy {busy} of the time; longest queue {summary['longest_queue']:,}")
    lines.append(
        f"KV cache  at most {percent(summary['peak_kv_share'])} in use; "
        f"{summary['preemptions']:,} preemptions; "
        f"{summary['prefix_tokens_reused']:,} prompt tokens reused"
    )
    if summary["kv_transfers"]:
        lines.append(
            f"Handed on {summary['kv_transfers']:,} times from prefill to decode: "
            f"{size(summary['kv_moved_bytes'])} of KV"
        )
    if summary["retries"] or summary["wasted_tokens"]:
        lines.append(
            f"Retries   {summary['retries']:,}; {summary['wasted_tokens']:,} generated tokens lost "
            "in failed attempts"
        )
    return lines
