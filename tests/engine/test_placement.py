"""Where experts are in a run: nearest copies, what is sent and computed, what must not change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine.harness import Run, run, small, write_trace
from engine.test_tiers import by_hand
from hypothesis import given
from hypothesis import strategies as st

from simulator.cluster.graph import build_graph, gpus
from simulator.engine import layout as layouts
from simulator.engine import simulate
from simulator.engine.homes import Near, homes_of, near_of
from simulator.engine.layout import gpu_memory, layout_of, serves_of
from simulator.engine.ranks import ranks_of
from simulator.engine.tiers import tiers_of
from simulator.errors import InputError
from simulator.policies.placement import PLACEMENTS, Placement
from simulator.routing.traffic import pick_slots, traffic
from simulator.spec.load import load_topology

TWO_NODES = {
    "parallel.ep": 16,
    "model.layers": 3,
    "model.moe": "{experts: 32, top_k: 4, intermediate: 48, first_dense_layers: 1}",
    "model.dense_intermediate": 64,
    "traffic.steps": 2,
}


def on_rails(overrides: dict[str, Any], routing: str | Path = "zipf:1.0", seed: int = 0) -> Run:
    return run(small(TWO_NODES | overrides, routing, "h100x16-rail"), seed)


def alike(node: list[int], ep: int, far: float = 10.0) -> Near:
    """Distances of 1 within a node and `far` between nodes."""
    nodes = np.array(node, dtype=np.int32)
    gpu = np.arange(len(node))
    other = gpu[:, None] // ep * ep + np.arange(ep)
    cost = np.where(nodes[other] == nodes[:, None], 1.0, far)
    cost[other == gpu[:, None]] = 0.0
    return Near(nodes, cost, np.zeros_like(cost))


@st.composite
def placed(draw: st.DrawFn) -> tuple[Placement, int, Near]:
    """A placement in two layers, its experts, and distances."""
    shapes = [([0, 0, 1, 1], 4), ([0, 0, 0, 0], 4), ([0, 0, 1, 1], 2)]
    shapes += [([0, 0, 0, 1, 1, 1], 3), ([0, 1, 2, 0, 1, 2], 6)]
    node, ep = draw(st.sampled_from(shapes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    experts = draw(st.integers(1, 8))
    physical = draw(st.integers(max(experts, ep), max(experts, ep) + 6))
    more = rng.integers(0, experts, (2, physical - experts))
    slots = np.concatenate([np.tile(np.arange(experts), (2, 1)), more], axis=1)
    expert_of = np.stack([rng.permutation(row) for row in slots]).astype(np.int32)
    gpu_of = np.sort(rng.integers(0, ep, physical)).astype(np.int32)
    return Placement(expert_of, gpu_of), experts, alike(node, ep)


@given(placed())
def test_a_token_goes_to_the_nearest_copy(case: tuple[Placement, int, Near]):
    placement, experts, near = case
    homes, home_of = homes_of(placement, experts, near, 1.0, False)
    for layer, expert_of in enumerate(placement.expert_of):
        home = homes[home_of[layer]]
        for expert in range(experts):
            held = set(placement.gpu_of[expert_of == expert].tolist())
            if home.copies is None:
                assert held == {int(home.owner[expert])}
                continue
            taken = []
            for gpu in range(len(near.node)):
                slot = home.copies.nearest[gpu, expert]
                assert expert_of[slot] == expert
                local = int(placement.gpu_of[slot])
                taken.append(local)
                first = gpu // near.ep * near.ep
                there = near.node[[first + h for h in held]]
                if gpu - first in held:
                    assert local == gpu - first, "a copy of its own"
                elif near.node[gpu] in there:
                    assert near.node[first + local] == near.node[gpu], "a copy on its node"
                costs = near.latency_s[gpu]
                assert costs[local] == min(costs[h] for h in held)
            a, b = home.copies.ptr[expert : expert + 2]
            assert {int(placement.gpu_of[s]) for s in home.copies.slots[a:b]} == held
            assert b - a == len(held), "a second copy on one GPU is not a choice"


def test_gpus_that_are_as_far_from_two_copies_are_dealt_to_both():
    # Expert 0 on GPU 0 and GPU 1 of node 0; the six GPUs of the other nodes are as far from both.
    near = alike([0, 0, 1, 1, 1, 2, 2, 2], 8)
    expert_of = np.array([[0, 0, 1, 2, 3, 4, 5, 6]], dtype=np.int32)
    placement = Placement(expert_of, np.arange(8, dtype=np.int32))
    homes, _ = homes_of(placement, 7, near, 1.0, False)
    assert homes[0].copies is not None
    assert homes[0].copies.nearest[:, 0].tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    # Where one is nearer, it is taken.
    near.latency_s[5, 1] = 9.0
    homes, _ = homes_of(placement, 7, near, 1.0, False)
    assert homes[0].copies is not None
    assert homes[0].copies.nearest[5, 0] == 1


def test_on_rails_the_copy_on_the_own_rail_is_nearest():
    graph = build_graph(load_topology("h100x32-rail"))
    names = gpus(graph)
    near = near_of(graph, names, ranks_of(graph).node, 32, None)
    cost = near.cost_s(7168.0)
    for gpu in (0, 9, 31):
        assert cost[gpu, gpu] == 0.0
        mine = np.flatnonzero(near.node == near.node[gpu])
        others = np.flatnonzero(near.node != near.node[gpu])
        rail = others[others % 8 == gpu % 8]
        assert cost[gpu, mine].max() < cost[gpu, rail].min()
        assert cost[gpu, rail].max() < cost[gpu, np.setdiff1d(others, rail)].min()


def test_layers_with_the_same_experts_share_their_homes():
    expert_of = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [0, 1, 2, 3]], dtype=np.int32)
    placement = Placement(expert_of, np.array([0, 0, 1, 1], dtype=np.int32))
    homes, home_of = homes_of(placement, 4, None, 1.0, False)
    assert home_of.tolist() == [0, 1, 0]
    assert [home.owner.tolist() for home in homes] == [[0, 0, 1, 1], [1, 1, 0, 0]]


@given(placed(), st.booleans(), st.integers(0, 2**32 - 1))
def test_two_tiers_hand_on_to_the_copies_that_were_chosen(
    case: tuple[Placement, int, Near], least: bool, seed: int
):
    placement, experts, near = case
    homes, _ = homes_of(placement, experts, near, 1.0, least)
    copies = homes[0].copies
    if copies is None:
        return
    rng = np.random.default_rng(seed)
    count = len(near.node)
    source = np.repeat(np.arange(count, dtype=np.int32), 3)
    ids = np.stack([rng.permutation(experts)[: min(2, experts)] for _ in source]).astype(np.int16)
    slots = pick_slots(ids, source, copies, near.ep)
    pairs = traffic(slots, source, copies.owner, near.ep, count)[1]
    sent = tiers_of(near.node, homes[0].owner, near.ep).sent(slots, source, pairs, copies.owner)
    np.fill_diagonal(sent, 0)
    wanted = by_hand(slots, source, copies.owner, near.node, near.ep)
    assert sent.tolist() == wanted.tolist()


# --- whole runs --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "end_s", "link_bytes", "spans", "begins_s", "rows"),
    [
        (
            ({"traffic.steps": 2, "parallel.ep": 2}, "zipf:1.0", "nvswitch16"),
            *(0.0002199868079986534, 24576.0, 72, 0.008027888681833815, 1934),
        ),
        (
            (
                {
                    "overlap": "two-batch",
                    "transport": "deepep-normal",
                    "parallel.ep": 16,
                    "model.moe": "{experts: 32, top_k: 4, intermediate: 48}",
                    "model.layers": 3,
                },
                "markov:0.5",
                "h100x16-rail",
            ),
            *(0.000514282218602653, 462884.0, 416, 0.10770789577996881, 153630),
        ),
        (
            (
                {"expert_slots": 1, "prefetch": "learned", "model.layers": 4, "traffic.steps": 3},
                "power-law:1.2",
                "nvswitch16",
            ),
            *(0.0006725820773105605, 2163200.0, 278, 0.08575766799165134, 7256),
        ),
    ],
)
def test_without_the_keys_of_placement_nothing_has_changed(
    given_: tuple[Any, str, str], end_s: float, link_bytes: float, spans: int, begins_s: float,
    rows: int,
):  # fmt: skip
    """Figures that the tree had before there were placements; times have since moved with the fits
    of kernels and transports, bytes, spans and rows have not.
    """
    found = run(small(*given_), 5)
    assert found.end_s == pytest.approx(end_s, rel=1e-12)
    assert found.links["bytes"].sum() == link_bytes
    assert len(found.spans["step"]) == spans
    assert found.spans["start_s"].sum() == pytest.approx(begins_s, rel=1e-12)
    loads = found.loads
    assert (loads["rows"] * (loads["gpu"] + 1) * (loads["expert"] + 3)).sum() == rows


def placement_file(path: Path, expert_of: np.ndarray, gpu_of: np.ndarray, gpus: int) -> Path:
    path.write_text(
        json.dumps({"gpus": gpus, "expert_of": expert_of.tolist(), "gpu_of": gpu_of.tolist()})
    )
    return path


@pytest.mark.parametrize("transport", ["nccl", "deepep-normal", "deepep-ll"])
def test_experts_in_order_by_way_of_a_file_are_the_same_run(tmp_path: Path, transport: str):
    order = np.arange(32, dtype=np.int32)
    file = placement_file(tmp_path / "order.json", order[None], order // 2, 16)
    given_ = {"transport": transport, "overlap": "two-batch"}
    usual = on_rails(given_)
    read = on_rails(given_ | {"placement": file})
    assert read.span_bytes == usual.span_bytes
    assert read.links["bytes"].tolist() == usual.links["bytes"].tolist()
    # A second copy that no GPU is nearest to changes nothing either: GPU 0 has expert 0 twice.
    twice = np.concatenate([[0], order]).astype(np.int32)
    owner = np.concatenate([[0], order // 2]).astype(np.int32)
    file = placement_file(tmp_path / "twice.json", twice[None], owner, 16)
    again = on_rails(given_ | {"placement": file, "redundant_experts": 1})
    assert again.span_bytes == usual.span_bytes


@pytest.mark.parametrize(
    ("copies", "choice"), [(0, "nearest"), (16, "nearest"), (16, "least-loaded")]
)
@pytest.mark.parametrize("policy", PLACEMENTS)
def test_every_choice_is_computed_once_wherever_experts_are(policy: str, copies: int, choice: str):
    given_ = {"transport": "deepep-normal", "routing.source": "zipf:1.0"}
    usual = on_rails(given_)
    keys = {"placement": policy, "redundant_experts": copies, "replica_choice": choice}
    found = on_rails(given_ | keys)

    def taken(one: Run) -> np.ndarray:
        return np.bincount(
            one.loads["layer"] * 32 + one.loads["expert"], one.loads["rows"], minlength=96
        )

    assert taken(found).tolist() == taken(usual).tolist()
    assert taken(found).sum() == 2 * 2 * 16 * 4 * 4  # steps, MoE layers, GPUs, tokens, choices
    sent = {kind: found.where(kind=kind)["rows"].sum() for kind in ("dispatch", "combine")}
    assert sent["dispatch"] == sent["combine"] > 0


def test_an_expert_is_computed_only_where_a_slot_has_it(monkeypatch: pytest.MonkeyPatch):
    kept: list[Any] = []
    usual = simulate.layout_of

    def spy(*given_: Any) -> Any:
        kept.append(usual(*given_))
        return kept[-1]

    monkeypatch.setattr(simulate, "layout_of", spy)
    found = on_rails({"placement": "eplb", "redundant_experts": 16})
    serves = kept[-1].serves
    loads = found.loads
    assert serves[loads["layer"] - 1, loads["gpu"], loads["expert"]].all()
    assert (serves.any(axis=1)).all()
    assert serves.sum(axis=2).max() <= 3
    several = serves.sum(axis=1) > 1
    used = np.zeros_like(serves)
    used[loads["layer"] - 1, loads["gpu"], loads["expert"]] = True
    assert (used.sum(axis=1)[several] > 1).any(), "some expert is computed in two places"


def test_copies_nearby_save_bytes_between_nodes():
    """A copy of every expert on both nodes: nothing crosses the network."""
    crossing = []
    for copies, policy in ((0, "contiguous"), (32, "contiguous")):
        found = on_rails({"placement": policy, "redundant_experts": copies, "transport": "nccl"})
        crossing.append(found.links["bytes"][found.links["kind"] == "network"].sum())
    assert crossing[0] > 0
    assert crossing[1] == 0


@pytest.mark.parametrize("transport", ["nccl", "deepep-normal"])
def test_the_numbers_of_experts_mean_nothing(tmp_path: Path, transport: str):
    rng = np.random.default_rng(4)
    ids = np.stack(
        [np.stack([rng.permutation(32)[:4] for _ in range(2)]) for _ in range(64)]
    )  # [tokens, layers, k]
    name = rng.permutation(32)
    plain = write_trace(tmp_path / "plain.parquet", ids, 32, [0] * 64)
    renamed = write_trace(tmp_path / "renamed.parquet", name[ids], 32, [0] * 64)
    slots = np.concatenate([np.arange(32), np.arange(0, 32, 2)])
    gpu = np.concatenate([np.arange(32) // 2, (np.arange(0, 32, 2) // 2 + 8) % 16])
    order = np.argsort(gpu, kind="stable")
    given_ = {"transport": transport, "redundant_experts": 16, "traffic.phase": "prefill"}
    runs = []
    for trace, experts in ((plain, slots), (renamed, name[slots])):
        expert_of = experts[order][None].astype(np.int32)
        path = tmp_path / f"{trace.stem}.json"
        placement_file(path, expert_of, gpu[order], 16)
        runs.append(on_rails(given_ | {"placement": path}, trace))
    one, other = runs
    assert other.end_s == pytest.approx(one.end_s, rel=1e-12)
    assert other.links["bytes"].tolist() == one.links["bytes"].tolist()
    for kind in ("dispatch", "combine", "experts"):
        a, b = one.where(kind=kind), other.where(kind=kind)
        assert np.sort(a["rows"]).tolist() == np.sort(b["rows"]).tolist()


def test_eplb_evens_out_a_skewed_run():
    """Max/mean rows of GPUs, as a policy that sees the law beforehand lowers it."""

    def of(keys: dict[str, Any]) -> float:
        given_ = {"traffic.tokens_per_gpu": 64, "transport": "deepep-normal"}
        loads = on_rails(given_ | keys, "zipf:0.5").loads
        rows = np.zeros((3, 16))
        np.add.at(rows, (loads["layer"], loads["gpu"]), loads["rows"])
        return float((rows[1:].max(axis=1) / rows[1:].mean(axis=1)).mean())

    usual, balanced = of({}), of({"placement": "balanced"})
    copies = {"placement": "eplb", "redundant_experts": 16}
    nearest = of(copies)
    least_loaded = of(copies | {"replica_choice": "least-loaded"})
    assert usual > 1.8
    assert balanced < 0.95 * usual
    assert nearest < 0.75 * balanced
    assert least_loaded < 1.1


def test_layers_that_replay_one_recorded_layer_may_have_their_experts_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One recorded layer, two MoE layers: experts of the second the other way round."""
    order = np.arange(32, dtype=np.int32)
    file = placement_file(tmp_path / "two.json", np.stack([order, order[::-1]]), order // 2, 16)
    ids = np.stack([np.random.default_rng(1).permutation(32)[:4] for _ in range(64)])[:, None]
    trace = write_trace(tmp_path / "one.parquet", ids, 32, list(range(64)))
    tables: list[int] = []
    usual = simulate.cut

    def spy(*given_: Any) -> Any:
        parts = usual(*given_)
        tables.append(len(parts[0].chunks[0]))
        return parts

    monkeypatch.setattr(simulate, "cut", spy)
    found = on_rails({"placement": file}, trace)
    same = on_rails({}, trace)
    assert tables == [2, 2, 1, 1]
    for layer, of in ((1, order // 2), (2, (31 - order) // 2)):
        mine = found.loads["layer"] == layer
        assert (found.loads["gpu"][mine] == of[found.loads["expert"][mine]]).all()
    total = [np.bincount(one.loads["expert"], one.loads["rows"]) for one in (found, same)]
    assert total[0].tolist() == total[1].tolist()


def test_a_placement_of_the_recorded_layers_holds_for_those_that_replay_them(tmp_path: Path):
    """Four MoE layers replay two recorded ones in turn; experts of the second are turned round."""
    order = np.arange(32, dtype=np.int32)
    ids = np.stack(
        [[np.random.default_rng(i + n).permutation(32)[:4] for n in (0, 99)] for i in range(64)]
    )
    trace = write_trace(tmp_path / "two.parquet", ids, 32, list(range(64)))
    both = np.stack([order, order[::-1]])
    file = placement_file(tmp_path / "two.json", both, order // 2, 16)
    five = {"model.layers": 5, "placement": file}
    found = on_rails(five, trace)
    for layer in (1, 2, 3, 4):
        of = order // 2 if layer % 2 else (31 - order) // 2
        mine = found.loads["layer"] == layer
        assert mine.any()
        assert (found.loads["gpu"][mine] == of[found.loads["expert"][mine]]).all()
    with pytest.raises(InputError, match="wanted the 4 MoE layers"):
        on_rails(five, "uniform")


@pytest.mark.parametrize("policy", ["balanced", "eplb"])
def test_slots_hold_experts_that_a_placement_gives_a_gpu(policy: str):
    """Offloaded: what a GPU fetches is what its slots in that layer may have to compute."""
    keys = {"placement": policy, "redundant_experts": 16, "expert_slots": 1}
    found = on_rails(keys, seed=3)
    fetched = found.where(kind="demand")
    assert len(fetched["gpu"])
    loads = found.loads
    computed = set(zip(loads["layer"], loads["gpu"], loads["expert"], strict=True))
    assert set(zip(fetched["layer"], fetched["gpu"], fetched["expert"], strict=True)) == computed
    with pytest.raises(InputError, match="expert_slots: 4 per layer, but a GPU serves 3"):
        on_rails(keys | {"expert_slots": 4})


# --- memory, and what is refused -----------------------------------------------------------


def test_copies_take_memory():
    inputs = small(TWO_NODES, "zipf:1.0", "h100x16-rail")
    each = 3 * 64 * 48 * 2.0 * 2  # three matrices, BF16, two MoE layers
    for copies, slots in ((0, 2), (16, 3), (1, 3)):
        workload = inputs.workload.model_copy(update={"redundant_experts": copies})
        layout = layout_of(workload, 16, "t")
        parts = [gpu_memory(workload, layout, gpu)["experts"] for gpu in range(16)]
        assert max(parts) == slots * each
        assert sum(parts) == (32 + copies) * each


def test_what_gpus_serve_is_alike_in_all_groups():
    placement = Placement(np.array([[0, 1, 0]], dtype=np.int32), np.array([0, 0, 1], np.int32))
    serves = serves_of(placement, 4, 2, 2)
    assert serves[0].tolist() == [[True, True], [True, False]] * 2


@pytest.mark.parametrize(
    ("given_", "what"),
    [
        ({"placement": "evenly"}, "not a known placement"),
        ({"placement": "missing.json"}, "placement: no such file 'missing.json'"),
        ({"placement": "balanced", "placement_loads": "none.npy"}, "placement_loads: no such file"),
        ({"placement": "balanced", "expert_access": "fetch"}, "expert_access: fetch computes"),
        ({"redundant_experts": 4, "expert_access": "fetch"}, "redundant_experts: expert_access"),
        ({"redundant_experts": 500}, "480 is the most"),
        ({"placement": "balanced", "parallel": "{tp: 2}"}, "placement: a plan of layers"),
        ({"placement": "eplb", "redundant_experts": 5}, "37 physical experts are no multiple"),
        (
            {"placement": "co-activation", "placement_loads": "LOADS"},
            "co-activation: needs to know",
        ),
        ({"placement": "balanced", "placement_loads": "OTHER"}, "has loads of 8 experts"),
        ({"placement": "tests.engine.test_placement:broken"}, "no GPU holds expert 1 of layer 0"),
    ],
)
def test_what_does_not_go_is_refused_in_one_line(given_: dict[str, Any], what: str, tmp_path: Path):
    for name, experts in (("LOADS", 32), ("OTHER", 8)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"logical_count": [[1.0] * experts] * 2}))
        given_ = {k: path if v == name else v for k, v in given_.items()}
    with pytest.raises(InputError, match=what) as error:
        on_rails(given_)
    assert "\n" not in str(error.value)


def broken(loads: np.ndarray, target: Any) -> Placement:
    """A policy of a user's own, that loses experts."""
    share = np.repeat(np.arange(target.gpus), target.physical // target.gpus)
    return Placement(
        np.zeros((len(loads), target.physical), dtype=np.int32), share.astype(np.int32)
    )


def test_loads_of_another_file_are_what_the_policy_sees(tmp_path: Path):
    """All load on experts 0 and 1, which are neighbours in order: balanced parts them."""
    loads = [[100.0, 100.0] + [1.0] * 30] * 2
    path = tmp_path / "loads.json"
    path.write_text(json.dumps({"logical_count": loads}))
    found = on_rails({"placement": "balanced", "placement_loads": path}, "uniform")
    where = {
        int(expert): int(gpu)
        for expert, gpu, layer in zip(
            found.loads["expert"], found.loads["gpu"], found.loads["layer"], strict=True
        )
        if layer == 1
    }
    assert where[0] != where[1]
    assert any("by the loads of" in note for note in found.report.notes)
    mine = on_rails({"placement": "balanced"})
    assert any("a sample of 8,192 tokens of zipf:1.0" in note for note in mine.report.notes)


def test_a_law_of_loads_is_seen_as_it_is(tmp_path: Path):
    """Two experts are hot and neighbours: balanced parts them, without a sample."""
    loads = np.ones((2, 32))
    loads[:, [0, 1]] = 60
    path = tmp_path / "loads.json"
    path.write_text(json.dumps({"logical_count": loads.tolist()}))
    for source in (f"loads:{path}", path):
        found = on_rails({"placement": "balanced"}, source)
        assert any(f"placement balanced, by the loads of {path}" in n for n in found.report.notes)
        first = found.loads["layer"] == 1
        where = dict(zip(found.loads["expert"][first], found.loads["gpu"][first], strict=True))
        assert where[0] != where[1]


def test_a_trace_seen_beforehand_is_said_to_be(tmp_path: Path):
    ids = np.stack([np.random.default_rng(1).permutation(32)[:4] for _ in range(64)])[:, None]
    trace = write_trace(tmp_path / "one.parquet", ids, 32, list(range(64)))
    for policy in ("balanced", "co-activation"):
        notes = on_rails({"placement": policy}, trace).report.notes
        assert any("seen beforehand: an upper bound" in note for note in notes)


def test_layout_is_asked_for_without_a_placement_where_only_sizes_matter():
    assert layouts.layout_of(small().workload, 4, "t").owner.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
