"""Expert -> GPU within an expert-parallel group."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Placement = Callable[[int, int], NDArray[np.int32]]


def contiguous(experts: int, ep: int) -> NDArray[np.int32]:
    """Owner int32 [experts]: neighbours together, shares that differ by one at most."""
    bounds = np.arange(ep + 1) * experts // ep
    return np.repeat(np.arange(ep, dtype=np.int32), np.diff(bounds))


PLACEMENTS: dict[str, Placement] = {"contiguous": contiguous}


def expert_parallel_degree(gpus: int, experts: int) -> int:
    """Largest divisor of the GPU count that leaves every GPU at least one expert."""
    return max(d for d in range(1, gpus + 1) if gpus % d == 0 and d <= experts)
