"""What a group of GPUs is made of, as the compiled core wants it: kernel tables, wires, room."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
    used = np.unique(between[between >= 0])
    # One more than there are: a pair without a route (-1) reads the last.
    place = np.full(every.routes + 1, -1, dtype=np.int32)
    place[used] = np.arange(len(used), dtype=np.int32)
    spans = [np.arange(every.ptr[r], every.ptr[r + 1]) for r in used]
    crossings = np.concatenate([np.zeros(0, dtype=np.int64), *spans])
    route = np.repeat(np.arange(len(used), dtype=np.int32), [len(span) for span in spans])
    order = np.argsort(every.link[crossings], kind="stable")
    crossings = crossings[order]
    assert every.weight is not None
    _, count = np.unique(every.link[crossings], return_counts=True)
    link_s = every.weight[crossings] / every.capacity_bytes_per_s[every.link[crossings]]
    crossed = used[route[order]]
    _, nodes = np.unique(node[mine], return_inverse=True)
    local = nodes.astype(np.int32)
    sends = [
        (way.token_bytes, way.half_size_bytes, float(way.packed), way.delay_s)
        for way in (dispatch, combine)
    ]
    return Wires(
        between=np.stack([place[between], place[between].T]),
        ptr=np.cumsum([0, *count]).astype(np.int64),
        route=route[order],
        seconds_per_byte=np.stack(
            [link_s / way.efficiency[crossed] for way in (dispatch, combine)]
        ),
        latency_s=every.latency_s[used],
        sends=np.array(sends),
        once=dispatch.packed,
        tiered=tiered,
        node=local,
        landing=landing_of(local, layout.ep),
    )


def kv_blocks(workload: Workload, gpu: Gpu, layout: Layout, tokens: int, block_tokens: int) -> int:
    """KV blocks that fit beside weights and the activations of a step of `tokens` tokens per rank.

    Raises InputError if not one does.
    """
    model = workload.model
    traffic = workload.traffic.model_copy(update={"tokens_per_gpu": tokens, "context": 0})
    parts = footprint.gpu_bytes(
        workload.model_copy(update={"traffic": traffic}), most_experts(layout), 0
    )
    parts["KV cache"] = 0.0
    room = gpu.hbm_capacity_bytes * (1.0 - footprint.RESERVED) - sum(parts.values())
    # A windowed layer keeps no more than its window; blocks are counted as if it kept all, which
    # says too little about how many requests fit.
    per_token = model.layers * sizes.kv_bytes_per_token_layer(model)
    blocks = int(room // (per_token * block_tokens)) if per_token else 1 << 40
    if blocks < 1:
        footprint.check_gpu(workload, gpu, parts | {"KV cache": per_token * block_tokens}, "a GPU")
    return blocks


def most_experts(layout: Layout) -> int:
    """Experts per layer on the GPU that has most."""
    return int(layout.serves.sum(axis=-1).max())
