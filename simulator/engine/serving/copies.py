"""Which GPU computes a token's choice: the nearest copy of the expert, for every rank."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.engine.homes import Near, homes_of
from simulator.engine.serving.pool import Pool
from simulator.engine.serving.timing import Routing
from simulator.policies.placement import Placement

Int32s = NDArray[np.int32]


def routing_of(
    placement: Placement,
    pool: Pool,
    dense: int,
    experts: int,
    ranks: int,
    alive: Int32s,
    near: Near | None,
    size_bytes: float,
) -> tuple[Routing, Int32s]:
    """Who serves which choice, and each layer's evaluation int32 [layers] (-1: dense).

    placement: rows [1 or MoE layers], GPUs are ranks of the group, of so many `ranks`; slots of
    ranks that are not among `alive` (int32, sorted) are not used. An *evaluation* is a recorded
    layer with experts in one way: layers that share both share their times (61 layers under EPLB
    are 61 evaluations,
    contiguous ones as many as are recorded). Where experts have copies, every rank takes the
    nearest (as `simulator.engine.homes`: itself, its node, then by the time of a token of
    `size_bytes`), so every rank is a class of its own; near: between the ranks that are alive, in
    their order, needed then. least-loaded copies are not known here: a step is laid out at once.
    """
    usable = np.isin(placement.gpu_of, alive)
    slots = placement.expert_of[:, usable]
    local = np.searchsorted(alive, placement.gpu_of[usable]).astype(np.int32)
    layers = len(pool.layer_of)
    kind = np.zeros(ranks, dtype=np.int32)
    if not layers:
        none = np.zeros(0, dtype=np.int32)
        nothing = np.zeros((0, 1, experts), dtype=np.int16)
        unused = placement.gpu_of.astype(np.int16)
        every = np.full(dense, -1, dtype=np.int32)
        return Routing(pool.ids, none, nothing, kind, unused), every
    made, which = homes_of(Placement(slots, local), experts, near, size_bytes, False)
    which = np.broadcast_to(which, layers)
    asked = np.column_stack((pool.layer_of, which)).astype(np.int32)
    pairs, place = np.unique(asked.reshape(-1, 2), axis=0, return_inverse=True)
    several = any(home.copies is not None for home in made)
    row_of = [int(np.flatnonzero(which == way)[0]) % len(slots) for way in range(len(made))]
    copy = np.empty((len(pairs), len(alive) if several else 1, experts), dtype=np.int16)
    for at, (_, way) in enumerate(pairs.tolist()):
        copies = made[way].copies
        if copies is None:  # the only slot of each expert that counts
            _, copy[at] = np.unique(slots[row_of[way]], return_index=True)
        else:
            copy[at] = copies.nearest
    if several:
        kind[alive] = np.arange(len(alive), dtype=np.int32)
    routing = Routing(
        ids=pool.ids,
        recorded=np.ascontiguousarray(pairs[:, 0], dtype=np.int32),
        copy=copy,
        kind=kind,
        gpu=alive[local].astype(np.int16),
    )
    evaluation = np.concatenate([np.full(dense, -1), place.ravel()]).astype(np.int32)
    return routing, evaluation
