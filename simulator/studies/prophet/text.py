"""What the study `prophet` prints: tables of at most 80 columns, and the claims."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace

from simulator.results.summary import number, percent
from simulator.studies.common import claims
from simulator.studies.prophet.claims import NOWHERE
from simulator.studies.prophet.forms import dollars_per_million
from simulator.studies.prophet.notes import findings, oddities, parameters, unfit_summary
from simulator.studies.prophet.result import READINGS, Result, predictor, readings
from simulator.studies.prophet.runs import GIB, Case, dynamic, left_out, parallel, strategies

WIDTH = 80
SHORT = {"expert_parallel": "EP", "data_parallel": "DP", "hybrid": "hybrid"}


def render(result: Result) -> str:
    """All of it, in lines of at most 80 columns."""
    extent = "quick" if result.quick else "full"
    sections = [
        [f"Study prophet: expert prediction and prefetch, claimed and simulated ({extent})"],
        _section("Verdict", claims.counted(result.judged) + findings(result)),
        speeds(result),
        beyond(result),
        memory(result),
        sensitivity(result),
        claim_table(result),
        _section("Free parameters of the simulation", parameters(result)),
        _section("Odd in the published text", oddities(result)),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def speeds(result: Result) -> list[str]:
    """Throughput of every strategy and reading by predictor."""
    study, names = result.study, result.extent.predictors
    m = study.assumptions.memory_reduction
    shown = {"none": "none", "stated": f"{study.assumptions.accuracy:g}"}
    header = ["strategy", "EPxDP", "travels", *(shown.get(name, name) for name in names)]
    header += ["moving", "hits"]
    lines = _wrap(
        f"Simulated token/s at m = {m:g} by predictor (none is the baseline; {shown['stated']}: "
        "right with that probability); moving: share of the step for fetches and messages, hits: "
        "of the expert cache, both at the stated accuracy. *: does not fit in memory, computed as "
        "if it did."
    )
    table = []
    for name, system in study.systems.items():
        for strategy, (ep, dp) in strategies(system).items():
            for reading in readings(study, name, ep):
                case = Case(name, parallel(ep=ep), reading, "none", m)
                runs = [
                    result.runs[replace(case, predictor=predictor(study, who))] for who in names
                ]
                stated = result.runs[replace(case, predictor=predictor(study, "stated"))]
                mark = "" if runs[0].memory.fits else " *"
                table.append(
                    [
                        f"{name} {SHORT[strategy]}",
                        f"{ep}x{dp}",
                        {"dispatch": "tokens", "fetch": "weights"}[reading] + mark,
                        *(number(run.tokens_per_s) for run in runs),
                        percent(stated.communication),
                        percent(stated.hit_rate),
                    ]
                )
    return lines + _table(header, table, left=3)


def beyond(result: Result) -> list[str]:
    """Every strategy with all experts in place, those that the published text left out too."""
    study = result.study
    header = ["", "token/s", "per GPU", "$/1M token", "moving", "GiB per GPU", "has"]
    table = []
    for name, system in study.systems.items():
        named = {f"{SHORT[s]} {ep}x{dp}": parallel(ep=ep)
                 for s, (ep, dp) in strategies(system).items()}  # fmt: skip
        cases = {
            label: Case(name, of, "dispatch", "none", 1.0)
            for label, of in (named | left_out(study, name)).items()
        }
        if moving := dynamic(study, name):
            cases["dynamic"] = moving
        for label, case in cases.items():
            run = result.runs[case]
            point = study.point(name, 1, system.gpus)
            table.append(
                [
                    f"{name} {label}",
                    number(run.tokens_per_s),
                    number(run.tokens_per_s / system.gpus),
                    number(dollars_per_million(point, run.tokens_per_s)),
                    percent(run.communication),
                    f"{run.memory.needed / GIB:.1f}" + (" " if run.memory.fits else "*"),
                    f"{run.memory.room / GIB:.1f}",
                ]
            )
    lines = _wrap(
        "Every expert in place, no predictor, tokens travel; pipeline (a stage per GPU), mixed "
        "(half of the layers EP on half of the GPUs, half DP on the others) and dynamic (the "
        "hybrid, experts move by the loads seen) are those that the published text left out. *: "
        "does not fit, computed as if it did."
    )
    return lines + _table(header, table, left=1)


def memory(result: Result) -> list[str]:
    """What the fullest GPU needs."""
    m = result.study.assumptions.memory_reduction
    header = ["strategy", "EPxDP", "all experts", f"tokens, m={m:g}", f"weights, m={m:g}", "has"]
    rows = [
        [f"{name} {SHORT[strategy.replace(' ', '_')]}", *rest]
        for name, strategy, *rest in unfit_summary(result)
    ]
    lines = _wrap(
        "Memory of the fullest GPU, GiB: experts, other weights, KV cache and activations, and "
        "what it has after the reserve; *: does not fit"
    )
    return lines + _table(header, rows, left=2)


def sensitivity(result: Result) -> list[str]:
    """The hybrid's speed-up by each swept assumption."""
    lines: list[str] = []
    titles = {
        "accuracy": "Speed-up of the hybrid by accuracy of the predictor",
        "memory_reduction": "Speed-up of the hybrid by memory reduction m",
        "links": "Speed-up of the hybrid with every link this many times as fast",
        "prophet_memory": "Speed-up when Prophet alone has memory reduction m",
    }
    for sweep in titles:
        rows, header = [], []
        for (name, reading), found in result.sweeps.items():
            of = next(one for one in found if one.name == sweep)
            header = ["", *(f"{value:g}" for value in of.values)]
            travels = {"dispatch": "tokens travel", "fetch": "weights travel"}[reading]
            rows.append([f"{name} {travels}", *(number(one.speedup) for one in of.found)])
        lines += [*([""] if lines else []), titles[sweep], *_table(header, rows, left=1)]
    return lines


