"""The expert cache inside runs: every eviction and predictor, pools, levels, sizes, budgets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine.harness import Run, run, small, write_trace
from engine.watching import Stay, watched
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.policies import eviction, prefetch
from simulator.policies.eviction import EVICTIONS
from simulator.policies.prefetch import PREFETCHERS, Future, Past

LAYERS, EXPERTS = 3, 8
NAMED = {"synthetic": "synthetic:0.6"}

BASE: dict[str, object] = {
    "topology.build.gpus": 2,
    "model.layers": LAYERS,
    "model.moe": f"{{experts: {EXPERTS}, top_k: 2, intermediate: 48}}",
    "traffic": "{tokens_per_gpu: 2, context: 32, steps: 6}",
    "expert_access": "fetch",
    "expert_slots": 4,
}


def ids_of(seed: int, tokens: int, skew: float = 0.5) -> np.ndarray:
    """Experts [tokens, LAYERS, 2] of a skewed choice of its own for each layer."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(EXPERTS, skew), size=LAYERS) * 0.9 + 0.1 / EXPERTS
    return np.stack(
        [[rng.choice(EXPERTS, 2, replace=False, p=p) for p in shares] for _ in range(tokens)]
    )


def replay(folder: Path, ids: np.ndarray, requests: Sequence[int], **more: object) -> Run:
    path = folder / f"trace{len(list(folder.iterdir()))}.parquet"
    trace = write_trace(path, ids, EXPERTS, list(requests))
    return run(small(BASE | {k.replace("__", "."): v for k, v in more.items()}, trace))


def total(found: Run, name: str) -> int:
    return int(found.accesses[name].sum())


# --- laws over all policies ------------------------------------------------------------


@pytest.mark.parametrize("pool", ["layer", "global"])
@pytest.mark.parametrize("ahead", sorted(PREFETCHERS))
@pytest.mark.parametrize("evict", sorted(EVICTIONS))
def test_every_pair_of_policies_runs_alike_twice_and_keeps_to_its_slots(
    evict: str, ahead: str, pool: str
):
    """Whatever is chosen: the same accesses, each of them of one kind, and the memory's bounds."""
    case = BASE | {
        "eviction": evict,
        "prefetch": NAMED.get(ahead, ahead),
        "prefetch_depth": 2,
        "expert_pool": pool,
        "expert_slots": 2,
        "overlap": "two-batch",
    }
    found, stays = watched(small(case, "zipf:1.0"))
    assert over(stays, 2 * LAYERS if pool == "global" else 2, pool) <= 0
    kinds = sum(total(found, name) for name in ("hit", "late", "miss"))
    plain = run(small(case | {"eviction": "lru", "prefetch": "none"}, "zipf:1.0"))
    assert kinds == sum(total(plain, name) for name in ("hit", "late", "miss"))
    assert total(found, "miss") == len(found.where(kind="demand")["step"])
    for stay in stays:
        assert all(start >= stay.end_s for start, _ in stay.kernels), "used before it was loaded"
        if stay.replaced >= 0 and stay.start_s < np.inf:
            gone = stays[stay.replaced]
            assert stay.start_s >= max([gone.end_s, *(end for _, end in gone.kernels)])
    again = run(small(case, "zipf:1.0"))
    assert found.span_bytes == again.span_bytes


def over(stays: list[Stay], slots: int, pool: str) -> int:
    """Most experts of a pool that were loaded or loading at one instant, less its slots."""
    until = [np.inf] * len(stays)
    for stay in stays:
        if stay.replaced >= 0:
            until[stay.replaced] = stay.start_s
    worst = -slots
    keys = [stay.gpu if pool == "global" else stay[:2] for stay in stays]
    for key in set(keys):
        mine = [(s.start_s, u) for s, u, k in zip(stays, until, keys, strict=True) if k == key]
        for now, _ in mine:
            if now < np.inf:
                worst = max(worst, sum(start <= now < end for start, end in mine) - slots)
    return worst


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), slots=st.integers(1, 7))
def test_belady_hits_no_less_than_any_other(
    tmp_path_factory: pytest.TempPathFactory, seed: int, slots: int
):
    """Demand fetches, the order of the gate, a pool per layer: then it is the optimum."""
    ids = ids_of(seed, 24)
    folder = tmp_path_factory.mktemp("belady")
    more = {"topology__build__gpus": 1, "traffic": "{tokens_per_gpu: 1, context: 32, steps: 24}"}
    hits = {
        name: total(replay(folder, ids, [0] * 24, eviction=name, expert_slots=slots, **more), "hit")
        for name in EVICTIONS
    }
    assert hits["belady"] == max(hits.values())
    future = [[tuple(e) for e in ids[:, layer].tolist()] for layer in range(LAYERS)]
    assert hits["belady"] == sum(optimal(layer, slots) for layer in future)


