"""A law of routing as DeepSeek-V3's gate has it: each token takes experts of a few groups only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.routing.laws import zipf

Int16s = NDArray[np.int16]

GROUPS, CHOSEN = 8, 4
"""n_group and topk_group of DeepSeek-V3's config.json."""

DRAWN = 6
"""Experts that are drawn for one that is taken: half of them are in the groups, on average."""


def limited(
    rng: np.random.Generator,
    tokens: int,
    layers: int,
    experts: int,
    k: int,
    exponent: float = 1.0,
    *,
    previous: Int16s | None = None,
) -> Int16s:
    """As zipf, but experts of 4 of the 8 groups of neighbours only.

    Experts drawn one after another are those of the largest scores (log weight + Gumbel noise), in
    their order. The groups are those of the best experts; DeepSeek adds up the best two of each.
    The rare token with fewer than k among the drawn takes the best of the others.
    """
    if experts % GROUPS or experts // GROUPS * CHOSEN < k:
        raise InputError(f"routing law 'limited': {experts} experts in {GROUPS} groups, {k} taken")
    drawn = min(experts, DRAWN * k)
    scored = zipf(rng, tokens, layers, experts, drawn, exponent, previous=previous)
    out = np.empty((layers, tokens, k), dtype=np.int16)
    for layer in range(layers):
        out[layer] = _restricted(scored[:, layer], experts, k)
    return out.transpose(1, 0, 2)


def _restricted(scored: Int16s, experts: int, k: int) -> Int16s:
    """The first k of the best groups; scored: int16 [tokens, drawn], best first."""
    tokens, drawn = scored.shape
    group = scored // (experts // GROUPS)
    first = np.full((tokens, GROUPS), drawn, dtype=np.int64)  # where a group appears
    for at in range(drawn - 1, -1, -1):
        first[np.arange(tokens), group[:, at]] = at
    best = np.argsort(first, axis=1, kind="stable")[:, :CHOSEN]
    allowed = np.zeros((tokens, GROUPS), dtype=np.bool_)
    np.put_along_axis(allowed, best, True, axis=1)
    outside = ~np.take_along_axis(allowed, group.astype(np.int64), axis=1)
    order = np.argsort(outside, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scored, order, axis=1)
