"""What a placement gives: load imbalance, and the experts that move to get there."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.policies.placement_types import FloatArray, Placement, gpu_loads


class Balance(NamedTuple):
    """Imbalance of a placement. The mean and the max of a layer are over its GPUs.

    max_over_mean: float64 [layers]; balancedness: the mean over layers of mean / max, 1 at best.
    """

    max_over_mean: FloatArray
    balancedness: float


def balance_of(loads: FloatArray, placement: Placement, gpus: int) -> Balance:
    """How evenly loads float64 [layers, experts] fall on the GPUs; InputError for an empty layer.

    An expert's tokens are split evenly over its copies.
    """
    per_gpu = gpu_loads(loads, placement, gpus)
    mean, most = per_gpu.mean(axis=1), per_gpu.max(axis=1)
    if not mean.all():
        raise InputError(f"placement: layer {int(np.argmin(mean))} (counted from 0) has no tokens")
    return Balance(most / mean, float((mean / most).mean()))


def moved_experts(before: Placement, after: Placement, experts: int, gpus: int) -> NDArray[np.intp]:
    """Experts that GPUs hold afterwards and did not before, [layers]: weights that must travel.

    A second copy on one GPU is the same weights; where an expert lay within a GPU does not matter.
    """
    new = _held(after, experts, gpus) & ~_held(before, experts, gpus)
    return np.asarray(np.count_nonzero(new, axis=(1, 2)), dtype=np.intp)


def _held(placement: Placement, experts: int, gpus: int) -> NDArray[np.bool_]:
    """Whether a GPU holds an expert, [layers, gpus, experts]."""
    layers = placement.expert_of.shape[0]
    held = np.zeros((layers, gpus, experts), dtype=np.bool_)
    held[np.arange(layers)[:, None], placement.gpu_of[None, :], placement.expert_of] = True
    return held