def optimal(tokens: list[tuple[int, ...]], slots: int) -> int:
    """Most hits of a cache that must hold what it is asked for: all choices tried."""
    asked = [expert for token in tokens for expert in token]
    best: dict[frozenset[int], int] = {frozenset(): 0}
    for expert in asked:
        after: dict[frozenset[int], int] = {}
        for held, hits in best.items():
            if expert in held:
                outcomes = [(held, hits + 1)]
            elif len(held) < slots:
                outcomes = [(held | {expert}, hits)]
            else:
                outcomes = [(held - {gone} | {expert}, hits) for gone in held]
            for state, count in outcomes:
                after[state] = max(after.get(state, -1), count)
        best = after
    return max(best.values())


@pytest.mark.parametrize("seed", range(6))
def test_an_oracle_misses_no_more_than_nobody(tmp_path: Path, seed: int):
    """Room for all that a layer needs: what is fetched ahead of its use takes nothing away."""
    ids = ids_of(seed, 40, skew=2.0)
    more = {
        "topology__build__gpus": 1,
        "traffic": "{tokens_per_gpu: 1, context: 32, steps: 40}",
        "expert_slots": 4,
    }
    none = replay(tmp_path, ids, [0] * 40, prefetch="none", **more)
    for ahead in ("oracle", "oracle:2"):
        told = replay(tmp_path, ids, [0] * 40, prefetch=ahead, **more)
        assert total(told, "miss") < total(none, "miss")
        assert total(told, "foreseen") == 2 * 40 * (LAYERS - 1), "all but the first layer's"


# --- the past only -----------------------------------------------------------------------


