"""A small cluster that breaks: two layers of moe128 on HGX nodes, drawn requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from simulator.engine.serving import simulate
from simulator.engine.serving.cluster import Cluster, cluster_of
from simulator.engine.serving.faults import Timeline
from simulator.engine.serving.pool import Pool
from simulator.engine.serving.scheduler import GENERATED_TOKENS
from simulator.engine.serving.service import FAILED, FINISHED, PENDING, REJECTED
from simulator.engine.serving.simulate import arrive, timeline_of
from simulator.requests.load import load_requests
from simulator.spec.load import Inputs, load_inputs

SMALL = [
    "model.layers=2",
    "network=coflow",
    "expert_slots=null",
    "prefetch=none",
    "overlap=none",
    "requests.prompt=fixed:64",
    "requests.output=uniform:1:40",
    "requests.limit=40",
    "serving.max_batched_tokens=256",
]


def inputs_of(
    folder: Path,
    faults: list[dict[str, Any]],
    *overrides: str,
    topology: str = "h100x16-rail",
    requests: str = "poisson:2000",
    member_loss: list[str] | None = None,
) -> Inputs:
    """Inputs with a timeline, by way of a file."""
    path = folder / "faults.yaml"
    said: dict[str, Any] = {"faults": faults}
    if member_loss is not None:
        said["on_member_loss"] = member_loss
    path.write_text(yaml.safe_dump(said, sort_keys=False))
    return load_inputs(topology, "moe128", [*SMALL, *overrides], "uniform", requests, str(path))


def pool(layers: int = 2, experts: int = 128, k: int = 4, tokens: int = 512) -> Pool:
    """Choices drawn evenly, quick to have."""
    rng = np.random.default_rng(1)
    ids = rng.permuted(np.tile(np.arange(experts), (tokens * layers, 1)), axis=1)[:, :k]
    return Pool(
        np.ascontiguousarray(ids.reshape(tokens, layers, k).astype(np.int16)),
        np.arange(0, tokens, 64),
        np.full(tokens // 64, 64, dtype=np.int32),
        np.arange(layers, dtype=np.int32),
        [],
    )


def served(inputs: Inputs, seed: int = 0, checked: bool = True) -> tuple[Cluster, Timeline]:
    """Serve to the end, as `simulate.serve` does, with a look at every KV cache after each step."""
    assert inputs.workload.requests is not None
    requests = load_requests(inputs.workload.requests, seed)
    cluster = cluster_of(inputs, requests, seed)
    timeline = timeline_of(inputs, cluster, seed)
    assert timeline is not None

    def look(_: object) -> None:
        for group in cluster.service.groups:
            assert (group.ranks.free >= 0).all()
            assert (group.ranks.free <= group.of.limits.blocks).all()

    if checked:
        cluster.service.on_step = look
    timeline.begin()
    arrive(cluster, requests, None)
    cluster.service.env.run()
    while cluster.service.left and timeline.end():
        cluster.service.env.run()
    return cluster, timeline


def check_closed(cluster: Cluster) -> None:
    """Every request has one end; what was generated is what they have and what was wasted."""
    service = cluster.service
    of, ledger = service.of, service.ledger
    assert service.left == 0
    assert not (of.outcome == PENDING).any()
    counts = [(of.outcome == end).sum() for end in (FINISHED, FAILED, REJECTED)]
    assert sum(counts) == len(of.outcome)
    finished = of.outcome == FINISHED
    assert (ledger.made[finished] == ledger.output[finished]).all()
    assert (ledger.made <= ledger.output).all()
    generated = sum(int(group.ranks.totals[GENERATED_TOKENS]) for group in service.groups)
    assert generated == int(ledger.made.sum()) + int(of.wasted.sum())
    assert (of.finish_s >= of.arrival_s).all()
    for group in service.groups:
        assert (group.ranks.busy == 0).all()
        assert (group.ranks.waiting == 0).all()
        assert (group.ranks.free == group.of.limits.blocks).all()


__all__ = ["check_closed", "inputs_of", "pool", "served", "simulate"]
