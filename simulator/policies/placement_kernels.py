"""Compiled loops of the placement policies: copying, packing and dealing of experts.

Weights keep their type: float32 where the answers must be those of EPLB, float64 elsewhere.
Ties go to the lower index everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.compiled import compiled

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


@compiled
def copied(weights: Floats, slots: int, most: int) -> tuple[Ints, Ints]:
    """Hands out copies: one each, then always to the expert with the most load per copy.

    weights: [experts]; most: copies that one expert may have, as far as that leaves none over.
    Returns the expert of each slot int64 [slots] (first 0, 1, ..., then as handed out) and the
    copies of each expert int64 [experts].
    """
    experts = weights.shape[0]
    each = weights.copy()
    copies = np.ones(experts, np.int64)
    held = np.empty(slots, np.int64)
    for slot in range(experts):
        held[slot] = slot
    for slot in range(experts, slots):
        best = -1
        for expert in range(experts):
            if copies[expert] < most and (best < 0 or each[expert] > each[best]):
                best = expert
        if best < 0:
            best = int(np.argmax(each))
        held[slot] = best
        copies[best] += 1
        each[best] = weights[best] / copies[best]
    return held, copies


@compiled
def packed(weights: Floats, packs: int) -> tuple[Ints, Ints]:
    """Packs items, equal numbers in each: the heaviest that is left to the lightest with room.

    weights: [items], a multiple of `packs` of them. Returns the pack of each item and its place in
    it, int64 [items]. One item per pack is left in order.
    """
    items = weights.shape[0]
    room = items // packs
    pack_of = np.empty(items, np.int64)
    place_of = np.zeros(items, np.int64)
    if room == 1:
        for item in range(items):
            pack_of[item] = item
        return pack_of, place_of
    weight = np.zeros(packs, weights.dtype)
    count = np.zeros(packs, np.int64)
    for item in np.argsort(-weights, kind="mergesort"):
        best = -1
        for pack in range(packs):
            if count[pack] < room and (best < 0 or weight[pack] < weight[best]):
                best = pack
        pack_of[item] = best
        place_of[item] = count[best]
        count[best] += 1
        weight[best] += weights[item]
    return pack_of, place_of


@compiled
def eplb_layers(
    loads: NDArray[np.float32], slots: int, groups: int, nodes: int, gpus: int
) -> NDArray[np.int32]:
    """The expert in each slot, int32 [layers, slots]: groups to nodes, copies within each node,
    copies to the node's GPUs. loads: float32 [layers, experts]; all sizes divide.
    """
    layers, experts = loads.shape
    size, here = experts // groups, experts // nodes
    node_slots, node_gpus, gpu_slots = slots // nodes, gpus // nodes, slots // gpus
    found = np.empty((layers, slots), np.int32)
    group_loads = np.empty(groups, np.float32)
    member = np.empty((nodes, here), np.int64)
    mine = np.empty(here, np.float32)
    each = np.empty(node_slots, np.float32)
    for layer in range(layers):
        for group in range(groups):
            total = 0.0
            for expert in range(group * size, (group + 1) * size):
                total += loads[layer, expert]
            group_loads[group] = total
        node_of, place_of = packed(group_loads, nodes)
        for group in range(groups):
            for j in range(size):
                member[node_of[group], place_of[group] * size + j] = group * size + j
        for node in range(nodes):
            for j in range(here):
                mine[j] = loads[layer, member[node, j]]
            held, copies = copied(mine, node_slots, node_slots)
            for slot in range(node_slots):
                each[slot] = mine[held[slot]] / copies[held[slot]]
            gpu_of, rank = packed(each, node_gpus)
            for slot in range(node_slots):
                at = node * node_slots + gpu_of[slot] * gpu_slots + rank[slot]
                found[layer, at] = member[node, held[slot]]
    return found


@compiled
def deal(
    held: Ints,
    each: Floats,
    first: Ints,
    arrival: Floats,
    cost: Floats,
    whole: Floats,
) -> Ints:
    """Deals the copies of one layer, heaviest first, each to the GPU where it costs least.

    held: int64 [slots], the expert of each copy; each: [slots], its tokens; first: int64
    [gpus + 1], the first slot of each GPU, and the end. A GPU g with T tokens after taking a copy
    costs T * arrival[g]; with `cost` [gpus, gpus] (seconds per token, source to target; [0, 0] for
    none) and `whole` [slots] (tokens of the copy's expert over all copies), the time that these
    tokens travel to the nearest copy so far is added. A GPU that holds the expert already is taken
    only where no other has room, and then a swap is sought. Returns the expert in each slot.
    """
    slots, gpus = held.shape[0], first.shape[0] - 1
    experts = held.max() + 1
    found = np.full(slots, -1, np.int64)
    tokens = np.zeros(slots)
    load = np.zeros(gpus)
    count = np.zeros(gpus, np.int64)
    holds = np.zeros((gpus, experts), np.int64)
    copies = np.zeros(experts, np.int64)
    for slot in range(slots):
        copies[held[slot]] += 1
    wired = cost.shape[0]
    # Of experts with a copy on a GPU: seconds from each source to the nearest one, and their sum
    # over sources if one more were on each GPU.
    reach = np.empty((experts if wired else 0, wired))
    travel = np.zeros((experts if wired else 0, wired))
    placed = np.zeros(experts, np.bool_)
    twins = False
    for item in np.argsort(-each, kind="mergesort"):
        expert = held[item]
        best, best_twin, best_cost = -1, True, 0.0
        for gpu in range(gpus):
            if count[gpu] == first[gpu + 1] - first[gpu]:
                continue
            twin = holds[gpu, expert] > 0
            if twin and not best_twin:
                continue
            here = (load[gpu] + each[item]) * arrival[gpu]
            if wired:
                mean = travel[expert, gpu] / gpus if placed[expert] else arrival[gpu]
                here += whole[item] * mean
            if best < 0 or (best_twin and not twin) or here < best_cost:
                best, best_twin, best_cost = gpu, twin, here
        twins |= best_twin
        at = first[best] + count[best]
        found[at] = expert
        tokens[at] = each[item]
        count[best] += 1
        load[best] += each[item]
        holds[best, expert] += 1
        if not wired or copies[expert] == 1:
            continue
        for source in range(gpus):
            nearest = cost[source, best]
            if not placed[expert]:
                for gpu in range(gpus):
                    travel[expert, gpu] += min(nearest, cost[source, gpu])
            elif nearest < reach[expert, source]:
                before = reach[expert, source]
                for gpu in range(gpus):
                    travel[expert, gpu] += min(nearest, cost[source, gpu])
                    travel[expert, gpu] -= min(before, cost[source, gpu])
            else:
                continue
            reach[expert, source] = nearest
        placed[expert] = True
    if twins:
        part_twins(found, tokens, first, arrival, load, holds)
    return found


@compiled
def part_twins(
    found: Ints,
    tokens: Floats,
    first: Ints,
    arrival: Floats,
    load: Floats,
    holds: NDArray[np.int64],
) -> None:
    """Swaps one of two copies on one GPU away, at the least cost of the costlier of the two GPUs.

    Arrays as in `deal`, changed in place; holds: int64 [gpus, experts], copies on each GPU.
    """
    gpus = first.shape[0] - 1
    for gpu in range(gpus):
        for slot in range(first[gpu], first[gpu + 1]):
            expert = found[slot]
            if holds[gpu, expert] < 2:
                continue
            best, best_gpu, best_cost = -1, -1, 0.0
            for other in range(gpus):
                if holds[other, expert]:
                    continue
                for place in range(first[other], first[other + 1]):
                    if holds[gpu, found[place]]:
                        continue
                    more = tokens[slot] - tokens[place]
                    costs = max(
                        (load[other] + more) * arrival[other], (load[gpu] - more) * arrival[gpu]
                    )
                    if best < 0 or costs < best_cost:
                        best, best_gpu, best_cost = place, other, costs
            if best < 0:
                continue
            more = tokens[slot] - tokens[best]
            load[best_gpu] += more
            load[gpu] -= more
            holds[gpu, expert] -= 1
            holds[best_gpu, expert] += 1
            holds[gpu, found[best]] += 1
            holds[best_gpu, found[best]] -= 1
            found[slot], found[best] = found[best], found[slot]
            tokens[slot], tokens[best] = tokens[best], tokens[slot]


@compiled
def deal_layers(
    loads: NDArray[np.float64], first: Ints, arrival: Floats, cost: Floats
) -> NDArray[np.int32]:
    """Copies the hottest experts of each layer and deals them all: int32 [layers, slots].

    loads: float64 [layers, experts]; the rest as in `deal`.
    """
    layers = loads.shape[0]
    slots, gpus = first[-1], first.shape[0] - 1
    found = np.empty((layers, slots), np.int32)
    each, whole = np.empty(slots), np.empty(slots)
    for layer in range(layers):
        held, copies = copied(loads[layer], slots, gpus)
        for slot in range(slots):
            whole[slot] = loads[layer, held[slot]]
            each[slot] = whole[slot] / copies[held[slot]]
        dealt = deal(held, each, first, arrival, cost, whole)
        for slot in range(slots):
            found[layer, slot] = dealt[slot]
    return found
