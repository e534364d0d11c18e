"""Where the experts of a layer live, and which copy of one is nearest to a GPU."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.graph import Graph
from simulator.cluster.routes import RouteTable, routes_between
from simulator.policies.placement import Placement
from simulator.routing.traffic import Copies

Floats = NDArray[np.float64]
Int32s = NDArray[np.int32]

SAME_COST = 1e-9  # costs nearer than this fraction are equal: sums of latencies round


class Homes(NamedTuple):
    """GPUs of one layer's experts, within a group. owner: int32 [experts]; copies: where experts
    have several (`owner` is then of their first).
    """

    owner: Int32s
    copies: Copies | None = None


class Near(NamedTuple):
    """How far the GPUs of a group are from a GPU.

    node: int32 [gpus]; latency_s, seconds_per_byte: float64 [gpus, ep], of the route from a GPU to
    each of its group (0 to itself); the slowest link of a route decides its seconds per byte.
    """

    node: Int32s
    latency_s: Floats
    seconds_per_byte: Floats

    @property
    def ep(self) -> int:
        """GPUs of a group."""
        return int(self.latency_s.shape[1])

    def cost_s(self, size_bytes: float) -> Floats:
        """Seconds that so many bytes take alone, float64 [gpus, ep]."""
        return np.asarray(self.latency_s + size_bytes * self.seconds_per_byte)


def near_of(graph: Graph, names: list[str], node: Int32s, ep: int, via: str | None) -> Near:
    """Distances within groups of `ep` neighbours; node: int32 [gpus]; via: as in `routes_between`.

    Raises InputError for GPUs of a group that no path joins.
    """
    gpus = len(names)
    source = np.repeat(np.arange(gpus, dtype=np.int32), ep)
    target = source // np.int32(ep) * np.int32(ep) + np.tile(np.arange(ep, dtype=np.int32), gpus)
    apart = source != target
    routes = routes_between(graph, names, source[apart], target[apart], via)
    latency_s, seconds_per_byte = np.zeros(gpus * ep), np.zeros(gpus * ep)
    latency_s[apart] = routes.latency_s
    seconds_per_byte[apart] = slowest_s(routes)
    return Near(node, latency_s.reshape(gpus, ep), seconds_per_byte.reshape(gpus, ep))


def slowest_s(routes: RouteTable) -> Floats:
    """Seconds that a byte keeps the slowest link of each route busy, float64 [routes]."""
    if not routes.count:
        return np.zeros(0)
    each = 1.0 / routes.bandwidth_bytes_per_s[routes.crossed]
    if routes.fraction is not None:
        each = each * routes.fraction
    return np.asarray(np.maximum.reduceat(each, routes.ptr[:-1]), dtype=np.float64)


def homes_of(
    placement: Placement, experts: int, near: Near | None, size_bytes: float, least_loaded: bool
) -> tuple[tuple[Homes, ...], Int32s]:
    """The homes of each different layer of a placement, and which of them each layer has, int32
    [layers].

    near: needed where experts have copies; size_bytes: of the token by which routes are compared.
    """
    rows, which = np.unique(placement.expert_of, axis=0, return_inverse=True)
    # In the order of the layers, so that what comes first does not depend on the numbers.
    first = np.full(len(rows), len(which))
    np.minimum.at(first, which.ravel(), np.arange(len(which)))
    order = np.argsort(first)
    place = np.empty(len(rows), dtype=np.int32)
    place[order] = np.arange(len(rows), dtype=np.int32)
    cost_s = None if near is None else near.cost_s(size_bytes)
    made = tuple(
        _homes(rows[row], placement.gpu_of, experts, near, cost_s, least_loaded) for row in order
    )
    return made, place[which.ravel()]


def _homes(
    expert_of: Int32s,
    gpu_of: Int32s,
    experts: int,
    near: Near | None,
    cost_s: Floats | None,
    least_loaded: bool,
) -> Homes:
    """Homes of one layer: expert_of, gpu_of int32 [slots]."""
    slot = np.arange(len(expert_of))
    # A second copy on the same GPU serves nobody: of equal (expert, GPU) the first slot counts.
    _, first = np.unique(
        expert_of.astype(np.int64) * (int(gpu_of.max()) + 1) + gpu_of, return_index=True
    )
    slots = slot[first]  # sorted by expert, then by GPU
    ptr = np.zeros(experts + 1, dtype=np.int32)
    np.cumsum(np.bincount(expert_of[slots], minlength=experts), out=ptr[1:])
    owner = gpu_of[slots[ptr[:-1]]].astype(np.int32)
    if len(slots) == experts:
        return Homes(owner)
    if near is None or cost_s is None:
        raise ValueError("experts have copies: distances are needed")
    nearest = _nearest(slots, ptr, gpu_of, near, cost_s)
    copies = Copies(
        np.ascontiguousarray(expert_of, dtype=np.int32),
        np.ascontiguousarray(gpu_of, dtype=np.int32),
        nearest,
        ptr,
        slots.astype(np.int16),
        least_loaded,
    )
    return Homes(owner, copies)


def _nearest(
    slots: NDArray[np.int64], ptr: Int32s, gpu_of: Int32s, near: Near, cost_s: Floats
) -> NDArray[np.int16]:
    """The slot nearest to each GPU, int16 [gpus, experts]: on the GPU itself, then on its node,
    then by cost; GPUs with the same choice of equals are dealt to them in turn.
    """
    gpus, experts = len(near.node), len(ptr) - 1
    gpu = np.arange(gpus)
    first = gpu // near.ep * near.ep
    found = np.empty((gpus, experts), dtype=np.int16)
    alone = np.diff(ptr) == 1
    found[:, alone] = slots[ptr[:-1][alone]]
    for expert in np.flatnonzero(~alone).tolist():
        mine = slots[ptr[expert] : ptr[expert + 1]]
        held = first[:, None] + gpu_of[mine][None, :]  # [gpus, copies]
        here, beside = held == gpu[:, None], near.node[held] == near.node[:, None]
        rank = np.where(here, 0, np.where(beside, 1, 2))
        best = rank == rank.min(axis=1, keepdims=True)
        cost = np.where(best, cost_s[gpu[:, None], gpu_of[mine][None, :]], np.inf)
        equal = cost <= cost.min(axis=1, keepdims=True) * (1.0 + SAME_COST)
        # The n-th GPU that faces the same equals takes the n-th of them.
        _, facing = np.unique(np.column_stack((first, equal)), axis=0, return_inverse=True)
        order = np.argsort(facing.ravel(), kind="stable")
        counts = np.bincount(facing.ravel())
        turn = np.empty(gpus, dtype=np.int64)
        turn[order] = np.arange(gpus) - np.repeat(np.cumsum(counts) - counts, counts)
        nth = turn % equal.sum(axis=1)
        picked = np.argmax(equal & (np.cumsum(equal, axis=1) == nth[:, None] + 1), axis=1)
        found[:, expert] = mine[picked]
    return found
