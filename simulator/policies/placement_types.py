"""What a placement policy is asked for and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int32]


@dataclass(frozen=True)
class Placement:
    """Copies of experts in slots of GPUs.

    expert_of: int32 [layers, physical], the logical expert in each slot; gpu_of: int32 [physical],
    the GPU (within its expert-parallel group) of each slot, never decreasing and the same in all
    layers. physical = experts + redundant copies.
    """

    expert_of: IntArray
    gpu_of: IntArray


class Target(NamedTuple):
    """Where experts are to be placed.

    gpus: of the expert-parallel group; physical: slots over all of them; nodes: that they are in;
    node_of: int32 [gpus]; groups: groups of experts that a token is limited to some of (EPLB), 1
    for none; seconds_per_byte, latency_s: float64 [gpus, gpus], source by target, None = not known;
    together: float64 [layers, experts, experts], tokens that took both, None = not known;
    bytes_per_token: of one token sent to a GPU.
    """

    gpus: int
    physical: int
    nodes: int
    node_of: IntArray
    groups: int = 1
    seconds_per_byte: FloatArray | None = None
    latency_s: FloatArray | None = None
    together: FloatArray | None = None
    bytes_per_token: float = 0.0


Policy = Callable[[FloatArray, Target], Placement]
"""A placement policy: (loads float64 [layers, experts], target) -> Placement."""


def even_nodes(gpus: int, nodes: int) -> IntArray:
    """The node of each GPU, int32 [gpus], with equal numbers of neighbours in each.

    Raises InputError if the nodes do not divide the GPUs.
    """
    if not 1 <= nodes <= gpus or gpus % nodes:
        raise InputError(
            f"nodes: {nodes} does not divide {gpus} GPUs; write a divisor of {gpus}, such as "
            f"{max(d for d in range(1, min(max(nodes, 1), gpus) + 1) if gpus % d == 0)}"
        )
    return np.repeat(np.arange(nodes, dtype=np.int32), gpus // nodes)


def even_shares(physical: int, gpus: int) -> IntArray:
    """The GPU of each slot, int32 [physical]: shares of neighbours that differ by one at most."""
    bounds = np.arange(gpus + 1) * physical // gpus
    return np.repeat(np.arange(gpus, dtype=np.int32), np.diff(bounds))


def check_question(loads: FloatArray, target: Target) -> None:
    """Raise InputError if nothing can be placed: bad loads, too few slots, unfitting sizes."""
    if loads.ndim != 2 or not loads.size:
        raise InputError(
            f"placement: loads of shape {loads.shape}; wanted [layers, experts], none of them 0"
        )
    if not np.isfinite(loads).all() or (loads < 0).any():
        raise InputError("placement: loads must be numbers of 0 or more; one is negative or NaN")
    experts = loads.shape[1]
    if target.gpus < 1:
        raise InputError(f"placement: {target.gpus} GPUs; write 1 or more")
    if target.physical < experts:
        raise InputError(
            f"placement: {target.physical} physical experts for {experts} experts; every expert "
            f"needs one, so write {experts} or more"
        )
    if target.physical < target.gpus:
        raise InputError(
            f"placement: {target.physical} physical experts on {target.gpus} GPUs; every GPU "
            f"needs one, so write {target.gpus} or more, or fewer GPUs"
        )
    if target.node_of.shape != (target.gpus,):
        raise InputError(
            f"placement: the nodes of {target.node_of.size} GPUs are given, not of {target.gpus}"
        )


def check_answer(found: Placement, shape: tuple[int, ...], target: Target, told: str) -> None:
    """Raise InputError if a placement cannot be used for loads of `shape` (layers, experts);
    `told` begins the line.
    """
    layers, experts = shape
    expert_of, gpu_of = np.asarray(found.expert_of), np.asarray(found.gpu_of)
    if expert_of.shape != (layers, target.physical) or gpu_of.shape != (target.physical,):
        raise InputError(
            f"{told}: expert_of has shape {expert_of.shape} and gpu_of {gpu_of.shape}; wanted "
            f"({layers}, {target.physical}) and ({target.physical},)"
        )
    if expert_of.dtype != np.int32 or gpu_of.dtype != np.int32:
        raise InputError(f"{told}: expert_of and gpu_of must be int32")
    if (np.diff(gpu_of) < 0).any() or gpu_of[0] < 0 or gpu_of[-1] >= target.gpus:
        raise InputError(
            f"{told}: gpu_of must never decrease and lie in 0 to {target.gpus - 1}, the GPUs"
        )
    if expert_of.min() < 0 or expert_of.max() >= experts:
        raise InputError(
            f"{told}: expert_of names expert {_outside(expert_of, experts)}; "
            f"there are 0 to {experts - 1}"
        )
    copies = copies_of(found, experts)
    if not copies.all():
        layer, expert = np.argwhere(copies == 0)[0]
        raise InputError(f"{told}: no GPU holds expert {expert} of layer {layer} (counted from 0)")


def _outside(expert_of: IntArray, experts: int) -> int:
    return int(expert_of[(expert_of < 0) | (expert_of >= experts)][0])


def copies_of(placement: Placement, experts: int) -> IntArray:
    """How many slots hold each expert, int32 [layers, experts]."""
    layers = placement.expert_of.shape[0]
    flat = placement.expert_of + np.arange(layers)[:, None] * experts
    counted = np.bincount(flat.ravel(), minlength=layers * experts)
    return counted.reshape(layers, experts).astype(np.int32)


def gpu_loads(loads: FloatArray, placement: Placement, gpus: int) -> FloatArray:
    """Tokens that each GPU computes, float64 [layers, gpus].

    loads: float64 [layers, experts]. An expert's tokens are split evenly over its copies.
    """
    layers, experts = loads.shape
    each = loads / np.maximum(copies_of(placement, experts), 1)
    held = np.take_along_axis(each, placement.expert_of.astype(np.int64), axis=1)
    flat = placement.gpu_of[None, :] + np.arange(layers)[:, None] * gpus
    summed = np.bincount(flat.ravel(), weights=held.ravel(), minlength=layers * gpus)
    return summed.reshape(layers, gpus).astype(np.float64)
