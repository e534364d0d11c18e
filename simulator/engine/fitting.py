"""What would make a workload fit into memory: said where it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simulator.cluster.graph import Graph, gpus
from simulator.engine.layout import check_memory, group_size, layout_of, memories_of
from simulator.engine.placed import plain
from simulator.engine.plan_weights import check_hosts
from simulator.errors import InputError
from simulator.model import plan_memory
from simulator.model.plan import needs_plan, plan_of
from simulator.spec.load import Inputs
from simulator.spec.plan import Parallel
from simulator.spec.schema import Workload

MOST_GPUS = 64  # times those of the cluster, that are thought of


def ways_to_fit(inputs: Inputs, graph: Graph) -> str:
    """Changes to a run that does not fit, each of which is enough alone, in words.

    Each has been tried: the sums by GPU and by host are those that a run checks.
    """
    workload, count = inputs.workload, len(gpus(graph))
    parallel, traffic = workload.parallel, workload.traffic

    def fits(**changes: Any) -> bool:
        return _fits(inputs, graph, workload.model_copy(update=changes), count)

    def laid(**changes: Any) -> dict[str, Parallel]:
        return {"parallel": parallel.model_copy(update=changes)}

    def less(key: str, now: int) -> list[str]:
        def enough(value: int) -> bool:
            return fits(traffic=traffic.model_copy(update={key: value}))

        most = _most(now - 1, enough)
        return [f"traffic.{key}={most} or less"] if most else []

    found: list[str] = []
    wider = [ep for ep in _wider(workload, count, inputs.topology.name) if fits(**laid(ep=ep))]
    found += [f"parallel.ep={ep}" for ep in wider[:1]]
    if workload.rebalance is None and workload.model.moe.experts:
        now = workload.expert_slots or workload.model.moe.experts
        slots = _most(now - 1, lambda value: fits(expert_slots=value))
        found += [f"expert_slots={slots} or less"] if slots else []
    if parallel.offload is None and workload.expert_slots is None:
        ways = ("experts", "layers") if workload.model.moe.experts else ("layers",)
        found += [f"parallel.offload={way}" for way in ways if fits(**laid(offload=way))]
    elif parallel.resident_layers:
        layers = _most(parallel.resident_layers, lambda n: fits(**laid(resident_layers=n - 1)))
        found += [f"parallel.resident_layers={layers - 1} or less"] if layers else []
    elif parallel.offload == "experts" and fits(**laid(offload="layers")):
        found += ["parallel.offload=layers"]
    found += less("tokens_per_gpu", traffic.tokens_per_gpu)
    found += less("context", traffic.context)
    found += [] if wider else _more_gpus(inputs, graph, count)
    if not found:
        return (
            "no one change is enough; lower several of traffic.tokens_per_gpu, traffic.context and "
            "expert_slots, or use GPUs with more memory"
        )
    if len(found) == 1:
        return f"{found[0]} would do"
    return f"any of these would do: {', '.join(found[:-1])}, or {found[-1]}"


def _fits(inputs: Inputs, graph: Graph, workload: Workload, count: int) -> bool:
    """Whether a workload can be had on `count` GPUs; more than those of the graph: as these are."""
    topology = inputs.topology
    names = gpus(graph)
    memories = memories_of(graph, names)
    if None in memories and (workload.expert_slots or workload.parallel.offload):
        return False
    try:
        if needs_plan(workload):
            if not plain(workload):
                return False
            plan = plan_of(workload, count, topology.gpu)
            plan_memory.check_memory(plan, workload, topology.gpu, [""] * count)
            if plan.offload:
                check_hosts(workload, graph, plan, names)
        else:
            layout = layout_of(workload, count, topology.name)
            check_memory(workload, topology.gpu, layout, [""] * count, memories, graph)
    except InputError:
        return False
    return True


def _wider(workload: Workload, count: int, cluster: str) -> list[int]:
    """Larger expert-parallel groups that could be tried on `count` GPUs."""
    if workload.parallel.stages is not None or not workload.model.moe.experts:
        return []
    physical = workload.model.moe.experts + workload.redundant_experts
    try:
        now = workload.parallel.ep or group_size(workload, count, cluster)
    except InputError:
        return []
    return [ep for ep in range(now + 1, min(count, physical) + 1) if count % ep == 0]


def _more_gpus(inputs: Inputs, graph: Graph, count: int) -> list[str]:
    """The first multiple of the GPUs that would do, with the group that it takes."""
    workload, factor = inputs.workload, 2
    if workload.parallel.offload is not None or workload.expert_slots is not None:
        return []  # what lies in the memories of hosts that are not there cannot be checked
    while factor <= MOST_GPUS:
        more = count * factor
        if _fits(inputs, graph, workload, more):
            return [f"{more:,} GPUs"]
        for ep in _wider(workload, more, inputs.topology.name):
            parallel = workload.parallel.model_copy(update={"ep": ep})
            if _fits(inputs, graph, workload.model_copy(update={"parallel": parallel}), more):
                return [f"{more:,} GPUs with parallel.ep={ep}"]
        factor *= 2
    return []


def _most(high: int, enough: Callable[[int], bool]) -> int:
    """The largest number from 1 to `high` that is enough, where all below it are; 0: none."""
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        if enough(middle):
            low = middle
        else:
            high = middle - 1
    return low
