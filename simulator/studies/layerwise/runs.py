"""What the study `layerwise` simulates: layouts, phases, models, sweeps and scaling, as cases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from simulator.studies.common.runs import Case, Outcome, Progress, run_all
from simulator.studies.layerwise.spec import Layerwise

TP_PP, LAYER_TP, LAYER_DP = "tp-pp", "layer-tp", "layer-dp"
LAYOUTS = (TP_PP, LAYER_TP, LAYER_DP)


@dataclass(frozen=True, order=True)
class Key:
    """What a run stands for. pieces: `microbatches: 8` or `chunk: 12000000 B`; width: of the FFN
    in a sweep, 0 for the model's own; links: factor on NVLink's bandwidth.
    """

    phase: str
    model: str
    layout: str
    pieces: str
    sequence_parallel: bool
    gpus: int
    layers: int
    width: int = 0
    links: float = 1.0

    @property
    def group(self) -> Key:
        """The same without what is chosen for speed: pieces and sequence parallelism."""
        return replace(self, pieces="", sequence_parallel=False)


@dataclass(frozen=True)
class Runs:
    """Every run by what it stands for."""

    found: dict[Key, Outcome]

    def all_of(self, wanted: Key) -> dict[Key, Outcome]:
        """The runs that differ from `wanted` in pieces and sequence parallelism only."""
        return {key: run for key, run in self.found.items() if key.group == wanted.group}

    def best(self, wanted: Key) -> tuple[Key, Outcome] | None:
        """The fastest of `all_of`; None if there is none that was not refused."""
        of = {key: run for key, run in self.all_of(wanted).items() if run.tokens_per_s}
        return max(of.items(), key=lambda item: item[1].tokens_per_s or 0.0) if of else None


def key(study: Layerwise, phase: str, model: str, layout: str) -> Key:
    """The stated size of a layout, pieces left open."""
    given = study.assumptions
    return Key(phase, model, layout, "", False, given.gpus, given.layers)


def strong_key(study: Layerwise, phase: str, model: str, gpus: int) -> Key:
    """Layer-wise on fewer GPUs; one layer per GPU at least, so that few GPUs run fewer layers."""
    layers = min(study.assumptions.layers, gpus)
    return replace(key(study, phase, model, LAYER_TP), gpus=gpus, layers=layers)


def weak_key(study: Layerwise, phase: str, model: str, times: int) -> Key:
    """`times` as many layers on as many more GPUs."""
    given = study.assumptions
    return replace(
        key(study, phase, model, LAYER_TP),
        gpus=times * given.gpus,
        layers=times * given.layers,
    )


def simulate_all(
    study: Layerwise, quick: bool, progress: Progress | None, workers: int | None
) -> Runs:
    """Simulate everything; quick: fewer pieces, no sweeps, chunks of the first model only, and no
    sequence parallelism.
    """
    keys = list(dict.fromkeys(all_keys(study, quick)))
    if quick:
        keys = [one for one in keys if not one.sequence_parallel]
    cases = {one: case_of(study, one) for one in keys}
    found = run_all(cases.values(), progress, workers)
    return Runs({one: found[case] for one, case in cases.items()})


def all_keys(study: Layerwise, quick: bool) -> Iterator[Key]:
    """Every run; some of them more than once."""
    given = study.assumptions
    for phase, model in product(given.phases, given.models):
        of = given.phases[phase]
        for layout in LAYOUTS:
            pieces = of.sweep if quick else of.pieces
            yield from _each(key(study, phase, model, layout), _told(pieces), layout)
            first = model == next(iter(given.models)) and layout == LAYER_TP
            if phase == "prefill" and layout != TP_PP and (first or not quick):
                chunks = [f"chunk: {size:.0f} B" for size in given.chunks]
                yield from _each(key(study, phase, model, layout), chunks, layout)
        sized = [strong_key(study, phase, model, gpus) for gpus in given.strong]
        sized += [weak_key(study, phase, model, times) for times in given.weak]
        for one in sized:
            many = {max(of.sweep)} if quick else {*of.sweep}
            more = set() if phase == "prefill" else {one.layers}
            yield from _each(one, _told(many | more), LAYER_TP)
        if quick:
            continue
        for layout in (TP_PP, LAYER_TP):
            base = key(study, phase, model, layout)
            for factor in given.link_factors:
                yield from _each(replace(base, links=factor), _told(of.sweep), layout)
            if model == next(iter(given.models)):
                for width in given.widths:
                    yield from _each(replace(base, width=width), _told(of.sweep), layout)


def _told(pieces: object) -> list[str]:
    assert isinstance(pieces, tuple | set)
    return [f"microbatches: {count}" for count in sorted(pieces)]


def _each(base: Key, pieces: list[str], layout: str) -> Iterator[Key]:
    for told, parallel in product(pieces, (False,) if layout == LAYER_DP else (False, True)):
        yield replace(base, pieces=told, sequence_parallel=parallel)


def case_of(study: Layerwise, of: Key) -> Case:
    """The run of a key."""
    given, simulation = study.assumptions, study.simulation
    width = of.width or given.models[of.model].intermediate
    overrides = [
        f"topology.build.gpus={of.gpus}",
        f"topology.build.hosts={max(1, of.gpus // 8)}",
        f"workload.model.hidden={given.hidden}",
        f"workload.model.layers={of.layers}",
        f"workload.model.dense_intermediate={width}",
        f"workload.model.attention.heads={given.heads}",
        f"workload.model.attention.kv_heads={given.heads}",
        f"workload.model.attention.head_dim={given.head_dim}",
        f"workload.traffic.phase={of.phase}",
        f"workload.traffic.context={given.phases[of.phase].keys}",
        f"workload.traffic.tokens_per_gpu={given.tokens(of.phase) // of.gpus}",
        f"workload.parallel={_parallel(study, of)}",
    ]
    if of.links != 1.0:
        from simulator.spec.load import load_topology

        build = load_topology(simulation.topology).build
        rate: float = build.nvlink.bandwidth_bytes_per_s  # type: ignore[union-attr]
        overrides.append(f"topology.build.nvlink.bandwidth={rate * of.links} B/s")
    return Case(simulation.topology, simulation.workload, tuple(overrides))


def _parallel(study: Layerwise, of: Key) -> str:
    given = study.assumptions
    more = f"{of.pieces}, sequence_parallel: {str(of.sequence_parallel).lower()}"
    if of.layout == TP_PP:
        return f"{{tp: {given.tp}, pp: {given.pp}, {more}}}"
    each = of.gpus // of.layers
    tp = each if of.layout == LAYER_TP else 1
    stages = ", ".join(
        f"{{layers: {layer}, gpus: {layer * each}-{(layer + 1) * each - 1}, tp: {tp}}}"
        for layer in range(of.layers)
    )
    return f"{{stages: [{stages}], {more}}}"
