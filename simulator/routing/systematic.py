"""Systematic sampling: k distinct experts, each with exactly the probability that is asked for."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from simulator.compiled import compiled

Int16s = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float64]


def inclusion(counts: Floats, k: int) -> Floats:
    """The probability that a token takes each expert: k times its share of the load, at most 1.

    `counts` float64 [layers, experts] -> float64 [layers, experts], rows that sum to k. What
    shares above 1/k would exceed 1 by goes to the other experts, by their loads; where fewer than
    k experts have any load, evenly to those without.
    """
    layers, experts = counts.shape
    out = np.empty((layers, experts))
    for layer in range(layers):
        load = counts[layer] / counts[layer].max()
        chance = np.zeros(experts)
        full = np.zeros(experts, dtype=np.bool_)
        while True:
            left = k - int(full.sum())
            open_load = load[~full].sum()
            if left == 0 or open_load == 0:
                break
            chance[~full] = load[~full] * (left / open_load)
            over = ~full & (chance >= 1.0)
            if not over.any():
                break
            full |= over
        chance[full] = 1.0
        rest = k - math.fsum(chance)
        if rest > 0.5:
            empty = ~full & (load == 0)
            chance[empty] = rest / int(empty.sum())
        out[layer] = chance
    return out


@compiled
def draw_systematic(rng: np.random.Generator, chance: Floats, out: Int16s) -> None:
    """Fill int16 [layers, tokens, k] with k distinct experts each, expert e with probability
    `chance[layer, e]` (float64 [layers, experts], at most 1, rows that sum to k).

    Madow's systematic sampling (1949): the experts' chances are laid end to end in a random order,
    and the k experts are taken in which the points u, u + 1, ... lie, u uniform in [0, 1).
    """
    layers, tokens, k = out.shape
    experts = chance.shape[1]
    order = np.arange(experts)
    for layer in range(layers):
        for token in range(tokens):
            reached = rng.random()
            taken = 0
            last = -1
            for at in range(experts):
                # Each place of the random order is drawn when it is come to.
                other = at + int(rng.random() * (experts - at))
                expert = order[other]
                order[other] = order[at]
                order[at] = expert
                share = chance[layer, expert]
                if share == 0.0:
                    continue
                reached += share
                if reached >= 1.0 and taken < k:
                    reached -= 1.0
                    out[layer, token, taken] = expert
                    taken += 1
                else:
                    last = expert
                if taken == k:
                    break
            # The sum of the chances may miss k by rounding.
            if taken < k:
                out[layer, token, taken] = last
