"""What the event core knows of links and routes; a whole collective as one flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.routes import RouteTable
from simulator.compiled import compiled
from simulator.engine import core
from simulator.spec.choices import parse_choice

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Ints = NDArray[np.int32]


class Network(NamedTuple):
    """How transfers share links: max-min fair, and

    epsilon: what would end within that fraction of its time ends together (0: exact); coflow: the
    transfers of a collective progress in proportion and end together.
    """

    epsilon: float = 0.0
    coflow: bool = False


EXACT = Network()


def network_of(name: str) -> Network:
    """The network that a workload or a command names: `exact`, `epsilon:0.01`, `coflow`."""
    choice = parse_choice(name, "network")
    return Network(choice.argument or 0.0, choice.name == "coflow")


class Wires(NamedTuple):
    """Routes over the links that can limit them.

    capacity_bytes_per_s float64 [links]; ptr int64 [routes + 1] and link int32 [crossings], the
    links of each route; weight float64 [crossings], what its rate takes of each (None: all 1);
    latency_s float64 [routes].
    """

    capacity_bytes_per_s: Floats
    ptr: Counts
    link: Ints
    weight: Floats | None
    latency_s: Floats

    @property
    def routes(self) -> int:
        """Number of routes."""
        return len(self.latency_s)


def wires_of(routes: RouteTable, weighted: bool = False) -> Wires:
    """The wires of a route table; `weighted`: with weights even if all are 1."""
    weight = routes.bind_weight
    if weight is None and weighted:
        weight = np.ones(len(routes.bind_link))
    return Wires(
        routes.capacity_bytes_per_s,
        routes.bind_ptr,
        routes.bind_link,
        weight,
        routes.latency_s,
    )


def all_wires_of(routes: RouteTable) -> Wires:
    """As `wires_of`, with every link of each route: for one use, they are quicker to have."""
    return Wires(
        routes.bandwidth_bytes_per_s,
        routes.ptr,
        routes.crossed,
        routes.fraction,
        routes.latency_s,
    )


def size(sizes: list[int], wires: Wires, at_once: Counts, beside: int = 0) -> None:
    """Set the sizes of the core's tables of links and routes.

    at_once: int64 [routes], most transfers on each route at one time; beside: others on any link.
    """
    hops = int(np.diff(wires.ptr).max(initial=0))
    sizes[core.LINKS] = len(wires.capacity_bytes_per_s)
    sizes[core.ROUTES] = wires.routes
    sizes[core.CROSSINGS] = len(wires.link)
    sizes[core.PLACES] = int((_on_link(wires, at_once) + beside + 1).sum())
    sizes[core.SHIFT] = core.row_shift(hops) if wires.weight is None else 0


def connect(net: core.Net, wires: Wires, at_once: Counts, epsilon: float, beside: int = 0) -> None:
    """Fill in the links and routes, with room for so many transfers (`size`)."""
    core.connect(net, wires.capacity_bytes_per_s, _on_link(wires, at_once) + beside)
    net.route_ptr[: wires.routes + 1] = wires.ptr
    net.route_i[: len(wires.link)] = wires.link
    net.route_w[: len(wires.link)] = 1.0 if wires.weight is None else wires.weight
    net.route_f[: wires.routes] = wires.latency_s
    net.counts[core.WEIGHTED] = wires.weight is not None
    net.clock[core.EPSILON] = epsilon


def _on_link(wires: Wires, at_once: Counts) -> Counts:
    crossings = np.repeat(at_once, np.diff(wires.ptr))
    found = np.bincount(wires.link, crossings, minlength=len(wires.capacity_bytes_per_s))
    return found.astype(np.int64)


class Merged(NamedTuple):
    """A whole collective as one weighted flow.

    link int32 [used] and weight float64 [used]; size_bytes; latency_s.
    """

    link: Ints
    weight: Floats
    size_bytes: float
    latency_s: float


def merged(wires: Wires, route: Ints, size_bytes: Floats) -> Merged:
    """The transfers of a collective, route int32 and size_bytes float64 [transfers], as one flow.

    It is as large as the mean transfer and has its rate: a link that carries b bytes of the
    collective has the weight b / mean. Alone, it takes as long as its slowest link; beside others,
    a link is shared as if each of its transfers had the mean rate. It waits the longest latency.
    """
    mean_bytes = float(size_bytes.mean())
    load = np.zeros(len(wires.capacity_bytes_per_s))
    weight = np.zeros(0) if wires.weight is None else wires.weight
    latency_s = _add_loads(load, wires.ptr, wires.link, weight, wires.latency_s, route, size_bytes)
    used = np.flatnonzero(load)
    return Merged(used.astype(np.int32), load[used] / mean_bytes, mean_bytes, float(latency_s))


def wires_of_merged(wires: Wires, flows: Sequence[Merged]) -> Wires:
    """The wires with one route for each of these flows in place of the others."""
    ends = np.cumsum([0, *(len(flow.link) for flow in flows)])
    return Wires(
        wires.capacity_bytes_per_s,
        ends.astype(np.int64),
        np.concatenate([np.zeros(0, dtype=np.int32), *(flow.link for flow in flows)]),
        np.concatenate([np.zeros(0), *(flow.weight for flow in flows)]),
        np.array([flow.latency_s for flow in flows]),
    )


@compiled
def _add_loads(
    load: Floats,
    ptr: Counts,
    link: Ints,
    weight: Floats,
    latency_s: Floats,
    route: Ints,
    size_bytes: Floats,
) -> float:
    """Add the bytes of transfers to those of their links [links]; gives the longest latency."""
    weighted = weight.size > 0
    longest = 0.0
    for i in range(route.size):
        r = route[i]
        longest = max(longest, latency_s[r])
        for h in range(ptr[r], ptr[r + 1]):
            load[link[h]] += size_bytes[i] * weight[h] if weighted else size_bytes[i]
    return longest
