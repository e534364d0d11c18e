"""Tokens in two tiers: once to each node, to the GPU there of the same local index, then on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from simulator.routing.traffic import traffic

Int32s = NDArray[np.int32]
Number = TypeVar("Number", np.int32, np.float64)


@dataclass(frozen=True)
class Tiers:
    """Which GPU takes in tokens for which node.

    GPUs form groups of `ep` neighbours that send to each other. node: int32 [gpus]; owner: int32
    [experts], GPU within the group, unless a layer says otherwise; landing: `landing_of`.
    """

    ep: int
    node: Int32s
    owner: Int32s
    landing: Int32s

    def sent(
        self,
        ids: NDArray[np.int16],
        source_gpu: Int32s,
        pairs: Int32s,
        placed: Int32s | None = None,
    ) -> Int32s:
        """Tokens sent int32 [gpus, gpus], to other nodes and within nodes, from those that each GPU
        needs of each, `pairs` int32 [gpus, gpus]; ids: int16 [tokens, k], of experts or, with the
        owners of slots in `placed` int32 [slots], of these.
        """
        placed = self.owner if placed is None else placed
        gpus = len(self.node)
        nodes = np.zeros((gpus, self.landing.shape[1]), dtype=np.int32)
        for first in range(0, gpus, self.ep):
            mine = slice(*np.searchsorted(source_gpu, [first, first + self.ep]))
            there, local = np.unique(self.node[first : first + self.ep], return_inverse=True)
            here = (source_gpu[mine] - np.int32(first)).astype(np.int32)
            owner = local.astype(np.int32)[placed]
            to = traffic(ids[mine], here, owner, self.ep, self.ep)[1]
            nodes[first : first + self.ep, there] = to[:, : len(there)]
        crossing, within = tiers(self.node, self.landing, pairs, nodes)
        return crossing + within


def tiers_of(node: Int32s, owner: Int32s, ep: int) -> Tiers:
    """The tiers of groups of `ep` GPUs; node: int32 [gpus]; owner: int32 [experts]."""
    return Tiers(ep, node, owner, landing_of(node, ep))


def landing_of(node: Int32s, ep: int) -> Int32s:
    """Where the tokens of a GPU for a node land, int32 [gpus, nodes]: on itself for its own node,
    -1 where its group of `ep` neighbours has no GPU. node: int32 [gpus].
    """
    gpus = len(node)
    landing = np.full((gpus, int(node.max()) + 1), -1, dtype=np.int32)
    for first in range(0, gpus, ep):
        group = node[first : first + ep]
        for there in np.unique(group).tolist():
            members = first + np.flatnonzero(group == there)
            for here in np.unique(group).tolist():
                mine = first + np.flatnonzero(group == here)
                landing[mine, there] = members[np.arange(len(mine)) % len(members)]
    return landing


def tiers(
    node: Int32s, landing: Int32s, pairs: NDArray[Number], nodes: NDArray[Number]
) -> tuple[NDArray[Number], NDArray[Number]]:
    """What crosses to other nodes and what goes within nodes, both [gpus, gpus].

    node: int32 [gpus]; landing: int32 [gpus, nodes]; pairs [gpus, gpus]: what each GPU needs of
    each; nodes [gpus, nodes]: what goes from each GPU to each node.
    """
    crossing, within = np.zeros_like(pairs), np.zeros_like(pairs)
    source, target = np.nonzero(pairs)
    np.add.at(within, (landing[source, node[target]], target), pairs[source, target])
    source, there = np.nonzero(nodes)
    away = there != node[source]
    source, there = source[away], there[away]
    np.add.at(crossing, (source, landing[source, there]), nodes[source, there])
    np.fill_diagonal(within, 0)
    return crossing, within
