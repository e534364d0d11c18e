"""Experts that fire together share a node, so that a token is sent to fewer nodes.

Copies are counted as in `balanced`. Two copies meet in together(a, b) / (copies of a x copies of b)
tokens. Two ways to begin, LPT over the nodes and a greedy one by how much more than by chance
experts meet, are each bettered by swapping two copies between nodes while more tokens meet and no
node gets more than its share of the load and LOAD_SLACK of it; the better outcome is kept. Within a
node, copies are dealt to the GPUs by load (LPT).
"""

from __future__ import annotations

import numpy as np

from simulator.errors import InputError
from simulator.policies.placement_types import (
    FloatArray,
    IntArray,
    Placement,
    Target,
    even_shares,
)

LOAD_SLACK = 0.05
"""How much more than its share of the tokens a node may get for the sake of togetherness."""


def co_activation(loads: FloatArray, target: Target) -> Placement:
    """Placement that keeps experts of a token within nodes; loads: float64 [layers, experts].

    Raises InputError if the target does not know which experts fire together.
    """
    together = target.together
    layers, experts = loads.shape
    if together is None:
        raise InputError(
            "co-activation: needs to know which experts a token takes together; give a recording "
            "of tokens, not loads"
        )
    if together.shape != (layers, experts, experts):
        raise InputError(
            f"co-activation: counts of experts taken together have shape {together.shape}; "
            f"wanted ({layers}, {experts}, {experts})"
        )

    gpu_of = even_shares(target.physical, target.gpus)
    found = np.empty((layers, target.physical), np.int32)
    for layer in range(layers):
        found[layer] = _layer(loads[layer], (together[layer] + together[layer].T) / 2, target)
    return Placement(found, gpu_of)


def _layer(loads: FloatArray, together: FloatArray, target: Target) -> IntArray:
    """The expert in each slot, int32 [physical]; loads [experts], together [experts, experts]."""
    from simulator.policies.co_activation_kernels import to_nodes
    from simulator.policies.placement_kernels import copied, deal, part_twins

    gpu_of = even_shares(target.physical, target.gpus)
    held, copies = copied(loads, target.physical, target.gpus)
    tokens = loads[held] / copies[held]
    meets = together[np.ix_(held, held)] / np.outer(copies[held], copies[held])
    meets[held[:, None] == held[None, :]] = 0.0
    node_of_slot = target.node_of[gpu_of]
    room = np.bincount(node_of_slot, minlength=target.nodes)
    node_gpus = np.bincount(target.node_of, minlength=target.nodes)
    node_of_copy, _ = to_nodes(meets, tokens, held, room, node_gpus, LOAD_SLACK)
    found = np.empty(target.physical, np.int64)
    for node in np.unique(target.node_of):
        mine = node_of_copy == node
        shares = np.bincount(gpu_of, minlength=target.gpus)[target.node_of == node]
        first = np.concatenate([[0], np.cumsum(shares)])
        each = tokens[mine]
        alike = np.ones(len(shares)), np.zeros((0, 0)), each
        found[node_of_slot == node] = deal(held[mine], each, first, *alike)
    # Where a node was left no other copy: two on one GPU are parted across nodes.
    holds = np.zeros((target.gpus, len(loads)), np.int64)
    np.add.at(holds, (gpu_of, found), 1)
    if (holds > 1).any():
        each = loads[found] / copies[found]
        first = np.searchsorted(gpu_of, np.arange(target.gpus + 1))
        on_gpu = np.zeros(target.gpus)
        np.add.at(on_gpu, gpu_of, each)
        part_twins(found, each, first, np.ones(target.gpus), on_gpu, holds)
    return found.astype(np.int32)
