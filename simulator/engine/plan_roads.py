"""The routes that a plan needs, and what the transport makes of what goes over them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.graph import Graph, gpus
from simulator.cluster.routes import NETWORK, RouteTable, routes_between
from simulator.engine.collectives import COLLECTIVES, Phase
from simulator.engine.costs import efficiencies, fixed_s, half_size, on_wire
from simulator.engine.ranks import Ranks, ranks_among
from simulator.engine.roads import algorithm
from simulator.engine.step import Sending
from simulator.engine.transport import (
    AUTO,
    Cluster,
    algorithms,
    lay_even,
    time_of,
    token_bytes,
)
from simulator.errors import InputError
from simulator.model.plan import Plan, Stage
from simulator.model.sizes import ACTIVATION_BYTES
from simulator.spec.load import Inputs
from simulator.spec.plan import Degrees
from simulator.spec.transport import Cost, Transport

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]


class Sync(NamedTuple):
    """A tensor-parallel collective of a stage, all replicas at once.

    Flows sorted by owner, the GPU of the stage on whose communication stream they are: owner,
    replica, route int32 [flows]; message: bytes of a message per byte of the operation, messages:
    how many, efficiency: that large ones reach, float64 [flows]; own: whether the owner sends it
    (a switch sends for it otherwise), bool [flows]. half_size_bytes of the ramp; delay_s: from all
    being ready to the first message, with what later hops wait, float64 [replicas]; name: of the
    algorithm.
    """

    owner: Ints
    replica: Ints
    route: Ints
    message: Floats
    messages: Floats
    efficiency: Floats
    own: NDArray[np.bool_]
    half_size_bytes: float
    delay_s: Floats
    name: str

    def on_wire(self, size_bytes: Floats) -> Floats:
        """Bytes on the wire, float64 [flows], of operations of `size_bytes` [replicas]."""
        message = self.message * size_bytes[self.replica]
        return on_wire(message, self.messages, self.half_size_bytes, self.efficiency)

    def payload(self, size_bytes: Floats) -> Floats:
        """Bytes that travel, float64 [flows]."""
        return np.asarray(self.messages * self.message * size_bytes[self.replica])


class Passing(NamedTuple):
    """Sends from a stage to the next: half_size_bytes of the ramp, efficiency float64 [routes],
    delay_s from the data to the first message.
    """

    half_size_bytes: float
    efficiency: Floats
    delay_s: float

    def on_wire(self, size_bytes: Floats, route: Ints) -> Floats:
        """Bytes on the wire, float64 [flows]."""
        one = np.ones(len(size_bytes))
        return on_wire(size_bytes, one, self.half_size_bytes, self.efficiency[route])


class PlanRoads(NamedTuple):
    """The routes of a plan.

    between: (node, node) -> route; nodes are GPUs, and switches after them. Per stage: syncs by
    operation, dispatch and combine (None: no expert is elsewhere), passing (None: the last one).
    """

    routes: RouteTable
    between: dict[tuple[int, int], int]
    syncs: tuple[dict[str, Sync], ...]
    dispatch: tuple[Sending | None, ...]
    combine: tuple[Sending | None, ...]
    passing: tuple[Passing | None, ...]

    def route(self, source: NDArray[np.integer], target: NDArray[np.integer]) -> Ints:
        """Routes int32 [pairs] from GPUs to GPUs."""
        pairs = zip(source.tolist(), target.tolist(), strict=True)
        return np.array([self.between[pair] for pair in pairs], dtype=np.int32)


class _Chosen(NamedTuple):
    """A collective of one tensor-parallel group: its messages for one byte, its ends as nodes."""

    op: str
    name: str
    phase: Phase
    source: list[int]
    target: list[int]
    ranks: int


def roads_of_plan(inputs: Inputs, graph: Graph, plan: Plan) -> PlanRoads:
    """Choose the algorithms and find the routes; raises InputError where GPUs are not joined and
    for an operation that the transport has no costs for.
    """
    transport = inputs.workload.transport
    names = gpus(graph)
    if transport.path == "host" and plan.gpus > 1:
        raise InputError(
            f"transport {transport.name} is staged through host memory, which a run does not "
            "model; `collective` does. Write another transport"
        )
    nodes = list(names)
    chosen = [_choose(inputs, graph, plan, stage, names, nodes) for stage in plan.stages]
    pairs: dict[tuple[int, int], int] = {}
    for groups in chosen:
        for one in (one for listed in groups.values() for one in listed):
            for pair in zip(one.source, one.target, strict=True):
                pairs.setdefault(pair, len(pairs))
    for number, stage in enumerate(plan.stages):
        for pair in [*_dispatched(stage), *_passed(plan, number)]:
            pairs.setdefault(pair, len(pairs))
    ends_of = np.array(list(pairs), dtype=np.int32).reshape(-1, 2)
    via = "network" if transport.path == "network" else None
    routes = routes_between(graph, nodes, ends_of[:, 0].copy(), ends_of[:, 1].copy(), via)
    share = _Share(transport, inputs.topology.gpu.name, routes, pairs)
    tokens = [
        {op: _sending(share, inputs, stage, op) for op in ("dispatch", "combine")}
        for stage in plan.stages
    ]
    return PlanRoads(
        routes,
        pairs,
        tuple(
            {op: _sync(share, stage, groups) for op, groups in ops.items()}
            for stage, ops in zip(plan.stages, chosen, strict=True)
        ),
        tuple(of["dispatch"] for of in tokens),
        tuple(of["combine"] for of in tokens),
        tuple(_passing(share, _passed(plan, number)) for number in range(len(plan.stages))),
    )


def lanes(a: Degrees, b: Degrees, replicas: int, slices: bool) -> tuple[list[int], list[int]]:
    """Who may send to whom between two stages, as GPU numbers within each.

    `replicas`: the most of any stage; tokens of the h-th of so many portions are on replica
    h x dp // replicas. `slices`: ranks hold different tokens, so that any may send to any.
    """
    source, target = [], []
    for ra, rb in dict.fromkeys(
        (h * a.dp // replicas, h * b.dp // replicas) for h in range(replicas)
    ):
        for u in range(b.tp):
            for t in range(a.tp) if slices else [u * a.tp // b.tp]:
                source.append(ra * a.tp + t)
                target.append(rb * b.tp + u)
    return source, target


def _choose(
    inputs: Inputs, graph: Graph, plan: Plan, stage: Stage, names: list[str], nodes: list[str]
) -> dict[str, list[_Chosen]]:
    """The collectives of each tensor-parallel group of a stage; adds the switches to `nodes`."""
    of, transport = stage.degrees, inputs.workload.transport
    if of.tp == 1:
        return {}
    ops = ["allgather", "reducescatter"] if plan.sequence_parallel else ["allreduce"]
    if of.dispatches and "allgather" not in ops:
        ops.append("allgather")
    tokens = inputs.workload.traffic.tokens_per_gpu * plan.gpus / of.dp / plan.microbatches
    usual = tokens * inputs.workload.model.hidden * ACTIVATION_BYTES
    found: dict[str, list[_Chosen]] = {op: [] for op in ops}
    for replica in range(of.dp):
        members = list(stage.gpus[replica * of.tp : (replica + 1) * of.tp])
        ranks = ranks_among(graph, [names[gpu] for gpu in members])
        cluster = Cluster(graph, ranks, inputs.topology.gpu)
        for op in ops:
            name = _algorithm(cluster, transport, op, plan.allreduce, usual)
            found[op].append(_lay(ranks, op, name, members, nodes))
    return found


def _algorithm(cluster: Cluster, transport: Transport, op: str, asked: str, usual: float) -> str:
    """The fastest algorithm at the usual size."""
    names = algorithms(cluster, transport, op, asked if op == "allreduce" else AUTO)
    if len(names) == 1:
        return names[0]
    times = [time_of(lay_even(cluster, transport, op, name), usual).seconds for name in names]
    return names[int(np.argmin(times))]


def _lay(ranks: Ranks, op: str, name: str, members: list[int], nodes: list[str]) -> _Chosen:
    (phase,) = COLLECTIVES[op][name](ranks, 1.0)
    where = list(members)
    for extra in phase.extra:
        if extra not in nodes:
            nodes.append(extra)
        where.append(nodes.index(extra))
    source = [where[i] for i in phase.source.tolist()]
    target = [where[i] for i in phase.target.tolist()]
    return _Chosen(op, name, phase, source, target, ranks.size)


class _Share(NamedTuple):
    """What a transport reaches on routes."""

    transport: Transport
    gpu: str
    routes: RouteTable
    pairs: dict[tuple[int, int], int]

    def efficiency(
        self, cost: Cost, operation: tuple[str, str], ranks: int, used: list[int]
    ) -> Floats:
        """Of large messages, float64 [routes], in an operation (its name, its algorithm) of so many
        ranks over the routes `used`.
        """
        scale = self.transport.scale_of(self.gpu)
        return efficiencies(cost, scale, operation, ranks, self.routes, self._crossing(used))

    def fixed_s(self, cost: Cost, ranks: int, used: list[int]) -> float:
        """Before the first message of an operation of so many ranks over these routes."""
        return fixed_s(cost, self.transport.scale_of(self.gpu), ranks, self._crossing(used))

    def _crossing(self, used: list[int]) -> bool:
        return bool((self.routes.kind_of[used] == NETWORK).any())


def _sync(share: _Share, stage: Stage, groups: list[_Chosen]) -> Sync:
    tp = stage.degrees.tp
    parts = []
    delays = []
    cost = share.transport.costs_of(groups[0].op)[groups[0].name]
    for replica, one in enumerate(groups):
        if one.name != groups[0].name:
            raise InputError(
                f"{one.op}: the tensor-parallel groups of a stage are wired differently "
                f"({groups[0].name}, {one.name}); write parallel.allreduce"
            )
        members = stage.gpus[replica * tp : (replica + 1) * tp]
        ends = list(zip(one.source, one.target, strict=True))
        route = [share.pairs[pair] for pair in ends]
        delay_s = share.fixed_s(cost, one.ranks, route)
        delay_s += float(one.phase.waits @ share.routes.latency_s[route])
        delays.append(delay_s)
        # Flows of one route begin together and are equal: one flow, or a route would carry many.
        merged: dict[tuple[int, int], list[float]] = {}
        own: dict[tuple[int, int], bool] = {}
        for (a, b), at, message, count in zip(
            ends,
            route,
            one.phase.message_bytes.tolist(),
            one.phase.messages.tolist(),
            strict=True,
        ):
            owner = members.index(a if a in members else b)
            had = merged.setdefault((owner, at), [message, 0.0])
            had[1] += count
            own[owner, at] = a in members
        parts += [
            (replica * tp + owner, replica, at, message, count, own[owner, at])
            for (owner, at), (message, count) in merged.items()
        ]
    parts.sort(key=lambda part: part[0])
    columns = list(zip(*parts, strict=True))
    route_of = np.array(columns[2], dtype=np.int32)
    op, name, ranks = groups[0].op, groups[0].name, groups[0].ranks
    return Sync(
        owner=np.array(columns[0], dtype=np.int32),
        replica=np.array(columns[1], dtype=np.int32),
        route=route_of,
        message=np.array(columns[3]),
        messages=np.array(columns[4]),
        efficiency=share.efficiency(cost, (op, name), ranks, list(columns[2]))[route_of],
        own=np.array(columns[5]),
        half_size_bytes=half_size(cost, op, name, ranks),
        delay_s=np.array(delays),
        name=name,
    )


def _dispatched(stage: Stage) -> list[tuple[int, int]]:
    """GPUs between which tokens of a stage may travel."""
    of = stage.degrees
    if not of.dispatches or stage.layers[-1] < stage.model.moe.first_dense_layers:
        return []
    group = of.ep * of.expert_tp
    return [
        (stage.gpus[first + i], stage.gpus[first + j])
        for first in range(0, len(stage.gpus), group)
        for i in range(group)
        for j in range(group)
        if i != j
    ]


def _sending(share: _Share, inputs: Inputs, stage: Stage, op: str) -> Sending | None:
    """What the transport makes of dispatch or combine; as `roads.sending`."""
    ends = _dispatched(stage)
    if not ends:
        return None
    transport = share.transport
    name = algorithm(transport, op)
    if name == "two-tier":
        raise InputError(
            f"transport {transport.name} dispatches in two tiers, which goes with parallel: "
            "{ep: N} alone; write another transport"
        )
    cost = transport.costs_of(op)[name]
    ranks = stage.degrees.ep * stage.degrees.expert_tp
    used = [share.pairs[pair] for pair in ends]
    return Sending(
        token_bytes=token_bytes(transport, op, inputs.workload.model.hidden),
        efficiency=share.efficiency(cost, (op, name), ranks, used),
        half_size_bytes=half_size(cost, op, name, ranks),
        packed=transport.deduplicate != "none",
        delay_s=share.fixed_s(cost, ranks, used),
    )


def _passed(plan: Plan, number: int) -> list[tuple[int, int]]:
    """GPUs between which activations go from a stage to the next."""
    if number + 1 == len(plan.stages):
        return []
    stage, after = plan.stages[number], plan.stages[number + 1]
    ends = lanes(stage.degrees, after.degrees, plan.replicas, plan.sequence_parallel)
    pairs = [(stage.gpus[i], after.gpus[j]) for i, j in zip(*ends, strict=True)]
    return [(a, b) for a, b in pairs if a != b]


def _passing(share: _Share, ends: list[tuple[int, int]]) -> Passing | None:
    if not ends:
        return None
    costs = share.transport.costs_of("sendrecv")
    cost = costs.get("direct")
    if cost is None:
        raise InputError(f"transport {share.transport.name}: no costs of sendrecv by 'direct'")
    used = [share.pairs[pair] for pair in ends]
    return Passing(
        half_size(cost, "sendrecv", "direct", 2),
        share.efficiency(cost, ("sendrecv", "direct"), 2, used),
        share.fixed_s(cost, 2, used),
    )
