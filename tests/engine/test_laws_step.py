"""What holds of every run, over random small cases: no law here knows which case it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import closed_forms
import numpy as np
import pytest
from engine.harness import Run, run, small, write_trace
from engine.watching import Stay, watched
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.routing.batches import Batch, synthesize

Case = dict[str, Any]
"""Overrides of the small run, and `law` and `seed`."""

LAYERS_DENSE = st.sampled_from([(1, 0), (2, 0), (3, 0), (3, 1), (4, 2)])


@st.composite
def cases(draw: st.DrawFn, offload: bool | None = None) -> Case:
    """A run of a few steps on 1 to 4 GPUs; `offload`: with too few slots (None: or enough)."""
    gpus = draw(st.integers(1, 4))
    ep = draw(st.sampled_from([d for d in range(1, gpus + 1) if gpus % d == 0]))
    experts = draw(st.integers(max(2, ep), 9))
    layers, dense = draw(LAYERS_DENSE)
    access = draw(st.sampled_from(["dispatch", "fetch"]))
    most = experts if access == "fetch" else -(-experts // ep)
    offload = draw(st.booleans()) if offload is None else offload
    slots = draw(st.integers(1, max(1, most - 1))) if offload else most
    home = draw(st.sampled_from(["host", "peer"])) if ep > 1 else "host"
    pcie = draw(st.sampled_from(["64 GB/s", "3 GB/s", "300 MB/s"]))
    shared = draw(
        st.sampled_from(["shared_experts: 0", "shared_experts: 1, shared_intermediate: 9"])
    )
    top_k = draw(st.integers(1, min(3, experts)))
    return {
        "topology.build.gpus": gpus,
        "topology.build.hosts": draw(st.integers(1, min(2, gpus))),
        "topology.build.pcie": f"{{bandwidth: {pcie}, latency: 500 ns}}",
        "topology.build.nvlink.bandwidth": draw(st.sampled_from(["450 GB/s", "1 GB/s"])),
        "gpu.hbm_bandwidth": draw(st.sampled_from(["3.35 TB/s", "1 GB/s"])),
        "parallel.ep": ep,
        "model.layers": layers,
        "model.dense_intermediate": 70,
        "model.moe": f"{{experts: {experts}, top_k: {top_k}, intermediate: 48, {shared},"
        f" first_dense_layers: {dense}}}",
        "traffic.tokens_per_gpu": draw(st.integers(1, 6)),
        "traffic.steps": draw(st.integers(1, 3)),
        "traffic.warmup_steps": draw(st.integers(0, 1)),
        "traffic.phase": draw(st.sampled_from(["decode", "prefill"])),
        "expert_access": access,
        "expert_slots": slots,
        "expert_home": home,
        "expert_order": draw(st.sampled_from(["gate", "resident-first"])),
        "prefetch": draw(st.sampled_from(["none", "learned", "oracle", "synthetic:0.6"])),
        "overlap": draw(st.sampled_from(["none", "two-batch", "chunked:2", "chunked:5"])),
        "transport.deduplicate": draw(st.sampled_from(["gpu", "none"])),
        "transport.costs.alltoall.direct.launch": draw(st.sampled_from(["0 s", "5 us"])),
        "network": draw(st.sampled_from(["exact", "exact", "epsilon:0.05", "coflow"])),
        "law": draw(st.sampled_from(["uniform", "zipf:1.5", "markov:0.8"])),
        "seed": draw(st.integers(0, 1000)),
    }


def given_to(case: Case) -> Any:
    return small({k: v for k, v in case.items() if k not in ("law", "seed")}, case["law"])


def ran(case: Case) -> Run:
    """The run of a case. That it returns says that every step came to its end."""
    return run(given_to(case), case["seed"])


def batches(case: Case) -> list[Batch]:
    """The batches that a case computes, drawn again."""
    model = given_to(case).workload.model
    generator = synthesize(
        case["law"],
        case["topology.build.gpus"],
        case["traffic.tokens_per_gpu"],
        case["traffic.phase"],
        model.layers - model.moe.first_dense_layers,
        model.moe.experts,
        model.moe.top_k,
        case["seed"],
    )
    return [next(generator) for _ in range(case["traffic.steps"] + case["traffic.warmup_steps"])]


def owners(case: Case) -> list[int]:
    """The GPU of each expert within its group: contiguous shares that differ by one at most."""
    experts = given_to(case).workload.model.moe.experts
    ep = case["parallel.ep"]
    return [max(g for g in range(ep) if g * experts // ep <= e) for e in range(experts)]


# --- spans -------------------------------------------------------------------------------


@settings(max_examples=60)
@given(cases())
def test_a_stream_does_one_thing_at_a_time(case: Case):
    spans = ran(case).spans
    assert (spans["end_s"] > spans["start_s"]).all()
    for gpu in range(case["topology.build.gpus"]):
        for stream in ("compute", "comm", "copy"):
            mine = (spans["gpu"] == gpu) & (spans["stream"] == stream)
            order = np.argsort(spans["start_s"][mine], kind="stable")
            start, end = spans["start_s"][mine][order], spans["end_s"][mine][order]
            assert (start[1:] >= end[:-1]).all(), (gpu, stream)


@settings(max_examples=60)
@given(cases())
def test_nothing_is_there_twice(case: Case):
    spans = ran(case).spans
    names = ("step", "microbatch", "chunk", "layer", "gpu", "kind", "expert", "start_s")
    rows = Counter(zip(*(spans[name].tolist() for name in names), strict=True))
    assert max(rows.values()) == 1
    # One attention per micro-batch and layer, one head, one dispatch per chunk.
    kernels = spans["kind"] != "demand"
    kernels &= (spans["kind"] != "prefetch") & (spans["expert"] < 0)
    names = ("step", "microbatch", "chunk", "layer", "gpu", "kind")
    rows = Counter(zip(*(spans[name][kernels].tolist() for name in names), strict=True))
    assert max(rows.values()) == 1


@settings(max_examples=60)
@given(cases())
def test_a_span_waits_for_what_it_needs_and_lies_in_its_step(case: Case):
    found = ran(case)
    spans, steps = found.spans, found.steps
    assert (spans["start_s"] >= spans["ready_s"]).all()
    assert (spans["fetch_wait_s"] >= 0).all()
    assert (steps["end_s"] > steps["start_s"]).all()
    assert (steps["start_s"][1:] == steps["end_s"][:-1]).all()
    ours = spans["stream"] != "copy"
    step = spans["step"][ours]
    assert (spans["start_s"][ours] >= steps["start_s"][step]).all()
    assert (spans["end_s"][ours] <= steps["end_s"][step]).all()
    for index in range(len(steps["step"])):
        heads = found.where(step=index, kind="lm_head")
        assert heads["end_s"].max() == steps["end_s"][index]


@settings(max_examples=60)
@given(cases())
def test_work_follows_the_way_of_the_tokens(case: Case):
    """Attention, dispatch, experts, combine, attention of the next layer; GPU by GPU."""
    found = ran(case)
    launch = given_to(case).workload.transport.costs["alltoall"]["direct"].launch_s
    for step in range(len(found.steps["step"])):
        for microbatch in (0, 1):
            mine = found.where(step=step, microbatch=microbatch)
            for gpu in range(case["topology.build.gpus"]):
                check_way(mine, gpu, case["model.layers"], launch)


def check_way(spans: dict[str, np.ndarray], gpu: int, layers: int, launch_s: float) -> None:
    here = spans["gpu"] == gpu
    before = 0.0
    for layer in range(layers + 1):
        at = here & (spans["layer"] == layer)
        first = at & np.isin(spans["kind"], ["attention", "lm_head"])
        assert first.sum() <= 1
        assert (spans["ready_s"][first] >= before).all()
        attended = spans["end_s"][first].max(initial=before)
        after = at & np.isin(spans["kind"], ["ffn", "experts"])
        assert (spans["ready_s"][after] >= attended).all()
        sent = at & (spans["kind"] == "dispatch")
        assert (spans["ready_s"][sent] == attended).all()
        computed = 0.0
        for chunk in np.unique(spans["chunk"][at]):
            part = at & (spans["chunk"] == chunk)
            experts = part & (spans["kind"] == "experts")
            computed = spans["end_s"][experts].max(initial=attended)
            back = part & (spans["kind"] == "combine")
            assert (spans["ready_s"][back] == computed).all()
        sends = at & (spans["stream"] == "comm")
        assert (spans["start_s"][sends] >= spans["ready_s"][sends] + launch_s).all()
        before = max(attended, spans["end_s"][after].max(initial=0.0))


@settings(max_examples=30)
@given(cases())
def test_on_two_gpus_tokens_arrive_when_their_transfer_ends(case: Case):
    """With one peer, a send is one transfer: the experts are ready at its end, or at their own."""
    case |= {"topology.build.gpus": 2, "topology.build.hosts": 1, "parallel.ep": 2}
    case |= {"model.moe": "{experts: 6, top_k: 2, intermediate: 48}", "model.layers": 2}
    case |= {"expert_access": "dispatch", "expert_slots": min(case["expert_slots"], 3)}
    if case["network"] == "coflow":  # all wait for all
        case["network"] = "exact"
    found = ran(case)
    kernels = found.where(kind="experts")
    for row in range(len(kernels["step"])):
        same = {name: kernels[name][row] for name in ("step", "microbatch", "layer")}
        gpu = kernels["gpu"][row]
        own = found.where(kind="attention", gpu=gpu, **same)["end_s"].max(initial=0.0)
        chunk = kernels["chunk"][row]
        came = found.where(kind="dispatch", gpu=1 - gpu, chunk=chunk, **same)["end_s"]
        wanted = came.max(initial=own)
        assert kernels["ready_s"][row] == wanted
        assert kernels["peer"][row] == (1 - gpu if came.size and came[0] > own else -1)


# --- tokens and bytes --------------------------------------------------------------------


@settings(max_examples=60)
@given(cases())
def test_tokens_and_bytes_are_those_of_the_routing(case: Case):
    found = ran(case)
    inputs = given_to(case)
    model, transport = inputs.workload.model, inputs.workload.transport
    gpus, ep, owner = case["topology.build.gpus"], case["parallel.ep"], owners(case)
    dense = model.moe.first_dense_layers
    drawn = batches(case)
    assert found.steps["tokens"].tolist() == [batch.tokens for batch in drawn]
    loads = np.zeros((model.layers, gpus, model.moe.experts), dtype=int)
    for step, batch in enumerate(drawn):
        source = batch.source_gpu.tolist()
        for layer in range(dense, model.layers):
            ids = batch.ids[:, layer - dense].tolist()
            if case["expert_access"] == "fetch":
                pairs = np.zeros((gpus, gpus), dtype=int)
                rows = np.array(
                    closed_forms.rows_per_expert(ids, source, [0] * len(owner), 1, gpus)
                )
            else:
                rows = np.array(closed_forms.rows_per_expert(ids, source, owner, ep, gpus))
                pairs = np.array(
                    closed_forms.tokens_between(ids, source, owner, ep, gpus)
                    if case["transport.deduplicate"] == "gpu"
                    else choices_between(ids, source, owner, ep, gpus)
                )
                np.fill_diagonal(pairs, 0)
            assert rows.sum() == batch.tokens * model.moe.top_k
            kernels = found.where(step=step, layer=layer, kind="experts")
            computed = np.bincount(kernels["gpu"], kernels["rows"], minlength=gpus)
            assert computed.tolist() == rows.sum(axis=1).tolist()
            flops = 2.0 * 3 * model.hidden * 48 * rows.sum(axis=1)
            assert np.bincount(kernels["gpu"], kernels["flops"], gpus) == pytest.approx(flops)
            for kind, sent, size in (
                ("dispatch", pairs, model.hidden * transport.dispatch_bytes_per_element),
                ("combine", pairs.T, model.hidden * transport.combine_bytes_per_element),
            ):
                sends = found.where(step=step, layer=layer, kind=kind)
                bytes_ = np.bincount(sends["gpu"], sends["bytes"], minlength=gpus)
                assert bytes_ == pytest.approx(sent.sum(axis=1) * size, rel=1e-12)
            if step >= case["traffic.warmup_steps"]:
                loads[layer] += rows
    written = np.zeros_like(loads)
    written[found.loads["layer"], found.loads["gpu"], found.loads["expert"]] = found.loads["rows"]
    assert (written == loads).all()


def choices_between(
    ids: list[list[int]], source: list[int], owner: list[int], ep: int, gpus: int
) -> list[list[int]]:
    """As `closed_forms.tokens_between`, once per expert: every choice is a token of its own."""
    single = [[expert] for chosen in ids for expert in chosen]
    repeated = [gpu for chosen, gpu in zip(ids, source, strict=True) for _ in chosen]
    return closed_forms.tokens_between(single, repeated, owner, ep, gpus)


@settings(max_examples=60)
@given(cases())
def test_a_link_carries_the_bytes_of_the_spans(case: Case):
    """Sends leave over the GPU's own link; fetches from the host come through its memory's bus."""
    case |= {"traffic.warmup_steps": 0, "expert_home": "host"}
    found = ran(case)
    carried = dict(zip(found.links["link"], found.links["bytes"], strict=True))
    hosts, gpus = case["topology.build.hosts"], case["topology.build.gpus"]
    sends, copies = found.where(stream="comm"), found.where(stream="copy")
    fetched = np.zeros(hosts)
    for gpu in range(gpus):
        sent = sends["bytes"][sends["gpu"] == gpu].sum()
        assert carried.get(f"gpu{gpu} -> nvswitch", 0.0) == pytest.approx(sent, rel=1e-12)
        host = gpu * hosts // gpus
        mine = copies["bytes"][copies["gpu"] == gpu].sum()
        fetched[host] += mine
        assert carried.get(f"cpu{host} -> gpu{gpu}", 0.0) == pytest.approx(mine, rel=1e-12)
    for host in range(hosts):
        bus = carried.get(f"dram{host} -> cpu{host}", 0.0)
        assert bus == pytest.approx(fetched[host], rel=1e-12)
    into = sum(bytes_ for link, bytes_ in carried.items() if link.startswith("nvswitch ->"))
    assert into == pytest.approx(sends["bytes"].sum(), rel=1e-12)


FULL_MESH = """
name: mesh
gpu: H100-SXM
build:
  kind: explicit
  nodes:
    - {name: gpu0, kind: gpu}
    - {name: gpu1, kind: gpu}
    - {name: gpu2, kind: gpu}
  links:
    - {from: gpu0, to: gpu1, bandwidth: 10 GB/s, latency: 1 us, both: true}
    - {from: gpu0, to: gpu2, bandwidth: 20 GB/s, latency: 2 us, both: true}
    - {from: gpu1, to: gpu2, bandwidth: 30 GB/s, latency: 3 us, both: true}
