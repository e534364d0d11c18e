"""Faults while a cluster serves: nothing is lost silently, and only what is hit changes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from serving import toy
from serving.closed_form import ClosedForm

from simulator.engine.serving import cluster as clusters
from simulator.engine.serving import simulate
from simulator.engine.serving.cluster import cluster_of
from simulator.engine.serving.damage import WHOLE, damage_of, damaged, part_of
from simulator.engine.serving.exact import Engine
from simulator.engine.serving.service import FAILED, FINISHED
from simulator.engine.serving.timing import step_seconds
from simulator.requests.load import load_requests
from simulator.spec.incidents import Fault
from simulator.spec.load import load_inputs
from tests.serving.faulty import SMALL, check_closed, inputs_of, pool, served

LINKS = ["gpu0 -> nvswitch0", "nic3 <-> leaf3", "leaf1 -> spine0", "pcie2 <-> cpu0"]


@pytest.fixture(autouse=True)
def _quick_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = pool()
    monkeypatch.setattr(clusters, "pool_of", lambda *_: drawn._replace(notes=[]))


def random_faults(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Up to five faults within the first 60 ms, of all kinds."""
    found: list[dict[str, Any]] = []
    hit: list[tuple[str, str]] = []
    for at in np.sort(rng.uniform(0.0, 0.06, rng.integers(1, 6))).tolist():
        what = str(rng.choice(["gpu", "nic", "link", "switch", "node"]))
        name = {
            "gpu": f"gpu{rng.integers(16)}",
            "nic": f"nic{rng.integers(16)}",
            "link": str(rng.choice(LINKS)),
            "switch": str(rng.choice(["nvswitch0", "leaf2", "spine0", "pcie9"])),
            "node": f"node{rng.integers(2)}",
        }[what]
        do = str(rng.choice(["down", "down", "degrade", "slow", "up"]))
        entry: dict[str, Any] = {"what": what, "name": name, "do": do}
        if do == "up":
            if not hit:
                continue
            entry["what"], entry["name"] = hit[rng.integers(len(hit))]
        if do == "slow" and what not in ("gpu", "node"):
            entry["do"] = do = "degrade"
        if do == "degrade":
            entry["factor"] = float(rng.uniform(0.05, 0.9))
        if do == "slow":
            entry |= {"factor": float(rng.uniform(0.5, 4.0)), "spread": 0.3}
        if do == "down" and what in ("gpu", "node") and rng.random() < 0.5:
            entry |= {"cold_start": "2 ms", "load_from": ["host", "2 TB/s"][rng.integers(2)]}
        if do != "up" and rng.random() < 0.25:
            entry |= {"mtbf": f"{rng.uniform(5, 50):.3f} ms", "mttr": f"{rng.uniform(1, 9):.3f} ms"}
        else:
            entry["at"] = f"{at * 1e3:.6f} ms"
            if do != "up" and rng.random() < 0.7:
                entry["for"] = f"{rng.uniform(0.1, 30):.6f} ms"
        hit.append((entry["what"], entry["name"]))
        found.append(entry)
    return found or [{"at": "1 ms", "what": "gpu", "name": "gpu0", "for": "1 ms"}]


WAYS = [["drain"], ["replicas", "reload"], ["shrink"], ["reload"], ["replicas"]]


@pytest.mark.parametrize("block", range(10))
def test_every_request_is_accounted_for_under_200_random_timelines(
    tmp_path: Path, block: int
) -> None:
    for number in range(20 * block, 20 * block + 20):
        rng = np.random.default_rng(number)
        ep = int(rng.choice([4, 8, 16]))
        overrides = [f"parallel.ep={ep}", f"redundant_experts={int(rng.choice([0, 16, 128]))}"]
        overrides += [f"serving.lost_kv={rng.choice(['resume', 'retry'])}"]
        overrides += [f"serving.attempts={rng.integers(1, 4)}"]
        overrides += ["serving.kv_capacity=2MB"] if rng.random() < 0.3 else []
        overrides += ["serving.preemption=swap"] if rng.random() < 0.3 else []
        overrides += ["serving.timeout=20 ms"] if rng.random() < 0.3 else []
        overrides += ["serving.prefill_groups=1"] if ep < 16 and rng.random() < 0.3 else []
        inputs = inputs_of(
            tmp_path,
            random_faults(rng),
            *overrides,
            requests=str(rng.choice(["poisson:2000", "closed:12"])),
            member_loss=WAYS[number % len(WAYS)],
        )
        cluster, _ = served(inputs, seed=number)
        check_closed(cluster)


