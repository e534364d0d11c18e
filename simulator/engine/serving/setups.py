"""What the groups of a serving run are made of, and what is refused."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.graph import Graph
from simulator.engine.homes import Near
from simulator.engine.layout import Layout
from simulator.engine.ranks import ranks_of
from simulator.engine.roads import Roads, algorithm, sending
from simulator.engine.serving.copies import routing_of
from simulator.engine.serving.costs import costs_of, kv_blocks, wires_of_group
from simulator.engine.serving.dense import whole_on_a_gpu
from simulator.engine.serving.group import Setup
from simulator.engine.serving.pool import Pool
from simulator.engine.serving.scheduler import Ledger, Limits
from simulator.engine.serving.timing import Routing
from simulator.engine.transport import token_bytes
from simulator.errors import InputError
from simulator.model import sizes
from simulator.model.compute import ComputeModel, beside
from simulator.requests.requests import Requests
from simulator.spec.choices import parse_choice
from simulator.spec.load import Inputs
from simulator.spec.schema import MlaAttention, Workload


def refuse(workload: Workload) -> None:
    """Raise InputError for what serving does not model."""
    if workload.requests is None:
        raise InputError(
            "requests: a workload that is served says which; give --requests FILE or LAW, "
            "for example --requests poisson:10 --set requests.limit=1000 "
            "--set requests.prompt=lognormal:1000:1 --set requests.output=exponential:200"
        )
    if workload.expert_access == "fetch":
        raise InputError("expert_access: serving sends tokens to experts; write dispatch")
    if workload.rebalance is not None:
        raise InputError("rebalance: serving keeps experts where they are; write null")
    if workload.redundant_experts and workload.replica_choice != "nearest":
        raise InputError("replica_choice: serving sends to the nearest copy; write nearest")
    if workload.traffic.speculative:
        raise InputError("traffic.speculative: serving does not model it; leave it out")
    attention = workload.model.attention
    if isinstance(attention, MlaAttention) and attention.absorb == "never":
        raise InputError(
            "model.attention.absorb: in serving, queries that decode are taken to the latent; "
            "write decode or always"
        )
    if not whole_on_a_gpu(workload):
        raise InputError("parallel: serving lays a model over EP groups; write ep alone")
    overlap = parse_choice(workload.overlap, "overlap").name
    if overlap not in ("none", "two-batch"):
        raise InputError(f"overlap: serving knows none and two-batch, not {overlap}")
    asked = workload.serving
    alone = asked.decode_run > 1 or bool(asked.speed) or bool(workload.faults)
    if workload.network != "coflow" and sends(workload) and alone:
        raise InputError(
            f"network: {workload.network} in serving goes without decode_run, speed and faults; "
            "write --set network=coflow"
        )


def sends(workload: Workload) -> bool:
    """Whether steps use the network at all."""
    return bool(workload.model.moe.experts) and workload.parallel.ep != 1


def ledger_of(requests: Requests, pool: Pool) -> Ledger:
    """All requests before the first comes; each follows a recorded sequence, in turn."""
    number = len(requests)
    turn = np.arange(number) % len(pool.row)
    none = np.zeros(number, dtype=np.int32)
    never = np.full(number, -1.0)
    _, block = np.unique(requests.block_hash, return_inverse=True)
    return Ledger(
        prompt=requests.prompt_tokens.copy(),
        output=requests.output_tokens.copy(),
        priority=requests.priority.copy(),
        row=pool.row[turn],
        rows=pool.rows[turn],
        state=np.zeros(number, dtype=np.int8),
        largest_gap_s=np.zeros(number),
        block_ptr=requests.block_ptr.copy(),
        block=block.astype(np.int32),
        done=none.copy(),
        made=none.copy(),
        blocks=none.copy(),
        shared=none.copy(),
        next=none.copy(),
        preempted=none.copy(),
        reused=none.copy(),
        admitted_s=never.copy(),
        first_s=never.copy(),
        last_s=never.copy(),
    )


def setups_of(
    inputs: Inputs,
    graph: Graph,
    layout: Layout,
    roads: Roads,
    pool: Pool,
    requests: Requests,
    near: Near | None,
) -> list[Setup]:
    """What each group is made of; groups differ by their wires and by which copies are near."""
    workload = inputs.workload
    model, asked, gpu = workload.model, workload.serving, inputs.topology.gpu
    overlapping = workload.overlap != "none" and layout.ep > 1
    held = workload.transport.sms if overlapping else 0
    compute = ComputeModel(model, beside(gpu, held), "decode", 1, workload.cuda_graphs)
    routings = [
        routing_in_group(inputs, layout, pool, near, first)
        for first in range(0, layout.gpus if near is not None else layout.ep, layout.ep)
    ]
    evaluation = routings[0][1]
    costs = costs_of(compute, asked.max_batched_tokens, evaluation)
    blocks = kv_blocks(workload, gpu, layout, asked.max_batched_tokens, asked.kv_block)
    if asked.kv_capacity_bytes is not None:
        per_token = model.layers * sizes.kv_bytes_per_token_layer(model)
        given = int(asked.kv_capacity_bytes // (per_token * asked.kv_block))
        if not 0 < given <= blocks:
            raise InputError(
                f"serving.kv_capacity: {given} blocks of {asked.kv_block} tokens; there is room "
                f"for 1 to {blocks}"
            )
        blocks = given
    prefix = requests.block_tokens if asked.prefix_reuse else 0
    if prefix % asked.kv_block:
        raise InputError(
            f"serving.kv_block: {asked.kv_block} does not divide the {prefix} tokens of a prefix "
            "block; write a divisor of it"
        )
    limits = Limits(
        tokens=asked.max_batched_tokens,
        blocks=blocks,
        block_tokens=asked.kv_block,
        prefix_tokens=prefix,
        chunked=asked.chunked_prefill,
        swap=asked.preemption == "swap",
        hand_on=False,
    )
    dispatching = sending(inputs, layout, roads, "dispatch")
    combining = sending(inputs, layout, roads, "combine")
    tiered = layout.ep > 1 and algorithm(workload.transport, "dispatch") == "two-tier"
    node = ranks_of(graph).node if layout.gpus > 1 else np.zeros(1, dtype=np.int32)
    prefixes = int(np.unique(requests.block_hash).size)
    return [
        Setup(
            ranks=layout.ep,
            most=asked.max_seqs,
            halves=2 if overlapping else 1,
            prefixes=prefixes,
            costs=costs,
            wires=wires_of_group(roads, layout, dispatching, combining, node, first, tiered),
            routing=routings[number % len(routings)][0],
            limits=limits._replace(hand_on=number < asked.prefill_groups),
            swap_s_per_token=swap_seconds(workload),
            repeat=asked.decode_run,
        )
        for number, first in enumerate(range(0, layout.gpus, layout.ep))
    ]


def routing_in_group(
    inputs: Inputs, layout: Layout, pool: Pool, near: Near | None, first: int
) -> tuple[Routing, NDArray[np.int32]]:
    """Routing of the group whose GPUs begin at `first` when nothing is broken; near: of all GPUs,
    needed where experts have copies.
    """
    model = inputs.workload.model
    mine = slice(first, first + layout.ep)
    if near is not None:
        near = Near(near.node[mine], near.latency_s[mine], near.seconds_per_byte[mine])
    return routing_of(
        layout.placement,
        pool,
        model.moe.first_dense_layers,
        model.moe.experts,
        layout.ep,
        np.arange(layout.ep, dtype=np.int32),
        near,
        token_bytes(inputs.workload.transport, "dispatch", model.hidden),
    )


def swap_seconds(workload: Workload) -> float:
    """Seconds to copy a token's KV between a GPU and host memory, over PCIe Gen5 x16 (64 GB/s)."""
    model = workload.model
    size = model.layers * sizes.kv_bytes_per_token_layer(model)
    return float(size / (64e9 * workload.copy_efficiency.pcie))
