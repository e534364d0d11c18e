"""How the engine's tests run things: transfers through the core alone, and whole small runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import closed_forms
import networkx as nx
import numpy as np
import simpy

from simulator.cluster.routes import RouteTable, route_table
from simulator.engine import core
from simulator.engine.driver import Driver
from simulator.engine.links import wires_of
from simulator.engine.simulate import simulate as simulate_into
from simulator.engine.source import Report
from simulator.routing.trace import PROMPT, TraceWriter
from simulator.runfiles import spans as kinds
from simulator.runfiles.rundir import open_run
from simulator.runfiles.tables import iter_spans, read_table
from simulator.spec.load import Inputs, load_inputs

Link = tuple[str, str, float, float]
"""From, to, bandwidth (B/s), latency (s); one direction."""

Send = tuple[str, str, float, float]
"""From, to, bytes, start (s)."""


def graph_of(links: Sequence[Link]) -> nx.DiGraph:
    """A graph of nodes called gpu... and switches called anything else."""
    graph = nx.DiGraph(name="test")
    ends = dict.fromkeys(end for link in links for end in link[:2])
    for name in ends:
        graph.add_node(name, kind="gpu" if name.startswith("gpu") else "nvswitch", host=0)
    for a, b, bandwidth, latency in links:
        graph.add_edge(a, b, kind="nvlink", bandwidth_bytes_per_s=bandwidth, latency_s=latency)
    return graph


def both_ways(a: str, b: str, bandwidth: float, latency: float) -> list[Link]:
    return [(a, b, bandwidth, latency), (b, a, bandwidth, latency)]


def star(gpus: int, bandwidth: float, latency: float) -> nx.DiGraph:
    """GPUs gpu0, gpu1, ... on one switch."""
    links: list[Link] = []
    for gpu in range(gpus):
        links += both_ways(f"gpu{gpu}", "switch", bandwidth, latency)
    return graph_of(links)


def routes_of(graph: nx.DiGraph, sends: Sequence[Send]) -> RouteTable:
    return route_table(graph, [send[:2] for send in sends])


def lay_sends(routes: RouteTable, sends: Sequence[Send]) -> Driver:
    """A driver in which each send is an operation of its own, number i for sends[i], and begun."""
    count = len(sends)
    driver = Driver(
        simpy.Environment(0.0), wires_of(routes), count, count, np.zeros((0, 2), dtype=np.int32)
    )
    op_f = np.full((count, 5), -1.0)
    op_i = np.zeros((count, 9), dtype=np.int32)
    op_i[:, core.KIND] = core.FETCH
    op_i[:, core.STREAM] = -1
    op_i[:, core.WAITS] = 1
    op_i[:, core.CAUSE] = -1
    for op, (source, target, size_bytes, start_s) in enumerate(sends):
        op_i[op, core.ROW] = routes.index[source, target]
        op_f[op, core.DURATION] = size_bytes
        op_f[op, core.DELAY] = start_s
    no_sends = (np.zeros(1, dtype=np.int32), np.zeros((0, 2), dtype=np.int32), np.zeros(0))
    driver.lay(op_f, op_i, *no_sends)
    driver.start(np.arange(count, dtype=np.int32))
    return driver


def finish_times(routes: RouteTable, sends: Sequence[Send]) -> np.ndarray:
    """When each send has arrived (s), float64 [sends], through the driver alone."""
    driver = lay_sends(routes, sends)
    driver.env.run()
    return driver.net.op_f[: len(sends), core.END].copy()


def reference_times(routes: RouteTable, sends: Sequence[Send]) -> list[float]:
    """The same by brute force, on the same paths."""
    flows = []
    for source, target, size_bytes, start_s in sends:
        route = routes.index[source, target]
        links = tuple(routes.all_links[route].tolist())
        flows.append(closed_forms.Flow(links, size_bytes, start_s + routes.latency_s[route]))
    return closed_forms.fluid(dict(enumerate(routes.bandwidth_bytes_per_s.tolist())), flows)


# --- whole runs --------------------------------------------------------------------------

SMALL = {
    "topology.build.gpus": "4",
    "topology.build.hosts": "1",
    "model.layers": "2",
    "model.hidden": "64",
    "model.vocab": "256",
    "model.attention": "{kind: gqa, heads: 4, kv_heads: 2, head_dim: 16}",
    "model.moe": "{experts: 8, top_k: 2, intermediate: 48}",
    "traffic": "{phase: decode, tokens_per_gpu: 4, context: 32, steps: 1, warmup_steps: 0}",
    "expert_slots": "null",
    "expert_order": "gate",
    "prefetch": "none",
    "overlap": "none",
    "routing.tokens": "any",
}
"""nvswitch16 and moe128 made small: 4 GPUs, 2 layers, 8 experts, everything resident."""


def small(
    overrides: Mapping[str, object] | None = None,
    routing: str | Path = "uniform",
    topology: str | Path = "nvswitch16",
) -> Inputs:
    """Inputs of a small run; `overrides` key -> value as `--set` takes them."""
    values = {key: value for key, value in SMALL.items() if topology == "nvswitch16" or
              not key.startswith("topology")}  # fmt: skip
    values |= {key: str(value) for key, value in (overrides or {}).items()}
    return load_inputs(
        str(topology), "moe128", [f"{key}={value}" for key, value in values.items()], str(routing)
    )


class Run(NamedTuple):
    """A finished run: column -> array of each table; `stream` and `kind` of spans as words."""

    report: Report
    spans: dict[str, np.ndarray]
    steps: dict[str, np.ndarray]
    accesses: dict[str, np.ndarray]
    loads: dict[str, np.ndarray]
    links: dict[str, np.ndarray]
    span_bytes: bytes

    def where(self, **wanted: Any) -> dict[str, np.ndarray]:
        """The spans whose columns have these values."""
        keep = np.ones(len(self.spans["step"]), dtype=bool)
        for name, value in wanted.items():
            keep &= self.spans[name] == value
        return {name: values[keep] for name, values in self.spans.items()}

    @property
    def end_s(self) -> float:
        return float(self.steps["end_s"][-1])


def run(inputs: Inputs, seed: int = 0) -> Run:
    """Simulate and read every table back."""
    with open_run(None) as folder:
        report = simulate_into(inputs, folder, seed)
        blocks = list(iter_spans(folder.spans))
        spans = {
            name: np.concatenate([np.zeros(0), *(block[name] for block in blocks)])
            if not blocks
            else np.concatenate([block[name] for block in blocks])
            for name in kinds.SPAN_SCHEMA.names
        }
        spans["stream"] = np.array(kinds.STREAMS)[spans["stream"]]
        spans["kind"] = np.array(kinds.KINDS)[spans["kind"]]
        return Run(
            report,
            spans,
            read_table(folder.steps, kinds.STEP_SCHEMA),
            read_table(folder.accesses, kinds.ACCESS_SCHEMA),
            read_table(folder.loads, kinds.LOAD_SCHEMA),
            read_table(folder.links, kinds.LINK_SCHEMA),
            folder.spans.read_bytes(),
        )


def write_trace(path: Path, ids: np.ndarray, experts: int, request: Sequence[int]) -> Path:
    """A trace of `ids` int [tokens, layers, k]; `request` [tokens], ascending."""
    tokens, layers, k = ids.shape
    position = np.arange(tokens)
    with TraceWriter(
        path, model="hand-made", layers=layers, experts=experts, k=k, origin="a test"
    ) as writer:
        writer.write(np.array(request), position, np.full(tokens, PROMPT), ids.astype(np.int16))
    return path
