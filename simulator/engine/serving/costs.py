"""What a group of GPUs is made of, as the compiled core wants it: kernel tables, wires, room."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from simulator.engine.costs import on_wire
from simulator.engine.layout import Layout
from simulator.engine.links import wires_of
from simulator.engine.roads import Roads
from simulator.engine.serving.timing import Costs, Wires
from simulator.engine.step import Sending
from simulator.engine.tiers import landing_of
from simulator.model import attention, footprint, kernels, sizes
from simulator.model.compute import ComputeModel
from simulator.model.kernels import Work
from simulator.spec.schema import Gpu, Workload

FEW = 64  # so many tokens for one rank are looked up, more are computed

Floats = NDArray[np.float64]
Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]


def costs_of(compute: ComputeModel, rows: int, evaluation: NDArray[np.int32]) -> Costs:
    """Tables for up to `rows` tokens of a rank; evaluation int32 [layers], -1 in dense layers."""
    model, of, plain = compute.model, compute.grouped, compute.plain
    window = model.sliding_window
    windowed = np.zeros(model.layers, dtype=np.uint8)
    windowed[compute.windowed] = 1
    every, both = range(1, rows + 1), (False, True)
    floors = [compute.around_scores(1, gate)[1] for gate in both]
    floors += [compute.before_scores(1, decode)[1] for decode in (True, False)]
    shape = model.hidden, model.moe.intermediate
    launch_s = of.launch_s + sum(kernels.long_sum_s(of, k) for k in shape)
    moe = [
        *(of.flops_per_s, of.bytes_per_s, launch_s, of.passes_bytes_per_s),
        *(of.weight_bytes, of.input_bytes, *shape),
        *(of.fill, of.tile, of.spare, of.kernels * compute.host_launch_s, of.l2_bytes_per_s),
    ]
    return Costs(
        fixed_s=np.array(
            [[0.0, *(_seconds(compute.around_scores(n, gate)[0]) for n in every)] for gate in both]
        ),
        ffn_s=np.array(
            [
                [0.0, *(compute.dense_ffn(n).seconds for n in every)],
                [0.0, *(compute.shared_experts(n).seconds for n in every)],
            ]
        ),
        head_s=np.array([0.0, *(compute.lm_head(n).seconds for n in every)]),
        inside_s=np.array(
            [
                [0.0, *(_seconds(compute.before_scores(n, decode)[0]) for n in every)]
                for decode in (True, False)
            ]
        ),
        scores=np.array([attention.scores_of(model, decode) for decode in (True, False)]),
        plain=np.array(
            [plain.flops_per_s, plain.bytes_per_s, plain.launch_s]
            + [count * compute.host_launch_s for count in floors]
        ),
        moe=np.array(moe, dtype=np.float64),
        windowed=windowed,
        window=window.tokens if window else 0,
        evaluation=evaluation,
    )


def _seconds(parts: list[Work]) -> float:
    return sum(part.seconds for part in parts)


def wires_of_group(
    roads: Roads,
    layout: Layout,
    dispatch: Sending,
    combine: Sending,
    node: NDArray[np.int32],
    first: int,
    tiered: bool,
) -> Wires:
    """The wires among `layout.ep` GPUs from `first` on; node: int32 [gpus] of the cluster."""
    mine = slice(first, first + layout.ep)
    between = roads.between[mine, mine]
    every = wires_of(roads.routes, weighted=True)
    assert every.weight is not None
    ranks = layout.ep
    source, target = np.nonzero((between >= 0) & ~np.eye(ranks, dtype=np.bool_))
    routes = between[source, target]
    latency_s = np.zeros((ranks, ranks))
    latency_s[source, target] = every.latency_s[routes]
    # One row per pair and link of its route, in the order of the pairs.
    hops = np.diff(every.ptr)[routes]
    pair = np.repeat(np.arange(len(routes)), hops)
    at = np.repeat(every.ptr[routes], hops) + _counted(hops)
    link, a, b = every.link[at], source[pair], target[pair]
    alone_s = every.weight[at] / every.capacity_bytes_per_s[link]
    efficiency = np.stack([way.efficiency[routes] for way in (dispatch, combine)])
    busy_s = alone_s / efficiency[:, pair]
    of_one_sender = _one_each(link, a, len(every.capacity_bytes_per_s))[link]
    of_one_receiver = _one_each(link, b, len(every.capacity_bytes_per_s))[link]
    own = of_one_sender & of_one_receiver
    own_s = np.zeros((2, ranks, ranks))
    for way in range(2):
        np.maximum.at(own_s[way], (a[own], b[own]), busy_s[way, own])
    some = ~(of_one_sender | of_one_receiver)
    _, shared = np.unique(link[some], return_inverse=True)
    crossings = np.bincount((a * ranks + b)[some], minlength=ranks * ranks)
    _, nodes = np.unique(node[mine], return_inverse=True)
    local = nodes.astype(np.int32)
    sends = [
        (way.token_bytes, way.half_size_bytes, float(way.packed), way.delay_s)
        for way in (dispatch, combine)
    ]
    outs, ins = of_one_sender & ~own, of_one_receiver & ~own
    return Wires(
        latency_s=latency_s,
        own_s=own_s,
        out_s=_planes(ranks, link[outs], a[outs], b[outs], a[outs], busy_s[:, outs]),
        in_s=_planes(ranks, link[ins], a[ins], b[ins], b[ins], busy_s[:, ins]),
        shared_ptr=np.cumsum([0, *crossings]).astype(np.int64),
        shared=shared.ravel().astype(np.int32),
        shared_s=np.ascontiguousarray(busy_s[:, some]),
        sends=np.array(sends),
        few_bytes=np.stack([_few_bytes(way) for way in (dispatch, combine)]),
        once=dispatch.packed,
        tiered=tiered,
        node=local,
        landing=landing_of(local, layout.ep),
    )


def _few_bytes(way: Sending) -> Floats:
    """What 0, 1, 2, ... tokens for one rank put on wires of efficiency 1, float64 [FEW]."""
    tokens = np.arange(FEW, dtype=np.float64)
    messages = np.minimum(tokens, 1.0) if way.packed else tokens
    sizes = way.token_bytes * tokens / np.maximum(messages, 1.0)
    return on_wire(sizes, messages, way.half_size_bytes, np.ones(FEW))


def _counted(lengths: Int64s) -> Int64s:
    """0, 1, 2, ... for each of these lengths, one after the other."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _one_each(link: Int32s, rank: Int64s, links: int) -> NDArray[np.bool_]:
    """Whether all crossings of a link have the same rank, bool [links]."""
    least, most = np.full(links, len(rank) + np.iinfo(np.int32).max), np.full(links, -1)
    np.minimum.at(least, link, rank)
    np.maximum.at(most, link, rank)
    return np.asarray(least == most)


