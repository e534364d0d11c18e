"""What `list` prints: for each kind of thing, rows of (name, description)."""

from __future__ import annotations

from collections.abc import Callable

from simulator.results.summary import number, size

Rows = list[tuple[str, str]]

# Where a workload writes a name of each family.
_KEYS = {"routing": "routing.source"}


def topologies() -> Rows:
    """Shipped clusters."""
    from simulator.spec.find import shipped
    from simulator.spec.load import load_topology

    return [(name, load_topology(name).description) for name in shipped("topology")]


def workloads() -> Rows:
    """Shipped models with their traffic."""
    from simulator.spec.find import shipped
    from simulator.spec.load import load_workload

    return [(name, load_workload(name).description) for name in shipped("workload")]


def transports() -> Rows:
    """Shipped ways to move the bytes of collective operations."""
    from simulator.spec.find import shipped
    from simulator.spec.transport import load_transport

    return [(name, load_transport(name).description) for name in shipped("transport")]


def traces() -> Rows:
    """Shipped recordings of routing."""
    from simulator.routing.trace import read_info
    from simulator.spec.find import find, shipped

    rows = []
    for name in shipped("trace"):
        info = read_info(find("trace", name))
        rows.append(
            (
                name,
                f"{info.tokens:,} tokens of {info.requests:,} requests, {info.layers} layers, "
                f"top-{info.k} of {info.experts} experts, recorded on {info.model}",
            )
        )
    return rows


def studies() -> Rows:
    """Shipped what-if studies."""
    from simulator.spec.document import read_document
    from simulator.spec.find import find, shipped

    rows = []
    for name in shipped("study"):
        path = find("study", name)
        rows.append((name, str(read_document(path, path.name).data["question"])))
    return rows


def gpus() -> Rows:
    """The GPU catalogue."""
    from simulator.spec import catalogue
    from simulator.spec.schema import Gpu

    rows = []
    for name in catalogue.names():
        gpu = Gpu.model_validate(catalogue.expand(name))
        rows.append(
            (
                name,
                f"{number(gpu.flops_per_s['bf16'] / 1e12)} TFLOP/s bf16, "
                f"{size(gpu.hbm_capacity_bytes)} at {size(gpu.hbm_bandwidth_bytes_per_s)}/s, "
                f"{number(gpu.tdp_w)} W",
            )
        )
    return rows


def policies() -> Rows:
    """Keys of a workload that take a name, and the names."""
    from simulator.spec.choices import FAMILIES

    return [
        (
            _KEYS.get(family, family),
            ", ".join(argument.example if argument else name for name, argument in known.items()),
        )
        for family, known in FAMILIES.items()
    ]


LISTS: dict[str, Callable[[], Rows]] = {
    "topologies": topologies,
    "workloads": workloads,
    "transports": transports,
    "traces": traces,
    "studies": studies,
    "gpus": gpus,
    "policies": policies,
}