def test_the_same_seed_gives_the_same_run_and_another_one_other_failures(tmp_path: Path) -> None:
    faults = [{"mtbf": "20 ms", "mttr": "3 ms", "what": "gpu", "name": "gpu3"}]
    inputs = inputs_of(tmp_path, faults, "parallel.ep=8")
    (one, first), (two, second), (_, other) = (served(inputs, seed) for seed in (1, 1, 2))
    assert first.log == second.log
    assert np.array_equal(one.service.of.finish_s, two.service.of.finish_s)
    assert first.log[0]["time_s"] != other.log[0]["time_s"]


def test_entries_draw_from_streams_of_their_own(tmp_path: Path) -> None:
    recurring = {"mtbf": "4 ms", "mttr": "3 ms", "what": "gpu", "name": "gpu3"}
    more = {"mtbf": "9 ms", "mttr": "1 ms", "what": "nic", "name": "nic9"}

    def times(faults: list[dict[str, Any]]) -> list[float]:
        _, timeline = served(inputs_of(tmp_path, faults, "parallel.ep=8"))
        rows = [row for row in timeline.log if row["kind"] == "begin" and row["fault"] == 0]
        return [row["time_s"] for row in rows]

    alone, beside = times([recurring]), times([recurring, more])
    common = min(len(alone), len(beside))
    assert common >= 1
    assert alone[:common] == beside[:common]


# --- a link that is slower


@pytest.mark.parametrize("name", ["nic3 -> leaf3", "gpu5 <-> nvswitch0", "leaf2 -> nic10"])
def test_a_degraded_link_changes_exactly_the_pairs_that_cross_it(tmp_path: Path, name: str) -> None:
    fault = {"at": "1 ms", "what": "link", "name": name, "do": "degrade", "factor": 0.25}
    inputs = inputs_of(tmp_path, [fault], "parallel.ep=16")
    assert inputs.workload.requests is not None
    cluster = cluster_of(inputs, load_requests(inputs.workload.requests, 0), 0)
    group = cluster.service.groups[0]
    before = pair_seconds(group.wires)
    served_cluster, _ = served(inputs)
    after = pair_seconds(served_cluster.service.groups[0].wires)
    ends = name.replace("<->", "->").split(" -> ")
    hit = {tuple(ends), tuple(reversed(ends))} if "<->" in name else {tuple(ends)}
    routes = cluster.roads.routes
    for a in range(16):
        for b in range(16):
            if a == b:
                continue
            crossed = routes.all_links[cluster.roads.between[a, b]]
            crosses = any(routes.links[link] in hit for link in crossed)
            assert (after[a, b] != before[a, b]) == crosses
            if crosses:
                bandwidth = routes.bandwidth_bytes_per_s[crossed]
                left = np.array([0.25 if routes.links[link] in hit else 1.0 for link in crossed])
                slower = bandwidth.min() / (bandwidth * left).min()
                assert after[a, b] / before[a, b] == pytest.approx(slower, rel=1e-12)


def pair_seconds(wires: Any) -> np.ndarray:
    """Seconds that a byte alone takes between two ranks, by the links of its route."""
    found = np.maximum(wires.own_s[0], wires.out_s[0].max(axis=0, initial=0.0))  # of dispatch
    found = np.maximum(found, wires.in_s[0].max(axis=0, initial=0.0))
    for pair, (first, end) in enumerate(itertools.pairwise(wires.shared_ptr)):
        place = np.unravel_index(pair, found.shape)
        found[place] = max(found[place], wires.shared_s[0, first:end].max(initial=0.0))
    return found


def steps_with(folder: Path, fault: dict[str, Any]) -> list[tuple[float, float]]:
    """When each step of a group of 16 begins and ends, all requests there from the start."""
    inputs = inputs_of(folder, [fault], "parallel.ep=16", requests="offline")
    assert inputs.workload.requests is not None
    requests = load_requests(inputs.workload.requests, 0)
    cluster = cluster_of(inputs, requests, 0)
    timeline = simulate.timeline_of(inputs, cluster, 0)
    assert timeline is not None
    told: list[tuple[float, float]] = []
    cluster.service.on_step = lambda of: told.append((of.step.start_s, of.step.end_s))
    timeline.begin()
    simulate.arrive(cluster, requests, None)
    cluster.service.env.run()
    check_closed(cluster)
    return told


