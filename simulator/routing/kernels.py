"""Compiled loops over expert ids. Apart from the readers, so that those start without numba."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulator.compiled import compiled

Int16s = npt.NDArray[np.int16]
Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@compiled
def first_bad_id(ids: Int16s, seen: Int64s) -> int:
    """Flat index of the first id that is outside [-1, experts) or twice in its layer, else -1.

    `ids` int16 [n, layers, k]; `seen` int64 [experts] must hold -1 and is overwritten.
    """
    tokens, layers, k = ids.shape
    experts = len(seen)
    for token in range(tokens):
        for layer in range(layers):
            group = token * layers + layer
            for choice in range(k):
                expert = ids[token, layer, choice]
                if expert == -1:
                    continue
                if expert < 0 or expert >= experts or seen[expert] == group:
                    return int(group * k + choice)
                seen[expert] = group
    return -1


@compiled
def draw_weighted(
    rng: np.random.Generator, weight: Floats, accept: Floats, alias: Int16s, out: Int16s
) -> None:
    """Fill int16 [layers, tokens, k] with k distinct experts each, in the order drawn.

    `weight` float64 [layers, experts]; `accept` float64 and `alias` int16 [layers, experts] are its
    alias tables. One after another an expert is drawn with probability proportional to its weight
    among those not drawn yet (an alias draw, refused if drawn already, is that distribution).
    """
    layers, tokens, k = out.shape
    experts = weight.shape[1]
    drawn_at = np.full(experts, -1, dtype=np.int64)
    for layer in range(layers):
        for token in range(tokens):
            group = layer * tokens + token
            for choice in range(k):
                expert = -1
                # Under heavy skew nearly every draw is refused: then walk over what is left.
                for _ in range(16):
                    u = rng.random() * experts
                    candidate = min(int(u), experts - 1)
                    if u - candidate >= accept[layer, candidate]:
                        candidate = int(alias[layer, candidate])
                    if drawn_at[candidate] != group:
                        expert = candidate
                        break
                if expert < 0:
                    left = 0.0
                    for candidate in range(experts):
                        if drawn_at[candidate] != group:
                            left += weight[layer, candidate]
                    u = rng.random() * left
                    for candidate in range(experts):
                        if drawn_at[candidate] != group:
                            expert = candidate
                            u -= weight[layer, candidate]
                            if u < 0.0:
                                break
                drawn_at[expert] = group
                out[layer, token, choice] = expert


@compiled
def draw_sticky(
    rng: np.random.Generator, previous: Int16s, stay: float, experts: int, out: Int16s
) -> None:
    """Fill int16 [layers, tokens, k]: experts of the token before stay with probability `stay`.

    `previous` int16 [sequences, layers, k] is before the first token of each of the equally long
    sequences, -1 where there was none. What does not stay is drawn uniformly, without those that
    stay; experts that stay keep their place in the gate order.
    """
    layers, tokens, k = out.shape
    length = tokens // len(previous)
    drawn_at = np.full(experts, -1, dtype=np.int64)
    for layer in range(layers):
        for token in range(tokens):
            group = layer * tokens + token
            first = token % length == 0
            for choice in range(k):
                before = (
                    previous[token // length, layer, choice]
                    if first
                    else out[layer, token - 1, choice]
                )
                kept = before >= 0 and rng.random() < stay
                out[layer, token, choice] = before if kept else -1
                if kept:
                    drawn_at[before] = group
            for choice in range(k):
                if out[layer, token, choice] < 0:
                    expert = min(int(rng.random() * experts), experts - 1)
                    while drawn_at[expert] == group:
                        expert = min(int(rng.random() * experts), experts - 1)
                    drawn_at[expert] = group
                    out[layer, token, choice] = expert


@compiled
def build_alias(weight: Floats, accept: Floats, alias: Int16s) -> None:
    """Fill the alias tables (Walker, Vose) of float64 weight [layers, experts]."""
    layers, experts = weight.shape
    small = np.empty(experts, dtype=np.int64)
    large = np.empty(experts, dtype=np.int64)
    for layer in range(layers):
        scale = experts / weight[layer].sum()
        few = many = 0
        for expert in range(experts):
            accept[layer, expert] = weight[layer, expert] * scale
            alias[layer, expert] = expert
            if accept[layer, expert] < 1.0:
                small[few] = expert
                few += 1
            else:
                large[many] = expert
                many += 1
        while few > 0 and many > 0:
            few -= 1
            poor, rich = small[few], large[many - 1]
            alias[layer, poor] = rich
            accept[layer, rich] -= 1.0 - accept[layer, poor]
            if accept[layer, rich] < 1.0:
                many -= 1
                small[few] = rich
                few += 1
        # What is over on either side is 1 but for rounding.
        for index in range(few):
            accept[layer, small[index]] = 1.0
        for index in range(many):
            accept[layer, large[index]] = 1.0


@compiled
def count_overlaps(ids: Int16s, before: Int16s, comes_after: npt.NDArray[np.bool_]) -> Int64s:
    """Per layer [layers, 2]: experts shared by adjacent rows, and experts compared.

    `ids` int16 [n, layers, k]; `before` int16 [layers, k] is the row before the first;
    `comes_after` bool [n]: the row continues the request of the row before. Layers with an id
    that is not recorded are left out.
    """
    tokens, layers, k = ids.shape
    result = np.zeros((layers, 2), dtype=np.int64)
    for token in range(tokens):
        if not comes_after[token]:
            continue
        last = before if token == 0 else ids[token - 1]
        for layer in range(layers):
            shared, recorded = 0, True
            for a in range(k):
                recorded &= ids[token, layer, a] >= 0 and last[layer, a] >= 0
                for b in range(k):
                    shared += ids[token, layer, a] == last[layer, b]
            if recorded:
                result[layer, 0] += shared
                result[layer, 1] += k
    return result


@compiled
def count_loads(ids: Int16s, loads: Int64s) -> None:
    """Add to `loads` int64 [layers, experts] how often each expert is in ids int16 [n, layers, k].

    Ids of -1 (not recorded) are left out.
    """
    tokens, layers, k = ids.shape
    for layer in range(layers):
        for token in range(tokens):
            for choice in range(k):
                expert = ids[token, layer, choice]
                if expert >= 0:
                    loads[layer, expert] += 1


@compiled
def count_pairs(ids: Int16s, shift: int, pairs: Int64s) -> None:
    """Add to `pairs` int64 [layers - 1, experts, experts] the experts taken in successive layers.

    `ids` int16 [n, layers, k]. Entry [layer, i, j] counts tokens t with expert i in `layer` while
    token (t + shift) mod n has expert j in the layer after it; -1 (not recorded) is left out.
    """
    tokens, layers, k = ids.shape
    # Layer by layer, so that one table of experts x experts at a time stays in the CPU's cache.
    for layer in range(layers - 1):
        for token in range(tokens):
            other = (token + shift) % tokens
            for a in range(k):
                here = ids[token, layer, a]
                if here < 0:
                    continue
                for b in range(k):
                    there = ids[other, layer + 1, b]
                    if there >= 0:
                        pairs[layer, here, there] += 1
