"""Curves and sentences of the study `deepseek-v3`, from its runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from simulator.studies.common.report import Chart
from simulator.studies.deepseek_v3.cases import (
    RECORDED,
    Reading,
    Runs,
    alone,
    decode,
    judged,
    prefill,
)
from simulator.studies.deepseek_v3.runs import EXACT, Case
from simulator.studies.deepseek_v3.spec import DeepSeek
from simulator.studies.deepseek_v3.tables import (
    GPUS_PER_NODE,
    MS,
    done_of,
    figure_of,
    published,
    size_of,
)


def charts(study: DeepSeek, runs: Runs) -> list[Chart]:
    """Throughput by prompt, and by sequences with and without overlap."""
    given = study.assumptions
    of = runs.readings[0]
    told: dict[str, list[tuple[float, float]]] = {"published": []}
    for reading in runs.readings:
        told[reading.name] = _line(
            runs, [prefill(study, reading, n) for n in given.prefill.lengths]
        )
    for length in given.prefill.lengths:
        claimed = published(study, f"prefill@{length}")
        if claimed is not None:
            told["published"].append((float(length), claimed))
    sizes = given.decode.sequences
    batches: dict[str, list[tuple[float, float]]] = {"published": []}
    for name, both in (("two-batch overlap", True), ("without", False)):
        batches[name] = _line(runs, [decode(study, of, n, both) for n in sizes])
    for size in sizes:
        claimed = published(study, f"decode@{size}")
        if claimed is not None:
            batches["published"].append((float(size), claimed))
    return [
        Chart("prefill", "Prefill EP32 by prompt", "tokens of a prompt", "token/s/node", told),
        Chart("decode", "Decode EP72 by batch", "sequences per GPU", "token/s/node", batches),
    ]


def _line(runs: Runs, cases: Sequence[Case]) -> list[tuple[float, float]]:
    points = []
    for case in cases:
        rate = runs.per_node(case)
        if rate is not None:
            points.append((float(size_of(case)), rate))
    return points


def findings(study: DeepSeek, runs: Runs) -> list[str]:
    """What the simulation shows, in sentences."""
    of = runs.readings[0]
    found = [READINGS]
    for reading in runs.readings:
        if reading.name == RECORDED:
            found.append(f"recorded: {reading.routing}, and EPLB by its loads.")
    cases = judged(study, of)
    for case, figure in zip(cases, ("prefill_alone", "decode_alone"), strict=True):
        run, one = done_of(runs, case), done_of(runs, alone(case))
        claimed = published(study, figure)
        with_ = published(study, figure_of(study, case))
        if run is None or one is None or claimed is None or with_ is None:
            continue
        found.append(
            f"{case.phase.capitalize()}: {100 * (one.per_node / claimed - 1):+.0f} % of what the "
            f"deployment reaches without overlap, {100 * (run.per_node / with_ - 1):+.0f} % with "
            f"it; a step is {MS * one.step_s:,.0f} and {MS * run.step_s:,.0f} ms, its computing "
            f"{MS * run.compute_s:,.0f} and its sending "
            f"{MS * run.seconds('dispatch', 'combine'):,.0f} ms."
        )
    exact = done_of(runs, replace(cases[1], network=EXACT))
    whole = done_of(runs, cases[1])
    if exact is not None and whole is not None:
        found.append(
            f"Message by message a step of decode takes {MS * exact.step_s:,.0f} ms, not "
            f"{MS * whole.step_s:,.0f}: with network: coflow all GPUs of a collective start and "
            "end together."
        )
    return [*found, *_growth(study, runs, of), *MISSING]


def _growth(study: DeepSeek, runs: Runs, of: Reading) -> list[str]:
    """How much longer a step of prefill is with long prompts, here and as published."""
    given = study.assumptions.prefill
    ends = min(given.lengths), max(given.lengths)
    runs_of = [done_of(runs, prefill(study, of, length)) for length in ends]
    claimed = [published(study, f"prefill@{length}") for length in ends]
    if runs_of[0] is None or runs_of[1] is None or claimed[0] is None or claimed[1] is None:
        return []
    attention = runs_of[1].seconds("attention") - runs_of[0].seconds("attention")
    tokens = GPUS_PER_NODE * given.tokens
    return [
        f"From prompts of {ends[0]:,} to {ends[1]:,} tokens a step of prefill grows by "
        f"{MS * (tokens / claimed[1] - tokens / claimed[0]):,.0f} ms as published, and by "
        f"{MS * (runs_of[1].step_s - runs_of[0].step_s):,.0f} ms here, where attention grows by "
        f"{MS * attention:,.0f} ms, a part of it behind transfers: real attention kernels do not "
        "reach the rate of a GEMM."
    ]


READINGS = (
    "Readings: law, the fitted law and EPLB; even, all experts equally popular (what perfect "
    "balance would give); exact, the law with network: exact, decode as judged only."
)
MISSING = (
    "Missing, 1: what overlap costs; without it decode is near what was measured, prefill 14 % "
    "above it. Kernels "
    "that run beside a transfer share HBM, L2 and the host's launches with it; here only the SMs "
    "that DeepEP's normal kernels hold are taken from them, and nothing by the low-latency ones, "
    "whose packing and reducing run on SMs, too.",
    "Missing, 2: scheduling between steps (sampling, batch building, streaming out), which the "
    "deployment's throughput includes and a step does not.",
    "Missing, 3: attention kernels are not fitted: no table of them is at hand, they take the "
    "rates of BF16 GEMMs (simulator/model/attention.py). Norms, rotary embedding and quantisation "
    "outside the fused MoE kernel count as in simulator/model.",
    "Missing, 4: imbalance of data-parallel attention and of arrivals (all GPUs have as many "
    "tokens; see the variant with exponential prompts), and DeepEP's kernel that exchanges counts.",
    "Missing, 5, the other way: tokens choose 4 of 8 groups of experts (n_group, topk_group), "
    "which a law of single experts does not have; fewer nodes per token would make prefill's "
    "dispatch and combine shorter (3.1 instead of 3.6 of 4 nodes if all groups were equal).",
    "DeepSeek's own figures are of H800, EP144, longer contexts, a day's mixed load, caches that "
    "hit 56.3 % of the input, and possibly multi-token prediction; only their order is compared.",
)


def refusals(runs: Runs) -> list[str]:
    """What could not be simulated."""
    refused = [run.refused for run in runs.found.values() if run.refused]
    if not refused:
        return []
    return [f"Not simulated, {len(refused)} runs; the first: {refused[0]}."]