NIC_LINK = {"at": "1 h", "what": "link", "name": "nic3 -> leaf3"}


def test_a_degraded_link_keeps_the_time_of_the_step_in_flight_and_slows_later_ones(
    tmp_path: Path,
) -> None:
    fault = {**NIC_LINK, "do": "degrade", "factor": 0.1}
    whole = steps_with(tmp_path, fault)
    middle = sum(whole[2]) / 2.0
    slower = steps_with(tmp_path, {**fault, "at": f"{middle * 1e9:.3f} ns"})
    assert slower[:3] == whole[:3]
    assert slower[3][1] - slower[3][0] > whole[3][1] - whole[3][0]


def test_a_dead_link_loses_the_step_in_flight_which_is_begun_again_over_other_links(
    tmp_path: Path,
) -> None:
    whole = steps_with(tmp_path, NIC_LINK)
    middle = sum(whole[2]) / 2.0
    broken = steps_with(tmp_path, {**NIC_LINK, "at": f"{middle * 1e9:.3f} ns"})
    assert len(broken) == len(whole)
    assert broken[:2] == whole[:2]
    assert broken[2][0] == pytest.approx(middle, rel=1e-9)
    # The GPU without its NIC is not in every step the one that the others wait for.
    before, after = (np.diff(np.array(steps[2:]), axis=1) for steps in (whole, broken))
    assert after.sum() > before.sum()
    assert after == pytest.approx(before, rel=0.05)


def test_what_no_route_crosses_changes_nothing(tmp_path: Path) -> None:
    whole = steps_with(tmp_path, NIC_LINK)
    beside = {"at": f"{sum(whole[2]) / 2.0 * 1e9:.3f} ns", "what": "link", "name": "cpu0 <-> dram0"}
    assert steps_with(tmp_path, beside) == whole


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_slow_gpu_slows_the_steps_of_its_group(tmp_path: Path, factor: float) -> None:
    def slow(gpu: int, **more: Any) -> list[tuple[float, float]]:
        fault = {"at": "0 s", "what": "gpu", "name": f"gpu{gpu}", "do": "slow", "factor": factor}
        return steps_with(tmp_path, {**fault, **more})

    whole = steps_with(tmp_path, NIC_LINK)
    one, drawn = slow(5), slow(5, spread=0.5)
    took = [[end - start for start, end in steps] for steps in (whole, one, drawn)]
    if factor == 1.0:
        assert one == whole
    else:
        assert all(a * (1 - 1e-9) < b < factor * a for a, b in zip(*took[:2], strict=True))
        assert all(a < b for a, b in zip(took[0][:5], took[1][:5], strict=True))
    assert took[2] != took[1]
    assert drawn == slow(5, spread=0.5)


# --- a GPU that is lost


def test_a_group_drains_while_its_gpu_is_away_and_comes_back(tmp_path: Path) -> None:
    fault = {"at": "5 ms", "what": "gpu", "name": "gpu2", "for": "30 ms", "cold_start": "4 ms"}
    cluster, timeline = served(inputs_of(tmp_path, [fault], "parallel.ep=16"))
    check_closed(cluster)
    assert (cluster.service.of.outcome == FINISHED).all()
    assert timeline.lost == 0
    states = [(row["time_s"], row["state"]) for row in timeline.log if row["kind"] == "group"]
    assert states == [(0.005, "down"), (pytest.approx(0.035, abs=1e-12), "up")]
    ledger = cluster.service.ledger
    tokens_in = [t for t in ledger.first_s.tolist() if 0.005 < t < 0.035 + 0.004]
    assert tokens_in == []


def test_requests_of_a_drained_group_go_to_the_others_and_none_is_lost(tmp_path: Path) -> None:
    fault = {"at": "5 ms", "what": "gpu", "name": "gpu2"}
    cluster, timeline = served(inputs_of(tmp_path, [fault], "parallel.ep=8"))
    check_closed(cluster)
    assert (cluster.service.of.outcome == FINISHED).all()
    assert timeline.lost == 0
    late = cluster.service.of.finish_s > 0.005
    assert late.any()
    assert (cluster.service.served_by[late] >= 8).all()


