"""Placement by expected communication cost over the bandwidths and latencies between GPUs.

Copies are counted as in `balanced` and taken heaviest first; each goes to the GPU g, among those
with room and without that expert, where this is least:

    (tokens of g + tokens of the copy) x arrival(g)
        + tokens of the expert x mean over sources s of min(cost(s, c), copies c so far and g)

    cost(s, g) = bytes per token x seconds per byte(s, g) + latency(s, g) / ROWS
    arrival(g) = mean over s of cost(s, g)

Tokens come equally from all GPUs, and an expert's tokens are split evenly over its copies. The
first line is the time in which all that g computes reaches it, one token after the other: load
imbalance, dearer on a GPU that is badly wired. The second is how long the expert's tokens travel
to the nearest copy: it sends further copies to where the expert is far. Both are token-seconds, so
there is no weight between them. Where all GPUs are wired alike this is LPT, as `balanced`.
"""

from __future__ import annotations

import numpy as np

from simulator.policies.balanced import dealt
from simulator.policies.placement_types import FloatArray, Placement, Target

ROWS = 1024
"""Rows that share one latency: what a GPU is sent for one layer of a decode step with 128 tokens
per GPU, top-8 (the setting of the low-latency tables in DeepEP's README)."""

# Without figures of a topology: NVLink within a node and one NIC per GPU between nodes.
NVLINK_BYTES_PER_S = 450e9  # NVIDIA H100 datasheet (2023): 900 GB/s is the sum of both directions
NIC_BYTES_PER_S = 50e9  # NVIDIA ConnectX-7, NDR 400 Gb/s
TOKEN_BYTES = 7168.0  # hidden size of DeepSeek-V3 (arXiv 2412.19437) in FP8, one byte each


def topology_aware(loads: FloatArray, target: Target) -> Placement:
    """Greedy by the cost above; loads: float64 [layers, experts].

    Without bandwidths in the target, two levels are assumed: NVLink within a node, one 400 Gb/s
    NIC per GPU between nodes.
    """
    cost = token_cost_s(target)
    arrival = cost.mean(axis=0)
    if not arrival.all():  # GPUs that cost nothing to reach: only the load counts
        return dealt(loads, target)
    return dealt(loads, target, arrival / arrival.mean(), cost / arrival.mean())


def token_cost_s(target: Target) -> FloatArray:
    """Seconds that a token takes from source to target GPU, float64 [gpus, gpus]."""
    size = target.bytes_per_token or TOKEN_BYTES
    latency_s = np.zeros((1, 1)) if target.latency_s is None else target.latency_s
    seconds_per_byte = target.seconds_per_byte
    if seconds_per_byte is None:
        same = target.node_of[:, None] == target.node_of[None, :]
        seconds_per_byte = np.where(same, 1 / NVLINK_BYTES_PER_S, 1 / NIC_BYTES_PER_S)
        np.fill_diagonal(seconds_per_byte, 0.0)
    cost: FloatArray = size * seconds_per_byte + latency_s / ROWS
    return cost
