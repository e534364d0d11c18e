"""From expert ids to what a layer's all-to-all carries: rows per expert, tokens per GPU pair.

One compiled pass over the ids of one layer, or of several layers of the same tokens, with the same
owners: then all arrays have an axis of layers before the others. The same pass serves
`expert_access: fetch`, where the weights come to the token: then every GPU is its own group and
nothing is sent (`owner=None`).

Where experts have copies, a pass before it (`pick_slots`) puts the slot of the chosen copy in place
of each expert; all else then counts slots as it counts experts, and `rows_of_experts` adds them up.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.compiled import compiled

Int16s = npt.NDArray[np.int16]
Int32s = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

_FAULTS = {
    1: "source_gpu must lie in 0..gpus-1 and must not decrease",
    2: "an expert id is not below the number of experts that have an owner",
}


class Copies(NamedTuple):
    """Slots of experts in one layer, some experts in several; every group of GPUs has them all.

    expert_of: int32 [slots], the expert in each; owner: int32 [slots], GPU of each within its
    group; nearest: int16 [gpus, experts], the slot that a token of each GPU takes; ptr int32
    [experts + 1], slots int16: slots[ptr[e]:ptr[e + 1]] are those of expert e, on different GPUs;
    least_loaded: the slot whose GPU has fewest rows so far is taken, the nearest among equals.
    """

    expert_of: Int32s
    owner: Int32s
    nearest: Int16s
    ptr: Int32s
    slots: Int16s
    least_loaded: bool


def pick_slots(ids: Int16s, source_gpu: Int32s, copies: Copies, ep: int) -> Int16s:
    """The slot that each token takes for each of its experts, int16 [tokens, k], -1 where none is
    recorded.

    ids: int16 [(layers,) tokens, k]; source_gpu: int32 [tokens], not decreasing; GPUs form groups
    of `ep`. The least loaded copy is found choice after choice, in the order of the tokens.
    Raises ValueError for arrays that do not fit each other.
    """
    gpus = len(copies.nearest)
    _check(ids, source_gpu, copies.owner, ep, gpus)
    picked = np.empty_like(ids)
    _, owner, nearest, ptr, slots, least = copies
    for layer in np.ndindex(ids.shape[:-2]):
        rows = np.zeros(gpus, dtype=np.int64)
        chosen = picked[layer]
        fault = _pick(ids[layer], source_gpu, nearest, ptr, slots, owner, ep, least, rows, chosen)
        if fault:
            raise ValueError(_FAULTS[fault])
    return picked


def rows_of_experts(rows: Int32s, copies: Copies, ep: int) -> Int32s:
    """Rows int32 [(layers,) gpus, experts] from rows [(layers,) gpus, slots]."""
    gpus, experts = copies.nearest.shape
    found = np.zeros((*rows.shape[:-2], gpus, experts), dtype=np.int32)
    for first in range(0, gpus, ep):
        gpu = first + copies.owner
        place: Any = (..., gpu, copies.expert_of)
        np.add.at(found, place, rows[..., gpu, np.arange(len(gpu))])
    return found


def traffic(
    ids: Int16s,
    source_gpu: Int32s,
    owner: Int32s,
    ep: int,
    gpus: int,
    deduplicate: bool = True,
    rows: Int32s | None = None,
    pairs: Int32s | None = None,
) -> tuple[Int32s, Int32s]:
    """Count what a layer, or each of several, computes and sends.

    `ids` int16 [(layers,) tokens, k] (-1 = not recorded, skipped), `source_gpu` int32 [tokens] not
    decreasing, `owner` int32 [experts] the GPU of each expert within its EP group of `ep` GPUs. A
    token of an expert goes to GPU (source_gpu // ep) * ep + owner[expert].

    Returns (`rows` int32 [(layers,) gpus, experts]: tokens of that expert computed on that GPU,
    `pairs` int32 [(layers,) gpus, gpus]: tokens from row to column, the diagonal those that stay).
    With `deduplicate` a token counts once per GPU however many of its experts are there, without it
    once per expert. `rows` and `pairs`, if given, are overwritten and returned.
    Raises ValueError for arrays that do not fit each other.
    """
    _check(ids, source_gpu, owner, ep, gpus)
    rows = _zeroed(rows, *ids.shape[:-2], gpus, len(owner))
    pairs = _zeroed(pairs, *ids.shape[:-2], gpus, gpus)
    as_layers = (_layers(ids), source_gpu, owner, ep, deduplicate, _layers(rows), _layers(pairs))
    fault = _count(*as_layers)
    if fault:
        raise ValueError(_FAULTS[fault])
    return rows, pairs


def traffic_fetch(
    ids: Int16s, source_gpu: Int32s, gpus: int, experts: int, rows: Int32s | None = None
) -> Int32s:
    """Rows int32 [(layers,) gpus, experts] when the weights come to the token: all at the source.

    `ids` int16 [(layers,) tokens, k], `source_gpu` int32 [tokens] non-decreasing. Nothing is sent.
    """
    return traffic(ids, source_gpu, np.zeros(experts, dtype=np.int32), 1, gpus, True, rows)[0]


def expert_sequence(
    ids: Int16s,
    source_gpu: Int32s,
    rows: Int32s,
    owner: Int32s | None = None,
    ep: int = 1,
) -> tuple[Int32s, Int16s]:
    """The order in which each GPU first needs its experts: token order, then gate order.

    `rows` int32 [(layers,) gpus, experts] is what `traffic` or `traffic_fetch` returned for the
    same ids; `owner` None means fetch (needed at the source GPU). Returns (`ptr` int32 [gpus + 1],
    `experts` int16 [ptr[-1]]): GPU g needs experts[ptr[g]:ptr[g + 1]], each once; with layers,
    `ptr` is [layers * gpus + 1], layer after layer.
    Raises ValueError for arrays that do not fit each other or the rows.
    """
    gpus, experts = rows.shape[-2:]
    if owner is None:
        owner, ep = np.zeros(experts, dtype=np.int32), 1
    _check(ids, source_gpu, owner, ep, gpus)
    if rows.shape[:-2] != ids.shape[:-2]:
        raise ValueError(f"ids {ids.shape} and rows {rows.shape} do not fit")
    unseen = rows > 0
    ptr = np.zeros(unseen.size // experts + 1, dtype=np.int32)
    np.cumsum(np.count_nonzero(unseen, axis=-1), out=ptr[1:])
    sequence = np.empty(int(ptr[-1]), dtype=np.int16)
    left = _order(_layers(ids), source_gpu, owner, ep, _layers(unseen), ptr, sequence)
    if left:
        raise ValueError(f"rows hold {left} (GPU, expert) pairs that the ids do not")
    return ptr, sequence


def _check(ids: Int16s, source_gpu: Int32s, owner: Int32s, ep: int, gpus: int) -> None:
    if ids.ndim not in (2, 3) or source_gpu.shape != ids.shape[-2:-1]:
        raise ValueError(f"ids {ids.shape} and source_gpu {source_gpu.shape} do not fit")
    if ids.dtype != np.int16 or source_gpu.dtype != np.int32 or owner.dtype != np.int32:
        raise ValueError("ids must be int16, source_gpu and owner int32")
    if ep < 1 or gpus < 1 or gpus % ep:
        raise ValueError(f"{gpus} GPUs cannot be split into EP groups of {ep}")
    if owner.ndim != 1 or len(owner) == 0 or owner.min() < 0 or owner.max() >= ep:
        raise ValueError(f"owner must be [experts] with values 0..{ep - 1}")


def _layers(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array with its axis of layers, of one layer if it has none."""
    return array if array.ndim == 3 else array[None]


def _zeroed(array: Int32s | None, *shape: int) -> Int32s:
    if array is None:
        return np.zeros(shape, dtype=np.int32)
    if array.shape != shape or array.dtype != np.int32:
        raise ValueError(f"an output is {array.dtype} {array.shape}, expected int32 {shape}")
    array.fill(0)
    return array


@compiled
def _count(
    ids: Int16s,
    source_gpu: Int32s,
    owner: Int32s,
    ep: int,
    deduplicate: bool,
    rows: Int32s,
    pairs: Int32s,
) -> int:
    layers = ids.shape[0]
    experts = rows.shape[2]
    # Within one EP group an expert has one GPU, so a count per expert is enough until it ends.
    counts = np.zeros(experts, dtype=np.int32)
    sent = np.zeros(ep, dtype=np.int32)
    last_token = np.full(ep, -1, dtype=np.int32)
    for layer in range(layers):
        mine = (rows[layer], pairs[layer])
        fault = _count_layer(
            ids[layer], source_gpu, owner, ep, deduplicate, *mine, counts, sent, last_token
        )
        if fault:
            return fault
    return 0


@compiled
def _count_layer(
    ids: Int16s,
    source_gpu: Int32s,
    owner: Int32s,
    ep: int,
    deduplicate: bool,
    rows: Int32s,
    pairs: Int32s,
    counts: Int32s,
    sent: Int32s,
    last_token: Int32s,
) -> int:
    """`counts` [experts] and `sent` [ep] are zero before and after."""
    tokens, k = ids.shape
    gpus, experts = rows.shape
    last_token[:] = -1
    start = 0
    previous = -1
    while start < tokens:
        source = source_gpu[start]
        if source <= previous or source >= gpus:
            return 1
        base = source // ep * ep
        if previous >= 0 and previous // ep * ep != base:
            _add_group(rows, counts, owner, previous // ep * ep)
        previous = source
        end = start + 1
        while end < tokens and source_gpu[end] == source:
            end += 1
        for token in range(start, end):
            for choice in range(k):
                expert = ids[token, choice]
                if expert < 0:
                    continue
                if expert >= experts:
                    return 2
                counts[expert] += 1
                target = owner[expert]
                # Branch-free: which experts share a GPU is as good as random to a predictor.
                sent[target] += (last_token[target] != token) | (not deduplicate)
                last_token[target] = token
        for target in range(ep):
            pairs[source, base + target] = sent[target]
            sent[target] = 0
        start = end
    if previous >= 0:
        _add_group(rows, counts, owner, previous // ep * ep)
    return 0


@compiled
def _add_group(rows: Int32s, counts: Int32s, owner: Int32s, base: int) -> None:
    for expert in range(len(counts)):
        rows[base + owner[expert], expert] += counts[expert]
        counts[expert] = 0


@compiled
def _pick(
    ids: Int16s,
    source_gpu: Int32s,
    nearest: Int16s,
    ptr: Int32s,
    slots: Int16s,
    owner: Int32s,
    ep: int,
    least_loaded: bool,
    rows: npt.NDArray[np.int64],
    out: Int16s,
) -> int:
    tokens, k = ids.shape
    gpus, experts = nearest.shape
    previous = 0
    for token in range(tokens):
        source = source_gpu[token]
        if source < previous or source >= gpus:
            return 1
        previous = source
        base = source // ep * ep
        for choice in range(k):
            expert = ids[token, choice]
            if expert < 0:
                out[token, choice] = -1
                continue
            if expert >= experts:
                return 2
            best = nearest[source, expert]
            if least_loaded:
                least = rows[base + owner[best]]
                for place in range(ptr[expert], ptr[expert + 1]):
                    slot = slots[place]
                    if rows[base + owner[slot]] < least:
                        best = slot
                        least = rows[base + owner[slot]]
                rows[base + owner[best]] += 1
            out[token, choice] = best
    return 0


@compiled
def _order(
    ids: Int16s,
    source_gpu: Int32s,
    owner: Int32s,
    ep: int,
    unseen: Bools,
    ptr: Int32s,
    sequence: Int16s,
) -> int:
    layers, tokens, k = ids.shape
    gpus, experts = unseen.shape[1:]
    fill = ptr[:-1].copy()
    missing = 0
    for layer in range(layers):
        first = layer * gpus
        left = ptr[first + gpus] - ptr[first]
        for token in range(tokens):
            # Usually every expert has been met after a small part of the tokens.
            if left == 0:
                break
            source = source_gpu[token]
            if source < 0 or source >= gpus:
                break
            base = source // ep * ep
            for choice in range(k):
                expert = ids[layer, token, choice]
                if expert < 0 or expert >= experts:
                    continue
                gpu = base + owner[expert]
                if unseen[layer, gpu, expert]:
                    unseen[layer, gpu, expert] = False
                    sequence[fill[first + gpu]] = expert
                    fill[first + gpu] += 1
                    left -= 1
        missing += left
    return missing