def test_lost_kv_ends_an_attempt_if_the_workload_says_so(tmp_path: Path) -> None:
    fault = {"at": "8 ms", "what": "gpu", "name": "gpu2", "for": "5 ms"}
    inputs = inputs_of(tmp_path, [fault], "parallel.ep=16", "serving.lost_kv=retry")
    cluster, timeline = served(inputs)
    check_closed(cluster)
    failed = int((cluster.service.of.outcome == FAILED).sum())
    # In turn: the requests with GPU 2 at 8 ms, of 40 on 16 GPUs two or three.
    assert 1 <= failed <= 3
    assert timeline.lost == failed
    again = inputs_of(
        tmp_path, [fault], "parallel.ep=16", "serving.lost_kv=retry", "serving.attempts=2"
    )
    cluster, timeline = served(again)
    assert (cluster.service.of.outcome == FINISHED).all()
    assert timeline.lost == 0
    assert int((cluster.service.of.attempts == 2).sum()) == failed


def test_when_no_group_comes_back_waiting_requests_fail_and_are_told(tmp_path: Path) -> None:
    fault = {"at": "5 ms", "what": "gpu", "name": "gpu1"}
    lasting = {"mtbf": "10 ms", "mttr": "1 ms", "what": "nic", "name": "nic0"}
    inputs = inputs_of(tmp_path, [fault, lasting])
    cluster, timeline = served(inputs)
    check_closed(cluster)
    failed = int((cluster.service.of.outcome == FAILED).sum())
    assert failed > 0
    assert timeline.lost == failed
    assert any("came back" in note for note in timeline.notes)
    assert cluster.service.env.now < 1.0  # the NIC does not go on failing for ever
    cluster, timeline = served(inputs_of(tmp_path, [fault]))
    check_closed(cluster)
    assert len(timeline.notes) == 1  # nothing fails again and again


def test_faults_faster_than_steps_end_the_run(tmp_path: Path) -> None:
    fault = {"mtbf": "2 us", "mttr": "2 us", "what": "gpu", "name": "gpu1"}
    cluster, timeline = served(inputs_of(tmp_path, [fault], "requests.limit=5"))
    check_closed(cluster)
    assert timeline.lost == 5
    assert any("in a row let no step end" in note for note in timeline.notes)


def test_replicas_serve_the_experts_of_a_lost_gpu_at_once(tmp_path: Path) -> None:
    fault = {"at": "8 ms", "what": "gpu", "name": "gpu5"}
    inputs = inputs_of(
        tmp_path, [fault], "parallel.ep=16", "redundant_experts=128", member_loss=["replicas"]
    )
    cluster, timeline = served(inputs)
    check_closed(cluster)
    assert (cluster.service.of.outcome == FINISHED).all()
    assert timeline.lost == 0
    ups = [row for row in timeline.log if row["kind"] == "group"]
    assert ups == [
        {"time_s": 0.008, "kind": "group", "group": 0, "state": "up", "gpus": 15, "way": "replicas"}
    ]
    routing = cluster.service.groups[0].routing
    assert 5 not in routing.gpu[routing.copy].ravel()


def test_a_step_of_fifteen_of_sixteen_takes_what_the_step_engine_says(tmp_path: Path) -> None:
    fault = {"at": "8 ms", "what": "gpu", "name": "gpu5"}
    inputs = inputs_of(
        tmp_path, [fault], "parallel.ep=16", "redundant_experts=128", member_loss=["replicas"]
    )
    assert inputs.workload.requests is not None
    requests = load_requests(inputs.workload.requests, 0)
    cluster = cluster_of(inputs, requests, 0)
    timeline = simulate.timeline_of(inputs, cluster, 0)
    assert timeline is not None
    group = cluster.service.groups[0]
    seen: list[float] = []

    def check(told: Any) -> None:
        if told.step.start_s < 0.008 or len(seen) >= 5:
            return
        engine = Engine(inputs, cluster, 0, "exact")
        of = group.of
        compiled = step_seconds(
            of.costs, group.wires, group.routing, group.work, group.speed, of.halves
        )
        assert compiled == pytest.approx(ClosedForm(group, engine).seconds(), rel=1e-9)
        seen.append(engine.seconds(group))
        assert compiled == pytest.approx(seen[-1], rel=0.01)
        assert told.step.end_s - told.step.start_s == pytest.approx(compiled, rel=1e-9)

    cluster.service.on_step = check
    timeline.begin()
    simulate.arrive(cluster, requests, None)
    cluster.service.env.run()
    assert len(seen) == 5


