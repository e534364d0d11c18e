"""DeepSeek's expert-parallel load balancer (EPLB): copies of hot experts, packed onto GPUs.

Written from the description in its README (github.com/deepseek-ai/EPLB) and arXiv 2412.19437,
section 3.4. In three steps, each greedy:

1. Groups of experts go to nodes, equal numbers to each: the heaviest left to the lightest node.
2. Within each node, every slot that is left goes to the expert with the most tokens per copy.
3. Copies go to the GPUs of the node as groups went to nodes.

This is its hierarchical policy, taken where the nodes divide the groups. Else its global policy:
one group and one node. Loads are float32 and ties go to the lower index, as they do there.
"""

from __future__ import annotations

import numpy as np

from simulator.errors import InputError
from simulator.policies.placement_types import FloatArray, Placement, Target, even_shares


def eplb(loads: FloatArray, target: Target) -> Placement:
    """EPLB's answer to loads float64 [layers, experts], slot by slot.

    Two copies of an expert may share a GPU, as they may there. Raises InputError if the GPUs do
    not divide the slots, or groups or nodes do not divide what they must.
    """
    experts = loads.shape[1]
    groups, nodes = target.groups, target.nodes
    per_node = np.bincount(target.node_of, minlength=nodes)
    if target.physical % target.gpus:
        short = target.physical // target.gpus * target.gpus
        nearest = short if short >= experts else short + target.gpus
        raise InputError(
            f"eplb: {target.physical} physical experts are no multiple of {target.gpus} GPUs; "
            f"write {nearest}, or take the policy balanced"
        )
    if groups < 1 or experts % groups:
        raise InputError(
            f"eplb: {groups} groups do not divide {experts} experts; write a divisor of {experts}"
        )
    hierarchical = groups % nodes == 0
    if not hierarchical:
        groups, nodes = 1, 1
    elif (per_node != per_node[0]).any():
        raise InputError(
            f"eplb: {target.gpus} GPUs are not spread evenly over {nodes} nodes; write nodes that "
            "divide them, or groups that the nodes do not divide"
        )

    from simulator.policies.placement_kernels import eplb_layers

    # EPLB numbers GPUs node by node; a cluster need not.
    numbered = np.argsort(target.node_of, kind="stable") if hierarchical else np.arange(target.gpus)
    found = eplb_layers(loads.astype(np.float32), target.physical, groups, nodes, target.gpus)
    by_gpu = np.empty((len(loads), target.gpus, target.physical // target.gpus), np.int32)
    by_gpu[:, numbered] = found.reshape(by_gpu.shape)
    return Placement(by_gpu.reshape(found.shape), even_shares(target.physical, target.gpus))
