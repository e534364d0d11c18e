"""Placement by load alone: copies of the hottest experts, all dealt heaviest first (LPT)."""

from __future__ import annotations

import numpy as np

from simulator.policies.placement_types import FloatArray, Placement, Target, even_shares


def balanced(loads: FloatArray, target: Target) -> Placement:
    """Longest processing time first, with equal numbers of experts per GPU.

    Slots that are left each go to the expert with the most tokens per copy. Copies are then taken
    heaviest first, each to the GPU with the fewest tokens that has room and no copy of that expert.
    loads: float64 [layers, experts]. With two or three experts on every GPU the busiest has at
    most 4/3 - 1/(3 gpus) times what is best for these copies (Kellerer and Woeginger, A tight bound
    for 3-partitioning, Discrete Applied Mathematics 45, 1993).
    """
    return dealt(loads, target)


def dealt(
    loads: FloatArray,
    target: Target,
    arrival: FloatArray | None = None,
    cost: FloatArray | None = None,
) -> Placement:
    """Copies dealt by load, times what a token costs on each GPU (`placement_kernels.deal`).

    arrival: float64 [gpus], None = 1; cost: float64 [gpus, gpus], source to target, None = 0.
    """
    from simulator.policies.placement_kernels import deal_layers

    gpu_of = even_shares(target.physical, target.gpus)
    first = np.searchsorted(gpu_of, np.arange(target.gpus + 1)).astype(np.int64)
    found = deal_layers(
        np.ascontiguousarray(loads, dtype=np.float64),
        first,
        np.ones(target.gpus) if arrival is None else arrival,
        np.zeros((0, 0)) if cost is None else np.ascontiguousarray(cost),
    )
    return Placement(found, gpu_of)
