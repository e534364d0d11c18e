"""Groups of real clusters with steps of given requests."""

from __future__ import annotations

import numpy as np

from simulator.engine.serving.cluster import Cluster, cluster_of
from simulator.requests.requests import plain_requests
from simulator.spec.load import Inputs, load_inputs

RESIDENT = ("expert_slots=null", "prefetch=none")
SYSTEMS = {
    "gqa": ("nvswitch16", "moe128", *RESIDENT),
    "windows": ("dgx-h100", "gpt-oss-120b"),
    "low-latency": ("h100x32-rail", "deepseek-v3", "transport=deepep-ll", "parallel.ep=32"),
    "two tiers": ("h100x32-rail", "deepseek-v3", "transport=deepep-normal", "parallel.ep=32"),
    "no graphs": ("dgx-h100", "qwen3-235b-a22b", "model.layers=20", "cuda_graphs=false"),
    "replicas": ("h100x16-rail", "moe128", *RESIDENT, "parallel.ep=8"),
}


def served(
    topology: str,
    workload: str,
    prompt: np.ndarray,
    output: np.ndarray,
    *overrides: str,
    tokens: int = 256,
) -> tuple[Inputs, Cluster]:
    """A cluster with these requests, none of them there yet."""
    given = [
        "requests.source=offline",
        "requests.limit=1",
        "requests.prompt=fixed:1",
        "requests.output=fixed:1",
        f"serving.max_batched_tokens={tokens}",
        "network=coflow",
        *overrides,
    ]
    inputs = load_inputs(topology, workload, given)
    requests = plain_requests(np.zeros(len(prompt)), prompt, output, "made up")
    return inputs, cluster_of(inputs, requests, 0)


def decoding(cluster: Cluster, group: int, per_rank: int, context: int) -> None:
    """Give each rank of a group so many requests that generate with `context` keys."""
    of = cluster.service.groups[group]
    ledger = of.ledger
    for request in range(per_rank * of.of.ranks):
        ledger.made[request] = 1
        ledger.done[request] = context - 1
        ledger.prompt[request] = context - 1
        of.enqueue(request, request % of.of.ranks)
