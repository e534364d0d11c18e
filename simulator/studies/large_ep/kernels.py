"""The compiled part of the balanced gate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.compiled import compiled

Int16s = NDArray[np.int16]


@compiled
def even_out(choices: Int16s, experts: int, out: Int16s) -> int:
    """Fill `out` int16 [batches, tokens, k] from `choices` int16 [batches, tokens, given] with no
    expert above its even share of a batch; returns how many are not what the gate said first.

    A token takes the first of its choices that have room and that it does not have yet; where none
    has, the one with most room of all.
    """
    batches, tokens, given = choices.shape
    k = out.shape[2]
    most = (tokens * k + experts - 1) // experts
    changed = 0
    room = np.empty(experts, dtype=np.int64)
    for batch in range(batches):
        room[:] = most
        for token in range(tokens):
            taken = 0
            for place in range(given):
                expert = choices[batch, token, place]
                if room[expert] > 0:
                    out[batch, token, taken] = expert
                    room[expert] -= 1
                    changed += place >= k
                    taken += 1
                    if taken == k:
                        break
            while taken < k:
                best = -1
                for expert in range(experts):
                    used = False
                    for place in range(taken):
                        used = used or out[batch, token, place] == expert
                    if not used and (best < 0 or room[expert] > room[best]):
                        best = expert
                out[batch, token, taken] = best
                room[best] -= 1
                changed += 1
                taken += 1
    return changed
