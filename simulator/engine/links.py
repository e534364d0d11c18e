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
    """Whole collectives, each as one weighted flow.

    ptr: int64 [flows + 1]; link: int32 [crossings] and weight: float64 [crossings], those of flow i
    from ptr[i] to ptr[i + 1]; size_bytes, latency_s: float64 [flows].
    """

    ptr: Counts
    link: Ints
    weight: Floats
    size_bytes: Floats
    latency_s: Floats

    @property
    def flows(self) -> int:
        """Number of flows."""
        return len(self.size_bytes)


def merged(wires: Wires, ptr: Counts, route: Ints, size_bytes: Floats) -> Merged:
    """Transfers of collectives as one flow for each.

    ptr: int64 [collectives + 1], route: int32 and size_bytes: float64 [transfers]: collective i has
    those from ptr[i] to ptr[i + 1], one at least.

    A flow is as large as the mean transfer and has its rate: a link that carries b bytes of the
    collective has the weight b / mean. Alone, it takes as long as its slowest link; beside others,
    a link is shared as if each of its transfers had the mean rate. It waits the longest latency.
    """
    links, flows = len(wires.capacity_bytes_per_s), len(ptr) - 1
    most = flows * links
    if most > len(route):  # else it is little already
        most = min(most, int(np.diff(wires.ptr)[route].sum()))
    weight = np.zeros(0) if wires.weight is None else wires.weight
    made = Merged(
        np.zeros(flows + 1, dtype=np.int64),
        np.empty(most, dtype=np.int32),
        np.empty(most),
        np.empty(flows),
        np.empty(flows),
    )
    _merge(links, wires.ptr, wires.link, weight, wires.latency_s, ptr, route, size_bytes, *made)
    return made._replace(link=made.link[: made.ptr[-1]], weight=made.weight[: made.ptr[-1]])


def wires_of_merged(wires: Wires, flows: Merged) -> Wires:
    """The wires with one route for each of these flows in place of the others."""
    return wires._replace(
        ptr=flows.ptr, link=flows.link, weight=flows.weight, latency_s=flows.latency_s
    )


def joined(flows: Sequence[Merged]) -> Merged:
    """All these flows, one after the other."""
    ahead = np.cumsum([0, *(len(each.link) for each in flows)])
    ptr = [each.ptr[1:] + first for each, first in zip(flows, ahead, strict=False)]
    columns = zip(*(each[1:] for each in flows), strict=True)
    return Merged(np.concatenate([ahead[:1], *ptr]), *map(np.concatenate, columns))


@compiled
def _merge(
    links: int,
    ptr: Counts,
    link: Ints,
    weight: Floats,
    latency_s: Floats,
    transfer_ptr: Counts,
    route: Ints,
    size_bytes: Floats,
    flow_ptr: Counts,
    flow_link: Ints,
    flow_weight: Floats,
    flow_bytes: Floats,
    flow_latency_s: Floats,
) -> None:
    """Fill in the flows: `Merged`, with room to spare."""
    weighted = weight.size > 0
    load = np.zeros(links)
    crossings = 0
    for flow in range(flow_bytes.size):
        longest = 0.0
        total = 0.0
        for i in range(transfer_ptr[flow], transfer_ptr[flow + 1]):
            r = route[i]
            longest = max(longest, latency_s[r])
            total += size_bytes[i]
            for h in range(ptr[r], ptr[r + 1]):
                load[link[h]] += size_bytes[i] * weight[h] if weighted else size_bytes[i]
        mean = total / (transfer_ptr[flow + 1] - transfer_ptr[flow])
        for at in range(links):
            if load[at] > 0.0:
                flow_link[crossings] = at
                flow_weight[crossings] = load[at] / mean
                load[at] = 0.0
                crossings += 1
        flow_ptr[flow + 1] = crossings
        flow_bytes[flow] = mean
        flow_latency_s[flow] = longest
