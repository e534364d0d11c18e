"""EPLB's three greedy steps on lists, layer by layer, in float32: what the compiled one is held to.

Never imports the simulator.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def packs(weights: Sequence[np.float32], count: int) -> list[list[int]]:
    """Items of each pack, in the order in which they came."""
    room = len(weights) // count
    if room == 1:
        return [[item] for item in range(len(weights))]
    filled: list[list[int]] = [[] for _ in range(count)]
    total = [np.float32(0.0)] * count
    for item in sorted(range(len(weights)), key=lambda item: -weights[item]):
        pack = min((p for p in range(count) if len(filled[p]) < room), key=lambda p: total[p])
        filled[pack].append(item)
        total[pack] = np.float32(total[pack] + weights[item])
    return filled


def copies(weights: Sequence[np.float32], slots: int) -> tuple[list[int], list[int]]:
    """The item of each slot, and the copies of each item."""
    held, count = list(range(len(weights))), [1] * len(weights)
    while len(held) < slots:
        each = [np.float32(w / np.float32(n)) for w, n in zip(weights, count, strict=True)]
        item = each.index(max(each))
        held.append(item)
        count[item] += 1
    return held, count


def eplb(loads: Sequence[float], slots: int, groups: int, nodes: int, gpus: int) -> list[int]:
    """The expert of each slot of one layer."""
    if groups % nodes:
        groups = nodes = 1
    weights = [np.float32(load) for load in loads]
    size = len(weights) // groups
    of_group = [
        np.float32(sum(map(float, weights[g * size : (g + 1) * size]))) for g in range(groups)
    ]
    found = []
    for mine in packs(of_group, nodes):
        experts = [group * size + j for group in mine for j in range(size)]
        here = [weights[expert] for expert in experts]
        held, count = copies(here, slots // nodes)
        each = [np.float32(here[item] / np.float32(count[item])) for item in held]
        for gpu in packs(each, gpus // nodes):
            found += [experts[held[slot]] for slot in gpu]
    return found
