"""The figures of `mlperf-summarization`: what the printed text and each reading give."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from simulator.studies.common.claims import Published, crossing
from simulator.studies.common.report import Value
from simulator.studies.common.spec import Claim
from simulator.studies.mlperf.checks import Check
from simulator.studies.mlperf.runs import STATIC, Run, mean_of
from simulator.studies.mlperf.spec import Mlperf
from simulator.studies.mlperf.what_ifs import AWARE, Runs

ONCE, OFTEN, FP16 = "as run", "often", "FP16"
NEAR, EVEN, SERVED, LINEAR = 0.15, 0.10, 0.99, 0.9
# Claims of what a check says of another cell: (cell, what to take off).
SAME = {"beyond_linear": ("efficiency", 100.0), "latency_saved": ("latency_efficiency", 100.0)}
LIMIT = "server"


def form_figures(study: Mlperf, checks: Mapping[str, Check]) -> dict[str, Value]:
    """For each claim that a check covers the figure nearest to it that the others allow."""
    found: dict[str, Value] = {}
    for claim in study.claims:
        name, less = SAME.get(claim.figure, (claim.figure, 0.0))
        if name in checks:
            found[claim.figure] = (checks[name].nearest - less) / claim.scale
    return found


# --- the service -------------------------------------------------------------------------


def service_figures(run: Run) -> dict[str, Value]:
    """Figures of one run of both nodes; None where nothing finished on a node."""
    found: dict[str, Value] = {}
    for number, name in enumerate(("jw2", "jw3")):
        found |= {f"{what}_{name}": value for what, value in node_figures(run, number).items()}
    for what in ("rate", "tokens"):
        both = [found[f"{what}_{name}"] for name in ("jw2", "jw3")]
        known = [float(one) for one in both if one is not None]
        found[f"{what}_both"] = sum(known)
        found[f"{what}_variance"] = known[1] / known[0] - 1.0 if len(known) == 2 else None
    jw2, jw3 = found["latency_jw2"], found["latency_jw3"]
    found["latency_both"] = float(run.latency_s().mean())
    found["latency_variance"] = jw2 / jw3 - 1.0 if jw2 and jw3 else None
    found["peak_rate"] = float(run.rates().max())
    found["lowest_rate"] = float(run.rates().min())
    found["cold_excess"] = _cold_excess(run)
    found["within_15"] = found["near_jw3"]
    return found


def node_figures(run: Run, node: int) -> dict[str, Value]:
    """Figures of the samples that a node finished; rate: 1 / mean latency; tokens: mean of the
    samples' rates; near: share within 15 % of the mean.
    """
    latency = run.latency_s(node)
    number = len(latency)
    if not number:
        return dict.fromkeys(("rate", "tokens", "latency", "low", "high", "sd", "near", "success"))
    mean = float(latency.mean())
    return {
        "rate": 1.0 / mean,
        "tokens": float(run.rates(node).mean()),
        "latency": mean,
        "low": float(latency.min()),
        "high": float(latency.max()),
        "sd": float(latency.std(ddof=1)) if number > 1 else None,
        "near": float((abs(latency / mean - 1.0) <= NEAR).mean()),
        "success": number / int((run.node == node).sum()),
    }


def _cold_excess(run: Run) -> float | None:
    """The first node's first sample over the mean of those that it finished; None if it failed."""
    mine = np.flatnonzero((run.node == 0) & (run.start_s >= 0.0))
    first = mine[run.start_s[mine].argmin()]
    if not run.done[first]:
        return None
    return float((run.end_s - run.start_s)[first] / run.latency_s(0).mean()) - 1.0


