"""The simulations of the study `prophet`: one `Case` is one run, and its `Outcome` a few figures.

A case fixes the cluster, the `parallel` mapping, who travels (tokens or weights), how much a GPU
keeps and who predicts. What a GPU does not keep comes from host memory when tokens travel, and
from the GPU that owns it when weights travel.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from simulator.errors import InputError
from simulator.studies.prophet.spec import Extent, Prophet, System

if TYPE_CHECKING:
    from simulator.spec.load import Inputs

Access = Literal["dispatch", "fetch"]
Progress = Callable[[int, int], None]
Parallel = tuple[tuple[str, int | str], ...]
"""The `parallel` mapping of a workload as sorted pairs, so that a case can be a key; values as
`--set` takes them. Anything beside `ep` is a plan, which keeps every expert on its GPUs."""

GIB = 2.0**30


@dataclass(frozen=True, order=True)
class Case:
    """One run. predictor: as the workload's `prefetch`; memory_reduction: a GPU keeps 1/m of the
    experts that it serves; links: every bandwidth of the topology times this; gpus: in place of the
    system's; rebalance: as the workload's, "" for none.
    """

    system: str
    parallel: Parallel
    access: Access
    predictor: str
    memory_reduction: float
    links: float = 1.0
    gpus: int = 0
    rebalance: str = ""

    @property
    def ep(self) -> int:
        """GPUs that share the experts of a layer, 1 unless given."""
        return int(dict(self.parallel).get("ep", 1))

    @property
    def plan(self) -> bool:
        """Whether more than `ep` is given."""
        return any(name != "ep" for name, _ in self.parallel)


@dataclass(frozen=True)
class Memory:
    """What the fullest GPU needs, by part, and has; bytes."""

    parts: dict[str, float]
    room: float

    @property
    def needed(self) -> float:
        """Sum of the parts."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether that is there."""
        return self.needed <= self.room

    def told(self) -> str:
        """The sum in words, GiB."""
        shown = ", ".join(f"{name} {part / GIB:.1f}" for name, part in self.parts.items())
        return f"needs {self.needed / GIB:.1f} GiB per GPU ({shown}), has {self.room / GIB:.1f} GiB"


@dataclass(frozen=True)
class Outcome:
    """What a run gave. Where `memory` does not fit, the other figures are those of GPUs with as
    much more memory. bytes_per_token: tokens and weights that crossed links; rates: shares of the
    cache accesses, None without a cache.
    """

    memory: Memory
    slots: int
    tokens_per_s: float
    communication: float
    bytes_per_token: float
    hit_rate: float | None
    late_rate: float | None
    prefetch_accuracy: float | None
    busiest_link: float


def parallel(**degrees: int | str) -> Parallel:
    """The `parallel` mapping of a case."""
    return tuple(sorted(degrees.items()))


