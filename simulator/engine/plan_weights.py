"""Weights that a plan keeps in host memory: over which routes they come, and how many bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.graph import Graph, gpus, memory_of_host
from simulator.cluster.routes import joined, routes_between
from simulator.engine.costs import by_kind
from simulator.engine.plan_roads import PlanRoads
from simulator.errors import InputError
from simulator.model.footprint import check_host
from simulator.model.plan import Plan
from simulator.model.plan_memory import expert_shares, offered_parts
from simulator.spec.load import Inputs
from simulator.spec.schema import Workload

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]


class Weights(NamedTuple):
    """What comes from host memory.

    from_host: int32 [gpus], the route from the memory of its host, -1 where nothing is needed;
    size_bytes: per (stage, layer) float64 [GPUs of the stage]; wire_bytes: float64 [routes], what a
    byte puts on the links of a route.
    """

    from_host: Ints
    size_bytes: dict[tuple[int, int], Floats]
    wire_bytes: Floats


def weights_of(
    inputs: Inputs, graph: Graph, plan: Plan, roads: PlanRoads
) -> tuple[PlanRoads, Weights]:
    """The roads with those from host memory, and what comes over these.

    Raises InputError for a GPU without host memory, and a host whose memory cannot hold its part.
    """
    from_host = np.full(plan.gpus, -1, dtype=np.int32)
    if not plan.streams:
        return roads, Weights(from_host, {}, np.ones(roads.routes.count))
    size_bytes = {
        (number, layer): _on_gpus(plan, number, layer)
        for number, layers in enumerate(plan.streamed)
        for layer in layers
    }
    names = gpus(graph)
    chosen = sorted({gpu for number, _ in size_bytes for gpu in plan.stages[number].gpus})
    memories = [memory_of_host(graph, names[gpu]) for gpu in chosen]
    for gpu, memory in zip(chosen, memories, strict=True):
        if memory is None:
            raise InputError(
                f"{inputs.topology.name}: {names[gpu]} has no host memory to keep weights in; add "
                "a dram node to its host, or leave parallel.offload out"
            )
    check_hosts(inputs.workload, graph, plan, names)
    nodes = [*names, *(memory for memory in memories if memory is not None)]
    source = np.arange(len(chosen), dtype=np.int32) + np.int32(len(names))
    added = routes_between(graph, nodes, source, np.array(chosen, dtype=np.int32))
    from_host[chosen] = roads.routes.count + np.arange(len(chosen), dtype=np.int32)
    routes = joined(roads.routes, added)
    share = by_kind(inputs.workload.copy_efficiency)[routes.kind_of]
    return roads._replace(routes=routes), Weights(from_host, size_bytes, 1.0 / share)


def _on_gpus(plan: Plan, number: int, layer: int) -> Floats:
    """Bytes of a layer's streamed weights on each GPU of a stage."""
    dense, expert = offered_parts(plan, number, layer)
    return dense + expert * _experts_on(plan, number)


def _experts_on(plan: Plan, number: int) -> Floats:
    """Experts of a layer, in those of size 1, that each GPU of a stage has, float64 [gpus]."""
    stage = plan.stages[number]
    shares = np.repeat(expert_shares(stage), stage.degrees.expert_tp)
    return np.resize(shares, len(stage.gpus))


def check_hosts(workload: Workload, graph: Graph, plan: Plan, names: Sequence[str]) -> None:
    """Raise InputError if a host's memory cannot hold what its GPUs, called `names`, fetch: those
    that have the same part of a layer fetch it from one copy.
    """
    held: dict[str, dict[tuple[int, ...], float]] = {}
    for number, layers in enumerate(plan.streamed):
        of = plan.stages[number].degrees
        experts = _experts_on(plan, number)
        for layer in layers:
            dense, expert = offered_parts(plan, number, layer)
            for at, gpu in enumerate(of.gpus):
                mine = held.setdefault(str(memory_of_host(graph, names[gpu])), {})
                mine[number, layer, 0, at % of.tp] = dense
                mine[number, layer, 1, at % (of.ep * of.expert_tp)] = expert * float(experts[at])
    for memory, parts in held.items():
        capacity = graph.nodes.get(memory, {}).get("capacity_bytes")
        if capacity is not None:
            check_host(workload, memory, sum(parts.values()), capacity, "weights")