def once_figures(study: Mlperf, runs: Runs) -> dict[str, Value]:
    """The reading `as run`: ten samples per node, the first node stops after those it served."""
    once = runs.once
    found = service_figures(once)
    alone = [node_figures(run, 0) for run in runs.alone]
    samples = np.concatenate([run.latency_s() for run in runs.alone])
    found |= against_alone(found, alone, float(samples.mean()))
    found["throughput_lost"] = 1.0 - once.delivered_per_s / runs.whole.delivered_per_s
    found["network_matters"] = bool((abs(runs.far.end_s - once.end_s) > 1e-9).any())
    memory = study.assumptions.gpu_memory_bytes
    found["memory_gib"] = once.used_bytes / 2.0**30
    found["memory_share"] = once.used_bytes / memory
    found["memory_gain"] = runs.memory.used_bytes / once.used_bytes - 1.0
    found |= batch_gains(runs, _first_dtype(runs), once=True)
    balanced = runs.balance_once
    found["balance_gain"] = balanced[AWARE].delivered_per_s / balanced[STATIC].delivered_per_s - 1.0
    warm = runs.warm.latency_s(0)
    found["warm_even"] = bool(warm.std(ddof=1) < EVEN * warm.mean())
    found["nodes_linear"] = _linear(runs, once=True)
    return found


def against_alone(
    both: Mapping[str, Value], alone: list[dict[str, Value]], alone_s: float
) -> dict[str, Value]:
    """Both nodes against each by itself; alone_s: mean latency of the samples of these."""
    rates = [float(one["rate"]) for one in alone if one["rate"] is not None]
    tokens = [float(one["tokens"]) for one in alone if one["tokens"] is not None]
    if len(rates) < 2:
        return dict.fromkeys(("rate_single", "beyond_linear", "tokens_single", "tokens_scaling"))
    rate, token = both["rate_both"] or 0.0, both["tokens_both"] or 0.0
    return {
        "rate_single": sum(rates) / 2.0,
        "beyond_linear": rate / sum(rates) - 1.0,
        "tokens_single": sum(tokens) / 2.0,
        "tokens_scaling": 2.0 * token / sum(tokens),
        "latency_saved": 1.0 - (both["latency_both"] or 0.0) / alone_s,
    }


def often_figures(study: Mlperf, runs: Runs) -> dict[str, Value]:
    """The reading `often`: failures at random, mean over seeds; what-ifs over many warm samples."""
    each = [service_figures(run) for run in runs.random]
    found: dict[str, Value] = {
        name: mean_of([None if one[name] is None else float(one[name] or 0.0) for one in each])
        for name in each[0]
    }
    whole = runs.whole.delivered_per_s
    found["throughput_lost"] = mean_of([1.0 - r.delivered_per_s / whole for r in runs.random])
    found |= batch_gains(runs, _first_dtype(runs), once=False)
    found["balance_gain"] = balance_gains(runs)[1.0]
    most = max(runs.attempts)
    served = mean_of([float(run.done.mean()) for run in runs.attempts[most]])
    found["retries_serve"] = served is not None and served >= SERVED
    found["nodes_linear"] = _linear(runs, once=False)
    found |= parallel_figures(study, runs)
    base = runs.batches[_first_dtype(runs), 1][1].delivered_per_s
    if ("int8", 1) in runs.batches:
        found["int8_more"] = runs.batches["int8", 1][1].delivered_per_s > 1.01 * base
    rates = {batch: runs.server[LIMIT, batch] or 0.0 for _, batch in runs.server}
    found["adaptive_more"] = rates[max(rates)] > 1.01 * rates[1]
    return found


def _first_dtype(runs: Runs) -> str:
    return next(iter(runs.batches))[0]


def batch_gains(runs: Runs, dtype: str, once: bool) -> dict[str, Value]:
    """Samples/s of each batch over those of batch 1."""
    at = 0 if once else 1
    base = runs.batches[dtype, 1][at].delivered_per_s
    return {
        f"batch_gain@{batch}": pair[at].delivered_per_s / base
        for (of, batch), pair in runs.batches.items()
        if of == dtype
    }


def balance_gains(runs: Runs) -> dict[float, float]:
    """What balancing gains over static shares, by how much slower the first node is."""
    return {
        ratio: runs.balance[ratio, AWARE].delivered_per_s
        / runs.balance[ratio, STATIC].delivered_per_s
        - 1.0
        for ratio, of in runs.balance
        if of == AWARE
    }


