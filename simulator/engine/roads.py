"""The routes that a run can need, and what a transport makes of what goes over them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.graph import Graph, gpus, memory_of_host
from simulator.cluster.routes import NETWORK, NVLINK, RouteTable, joined, routes_between
from simulator.engine.costs import by_kind, efficiencies, fixed_s, half_size
from simulator.engine.homes import slowest_s
from simulator.engine.layout import Layout
from simulator.engine.ranks import ranks_of
from simulator.engine.step import Sending
from simulator.engine.transport import token_bytes
from simulator.errors import InputError
from simulator.spec.load import Inputs
from simulator.spec.transport import Transport

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]


class Roads(NamedTuple):
    """Routes between GPUs, and those over which weights come.

    between: int32 [gpus, gpus], -1 where nothing has to travel; from_host: int32 [gpus], route from
    the memory of its host, -1 if none is needed; from_peer: int32 [gpus, gpus], routes over which
    a GPU may lend weights to another, -1 where none; copy_wire_bytes, slowest_s: float64 [routes],
    bytes that a copied byte puts on the links, and seconds that a byte takes on the slowest.
    """

    routes: RouteTable
    between: Ints
    from_host: Ints
    from_peer: Ints
    copy_wire_bytes: Floats
    slowest_s: Floats

    def origin(self) -> Ints:
        """The GPU at which each route begins, int32 [routes], -1: host memory."""
        found = np.full(self.routes.count, -1, dtype=np.int32)
        for table in (self.between, self.from_peer):
            source, target = np.nonzero(table >= 0)
            found[table[source, target]] = source
        return found

    def fetched(self, layout: Layout, gpu: int, experts: int) -> list[int]:
        """Route of each expert's weights to a GPU, -1 if it holds them for good."""
        if self.from_host[gpu] >= 0:
            return [int(self.from_host[gpu])] * experts
        homes = [layout.home(gpu, expert) for expert in range(experts)]
        return [-1 if home == gpu else int(self.between[home, gpu]) for home in homes]


def roads_of(inputs: Inputs, graph: Graph, layout: Layout) -> Roads:
    """The routes of a run; raises InputError where GPUs, or memory and GPU, are not joined."""
    names = gpus(graph)
    transport = inputs.workload.transport
    if transport.path == "host" and layout.ep > 1 and not layout.fetch:
        raise InputError(
            f"transport {transport.name} is staged through host memory, which a run does not "
            "model; `collective` does. Write another transport"
        )
    pairs = np.array(list(layout.pairs()), dtype=np.int32).reshape(-1, 2)
    sent_over = "network" if transport.path == "network" and not layout.fetch else None
    routes = routes_between(graph, names, pairs[:, 0], pairs[:, 1], sent_over)
    between = np.full((len(names), len(names)), -1, dtype=np.int32)
    between[pairs[:, 0], pairs[:, 1]] = np.arange(len(pairs), dtype=np.int32)
    from_host = np.full(len(names), -1, dtype=np.int32)
    if layout.offloaded and not layout.on_peers:
        memories = [memory_of_host(graph, name) for name in names]
        for name, memory in zip(names, memories, strict=True):
            if memory is None:
                raise InputError(
                    f"{inputs.topology.name}: {name} has no host memory to fetch experts from; "
                    "add a dram node to its host, or set expert_home=peer"
                )
        nodes = [*names, *(memory for memory in memories if memory is not None)]
        every = np.arange(len(names), dtype=np.int32)
        routes = joined(routes, routes_between(graph, nodes, every + np.int32(len(names)), every))
        from_host = every + np.int32(len(pairs))
    from_peer = np.full((len(names), len(names)), -1, dtype=np.int32)
    if layout.offloaded and inputs.workload.expert_home == "peer-or-host":
        near = _lending(graph, names, layout)
        from_peer[near[:, 0], near[:, 1]] = routes.count + np.arange(len(near), dtype=np.int32)
        routes = joined(routes, routes_between(graph, names, near[:, 0], near[:, 1]))
    share = by_kind(inputs.workload.copy_efficiency)
    wire_bytes = 1.0 / share[routes.kind_of]
    return Roads(routes, between, from_host, from_peer, wire_bytes, slowest_s(routes))


def _lending(graph: Graph, names: list[str], layout: Layout) -> Ints:
    """GPUs (lender, borrower) int32 [pairs, 2] of a node that NVLink joins and that may both hold
    some expert.
    """
    if len(names) == 1:
        return np.zeros((0, 2), dtype=np.int32)
    node = ranks_of(graph).node
    serves = layout.serves.reshape(-1, *layout.serves.shape[-2:])
    held = serves.transpose(1, 0, 2).reshape(len(names), -1).astype(np.float32)
    both = (held @ held.T > 0) & (node[:, None] == node[None, :])
    np.fill_diagonal(both, False)
    pairs = np.argwhere(both).astype(np.int32)
    kinds = routes_between(graph, names, pairs[:, 0], pairs[:, 1]).kind_of
    return np.asarray(pairs[kinds == NVLINK], dtype=np.int32)


def algorithm(transport: Transport, op: str) -> str:
    """How a run dispatches and combines: in two tiers if the transport does, else directly.

    Raises InputError for a transport that does neither.
    """
    costs = transport.costs_of(op)
    for name in ("two-tier", "direct") if transport.deduplicate == "node" else ("direct",):
        if name in costs:
            return name
    raise InputError(
        f"transport {transport.name}: no costs of {op} by {'direct'!r}; it has {', '.join(costs)}"
    )


def sending(inputs: Inputs, layout: Layout, roads: Roads, op: str) -> Sending:
    """What a transport makes of dispatch or combine; a run without sends needs no transport."""
    transport = inputs.workload.transport
    hidden = inputs.workload.model.hidden
    every = np.ones(roads.routes.count)
    if layout.fetch or layout.ep == 1:
        return Sending(0.0, every, 0.0, True, 0.0)
    name = algorithm(transport, op)
    cost = transport.costs_of(op)[name]
    scale = transport.scale_of(inputs.topology.gpu.name)
    used = roads.between[roads.between >= 0]
    crossing = bool((roads.routes.kind_of[used] == NETWORK).any())
    return Sending(
        token_bytes=token_bytes(transport, op, hidden),
        efficiency=efficiencies(cost, scale, (op, name), layout.ep, roads.routes, crossing),
        half_size_bytes=half_size(cost, op, name, layout.ep),
        packed=transport.deduplicate != "none",
        delay_s=fixed_s(cost, scale, layout.ep, crossing),
    )
