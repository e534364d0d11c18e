"""Floor 5: the report of a kept run: its tables, its cluster and its memory as one HTML page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.errors import InputError

if TYPE_CHECKING:
    from simulator.cluster.graph import Graph
    from simulator.results.placing import Link, Node
    from simulator.spec.load import Inputs


def write_report(
    run: str | Path,
    to: str | Path | None = None,
    *,
    plotlyjs: str = "inline",
    steps: tuple[int, int] | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Write the report of a run directory: `report.html` in it, in place of the one that may be
    there, or `to`, which must not exist.

    plotlyjs: "inline" makes one file of 5 MB and more that needs nothing else; "directory" puts
    plotly.min.js beside it, "cdn" has it loaded from the network. steps: first and last step of
    the timeline; None: the first measured ones. What of the directory cannot be read is named in
    the report, and told to `say`, a line each.

    Errors: InputError if nothing of it can be read, `steps` names no step, or the file is there.
    """
    from simulator.results import report
    from simulator.results.page import write_page

    path = Path(run)
    target = path / report.NAME if to is None else Path(to)
    found = report.read(path, steps)
    if to is None and target.exists() and not report.is_report(target):
        raise InputError(f"{target}: is there already and no report; write another file")
    drawn = None
    if "input" in found.result:
        try:
            drawn = drawn_cluster(found.result["input"]["topology"])
        except (InputError, KeyError, TypeError) as error:
            found.faults.append(str(error))
    page = report.render(found, drawn, plotlyjs, steps is None)
    if to is not None or not target.exists():
        write_page(target, page, plotlyjs)
    else:
        new = target.with_name(f".{target.name}.new")
        new.unlink(missing_ok=True)
        write_page(new, page, plotlyjs)
        new.replace(target)
    if say is not None:
        for fault in found.faults:
            say(f"{path}: {fault}")
    return target


def drawn_cluster(topology: Mapping[str, Any]) -> tuple[list[Node], list[Link], str]:
    """A resolved topology for `simulator.results.picture`: nodes, links, and what hosts on one
    fabric are called.
    """
    from simulator.cluster.record import graph_of_record

    nodes, links = nodes_and_links(graph_of_record(topology), topology["gpu"])
    return nodes, links, "rack" if topology["build"]["kind"] == "racks" else "NVLink domain"


def nodes_and_links(graph: Graph, gpu: Mapping[str, Any]) -> tuple[list[Node], list[Link]]:
    """A graph as plain rows, GPUs in the order of their indices; gpu: its resolved entry."""
    from simulator.cluster.graph import gpus
    from simulator.results.placing import Link, Node
    from simulator.results.summary import number, size

    model = (
        f"{gpu['name']}: {number(gpu['flops_per_s']['bf16'] / 1e12)} TFLOP/s bf16, "
        f"{size(gpu['hbm_capacity_bytes'])} at {size(gpu['hbm_bandwidth_bytes_per_s'])}/s"
    )
    nodes = []
    for name in [
        *gpus(graph),
        *(name for name, data in graph.nodes.items() if "index" not in data),
    ]:
        data = graph.nodes[name]
        about = model if data["kind"] == "gpu" else ""
        if "capacity_bytes" in data:
            about = size(data["capacity_bytes"])
        nodes.append(Node(name, data["kind"], data["host"], about))
    links = [
        Link(source, target, data["kind"], data["bandwidth_bytes_per_s"], data["latency_s"])
        for source, target, data in graph.edges(data=True)
    ]
    return nodes, links


def given(
    command: str,
    overrides: Sequence[str],
    routing: str | None,
    requests: str | None = None,
    faults: str | None = None,
) -> dict[str, Any]:
    """How a run was asked for, beside the names of its inputs: what `result.json` keeps of it."""
    return {
        "command": command,
        "overrides": list(overrides),
        "routing": routing,
        "requests": requests,
        "faults": faults,
    }


def memory_of(inputs: Inputs, kv_blocks: int | None = None) -> dict[str, Any]:
    """Bytes in each GPU's memory by part, GPUs in a row that hold the same as one entry.

    Experts are counted as if they were placed in order: another placement has shares of the same
    size or one expert apart. kv_blocks: of a GPU of a serving run, which sets all of them aside.
    """
    from simulator.engine.layout import gpu_memory, layout_of
    from simulator.model import footprint, sizes
    from simulator.model.plan import needs_plan, plan_of
    from simulator.model.plan_memory import gpu_bytes
    from simulator.spec.load import gpu_count

    workload, count = inputs.workload, gpu_count(inputs.topology)
    if needs_plan(workload):
        each = gpu_bytes(plan_of(workload, count, inputs.topology.gpu), workload)
    else:
        traffic = workload.traffic
        if kv_blocks is not None:
            tokens = workload.serving.max_batched_tokens
            traffic = traffic.model_copy(update={"tokens_per_gpu": tokens, "context": 0})
        asked = workload.model_copy(update={"traffic": traffic})
        layout = layout_of(workload, count, inputs.topology.name)
        of_group = [gpu_memory(asked, layout, gpu) for gpu in range(layout.ep)]
        each = [of_group[gpu % layout.ep] for gpu in range(count)]
    if kv_blocks is not None:
        per_token = workload.model.layers * sizes.kv_bytes_per_token_layer(workload.model)
        kv_bytes = float(kv_blocks * workload.serving.kv_block * per_token)
        each = [{**parts, "KV cache": kv_bytes} for parts in each]
    rows: list[dict[str, Any]] = []
    for gpu, parts in enumerate(each):
        if rows and rows[-1]["bytes"] == parts:
            rows[-1]["last"] = gpu
        else:
            rows.append({"first": gpu, "last": gpu, "bytes": parts})
    return {
        "capacity_bytes": inputs.topology.gpu.hbm_capacity_bytes,
        "reserved_share": footprint.RESERVED,
        "gpus": rows,
    }
