"""Who holds which expert in a group that has lost GPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.policies.placement import Placement, contiguous_owner, copies_of

Int32s = NDArray[np.int32]


class Left(NamedTuple):
    """What is left of a group: its placement (GPUs are ranks), the ranks that are alive (int32,
    sorted), the ranks of the whole group, experts of a layer.
    """

    placement: Placement
    alive: Int32s
    ranks: int
    experts: int


Way = Callable[[Left], Placement | None]
"""How to go on: a placement over the ranks that are alive, or None: it cannot be done."""


def replicas(left: Left) -> Placement | None:
    """With the copies that are left, if there is one of every expert."""
    kept = _kept(left)
    return kept if copies_of(kept, left.experts).all() else None


def reload(left: Left) -> Placement | None:
    """What is missing comes to the GPUs with the fewest slots; those that are left stay."""
    kept = _kept(left)
    missing = [np.flatnonzero(row == 0) for row in copies_of(kept, left.experts)]
    extra = max(map(len, missing))
    if not extra:
        return kept
    slots = np.bincount(kept.gpu_of, minlength=left.ranks)
    given = np.empty(extra, dtype=np.int32)
    for at in range(extra):  # the first of those that have fewest
        given[at] = left.alive[slots[left.alive].argmin()]
        slots[given[at]] += 1
    added = np.empty((len(missing), extra), dtype=np.int32)
    for layer, experts in enumerate(missing):
        added[layer, : len(experts)] = experts
        for at in range(len(experts), extra):
            # A layer that lacks fewer has nothing to load here: what the GPU holds stands twice.
            mine = np.flatnonzero(kept.gpu_of == given[at])
            held = kept.expert_of[layer, mine] if len(mine) else experts
            added[layer, at] = held[0]
    gpu_of = np.concatenate([kept.gpu_of, given])
    order = np.argsort(gpu_of, kind="stable")
    return Placement(np.hstack([kept.expert_of, added])[:, order], gpu_of[order])


def shrink(left: Left) -> Placement | None:
    """All experts in order over the GPUs that are left, one copy each."""
    if len(left.alive) > left.experts:
        return None
    owner = left.alive[contiguous_owner(left.experts, len(left.alive))]
    order = np.arange(left.experts, dtype=np.int32)[None, :]
    return Placement(order, owner.astype(np.int32))


def drain(left: Left) -> Placement | None:
    """Not at all: the group stops until all are back."""
    return None


WAYS: dict[str, Way] = {
    "replicas": replicas,
    "reload": reload,
    "shrink": shrink,
    "drain": drain,
}


def _kept(left: Left) -> Placement:
    here = np.isin(left.placement.gpu_of, left.alive)
    return Placement(left.placement.expert_of[:, here], left.placement.gpu_of[here])
