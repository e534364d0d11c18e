"""The sections that every report has: the answer, memory, cost and energy, how to run it again."""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simulator.results import serving_summary
from simulator.results.colours import Figure
from simulator.results.report_charts import Chart, Section, bars, layout, rounded, table
from simulator.results.report_read import Run
from simulator.results.summary import (
    ABSENT,
    dollars,
    duration,
    energy_parts,
    joules,
    number,
    percent,
    render,
    watts,
)

GIB = 2.0**30
_MEMORY_COLOURS = {
    "dense weights": "@spine",
    "experts": "@nvswitch",
    "KV cache": "@pcie",
    "activations": "@dram",
    "buffers": "@leaf",
}


def headline(run: Run) -> str:
    """The answer: what limits the run in a sentence, the figures that matter, and the notes."""
    summary = run.summary
    try:
        cards = _serving_cards(summary) if run.is_serving else _run_cards(summary)
        sentence = _served(summary) if summary and run.is_serving else ""
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        cards, sentence = [], ""
        _refuse_summary(run, error)
    sentence = sentence or str(summary.get("bottleneck_sentence", ""))
    parts = []
    if run.faults:
        lines = "".join(f"<li>{html.escape(fault)}</li>" for fault in run.faults)
        parts.append(
            '<div class="warning"><p>Not all of this run could be read; the rest is shown.</p>'
            f"<ul>{lines}</ul></div>"
        )
    if sentence:
        limit = "" if run.is_serving else "<b>Limit:</b> "
        parts.append(f'<p class="limit">{limit}{html.escape(sentence)}</p>')
    if cards:
        drawn = "".join(
            f"<div><b>{html.escape(value)}</b><span>{html.escape(words)}</span></div>"
            for value, words in cards
        )
        parts.append(f'<div class="cards">{drawn}</div>')
    if run.notes:
        lines = "".join(f"<li>{html.escape(note)}</li>" for note in run.notes)
        parts.append(f'<ul class="notes">{lines}</ul>')
    return "\n".join(parts)


