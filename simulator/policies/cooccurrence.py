"""The counting of the learned prefetcher and what follows from it, compiled."""

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


@compiled
def follow(
    expected: NDArray[np.float64],
    uses: NDArray[np.float32],
    counts: NDArray[np.float32],
    k: int,
    after: NDArray[np.float64],
) -> None:
    """From rows `expected` [groups, experts] in a layer those of the layer after it, into `after`.

    A row of expert a votes for b with counts[a, b] / (uses[a] + 1); a token has k such votes, and
    their mean counts. Sums are taken in the order of the experts, on every machine.
    """
    one = np.float32(1.0)
    groups, experts = expected.shape
    for group in range(groups):
        for b in range(experts):
            after[group, b] = 0.0
        for a in range(experts):
            if expected[group, a] > 0.0:
                share = expected[group, a] / np.float32(uses[a] + one)
                for b in range(experts):
                    after[group, b] += share * counts[a, b]
        for b in range(experts):
            after[group, b] /= k
