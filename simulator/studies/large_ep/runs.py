"""What the study `large-ep` simulates: baseline, EP and the ablation, as cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import TypeVar

from simulator.errors import InputError
from simulator.studies.common.runs import Case, Outcome, Progress, run_all
from simulator.studies.large_ep import routing
from simulator.studies.large_ep.spec import LargeEp, Network

GROWN, REPLICAS = "experts = EP", "replicas"
"""Readings of EP above the number of experts: the model grows, or its experts are replicated."""

BATCHING, OVERLAP, PLACEMENT, BALANCING = "batching", "overlap", "placement", "gate balancing"
SWITCHES = (BATCHING, OVERLAP, PLACEMENT, BALANCING)
NO_OVERLAP = "none"

K = TypeVar("K")
BaseKey = tuple[str, int, int, float, bool]
EpKey = tuple[str, int, int, str, str, float]
AblationKey = tuple[str, tuple[str, ...], str]


@dataclass(frozen=True)
class Runs:
    """Every run by what it stands for.

    baseline: (network, top_k, micro-batches, link factor, sequence parallel); ep: (network, top_k,
    GPUs, reading, overlap, link factor); ablation: (network, switches that are on, overlap). moved:
    share of the gate's choices that balancing changed. memory: (top_k, GPUs, reading) -> bytes of a
    GPU by part.
    """

    baseline: dict[BaseKey, Outcome]
    ep: dict[EpKey, Outcome]
    ablation: dict[AblationKey, Outcome]
    moved: float
    memory: dict[tuple[int, int, str], dict[str, float]]

    def baselines(self, network: str, top_k: int, links: float = 1.0) -> dict[int, Outcome]:
        """Micro-batches -> outcome; all-reduce or sequence parallel, whichever is faster."""
        wanted = (network, top_k, links)
        batches = sorted({key[2] for key in self.baseline if (*key[:2], key[3]) == wanted})
        return {
            m: _fastest({sp: self.baseline[network, top_k, m, links, sp] for sp in (False, True)})[
                1
            ]
            for m in batches
        }

    def top_k(self, network: str) -> list[int]:
        """The values that were simulated."""
        return sorted({key[1] for key in self.ep if key[0] == network})

    def best_baseline(self, network: str, top_k: int, links: float = 1.0) -> tuple[int, Outcome]:
        """The micro-batches that are fastest, and their outcome; a refused one if all are."""
        return _fastest(self.baselines(network, top_k, links))

    def best_ep(
        self, network: str, top_k: int, gpus: int, reading: str, links: float = 1.0
    ) -> tuple[str, Outcome]:
        """The overlap that is faster, and its outcome."""
        wanted = (network, top_k, gpus, reading, links)
        return _fastest(
            {
                key[4]: found
                for key, found in self.ep.items()
                if (*key[:4], key[5]) == wanted and key[4] != NO_OVERLAP
            }
        )

    def switched(self, network: str, on: tuple[str, ...]) -> Outcome:
        """The ablation with these switches; the faster overlap where that is one of them."""
        wanted = (network, on)
        return _fastest(
            {key[2]: found for key, found in self.ablation.items() if key[:2] == wanted}
        )[1]


def _fastest(of: Mapping[K, Outcome]) -> tuple[K, Outcome]:
    return max(of.items(), key=lambda item: item[1].tokens_per_s or 0.0)


def readings(study: LargeEp, gpus: int) -> list[str]:
    """What differs: with as many GPUs as experts both readings are one."""
    return [GROWN, REPLICAS] if gpus > study.assumptions.experts else [GROWN]


def simulate_all(
    study: LargeEp, quick: bool, folder: Path, progress: Progress | None, workers: int | None
) -> Runs:
    """Simulate everything; recorded routings are written into `folder`.

    quick: no sweep of the links, the first top_k, every second number of micro-batches, and the
    first overlap on large clusters.
    """
    base = baseline_cases(study, quick)
    expert = expert_cases(study, quick)
    ablation, moved = ablation_cases(study, folder)
    found = run_all([*base.values(), *expert.values(), *ablation.values()], progress, workers)
    return Runs(
        {key: found[case] for key, case in base.items()},
        {key: found[case] for key, case in expert.items()},
        {key: found[case] for key, case in ablation.items()},
        moved,
        _memory(study),
    )


def _model(study: LargeEp, gpus: int, top_k: int, experts: int) -> tuple[str, ...]:
    given = study.assumptions
    if given.tokens % gpus:
        raise InputError(f"assumptions: {given.tokens} tokens cannot be shared by {gpus} GPUs")
    return (
        f"workload.model.hidden={given.hidden}",
        f"workload.model.layers={given.layers}",
        f"workload.model.moe.experts={experts}",
        f"workload.model.moe.top_k={top_k}",
        f"workload.model.moe.intermediate={given.simulated_intermediate}",
        f"workload.traffic.tokens_per_gpu={given.tokens // gpus}",
    )


def _links(network: Network, gpus: int, factor: float) -> tuple[str, ...]:
    """Every bandwidth of the build times a factor."""
    from simulator.spec.load import load_topology

    if factor == 1.0:
        return ()
    build = load_topology(network.topology, network.of(gpus)).build
    rates = {
        name: getattr(getattr(build, name), "bandwidth_bytes_per_s", None)
        for name in type(build).model_fields
    }
    return tuple(
        f"topology.build.{name}.bandwidth={rate * factor} B/s"
        for name, rate in rates.items()
        if rate is not None
    )


def _factors(study: LargeEp, quick: bool) -> list[float]:
    return [1.0] if quick else [1.0, *study.assumptions.link_factors]


def _top_k(study: LargeEp, quick: bool) -> tuple[int, ...]:
    return study.assumptions.top_k[: 1 if quick else None]


def baseline_cases(study: LargeEp, quick: bool) -> dict[BaseKey, Case]:
    """TP x PP on its GPUs: every number of micro-batches, sequence parallel or not."""
    given = study.assumptions
    gpus = given.tp * given.pp
    found = {}
    for name, network in study.networks.items():
        for top_k in _top_k(study, quick):
            for factor in _factors(study, quick) if top_k == given.top_k[0] else [1.0]:
                for m, sp in product(given.microbatches[:: 2 if quick else 1], (False, True)):
                    plan = (
                        f"{{tp: {given.tp}, pp: {given.pp}, microbatches: {m}, "
                        f"sequence_parallel: {str(sp).lower()}}}"
                    )
                    found[name, top_k, m, factor, sp] = Case(
                        network.topology,
                        study.simulation.workload,
                        (
                            *network.of(gpus),
                            *_links(network, gpus, factor),
                            *_model(study, gpus, top_k, given.experts),
                            f"workload.parallel={plan}",
                        ),
                    )
    return found


def expert_cases(study: LargeEp, quick: bool) -> dict[EpKey, Case]:
    """EP on all networks, sizes and readings, with every overlap and without."""
    given, simulation = study.assumptions, study.simulation
    exact = simulation.quick_exact_gpus if quick else simulation.exact_gpus
    found = {}
    for name, network in study.networks.items():
        for top_k in _top_k(study, quick):
            for gpus in given.gpus:
                for reading in readings(study, gpus):
                    experts = gpus if reading == GROWN else given.experts
                    swept = top_k == given.top_k[0] and gpus == given.gpus[0]
                    for factor in _factors(study, quick) if swept else [1.0]:
                        solved = "exact" if gpus <= exact else simulation.beyond
                        plain = (NO_OVERLAP,) if gpus == given.gpus[0] else ()
                        few = quick and gpus > exact
                        for overlap in (*plain, *given.overlaps[: 1 if few else None]):
                            found[name, top_k, gpus, reading, overlap, factor] = Case(
                                network.topology,
                                simulation.workload,
                                (
                                    *network.of(gpus),
                                    *_links(network, gpus, factor),
                                    *_model(study, gpus, top_k, experts),
                                    f"workload.parallel={{ep: {min(gpus, experts)}}}",
                                    f"workload.overlap={overlap}",
                                    f"workload.network={solved}",
                                ),
                            )
    return found


def ablation_cases(study: LargeEp, folder: Path) -> tuple[dict[AblationKey, Case], float]:
    """EP on as many GPUs as there are experts, on the recorded routing: each switch alone, and one
    after the other; and the share of choices that the balanced gate changes.
    """
    from simulator.spec.find import find

    given = study.assumptions
    gpus, top_k = given.experts, given.top_k[0]
    trace = find("trace", given.recording)
    recorded = routing.fold(trace, given.experts, given.layers, max(4, top_k))
    choices = routing.deal(recorded, gpus, given.tokens // gpus)
    even, moved = routing.balanced(choices, given.experts, top_k)
    drawn = {False: choices[..., :top_k], True: even}
    found: dict[AblationKey, Case] = {}
    for name, network in study.networks.items():
        for on in combinations_of_switches():
            ids = drawn[BALANCING in on]
            if PLACEMENT in on:
                ids = _placed(study, network, ids)
            path = folder / f"{name}-{'-'.join(on).replace(' ', '-') or 'plain'}.parquet"
            if BALANCING in on or PLACEMENT in on or not path.exists():
                routing.write(path, ids, given.experts, f"{given.recording}, folded")
            for overlap in given.overlaps if OVERLAP in on else (NO_OVERLAP,):
                packed = "gpu" if BATCHING in on else "none"
                found[name, on, overlap] = Case(
                    network.topology,
                    study.simulation.workload,
                    (
                        *network.of(gpus),
                        *_model(study, gpus, top_k, given.experts),
                        f"workload.parallel={{ep: {gpus}}}",
                        f"workload.overlap={overlap}",
                        f"workload.transport.deduplicate={packed}",
                    ),
                    str(path),
                )
    return found, moved


def combinations_of_switches() -> list[tuple[str, ...]]:
    """Nothing, each switch alone, and each with all before it."""
    alone = [(), *combinations(SWITCHES, 1)]
    return [*alone, *(SWITCHES[:count] for count in range(2, len(SWITCHES) + 1))]


def _placed(study: LargeEp, network: Network, ids: routing.Int16s) -> routing.Int16s:
    """The same choices with experts renamed so that the contiguous placement is the greedy one."""
    import numpy as np

    given = study.assumptions
    bandwidth, latency_s = routing.matrices(network.topology, network.of(given.experts))
    wanted = routing.demand(ids, given.experts)
    gpu_of = routing.place(wanted, bandwidth, latency_s, given.hidden * 2.0)
    return gpu_of.astype(np.int16)[ids]


def _memory(study: LargeEp) -> dict[tuple[int, int, str], dict[str, float]]:
    """What a run of EP keeps on a GPU, by part."""
    from simulator.engine.layout import gpu_memory, layout_of
    from simulator.spec.load import load_inputs

    given = study.assumptions
    network = next(iter(study.networks.values()))
    found = {}
    for top_k in given.top_k:
        for gpus in given.gpus:
            for reading in readings(study, gpus):
                experts = gpus if reading == GROWN else given.experts
                asked = [*network.of(gpus), *_model(study, gpus, top_k, experts)]
                inputs = load_inputs(network.topology, study.simulation.workload, asked)
                layout = layout_of(inputs.workload, gpus, network.topology)
                found[top_k, gpus, reading] = gpu_memory(inputs.workload, layout, 0)
    return found