def _planes(
    ranks: int, link: Int32s, a: Int64s, b: Int64s, whose: Int64s, busy_s: Floats
) -> Floats:
    """Links of one rank each (`whose`) in planes, one of each rank in a plane: float64 [2, planes,
    ranks, ranks], from a to b; busy_s: float64 [2, crossings].
    """
    pairs, which = np.unique(np.stack([whose, link]), axis=1, return_inverse=True)
    first = np.searchsorted(pairs[0], np.arange(ranks))
    plane = (np.arange(pairs.shape[1]) - first[pairs[0]])[which.ravel()]
    found = np.zeros((2, int(plane.max(initial=-1)) + 1, ranks, ranks))
    found[:, plane, a, b] = busy_s
    return found


def kv_blocks(workload: Workload, gpu: Gpu, layout: Layout, tokens: int, block_tokens: int) -> int:
    """KV blocks that fit beside weights and the activations of a step of `tokens` tokens per rank.

    Raises InputError if not one does.
    """
    model = workload.model
    parts = _beside_kv(workload, most_experts(layout), tokens)
    usable = gpu.hbm_capacity_bytes * (1.0 - footprint.RESERVED)
    # A windowed layer keeps no more than its window; blocks are counted as if it kept all, which
    # says too little about how many requests fit.
    block_bytes = model.layers * sizes.kv_bytes_per_token_layer(model) * block_tokens
    if not block_bytes:
        return 1 << 40
    blocks = int((usable - sum(parts.values())) // block_bytes)
    if blocks < 1:
        advice = partial(_ways_to_serve, workload, layout, tokens, usable - block_bytes)
        footprint.check_gpu(workload, gpu, parts | {"KV cache": block_bytes}, "a GPU", advice)
    return blocks


def _beside_kv(workload: Workload, experts: int, tokens: int) -> dict[str, float]:
    """Bytes by part on a GPU with so many experts of a layer, in a step of `tokens` of its own."""
    traffic = workload.traffic.model_copy(update={"tokens_per_gpu": tokens, "context": 0})
    asked = workload.model_copy(update={"traffic": traffic})
    return {**footprint.gpu_bytes(asked, experts, 0), "KV cache": 0.0}


def _ways_to_serve(workload: Workload, layout: Layout, tokens: int, room: float) -> str:
    """Changes each of which alone leaves a GPU within `room` bytes, in words."""
    found = []
    physical = len(layout.placement.gpu_of)
    for ep in range(layout.ep + 1, min(layout.gpus, physical) + 1):
        parts = _beside_kv(workload, -(-physical // ep), tokens)
        if layout.gpus % ep == 0 and sum(parts.values()) <= room:
            found.append(f"parallel.ep={ep}")
            break
    parts = _beside_kv(workload, most_experts(layout), tokens)
    of_tokens = parts.pop("activations") / tokens
    if (most := int((room - sum(parts.values())) // of_tokens)) >= 1:
        found.append(f"serving.max_batched_tokens={most} or less")
    if not found:
        return "raise parallel.ep, or use GPUs with more memory"
    return f"{' or '.join(found)} would do"


def most_experts(layout: Layout) -> int:
    """Experts per layer on the GPU that has most."""
    return int(layout.serves.sum(axis=-1).max())
