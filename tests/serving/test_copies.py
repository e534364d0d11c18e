"""Copies of experts in serving: the nearest one, and what is left of them without some GPUs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from serving.closed_form import ClosedForm

from simulator.engine.homes import Near
from simulator.engine.serving import cluster as clusters
from simulator.engine.serving.cluster import cluster_of
from simulator.engine.serving.copies import routing_of
from simulator.engine.serving.exact import Engine
from simulator.engine.serving.simulate import arrive
from simulator.engine.serving.survival import WAYS, Left, reload, replicas
from simulator.engine.serving.timing import step_seconds
from simulator.policies.placement import Placement, contiguous_owner, copies_of
from simulator.requests.load import load_requests
from simulator.spec.load import load_inputs
from tests.serving.faulty import SMALL, pool

EXPERTS, RANKS = 24, 6


def random_placement(rng: np.random.Generator, layers: int, redundant: int) -> Placement:
    """Every expert once and some again, anywhere."""
    rows = [
        rng.permutation(np.concatenate([np.arange(EXPERTS), rng.integers(0, EXPERTS, redundant)]))
        for _ in range(layers)
    ]
    owner = contiguous_owner(EXPERTS + redundant, RANKS)
    return Placement(np.array(rows, dtype=np.int32), owner)


def distances(rng: np.random.Generator, ranks: int) -> Near:
    """Two nodes, and any times between ranks."""
    seconds = rng.uniform(1e-12, 1e-9, (ranks, ranks))
    np.fill_diagonal(seconds, 0.0)
    node = (np.arange(ranks) * 2 // ranks).astype(np.int32)
    return Near(node, np.zeros((ranks, ranks)), seconds)


@pytest.mark.parametrize("lost", [(), (2,), (0, 5)])
@pytest.mark.parametrize("redundant", [0, 7, 24])
def test_every_rank_takes_the_nearest_copy_that_is_alive(
    redundant: int, lost: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(redundant)
    alive = np.array([rank for rank in range(RANKS) if rank not in lost], dtype=np.int32)
    recorded = pool(layers=3, experts=EXPERTS, k=2)
    recorded = recorded._replace(layer_of=np.array([0, 1, 2, 0, 1], dtype=np.int32))
    near = distances(rng, len(alive))
    for _ in range(3):
        placement = random_placement(rng, 5, redundant)
        left = Left(placement, alive, RANKS, EXPERTS)
        kept = replicas(left)
        if kept is None:
            kept = reload(left)
        assert kept is not None
        routing, evaluation = routing_of(kept, recorded, 1, EXPERTS, RANKS, alive, near, 1e3)
        assert evaluation[0] == -1
        assert len(evaluation) == 6
        for layer, at in enumerate(evaluation[1:]):
            assert routing.recorded[at] == recorded.layer_of[layer]
            for local, rank in enumerate(alive):
                taken = routing.gpu[routing.copy[at, routing.kind[rank]]]
                for expert in range(EXPERTS):
                    has = set(kept.gpu_of[kept.expert_of[layer] == expert].tolist())
                    assert taken[expert] in has
                    if rank in has:
                        assert taken[expert] == rank
                        continue
                    places = [(p, int(np.searchsorted(alive, p))) for p in sorted(has)]
                    cost = {
                        p: (near.node[q] != near.node[local], near.seconds_per_byte[local, q])
                        for p, q in places
                    }
                    assert cost[int(taken[expert])] == min(cost.values())


def test_layers_that_are_alike_are_evaluated_once() -> None:
    placement = Placement(np.arange(EXPERTS, dtype=np.int32)[None], contiguous_owner(EXPERTS, 6))
    recorded = pool(layers=3, experts=EXPERTS, k=2)
    recorded = recorded._replace(layer_of=np.array([0, 1, 2, 0, 1, 2, 0], dtype=np.int32))
    everyone = np.arange(6, dtype=np.int32)
    routing, evaluation = routing_of(placement, recorded, 0, EXPERTS, 6, everyone, None, 1.0)
    assert evaluation.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert routing.copy.shape == (3, 1, EXPERTS)
    assert routing.gpu[routing.copy[0, 0]].tolist() == contiguous_owner(EXPERTS, 6).tolist()
    rows = np.stack([np.arange(EXPERTS), np.arange(EXPERTS)[::-1]])[[0, 1, 0, 0, 1, 0, 0]]
    other = Placement(rows.astype(np.int32), contiguous_owner(EXPERTS, 6))
    routing, evaluation = routing_of(other, recorded, 0, EXPERTS, 6, everyone, None, 1.0)
    pairs = {
        (int(a), int(b)) for a, b in zip(recorded.layer_of, [0, 1, 0, 0, 1, 0, 0], strict=True)
    }
    assert len(routing.recorded) == len(pairs)
    assert len(set(evaluation.tolist())) == len(pairs)


@pytest.mark.parametrize("name", sorted(WAYS))
def test_what_is_left_holds_every_expert_on_gpus_that_are_alive(name: str) -> None:
    rng = np.random.default_rng(7)
    for trial in range(200):
        placement = random_placement(rng, int(rng.integers(1, 4)), int(rng.choice([0, 5, 24])))
        alive = np.sort(rng.permutation(RANKS)[: rng.integers(1, RANKS)]).astype(np.int32)
        left = Left(placement, alive, RANKS, EXPERTS)
        found = WAYS[name](left)
        here = np.isin(placement.gpu_of, alive)
        lacks = (copies_of(Placement(placement.expert_of[:, here], placement.gpu_of[here]), EXPERTS)
                 == 0)  # fmt: skip
        if name == "drain":
            assert found is None
        if name == "replicas":
            assert (found is None) == lacks.any(), trial
        if name in ("reload", "shrink"):
            assert found is not None
        if found is None:
            continue
        assert copies_of(found, EXPERTS).all()
        assert set(found.gpu_of.tolist()) <= set(alive.tolist())
        assert (np.diff(found.gpu_of) >= 0).all()
        if name == "shrink":
            assert copies_of(found, EXPERTS).max() == 1
            counts = np.bincount(found.gpu_of, minlength=RANKS)[alive]
            assert counts.max() - counts.min() <= 1
        if name == "reload":
            rows = min(len(placement.expert_of), len(found.expert_of))
            for layer in range(rows):
                for gpu in alive:
                    before = set(placement.expert_of[layer, placement.gpu_of == gpu].tolist())
                    after = set(found.expert_of[layer, found.gpu_of == gpu].tolist())
                    assert before <= after  # nothing is thrown away
                    assert all(lacks[layer, expert] for expert in after - before)


@pytest.mark.parametrize("placement", ["contiguous", "round-robin", "eplb"])
def test_a_step_with_copies_takes_what_the_step_engine_says(
    tmp_path: Path, placement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "pool_of", lambda *_: pool()._replace(notes=[]))
    overrides = [*SMALL, "parallel.ep=16", f"placement={placement}", "redundant_experts=32"]
    inputs = load_inputs("h100x16-rail", "moe128", overrides, "zipf:1.0", "offline")
    assert inputs.workload.requests is not None
    requests = load_requests(inputs.workload.requests, 0)
    cluster = cluster_of(inputs, requests, 0)
    group = cluster.service.groups[0]
    seen: list[float] = []

    def check(_: object) -> None:
        if len(seen) < 4:
            of = group.of
            compiled = step_seconds(
                of.costs, group.wires, group.routing, group.work, group.speed, of.halves
            )
            engine = Engine(inputs, cluster, 0, "exact")
            assert compiled == pytest.approx(ClosedForm(group, engine).seconds(), rel=1e-9)
            seen.append(engine.seconds(group))
            assert compiled == pytest.approx(seen[-1], rel=0.02)

    cluster.service.on_step = check
    arrive(cluster, requests, None)
    cluster.service.env.run()
    assert len(seen) == 4


def test_copies_in_every_node_leave_nothing_for_the_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clusters, "pool_of", lambda *_: pool()._replace(notes=[]))
    overrides = [*SMALL, "parallel.ep=16", "redundant_experts=128"]
    inputs = load_inputs("h100x16-rail", "moe128", overrides, "uniform", "offline")
    assert inputs.workload.requests is not None
    cluster = cluster_of(inputs, load_requests(inputs.workload.requests, 0), 0)
    routing = cluster.service.groups[0].routing
    for rank in range(16):
        taken = routing.gpu[routing.copy[:, routing.kind[rank]]]
        assert (taken // 8 == rank // 8).all()
