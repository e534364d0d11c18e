"""EPLB compiled against a straightforward numpy transcription of the same algorithm."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
from numpy.typing import NDArray

from simulator.policies.placement import Target, balanced, copies_of, eplb, even_nodes, gpu_loads

LAYERS, EXPERTS, SLOTS, GPUS, NODES, GROUPS = 58, 256, 288, 72, 9, 8
# A case of the hierarchical policy: the nodes divide the groups.
FEW_GPUS, FEW_NODES = 32, 4
REPEATS, SLOW_REPEATS = 21, 3

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


def run() -> list[tuple[str, float, str]]:
    """Time both in turn on the same loads: rows (figure, value, goal)."""
    # As skewed as recorded loads: the hottest expert has some ten times the mean.
    loads = np.floor(np.random.default_rng(1).lognormal(0.0, 0.9, (LAYERS, EXPERTS)) * 1e4)
    rows = []
    for gpus, nodes, word in ((GPUS, NODES, "global"), (FEW_GPUS, FEW_NODES, "hierarchical")):
        target = Target(gpus, SLOTS, nodes, even_nodes(gpus, nodes), GROUPS)
        _check(loads, target)
        plain = median(
            _seconds(lambda t=target: transcribed(loads, t)) for _ in range(SLOW_REPEATS)
        )
        ours = median(_seconds(lambda t=target: eplb(loads, t)) for _ in range(REPEATS))
        rows += [
            (f"EPLB {word}, {gpus} GPUs, in numpy (ms)", 1e3 * plain, ""),
            (f"EPLB {word}, {gpus} GPUs, compiled (ms)", 1e3 * ours, ""),
            (f"numpy / compiled, {word}", plain / ours, ">= 5"),
        ]
    target = Target(GPUS, SLOTS, NODES, even_nodes(GPUS, NODES), GROUPS)
    balanced(loads, target)
    lpt = median(_seconds(lambda: balanced(loads, target)) for _ in range(REPEATS))
    return [*rows, (f"balanced, {GPUS} GPUs (ms)", 1e3 * lpt, "")]


def transcribed(loads: NDArray[np.float64], target: Target) -> Ints:
    """The expert of each slot, int64 [layers, slots]: all layers at once where numpy can."""
    weight = loads.astype(np.float32)
    layers, experts = weight.shape
    slots, gpus, groups, nodes = target.physical, target.gpus, target.groups, target.nodes
    if groups % nodes:
        groups = nodes = 1
    size, here = experts // groups, experts // nodes
    node_of, place_of = _packed(weight.reshape(layers, groups, size).sum(axis=2), nodes)
    at = (node_of * (groups // nodes) + place_of)[:, :, None] * size + np.arange(size)
    member = _inverse(at.reshape(layers, experts))
    mine = np.take_along_axis(weight, member, axis=1).reshape(-1, here)
    held, copies = _copied(mine, slots // nodes)
    each = np.take_along_axis(mine / copies.astype(np.float32), held, axis=1)
    gpu_of, rank = _packed(each, gpus // nodes)
    order = _inverse(gpu_of * (slots // gpus) + rank)
    on_node = np.take_along_axis(held, order, axis=1).reshape(layers, nodes, -1)
    first = np.arange(nodes)[None, :, None] * here
    return np.take_along_axis(member, (on_node + first).reshape(layers, slots), axis=1)


def _packed(weight: Floats, packs: int) -> tuple[Ints, Ints]:
    """The pack and the place of each item, int64 [rows, items]: Python where choices depend on
    choices before.
    """
    rows, items = weight.shape
    room = items // packs
    if room == 1:
        return np.tile(np.arange(items), (rows, 1)), np.zeros((rows, items), np.int64)
    pack_of = np.empty((rows, items), np.int64)
    place_of = np.empty((rows, items), np.int64)
    order = np.argsort(-weight, axis=1, kind="stable")
    for row in range(rows):
        total, count = [np.float32(0.0)] * packs, [0] * packs
        for item in order[row]:
            best = min((p for p in range(packs) if count[p] < room), key=total.__getitem__)
            pack_of[row, item], place_of[row, item] = best, count[best]
            total[best] += weight[row, item]
            count[best] += 1
    return pack_of, place_of


def _copied(weight: Floats, slots: int) -> tuple[Ints, Ints]:
    """The item of each slot, and the copies of each item: all rows at once."""
    rows, items = weight.shape
    every = np.arange(rows)
    held = np.tile(np.arange(slots), (rows, 1))
    copies = np.ones((rows, items), np.int64)
    for slot in range(items, slots):
        held[:, slot] = (weight / copies.astype(np.float32)).argmax(axis=1)
        copies[every, held[:, slot]] += 1
    return held, copies


def _inverse(order: Ints) -> Ints:
    """Where each number stands in its row."""
    found = np.empty_like(order)
    np.put_along_axis(found, order, np.arange(order.shape[1])[None, :], axis=1)
    return found


def _check(loads: NDArray[np.float64], target: Target) -> None:
    """Raise ValueError unless both hand out the same copies and load the GPUs alike."""
    ours = eplb(loads, target)
    theirs = ours.__class__(transcribed(loads, target).astype(np.int32), ours.gpu_of)
    if not np.array_equal(copies_of(ours, EXPERTS), copies_of(theirs, EXPERTS)):
        raise ValueError("the kernel and the transcription hand out different copies")
    busiest = [gpu_loads(loads, placed, target.gpus).max(axis=1) for placed in (ours, theirs)]
    if not np.allclose(*busiest, rtol=1e-9):
        raise ValueError("the kernel and the transcription load the GPUs differently")


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
