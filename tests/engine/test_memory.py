"""Expert memory: hits and misses by hand and by a reference LRU, and when fetches run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import closed_forms
import numpy as np
import pytest
from engine.harness import Run, lay_sends, routes_of, run, small, star, write_trace
from engine.watching import watched
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.engine import core
from simulator.engine.driver import Driver
from simulator.engine.memory import ExpertMemory, Pool, Sources
from simulator.policies import eviction


def held_in(driver: Driver, pool: Pool, experts: int, size_bytes: float) -> ExpertMemory:
    """A memory of its own with LRU, everything fetched over route 0."""
    made = eviction.Setup(pool.layers, experts, pool.slots, pool.pooled)
    sources = Sources([[0] * experts] * pool.layers, [size_bytes])
    return ExpertMemory(driver, 0, pool, sources, eviction.lru(made))


def one_gpu(experts: int, k: int, slots: int, **more: object) -> dict[str, object]:
    """A GPU that decodes one request, one layer unless `more` says otherwise."""
    return {
        "topology.build.gpus": 1,
        "model.layers": 1,
        "model.moe": f"{{experts: {experts}, top_k: {k}, intermediate: 48}}",
        "traffic.tokens_per_gpu": 1,
        "expert_slots": slots,
        **{key.replace("__", "."): value for key, value in more.items()},
    }


def decode(tmp_path: Path, ids: list[Any], experts: int, **more: object) -> Run:
    """A run whose steps take the rows of `ids`, [steps][k] or [steps][layers][k]."""
    table = np.array(ids)
    table = table[:, None, :] if table.ndim == 2 else table
    trace = write_trace(tmp_path / "trace.parquet", table, experts, [0] * len(ids))
    case = one_gpu(experts, table.shape[2], **more)  # type: ignore[arg-type]
    case |= {"model.layers": table.shape[1], "traffic.steps": len(ids)}
    return run(small(case, trace))


def counts(found: Run) -> list[tuple[int, int, int]]:
    table = found.accesses
    return list(zip(*(table[name].tolist() for name in ("hit", "late", "miss")), strict=True))


def test_hits_and_misses_by_hand(tmp_path: Path):
    """Two slots: 0 and 1 come, 0 is used again, so that 2 takes the place of 1, and 1 that of 0."""
    found = decode(tmp_path, [[0], [1], [0], [2], [1], [2], [0]], 4, slots=2)
    hits = [0, 0, 1, 0, 0, 1, 0]
    assert counts(found) == [(hit, 0, 1 - hit) for hit in hits]
    assert found.where(kind="demand")["expert"].tolist() == [0, 1, 2, 1, 0]


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 3), slots=st.integers(1, 7))
def test_hits_are_those_of_a_reference_lru(
    tmp_path_factory: pytest.TempPathFactory, seed: int, k: int, slots: int
):
    rng = np.random.default_rng(seed)
    ids = np.stack([[rng.permutation(8)[:k] for _ in range(3)] for _ in range(30)])
    found = decode(tmp_path_factory.mktemp("lru"), ids.tolist(), 8, slots=slots)
    table = found.accesses
    for layer in range(3):
        hits = table["hit"][table["layer"] == layer].sum()
        assert hits == closed_forms.lru_hits(ids[:, layer].ravel().tolist(), slots)
    assert not table["late"].any()
    assert table["hit"].sum() + table["miss"].sum() == ids.size


def test_the_order_of_the_gate_can_throw_out_what_is_needed_next(tmp_path: Path):
    """Three experts per token, two slots, 0 and 1 resident, then 2, 0, 1.

    In this order 2 evicts 0, 0 evicts 1 and 1 evicts 2; with those resident first, 2 is missing.
    """
    ids = [[7, 0, 1], [2, 0, 1]]
    for order, wanted in (("gate", (0, 0, 3)), ("resident-first", (2, 0, 1))):
        folder = tmp_path / order
        folder.mkdir()
        assert counts(decode(folder, ids, 8, slots=2, expert_order=order))[1] == wanted


def test_two_requests_for_one_expert_are_one_transfer(tmp_path: Path):
    """Both micro-batches need expert 3 while it is under way: one miss, one late hit."""
    trace = write_trace(tmp_path / "trace.parquet", np.full((2, 1, 1), 3), 4, [0, 0])
    case = one_gpu(4, 1, 2, overlap="two-batch")
    case |= {"traffic.tokens_per_gpu": 2, "traffic.phase": "prefill"}
    case |= {"topology.build.pcie": "{bandwidth: 1 MB/s, latency: 500 ns}"}
    found = run(small(case, trace))
    assert counts(found) == [(0, 1, 1)]
    assert found.where(stream="copy")["expert"].tolist() == [3]
    loaded = found.where(kind="demand")["end_s"][0]
    kernels = found.where(kind="experts")
    assert kernels["microbatch"].tolist() == [0, 1]
    assert kernels["start_s"][0] == loaded
    assert kernels["start_s"][1] == kernels["end_s"][0]
    # Each waited from its tokens' arrival for the weights; the second also for the stream.
    assert kernels["fetch_wait_s"].tolist() == [loaded - kernels["ready_s"][0], 0.0]


def test_a_fetch_waits_for_the_kernels_of_the_expert_whose_place_it_takes(tmp_path: Path):
    """One slot, two experts in one token: load 0, compute 0, only then load 1, compute 1."""
    found = decode(tmp_path, [[0, 1]], 4, slots=1)
    copies, kernels = found.where(kind="demand"), found.where(kind="experts")
    assert copies["expert"].tolist() == kernels["expert"].tolist() == [0, 1]
    assert kernels["start_s"].tolist() == copies["end_s"].tolist()
    assert copies["start_s"][1] == kernels["end_s"][0]
    assert copies["ready_s"][0] == copies["ready_s"][1], "asked for when the tokens came"


def test_a_resident_expert_in_use_is_not_overwritten(tmp_path: Path):
    """0 is resident; the next token takes 0 and 1, one slot: 1 is loaded after 0 was computed."""
    found = decode(tmp_path, [[0, 2], [2, 1]], 4, slots=1)
    second = found.where(step=1)
    grouped = second["end_s"][(second["kind"] == "experts") & (second["expert"] == -1)]
    copies = second["start_s"][second["kind"] == "demand"]
    assert grouped.tolist() == copies.tolist()


def test_layers_have_slots_of_their_own(tmp_path: Path):
    ids = [[[0], [1]], [[0], [1]], [[1], [0]], [[0], [1]]]
    found = decode(tmp_path, ids, 4, slots=1)
    assert counts(found) == [(0, 0, 1)] * 2 + [(1, 0, 0)] * 2 + [(0, 0, 1)] * 4


def test_a_prefetch_turns_a_miss_into_a_hit_or_a_late_hit(tmp_path: Path):
    """One layer ahead and never wrong: over a fast link in time, over a slow one under way."""
    ids = [[[0], [1], [2]], [[3], [2], [1]]]
    fast = "{bandwidth: 64 GB/s, latency: 500 ns}"
    slow = "{bandwidth: 1 GB/s, latency: 500 ns}"
    for name, pcie, wanted in (("fast", fast, (1, 0, 0)), ("slow", slow, (0, 1, 0))):
        folder = tmp_path / name
        folder.mkdir()
        more = {"topology__build__pcie": pcie, "prefetch": "oracle"}
        found = decode(folder, ids, 4, slots=3, **more)
        assert counts(found) == [(0, 0, 1), wanted, wanted] * 2
        prefetched = found.where(kind="prefetch")
        assert prefetched["expert"].tolist() == [1, 2, 2, 1]
        assert prefetched["used"].all()
        # Asked for when the gate of the layer before has spoken.
        gates = found.where(kind="attention")
        assert prefetched["ready_s"].tolist() == gates["end_s"][gates["layer"] < 2].tolist()


def test_a_demand_fetch_waits_for_the_prefetch_that_has_begun(tmp_path: Path):
    """A transfer is not broken off, here of an expert that nobody needs."""
    ids = [[[0], [1]], [[2], [3]], [[4], [5]]]
    slow = "{bandwidth: 100 MB/s, latency: 500 ns}"
    found = decode(tmp_path, ids, 8, slots=2, topology__build__pcie=slow, prefetch="synthetic:0")
    prefetched = found.where(kind="prefetch")
    assert len(prefetched["step"])
    assert not prefetched["used"].any()
    for step, start, end in zip(
        prefetched["step"], prefetched["start_s"], prefetched["end_s"], strict=True
    ):
        demand = found.where(kind="demand", step=step, layer=1)
        assert start < demand["ready_s"][0] < end <= demand["start_s"][0]


def test_a_peer_keeps_its_own_experts_outside_the_slots(tmp_path: Path):
    """Weights that travel between peers: nobody fetches what it owns."""
    inputs = small(
        {
            "expert_access": "fetch",
            "expert_home": "peer",
            "expert_slots": 2,
            "traffic.tokens_per_gpu": 6,
        }
    )
    found, stays = watched(inputs)
    assert stays
    assert all(stay.expert // 2 != stay.gpu for stay in stays)
    for link in found.links["link"]:
        assert "dram" not in link
    assert found.links["bytes"].sum() == 2 * found.where(stream="copy")["bytes"].sum()


def test_an_offloaded_share_comes_from_the_next_gpu(tmp_path: Path):
    found = run(small({"expert_home": "peer", "expert_slots": 1, "traffic.tokens_per_gpu": 6}))
    copies, sends = found.where(stream="copy"), found.where(stream="comm")
    carried = dict(zip(found.links["link"], found.links["bytes"], strict=True))
    for gpu in range(4):
        asked_by = copies["bytes"][copies["gpu"] == (gpu - 1) % 4].sum()
        sent = sends["bytes"][sends["gpu"] == gpu].sum()
        assert carried[f"gpu{gpu} -> nvswitch"] == pytest.approx(asked_by + sent, rel=1e-12)


def test_prefetches_go_on_when_the_first_of_them_makes_the_tables_grow():
    routes = routes_of(star(2, 1e9, 0.0), [("gpu0", "gpu1", 1.0, 0.0)])
    driver = lay_sends(routes, [("gpu0", "gpu1", 1.0, 0.0)])
    memory = held_in(driver, Pool(layers=1, slots=4), 8, 1e6)
    driver.on_end = lambda ended: [memory.idle() for op in ended if op < 0]
    driver.env.run(until=1e-3)
    driver.ids(256)  # all that there is room for
    memory.prefetch(0, 0, -1, 0, [1, 2, 3], at_once=True)
    driver.env.run()
    ended = sorted(slot.end_s for slot, _ in memory.end_of_step(last=True))
    assert ended == pytest.approx([2e-3, 3e-3, 4e-3], rel=1e-9)


def test_a_prefetch_spares_what_is_predicted_for_its_layer():
    """Slots hold 0 and 1; 0 is the older, but wanted: a prefetch of 2 takes the place of 1."""
    routes = routes_of(star(2, 1e9, 0.0), [("gpu0", "gpu1", 1.0, 0.0)])
    driver = lay_sends(routes, [("gpu0", "gpu1", 1.0, 0.0)])
    memory = held_in(driver, Pool(layers=2, slots=2), 4, 1e3)
    driver.on_end = lambda ended: [memory.idle() for op in ended if op < 0]
    for expert in (0, 1):
        memory.prefetch(0, 0, 0, 1, [expert], at_once=True)
        driver.env.run(until=driver.env.now + 1.0)
    assert memory.held(1) == 2
    memory.prefetch(0, 0, 0, 1, [0, 2], at_once=True)
    driver.env.run(until=driver.env.now + 1.0)
    assert memory.resident_first(1, [0, 1, 2]) == [0, 2, 1]


def test_the_event_numbers_of_a_long_run_start_again(monkeypatch: pytest.MonkeyPatch):
    """Nothing changes when the numbers of events start again between two steps."""
    case = small({"traffic.steps": 4, "expert_slots": 1, "prefetch": "learned"})
    plain = run(case)
    monkeypatch.setattr(core, "MANY", 5)
    again = run(case)
    for name, column in plain.spans.items():
        assert np.array_equal(column, again.spans[name]), name