@pytest.mark.parametrize("ahead", sorted(set(PREFETCHERS) - {"none"}))
def test_another_future_changes_no_prediction_before_it(
    ahead: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two traces alike up to token 10: what is asked for until then is the same, and oracles differ
    just there, where the layer asked for is the first that differs.
    """
    one = ids_of(1, 20)
    other = one.copy()
    other[10:] = (other[10:] + 3) % EXPERTS
    name = NAMED.get(ahead, ahead)
    asked = [
        heard(monkeypatch, ahead, lambda ids=ids, d=d: replay(  # type: ignore[misc]
            d, ids, [0] * 20, prefetch=name, prefetch_depth=2, expert_slots=3,
            topology__build__gpus=1, traffic="{tokens_per_gpu: 1, context: 32, steps: 20}",
        ))
        for ids, d in ((one, tmp_path), (other, tmp_path))
    ]  # fmt: skip
    before = [[a for a in answers if a[0] < 10] for answers in asked]
    assert before[0] == before[1]
    assert asked[0] != asked[1] or ahead in ("markov", "learned", "popularity")


def heard(patch: pytest.MonkeyPatch, name: str, go: Any) -> list[tuple[int, int, int, Any]]:
    """(step, layer, ahead, answer) of every call of a predictor; it must not touch what it sees."""
    answers: list[tuple[int, int, int, Any]] = []
    make = PREFETCHERS[name]

    def spy(made: Any) -> Any:
        predict = make(made)
        step = -1

        def told(past: Past, future: Future | None) -> Any:
            nonlocal step
            step += past.layer == 0 and past.ahead == 1
            seen = [a for a in past if isinstance(a, np.ndarray)]
            copies = [a.copy() for a in seen]
            answer = predict(past, future)
            assert all(np.array_equal(a, b) for a, b in zip(seen, copies, strict=True))
            assert (future is not None) == (name in prefetch.ORACLES)
            answers.append((step, past.layer, past.ahead, answer))
            return answer

        return told

    with patch.context() as inside:
        inside.setitem(prefetch.PREFETCHERS, name, spy)
        go()
    return answers


@pytest.mark.parametrize("evict", sorted(set(EVICTIONS) - eviction.ORACLES))
def test_another_future_changes_no_eviction_before_it(evict: str, tmp_path: Path):
    one = ids_of(2, 20)
    other = one.copy()
    other[10:] = (other[10:] + 3) % EXPERTS
    more = {
        "topology__build__gpus": 1,
        "traffic": "{tokens_per_gpu: 1, context: 32, steps: 20}",
        "expert_slots": 3,
        "eviction": evict,
    }
    runs = [replay(tmp_path, ids, [0] * 20, **more).accesses for ids in (one, other)]
    early = [[table[name][table["step"] < 10].tolist() for name in table] for table in runs]
    assert early[0] == early[1]
    assert runs[0]["hit"].tolist() != runs[1]["hit"].tolist()


# --- pools, depth, budget, cancellation ----------------------------------------------


def test_a_global_pool_lends_the_slots_of_a_quiet_layer_to_a_busy_one(tmp_path: Path):
    """Layer 0 always takes 0 and 1, layer 1 three experts in turn: 2 + 3 fit into 2 x 3 slots of a
    pool, but layer 1 alone cannot keep 3 in 2 slots.
    """
    ids = np.zeros((12, 3, 2), dtype=int)
    ids[:, 0] = (0, 1)
    ids[:, 1] = [(step % 3, 7) for step in range(12)]
    ids[:, 2] = (4, 5)
    more = {
        "topology__build__gpus": 1,
        "traffic": "{tokens_per_gpu: 1, context: 32, steps: 12}",
        "expert_slots": 3,
    }
    own = replay(tmp_path, ids, [0] * 12, **more)
    shared = replay(tmp_path, ids, [0] * 12, expert_pool="global", **more)
    assert total(shared, "miss") == 2 + 4 + 2, "each once: 8 experts in 9 slots"
    assert total(own, "miss") == 2 + 2 + (1 + 12), "7 stays, the others thrash"


def test_depth_asks_for_layers_further_ahead(tmp_path: Path):
    """The oracle of two layers begins with layer 2 when the gate of layer 0 has spoken."""
    ids = ids_of(3, 1)
    more = {
        "topology__build__gpus": 1,
        "traffic": "{tokens_per_gpu: 1, context: 32, steps: 1}",
    }
    for name, depth in (("oracle", 1), ("oracle:2", 1), ("oracle", 2)):
        found = replay(tmp_path, ids, [0], prefetch=name, prefetch_depth=depth, **more)
        gates = found.where(kind="attention")
        asked = found.where(kind="prefetch", layer=2)["ready_s"].tolist()
        deep = name == "oracle:2" or depth == 2
        wanted = gates["end_s"][gates["layer"] == (0 if deep else 1)][0]
        assert asked == [wanted, wanted]


def test_a_budget_limits_the_bytes_asked_for_at_once(tmp_path: Path):
    """An expert is 3 x 64 x 48 x 2 bytes = 18,432: of two that are needed a budget of 20 kB pays
    for one.
    """
    ids = ids_of(4, 6)
    more = {
        "topology__build__gpus": 1,
        "traffic": "{tokens_per_gpu: 1, context: 32, steps: 6}",
        "prefetch": "oracle",
    }
    free = replay(tmp_path, ids, [0] * 6, **more)
    assert set(free.where(kind="prefetch")["bytes"].tolist()) == {18432.0}
    for budget, most in (("20 kB", 1), ("40 kB", 2), ("10 kB", 0)):
        found = replay(tmp_path, ids, [0] * 6, prefetch_budget=budget, **more)
        table = found.where(kind="prefetch")
        keys = list(zip(table["step"].tolist(), table["layer"].tolist(), strict=True))
        assert max((keys.count(key) for key in keys), default=0) == most


def test_what_is_no_longer_wanted_is_cancelled_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Over a slow link nothing but the first of layer 2's wishes can begin before a newer
    prediction drops the rest.
    """

    def fickle(made: Any) -> Any:
        def predict(past: Past, _: Future | None) -> list[list[int]]:
            return [[6, 7]] if past.ahead == 2 else [[]]

        return predict

    monkeypatch.setitem(prefetch.PREFETCHERS, "popularity", fickle)
    ids = np.tile(np.array([[[0, 1], [2, 3], [4, 5]]]), (1, 1, 1))
    found = replay(
        tmp_path, ids, [0], prefetch="popularity", prefetch_depth=2, topology__build__gpus=1,
        traffic="{tokens_per_gpu: 1, context: 32, steps: 1}",
        topology__build__pcie="{bandwidth: 100 MB/s, latency: 500 ns}",
    )  # fmt: skip
    begun = len(found.where(kind="prefetch")["step"])
    assert begun + total(found, "cancelled") == 2, "asked for = begun + cancelled"
    assert total(found, "cancelled") >= 1
    assert total(found, "foreseen") == 0


@pytest.mark.parametrize("ahead", ["markov", "history", "popularity", "synthetic:0.3", "oracle"])
def test_foreseen_accesses_are_those_of_predicted_experts(ahead: str):
    """Nothing is foreseen in the first layer, and no access is counted twice."""
    case = BASE | {"prefetch": ahead, "traffic.steps": 12, "overlap": "chunked:2"}
    table = run(small(case, "zipf:1.5")).accesses
    assert not table["foreseen"][table["layer"] == 0].any()
    assert (table["foreseen"] <= table["hit"] + table["late"] + table["miss"]).all()
    assert table["foreseen"].any()


# --- levels ------------------------------------------------------------------------------


def test_an_expert_that_a_peer_holds_comes_over_nvlink(tmp_path: Path):
    """Step 0: GPU 0 takes 0 and 1 (from the host), GPU 1 takes 2 and 3. Step 1: the other way
    round, and each finds them at the other.
    """
    ids = np.zeros((4, LAYERS, 2), dtype=int)
    ids[0], ids[1] = (0, 1), (2, 3)
    ids[2], ids[3] = (2, 3), (0, 1)
    trace = write_trace(tmp_path / "t.parquet", ids, EXPERTS, [0, 0, 1, 1])
    case = BASE | {
        "traffic": "{tokens_per_gpu: 1, context: 32, steps: 2}",
        "expert_home": "peer-or-host",
        "topology.build.pcie": "{bandwidth: 1 GB/s, latency: 500 ns}",
    }
    found = run(small(case, trace))
    copies = found.where(stream="copy")
    first, second = copies["step"] == 0, copies["step"] == 1
    assert (copies["peer"][first] == -1).all()
    assert np.array_equal(copies["peer"][second], 1 - copies["gpu"][second])
    carried = dict(zip(found.links["link"], found.links["bytes"], strict=True))
    size = 18432.0
    for gpu in (0, 1):
        assert carried[f"gpu{gpu} -> nvswitch"] == 2 * LAYERS * size
        assert carried[f"cpu0 -> gpu{gpu}"] == 2 * LAYERS * size
    host = run(small(case | {"expert_home": "host"}, trace))
    assert found.steps["end_s"][1] < host.steps["end_s"][1]


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 5), st.sampled_from(["none", "oracle"]))
def test_what_is_lent_stays_until_it_has_been_copied(seed: int, slots: int, ahead: str):
    """A copy from a GPU lies within the time in which the lender has the expert."""
    case = BASE | {
        "topology.build.gpus": 3,
        "topology.build.nvlink.bandwidth": "1 GB/s",
        "expert_home": "peer-or-host",
        "expert_slots": slots,
        "prefetch": ahead,
        "overlap": "two-batch",
    }
    found, stays = watched(small(case, "zipf:1.0"), seed)
    until = [np.inf] * len(stays)
    for stay in stays:
        if stay.replaced >= 0:
            until[stay.replaced] = stay.start_s
    copies = found.where(stream="copy")
    for gpu, layer, expert, start, end in zip(
        *(copies[name] for name in ("peer", "layer", "expert", "start_s", "end_s")), strict=True
    ):
        if gpu >= 0:
            assert any(
                s.gpu == gpu and s.layer == layer and s.expert == expert
                and s.end_s <= start and end <= gone
                for s, gone in zip(stays, until, strict=True)
            )  # fmt: skip


