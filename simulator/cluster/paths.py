"""Compiled search for routes.

All kernels work on numbers: split nodes (`simulator.cluster.planes` says how they are split),
links, nodes that a route starts from or ends at. They are in one file because numba's cache on disk
knows of changes to the file of a compiled function only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.graph import Graph
from simulator.cluster.planes import HOP, NETWORK, NVLINK, PCIE, Planes, planes_of
from simulator.compiled import allocation_free, inlined

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Bools = NDArray[np.bool_]
Number = TypeVar("Number", np.int32, np.float64)

ROUNDING = 1e-12  # fractions nearer than this are the same number
_ONES = 0xFFFFFFFF  # complements a CRC-32

FROM, LINK = range(2)  # of Work.way
SEVERAL = -1  # instead of FROM, where a fork is
ROUTES, CROSSINGS, LINKS, STAMP, TWICE = range(5)  # of counts
COUNTS = 5


class Work(NamedTuple):
    """What a search writes on.

    Per plane: reached int64, nodes that a search reached; per split node of it, int32: dist (-1:
    not reached), queue (two places per node), way [.., 2] (the node before it on the shortest way,
    or SEVERAL, and the link between), ways (number of the ways back once they are listed, else -1).
    Per edge of a plane, int32: way_from, way_link, the ways back of the listed, in the order of
    `back_from`.

    Per split node: plane_of (-1: none leads to it), mark int32; of one sprayed route branches
    int64 (links onward), share (of the transfer), late_s float64. edge int32 [edges, 3], back: one
    route. Per link of the graph, int32: number (in the table, -1: none), seen (last route), link
    (those that are crossed, by number). carried int64: a checksum carried on over so many zeros.
    """

    dist: Ints
    queue: Ints
    way: Ints
    ways: Ints
    way_from: Ints
    way_link: Ints
    reached: Longs
    plane_of: Ints
    mark: Ints
    branches: Longs
    share: Floats
    late_s: Floats
    edge: Ints
    back: Ints
    number: Ints
    seen: Ints
    link: Ints
    carried: Longs


class Found(NamedTuple):
    """Routes as they are found. joined bool, end int64 (of its crossings), latency_s float64, kind
    int8 [routes]; crossed int32 [room]; when sprayed, fraction float64 [room] and forks int32
    [room, 2], the joint nodes that a crossing comes from and leads to.
    """

    joined: Bools
    end: Longs
    latency_s: Floats
    kind: NDArray[np.int8]
    crossed: Ints
    fraction: Floats
    forks: Ints


class Paths(NamedTuple):
    """What `search` found: the arrays of a `RouteTable`, and per route whether it is joined (bool
    [routes]); twice: a route that crosses a link twice, -1 if none does.
    """

    links: tuple[tuple[str, str], ...]
    kinds: tuple[str, ...]
    bandwidth_bytes_per_s: Floats
    joined: Bools
    latency_s: Floats
    ptr: Longs
    crossed: Ints
    fraction: Floats | None
    kind: NDArray[np.int8]
    forks: Ints | None
    twice: int


def search(graph: Graph, nodes: Sequence[str], ends: Ints, over_network: bool) -> Paths:
    """Routes between nodes[ends[r, 0]] and nodes[ends[r, 1]]; ends: int32 [routes, 2].

    over_network: by way of a NIC, the network and a NIC. All routes of a source share one search.
    """
    planes, edges = planes_of(graph, nodes, over_network)
    sprayed = graph.graph.get("ecmp", "hashed") == "sprayed"
    routes = len(ends)
    order = None
    if (ends[1:, 0] < ends[:-1, 0]).any():
        order = np.argsort(ends[:, 0], kind="stable")
    ordered = np.ascontiguousarray(ends if order is None else ends[order], dtype=np.int32)
    work = _work(planes, len(edges.kind))
    room = 10 * routes + 64
    ptr = np.zeros(routes + 1, dtype=np.int64)
    found = Found(
        joined=np.empty(routes, dtype=np.bool_),
        end=ptr[1:],
        latency_s=np.empty(routes),
        kind=np.empty(routes, dtype=np.int8),
        crossed=np.empty(room, dtype=np.int32),
        fraction=np.empty(room if sprayed else 0),
        forks=np.empty((room if sprayed else 0, 2), dtype=np.int32),
    )
    counts = np.zeros(COUNTS, dtype=np.int64)
    counts[TWICE] = -1
    find(planes, work, found, ordered, counts, sprayed, over_network)
    while counts[ROUTES] < routes:
        found = found._replace(
            crossed=_wider(found.crossed),
            fraction=_wider(found.fraction),
            forks=_wider(found.forks),
        )
        find(planes, work, found, ordered, counts, sprayed, over_network)
    used = int(counts[CROSSINGS])
    links = work.link[: counts[LINKS]]
    crossed, fraction, forks = found.crossed[:used], found.fraction[:used], found.forks[:used]
    joined, latency_s, kind, twice = found.joined, found.latency_s, found.kind, int(counts[TWICE])
    if order is not None:
        back = np.argsort(order, kind="stable")
        length = np.diff(ptr)[back]
        begin = ptr[back]
        ptr = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(length)))
        take = np.arange(used) + np.repeat(begin - ptr[:-1], length)
        crossed = crossed[take]
        if sprayed:
            fraction, forks = fraction[take], forks[take]
        joined, latency_s, kind = joined[back], latency_s[back], kind[back]
        twice = int(order[twice]) if twice >= 0 else twice
        # Number the links anew, as the routes first cross them: of equal keys the last one stays.
        first = np.empty(links.size, dtype=np.int64)
        first[crossed[::-1]] = np.arange(used - 1, -1, -1)
        by_first = np.argsort(first)
        number = np.empty(links.size, dtype=np.int32)
        number[by_first] = np.arange(links.size, dtype=np.int32)
        crossed, links = number[crossed], links[by_first]

    def ends_of(nodes: Longs) -> list[str]:
        return [edges.names[node] for node in nodes[links].tolist()]

    split = sprayed and bool((fraction != 1.0).any())
    return Paths(
        links=tuple(zip(ends_of(edges.a), ends_of(edges.b), strict=True)),
        kinds=tuple(edges.kind[link] for link in links.tolist()),
        bandwidth_bytes_per_s=np.array(edges.bandwidth_bytes_per_s, dtype=np.float64)[links],
        joined=joined,
        latency_s=latency_s,
        ptr=ptr,
        crossed=crossed,
        fraction=fraction if split else None,
        kind=kind,
        forks=forks if split else None,
        twice=twice,
    )


def _wider(array: NDArray[Number]) -> NDArray[Number]:
    """The array with twice the room."""
    return np.concatenate((array, np.empty_like(array)))


def _work(planes: Planes, links: int) -> Work:
    count, splits = planes.ptr.shape[0], planes.joint.size
    edges = planes.to.size

    def ints(*shape: int) -> Ints:
        return np.full(shape, -1, dtype=np.int32)

    return Work(
        dist=ints(count, splits),
        queue=ints(count, 2 * splits),
        way=ints(count, splits, 2),
        ways=ints(count, splits),
        way_from=ints(edges),
        way_link=ints(edges),
        reached=np.zeros(count, dtype=np.int64),
        plane_of=ints(splits),
        mark=ints(splits),
        branches=np.zeros(splits, dtype=np.int64),
        share=np.zeros(splits),
        late_s=np.zeros(splits),
        edge=ints(edges, 3),
        back=ints(splits),
        number=ints(links),
        seen=ints(links),
        link=ints(links),
        carried=np.zeros(1 + int(planes.length.max(initial=0)), dtype=np.int64),
    )


@inlined
def _search(planes: Planes, work: Work, plane: int, start: int, stamp: int, missing: int) -> int:
    """Distances from `start`, hop by hop, until the `missing` goals (split nodes `mark`ed with the
    stamp) have theirs; how many have none. Notes how many equally short ways lead to each, and one.
    """
    ptr, dist, queue, way = planes.ptr[plane], work.dist[plane], work.queue[plane], work.way[plane]
    queue[0], dist[start] = start, 0
    first, end, stop = 0, 1, np.int64(1) << 40
    while first < end:
        here = queue[first]
        away = dist[here]
        if away >= stop:
            break
        first += 1
        for edge in range(ptr[here], ptr[here + 1]):
            to, there = planes.to[edge], away + planes.cost[edge]
            before = dist[to]
            if before < 0:
                queue[end] = to
                end += 1
                if work.mark[to] == stamp:
                    work.mark[to] = -1
                    work.plane_of[to] = plane
                    missing -= 1
                    if missing == 0:
                        stop = there // HOP * HOP
            elif there == before:
                way[to, FROM] = SEVERAL
            if before < 0 or there < before:
                dist[to] = there
                way[to, FROM], way[to, LINK] = here, planes.link[edge]
    work.reached[plane] = end
    return missing


@inlined
def _ways_back(planes: Planes, work: Work, plane: int, here: int) -> int:
    """Where the equally short ways that lead to a split node are listed."""
    first = planes.back_ptr[plane, here]
    if work.ways[plane, here] < 0:
        dist = work.dist[plane]
        at, away = first, dist[here]
        for edge in range(first, planes.back_ptr[plane, here + 1]):
            source = planes.back_from[edge]
            if dist[source] >= 0 and dist[source] + planes.back_cost[edge] == away:
                work.way_from[at] = source
                work.way_link[at] = planes.back_link[edge]
                at += 1
        work.ways[plane, here] = at - first
    return int(first)


@inlined
def _walk(planes: Planes, work: Work, plane: int, start: int, goal: int, checksum: int) -> int:
    """One of the equally short ways, at each fork by the checksum of the names; the number of its
    links, which stand in `back`, the last first.
    """
    here, links, way = goal, 0, work.way[plane]
    while here != start:
        link, source = way[here, LINK], way[here, FROM]
        if source == SEVERAL:
            at = _ways_back(planes, work, plane, here)
            ways = work.ways[plane, here]
            whole = checksum // ways
            at += checksum - whole * ways
            checksum = whole
            link, source = work.way_link[at], work.way_from[at]
        here = source
        if link >= 0:
            work.back[links] = link
            links += 1
    return links


@inlined
def _spray(planes: Planes, work: Work, plane: int, start: int, goal: int, stamp: int) -> int:
    """All the equally short ways: their edges (from, to, link), by falling distance, in `edge`; how
    many. Prepares `share`, `late_s` and `branches` of the split nodes on them.
    """
    queue, edges, first, end = work.queue[plane], 0, work.reached[plane], 1
    # The places behind the nodes reached hold those on the way, the furthest first.
    queue[first] = goal
    work.mark[goal], work.branches[goal] = stamp, 1
    work.share[goal] = work.late_s[goal] = 0.0
    at = 0
    while at < end:
        here = queue[first + at]
        at += 1
        if here == start:
            continue
        begin = _ways_back(planes, work, plane, here)
        for way in range(begin, begin + work.ways[plane, here]):
            source, link = work.way_from[way], work.way_link[way]
            if work.mark[source] != stamp:
                work.mark[source], work.branches[source] = stamp, 0
                work.share[source] = work.late_s[source] = 0.0
                queue[first + end] = source
                end += 1
            # An edge inside a node is no hop: what leads on behind it counts.
            work.branches[source] += 1 if link >= 0 else work.branches[here]
            work.edge[edges, 0], work.edge[edges, 1] = source, here
            work.edge[edges, 2] = link
            edges += 1
    work.share[start] = 1.0
    return edges


@inlined
def _pass_on(planes: Planes, work: Work, at: int) -> float:
    """Carries share and latency over the edge at this place of `edge`; what part it carries.

    At every node the transfer is split evenly over the links that lead on.
    """
    a, b, link = work.edge[at, 0], work.edge[at, 1], work.edge[at, 2]
    onward, late_s = work.branches[b], work.late_s[a]
    if link >= 0:
        onward = 1
        late_s += planes.latency_s[link]
    part = work.share[a] * onward / work.branches[a]
    if abs(part - 1.0) < ROUNDING:
        part = 1.0
    work.share[b] += part
    work.late_s[b] = max(work.late_s[b], late_s)
    return float(part)


@allocation_free
def find(
    planes: Planes,
    work: Work,
    found: Found,
    nodes: Ints,
    counts: Longs,
    sprayed: bool,
    layered: bool,
) -> None:
    """Routes of `nodes` int32 [routes, 2] (source, target), those of a source one after another.

    Goes on at route counts[ROUTES] and stops where the room for crossings is used up. A route
    without a path is not joined and crosses nothing. counts: int64 [COUNTS], routes, crossings,
    links and stamps so far, and the last route that crosses a link twice, -1 if none does, which
    can be only in a plane of layers (over the network).
    """
    routes, room = nodes.shape[0], found.crossed.size
    begin, used, links = counts[ROUTES], counts[CROSSINGS], counts[LINKS]
    stamp, full = counts[STAMP], False
    while begin < routes and not full:
        source = nodes[begin, 0]
        start, end, missing = planes.out[source], begin, 0
        stamp += 1
        while end < routes and nodes[end, 0] == source:
            goal = planes.into[nodes[end, 1]]
            if work.mark[goal] != stamp:
                work.mark[goal], work.plane_of[goal] = stamp, -1
                missing += 1
            end += 1
        searched = 0
        while missing > 0 and searched < planes.ptr.shape[0]:
            missing = _search(planes, work, searched, start, stamp, missing)
            searched += 1
        # The checksum of the two names is that of the first, carried on over as many zeros as the
        # second has bytes, and the second's own.
        state = planes.checksum_from[source]
        for length in range(work.carried.size):
            work.carried[length] = state
            state = planes.crc[state & 255] ^ (state >> 8)
        while begin < end and not full:
            target = nodes[begin, 1]
            goal, crossings = planes.into[target], 0
            plane = work.plane_of[goal]
            found.joined[begin] = plane >= 0
            if plane >= 0 and sprayed:
                stamp += 1
                crossings = _spray(planes, work, plane, start, goal, stamp)
            elif plane >= 0:
                checksum = work.carried[planes.length[target]] ^ planes.checksum_to[target]
                crossings = _walk(planes, work, plane, start, goal, checksum ^ _ONES)
            if used + crossings > room:
                full = True
                break
            latency_s, kinds = 0.0, 0
            for at in range(crossings - 1, -1, -1):
                if sprayed:
                    part, link = _pass_on(planes, work, at), work.edge[at, 2]
                    if link < 0:
                        continue
                    found.fraction[used] = part
                    found.forks[used, 0] = planes.joint[work.edge[at, 0]]
                    found.forks[used, 1] = planes.joint[work.edge[at, 1]]
                else:
                    link = work.back[at]
                    latency_s += planes.latency_s[link]
                if layered:
                    if work.seen[link] == begin:
                        counts[TWICE] = begin
                    work.seen[link] = begin
                kinds |= 1 << planes.kind[link]
                number = work.number[link]
                if number < 0:
                    number = work.number[link] = links
                    work.link[links] = link
                    links += 1
                found.crossed[used] = number
                used += 1
            found.latency_s[begin] = work.late_s[goal] if crossings and sprayed else latency_s
            found.kind[begin] = NVLINK
            if kinds & (1 << NETWORK):
                found.kind[begin] = NETWORK
            elif kinds & (1 << PCIE):
                found.kind[begin] = PCIE
            begin += 1
            found.end[begin - 1] = used
        for plane in range(searched):
            for at in range(work.reached[plane]):
                work.dist[plane, work.queue[plane, at]] = -1
                work.ways[plane, work.queue[plane, at]] = -1
    counts[ROUTES], counts[CROSSINGS], counts[LINKS], counts[STAMP] = begin, used, links, stamp
