"""A graph as arrays, in which the compiled search (`simulator.cluster.paths`) finds routes.

Nodes are split by the sides from which they are entered and left (`planes_of`), so that what must
not forward traffic cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.graph import Graph

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Bools = NDArray[np.bool_]

HOP = 1024  # what a hop costs; one through a root complex or socket costs one more
NVLINK, PCIE, NETWORK = 0, 1, 2  # kinds of a path

_ONES = 0xFFFFFFFF  # complements a CRC-32


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


class Edges(NamedTuple):
    """Links of a graph: names of its nodes; a, b int64 [links], from and to which; kind, B/s."""

    names: list[str]
    a: Longs
    b: Longs
    kind: list[str]
    bandwidth_bytes_per_s: list[float]


# Sides of a node, in the order of their names (ties are broken in the order of node, then side).
# FAR is the side "" behind the network, BETWEEN that in the network, where routes must cross it.
FORWARD, HOST_IN, HOST_OUT, INTO, NET_IN, NET_OUT, OUT, BETWEEN, FAR = range(9)
SIDES = 16

# Path classes, and as whose edges the kinds of links count.
_CLASS = {"nvlink": 0, "pcie": 1, "membus": 2, "socket": 3, "network": 4}
_ROOT_COMPLEX, _SOCKET, _NETWORK = 2, 3, 4
_OF_PATH = {"nvlink": NVLINK, "network": NETWORK}


def planes_of(graph: Graph, nodes: Sequence[str], over_network: bool) -> tuple[Planes, Edges]:
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