def node_gains(runs: Runs, once: bool) -> dict[int, float]:
    """Samples/s of so many nodes over those of two."""
    at = 0 if once else 1
    base = runs.nodes[2][at].delivered_per_s
    return {many: pair[at].delivered_per_s / base for many, pair in runs.nodes.items()}


def _linear(runs: Runs, once: bool) -> bool:
    return all(gain >= LINEAR * many / 2 for many, gain in node_gains(runs, once).items())


def parallel_figures(study: Mlperf, runs: Runs) -> dict[str, Value]:
    """Tensor and pipeline parallel against replicas on the first network, the study's own."""
    link = next(iter(study.what_ifs.links))
    split = {plan: runs.parallel.get((link, plan)) for plan in ("replicas", "TP 2", "PP 2")}
    replicas, tp, pp = split["replicas"], split["TP 2"], split["PP 2"]
    if replicas is None or tp is None or pp is None:
        return {}
    return {
        "parallel_memory": max(tp.bytes_per_gpu, pp.bytes_per_gpu) < 0.99 * replicas.bytes_per_gpu,
        "pp_faster": pp.latency_s < 0.99 * replicas.latency_s,
        "pp_more": pp.samples_per_s > 1.01 * replicas.samples_per_s,
    }


# --- what would have to be true ----------------------------------------------------------

SWEPT = {"warm": "warm rates x", "first": "first samples x", "failed": "jw2 fails"}


def simulated_at(study: Mlperf, runs: Runs, reading: str, claim: Claim, of: Published) -> str:
    """At which value of what was varied a figure of a reading is the claimed one."""
    if claim.figure.startswith("batch_gain"):
        gains = batch_gains(runs, _dtype(runs, reading), reading == ONCE)
        batches = {int(name.partition("@")[2]): float(gain or 0.0) for name, gain in gains.items()}
        return _crossed([*batches], [*batches.values()], of, claim, 1.0, "batch {}")
    if claim.figure == "balance_gain":
        gain = balance_gains(runs)
        told = "a node {} times as slow as the other"
        return _crossed([*gain], [*gain.values()], of, claim, 1.0, told)
    if claim.figure in ("beyond_linear", "latency_saved"):
        return "no value of the inputs: the nodes share nothing"
    figures = service_figures(runs.once)
    if reading != ONCE or claim.figure not in figures:
        return ""
    if claim.figure == "within_15":
        return f"no share of {len(study.assumptions.outputs)} samples"
    found, looked = [], []
    for name, told in SWEPT.items():
        values = {value: run for (what, value), run in runs.swept.items() if what == name}
        ys = [_float(service_figures(run)[claim.figure], claim) for run in values.values()]
        start = 1.0 if name != "failed" else study.inputs.nodes.jw2.failure_probability
        x = crossing([*values], ys, of, start)
        looked.append(f"{told} {min(values):g}-{max(values):g}")
        if x is not None:
            found.append(f"{told} {x:.3g}")
    return " or ".join(found) if found else f"none of {', '.join(looked)}"


def _dtype(runs: Runs, reading: str) -> str:
    return "fp16" if reading == FP16 else _first_dtype(runs)


def _float(value: Value, claim: Claim) -> float | None:
    return None if value is None else float(value) * claim.scale


def _crossed(
    xs: list[float] | list[int],
    values: list[float],
    of: Published,
    claim: Claim,
    start: float,
    told: str,
) -> str:
    """The x at which the values reach either end of the claim, or between which they lie in it."""
    known = [float(x) for x in xs]
    ys = [value * claim.scale for value in values]
    ends = [
        crossing(known, ys, Published(end, end, 0.0), start)
        for end in dict.fromkeys((of.low, of.high))
    ]
    there = sorted({end for end in ends if end is not None})
    if not there:
        return f"none of {told.format(f'{known[0]:g}-{known[-1]:g}')}"
    return told.format("-".join(f"{x:.3g}" for x in there))
