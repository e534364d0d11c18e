"""Tokens by transport: in two tiers, once per expert, RDMA only, against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from engine.harness import Run, run, small
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.graph import build_graph, gpus
from simulator.engine.collectives import counted, dispatch_two_tier
from simulator.engine.ranks import ranks_of
from simulator.engine.tiers import tiers_of
from simulator.errors import InputError
from simulator.routing.batches import synthesize
from simulator.routing.traffic import traffic
from simulator.spec.load import Inputs, load_topology
from simulator.spec.transport import load_transport

NODES = np.array([0] * 8 + [1] * 8)


def by_hand(ids: np.ndarray, source: np.ndarray, owner: np.ndarray, node: np.ndarray, ep: int):
    """Tokens sent [gpus, gpus], token by token: once to the landing GPU of each other node, from
    there once to each GPU that needs it.
    """
    sent = np.zeros((len(node), len(node)), dtype=int)
    for token, gpu in zip(ids.tolist(), source.tolist(), strict=True):
        first = gpu // ep * ep
        wanted = {first + int(owner[expert]) for expert in token}
        for there in {int(node[g]) for g in wanted}:
            members = [g for g in range(first, first + ep) if node[g] == there]
            mine = [g for g in range(first, first + ep) if node[g] == node[gpu]]
            gate = gpu if there == node[gpu] else members[mine.index(gpu) % len(members)]
            if gate != gpu:
                sent[gpu, gate] += 1
            for target in wanted:
                if node[target] == there and target != gate:
                    sent[gate, target] += 1
    return sent


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([([4, 4], 8), ([2, 2, 2, 2], 4), ([3, 1], 4), ([8], 4), ([1] * 6, 6)]),
)
def test_tokens_sent_in_two_tiers_are_those_counted_one_by_one(
    seed: int, shape: tuple[list[int], int]
):
    members, ep = shape
    node = np.repeat(np.arange(len(members)), members).astype(np.int32)
    rng = np.random.default_rng(seed)
    experts, k, each = int(rng.integers(ep, 3 * ep)), 3, int(rng.integers(1, 6))
    owner = (np.arange(experts) * ep // experts).astype(np.int32)
    source = np.repeat(np.arange(len(node), dtype=np.int32), each)
    ids = np.stack([rng.permutation(experts)[:k] for _ in source]).astype(np.int16)
    pairs = traffic(ids, source, owner, ep, len(node))[1]
    sent = tiers_of(node, owner, ep).sent(ids, source, pairs)
    np.fill_diagonal(sent, 0)
    assert sent.tolist() == by_hand(ids, source, owner, node, ep).tolist()


def test_a_run_and_the_collective_send_the_same_bytes():
    ranks = ranks_of(build_graph(load_topology("h100x16-rail")))
    rng = np.random.default_rng(3)
    owner = np.repeat(np.arange(16, dtype=np.int32), 4)
    source = np.repeat(np.arange(16, dtype=np.int32), 8)
    ids = np.stack([rng.permutation(64)[:4] for _ in source]).astype(np.int16)
    phase = dispatch_two_tier(ranks, counted(ranks, ids, source, owner, "node"), 10.0)[0]
    wanted = np.zeros((16, 16))
    np.add.at(wanted, (phase.source, phase.target), phase.message_bytes * phase.messages)
    pairs = traffic(ids, source, owner, 16, 16)[1]
    sent = tiers_of(ranks.node, owner, 16).sent(ids, source, pairs)
    np.fill_diagonal(sent, 0)
    assert (10.0 * sent).tolist() == wanted.tolist()


def inputs(transport: str, **changes: object) -> Inputs:
    wanted = {
        "model.moe": "{experts: 64, top_k: 4, intermediate: 48}",
        "traffic.tokens_per_gpu": 6,
        "transport": transport,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return small(wanted, "uniform", "h100x16-rail")


def drawn(given_to: Inputs) -> list[np.ndarray]:
    """The ids [tokens, k] of each layer of the only step, and whose tokens they are."""
    model = given_to.workload.model
    batch = next(synthesize("uniform", 16, 6, "decode", model.layers, 64, 4, 0))
    return [*(batch.ids[:, layer] for layer in range(model.layers)), batch.source_gpu]


@pytest.fixture(scope="module")
def two_tiers() -> tuple[Inputs, Run]:
    given_to = inputs("deepep-normal")
    return given_to, run(given_to)


def test_spans_and_links_carry_what_two_tiers_send(two_tiers: tuple[Inputs, Run]):
    given_to, found = two_tiers
    *layers, source = drawn(given_to)
    owner = np.repeat(np.arange(16, dtype=np.int32), 4)
    transport = load_transport("deepep-normal")
    hidden = given_to.workload.model.hidden
    token = hidden * transport.dispatch_bytes_per_element + transport.dispatch_header_bytes
    back = hidden * transport.combine_bytes_per_element + transport.combine_header_bytes
    network = 0.0
    for layer, ids in enumerate(layers):
        sent = by_hand(ids, source, owner, NODES, 16)
        for kind, tokens, size in (("dispatch", sent, token), ("combine", sent.T, back)):
            spans = found.where(layer=layer, kind=kind)
            total = np.bincount(spans["gpu"], spans["bytes"], minlength=16)
            assert total == pytest.approx(tokens.sum(axis=1) * size, rel=1e-12)
        abroad = NODES[:, None] != NODES[None, :]
        network += sent[abroad].sum() * (token + back)
    # Same rail, so one leaf: from a NIC to it, and from it to the other NIC.
    assert found.links["bytes"][found.links["kind"] == "network"].sum() == pytest.approx(
        2 * network, rel=1e-12
    )


def test_experts_wait_for_what_lands_on_their_node_and_results_for_their_node(
    two_tiers: tuple[Inputs, Run],
):
    given_to, found = two_tiers
    for layer in range(given_to.workload.model.layers):
        sends = found.where(layer=layer, kind="dispatch")
        experts = found.where(layer=layer, kind="experts")
        back = found.where(layer=layer, kind="combine")
        for node in (0, 1):
            inside = NODES[experts["gpu"]] == node
            from_afar = sends["end_s"][NODES[sends["gpu"]] != node]
            assert experts["start_s"][inside].min() >= from_afar.min()
            begun = back["ready_s"][NODES[back["gpu"]] == node]
            assert (begun >= experts["end_s"][inside].max()).all()


def test_two_tiers_end_alike_with_coflows(two_tiers: tuple[Inputs, Run]):
    coflow = run(inputs("deepep-normal", network="coflow"))
    assert coflow.end_s == pytest.approx(two_tiers[1].end_s, rel=0.05)
    assert coflow.links["bytes"].tolist() == two_tiers[1].links["bytes"].tolist()


def test_rdma_only_leaves_nvlink_alone():
    given_to = inputs("deepep-ll-rdma")
    found = run(given_to)
    *layers, source = drawn(given_to)
    owner = np.repeat(np.arange(16), 4)
    # Once per (token, expert), but not to itself.
    choices = sum(int((owner[ids] != source[:, None]).sum()) for ids in layers)
    transport = load_transport("deepep-ll-rdma")
    hidden = given_to.workload.model.hidden
    size = hidden * (1.03125 + 2.0) + transport.dispatch_header_bytes
    carried = dict(zip(found.links["link"], found.links["bytes"], strict=True))
    assert not any(value for link, value in carried.items() if "nvswitch" in link)
    out = sum(value for link, value in carried.items() if link.startswith("gpu"))
    assert out == pytest.approx(choices * size, rel=1e-12)


def test_rdma_only_and_fetches_from_host_memory_share_the_pcie_links():
    found = run(inputs("deepep-ll-rdma", expert_slots=2))
    carried = dict(zip(found.links["link"], found.links["bytes"], strict=True))
    dispatched = found.where(kind="dispatch")["bytes"].sum()
    fetched = found.where(kind="demand")["bytes"].sum()
    combined = found.where(kind="combine")["bytes"].sum()
    inward = sum(value for link, value in carried.items() if "-> gpu" in link)
    assert fetched > 0.0
    assert inward == pytest.approx(dispatched + combined + fetched, rel=1e-12)


def test_a_run_does_not_stage_through_host_memory():
    with pytest.raises(InputError, match="staged through host memory, which a run does not model"):
        run(inputs("mpi"))


def test_a_transport_without_costs_of_dispatch_is_refused(tmp_path):
    (tmp_path / "t.yaml").write_text("name: t\ncosts: {allreduce: {ring: {launch: 1 us}}}\n")
    with pytest.raises(InputError, match="no costs for 'dispatch'; it has allreduce"):
        run(inputs(str(tmp_path / "t.yaml")))


def test_gpus_are_in_nodes_of_eight():
    assert ranks_of(build_graph(load_topology("h100x16-rail"))).node.tolist() == NODES.tolist()
    assert len(gpus(build_graph(load_topology("h100x16-rail")))) == 16