def strategies(system: System) -> dict[str, tuple[int, int]]:
    """Strategy -> (EP, DP)."""
    return {
        "expert_parallel": (system.gpus, 1),
        "data_parallel": (1, system.gpus),
        "hybrid": (system.gpus // system.dp, system.dp),
    }


def left_out(study: Prophet, system: str) -> dict[str, Parallel]:
    """The strategies that the published text names as not modelled, name -> `parallel` mapping.

    mixed: the first half of the layers expert parallel on half of the GPUs, the others data
    parallel on the other half.
    """
    from simulator.spec.load import load_workload

    gpus = study.systems[system].gpus
    layers = load_workload(study.simulation.workload).model.layers
    found = {"pipeline": parallel(pp=gpus)}
    if gpus % 2 == 0 and layers > 1:
        half, middle = gpus // 2, layers // 2
        found["mixed"] = parallel(
            stages=f"[{{layers: 0-{middle - 1}, gpus: 0-{half - 1}, ep: {half}}}, "
            f"{{layers: {middle}-{layers - 1}, gpus: {half}-{gpus - 1}, ep: 1}}]"
        )
    return found


# Moved every few steps, so that a short run sees it too; the policy is our choice.
MOVES = "{every: 4, policy: balanced}"


def dynamic(study: Prophet, system: str) -> Case | None:
    """The hybrid with all experts in place that move while it runs (dynamic placement, which the
    published text names as not modelled); None where every GPU has all experts.
    """
    ep, _ = strategies(study.systems[system])["hybrid"]
    if ep == 1:
        return None
    return Case(system, parallel(ep=ep), "dispatch", "none", 1.0, rebalance=MOVES)


def run_all(
    study: Prophet,
    extent: Extent,
    cases: Sequence[Case],
    progress: Progress | None = None,
    workers: int | None = None,
) -> dict[Case, Outcome]:
    """Simulate each case once, in processes (as many as there are cores; none for 1).

    Raises InputError for a case that cannot be simulated for another reason than memory.
    """
    wanted = sorted(set(cases))
    workers = workers or len(os.sched_getaffinity(0))
    found: dict[Case, Outcome] = {}
    with ExitStack() as stack:
        if workers == 1 or len(wanted) < 2 * workers:
            for case in wanted:
                found[case] = outcome(study, extent, case)
                _tell(progress, found, wanted)
            return found
        # One run here first: what has to be compiled is then compiled once, and not in each.
        found[wanted[0]] = outcome(study, extent, wanted[0])
        fresh = multiprocessing.get_context("spawn")
        executor = ProcessPoolExecutor(workers, fresh, initializer=_leave_interrupts)
        pool: Executor = stack.enter_context(executor)
        futures = {pool.submit(outcome, study, extent, case): case for case in wanted[1:]}
        try:
            for future in as_completed(futures):
                found[futures[future]] = future.result()
                _tell(progress, found, wanted)
        except BrokenProcessPool as error:
            raise InputError(
                "a process of the study was ended from outside; try --workers 1"
            ) from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return {case: found[case] for case in wanted}


def _leave_interrupts() -> None:
    """In a worker: who is interrupted is the one that waits for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def outcome(study: Prophet, extent: Extent, case: Case) -> Outcome:
    """Simulate one case."""
    from simulator.api import simulate
    from simulator.spec.load import load_inputs

    names = (study.systems[case.system].topology, study.simulation.workload)
    slots, serves = slots_of(study, case)
    kept = "null" if case.plan else str(slots)
    given = [*_overrides(study, extent, case), f"workload.expert_slots={kept}"]
    inputs = load_inputs(*names, given)
    if slots < serves:
        here = inputs.workload.traffic.tokens_per_gpu * (1 if case.access == "fetch" else case.ep)
        asked = 1.0 - study.assumptions.experts_per_token / study.assumptions.experts
        filled = steps_to_fill(slots / serves, asked**here)
        given.append(f"workload.traffic.warmup_steps={max(extent.warmup_steps, filled)}")
    memory = memory_of(inputs)
    if not memory.fits:
        from simulator.model.footprint import RESERVED

        # Experts that move need room to arrive in: a quarter as much again (our choice).
        arriving = memory.parts["experts"] / 4 if case.rebalance else 0.0
        enough = math.ceil((memory.needed + arriving) / (1.0 - RESERVED)) + 1
        given.append(f"topology.gpu.hbm_capacity={enough} B")
    summary = simulate(*names, overrides=given, seed=study.simulation.seed, trace_steps=0).summary
    moved = ("dispatch", "combine", "demand", "prefetch", "rebalance")
    path = summary["critical_path"]
    return Outcome(
        memory=memory,
        slots=slots,
        tokens_per_s=summary["throughput_tokens_per_s"],
        communication=path["communication"] + path["fetch_stall"],
        bytes_per_token=sum(summary[f"{name}_bytes"] for name in moved) / summary["tokens"],
        # Without a fetch there is no cache to speak of.
        hit_rate=summary["cache_hit_rate"] if slots < serves else None,
        late_rate=summary["cache_late_hit_rate"] if slots < serves else None,
        prefetch_accuracy=summary["prefetch_accuracy"],
        busiest_link=summary["hottest_link_utilization"] or 0.0,
    )


def steps_to_fill(share: float, unasked: float) -> int:
    """Warm-up steps until a cache that keeps this share of its experts is full; before, every miss
    is a first use, whatever the cache.

    unasked: the chance that a step does not need an expert. Twice the steps after which that share
    has been asked for on average if all are equally likely; popular experts come again sooner and
    the others later (twice is our choice).
    """
    return math.ceil(2.0 * math.log(1.0 - share) / math.log(unasked))


def slots_of(study: Prophet, case: Case) -> tuple[int, int]:
    """Experts per layer that a GPU keeps, and that it serves."""
    experts = study.assumptions.experts
    if case.plan:
        return experts, experts
    serves = experts if case.access == "fetch" else -(-experts // case.ep)
    return max(1, math.ceil(serves / case.memory_reduction)), serves


def memory_of(inputs: Inputs) -> Memory:
    """What the fullest GPU of a run needs and has."""
    from simulator.engine.layout import gpu_memory, layout_of
    from simulator.model.footprint import RESERVED
    from simulator.model.plan import needs_plan, plan_of
    from simulator.model.plan_memory import gpu_bytes
    from simulator.spec.load import gpu_count

    gpus = gpu_count(inputs.topology)
    if needs_plan(inputs.workload):
        each = gpu_bytes(plan_of(inputs.workload, gpus, inputs.topology.gpu), inputs.workload)
    else:
        layout = layout_of(inputs.workload, gpus, inputs.topology.name)
        each = [gpu_memory(inputs.workload, layout, gpu) for gpu in range(gpus)]
    room = inputs.topology.gpu.hbm_capacity_bytes * (1.0 - RESERVED)
    return Memory(max(each, key=lambda parts: sum(parts.values())), room)


def _overrides(study: Prophet, extent: Extent, case: Case) -> list[str]:
    system = study.systems[case.system]
    home = "peer" if case.access == "fetch" else "host"
    gpus = case.gpus or system.gpus
    given = [
        f"topology.build.gpus={gpus}",
        *(["workload.parallel.ep=null"] if case.plan else []),
        *(f"workload.parallel.{name}={degree}" for name, degree in case.parallel),
        f"workload.expert_access={case.access}",
        f"workload.expert_home={home}",
        f"workload.prefetch={case.predictor}",
        # One GPU has one sequence at a time: as many tokens as all GPUs together, twice.
        f"workload.traffic.steps={extent.steps * (2 * system.gpus if gpus == 1 else 1)}",
        f"workload.traffic.warmup_steps={extent.warmup_steps}",
        *([f"workload.rebalance={case.rebalance}"] if case.rebalance else []),
    ]
    if gpus == 1:
        given += [f"topology.build.{name}=1" for name in _single(system.topology)]
    if case.links != 1.0:
        bandwidths = link_bandwidths(system.topology)
        for name, bandwidth in bandwidths.items():
            given.append(f"topology.build.{name}.bandwidth={bandwidth * case.links} B/s")
    return given


def link_bandwidths(topology: str) -> dict[str, float]:
    """Bandwidth (B/s, one direction) of each kind of link and memory that a build has."""
    from simulator.spec.load import load_topology

    build = load_topology(topology).build
    found = {
        name: getattr(getattr(build, name), "bandwidth_bytes_per_s", None)
        for name in type(build).model_fields
    }
    return {name: bandwidth for name, bandwidth in found.items() if bandwidth is not None}


def _single(topology: str) -> Mapping[str, int]:
    """What else must be 1 in a build of one GPU."""
    from simulator.spec.load import load_topology

    build = load_topology(topology).build
    return {name: 1 for name in ("sockets", "hosts") if name in type(build).model_fields}


def _tell(progress: Progress | None, found: Mapping[Case, Outcome], wanted: Sequence[Case]) -> None:
    if progress is not None:
        progress(len(found), len(wanted))


def refuse_other_experts(study: Prophet) -> None:
    """Raise InputError unless the workload has the experts that the closed form counts."""
    from simulator.model import sizes
    from simulator.spec.load import load_workload

    model = load_workload(study.simulation.workload).model
    given = study.assumptions
    sparse = model.layers - model.moe.first_dense_layers
    found = (model.moe.experts, model.moe.top_k, sparse * sizes.expert_bytes(model))
    asked = (given.experts, given.experts_per_token, given.expert_bytes)
    if found[:2] != asked[:2] or abs(found[2] / asked[2] - 1.0) > 0.01:
        raise InputError(
            f"assumptions: {asked[0]} experts of {asked[2] / 1e9:g} GB, {asked[1]} per token, but "
            f"workload {study.simulation.workload} has {found[0]} of {found[2] / 1e9:.3g} GB, "
            f"{found[1]} per token; set simulation.workload to one that agrees"
        )