def test_reload_stops_the_group_as_long_as_the_experts_take_over_pcie(tmp_path: Path) -> None:
    fault = {"at": "8 ms", "what": "gpu", "name": "gpu5"}
    inputs = inputs_of(tmp_path, [fault], "parallel.ep=16", member_loss=["replicas", "reload"])
    cluster, timeline = served(inputs)
    check_closed(cluster)
    assert (cluster.service.of.outcome == FINISHED).all()
    forming, up = (row for row in timeline.log if row["kind"] == "group")
    # 8 experts of 2 layers over 15 GPUs: one each to eight of them, 3 x 3072 x 3008 weights of 2
    # bytes, at 0.856 of 64 GB/s; two links of 250 ns and the memory bus' 100 ns.
    per_gpu = 2 * 3 * 3072 * 3008 * 2.0
    assert up["time_s"] - forming["time_s"] == pytest.approx(
        per_gpu / (0.856 * 64e9) + 600e-9, rel=1e-9
    )
    assert (forming["state"], up["gpus"], up["way"]) == ("forming", 15, "reload")
    assert any("replicas cannot be done" in note for note in timeline.notes)


@pytest.mark.parametrize("way", ["reload", "shrink"])
def test_kv_caches_give_room_to_the_experts_that_come(tmp_path: Path, way: str) -> None:
    fault = {"at": "8 ms", "what": "gpu", "name": "gpu5"}
    inputs = inputs_of(tmp_path, [fault], "parallel.ep=16", member_loss=[way])
    cluster, _ = served(inputs)
    check_closed(cluster)
    group = cluster.service.groups[0]
    # A GPU has at most 9 experts in place of 8, of 2 layers; a block is 16 tokens of 2 layers with
    # keys and values of 4 heads of 128, 2 bytes each.
    expert, block = 2 * 3 * 3072 * 3008 * 2.0, 16 * 2 * 2 * 4 * 128 * 2.0
    assert group.whole_blocks - group.of.limits.blocks in (
        int(expert // block),
        int(expert // block) + 1,
    )


def test_a_group_shrinks_and_grows_again_with_downtime_both_ways(tmp_path: Path) -> None:
    fault = {"at": "8 ms", "what": "gpu", "name": "gpu5", "for": "30 ms", "load_from": "host"}
    inputs = inputs_of(
        tmp_path, [fault], "parallel.ep=16", "serving.regroup=1 ms", "requests.limit=200",
        member_loss=["shrink"],
    )  # fmt: skip
    cluster, timeline = served(inputs)
    check_closed(cluster)
    assert (cluster.service.of.outcome == FINISHED).all()
    ways = [(row["state"], row["gpus"]) for row in timeline.log if row["kind"] == "group"]
    assert ways == [("forming", 0), ("up", 15), ("forming", 0), ("up", 16)]
    group = cluster.service.groups[0]
    assert group.of.limits.blocks == group.whole_blocks
    rows = [row["time_s"] for row in timeline.log if row["kind"] == "group"]
    assert rows[1] - rows[0] > 0.001  # to regroup, and to load
    assert rows[2] > 0.038  # the GPU has loaded before it takes part


def test_experts_that_do_not_fit_leave_the_group_waiting(tmp_path: Path) -> None:
    fault = {"at": "8 ms", "what": "gpu", "name": "gpu1", "for": "5 ms"}
    inputs = inputs_of(
        tmp_path, [fault], "parallel.ep=4", "model.layers=36", topology="h100x4",
        member_loss=["reload", "shrink"],
    )  # fmt: skip
    cluster, timeline = served(inputs)
    check_closed(cluster)
    assert (cluster.service.of.outcome == FINISHED).all()
    assert [note.rpartition(": ")[2] for note in timeline.notes] == [
        "reload cannot be done, the experts do not fit",
        "shrink cannot be done, the experts do not fit",
    ]
    assert [row["state"] for row in timeline.log if row["kind"] == "group"] == ["down", "up"]


@pytest.mark.parametrize("prefix", [0, 32])
def test_smaller_kv_caches_drop_prefixes_first_and_then_the_last_admitted(prefix: int) -> None:
    blocks = [[0, 1], [2, 3], [4, 5]] if prefix else None
    of = toy.ledger([64, 64, 64], [8, 200, 200], blocks)
    group = toy.group(of, most=8, blocks=40, prefix_tokens=prefix)
    group.enqueue(0, 0)
    now = 0.0
    while group.start(now) < float("inf"):
        now = group.step.end_s  # type: ignore[union-attr]
        group.finish()
    for request in (1, 2):
        group.enqueue(request, 0)
    group.start(now)
    group.finish()
    used = int(group.used_blocks[0])
    group.resize(6)  # of 4 + 1 for each
    assert used > 6
    assert group.of.limits.blocks == 6
    assert (group.ranks.free >= 0).all()
    assert group.ranks.running[0, : group.ranks.busy[0]].tolist() == [1]
    assert of.preempted.tolist() == [0, 0, 1]
    group.resize(40)
    group.start(now)
    assert group.ranks.busy[0] == 2


# --- what is left of a graph


def test_damage_adds_up() -> None:
    from simulator.cluster.graph import build_graph
    from simulator.spec.load import load_topology

    graph = build_graph(load_topology("h100x16-rail"))
    nic = Fault(at="1 s", what="nic", name="nic3", do="degrade", factor=0.5)
    link = Fault(at="1 s", what="link", name="nic3 -> leaf3", do="degrade", factor=0.5)
    gpu = Fault(at="1 s", what="gpu", name="gpu3")
    node = Fault(at="1 s", what="node", name="node1")
    parts = [(fault, part_of(graph, fault, "")) for fault in (nic, link, gpu, node)]
    damage = damage_of(parts[:2], ())
    assert dict(damage.share) == {
        ("nic3", "leaf3"): 0.25,
        ("leaf3", "nic3"): 0.5,
        ("nic3", "pcie3"): 0.5,
        ("pcie3", "nic3"): 0.5,
    }
    left = damaged(graph, damage)
    assert left.edges["nic3", "leaf3"]["bandwidth_bytes_per_s"] == 12.5e9
    assert graph.edges["nic3", "leaf3"]["bandwidth_bytes_per_s"] == 50e9
    assert damage_of(parts[2:3], ()).gpus == {3}
    assert damage_of(parts[3:], ()).gpus == set(range(8, 16))
    assert damage_of([], ()) == WHOLE
    assert damaged(graph, WHOLE) is graph


def test_known_prefixes_are_lost_with_the_gpu(tmp_path: Path) -> None:
    """Four GPUs, each a group; all see one prompt at 0, 1 and 2 s, and fail before the last."""
    rows = [
        {"timestamp": 1000 * second, "input_length": 1024, "output_length": 2, "hash_ids": [7, 8]}
        for second in range(3)
        for _ in range(4)
    ]
    recording = tmp_path / "prefixes.jsonl"
    recording.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fault = {"at": "1500 ms", "what": "node", "name": "node0", "for": "10 ms"}
    path = tmp_path / "faults.yaml"
    path.write_text(yaml.safe_dump({"faults": [fault]}, sort_keys=False))
    overrides = [of for of in SMALL if not of.startswith("requests.")]
    overrides += ["parallel.ep=1", "serving.max_batched_tokens=2048"]
    inputs = load_inputs("h100x4", "moe128", overrides, "uniform", str(recording), str(path))
    cluster, _ = served(inputs, checked=False)
    assert (cluster.service.of.outcome == FINISHED).all()
    # Of two blocks of 512 one is found: the last token is always computed.
    assert cluster.service.ledger.reused.tolist() == [0] * 4 + [512] * 4 + [0] * 4


def test_kv_on_its_way_to_a_gpu_that_is_lost_is_computed_again(tmp_path: Path) -> None:
    """Two groups of 8: one prefills, the other decodes, with 1 Gb/s between them: always something
    is under way.
    """
    lost = {"at": "300 ms", "what": "node", "name": "node1", "for": "2 ms"}
    inputs = inputs_of(
        tmp_path, [lost], "parallel.ep=8", "serving.prefill_groups=1",
        "requests.prompt=fixed:4096", "requests.output=fixed:4",
        "serving.max_batched_tokens=4096", "topology.build.nic.bandwidth=1 Gb/s",
        requests="offline",
    )  # fmt: skip
    cluster, timeline = served(inputs)
    check_closed(cluster)
    assert (cluster.service.of.outcome == FINISHED).all()
    assert timeline.lost == 0
    assert cluster.handover is not None
    assert cluster.handover.transfers > len(cluster.service.of.outcome)  # some were sent twice