def claim_table(result: Result) -> list[str]:
    """Every claim: published, closed form, simulated twice; below it what would have to be true."""
    lines = _wrap(
        "Claims. =: reproduced, ~: direction only, x: not reproduced; *: does not fit in memory. "
        "tokens, weights: the simulated hybrid when these travel. Below a claim: the nearest value "
        "of one assumption at which it would hold, all else as stated (a simulated one is "
        "interpolated); nowhere: for no "
        f"{_sweeps(result)}."
    )
    columns = (36, 13, 11, 10, 10)
    lines.append(_cells(("", "published", "form", "tokens", "weights"), columns))
    system = ""
    names = [*result.study.systems, "all"]
    for judged in sorted(result.judged, key=lambda one: names.index(one.system)):
        if judged.system != system:
            system = judged.system
            lines.append(system if system != "all" else "all systems")
        cells = (
            f"  {judged.text}",
            grouped(judged.published),
            told(judged, judged.form),
            *(told(judged, judged.simulated.get(reading)) for reading in READINGS),
        )
        first, *rest = textwrap.wrap(cells[0].strip(), columns[0] - 2)
        lines.append(_cells((f"  {first}", *cells[1:]), columns))
        lines += [f"    {line}" for line in rest]
        lines += conditions(judged)
    return [line.rstrip() for line in lines]


def _sweeps(result: Result) -> str:
    """What was swept, with its ends."""
    extent = result.extent
    ends = (
        ("accuracy", extent.accuracies),
        ("memory reduction", extent.memory_reductions),
        ("every link x", extent.link_factors),
    )
    return ", ".join(f"{name} {of[0]:g}-{of[-1]:g}" for name, of in ends)


def conditions(judged: claims.Judged) -> list[str]:
    """Where a claim would hold, one line for the form and one per reading."""
    names = {"dispatch": "tokens", "fetch": "weights"}
    said = []
    if judged.form is not None and judged.form.holds_at:
        said.append(f"form: {judged.form.holds_at}")
    nowhere = []
    for reading, found in judged.simulated.items():
        if found.holds_at.startswith(NOWHERE):
            nowhere.append(names[reading])
        elif found.holds_at:
            said.append(f"{names[reading]}: {found.holds_at}")
    if nowhere:
        said.append(f"{', '.join(nowhere)}: nowhere")
    return [
        line
        for one in said
        for line in textwrap.wrap(one, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 8)
    ]


def told(judged: claims.Judged, found: claims.Found | None) -> str:
    """A found figure with its mark; yes or no for a claim on all systems."""
    if judged.published == "yes" and found is not None:
        mark = claims.MARKS[found.verdict] + (" " if found.fits else "*")
        return ("yes " if found.value else "no ") + mark
    return claims.told(found, judged.published)


def grouped(published: str) -> str:
    """A printed figure with its thousands apart."""
    parts = published.split("-")
    if published == "yes":
        return published
    shown = [f"{float(part):,.{len(part.partition('.')[2])}f}" for part in parts]
    return "-".join(shown)


def _cells(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = cells
    return f"{first:<{widths[0]}}" + "".join(
        f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)
    )


def _section(title: str, sentences: Sequence[str]) -> list[str]:
    lines = [title]
    for sentence in sentences:
        lines += textwrap.wrap(sentence, WIDTH, initial_indent="- ", subsequent_indent="  ")
    return lines


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Rows in columns, the first `left` flush left."""
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