def _run_cards(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "throughput_tokens_per_s" not in summary:
        return []
    gpus = summary["gpus"]
    times = summary["step_time_s"]
    per_step = summary["tokens"] / summary["steps"]
    tokens = f"{per_step:,.0f}" if per_step.is_integer() else number(per_step, 4)
    cards = [
        (f"{number(summary['throughput_tokens_per_s'], 4)} tokens/s", f"on {gpus:,} GPUs"),
        (f"{number(summary['throughput_tokens_per_s_per_gpu'])} tokens/s", "per GPU"),
        (
            duration(times["mean"]),
            f"a step of {tokens} tokens, mean of {summary['steps']:,}",
        ),
        (percent(summary["mfu"]), "of the GPUs' peak FLOP/s (MFU)"),
    ]
    if summary["hottest_link"] is not None:
        cards.append(
            (
                percent(summary["hottest_link_utilization"]),
                f"busiest link, {summary['hottest_link']}",
            )
        )
    if summary["cache_accesses"] and summary["cache_hit_rate"] < 1.0:
        cards.append((percent(summary["cache_hit_rate"]), "expert cache hits"))
    if summary["load_imbalance"]["gpus"] is not None:
        cards.append((number(summary["load_imbalance"]["gpus"]), "busiest GPU's load / mean"))
    cost, energy = summary.get("cost"), summary.get("energy")
    if cost and cost["usd_per_million_tokens"] is not None:
        cards.append((dollars(cost["usd_per_million_tokens"]), "per million tokens"))
    if energy:
        cards.append((watts(energy["power_w"]), "mean power of all that is counted"))
    return cards


def _served(summary: Mapping[str, Any]) -> str:
    if not summary["requests"]:
        return "No request came after the warm-up, so none is counted."
    ended = f"{summary['finished']:,} of {summary['requests']:,} requests finished"
    share = summary["goodput_share"]
    if any(limit is not None for limit in summary["slo"].values()) and share is not None:
        ended += f", {percent(share)} of all within the objectives"
    busy = max(summary["busy_share"], default=0.0)
    ended += f"; the busiest group has a step under way {percent(busy)} of the time"
    if summary["longest_queue"]:
        ended += f", and at most {summary['longest_queue']:,} requests wait in a group"
    return ". ".join([ended, *serving_summary.rejections(summary)]) + "."


def _serving_cards(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "latency" not in summary:
        return []
    cards = [
        (f"{number(summary['requests_per_s'])} /s", "requests finished"),
        (f"{number(summary['goodput_requests_per_s'])} /s", "goodput: within the objectives"),
        (f"{number(summary['generated_tokens_per_s'])} tokens/s", "generated"),
        (f"{number(summary['tokens_per_s_per_gpu'])} tokens/s", "generated per GPU"),
    ]
    for key, name, words in serving_summary.SHOWN:
        found = summary["latency"][key]
        if found is not None:
            cards.append(
                (duration(found["p99"]), f"p99 {name}, {words}; p50 {duration(found['p50'])}")
            )
    if summary["usd_per_1m_generated"] is not None:
        cards.append((dollars(summary["usd_per_1m_generated"]), "per million generated tokens"))
    cards.append((percent(summary["peak_kv_share"]), "of the KV cache in use at most"))
    return [card for card in cards if not card[0].startswith(ABSENT)]


def memory_section(run: Run) -> Section | None:
    """What each GPU's memory holds, against its capacity."""
    memory = run.result.get("memory")
    if not memory or not memory["gpus"]:
        return None
    rows = memory["gpus"]
    names = [
        f"GPU {row['first']}"
        if row["first"] == row["last"]
        else f"GPU {row['first']}-{row['last']}"
        for row in rows
    ]
    parts = list(dict.fromkeys(name for row in rows for name in row["bytes"]))
    data = [
        bars(
            part,
            [row["bytes"].get(part, 0.0) / GIB for row in rows],
            names,
            _MEMORY_COLOURS.get(part, "@cpu"),
            "%{y}: %{x:.3g} GiB",
            sideways=True,
        )
        for part in parts
        if any(row["bytes"].get(part) for row in rows)
    ]
    capacity = memory["capacity_bytes"] / GIB
    room = capacity * (1.0 - memory["reserved_share"])
    figure: Figure = {
        "data": data,
        "layout": layout("memory, GiB", "", min(130 + 24 * len(rows), 700)),
    }
    figure["layout"]["yaxis"] |= {
        "title": {"text": ""},
        "autorange": "reversed",
        "type": "category",
        "showgrid": False,
    }
    figure["layout"]["xaxis"] |= {"range": [0, 1.04 * capacity], "showgrid": True}
    figure["layout"]["shapes"] = [
        {
            "type": "line", "xref": "x", "yref": "paper", "x0": at, "x1": at, "y0": 0, "y1": 1,
            "line": {"color": "@text", "width": 1.5, "dash": dash},
        }
        for at, dash in ((capacity, "solid"), (room, "dot"))
    ]  # fmt: skip
    fullest = max(sum(row["bytes"].values()) for row in rows) / GIB
    text = (
        f"The fullest GPU holds {number(fullest)} of {number(room)} GiB (dotted line): "
        f"{number(capacity)} GiB (line) less {percent(memory['reserved_share'])} kept free for the "
        "CUDA context, NCCL buffers and fragmentation."
    )
    return Section("memory", "Memory", text, (Chart("memory-parts", text, figure),))


def cost_section(run: Run) -> Section | None:
    """What tokens cost, and where the energy goes."""
    summary = run.summary
    cost, energy = summary.get("cost"), summary.get("energy")
    if run.is_serving:
        if summary.get("usd_per_1m_generated") is None:
            return None
        hour = run.result["serving_context"]["usd_per_hour"]
        rows = [
            ("1M generated tokens", dollars(summary["usd_per_1m_generated"])),
            ("1M tokens in and out", dollars(summary["usd_per_1m_tokens"])),
            (f"an hour of {summary['gpus']:,} GPUs", dollars(hour)),
        ]
        return Section("cost", "Cost", body=table(("", "$"), rows))
    if not cost and not energy:
        return None
    charts: tuple[Chart, ...] = ()
    if energy:
        by_part = energy["joules_per_step_by_part"]
        parts = {words: by_part[name] for name, words in energy_parts(by_part).items()}
        parts = {words: value for words, value in parts.items() if value}
        figure: Figure = {
            "data": [
                bars(
                    "energy",
                    rounded(np.array(list(parts.values()), dtype=np.float64)),
                    list(parts),
                    "@pcie",
                    "%{y}: %{x:.3g} J",
                    sideways=True,
                )
            ],
            "layout": layout("energy of a step, J", "", 110 + 26 * len(parts)),
        }
        figure["layout"]["yaxis"] |= {
            "title": {"text": ""},
            "autorange": "reversed",
            "showgrid": False,
        }
        figure["layout"]["xaxis"]["showgrid"] = True
        charts = (Chart("energy-parts", "energy of a step by part", figure),)
    return Section("cost", "Cost and energy", charts=charts, body=_cost_table(summary), pair=True)


def _cost_table(summary: Mapping[str, Any]) -> str:
    cost, energy = summary.get("cost"), summary.get("energy")
    rows = []
    if cost:
        volume = number(cost["volume_tokens_per_year"] / 12e9)
        inside = "in the price" if cost["electricity_in_price"] else "added above"
        rows += [
            ("1M tokens", dollars(cost["usd_per_million_tokens"])),
            ("an hour", dollars(cost["usd_per_hour"])),
            (f"a year at {volume}B tokens a month", dollars(cost["usd_per_year"])),
            (f"electricity of an hour ({inside})", dollars(cost["electricity_usd_per_hour"])),
        ]
    if energy:
        tokens = summary["tokens"] / summary["steps"]
        rows += [
            ("energy of a step", joules(energy["joules_per_step"])),
            ("energy of a token", joules(energy["joules_per_step"] / tokens) if tokens else "-"),
            ("mean power", watts(energy["power_w"])),
            ("mean power of a GPU", watts(energy["gpu_power_w"]["mean"])),
            ("its idle power", watts(energy["gpu_power_w"]["idle"])),
            ("its TDP", watts(energy["gpu_power_w"]["tdp"])),
        ]
    return table(("", "amount"), rows)


def reproduce_section(run: Run) -> Section:
    """The command, the resolved input, versions, and the figures as text."""
    result = run.result
    parts = []
    command = command_of(result)
    if command:
        parts.append(copied("command", shlex.join(command)))
    about = [(f"{name} version", str(value)) for name, value in result.get("versions", {}).items()]
    if "seed" in result:
        about.insert(0, ("seed", str(result["seed"])))
    if about:
        parts.append(table((), about))
    if run.summary:
        try:
            parts.append(_folded("The summary as text", "as-text", _as_text(run)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            _refuse_summary(run, error)
        figures = json.dumps(run.summary, indent=1, sort_keys=True)
        parts.append(_folded("All figures (JSON)", "figures-json", figures))
    if "input" in result:
        given = json.dumps(result["input"], indent=1)
        parts.append(_folded("Resolved input: every default, SI units (JSON)", "input", given))
    text = "" if command else "The result.json of this run does not say with which command."
    return Section("reproduce", "Run it again", text, body="\n".join(parts))


def _refuse_summary(run: Run, error: Exception) -> None:
    """Say, once, that the figures that a run left are not all there."""
    fault = f"result.json: 'summary' is not of this version ({type(error).__name__}: {error})"
    if fault not in run.faults:
        run.faults.append(fault)


def _as_text(run: Run) -> str:
    notes = run.result.get("notes", [])
    if run.is_serving:
        return serving_summary.render(run.summary, notes)
    return render(run.summary, notes, unicode=True)


def command_of(result: Mapping[str, Any]) -> list[str]:
    """The command of a run as words, [] if its `result.json` does not say it."""
    given, inputs = result.get("given"), result.get("input", {})
    needed = ("command", "overrides")
    if given is None or "topology_given" not in inputs or any(key not in given for key in needed):
        return []
    words = ["python", "-m", "simulator"]
    if given["command"] != "run":
        words.append(given["command"])
    words += ["--topology", inputs["topology_given"], "--workload", inputs["workload_given"]]
    for flag in ("requests", "routing", "faults"):
        if given.get(flag) is not None:
            words += [f"--{flag}", given[flag]]
    for override in given["overrides"]:
        words += ["--set", override]
    words += ["--seed", str(result.get("seed", 0))]
    return [str(word) for word in words]


def copied(name: str, text: str) -> str:
    """Text with a button that copies it, as HTML; name: of the element."""
    return (
        f'<div class="copied"><pre id="{name}">{html.escape(text)}</pre>'
        f'<button type="button" data-copy="{name}">copy</button></div>'
    )


def _folded(words: str, name: str, text: str) -> str:
    return f"<details><summary>{html.escape(words)}</summary>{copied(name, text)}</details>"


def lines_of(run: Run) -> Sequence[tuple[str, str]]:
    """What was run: (CSS class, text) of paragraphs."""
    given = run.result.get("input", {})
    lines = []
    for key in ("workload", "topology"):
        spec = given.get(key, {})
        if spec.get("description"):
            lines.append(("about", f"{spec.get('name', key)}: {spec['description']}"))
    return lines
