"""The orders in which ring and tree algorithms pass through the ranks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from simulator.engine.ranks import Ranks

MAX_GPUS = 16  # beyond, the search could take for ever, and no such mesh is sold
MAX_STEPS = 20_000  # of one search


def rings(ranks: Ranks) -> list[list[tuple[int, int]]]:
    """The rings of a ring algorithm, each a closed list of (from, to) ranks.

    Within a node: one ring on a switch or PCIe, in order; as many as disjoint NVLink links allow
    where GPUs are joined pair by pair. Across nodes: one for each NIC that every node has, in the
    order of the nodes, so that each NIC carries one flow each way. A node is entered at the GPU
    beside that NIC and left by the last GPU beside it; if these are one and the same, the last GPU
    of the node hands over to it, as NCCL does (PXN).
    """
    if len(ranks.members) == 1:
        orders = mesh_rings(ranks.links) or [list(range(ranks.size))]
        return [list(zip(order, [*order[1:], order[0]], strict=True)) for order in orders]
    found = []
    for number in range(shared_nics(ranks)):
        orders = [through(ranks, there, number) for there in ranks.members]
        ring: list[tuple[int, int]] = []
        for order, following in zip(orders, [*orders[1:], orders[0]], strict=True):
            ring += pairwise(order)
            ring.append((order[-1], following[0]))
        found.append(ring)
    return found


def shared_nics(ranks: Ranks) -> int:
    """NICs that every node has beside its GPUs, at least 1."""
    return max(1, min(len({int(ranks.nic[rank]) for rank in there}) for there in ranks.members))


def through(ranks: Ranks, there: tuple[int, ...], number: int) -> list[int]:
    """The ranks of a node in the order in which ring `number` passes them."""
    beside = [rank for rank in there if ranks.nic[rank] == number] or [there[0]]
    first = there.index(beside[0])
    order = [*there[first:], *there[:first]]
    if len(beside) > 1:
        order.remove(beside[-1])
        return [*order, beside[-1]]
    return order if len(order) == 1 else [*order, beside[0]]


def parent(position: int, n: int) -> int:
    """In the in-order binary tree over 1..n, whose odd positions are leaves; 0 for the root."""
    bit = position & -position
    above = (position ^ bit) | (bit << 1)
    return above if above <= n else position ^ bit


def depth(position: int, n: int) -> int:
    """Hops from a position of that tree to the root."""
    above = parent(position, n)
    return 1 + depth(above, n) if above else 0


def placed(members: list[int], position: int, turned: bool) -> int:
    """Who stands at a position; turned: mirrored, or shifted by one if their number is odd."""
    n = len(members)
    if not turned:
        return members[position - 1]
    return members[n - position] if n % 2 == 0 else members[position % n]


def mesh_rings(links: NDArray[np.int32]) -> list[list[int]]:
    """Closed rings through all GPUs, no two of which share a link in the same direction.

    links: int [gpus, gpus], how many rings may go from one GPU to another. Each ring begins at
    GPU 0 and names every GPU once; there are none if some GPU cannot be passed.
    """
    left = links.copy()
    found: list[list[int]] = []
    while len(left) <= MAX_GPUS and (ring := _ring(left)):
        found.append(ring)
        for a, b in zip(ring, [*ring[1:], ring[0]], strict=True):
            left[a, b] -= 1
    return found


def _ring(left: NDArray[np.int32]) -> list[int]:
    """One ring over what is left, found by depth-first search; empty if there is none.

    At each GPU the thickest link left is tried first, then the GPU with the fewest ways on, so that
    as much as possible is left for the next ring.
    """
    gpus = len(left)
    path, ahead = [0], [_ways(left, [0])]
    for _ in range(MAX_STEPS):
        if not ahead:
            return []
        if len(path) == gpus and left[path[-1], 0]:
            return path
        if not ahead[-1]:
            path.pop()
            ahead.pop()
            continue
        path.append(ahead[-1].pop(0))
        ahead.append(_ways(left, path))
    return []


def _ways(left: NDArray[np.int32], path: list[int]) -> list[int]:
    here = path[-1]
    free = [b for b in range(len(left)) if left[here, b] and b not in path]
    return sorted(free, key=lambda b: (-left[here, b], int(left[b].sum()), b))
