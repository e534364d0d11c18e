"""Where the batches of a run come from, and what it says beside its tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from simulator.routing.batches import Batch, ReplayState, check_trace, replay, synthesize
from simulator.routing.importers import open_trace
from simulator.routing.loads import law_of
from simulator.routing.trace import read_info
from simulator.spec.load import Inputs


@dataclass
class Report:
    """What a run says beside its tables: notes for the reader, and the solver's counts."""

    gpus: int
    ep: int
    routing: dict[str, object]
    notes: list[str] = field(default_factory=list)
    solver: dict[str, int] = field(default_factory=dict)


def routing_of(
    inputs: Inputs, gpus: int, ep: int, offloaded: bool, seed: int
) -> tuple[Iterator[Batch], Report]:
    """The endless batches, and what to say about where they come from."""
    workload = inputs.workload
    model, traffic = workload.model, workload.traffic
    layers = model.layers - model.moe.first_dense_layers
    moe = model.moe
    source = workload.routing.source
    common = (gpus, traffic.tokens_per_gpu, traffic.phase, layers)
    report = Report(gpus, ep, {"source": source})
    if moe.experts % ep:
        report.notes.append(f"{moe.experts} experts on {ep} GPUs: shares differ by one")
    if workload.prefetch != "none" and not offloaded:
        report.notes.append(
            f"prefetch {workload.prefetch} has nothing to do: every expert is resident"
        )
    law = law_of(source, inputs.trace_path)
    if inputs.trace_path is None or law is not None:
        law = law or source
        report.notes.append(f"routing drawn from the law {law}, not recorded")
        return synthesize(law, *common, moe.experts, moe.top_k, seed), report
    path = open_trace(inputs.trace_path, report.notes.append)
    info = read_info(path)
    check_trace(info, moe.experts, moe.top_k, source)
    state = ReplayState()
    routing = workload.routing
    batches = replay(path, *common, routing.layer_map, routing.tokens, seed, state)
    report.routing |= {"recorded_layers": info.layers, "recorded_model": info.model}
    if layers > info.layers:
        how = (
            f"layer l takes recorded layer l mod {info.layers}"
            if routing.layer_map == "cycle"
            else f"layer l takes recorded layer l * {info.layers} // {layers}"
        )
        report.notes.append(
            f"routing recorded on {info.model}: its {info.layers} layers stand for {layers} ({how})"
        )
    else:
        report.notes.append(f"routing recorded on {info.model}")
    first = next(batches)
    asked = gpus * traffic.tokens_per_gpu
    if first.tokens < asked:
        report.notes.append(
            f"the trace has {state.requests} sequences, so a step has {first.tokens} tokens, not "
            f"{asked}; a law such as zipf:0.5 has as many as are asked for"
        )
    return chain([first], batches), report
