"""Tables, curves and sentences of the study `large-ep`, from its runs."""

from __future__ import annotations

from simulator.results.summary import number
from simulator.studies.common.report import FREE_PARAMETERS, Cell, Chart, Table
from simulator.studies.common.runs import Outcome
from simulator.studies.large_ep import forms
from simulator.studies.large_ep.runs import (
    BALANCING,
    GROWN,
    NO_OVERLAP,
    PLACEMENT,
    SWITCHES,
    Runs,
    readings,
)
from simulator.studies.large_ep.spec import LargeEp, point

MEGA, GB = 1e6, 1e9


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100.0 * share, 1)


def _mega(rate: float | None) -> float | None:
    return None if rate is None else rate / MEGA


def tables(study: LargeEp, runs: Runs) -> list[Table]:
    """All tables."""
    return [
        _scaling(study, runs),
        _baselines(study, runs),
        _ablation(study, runs),
        _memory(study, runs),
    ]


def _scaling(study: LargeEp, runs: Runs) -> Table:
    given = study.assumptions
    rows: list[tuple[Cell, ...]] = []
    for name, network in study.networks.items():
        for top_k in runs.top_k(name):
            base = runs.best_baseline(name, top_k)[1].tokens_per_s
            for gpus in given.gpus:
                for reading in readings(study, gpus):
                    overlap, run = runs.best_ep(name, top_k, gpus, reading)
                    rate = run.tokens_per_s
                    ratio = rate / base if rate and base else None
                    rows.append(
                        (
                            network.told,
                            top_k,
                            gpus,
                            gpus if reading == GROWN else given.experts,
                            overlap,
                            _mega(rate),
                            ratio,
                            None if ratio is None else ratio * given.tp * given.pp / gpus,
                            _percent(run.exposed),
                            _percent(run.wires),
                        )
                    )
    said = (
        "EP with everything on and a gate in balance, the faster overlap; with as many experts as "
        f"GPUs, or {given.experts} in replicas. x base: over the fastest baseline on "
        f"{given.tp * given.pp} GPUs; /GPU: the same per GPU. wait: share of the time that a "
        "GPU waits for tokens; link: mean use of the links (between nodes if there are any)."
    )
    columns = ("network", "top", "GPUs", "experts", "overlap", "Mtok/s", "x base", "/GPU")
    return Table("scaling", said, (*columns, "wait%", "link%"), rows)


def _baselines(study: LargeEp, runs: Runs) -> Table:
    given = study.assumptions
    rows: list[tuple[Cell, ...]] = []
    for name, network in study.networks.items():
        for top_k in runs.top_k(name):
            ep = runs.best_ep(name, top_k, given.gpus[0], GROWN)[1].tokens_per_s
            for m, run in runs.baselines(name, top_k).items():
                reduced = runs.baseline[name, top_k, m, 1.0, False]
                at = point(study, network, given.gpus[0], top_k, m)
                rate = run.tokens_per_s
                rows.append(
                    (
                        network.told,
                        top_k,
                        m,
                        forms.bubble(m, given.pp),
                        given.tokens / forms.baseline_s(at) / MEGA,
                        _mega(reduced.tokens_per_s),
                        _mega(rate),
                        ep / rate if ep and rate else None,
                        _percent(run.compute),
                        _percent(run.exposed),
                    )
                )
    said = (
        f"The baseline TP{given.tp} x PP{given.pp} by micro-batches: bubble (m + p - 1) / m, "
        "throughput (Mtok/s) by the closed form, simulated with all-reduce, and the faster of "
        f"that and sequence parallel; EP x: how many times that EP {given.gpus[0]} gives."
    )
    columns = (
        "network",
        "top",
        "m",
        "bubble",
        "form",
        "reduce",
        "faster",
        "EP x",
        "comp%",
        "wait%",
    )
    return Table("baseline", said, columns, rows)


def _ablation(study: LargeEp, runs: Runs) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, network in study.networks.items():
        plain = runs.switched(name, ())
        base = runs.best_baseline(name, study.assumptions.top_k[0])[1].tokens_per_s
        shown: list[tuple[str, tuple[str, ...]]] = [("nothing", ())]
        shown += [(f"only {switch}", (switch,)) for switch in SWITCHES]
        shown += [(f"+ {SWITCHES[n - 1]}", SWITCHES[:n]) for n in range(2, len(SWITCHES) + 1)]
        for told, on in shown:
            run = runs.switched(name, on)
            rows.append((network.told, told, *_ablated(run, plain, base)))
    said = (
        f"EP {study.assumptions.experts} on the recorded routing, folded: each switch alone, then "
        "one after the other. load: rows of the fullest GPU over the mean."
    )
    columns = ("network", "on", "ms", "x nothing", "x base", "wait%", "load")
    return Table("ablation", said, columns, rows)


def _ablated(run: Outcome, plain: Outcome, base: float | None) -> tuple[Cell, ...]:
    rate = run.tokens_per_s
    return (
        None if run.step_s is None else 1e3 * run.step_s,
        rate / plain.tokens_per_s if rate and plain.tokens_per_s else None,
        rate / base if rate and base else None,
        _percent(run.exposed),
        run.imbalance,
    )


