"""The counting loop of the learned prefetcher, compiled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.compiled import compiled


@compiled
def count_transitions(
    before: NDArray[np.int16],
    after: NDArray[np.int16],
    counts: NDArray[np.float32],
    uses: NDArray[np.float32],
) -> None:
    """Add each token's (expert before, expert after) pairs to counts [experts, experts] and its
    experts before to uses [experts]. `before`, `after`: int16 [tokens, k], -1 = not recorded.
    """
    tokens, k = before.shape
    for token in range(tokens):
        for i in range(k):
            a = before[token, i]
            if a < 0:
                continue
            uses[a] += 1.0
            for j in range(after.shape[1]):
                b = after[token, j]
                if b >= 0:
                    counts[a, b] += 1.0