def test_without_peers_that_could_lend_all_comes_from_the_host():
    case = BASE | {"expert_access": "dispatch", "expert_home": "peer-or-host", "expert_slots": 2}
    found = run(small(case))
    assert (found.where(stream="copy")["peer"] == -1).all()
    assert any("peer-or-host" in note for note in found.report.notes)


# --- sizes -------------------------------------------------------------------------------


def test_experts_of_unequal_size_take_their_share_of_slots_wires_and_hbm(tmp_path: Path):
    """Expert 0 is half, 1 is twice a slot: in two slots 0 and 2 fit with half a slot to spare, and
    1 needs both.
    """
    sizes = "[0.5, 2, 1, 0.5, 1, 1, 1, 1]"
    moe = f"{{experts: 8, top_k: 1, intermediate: 48, expert_sizes: {sizes}}}"
    ids = np.array([0, 2, 3, 0, 1, 0, 1])[:, None, None]
    more = {
        "topology__build__gpus": 1,
        "model__layers": 1,
        "model__moe": moe,
        "traffic": f"{{tokens_per_gpu: 1, context: 32, steps: {len(ids)}}}",
        "expert_slots": 2,
    }
    found = replay(tmp_path, ids, [0] * len(ids), **more)
    assert found.accesses["hit"].tolist() == [0, 0, 0, 1, 0, 0, 0]
    copies = found.where(kind="demand")
    assert copies["expert"].tolist() == [0, 2, 3, 1, 0, 1]
    relative = np.array([0.5, 1, 0.5, 2, 0.5, 2])
    assert copies["bytes"].tolist() == (18432 * relative).tolist()
    assert found.links["bytes"].max() == 18432 * relative.sum()
    kernels = found.where(kind="experts", expert=1)
    plain = found.where(kind="experts", expert=2)
    # The weights of a kernel of one row, 18,432 bytes more for the expert of twice the size.
    assert kernels["bytes"][0] - plain["bytes"][0] == pytest.approx(18432.0, rel=1e-9)