def _memory(study: LargeEp, runs: Runs) -> Table:
    given = study.assumptions
    rows: list[tuple[Cell, ...]] = []
    for (top_k, gpus, reading), parts in runs.memory.items():
        grown = "grown" if reading == GROWN else "replicas"
        at = point(study, next(iter(study.networks.values())), gpus, top_k, 1.0)
        at = at._replace(experts=gpus if reading == GROWN else given.experts)
        form = sum(forms.memory_bytes(at, gpus).values())
        unsplit = sum(forms.memory_bytes(at, 1).values())
        total = sum(parts.values())
        kept = (parts.get("experts", 0.0), parts.get("activations", 0.0))
        rows.append(
            (
                top_k,
                gpus,
                grown,
                *(part / GB for part in kept),
                total / GB,
                form / GB,
                unsplit / GB,
            )
        )
    said = (
        "Memory of a GPU by EP, GB: simulated by part, the closed form (weights, input, output and "
        "intermediate of its own tokens), and the same with the whole batch on every GPU."
    )
    columns = ("top", "GPUs", "experts", "weights", "activations", "all", "form", "unsplit")
    return Table("memory", said, columns, rows)


def charts(study: LargeEp, runs: Runs) -> list[Chart]:
    """Speed-up by GPUs, and by the baseline's micro-batches."""
    given = study.assumptions
    top_k = given.top_k[0]
    claimed = [
        (float(claim.figure.partition("@")[2]), float(claim.published))
        for claim in study.claims
        if claim.figure.startswith("speedup@")
    ]
    by_gpus = {"published": claimed}
    by_batches: dict[str, list[tuple[float, float]]] = {}
    for name, network in study.networks.items():
        base = runs.best_baseline(name, top_k)[1].tokens_per_s
        line = []
        for gpus in given.gpus:
            rate = runs.best_ep(name, top_k, gpus, GROWN)[1].tokens_per_s
            if rate and base:
                line.append((float(gpus), rate / base))
        by_gpus[network.told] = line
        ep = runs.best_ep(name, top_k, given.gpus[0], GROWN)[1].tokens_per_s
        by_batches[network.told] = [
            (float(m), ep / run.tokens_per_s)
            for m, run in runs.baselines(name, top_k).items()
            if ep and run.tokens_per_s
        ]
    return [
        Chart("speedup", "Throughput of EP over TP8 x PP2", "GPUs", "times", by_gpus),
        Chart(
            "microbatches",
            f"Throughput of EP {given.gpus[0]} over the baseline's",
            "micro-batches of the baseline",
            "times",
            by_batches,
        ),
    ]


def findings(study: LargeEp, runs: Runs) -> list[str]:
    """What the simulation shows, in sentences."""
    given = study.assumptions
    gpus, top_k = given.gpus[0], given.top_k[0]
    found = []
    for name, network in study.networks.items():
        m, base = runs.best_baseline(name, top_k)
        overlap, ep = runs.best_ep(name, top_k, gpus, GROWN)
        if base.tokens_per_s is None or ep.tokens_per_s is None:
            found.append(f"{network.told}: the baseline was not simulated: {base.refused}.")
            continue
        bound = forms.compute_bound_speedup(point(study, network, gpus, top_k, m))
        ratio = ep.tokens_per_s / base.tokens_per_s
        plain = runs.ep[name, top_k, gpus, GROWN, NO_OVERLAP, 1.0].tokens_per_s
        gained = ep.tokens_per_s / plain if plain else 0.0
        found.append(
            f"{network.told}: EP {gpus} gives {number(ratio)} x the baseline with {m} "
            f"micro-batches, and with overlap ({overlap}) {number(gained)} x what it gives without "
            f"it. The closed form, in which no GPU permutes tokens or launches kernels, gives "
            f"{number(bound)} x even if EP's communication took no time."
        )
        one = runs.baselines(name, top_k).get(1)
        if one is not None and one.tokens_per_s:
            found.append(
                f"{network.told}: against a baseline that sends its batch through the pipeline in "
                f"one piece, half of whose GPUs stand still, it is "
                f"{number(ep.tokens_per_s / one.tokens_per_s)} x."
            )
    for name, network in study.networks.items():
        plain_s = runs.switched(name, ()).step_s
        placed_s = runs.switched(name, (PLACEMENT,)).step_s
        if plain_s and placed_s:
            found.append(
                f"{network.told}: greedy placement alone changes the step by "
                f"{100 * (placed_s / plain_s - 1):+.1f} %: one expert per GPU is one permutation "
                "of another, and requests differ little between GPUs."
            )
    found.append(
        f"{BALANCING.capitalize()} gives {100 * runs.moved:.0f} % of the recorded choices to "
        "experts that the gate did not choose first: what that does to the model's answers is not "
        "simulated."
    )
    return found


def refusals(runs: Runs) -> list[str]:
    """What could not be simulated, and why, each reason once."""
    every = [*runs.baseline.values(), *runs.ep.values(), *runs.ablation.values()]
    reasons = [run.refused for run in every if run.refused]
    return [
        f"Not simulated, {reasons.count(reason)} runs: {reason}."
        for reason in dict.fromkeys(reasons)
    ]


def parameters(study: LargeEp) -> list[str]:
    """Every free parameter and where it comes from, in sentences."""
    return [
        FREE_PARAMETERS,
        *(f"Source: {source}." for source in study.sources),
    ]
