"""The study `large-ep`: one expert per GPU and layer against TP8 x PP2, claimed and simulated.

    from simulator.studies.large_ep.study import run_study
    from simulator.studies.large_ep.spec import load_study

    print(run_study(load_study(), quick=True).judged[0].verdict)

The baseline is simulated with every number of micro-batches and the fastest counts; EP with each
kind of overlap, and the fastest counts. Loads are drawn uniformly (a gate in balance); what an
unbalanced one does, on a recorded routing, stands in the ablation.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from simulator.errors import InputError
from simulator.studies.common.claims import Published, crossing
from simulator.studies.common.report import Figures, Report, Value, judge
from simulator.studies.common.runs import Progress
from simulator.studies.common.spec import Claim
from simulator.studies.large_ep import forms
from simulator.studies.large_ep.runs import GROWN, NO_OVERLAP, Runs, simulate_all
from simulator.studies.large_ep.spec import LargeEp, point, raw_rates
from simulator.studies.large_ep.tables import charts, findings, parameters, refusals, tables

GB = 1e9
NEAR_LINEAR = 0.9
SIMULATED_MATRICES = 3  # gate, up and down


def run_study(
    study: LargeEp,
    quick: bool = False,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Report:
    """Simulate, evaluate the closed forms and judge every claim; InputError for what cannot be."""
    refuse_other_model(study)
    with tempfile.TemporaryDirectory(prefix="large-ep-") as folder:
        runs = simulate_all(study, quick, Path(folder), progress, workers)
    return report_of(study, runs, quick)


def report_of(study: LargeEp, runs: Runs, quick: bool) -> Report:
    """The report of finished runs."""
    form = form_figures(study, runs)
    simulated = {name: simulated_figures(study, runs, name) for name in study.networks}

    def form_at(claim: Claim, published: Published) -> str:
        name, _, gpus = claim.figure.partition("@")
        if name not in ("speedup", "latency"):
            return ""
        return forms.holds_at(_form_point(study, runs, int(gpus)), published)

    def simulated_at(name: str, claim: Claim, published: Published) -> str:
        return _simulated_at(study, runs, name, claim, published)

    judged = judge(study.claims, study.verdicts, form, form_at, simulated, simulated_at)
    extent = "quick: top-1, links not swept" if quick else "full"
    return Report(
        name="large-ep",
        title=f"Study large-ep: one expert per GPU against TP and PP ({extent})",
        judged=judged,
        shown={name: network.told for name, network in study.networks.items()},
        tables=tables(study, runs),
        charts=charts(study, runs),
        notes=[*findings(study, runs), *refusals(runs), *parameters(study), *study.notes],
    )


def refuse_other_model(study: LargeEp) -> None:
    """Raise InputError unless the simulated experts do the FLOPs that the closed form counts."""
    given = study.assumptions
    found = SIMULATED_MATRICES * given.simulated_intermediate
    asked = given.matrices * given.intermediate
    if abs(found / asked - 1.0) > 1e-3:
        raise InputError(
            f"assumptions.simulated_intermediate: {given.simulated_intermediate} is another amount "
            f"of work than {given.matrices} matrices of {given.intermediate}; write "
            f"{round(asked / SIMULATED_MATRICES)}, or what of that tp = {given.tp} divides"
        )


# --- figures -----------------------------------------------------------------------------


def _form_point(study: LargeEp, runs: Runs, gpus: int) -> forms.Point:
    """The closed form's point: the first network, top-1, as many micro-batches as the simulated
    baseline is fastest with (the most that there are, if none was simulated).
    """
    name, network = next(iter(study.networks.items()))
    top_k = study.assumptions.top_k[0]
    m, base = runs.best_baseline(name, top_k)
    if base.tokens_per_s is None:
        m = max(study.assumptions.microbatches)
    return point(study, network, gpus, top_k, m)


def form_figures(study: LargeEp, runs: Runs) -> Figures:
    """What the closed form gives, on the first network."""
    network = next(iter(study.networks.values()))
    given = study.assumptions
    found: dict[str, Value] = {}
    per_gpu = {}
    for gpus in given.gpus:
        at = _form_point(study, runs, gpus)
        ratio = forms.speedup(at)
        per_gpu[gpus] = given.tokens / forms.proposed_s(at) / gpus
        compute_s, moving_s = forms.expert_s(at)
        found |= {
            f"speedup@{gpus}": ratio,
            f"latency@{gpus}": ratio,
            f"relative_latency@{gpus}": 1.0 / ratio,
            f"utilisation@{gpus}": forms.utilisation(at, *raw_rates(network, gpus)),
            f"network_limited@{gpus}": moving_s > compute_s,
            f"efficiency@{gpus}": per_gpu[gpus] / per_gpu[given.gpus[0]],
        }
    first = _form_point(study, runs, given.gpus[0])
    split = sum(forms.memory_bytes(first, first.gpus).values())
    return found | {
        "near_linear": min(per_gpu.values()) >= NEAR_LINEAR * per_gpu[given.gpus[0]],
        "overlap_helps": forms.proposed_s(first._replace(overlapped=False))
        > 1.01 * forms.proposed_s(first),
        "input_gb": forms.memory_bytes(first, 1)["input"] / GB,
        "memory_gb": split / GB,
        "bf16_saving": 0.5,
        "fits": split < 80 * GB,
    }


def simulated_figures(study: LargeEp, runs: Runs, network: str) -> Figures:
    """What the simulation gives on a network: top-1, experts = EP."""
    given = study.assumptions
    top_k = given.top_k[0]
    _, base = runs.best_baseline(network, top_k)
    found: dict[str, Value] = {}
    per_gpu: dict[int, float] = {}
    for gpus in given.gpus:
        _, ep = runs.best_ep(network, top_k, gpus, GROWN)
        if ep.tokens_per_s is None or ep.step_s is None:
            continue
        per_gpu[gpus] = ep.tokens_per_s / gpus
        ratio = latency = None
        if base.tokens_per_s is not None and base.step_s is not None:
            ratio = ep.tokens_per_s / base.tokens_per_s
            latency = base.step_s / ep.step_s
        found |= {
            f"speedup@{gpus}": ratio,
            f"latency@{gpus}": latency,
            f"relative_latency@{gpus}": None if latency is None else 1.0 / latency,
            f"utilisation@{gpus}": ep.wires,
            f"network_limited@{gpus}": ep.limit == "communication",
            f"efficiency@{gpus}": per_gpu[gpus] / per_gpu[given.gpus[0]],
        }
    first = given.gpus[0]
    plain = runs.ep[network, top_k, first, GROWN, NO_OVERLAP, 1.0].tokens_per_s
    best = runs.best_ep(network, top_k, first, GROWN)[1].tokens_per_s
    needed = sum(runs.memory[top_k, first, GROWN].values())
    return found | {
        "near_linear": min(per_gpu.values()) >= NEAR_LINEAR * per_gpu[first],
        "overlap_helps": None if plain is None or best is None else best > 1.01 * plain,
        "memory_gb": needed / GB,
        "fits": needed < 80 * GB,
    }


def _simulated_at(
    study: LargeEp, runs: Runs, network: str, claim: Claim, published: Published
) -> str:
    """At how many micro-batches of the baseline, and at which factor on all links, a throughput is
    reached; for a utilisation, at which factor on all links.
    """
    given = study.assumptions
    name, _, size = claim.figure.partition("@")
    top_k, gpus = given.top_k[0], int(size or given.gpus[0])
    found, looked = [], []
    if name in ("speedup", "latency"):
        ep = runs.best_ep(network, top_k, gpus, GROWN)[1].tokens_per_s
        of = runs.baselines(network, top_k)
        known = [m for m, base in of.items() if base.tokens_per_s]
        ratios = [ep / (of[m].tokens_per_s or 1.0) for m in known] if ep else []
        if ratios:
            best = float(runs.best_baseline(network, top_k)[0])
            x = crossing([float(m) for m in known], ratios, published, best)
            looked.append(f"m = {min(known)}-{max(known)}")
            if x is not None:
                found.append(f"m = {x:.3g}")
    factors = sorted({key[5] for key in runs.ep})
    if gpus == given.gpus[0] and len(factors) > 1 and name in ("speedup", "latency", "utilisation"):
        values: list[float | None] = []
        for factor in factors:
            ep_run = runs.best_ep(network, top_k, gpus, GROWN, factor)[1]
            base_rate = runs.best_baseline(network, top_k, factor)[1].tokens_per_s
            if name == "utilisation":
                values.append(None if ep_run.wires is None else ep_run.wires * claim.scale)
            elif ep_run.tokens_per_s is None or base_rate is None:
                values.append(None)
            else:
                values.append(ep_run.tokens_per_s / base_rate)
        x = crossing(factors, values, published, 1.0)
        looked.append(f"every link x {factors[0]:g}-{factors[-1]:g}")
        if x is not None:
            found.append(f"every link x {x:.3g}")
    if found:
        return " or ".join(found)
    return f"none of {', '.join(looked)}" if looked else ""
