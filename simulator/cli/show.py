"""What `show` prints: an input with every default, and what follows from it.

Each function returns the JSON object and the text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from simulator.cli import requests
from simulator.errors import InputError
from simulator.results.summary import duration, number, size
from simulator.results.text import lay_out, wrapped
from simulator.spec import catalogue
from simulator.spec.load import (
    Inputs,
    gpu_count,
    load_inputs,
    load_topology,
    load_workload,
)
from simulator.spec.schema import Gpu, Topology, Workload
from simulator.spec.units import counted

if TYPE_CHECKING:
    from simulator.cluster.figures import Figures
    from simulator.cluster.graph import Graph

MOST_NAMES = 16
"""So many names of nodes, or ranges of them, are shown."""

Shown = tuple[dict[str, Any], str]

Links = tuple[int, str, str, float, float]
"""How many directed links, their kind, what they join, bandwidth of one direction (B/s), latency
(s)."""


def topology(name: str, on: str | None, overrides: Sequence[str]) -> Shown:
    """A cluster: its GPU, its links by kind, and what they can carry together."""
    from simulator.cluster.figures import Figures, figures
    from simulator.cluster.graph import build_graph

    if on is not None:
        raise InputError("show topology: --topology goes with show workload; leave it out")
    found = load_topology(name, overrides)
    graph = build_graph(found)
    links = _links(graph)
    count = gpu_count(found)
    reach = figures(graph, found.build.kind != "explicit")
    gpu = found.gpu
    rows = [
        (str(number_of), kind, between, f"{size(bandwidth)}/s", duration(latency_s))
        for number_of, kind, between, bandwidth, latency_s in links
    ]
    lines = [
        *_title(found),
        lay_out(
            None,
            [
                ("GPUs", f"{count:,} x {gpu.name}, {_gpu_line(gpu)}"),
                ("wiring", found.build.kind),
                ("nodes", ", ".join(_named(graph))),
            ],
        ),
        "",
        lay_out(("links", "kind", "between", "one way", "latency"), rows, right=(0, 3, 4)),
        "",
        lay_out(None, _reach(reach)),
        *_sources(found.sources),
    ]
    keys = ("links", "kind", "between", "bandwidth_bytes_per_s", "latency_s")
    as_rows = [dict(zip(keys, row, strict=True)) for row in links]
    dumped = found.model_dump(mode="json")
    known = asdict(reach) if isinstance(reach, Figures) else None
    as_object = {"topology": dumped, "gpus": count, "links": as_rows, "figures": known}
    return as_object, "\n".join(lines)


def workload(name: str, on: str | None, overrides: Sequence[str]) -> Shown:
    """A model and its traffic: sizes, choices, and on a topology the memory it takes."""
    from simulator.model import sizes

    inputs = None if on is None else load_inputs(on, name, overrides)
    found = load_workload(name, overrides) if inputs is None else inputs.workload
    model, moe = found.model, found.model.moe
    sparse = model.layers - moe.first_dense_layers
    idle = sparse * (moe.experts - moe.top_k) * sizes.ffn_parameters(model, moe.intermediate)
    parameters = sizes.parameters(model)
    figures: dict[str, float] = {
        "parameters": parameters,
        "active_parameters_per_token": parameters - idle,
        "expert_bytes": sizes.expert_bytes(model),
        "expert_bytes_all_layers": sparse * sizes.expert_bytes(model),
        "kv_bytes_per_token": model.layers * sizes.kv_bytes_per_token_layer(model),
    }
    lines = [
        *_title(found),
        lay_out(None, _model_rows(found, figures)),
        "",
        lay_out(None, _traffic_rows(found)),
    ]
    as_object: dict[str, Any] = {"workload": found.model_dump(mode="json"), **figures}
    if inputs is not None:
        as_object["memory_bytes_per_gpu"], table = _memory(inputs)
        lines += ["", table]
    return as_object, "\n".join([*lines, *_sources(found.sources)])


def gpu(name: str, on: str | None, overrides: Sequence[str]) -> Shown:
    """An entry of the catalogue."""
    if on is not None or overrides:
        raise InputError(
            "show gpu: shows the catalogue as it is; for another figure: "
            'show topology NAME --set gpu.hbm_bandwidth="2 TB/s"'
        )
    found = Gpu.model_validate(catalogue.expand(name))
    rows: list[tuple[str, str, str]] = []

    def row(key: str, value: str) -> None:
        rows.append((key, value, found.sources.get(key.partition(".")[0], "")))

    for dtype, rate in found.flops_per_s.items():
        row(f"flops.{dtype}", f"{number(rate / 1e12, 4)} TFLOP/s")
        # The source is the same for all rates: once is enough.
        if len(rows) > 1:
            rows[-1] = (*rows[-1][:2], "")
    row("hbm_capacity", f"{found.hbm_capacity_bytes / 2**30:.4g} GiB")
    row("hbm_bandwidth", f"{size(found.hbm_bandwidth_bytes_per_s)}/s")
    row("l2", f"{found.l2_bytes / 2**20:.4g} MiB")
    row("sms", str(found.sms))
    row("tdp", f"{found.tdp_w:g} W")
    row("idle_power", f"{found.idle_power_w:g} W")
    row("price", f"{found.price_per_hour:g} $/h")
    if found.nvlink_bandwidth_bytes_per_s is not None:
        row("nvlink_bandwidth", f"{size(found.nvlink_bandwidth_bytes_per_s)}/s")
    row("compute_efficiency", f"{found.compute_efficiency:g}")
    row("memory_efficiency", f"{found.memory_efficiency:g}")
    row("launch_overhead", duration(found.launch_overhead_s))
    return found.model_dump(mode="json"), "\n".join([found.name, "", lay_out(None, rows)])


SHOWN: dict[str, Callable[[str, str | None, Sequence[str]], Shown]] = {
    "topology": topology,
    "workload": workload,
    "gpu": gpu,
    "requests": requests.shown,
}


def _reach(found: Figures | tuple[str, str] | None) -> list[tuple[str, str]]:
    if found is None:
        return [("bisection", "none: one GPU")]
    if isinstance(found, tuple):
        return [("bisection", f"none: no path of links from {found[0]} to {found[1]}")]
    source, target = found.hottest_link
    seen = "" if found.all_routes else " (from the first GPU's routes, links alike taken together)"
    return [
        (
            "bisection",
            f"{size(found.bisection_bytes_per_s)}/s each way between the first and the second half "
            f"of the GPUs, over {', '.join(found.bisection_kinds)}",
        ),
        (
            "diameter",
            f"{counted(found.longest_links, 'link')}, {duration(found.longest_latency_s)}: "
            f"{' to '.join(found.longest_route)}{'' if found.all_routes else ', of the first GPU'}",
        ),
        (
            "hottest link",
            f"{source} -> {target} ({found.hottest_kind}) when every GPU sends 1 B to every other: "
            f"{found.hottest_bytes:,.6g} B, {1e9 * found.hottest_seconds_per_byte:.3g} ns{seen}",
        ),
    ]


def _named(graph: Graph) -> list[str]:
    """Names of the nodes, as `changes` and faults take them: "gpu0-15" for gpu0 to gpu15."""
    names: dict[tuple[str, bool], set[int]] = {}
    for name in map(str, graph):
        stem = name.rstrip("0123456789")
        digits = name[len(stem) :]
        if digits and digits == str(int(digits)):
            names.setdefault((stem, True), set()).add(int(digits))
        else:
            names[name, False] = set()
    told: list[str] = []
    for (stem, _), numbers in names.items():
        first = sorted(number for number in numbers if number - 1 not in numbers)
        last = sorted(number for number in numbers if number + 1 not in numbers)
        ranges = (f"{a}-{b}" if b > a else f"{a}" for a, b in zip(first, last, strict=True))
        told += [f"{stem}{one}" for one in ranges] or [stem]
    return told if len(told) <= MOST_NAMES else [*told[:MOST_NAMES], "..."]


def _links(graph: Graph) -> list[Links]:
    """Directed links of the cluster, those alike in one row; both ways count as one kind."""
    counted: Counter[tuple[str, str, float, float]] = Counter()
    for source, target, link in graph.edges(data=True):
        ends = sorted((graph.nodes[source]["kind"], graph.nodes[target]["kind"]))
        rate = (link["bandwidth_bytes_per_s"], link["latency_s"])
        counted[link["kind"], " - ".join(ends), *rate] += 1
    return [(count, *alike) for alike, count in counted.items()]


def _model_rows(found: Workload, figures: dict[str, float]) -> list[tuple[str, str]]:
    model, moe, attention = found.model, found.model.moe, found.model.attention
    layers = f"{model.layers} layers"
    if moe.first_dense_layers and not moe.experts:
        layers += " (all dense)"
    elif moe.first_dense_layers:
        layers += f" ({moe.first_dense_layers} dense, then MoE)"
    shared = f", {moe.shared_experts} shared" if moe.shared_experts else ""
    experts = f"top-{moe.top_k} of {moe.experts}{shared}, width {moe.intermediate:,}"
    kind = f"{attention.kind} attention" if attention.heads else "no attention"
    return [
        ("model", f"{model.name}: {layers}, hidden {model.hidden:,}, {kind}, {model.dtype}"),
        ("experts", experts if moe.experts else "none"),
        (
            "weights",
            f"{_billions(figures['parameters'])} parameters, "
            f"{_billions(figures['active_parameters_per_token'])} active per token",
        ),
        (
            "expert",
            f"{size(figures['expert_bytes'])} in one layer, "
            f"{size(figures['expert_bytes_all_layers'])} in all",
        ),
        ("KV cache", f"{size(figures['kv_bytes_per_token'])} per token"),
    ]


def _traffic_rows(found: Workload) -> list[tuple[str, str]]:
    traffic, routing, transport = found.traffic, found.routing, found.transport
    warm_up = f" after {traffic.warmup_steps} of warm-up" if traffic.warmup_steps else ""
    resident = "every expert resident"
    if found.expert_slots is not None:
        resident = (
            f"{found.expert_slots} expert slots per layer, the rest at {found.expert_home}, "
            f"eviction {found.eviction}"
        )
    return [
        (
            "traffic",
            f"{traffic.phase}, {counted(traffic.tokens_per_gpu, 'token')} per GPU, context "
            f"{traffic.context:,}; {counted(traffic.steps, 'step')}{warm_up}",
        ),
        ("routing", f"{routing.source} ({routing.tokens} tokens, layers {routing.layer_map})"),
        ("access", f"{found.expert_access}; {resident}"),
        ("overlap", f"{found.overlap}; prefetch {found.prefetch}; order {found.expert_order}"),
        (
            "transport",
            f"{transport.name}, path {transport.path}, deduplicated: {transport.deduplicate}",
        ),
    ]


def _memory(inputs: Inputs) -> tuple[dict[str, float], str]:
    """Bytes on the fullest GPU by part, and the table of them."""
    from simulator.engine.layout import gpu_memory, layout_of
    from simulator.model import footprint
    from simulator.model.plan import needs_plan, plan_of
    from simulator.model.plan_memory import gpu_bytes

    found, cluster = inputs.workload, inputs.topology
    count = gpu_count(cluster)
    if needs_plan(found):
        every = gpu_bytes(plan_of(found, count, cluster.gpu), found)
        parts = max(every, key=lambda one: sum(one.values()))
    else:
        parts = gpu_memory(found, layout_of(found, count, cluster.name), 0)
    room = cluster.gpu.hbm_capacity_bytes * (1.0 - footprint.RESERVED)
    left = room - sum(parts.values())
    gib = footprint.GIB
    rows = [(name, f"{amount / gib:.1f}") for name, amount in parts.items()]
    rows += [
        ("together", f"{sum(parts.values()) / gib:.1f}"),
        (f"has, after {footprint.RESERVED:.0%} reserve", f"{room / gib:.1f}"),
        ("left" if left >= 0 else "DOES NOT FIT, too much by", f"{abs(left) / gib:.1f}"),
    ]
    header = (f"memory of a GPU of {cluster.name} ({cluster.gpu.name})", "GiB")
    return parts, lay_out(header, rows, right=(1,))


def _title(found: Topology | Workload) -> list[str]:
    about = f": {found.description}" if found.description else ""
    return [wrapped(found.name + about, ""), ""]


def _gpu_line(gpu: Gpu) -> str:
    return (
        f"{number(gpu.flops_per_s['bf16'] / 1e12)} TFLOP/s bf16, "
        f"{size(gpu.hbm_capacity_bytes)} at {size(gpu.hbm_bandwidth_bytes_per_s)}/s each"
    )


def _billions(count: float) -> str:
    return f"{number(count / 1e9)} B"


def _sources(sources: Sequence[str]) -> list[str]:
    return ["", "sources", *(wrapped(text, "- ") for text in sources)] if sources else []
