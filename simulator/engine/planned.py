"""A run of a plan: its operations filled in batch by batch, run by the core, written as spans.

Flushed, every batch is one program and enters an empty pipeline. Steady, all batches are one
program: a micro-batch of the next batch enters when the same one has left, as in decoding, where
its tokens are needed. A step then lasts from the end of one batch to the end of the next; a span
that reaches over such an end is cut in two. A batch more is run behind the last step, so that no
step has an emptying pipeline, and one before it if no warm-up was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat

import numpy as np
import simpy
from numpy.typing import NDArray

from simulator.cluster.graph import build_graph, gpus
from simulator.engine import plan_spans
from simulator.engine.driver import Driver
from simulator.engine.fitting import ways_to_fit
from simulator.engine.links import network_of, wires_of
from simulator.engine.passes import Filled, Filler
from simulator.engine.plan_roads import roads_of_plan
from simulator.engine.plan_weights import weights_of
from simulator.engine.program import Program, program_of
from simulator.engine.source import Report, routing_of
from simulator.errors import InputError
from simulator.model.footprint import GIB
from simulator.model.plan import Plan, plan_of
from simulator.model.plan_memory import check_memory, host_bytes
from simulator.routing.batches import Batch
from simulator.runfiles import spans as tables
from simulator.runfiles.rundir import RunDir
from simulator.spec.load import Inputs, gpu_count

Progress = Callable[[int, int], None]
Floats = NDArray[np.float64]

MOST_MICROBATCHES = 32_767  # the span table has 16 bit for it
MOST_OPERATIONS = 20_000_000  # about 3 GB


def simulate_plan(
    inputs: Inputs, run: RunDir, seed: int, progress: Progress | None = None
) -> Report:
    """Simulate every step of a plan and write the tables of a run, as `engine.simulate` does.

    Raises InputError for what does not fit into memory, GPUs that nothing joins, operations that
    the transport has no costs for, and what goes with `parallel: {ep: N}` alone.
    """
    workload, count = inputs.workload, gpu_count(inputs.topology)
    plan = plan_of(workload, count, inputs.topology.gpu)
    graph = build_graph(inputs.topology)
    advice = partial(ways_to_fit, inputs, graph)
    check_memory(plan, workload, inputs.topology.gpu, gpus(graph), advice)
    roads, weights = weights_of(inputs, graph, plan, roads_of_plan(inputs, graph, plan))
    batches, report = _batches(inputs, plan, seed)
    _notes(plan, report, inputs)
    traffic = workload.traffic
    warmup = max(traffic.warmup_steps, 1) if plan.steady else traffic.warmup_steps
    rounds = warmup + traffic.steps + 1 if plan.steady else 1
    network = network_of(workload.network)
    program = _program(plan, rounds, network.coflow)
    wires = wires_of(roads.routes, weighted=network.coflow)
    driver = Driver(
        simpy.Environment(0.0),
        wires,
        3 * count,
        program.end + 1,
        program.edges,
        network.epsilon,
        count if network.coflow else 0,  # at most one on each communication stream
    )
    filler = Filler(inputs, plan, program, roads, weights, wires)
    book = plan_spans.Book(program, roads, warmup)
    with tables.SpanWriter(run.spans) as spans, tables.AccessWriter(run.accesses) as accesses:
        for index in range(1 if plan.steady else warmup + traffic.steps):
            taken = [next(batches) for _ in range(rounds)]
            filled = filler.fill(taken)
            start_s = driver.env.now
            _run(driver, program, filled)
            told = book.steady if plan.steady else book.flushed
            told(driver.net, filled, taken, index, start_s, spans, accesses)
            if progress is not None:
                done = warmup + traffic.steps if plan.steady else index + 1
                progress(done, warmup + traffic.steps)
    book.write(run)
    report.solver = driver.statistics()
    return report


def _program(plan: Plan, rounds: int, whole: bool) -> Program:
    if plan.microbatches > MOST_MICROBATCHES:
        raise InputError(
            f"parallel: {plan.microbatches} micro-batches; at most {MOST_MICROBATCHES}: "
            "write a larger chunk, or fewer microbatches"
        )
    program = program_of(plan, rounds, whole)
    if program.end > MOST_OPERATIONS:
        raise InputError(
            f"parallel: {program.end:,} operations at a time, at most {MOST_OPERATIONS:,}: "
            "write a larger chunk, fewer microbatches or fewer steps"
        )
    return program


def _run(driver: Driver, program: Program, filled: Filled) -> None:
    """Run a program to its end."""
    driver.lay(filled.op_f, filled.op_i, *filled.sends, filled.collectives)
    over = driver.env.event()

    def ended(_: list[int]) -> None:
        over.succeed()

    driver.on_end = ended
    driver.start(program.starts)
    driver.env.run(until=over)


def _batches(inputs: Inputs, plan: Plan, seed: int) -> tuple[Iterator[Batch], Report]:
    """The endless batches; those of a dense model have no experts."""
    first = plan.stages[0].degrees
    if inputs.workload.model.moe.experts:
        return routing_of(inputs, plan.gpus, first.ep, plan.streams, seed)
    traffic = inputs.workload.traffic
    source = np.repeat(np.arange(plan.gpus, dtype=np.int32), traffic.tokens_per_gpu)
    count = len(source)
    each = np.arange(count, dtype=np.int32)
    begins = np.ones(count, dtype=np.bool_)
    if traffic.phase == "prefill":
        begins = np.concatenate(([True], source[1:] != source[:-1]))
    nothing = np.zeros((count, 0, 1), dtype=np.int16)
    batch = Batch(nothing, np.zeros(0, dtype=np.int32), source, each, each, begins)
    return repeat(batch), Report(plan.gpus, 1, {"source": "none: a dense model"})


def _notes(plan: Plan, report: Report, inputs: Inputs) -> None:
    """What the reader should know of the plan."""
    if plan.offload is not None:
        report.notes.append(_streamed(plan))
        if plan.streams and inputs.workload.prefetch != "none":
            report.notes.append(
                f"prefetch {inputs.workload.prefetch} has nothing to do: weights come layer by "
                "layer, whatever will be asked for"
            )
    stages = plan.pipeline
    if stages > 1:
        how = "follow one another" if plan.steady else "enter an empty pipeline"
        report.notes.append(
            f"{stages} stages, {plan.microbatches} micro-batches per batch; batches {how}"
        )
    uneven = {
        stage.degrees.ep
        for stage in plan.stages
        if stage.layers[-1] >= stage.model.moe.first_dense_layers
        and stage.model.moe.experts % stage.degrees.ep
    }
    already = " GPUs: shares differ by one"
    for ep in sorted(uneven):
        line = f"{inputs.workload.model.moe.experts} experts on {ep}{already}"
        if line not in report.notes:
            report.notes.append(line)


def _streamed(plan: Plan) -> str:
    """What lies in host memory, in words."""
    what = "routed experts" if plan.offload == "experts" else "weights"
    if not plan.streams:
        return f"parallel.offload: {what} of all layers fit on the GPUs; none come from host memory"
    layers = sum(map(len, plan.streamed))
    of = sum(len(stage.layers) for stage in plan.stages)
    return (
        f"{what} of {layers} of {of} layers come from host memory for every micro-batch: "
        f"{max(host_bytes(plan)) / GIB:.3g} GiB to a GPU"
    )
