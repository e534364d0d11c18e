"""The figures of the study `prophet`, by file name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simulator.results.colours import Figure
from simulator.results.summary import number
from simulator.studies.common.figures import Panel, bars, curve, figure
from simulator.studies.prophet.forms import Point, dollars_per_million
from simulator.studies.prophet.result import READINGS, Result, fits, predictor, readings
from simulator.studies.prophet.runs import Access, Case, parallel, strategies

Measure = Callable[[Point, float, float], float]
"""What is drawn, of a point, a throughput and a share of communication."""

SHORT = {"expert_parallel": "EP", "data_parallel": "DP", "hybrid": "hybrid"}
TRAVELS = {"dispatch": "tokens travel", "fetch": "weights travel"}
ROLES: dict[Access, tuple[str, str]] = {
    "dispatch": ("first", "third"),
    "fetch": ("second", "fourth"),
}


def all_figures(result: Result) -> dict[str, Figure]:
    """File name -> figure: three for every system, and one across systems."""
    found = {}
    for name, system in result.study.systems.items():
        end = f"{system.gpus}gpu"
        found[f"throughput_comparison_{end}"] = throughput(result, name)
        found[f"communication_overhead_{end}"] = communication(result, name)
        found[f"cost_efficiency_{end}"] = cost(result, name)
    return found | {"cross_system_comparison": across(result)}


def across(result: Result) -> Figure:
    """Speed-up and Prophet's throughput of every system's hybrid: closed form and simulated."""
    names = [*result.study.systems]
    forms = [result.forms[name]["hybrid"] for name in names]
    data = []
    for panel, value in ((1, "speedup"), (2, "prophet_tokens_per_s")):
        series = [("closed form (as published)", "form", [form.value(value) for form in forms])]
        for reading in READINGS:
            values = [
                given[reading].value(value) if (given := result.hybrid[name]).get(reading) else None
                for name in names
            ]
            series.append((f"simulated, {TRAVELS[reading]}", ROLES[reading][0], values))
        for label, role, values in series:
            texts = [_text(result, label, name, y) for name, y in zip(names, values, strict=True)]
            drawn = bars(label, role, names, values, texts)
            if panel == 2:
                drawn |= {"xaxis": "x2", "yaxis": "y2", "showlegend": False}
            data.append(drawn)
    panels = [
        Panel("Speed-up of Prophet over on-demand fetching", "", "times as fast"),
        Panel("Throughput with Prophet", "", "token/s (log scale)", "log"),
    ]
    note = (
        f"Hybrid strategy, accuracy {result.study.assumptions.accuracy:g}, memory reduction "
        f"{result.study.assumptions.memory_reduction:g}. * does not fit in GPU memory: computed as "
        "if it did."
    )
    return figure("Claimed and simulated: hybrid on four systems", panels, data, note)


def throughput(result: Result, name: str) -> Figure:
    """Throughput by strategy above, the hybrid's sensitivity below."""
    system = result.study.systems[name]
    data = _by_strategy(result, name, lambda point, rate, comm: rate)
    panels = [Panel("By strategy", "", "token/s (log scale)", "log")]
    titles = {
        "accuracy": Panel("Hybrid by accuracy", "accuracy of the predictor", "token/s"),
        "memory_reduction": Panel("Hybrid by memory reduction", "m (a GPU keeps 1/m)", "token/s"),
        "links": Panel(
            "Hybrid by speed of links", "speed of every link, times", "token/s",
            "log", "log",
        ),
    }  # fmt: skip
    for reading in readings(result.study, name):
        for index, sweep in enumerate(result.sweeps[name, reading], start=2):
            if sweep.name not in titles:
                continue
            for role, who, value in zip(
                ROLES[reading],
                ("Prophet", "baseline"),
                ("prophet_tokens_per_s", "baseline_tokens_per_s"),
                strict=True,
            ):
                label = f"{who}, {TRAVELS[reading]}"
                values = [figures.value(value) for figures in sweep.found]
                data.append(curve(label, role, sweep.values, values, index))
    panels += titles.values()
    return figure(
        f"Throughput on {name} ({system.gpus} GPUs)", panels, data, _note(result), True, 760
    )


def communication(result: Result, name: str) -> Figure:
    """Share of time that goes on moving experts and tokens."""
    data = _by_strategy(result, name, lambda point, rate, comm: 100.0 * comm)
    panel = Panel("", "", "% of the time")
    return figure(f"Share of communication on {name}", [panel], data, _note(result))


def cost(result: Result, name: str) -> Figure:
    """Dollars per million tokens."""
    data = _by_strategy(result, name, lambda point, rate, comm: dollars_per_million(point, rate))
    panel = Panel("", "", "$ per million tokens (log scale)", "log")
    price = result.study.systems[name].price_per_hour
    title = f"Cost of a million tokens on {name} at ${price:g} per GPU and hour"
    return figure(title, [panel], data, _note(result))


def _by_strategy(result: Result, name: str, value: Measure) -> list[dict[str, Any]]:
    """Bars of every strategy: the closed form and each reading, baseline and Prophet."""
    study = result.study
    m, who = study.assumptions.memory_reduction, predictor(study, "stated")
    of = strategies(study.systems[name])
    labels = [f"{SHORT[strategy]} {ep}x{dp}" for strategy, (ep, dp) in of.items()]
    series: list[tuple[str, str, list[float | None], list[str]]] = []
    for label, role, attribute in (
        ("baseline, closed form", "published", "baseline"),
        ("Prophet, closed form", "form", "prophet"),
    ):
        values: list[float | None] = []
        for strategy, (ep, dp) in of.items():
            form = result.forms[name][strategy]
            rate = form.value(f"{attribute}_tokens_per_s") or 0.0
            values.append(
                value(study.point(name, ep, dp), rate, form.value(f"comm_{attribute}") or 0.0)
            )
        series.append((label, role, values, [number(y) for y in values]))
    for reading in READINGS:
        for index, prefix, asked in ((1, "baseline", "none"), (0, "Prophet", who)):
            values, texts = [], []
            for ep, dp in of.values():
                run = result.runs.get(Case(name, parallel(ep=ep), reading, asked, m))
                if run is None:
                    values.append(None)
                    texts.append("")
                    continue
                y = value(study.point(name, ep, dp), run.tokens_per_s, run.communication)
                values.append(y)
                texts.append(number(y) + ("" if run.memory.fits else "*"))
            if any(y is not None for y in values):
                label = f"{prefix}, {TRAVELS[reading]}"
                series.append((label, ROLES[reading][index], values, texts))
    return [bars(label, role, labels, values, texts) for label, role, values, texts in series]


def _note(result: Result) -> str:
    given = result.study.assumptions
    return (
        f"Accuracy {given.accuracy:g}, memory reduction {given.memory_reduction:g}; baseline: the "
        "same memory, no prediction. * does not fit in GPU memory: computed as if it did."
    )


def _text(result: Result, label: str, name: str, y: float | None) -> str:
    if y is None:
        return ""
    reading: Access = "fetch" if "weights" in label else "dispatch"
    unfit = label.startswith("simulated") and not fits(result, name, reading)
    return number(y) + ("*" if unfit else "")
