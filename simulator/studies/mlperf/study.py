"""The study `mlperf-summarization`: a two-node inference service, as published and simulated.

    from simulator.studies.mlperf.study import run_study
    from simulator.studies.mlperf.spec import load_study

    print(run_study(load_study(), quick=True).judged[1].verdict)

Warm rate, first sample and failure probability of each node go in; all else comes out. Readings:
`as run`, ten samples per node and jw2 stops after five; `often`, failures at random (mean over
seeds), and what-ifs over many samples; `FP16`, the batches of `often` in that type.
"""

from __future__ import annotations

from simulator.studies.common.claims import Published
from simulator.studies.common.report import Figures, Report, judge
from simulator.studies.common.runs import Progress
from simulator.studies.common.spec import Claim
from simulator.studies.mlperf.checks import Check, all_checks
from simulator.studies.mlperf.figures import (
    FP16,
    OFTEN,
    ONCE,
    batch_gains,
    form_figures,
    often_figures,
    once_figures,
    simulated_at,
)
from simulator.studies.mlperf.published import impossible, published_tables
from simulator.studies.mlperf.runs import memory_of
from simulator.studies.mlperf.spec import Mlperf
from simulator.studies.mlperf.tables import charts, findings, what_if_tables
from simulator.studies.mlperf.what_ifs import Runs, run_everything


def run_study(
    study: Mlperf,
    quick: bool = False,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Report:
    """Simulate, check the printed figures and judge every claim; InputError for what cannot be."""
    return report_of(study, run_everything(study, quick, progress, workers), quick)


def checks_of(study: Mlperf) -> dict[str, Check]:
    """The printed figures against each other."""
    weights, _ = memory_of(study)
    return all_checks(study.printed, weights, study.assumptions.gpu_memory_bytes)


def report_of(study: Mlperf, runs: Runs, quick: bool) -> Report:
    """The report of finished runs."""
    checks = checks_of(study)
    readings: dict[str, Figures] = {
        ONCE: once_figures(study, runs),
        OFTEN: often_figures(study, runs),
    }
    if any(dtype == "fp16" for dtype, _ in runs.batches):
        readings[FP16] = batch_gains(runs, "fp16", once=False)

    def at(name: str, claim: Claim, published: Published) -> str:
        return simulated_at(study, runs, name, claim, published)

    form = form_figures(study, checks)
    judged = judge(study.claims, study.verdicts, form, lambda *_: "", readings, at)
    extent = "quick: fewer seeds, samples and sweeps" if quick else "full"
    return Report(
        name="mlperf-summarization",
        title=(
            f"Study mlperf-summarization: Llama-3.1-8B on two nodes ({extent}). form: the nearest "
            "figure that the other printed ones allow"
        ),
        judged=judged,
        shown={name: name for name in readings},
        tables=[*published_tables(study, runs, checks), *what_if_tables(study, runs)],
        charts=charts(study, runs),
        notes=[
            *impossible(checks),
            *findings(study, runs),
            *(f"Source: {source}." for source in study.sources),
            *study.notes,
        ],
    )
