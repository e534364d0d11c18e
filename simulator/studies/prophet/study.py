"""The study `prophet`: expert prediction and prefetch on four clusters, claimed and simulated.

from simulator.studies.prophet.study import run_study
from simulator.studies.prophet.spec import load_study

result = run_study(load_study(), quick=True)
print(result.hybrid["8xA100"]["dispatch"].speedup)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from simulator.studies.prophet.claims import judge
from simulator.studies.prophet.forms import Figures, closed_form, figures
from simulator.studies.prophet.result import (
    SWEEPS,
    Result,
    Sweep,
    hybrid_parallel,
    predictor,
    readings,
)
from simulator.studies.prophet.runs import (
    Access,
    Case,
    Outcome,
    Parallel,
    Progress,
    dynamic,
    left_out,
    parallel,
    refuse_other_experts,
    run_all,
    strategies,
)
from simulator.studies.prophet.spec import Extent, Prophet


def run_study(
    study: Prophet,
    quick: bool = False,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Result:
    """Simulate, evaluate the closed form and judge every claim; InputError for what cannot be."""
    refuse_other_experts(study)
    extent = study.simulation.quick if quick else study.simulation.full
    cases = [*strategy_cases(study, extent), *single_cases(study)]
    for name in study.systems:
        for reading in readings(study, name):
            for sweep in SWEEPS:
                cases += [c for pair in swept(study, extent, name, reading, sweep) for c in pair]
    runs = run_all(study, extent, cases, progress, workers)
    forms = {
        name: {
            strategy: closed_form(study.point(name, *degrees))
            for strategy, degrees in strategies(system).items()
        }
        for name, system in study.systems.items()
    }
    hybrid = {
        name: {
            reading: simulated(
                study, runs, name, hybrid_parallel(study, name), reading, reading == "dispatch"
            )
            for reading in readings(study, name)
        }
        for name in study.systems
    }
    sweeps = {
        (name, reading): [_sweep(study, extent, runs, name, reading, sweep) for sweep in SWEEPS]
        for name in study.systems
        for reading in readings(study, name)
    }
    found = Result(study, extent, quick, runs, forms, hybrid, sweeps, [])
    return replace(found, judged=judge(found))


# --- What is simulated ------------------------------------------------------------------


def strategy_cases(study: Prophet, extent: Extent) -> list[Case]:
    """Every strategy, reading and predictor on every system; and with all experts in place every
    strategy and those that the published text left out.
    """
    m = study.assumptions.memory_reduction
    found = []
    for name, system in study.systems.items():
        for ep, _ in strategies(system).values():
            found.append(Case(name, parallel(ep=ep), "dispatch", "none", 1.0))
            for reading in readings(study, name, ep):
                for who in extent.predictors:
                    found.append(Case(name, parallel(ep=ep), reading, predictor(study, who), m))
        for of in left_out(study, name).values():
            found.append(Case(name, of, "dispatch", "none", 1.0))
        if moving := dynamic(study, name):
            found.append(moving)
    return found


def single_cases(study: Prophet) -> list[Case]:
    """One GPU alone, of each system: with all experts in place, and as the hybrid's GPUs."""
    m = study.assumptions.memory_reduction
    who = predictor(study, "stated")
    return [
        Case(name, parallel(ep=1), "dispatch", *given, gpus=1)
        for name in study.systems
        for given in (("none", 1.0), ("none", m), (who, m))
    ]


def swept(
    study: Prophet, extent: Extent, system: str, reading: Access, sweep: str
) -> list[tuple[Case, Case]]:
    """Baseline and Prophet of the hybrid for each value of a sweep."""
    m, who = study.assumptions.memory_reduction, predictor(study, "stated")
    of = hybrid_parallel(study, system)
    base, prophet = Case(system, of, reading, "none", m), Case(system, of, reading, who, m)
    if sweep == "accuracy":
        return [(base, replace(prophet, predictor=f"synthetic:{a:g}")) for a in extent.accuracies]
    if sweep == "links":
        return [(replace(base, links=x), replace(prophet, links=x)) for x in extent.link_factors]
    both = [replace(base, memory_reduction=x) for x in extent.memory_reductions]
    # Where nothing is left out, nothing is predicted.
    ahead = [
        replace(prophet, memory_reduction=x) if x > 1.0 else replace(base, memory_reduction=x)
        for x in extent.memory_reductions
    ]
    if sweep == "prophet_memory":
        both = [base] * len(ahead)
    return list(zip(both, ahead, strict=True))


def simulated(
    study: Prophet,
    runs: Mapping[Case, Outcome],
    system: str,
    of: Parallel,
    reading: Access,
    scaling: bool = False,
) -> Figures:
    """What the simulation says of a strategy, given as its `parallel` mapping. scaling: whether
    one GPU alone was simulated to compare with (it has no peer to fetch from).
    """
    m, who = study.assumptions.memory_reduction, predictor(study, "stated")
    pair = (Case(system, of, reading, "none", m), Case(system, of, reading, who, m))
    return _figures(study, runs, *pair, scaling)


def _figures(
    study: Prophet,
    runs: Mapping[Case, Outcome],
    base: Case,
    prophet: Case,
    scaling: bool = False,
) -> Figures:
    one, two = runs[base], runs[prophet]
    system = study.systems[base.system]
    alone: list[float | None] = [None, None]
    if scaling:
        for index, case in enumerate((base, prophet)):
            of = replace(case, parallel=parallel(ep=1), access="dispatch", gpus=1)
            alone[index] = runs[case].tokens_per_s / (system.gpus * runs[of].tokens_per_s)
    return figures(
        study.point(base.system, base.ep, system.gpus // base.ep),
        (one.tokens_per_s, two.tokens_per_s),
        (one.communication, two.communication),
        one.bytes_per_token / two.bytes_per_token if two.bytes_per_token else None,
        (alone[0], alone[1]),
    )


def _sweep(
    study: Prophet,
    extent: Extent,
    runs: Mapping[Case, Outcome],
    system: str,
    reading: Access,
    sweep: str,
) -> Sweep:
    values = {
        "accuracy": extent.accuracies,
        "memory_reduction": extent.memory_reductions,
        "prophet_memory": extent.memory_reductions,
        "links": extent.link_factors,
    }[sweep]
    pairs = swept(study, extent, system, reading, sweep)
    return Sweep(sweep, values, tuple(_figures(study, runs, *pair) for pair in pairs))
