"""Compiled search for routes, and for the links that can limit them.

All kernels work on numbers: split nodes (`simulator.cluster.routes` says what a plane is and how
its nodes are split), links, nodes that a route starts from or ends at. They are in one file because
numba's cache on disk knows of changes to the file of a compiled function only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.graph import Graph
from simulator.compiled import allocation_free, compiled, inlined

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Bools = NDArray[np.bool_]
Number = TypeVar("Number", np.int32, np.float64)

HOP = 1024  # what a hop costs; one through a root complex or socket costs one more
ROUNDING = 1e-12  # fractions and capacities nearer than this are the same number
NVLINK, PCIE, NETWORK = 0, 1, 2  # kinds of a path

_ONES = 0xFFFFFFFF  # complements a CRC-32

FROM, LINK = range(2)  # of Work.way
SEVERAL = -1  # instead of FROM, where a fork is
ROUTES, CROSSINGS, LINKS, STAMP, TWICE = range(5)  # of counts
COUNTS = 5


class Planes(NamedTuple):
    """Planes of split nodes, and the nodes that routes join.

    ptr int32 [planes, split nodes + 1]: where a node's edges lie in to, cost, link int32 [edges];
    link -1: an edge inside one node, no link. back_ptr, back_from, back_cost, back_link: the same
    against the direction, each node's edges in the order of the names that they come from. joint
    int32 [split nodes]: the node, with the sides through which one passes taken as one. out, into
    int32 [nodes]: where routes start and end. latency_s float64, kind int8 [links of the graph].

    checksum_from, checksum_to int64 [nodes]: CRC-32 (complemented) of the name and ">", and of the
    name alone, begun with no bit set; length int32 [nodes]: bytes of the name; crc int64 [256]:
    what a byte does to a CRC-32.
    """

    ptr: Ints
    to: Ints
    cost: Ints
    link: Ints
    back_ptr: Ints
    back_from: Ints
    back_cost: Ints
    back_link: Ints
    joint: Ints
    out: Ints
    into: Ints
    checksum_from: Longs
    checksum_to: Longs
    length: Ints
    crc: Longs
    latency_s: Floats
    kind: NDArray[np.int8]


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


class Edges(NamedTuple):
    """Links of a graph: names of its nodes; a, b int64 [links], from and to which; kind, B/s."""

    names: list[str]
    a: Longs
    b: Longs
    kind: list[str]
    bandwidth_bytes_per_s: list[float]


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
    planes, edges = _planes(graph, nodes, over_network)
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


# Sides of a node, in the order of their names (ties are broken in the order of node, then side).
# FAR is the side "" behind the network, BETWEEN that in the network, where routes must cross it.
FORWARD, HOST_IN, HOST_OUT, INTO, NET_IN, NET_OUT, OUT, BETWEEN, FAR = range(9)
SIDES = 16

# Path classes, and as whose edges the kinds of links count.
_CLASS = {"nvlink": 0, "pcie": 1, "membus": 2, "socket": 3, "network": 4}
_ROOT_COMPLEX, _SOCKET, _NETWORK = 2, 3, 4
_OF_PATH = {"nvlink": NVLINK, "network": NETWORK}


def _planes(graph: Graph, nodes: Sequence[str], over_network: bool) -> tuple[Planes, Edges]:
    """The planes of a graph, and its links.

    A plane is the part of the graph that routes up to a path class may use. A node that forwards
    has one side; GPUs and memories have OUT (to start from) and INTO (to end at); a NIC has sides
    to its host and to the network, joined both ways, so that traffic passes through it only
    between its host and the network. Of a node that forwards and is among `nodes`, OUT leads to it
    and it leads to INTO. over_network: one plane, in which a route passes from sides before the
    network through those in it to those behind it, from one to the next only in a NIC.
    """
    # Numbers in the order of the graph, so that what is near in it is near in memory.
    names = list(graph.nodes)
    position = {name: number for number, name in enumerate(names)}
    rank = np.argsort(np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64))
    kind = np.array([data["kind"] for _, data in graph.nodes(data=True)], dtype=np.str_)
    still, nic, cpu = (kind == "gpu") | (kind == "dram"), kind == "nic", kind == "cpu"
    host = np.array([data["host"] for _, data in graph.nodes(data=True)], dtype=np.int64)

    joined = [(position[one], near) for one, near in graph.adjacency()]
    a = np.repeat([one for one, _ in joined], [len(near) for _, near in joined]).astype(np.int64)
    b = np.array([position[other] for _, near in joined for other in near], dtype=np.int64)
    data = [link for _, near in joined for link in near.values()]
    words = [link["kind"] for link in data]
    classes = np.array([_CLASS[word] for word in words], dtype=np.int64)
    edges = Edges(names, a, b, words, [link["bandwidth_bytes_per_s"] for link in data])
    net = classes == _NETWORK
    classes[(classes == _CLASS["pcie"]) & (cpu[a] | cpu[b])] = _ROOT_COMPLEX
    nics = np.flatnonzero(nic) * SIDES
    ends = np.array([position[name] for name in nodes], dtype=np.int64)
    through = np.unique(ends[~still[ends]])

    # From, to, link, class of every edge between split nodes; class -1 is in every plane.
    parts: list[tuple[Longs, Longs, Longs, Longs]] = []
    doors: list[tuple[Longs, Longs]] = []

    def add(chosen: Bools, leave: Longs, enter: Longs) -> None:
        """The links chosen, from this side of their source to that of their target."""
        at = np.flatnonzero(chosen)
        one, other = a[at], b[at]
        parts.append((one * SIDES + leave[one], other * SIDES + enter[other], at, classes[at]))

    def inside(start: Longs, stop: Longs) -> None:
        parts.append((start, stop, np.full(start.size, -1), np.full(start.size, -1)))

    inside(nics + HOST_IN, nics + NET_OUT)
    inside(nics + NET_IN, nics + HOST_OUT)
    if over_network:
        # Links within one host, so that the NIC is one of the end's own host.
        local = ~net & (classes != _CLASS["nvlink"]) & (host[a] == host[b])
        up = local & ~nic[a] & ~still[b]
        across = net & ~still[a] & ~still[b]
        down = local & ~still[a] & ~nic[b]
        leave = np.where(still, OUT, FORWARD)
        add(up, leave, np.where(nic, HOST_IN, FORWARD))
        add(across, np.where(nic, NET_OUT, BETWEEN), np.where(nic, NET_IN, BETWEEN))
        add(down, np.where(nic, HOST_OUT, FAR), np.where(still, INTO, FAR))
        doors = [(np.where(nic, NET_OUT, FORWARD), np.where(nic, NET_IN, FAR))]
    else:
        for chosen, to_leave, to_enter in ((~net, HOST_OUT, HOST_IN), (net, NET_OUT, NET_IN)):
            leave = np.where(still, OUT, np.where(nic, to_leave, FORWARD))
            enter = np.where(still, INTO, np.where(nic, to_enter, FORWARD))
            add(chosen, leave, enter)
            doors.append((leave, enter))
    for leave, enter in doors:
        inside(through * SIDES + OUT, through * SIDES + leave[through])
        inside(through * SIDES + enter[through], through * SIDES + INTO)
        through = through[nic[through]]  # only a NIC has two ways in and out
    start, stop, link, of_class = (np.concatenate(part) for part in zip(*parts, strict=True))

    # Only the sides that are there, in the same order.
    out, into = ends * SIDES + OUT, ends * SIDES + INTO
    splits = np.unique(np.concatenate((start, stop, out, into)))
    start, stop, out, into = (np.searchsorted(splits, of) for of in (start, stop, out, into))
    side = splits % SIDES
    other_side = np.where(side == NET_OUT, HOST_IN, np.where(side == HOST_OUT, NET_IN, side))
    joint = np.searchsorted(splits, splits - side + other_side)

    # A class that adds no link makes no plane of its own.
    sizes = [int((of_class <= c).sum()) for c in range(_NETWORK + 1)]
    wide = [c for c in range(_NETWORK + 1) if c == 0 or sizes[c] > sizes[c - 1]]
    by_name = rank[splits // SIDES] * SIDES + side
    cost = HOP + ((of_class == _ROOT_COMPLEX) | (of_class == _SOCKET))
    forth, back = [], []
    for path_class in [_NETWORK] if over_network else wide:
        used = np.flatnonzero(of_class <= path_class)
        forth.append(used[np.argsort(start[used], kind="stable")])
        back.append(used[np.lexsort((by_name[start[used]], stop[used]))])
    text = [name.encode() for name in nodes]
    sums = [(crc32(name + b">") ^ _ONES, crc32(name, _ONES) ^ _ONES) for name in text]
    checksums = np.array(sums, dtype=np.int64).reshape(-1, 2)
    every, every_back = np.concatenate(forth), np.concatenate(back)
    planes = Planes(
        ptr=_rows([start[used] for used in forth], splits.size),
        to=stop[every].astype(np.int32),
        cost=cost[every].astype(np.int32),
        link=link[every].astype(np.int32),
        back_ptr=_rows([stop[used] for used in back], splits.size),
        back_from=start[every_back].astype(np.int32),
        back_cost=cost[every_back].astype(np.int32),
        back_link=link[every_back].astype(np.int32),
        joint=joint.astype(np.int32),
        out=out.astype(np.int32),
        into=into.astype(np.int32),
        checksum_from=checksums[:, 0].copy(),
        checksum_to=checksums[:, 1].copy(),
        length=np.array([len(name) for name in text], dtype=np.int32),
        crc=_crc_table(),
        latency_s=np.array([link["latency_s"] for link in data], dtype=np.float64),
        kind=np.array([_OF_PATH.get(word, PCIE) for word in words], dtype=np.int8),
    )
    return planes, edges


def _rows(sorted_keys: list[Longs], count: int) -> Ints:
    """Where each key's entries begin when these lists stand one after another, [lists, count + 1].

    sorted_keys: numbers in [0, count), rising.
    """
    begin = np.cumsum([0, *(keys.size for keys in sorted_keys[:-1])])
    rows = [np.searchsorted(keys, np.arange(count + 1)) for keys in sorted_keys]
    return np.asarray(np.stack(rows) + begin[:, None], dtype=np.int32)


def _crc_table() -> Longs:
    """What a byte does to a CRC-32 (polynomial 0xEDB88320, as zlib's), int64 [256]."""
    table = np.arange(256, dtype=np.int64)
    for _ in range(8):
        table = np.where(table & 1, 0xEDB88320 ^ (table >> 1), table >> 1)
    return table


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


@allocation_free
def neighbours(
    ptr: Longs,
    crossed: Ints,
    fraction: Floats,
    forks: Ints,
    whole: bool,
    first: Longs,
    place: Ints,
    after: Floats,
    before: Floats,
    begins: Bools,
    ends: Bools,
    within: Floats,
) -> None:
    """Which links follow each other on a route, and what part of a node's traffic they take.

    The pair (a, b) of links is at first[a] + place[b] of after and before float64 [pairs], 0 where
    no route has it: the most that any route has of a (after) or of b (before) among all that goes
    through the node between them. begins, ends: bool [links], routes begin or end with it. whole:
    all fractions are 1, and fraction and forks empty. within: room for one route's crossings.
    """
    for route in range(ptr.size - 1):
        begin, end = ptr[route], ptr[route + 1]
        if whole:
            if end > begin:
                begins[crossed[begin]] = True
                ends[crossed[end - 1]] = True
            for at in range(begin, end - 1):
                pair = first[crossed[at]] + place[crossed[at + 1]]
                after[pair] = before[pair] = 1.0
            continue
        for at in range(begin, end):
            within[at - begin] = 0.0
            last = True
            for other in range(begin, end):
                if forks[other, 1] == forks[at, 1]:
                    within[at - begin] += fraction[other]
                if forks[other, 0] == forks[at, 1]:
                    last = False
            if last:
                ends[crossed[at]] = True
        for at in range(begin, end):
            fed = False
            for other in range(begin, end):
                if forks[other, 1] == forks[at, 0]:
                    fed = True
                    pair = first[crossed[other]] + place[crossed[at]]
                    total = within[other - begin]
                    after[pair] = max(after[pair], min(1.0, fraction[other] / total))
                    before[pair] = max(before[pair], min(1.0, fraction[at] / total))
            if not fed:
                begins[crossed[at]] = True


@compiled
def limiting(
    ptr: Longs, to: Ints, part: Floats, passes: Bools, capacity: Floats, whole: bool
) -> Bools:
    """Which links can limit any route, bool [links]; exact, whatever the traffic.

    ptr int64 [2, links + 1], to int32, part float64: the links after and the links before each,
    with what part of their traffic is at most the link's. passes: bool [2, links], all that
    crosses it goes on, comes from another link. A link's traffic is at most the sum of the parts
    of those after it (or before it). If they can carry no more than it can, it is never the one
    that is full, and they vouch for it. One that is itself dropped is replaced by those that vouch
    for it; no link vouches for itself.
    """
    links = capacity.size
    kept = np.ones(links, dtype=np.bool_)
    given, given_end = np.zeros(links, dtype=np.int64), np.zeros(links, dtype=np.int64)
    voucher, voucher_part = np.empty(links + 1, dtype=np.int32), np.empty(links + 1)
    vouchers = 0
    total = np.zeros(links)
    stamp = np.full(links, -1, dtype=np.int64)
    touched, best = np.empty((2, links), dtype=np.int32), np.empty((2, links))
    stack, stack_part = np.empty(links + 1, dtype=np.int32), np.empty(links + 1)
    for link in range(links):
        count, least, chosen = np.zeros(2, dtype=np.int64), np.inf, -1
        for side in range(2):
            if not passes[side, link]:
                continue
            mark = 2 * link + side
            for at in range(ptr[side, link], ptr[side, link + 1]):
                stack[0], stack_part[0], height = to[at], part[at], 1
                while height > 0:
                    height -= 1
                    other, share = stack[height], stack_part[height]
                    known = stamp[other] == mark
                    stamp[other] = mark
                    if kept[other]:
                        if not known:
                            touched[side, count[side]] = other
                            count[side] += 1
                            total[other] = 0.0
                        total[other] = min(1.0, total[other] + share)
                    elif not (whole and known):
                        needed = height + given_end[other] - given[other]
                        if needed > stack.size:
                            stack = np.append(stack, np.empty(needed, dtype=np.int32))
                            stack_part = np.append(stack_part, np.empty(needed))
                        for index in range(given[other], given_end[other]):
                            stack[height] = voucher[index]
                            stack_part[height] = share * voucher_part[index]
                            height += 1
            if stamp[link] == mark:
                continue
            together = 0.0
            for index in range(count[side]):
                other = touched[side, index]
                best[side, index] = total[other]
                together += total[other] * capacity[other]
            if together < least:
                least, chosen = together, side
        if chosen >= 0 and least <= capacity[link] * (1.0 + ROUNDING):
            kept[link] = False
            needed = vouchers + count[chosen]
            if needed > voucher.size:
                voucher = np.append(voucher, np.empty(needed, dtype=np.int32))
                voucher_part = np.append(voucher_part, np.empty(needed))
            given[link] = vouchers
            for index in range(count[chosen]):
                voucher[vouchers] = touched[chosen, index]
                voucher_part[vouchers] = best[chosen, index]
                vouchers += 1
            given_end[link] = vouchers
    return kept
