"""Compiled loops of the placement by co-activation: copies to nodes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_PASSES = 20  # over all pairs of copies; a few are enough, and each only betters


@compiled
def to_nodes(
    meets: Floats, tokens: Floats, expert: Ints, room: Ints, gpus: Ints, slack: float
) -> tuple[Ints, float]:
    """The node of each copy, int64 [copies], and the tokens that meet within nodes.

    meets: float64 [copies, copies], tokens in which two copies meet, symmetric, 0 on the diagonal;
    tokens, expert: [copies]; room: copies on each node, together all; gpus: of each node; slack:
    share of its tokens that a node may have above them.
    """
    limit = (1.0 + slack) * tokens.sum() * room / room.sum()
    half = limit / (1.0 + slack) * (1.0 + slack / 2)  # the last copies go where room is left
    by_load = started(meets, tokens, expert, room, gpus, limit, 0.0)
    by_chance = started(meets, tokens, expert, room, gpus, half, 1.0)
    met_by_load = bettered(meets, tokens, expert, gpus, limit, by_load)
    met_by_chance = bettered(meets, tokens, expert, gpus, limit, by_chance)
    over_by_load = overload(tokens, limit, by_load)
    over_by_chance = overload(tokens, limit, by_chance)
    if over_by_chance < over_by_load or (
        over_by_chance == over_by_load and met_by_chance > met_by_load
    ):
        return by_chance, met_by_chance
    return by_load, met_by_load


@compiled
def overload(tokens: Floats, limit: Floats, node_of: Ints) -> float:
    """How much the busiest node has of its limit, 1 if none is above it."""
    load = np.zeros(limit.shape[0])
    for copy in range(tokens.shape[0]):
        load[node_of[copy]] += tokens[copy]
    most = 1.0
    for node in range(limit.shape[0]):
        if limit[node] > 0.0:
            most = max(most, load[node] / limit[node])
    return most


@compiled
def started(
    meets: Floats,
    tokens: Floats,
    expert: Ints,
    room: Ints,
    gpus: Ints,
    limit: Floats,
    wish: float,
) -> Ints:
    """Copies to nodes, heaviest first: the node with the fewest copies of the expert (one with a
    copy on each GPU last), within its limit if one is, then where `wish` times the meetings above
    chance are most, then the one with the fewest tokens for its room.
    """
    copies, nodes = tokens.shape[0], room.shape[0]
    squares = (tokens * tokens).sum()
    pairs = tokens.sum() ** 2 - squares
    chance = meets.sum() / pairs if pairs > 0.0 else 0.0
    node_of = np.full(copies, -1, np.int64)
    count = np.zeros(nodes, np.int64)
    load = np.zeros(nodes)
    holds = np.zeros((nodes, expert.max() + 1), np.int64)
    wanted = np.zeros((copies, nodes))
    for copy in np.argsort(-tokens, kind="mergesort"):
        best = -1
        for node in range(nodes):
            if count[node] == room[node]:
                continue
            if best < 0:
                best = node
                continue
            there, here = holds[best, expert[copy]], holds[node, expert[copy]]
            if (here < gpus[node]) != (there < gpus[best]):
                if here < gpus[node]:
                    best = node
                continue
            if here != there:
                if here < there:
                    best = node
                continue
            fits = load[node] + tokens[copy] <= limit[node]
            if fits != (load[best] + tokens[copy] <= limit[best]):
                if fits:
                    best = node
                continue
            more = wish * (wanted[copy, node] - wanted[copy, best]) if fits else 0.0
            if more > 0.0 or (more == 0.0 and load[node] * room[best] < load[best] * room[node]):
                best = node
        node_of[copy] = best
        count[best] += 1
        load[best] += tokens[copy]
        holds[best, expert[copy]] += 1
        for other in range(copies):
            wanted[other, best] += meets[other, copy] - chance * tokens[other] * tokens[copy]
    return node_of


@compiled
def bettered(
    meets: Floats, tokens: Floats, expert: Ints, gpus: Ints, limit: Floats, node_of: Ints
) -> float:
    """Swaps copies between nodes while more tokens meet; changes node_of, returns how many do.

    The node that gets heavier stays within its limit; a copy goes only to a node that has fewer of
    its expert, and not one on each GPU.
    """
    copies, nodes = tokens.shape[0], limit.shape[0]
    load = np.zeros(nodes)
    holds = np.zeros((nodes, expert.max() + 1), np.int64)
    near = np.zeros((copies, nodes))
    for copy in range(copies):
        load[node_of[copy]] += tokens[copy]
        holds[node_of[copy], expert[copy]] += 1
        for other in range(copies):
            near[other, node_of[copy]] += meets[other, copy]
    least = 1e-9 * meets.sum()  # below is rounding
    for _ in range(MAX_PASSES):
        swapped = False
        for one in range(copies):
            for two in range(one + 1, copies):
                a, b = node_of[one], node_of[two]
                if a == b or expert[one] == expert[two]:
                    continue
                gain = near[one, b] - near[one, a] + near[two, a] - near[two, b]
                if gain - 2.0 * meets[one, two] <= least:
                    continue
                more = tokens[one] - tokens[two]  # that b gets
                if more > 0.0 and load[b] + more > limit[b]:
                    continue
                if more < 0.0 and load[a] - more > limit[a]:
                    continue
                if holds[b, expert[one]] >= min(holds[a, expert[one]], gpus[b]):
                    continue
                if holds[a, expert[two]] >= min(holds[b, expert[two]], gpus[a]):
                    continue
                swapped = True
                node_of[one], node_of[two] = b, a
                load[a] -= more
                load[b] += more
                holds[a, expert[one]] -= 1
                holds[b, expert[one]] += 1
                holds[b, expert[two]] -= 1
                holds[a, expert[two]] += 1
                for other in range(copies):
                    moved = meets[other, one] - meets[other, two]
                    near[other, a] -= moved
                    near[other, b] += moved
        if not swapped:
            break
    met = 0.0
    for copy in range(copies):
        met += near[copy, node_of[copy]]
    return met / 2.0
