"""Expert -> GPU within an expert-parallel group, with copies of experts where there is room."""

from __future__ import annotations

import numpy as np

from simulator.errors import InputError
from simulator.policies.balanced import balanced
from simulator.policies.co_activation import co_activation
from simulator.policies.eplb import eplb
from simulator.policies.pick import pick
from simulator.policies.placement_file import read_placement
from simulator.policies.placement_types import (
    FloatArray,
    IntArray,
    Placement,
    Policy,
    Target,
    check_answer,
    check_question,
    copies_of,
    even_nodes,
    even_shares,
    gpu_loads,
)
from simulator.policies.topology_aware import topology_aware
from simulator.spec.units import did_you_mean

__all__ = [
    "ALIASES",
    "PLACEMENTS",
    "Placement",
    "Policy",
    "Target",
    "balanced",
    "co_activation",
    "contiguous",
    "contiguous_owner",
    "copies_of",
    "eplb",
    "even_nodes",
    "expert_parallel_degree",
    "gpu_loads",
    "place",
    "placement_policy",
    "read_placement",
    "round_robin",
    "topology_aware",
]


def contiguous_owner(experts: int, gpus: int) -> IntArray:
    """The GPU of each expert, int32 [experts], one copy each: neighbours together, shares that
    differ by one at most.
    """
    return even_shares(experts, gpus)


def contiguous(loads: FloatArray, target: Target) -> Placement:
    """Experts in order, neighbours together; slots that are left hold 0, 1, ... once more."""
    layers, experts = loads.shape
    order = np.arange(target.physical, dtype=np.int32) % experts
    return Placement(np.tile(order, (layers, 1)), even_shares(target.physical, target.gpus))


def round_robin(loads: FloatArray, target: Target) -> Placement:
    """Expert e on GPU e modulo GPUs; slots that are left hold 0, 1, ... once more.

    Further copies go on where the last expert was dealt, one GPU further when that would come to
    the GPU of the first copy.
    """
    layers, experts = loads.shape
    dealt = np.arange(target.physical)
    turns = target.gpus // np.gcd(experts, target.gpus)  # passes until the deal is even again
    gpu = ((dealt + dealt // (experts * turns)) % target.gpus).astype(np.int32)
    order = np.argsort(gpu, kind="stable")
    held = (dealt[order] % experts).astype(np.int32)
    return Placement(np.tile(held, (layers, 1)), gpu[order])


PLACEMENTS: dict[str, Policy] = {
    "contiguous": contiguous,
    "round-robin": round_robin,
    "balanced": balanced,
    "eplb": eplb,
    "topology-aware": topology_aware,
    "co-activation": co_activation,
}

ALIASES = {"linear": "contiguous"}
"""Second names: `linear` is EPLB's word."""


def placement_policy(name: str) -> Policy:
    """The policy called `name`, one of PLACEMENTS or ALIASES, or "package.module:function".

    Raises InputError for an unknown name.
    """
    name = ALIASES.get(name, name)
    if name not in PLACEMENTS and ":" not in name:
        known = [*PLACEMENTS, *ALIASES]
        hint = did_you_mean(name, known)
        raise InputError(f"placement: no policy {name!r}{hint}; known: {', '.join(known)}")
    return pick("placement", PLACEMENTS, name)


def place(name: str, loads: FloatArray, target: Target) -> Placement:
    """What the policy called `name` answers, checked on the way in and out.

    loads: float64 [layers, experts], tokens. Raises InputError for an unknown policy, loads or
    sizes that cannot be placed, and an answer (of a function of the user's) that cannot be used.
    """
    policy = placement_policy(name)
    check_question(loads, target)
    found = policy(loads, target)
    check_answer(found, loads.shape, target, f"placement {name}")
    return found


def expert_parallel_degree(gpus: int, experts: int) -> int:
    """Largest divisor of the GPU count that leaves every GPU at least one expert."""
    return max(d for d in range(1, gpus + 1) if gpus % d == 0 and d <= experts)
