"""The tables of the published text made again: each cell an input, an output, or impossible."""

from __future__ import annotations

from collections.abc import Mapping

from simulator.studies.common.claims import figure
from simulator.studies.common.report import Cell, Table, Value
from simulator.studies.mlperf.checks import Check
from simulator.studies.mlperf.figures import once_figures, service_figures
from simulator.studies.mlperf.spec import Mlperf
from simulator.studies.mlperf.what_ifs import Runs
from simulator.studies.repeats import mean_and_half

INPUT, OUTPUT, IMPOSSIBLE = "input", "output", "impossible"
# Cells that are inputs, or follow from one alone.
INPUTS = frozenset({"high_jw2", "high_jw3", "success_jw2", "success_jw3", "lowest_rate"})
PUBLISHED_TABLES: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "scaling": (
        "Scaling efficiency",
        (
            ("samples/s, single GPU", "rate_single"),
            ("samples/s, dual, theory", "rate_theory"),
            ("samples/s, dual", "rate_both"),
            ("samples/s, efficiency, %", "efficiency"),
            ("token/s, single GPU", "tokens_single"),
            ("token/s, dual", "tokens_both"),
            ("token/s, efficiency, %", "tokens_efficiency"),
            ("latency, dual, ms", "latency_both"),
            ("latency, efficiency, %", "latency_efficiency"),
            ("throughput lost, %", "throughput_lost"),
        ),
    ),
    "nodes": (
        "Node symmetry",
        (
            ("samples/s, jw2", "rate_jw2"),
            ("samples/s, jw3", "rate_jw3"),
            ("  difference", "rate_gap"),
            ("  variance, %", "rate_variance"),
            ("latency, jw2, ms", "latency_jw2"),
            ("latency, jw3, ms", "latency_jw3"),
            ("  difference, ms", "latency_gap"),
            ("  variance, %", "latency_variance"),
            ("token/s, jw2", "tokens_jw2"),
            ("token/s, jw3", "tokens_jw3"),
            ("  variance, %", "tokens_variance"),
            ("success, jw2, %", "success_jw2"),
            ("success, jw3, %", "success_jw3"),
        ),
    ),
    "latency": (
        "Latency distribution",
        (
            ("minimum, jw3, ms", "low_jw3"),
            ("maximum, jw3, ms", "high_jw3"),
            ("average, jw3, ms", "latency_jw3"),
            ("deviation, jw3, ms", "sd_jw3"),
            ("within 15 %, jw3, %", "within_15"),
            ("minimum, jw2, ms", "low_jw2"),
            ("maximum, jw2, ms", "high_jw2"),
            ("average, jw2, ms", "latency_jw2"),
            ("deviation, jw2, ms", "sd_jw2"),
            ("cold start, jw2, %", "cold_excess"),
        ),
    ),
    "memory": (
        "Memory",
        (
            ("per node, GB (GiB)", "memory_node"),
            ("both, GB (GiB)", "memory_total"),
            ("used of 32 GB, %", "memory_share"),
        ),
    ),
    "tokens": (
        "Token generation",
        (
            ("peak of nodes, token/s", "tokens_jw3"),
            ("least of nodes, token/s", "tokens_jw2"),
            ("average, token/s", "tokens_single"),
            ("consistency, %", "tokens_consistency"),
            ("combined, token/s", "tokens_both"),
            ("peak sample, token/s", "peak_rate"),
            ("lowest sample, token/s", "lowest_rate"),
        ),
    ),
}


def cells(figures: Mapping[str, Value]) -> dict[str, float]:
    """The figures of a run in the units of the published tables, as far as it has them."""
    known = {name: float(value) for name, value in figures.items() if value is not None}
    found: dict[str, float] = {}
    for name, value in known.items():
        scale = 1.0
        if name.endswith("_variance") or name.startswith(("success", "within", "cold_excess")):
            scale = 100.0
        elif name.startswith(("latency_", "low_", "high_", "sd_")):
            scale = 1000.0
        elif name in ("throughput_lost", "memory_share"):
            scale = 100.0
        found[name] = scale * value
    for gap, (more, less) in {
        "rate_gap": ("rate_jw3", "rate_jw2"), "latency_gap": ("latency_jw2", "latency_jw3")
    }.items():  # fmt: skip
        if more in found and less in found:
            found[gap] = found[more] - found[less]
    if "tokens_jw2" in found and "tokens_jw3" in found:
        found["tokens_consistency"] = 100.0 * found["tokens_jw2"] / found["tokens_jw3"]
    if "rate_single" in known:
        found["rate_theory"] = 2.0 * known["rate_single"]
        found["efficiency"] = 100.0 * (1.0 + known["beyond_linear"])
        found["tokens_efficiency"] = 50.0 * known["tokens_scaling"]
        found["latency_efficiency"] = 100.0 / (1.0 - known["latency_saved"])
    if "memory_gib" in known:
        found["memory_node"] = known["memory_gib"]
        found["memory_total"] = 2.0 * known["memory_gib"]
    return found


def kind_of(name: str, checks: Mapping[str, Check]) -> str:
    """Whether a cell is an input, an output, or cannot be."""
    if name in checks and not checks[name].possible:
        return IMPOSSIBLE
    return INPUT if name in INPUTS else OUTPUT


def published_tables(study: Mlperf, runs: Runs, checks: Mapping[str, Check]) -> list[Table]:
    """The tables of the text, each cell with what it is and what the runs give."""
    once = cells(once_figures(study, runs))
    each = []
    for run in runs.random:
        lost = 1.0 - run.delivered_per_s / runs.whole.delivered_per_s
        each.append(cells(service_figures(run) | {"throughput_lost": lost}))
    found = []
    for name, (title, rows) in PUBLISHED_TABLES.items():
        said = f"{title}. random: mean of {len(each)} seeds and half of its 95 % interval"
        lines: list[tuple[Cell, ...]] = []
        for told, cell in rows:
            printed = study.printed[cell]
            values = [one[cell] for one in each if cell in one]
            lines.append(
                (
                    told, printed, kind_of(cell, checks), figure(once.get(cell), printed),
                    _mean(values, printed),
                )
            )  # fmt: skip
        columns = ("cell", "published", "is", "as run", "random")
        found.append(Table(name, said, columns, lines))
    return found


def _mean(values: list[float], printed: str) -> str:
    if not values:
        return "-"
    mean, half = mean_and_half(values)
    told = figure(mean, printed)
    return told if half is None else f"{told} ± {figure(half, printed)}"


def impossible(checks: Mapping[str, Check]) -> list[str]:
    """Every cell that cannot be, with the sum, in sentences."""
    labels = {name: told for _, rows in PUBLISHED_TABLES.values() for told, name in reversed(rows)}
    found = []
    for name, one in checks.items():
        if one.possible:
            continue
        digits = len(one.printed.partition(".")[2])
        allowed = []
        for ends in one.ranges:
            shown = dict.fromkeys(f"{end:,.{digits}f}" for end in ends)
            allowed.append(" to ".join(shown))
        told = f"{labels[name].strip()}: {one.printed}"
        found.append(f"Impossible: {told}; others allow {' or '.join(allowed)}: {one.why}.")
    return found