@pytest.mark.parametrize("pool", ["layer", "global"])
@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    sizes=st.lists(st.sampled_from([0.25, 0.5, 0.7, 1.0, 2.0]), min_size=EXPERTS, max_size=EXPERTS),
    evict=st.sampled_from(sorted(EVICTIONS)),
    ahead=st.sampled_from(["none", "oracle:2", "history"]),
)
def test_unequal_experts_never_take_more_than_the_slots(
    pool: str, seed: int, sizes: list[float], evict: str, ahead: str
):
    """Counted from the spans alone: an expert is there from the start of its copy at least until
    the end of its last kernel.
    """
    moe = f"{{experts: {EXPERTS}, top_k: 2, intermediate: 48, expert_sizes: {sizes}}}"
    case = BASE | {
        "model.moe": moe,
        "expert_slots": 2,
        "expert_pool": pool,
        "eviction": evict,
        "prefetch": ahead,
        "traffic": "{tokens_per_gpu: 3, context: 32, steps: 3}",
    }
    found = run(small(case, "zipf:1.0"), seed)
    copies, kernels = found.where(stream="copy"), found.where(kind="experts")
    room = 2.0 * (LAYERS if pool == "global" else 1)
    for gpu in (0, 1):
        for layer in [None] if pool == "global" else range(LAYERS):
            mine = copies["gpu"] == gpu
            mine &= np.ones_like(mine) if layer is None else copies["layer"] == layer
            stays = []
            for i in np.flatnonzero(mine):
                own = (
                    (kernels["gpu"] == gpu)
                    & (kernels["layer"] == copies["layer"][i])
                    & (kernels["expert"] == copies["expert"][i])
                    & (kernels["start_s"] >= copies["end_s"][i])
                )
                first = kernels["end_s"][own].min(initial=np.inf)
                last = first if copies["kind"][i] == "demand" else copies["end_s"][i]
                stays.append((copies["start_s"][i], last, sizes[copies["expert"][i]]))
            for now, _, _ in stays:
                held = sum(size for start, end, size in stays if start <= now < end)
                assert held <= room + 1e-9


def test_sizes_that_cannot_be_are_refused():
    moe = "{experts: 8, top_k: 2, intermediate: 48, expert_sizes: [1, 1]}"
    with pytest.raises(InputError, match="2 sizes for 8 experts"):
        small(BASE | {"model.moe": moe})
    sizes = [1.0] * 7 + [3.0]
    moe = f"{{experts: 8, top_k: 2, intermediate: 48, expert_sizes: {sizes}}}"
    with pytest.raises(InputError, match="size 3 does not fit into 2 slots"):
        run(small(BASE | {"model.moe": moe, "expert_slots": 2}))


# --- back-pressure -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_prefetch_waits_while_a_demand_fetch_is_on_its_links(seed: int):
    """Two GPUs behind one memory bus. No prefetch begins within a demand fetch of the other GPU,
    while without this some do.
    """
    case = BASE | {
        "expert_access": "dispatch",
        "parallel.ep": 2,
        "expert_slots": 2,
        "prefetch": "oracle",
        "traffic": "{tokens_per_gpu: 5, context: 32, steps: 8}",
        "topology.build.pcie": "{bandwidth: 20 GB/s, latency: 500 ns}",
    }
    began = {}
    for how in ("own-copies", "shared-links"):
        copies = run(small(case | {"prefetch_yields": how}, "zipf:0.5"), seed).where(stream="copy")
        ahead = copies["kind"] == "prefetch"
        assert ahead.any()
        began[how] = sum(
            bool(
                (
                    ~ahead
                    & (copies["gpu"] != copies["gpu"][i])
                    & (copies["start_s"] <= copies["start_s"][i])
                    & (copies["start_s"][i] < copies["end_s"])
                ).any()
            )
            for i in np.flatnonzero(ahead)
        )
    assert began["shared-links"] == 0
    assert began["own-copies"] > 0