"""


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("overlap", ["none", "two-batch", "chunked:3"])
def test_between_two_gpus_go_the_tokens_of_their_experts_and_back(
    tmp_path: Path, seed: int, overlap: str
):
    """Three GPUs joined two by two: what a link carries is what its pair exchanges."""
    (tmp_path / "mesh.yaml").write_text(FULL_MESH)
    more = {
        "overlap": overlap,
        "transport.dispatch_bytes_per_element": 1.5,
        "traffic.tokens_per_gpu": 7,
    }
    found = run(small(more, topology=tmp_path / "mesh.yaml"), seed)
    batch = next(synthesize("uniform", 3, 7, "decode", 2, 8, 2, seed))
    owner = [0, 0, 1, 1, 1, 2, 2, 2]  # shares of 8 experts: up to 8/3 and 16/3
    wanted = np.zeros((3, 3))
    for layer in range(2):
        ids, source = batch.ids[:, layer].tolist(), batch.source_gpu.tolist()
        pairs = np.array(closed_forms.tokens_between(ids, source, owner, 3, 3))
        wanted += 64 * (1.5 * pairs + 2.0 * pairs.T)
    carried = dict(zip(found.links["link"], found.links["bytes"], strict=True))
    for a in range(3):
        for b in range(3):
            if a != b:
                assert carried[f"gpu{a} -> gpu{b}"] == pytest.approx(wanted[a, b], rel=1e-12)


# --- expert memory -----------------------------------------------------------------------


def over(stays: list[Stay], slots: int) -> int:
    """Most experts of one GPU and layer that were loaded or loading at one instant, less slots.

    An expert is there from the start of its fetch until the fetch starts that takes its place.
    """
    until = [np.inf] * len(stays)
    for stay in stays:
        if stay.replaced >= 0:
            until[stay.replaced] = stay.start_s
    worst = -slots
    for key in {stay[:2] for stay in stays}:
        mine = [(s.start_s, u) for s, u in zip(stays, until, strict=True) if s[:2] == key]
        for now, _ in mine:
            if now < np.inf:
                there = sum(start <= now < end for start, end in mine)
                worst = max(worst, there - slots)
    return worst


BUSIEST = {
    "model.layers": 4,
    "model.moe": "{experts: 8, top_k: 2, intermediate: 48}",
    "traffic.tokens_per_gpu": 6,
    "traffic.phase": "decode",
    "overlap": "two-batch",
    "prefetch": "synthetic:0.6",
}
"""Two micro-batches that want slots of one layer for what they use and for what is to come."""


@pytest.mark.parametrize("more", [{}, BUSIEST], ids=["any", "busiest"])
@settings(max_examples=100)
@given(case=cases(offload=True))
def test_memory_is_never_over_its_slots(case: Case, more: Case):
    case |= more
    case["expert_slots"] = min(case["expert_slots"], 8 // case["parallel.ep"])
    _, stays = watched(given_to(case), case["seed"])
    assert over(stays, case["expert_slots"]) <= 0
    for stay in stays:
        assert all(start >= stay.end_s for start, _ in stay.kernels), "used before it was loaded"
        assert stay.start_s >= stay.asked_s
        if stay.replaced >= 0:
            gone = stays[stay.replaced]
            assert stay[:2] == gone[:2]
            ended = max([gone.end_s, *(end for _, end in gone.kernels)])
            assert stay.start_s >= ended or stay.start_s == np.inf, "loaded over one in use"


@settings(max_examples=80)
@given(cases(offload=True))
def test_accesses_copies_and_kernels_agree(case: Case):
    found, stays = watched(given_to(case), case["seed"])
    counts = found.accesses
    assert (counts["miss"].sum() if len(stays) else 0) == len(found.where(kind="demand")["step"])
    ended = [stay for stay in stays if stay.end_s < np.inf]
    copies = found.where(stream="copy")
    assert sorted(copies["start_s"].tolist()) == sorted(stay.start_s for stay in ended)
    used = {(s.gpu, s.start_s): bool(s.kernels) for s in ended}
    for gpu, start, was_used, kind in zip(
        copies["gpu"], copies["start_s"], copies["used"], copies["kind"], strict=True
    ):
        assert used[gpu, start] == was_used
        assert was_used or kind == "prefetch"
    if case["overlap"] == "none" and case["expert_access"] == "dispatch":
        ep, gpus, owner = case["parallel.ep"], case["topology.build.gpus"], owners(case)
        dense = given_to(case).workload.model.moe.first_dense_layers
        total = counts["hit"] + counts["late"] + counts["miss"]
        wanted = {}
        for step, batch in enumerate(batches(case)):
            for layer in range(batch.ids.shape[1]):
                ids, source = batch.ids[:, layer].tolist(), batch.source_gpu.tolist()
                rows = closed_forms.rows_per_expert(ids, source, owner, ep, gpus)
                for gpu in range(gpus):
                    if active := sum(r > 0 for r in rows[gpu]):
                        wanted[step, gpu, layer + dense] = active
        keys = zip(counts["step"], counts["gpu"], counts["layer"], strict=True)
        assert dict(zip(keys, total, strict=True)) == wanted


@settings(max_examples=80)
@given(cases(offload=True))
def test_a_prefetch_begins_before_its_layer_is_over(case: Case):
    """What a micro-batch wanted ahead is not fetched when its GPU has gone on to a later layer."""
    found = ran(case)
    attention = found.where(kind="attention")
    heads = found.where(kind="lm_head")
    for row in np.flatnonzero(found.spans["kind"] == "prefetch"):
        step, layer, gpu, start = (
            found.spans[name][row] for name in ("step", "layer", "gpu", "start_s")
        )
        later = attention["start_s"][
            (attention["step"] == step) & (attention["gpu"] == gpu) & (attention["layer"] > layer)
        ]
        last = heads["start_s"][(heads["step"] == step) & (heads["gpu"] == gpu)]
        # Two micro-batches: the slower one may still want it.
        assert start <= np.concatenate([later, last]).max()
        assert start < found.steps["end_s"][step]


@pytest.mark.parametrize("access", ["dispatch", "fetch"])
@pytest.mark.parametrize("seed", range(4))
def test_with_room_enough_every_oracle_prefetch_is_used(access: str, seed: int):
    case = {
        "topology.build.gpus": 2,
        "model.layers": 5,
        "model.moe": "{experts: 16, top_k: 2, intermediate: 48}",
        "traffic": "{tokens_per_gpu: 1, context: 32, steps: 6}",
        "expert_access": access,
        "expert_slots": 6,
        "prefetch": "oracle",
    }
    prefetched = run(small(case), seed).where(kind="prefetch")
    assert len(prefetched["used"]) > 20
    assert prefetched["used"].all()


# --- scaling, names, repetition -----------------------------------------------------------


def scaled(inputs: Any, k: float) -> Any:
    """The same inputs with every rate x k and every latency and overhead x 1/k."""
    gpu = inputs.topology.gpu
    gpu = gpu.model_copy(
        update={
            "flops_per_s": {name: rate * k for name, rate in gpu.flops_per_s.items()},
            "hbm_bandwidth_bytes_per_s": gpu.hbm_bandwidth_bytes_per_s * k,
            "l2_bandwidth_bytes_per_s": gpu.l2_bandwidth_bytes_per_s * k,
            "launch_overhead_s": gpu.launch_overhead_s / k,
        }
    )
    build = inputs.topology.build
    links = {
        name: (link := getattr(build, name)).model_copy(
            update={
                "bandwidth_bytes_per_s": link.bandwidth_bytes_per_s * k,
                "latency_s": link.latency_s / k,
            }
        )
        for name in ("nvlink", "pcie", "dram")
    }
    transport = inputs.workload.transport
    cost = transport.costs["alltoall"]["direct"]
    faster = {"direct": cost.model_copy(update={"launch_s": cost.launch_s / k})}
    transport = transport.model_copy(update={"costs": {"alltoall": faster}})
    return replace(
        inputs,
        topology=inputs.topology.model_copy(
            update={"gpu": gpu, "build": build.model_copy(update=links)}
        ),
        workload=inputs.workload.model_copy(update={"transport": transport}),
    )


TIMES = ("start_s", "end_s", "ready_s", "fetch_wait_s")


@settings(max_examples=40)
@given(cases(), st.sampled_from([0.25, 1024.0]))
def test_k_times_as_fast_is_the_same_run_in_one_kth_of_the_time(case: Case, k: float):
    """For a power of two to the last bit, decisions, spans and all."""
    slow = run(given_to(case), case["seed"])
    fast = run(scaled(given_to(case), k), case["seed"])
    for name, values in slow.spans.items():
        assert np.array_equal(fast.spans[name] * k if name in TIMES else fast.spans[name], values)
    for name, values in slow.accesses.items():
        assert np.array_equal(fast.accesses[name], values)


@settings(max_examples=40)
@given(cases(offload=False), st.sampled_from([0.3, 7.0, 1e4]))
def test_k_times_as_fast_takes_one_kth_of_the_time_for_any_k(case: Case, k: float):
    slow = run(given_to(case), case["seed"])
    fast = run(scaled(given_to(case), k), case["seed"])
    assert fast.steps["end_s"] * k == pytest.approx(slow.steps["end_s"], rel=1e-9)
    for kind in np.unique(slow.spans["kind"]):
        ends = np.sort(slow.where(kind=kind)["end_s"])
        assert np.sort(fast.where(kind=kind)["end_s"]) * k == pytest.approx(ends, rel=1e-9)


@settings(max_examples=20)
@given(cases())
def test_the_same_inputs_and_seed_give_the_same_bytes(case: Case):
    first, second = ran(case), ran(case)
    assert first.span_bytes == second.span_bytes
    for one, other in zip(first[2:6], second[2:6], strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("access", ["dispatch", "fetch"])
def test_which_gpu_on_a_switch_is_which_does_not_matter(tmp_path: Path, access: str, seed: int):
    """GPUs and the experts on them renamed, and their tokens with them: the same times."""
    rng = np.random.default_rng(seed)
    gpus, per_gpu, layers, each = 4, 2, 3, 5
    experts = gpus * per_gpu
    order = rng.permutation(gpus)  # what is GPU g becomes GPU order[g]
    ids = np.stack(
        [rng.permuted(np.arange(experts))[:2] for _ in range(gpus * each * layers)]
    ).reshape(gpus, each, layers, 2)
    moved = np.empty_like(ids)
    moved[order] = order[ids // per_gpu] * per_gpu + ids % per_gpu
    ends = []
    for name, table in (("plain", ids), ("moved", moved)):
        trace = write_trace(
            tmp_path / f"{name}.parquet",
            table.reshape(-1, layers, 2),
            experts,
            np.repeat(np.arange(gpus), each).tolist(),
        )
        case = {
            "model.layers": layers,
            "traffic": f"{{phase: prefill, tokens_per_gpu: {each}, context: 32, steps: 1}}",
            "expert_access": access,
            "expert_slots": 3 if access == "fetch" else per_gpu,
            "topology.build.nvlink.bandwidth": "1 GB/s",
        }
        found = run(small(case, trace))
        ends.append([found.where(gpu=g)["end_s"].max() for g in range(gpus)])
    plain, renamed = ends
    assert [renamed[order[g]] for g in range(gpus)] == pytest.approx(plain, rel=1e-9)
