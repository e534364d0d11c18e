"""Tokens in two tiers: once to each node, to the GPU there of the same local index, then on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.routing.traffic import traffic

Int32s = NDArray[np.int32]


@dataclass(frozen=True)
class Tiers:
    """Which GPU takes in tokens for which node.

    GPUs form groups of `ep` neighbours that send to each other. node: int32 [gpus]; owner: int32
    [experts], GPU within the group; landing: int32 [gpus, nodes], where a GPU's tokens for a node
    land: on itself for its own, -1 where its group has no GPU.
    """

    ep: int
    node: Int32s
    owner: Int32s
    landing: Int32s

    def sent(self, ids: NDArray[np.int16], source_gpu: Int32s, pairs: Int32s) -> Int32s:
        """Tokens sent int32 [gpus, gpus], to other nodes and within nodes, from those that each GPU
        needs of each, `pairs` int32 [gpus, gpus]; ids: int16 [tokens, k].
        """
        gpus = len(self.node)
        sent = np.zeros_like(pairs)
        source, target = np.nonzero(pairs)
        gate = self.landing[source, self.node[target]]
        np.add.at(sent, (gate, target), pairs[source, target])
        for first in range(0, gpus, self.ep):
            mine = slice(*np.searchsorted(source_gpu, [first, first + self.ep]))
            group = self.node[first : first + self.ep]
            there, local = np.unique(group, return_inverse=True)
            owner = local.astype(np.int32)[self.owner]
            here = (source_gpu[mine] - np.int32(first)).astype(np.int32)
            _, nodes = traffic(ids[mine], here, owner, self.ep, self.ep)
            for number, node in enumerate(there.tolist()):
                gate = self.landing[first : first + self.ep, node]
                away = np.flatnonzero(group != node)
                np.add.at(sent, (first + away, gate[away]), nodes[away, number])
        return sent


def tiers_of(node: Int32s, owner: Int32s, ep: int) -> Tiers:
    """The tiers of groups of `ep` GPUs; node: int32 [gpus]; owner: int32 [experts]."""
    gpus = len(node)
    landing = np.full((gpus, int(node.max()) + 1), -1, dtype=np.int32)
    for first in range(0, gpus, ep):
        group = node[first : first + ep]
        for there in np.unique(group).tolist():
            members = first + np.flatnonzero(group == there)
            for here in np.unique(group).tolist():
                mine = first + np.flatnonzero(group == here)
                landing[mine, there] = members[np.arange(len(mine)) % len(members)]
    return Tiers(ep, node, owner, landing)
