"""The compiled time of a step against the step engine, and its kernels against the Python ones.

With two micro-batches it is that of `network: coflow`; with one, `test_closed_form.py` says more.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from serving.closed_form import ClosedForm
from serving.steps import RESIDENT, SYSTEMS, decoding, served

from simulator.engine.layout import layout_of
from simulator.engine.parts import cut
from simulator.engine.roads import roads_of
from simulator.engine.serving import scheduler, timing
from simulator.engine.serving.costs import costs_of
from simulator.engine.serving.exact import Engine, asked_of
from simulator.engine.simulate import _cut, _machine, _tiers
from simulator.engine.source import routing_of
from simulator.engine.step import Step
from simulator.model import kernels
from simulator.model.compute import ComputeModel
from simulator.spec.find import shipped
from simulator.spec.load import load_inputs

# Overlap, the network of the run beside it, and how far apart they may be.
WAYS = (("none", "exact", 5e-3), ("two-batch", "coflow", 1e-9))


@pytest.mark.parametrize("tokens", [1, 3, 16])
@pytest.mark.parametrize("system", SYSTEMS)
def test_decode_step_takes_what_the_step_engine_says(system, tokens):
    topology, workload, *given = SYSTEMS[system]
    many = np.full(tokens * 32, 1024)
    inputs, cluster = served(topology, workload, many, many, *given, "overlap=two-batch")
    decoding(cluster, 0, tokens, 1024)
    group = cluster.service.groups[0]
    seconds = group.start(0.0)
    assert int(group.work.ends[-1, -1]) == tokens * group.of.ranks
    assert seconds == pytest.approx(Engine(inputs, cluster, 0, "coflow").seconds(group), rel=1e-9)


@pytest.mark.parametrize("system", SYSTEMS)
def test_steps_of_prompts_and_decodes_together_do_too(system):
    """Requests of unequal length through several steps of the scheduler, chunks included."""
    topology, workload, *given = SYSTEMS[system]
    rng = np.random.default_rng(11)
    prompt, output = rng.integers(1, 700, 96), rng.integers(2, 9, 96)
    inputs, cluster = served(
        topology, workload, prompt, output, *given, "overlap=two-batch", tokens=192
    )
    last = len(cluster.service.groups) - 1
    group, engine = cluster.service.groups[last], Engine(inputs, cluster, last, "coflow")
    for request in range(96):
        # Rank 1 gets none, the others unequal numbers.
        group.enqueue(request, int(rng.choice(np.delete(np.arange(group.of.ranks), 1))))
    kinds, now = set(), 0.0
    for _ in range(8):
        end = group.start(now)
        phase = group.work.phase
        kinds |= {
            tuple((phase[half, rank, :, 0] > 0).tolist())
            for half, rank in np.ndindex(phase.shape[:2])
        }
        assert end - now == pytest.approx(engine.seconds(group), rel=1e-9)
        group.finish()
        now = end
    assert (True, True) in kinds  # some GPU had both in one micro-batch
    assert (False, False) in kinds  # and some had nothing


@pytest.mark.parametrize(("overlap", "network", "far"), [*WAYS])
@pytest.mark.parametrize(
    ("topology", "workload", "given"),
    [
        ("nvswitch16", "moe128", RESIDENT),
        ("dgx-h100", "gpt-oss-120b", ()),
        ("h100x32-rail", "deepseek-v3", ("transport=deepep-normal", "parallel.ep=32")),
    ],
)
def test_same_batch_as_in_a_run(topology, workload, given, overlap, network, far):
    """The same tokens through what `simulate` does: cut, plain attention, all GPUs."""
    tokens, context = 8, 2048
    traffic = (f"traffic.tokens_per_gpu={tokens}", f"traffic.context={context}")
    many = np.full(tokens * 32, context)
    inputs, cluster = served(topology, workload, many, many, *given, f"overlap={overlap}", *traffic)
    graph, layout = cluster.graph, layout_of(inputs.workload, len(cluster.names), "it")
    batch = next(routing_of(inputs, layout.gpus, layout.ep, False, 0)[0])
    other = inputs.workload.model_copy(update={"network": network})
    how = _cut(other, layout, _tiers(other, graph, layout), None)
    machine = _machine(
        replace(inputs, workload=other), layout, roads_of(inputs, graph, layout), how, 0
    )
    layer_of = np.concatenate([np.full(machine.dense, -1, dtype=np.int32), batch.layer_of])
    env = machine.driver.env
    env.run(until=Step(machine, 0, cut(batch, how), layer_of).run())

    group = cluster.service.groups[0]
    np.testing.assert_array_equal(layer_of, cluster_layers(cluster, machine.dense))
    group.routing = group.routing._replace(ids=np.ascontiguousarray(batch.ids))
    decoding(cluster, 0, tokens, context)
    for request in range(tokens * layout.ep):
        rank = request % layout.ep
        group.ledger.row[request] = rank * tokens + request // layout.ep
        group.ledger.rows[request] = 1
    assert group.start(0.0) == pytest.approx(env.now, rel=far)


def cluster_layers(cluster, dense):
    """The recorded layer of each layer, -1 where there is none, as serving has it."""
    routing = cluster.service.groups[0].routing
    evaluation = cluster.service.groups[0].of.costs.evaluation
    return np.where(evaluation < 0, -1, routing.recorded[evaluation])


@pytest.mark.parametrize("system", ["gqa", "replicas"])
def test_copies_are_told_apart_by_who_takes_them(system):
    """Two copies of each expert, each rank of the even ones with its own half of the group."""
    topology, workload, *given = SYSTEMS[system]
    many = np.full(256, 300)
    inputs, cluster = served(topology, workload, many, many, *given, "overlap=none")
    group = cluster.service.groups[0]
    ranks, experts = group.of.ranks, inputs.workload.model.moe.experts
    half = ranks // 2
    near = (np.arange(experts) * half // experts).astype(np.int16)
    everyone = np.arange(experts, dtype=np.int16)
    copy = np.stack([everyone, everyone + np.int16(experts)])
    routing = group.routing._replace(
        gpu=np.concatenate([near, near + np.int16(half)]).astype(np.int16),
        copy=np.ascontiguousarray(
            np.broadcast_to(copy, (len(group.routing.recorded), *copy.shape))
        ),
        kind=(np.arange(ranks) >= half).astype(np.int32),
    )
    group.rewire(group.wires, routing)
    decoding(cluster, 0, 4, 300)
    seconds = group.start(0.0)
    engine = Engine(inputs, cluster, 0, "exact")
    assert seconds == pytest.approx(ClosedForm(group, engine).seconds(), rel=1e-9)
    assert seconds == pytest.approx(engine.seconds(group), rel=1e-3)
    batch = engine._microbatch(group, 0)
    for tables in batch.chunks:
        assert tables.pairs[:, :half, half:].sum() == tables.pairs[:, half:, :half].sum() == 0
        assert (tables.rows.sum(axis=(1, 2)) == 4 * ranks * inputs.workload.model.moe.top_k).all()


def test_slow_ranks_slow_their_computation():
    """Alone, a GPU twice as slow takes twice as long; in a group, the others wait for it."""
    many = np.full(64, 500)
    _, alone = served("h200x8", "gpt-oss-120b", many, many, "parallel.ep=1", "overlap=none")
    one = alone.service.groups[0]
    decoding(alone, 0, 5, 500)
    usual = one.start(0.0)
    one.abandon()
    one.speed[:] = 2.0
    assert one.start(0.0) == pytest.approx(2.0 * usual, rel=1e-12)

    _, cluster = served("dgx-h100", "moe128", many, many, *RESIDENT, "overlap=none")
    group = cluster.service.groups[0]
    decoding(cluster, 0, 5, 500)
    times = []
    for speed in (np.ones(8), np.array([1.0] * 7 + [2.0]), np.full(8, 2.0)):
        group.speed[:] = speed
        times.append(group.start(0.0))
        group.abandon()
    assert times[0] < times[1] < times[2] < 2.0 * times[0]


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("name", shipped("workload"))
def test_attention_of_any_mix(name, graphs):
    inputs = load_inputs("h100x16-rail", name, ["parallel.ep=null"])
    model = inputs.workload.model
    compute = ComputeModel(model, inputs.topology.gpu, "decode", 1, graphs)
    rows = 600
    costs = costs_of(compute, 2 * rows, np.zeros(model.layers, dtype=np.int32))
    assert np.flatnonzero(costs.windowed).tolist() == compute.windowed
    rng = np.random.default_rng(5)
    for trial in range(60):
        phase = np.zeros((2, 6))
        for which, count in enumerate(rng.integers(1, rows, 2)):
            if trial % 3 != which:
                keys = float(rng.integers(count, 100_000))
                phase[which, :5] = count, keys * float(rng.integers(1, 50)), keys, keys, keys / 2
        for gate in (False, True):
            for near in (False, True):
                expected = compute.mixed_attention(*asked_of(phase, near), gate).seconds
                got = timing._attention_seconds(costs, phase, int(gate), near)
                assert got == pytest.approx(expected, rel=1e-12)
    assert timing._attention_seconds(costs, np.zeros((2, 6)), 1, False) == 0.0


@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize("name", shipped("workload"))
def test_attention_of_one_phase_is_that_of_a_run(name, phase):
    """`mixed_attention` of one phase is `attention`, which the step engine uses."""
    inputs = load_inputs("h100x16-rail", name, ["parallel.ep=null"])
    model, context = inputs.workload.model, 777
    compute = ComputeModel(model, inputs.topology.gpu, phase, context)
    costs = costs_of(compute, 300, np.zeros(model.layers, dtype=np.int32))
    for rows in (1, 7, 300):
        for near in {False, bool(compute.windowed)}:
            keys = min(context, costs.window) if near else context
            of = np.zeros((2, 6))
            decode = phase == "decode"
            which = timing.DECODE if decode else timing.PREFILL
            read = keys * rows if decode else keys
            of[which, :5] = rows, keys * rows, read, keys * rows, read
            expected = compute.attention(rows, True, near).seconds
            assert compute.mixed_attention(*asked_of(of, near), True).seconds == pytest.approx(
                expected, rel=1e-12
            )
            got = timing._attention_seconds(costs, of, timing.SPARSE, near)
            assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("name", shipped("workload"))
def test_fused_moe_and_tables(name, graphs):
    inputs = load_inputs("h100x16-rail", name, ["parallel.ep=null"])
    model = inputs.workload.model
    compute = ComputeModel(model, inputs.topology.gpu, "decode", 1, graphs)
    costs = costs_of(compute, 64, np.zeros(model.layers, dtype=np.int32))
    of = compute.grouped
    rng = np.random.default_rng(3)
    for _ in range(100):
        counts = rng.integers(0, 200, max(model.moe.experts, 1)) * rng.integers(0, 2)
        rows, active = int(counts.sum()), int((counts > 0).sum())
        tokens, mean = max(rows // 2, 1), rows / max(active, 1)
        tile = kernels.tile_of(of, mean)
        assert 1 << timing.tile_shift(costs.moe, mean) == tile
        cut = (tile, kernels.tiles_of(counts, tile), active)
        got = timing.moe_seconds(costs.moe, float(tokens), float(rows), *map(float, cut))
        shape = (model.hidden, model.moe.intermediate)
        alone = kernels.fused_moe(of, tokens, rows, *cut, *shape).seconds
        floor = of.kernels * compute.host_launch_s
        assert got == pytest.approx(max(alone, floor) if rows else 0.0, rel=1e-12)
        expected = compute.experts_by_rows(counts.tolist(), tokens).seconds
        assert got == pytest.approx(expected, rel=1e-12)
    for rows in (1, 17, 64):
        assert costs.head_s[rows] == compute.lm_head(rows).seconds
        assert costs.ffn_s[timing.DENSE, rows] == compute.dense_ffn(rows).seconds
        assert costs.ffn_s[timing.SPARSE, rows] == compute.shared_experts(rows).seconds
    assert costs.head_s[0] == costs.ffn_s[:, 0].sum() == costs.fixed_s[:, 0].sum() == 0.0


@pytest.mark.parametrize("window", [0, 1, 5, 64])
def test_pairs_and_keys_are_counted_token_by_token(window):
    """A run of tokens at positions p attends to p + 1 keys each, at most the window."""
    rng = np.random.default_rng(window)
    for _ in range(300):
        rows = int(rng.integers(1, 40))
        end = int(rng.integers(rows, 100))
        phase = np.zeros(6)
        scheduler._attend(phase, end, rows, window)
        positions = range(end - rows, end)
        seen = [range(max(0, p + 1 - window) if window else 0, p + 1) for p in positions]
        assert phase[0] == rows
        assert phase[1] == sum(p + 1 for p in positions)
        assert phase[2] == end
        assert phase[3] == sum(len(s) for s in seen)
        assert phase[4] == len(set().union(*seen))
    assert math.isclose(phase[5], 0.0)
