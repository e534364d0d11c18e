"""What the study `prophet` found, and how its parts are named.

Readings: `dispatch`, tokens travel and what a GPU does not keep comes from host memory; `fetch`,
weights travel from the GPU that owns them, as the published text has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from simulator.studies.common.claims import Judged
from simulator.studies.prophet.forms import Figures, dollars_per_million
from simulator.studies.prophet.runs import (
    Access,
    Case,
    Outcome,
    Parallel,
    left_out,
    parallel,
    strategies,
)
from simulator.studies.prophet.spec import Extent, Prophet

READINGS: tuple[Access, ...] = ("dispatch", "fetch")
SWEEPS = {
    "accuracy": "accuracy {}",
    "memory_reduction": "memory reduction {}",
    "links": "every link x {}",
    "prophet_memory": "Prophet alone with memory reduction {}",
}


@dataclass(frozen=True)
class Sweep:
    """One assumption varied, all else as stated: `values` and what the hybrid gives at each."""

    name: str
    values: tuple[float, ...]
    found: tuple[Figures, ...]


@dataclass(frozen=True)
class Result:
    """All that the study found.

    runs: every simulated case; forms: system -> strategy -> closed form; hybrid: system -> reading
    -> figures of the simulated hybrid; sweeps: (system, reading) -> sweeps; judged: all claims.
    """

    study: Prophet
    extent: Extent
    quick: bool
    runs: dict[Case, Outcome]
    forms: dict[str, dict[str, Figures]]
    hybrid: dict[str, dict[Access, Figures]]
    sweeps: dict[tuple[str, Access], list[Sweep]]
    judged: list[Judged]


def readings(study: Prophet, system: str, ep: int | None = None) -> list[Access]:
    """The readings that differ: a GPU that shares its experts with nobody has no peer to fetch
    from.
    """
    degree = strategies(study.systems[system])["hybrid"][0] if ep is None else ep
    return [*READINGS] if degree > 1 else ["dispatch"]


def hybrid_parallel(study: Prophet, system: str) -> Parallel:
    """The `parallel` mapping of a system's hybrid."""
    return parallel(ep=strategies(study.systems[system])["hybrid"][0])


def predictor(study: Prophet, name: str) -> str:
    """A predictor of the study as a workload's `prefetch`."""
    return f"synthetic:{study.assumptions.accuracy:g}" if name == "stated" else name


def fits(result: Result, system: str, reading: Access) -> bool:
    """Whether the simulated hybrid fits in the GPUs' memory."""
    study = result.study
    m = study.assumptions.memory_reduction
    of = hybrid_parallel(study, system)
    return result.runs[Case(system, of, reading, "none", m)].memory.fits


def flat_rows(result: Result) -> list[dict[str, object]]:
    """Every simulated case and every closed form as one flat row each, for tables."""
    rows = []
    for name, system in result.study.systems.items():
        for strategy, (ep, dp) in strategies(system).items():
            form = result.forms[name][strategy]
            for who, rate, comm, cost in (
                ("none", form.baseline_tokens_per_s, form.comm_baseline, form.cost_baseline),
                ("stated", form.prophet_tokens_per_s, form.comm_prophet, form.cost_prophet),
            ):
                rows.append(
                    _row(name, strategy, ep, dp, "closed-form", predictor(result.study, who))
                    | {
                        "tokens_per_s": rate,
                        "speedup": rate / form.baseline_tokens_per_s,
                        "communication": comm,
                        "dollars_per_1M_tokens": cost,
                    }
                )
        rows += [
            _simulated_row(result, case, found)
            for case, found in result.runs.items()
            if case.system == name
        ]
    return rows


def _row(
    system: str, strategy: str, ep: int | None, dp: int | None, method: str, predictor: str
) -> dict[str, object]:
    return {
        "system": system,
        "strategy": strategy,
        "ep": ep,
        "dp": dp,
        "method": method,
        "predictor": predictor,
    }


def _simulated_row(result: Result, case: Case, found: Outcome) -> dict[str, object]:
    study = result.study
    gpus = case.gpus or study.systems[case.system].gpus
    ep = case.ep
    named = {degrees: name for name, degrees in strategies(study.systems[case.system]).items()}
    strategy = "one_gpu" if case.gpus else named.get((ep, gpus // ep), "")
    if case.plan:
        strategy = next(n for n, of in left_out(study, case.system).items() if of == case.parallel)
    if case.rebalance:
        strategy = "dynamic_placement"
    point = study.point(case.system, ep, gpus // ep)._replace(gpus=gpus)
    base = result.runs.get(replace(case, predictor="none"))
    shown: tuple[int | None, int | None] = (None, None) if case.plan else (ep, gpus // ep)
    method = f"simulated-{case.access}"
    return _row(case.system, strategy, *shown, method, case.predictor) | {
        "memory_reduction": case.memory_reduction,
        "links": case.links,
        "slots": found.slots,
        "fits": "yes" if found.memory.fits else "no",
        "needed_GiB": found.memory.needed / 2**30,
        "room_GiB": found.memory.room / 2**30,
        "tokens_per_s": found.tokens_per_s,
        "speedup": found.tokens_per_s / base.tokens_per_s if base else None,
        "communication": found.communication,
        "bytes_per_token": found.bytes_per_token,
        "hit_rate": found.hit_rate,
        "late_hit_rate": found.late_rate,
        "prefetch_accuracy": found.prefetch_accuracy,
        "busiest_link": found.busiest_link,
        "dollars_per_1M_tokens": dollars_per_million(point, found.tokens_per_s),
    }


def columns(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """The names of all columns, in the order of their first use."""
    return list(dict.fromkeys(name for row in rows for name in row))
