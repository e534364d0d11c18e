"""`balance LOADS`: how evenly placements of experts spread recorded loads, and what moves."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from simulator.errors import InputError

if TYPE_CHECKING:
    from simulator.policies.placement import Placement, Target
    from simulator.routing.loads import Loads

Row = dict[str, Any]
Say = Callable[[str], None]

MAX_PAIRS = 1 << 28  # counts of pairs of experts, 2 GiB
TEXT_COLUMNS = ("policy", "max_over_mean", "worst", "worst_layer", "balancedness")


class Question(NamedTuple):
    """Loads, where they are to be placed, and the bytes of an expert (None: not known)."""

    loads: Loads
    target: Target
    expert_bytes: float | None


def arguments(parser: argparse.ArgumentParser) -> None:
    """`balance`."""
    parser.add_argument(
        "loads",
        metavar="LOADS",
        help="expert loads or a recording of routing: a path, or the shipped name of a trace",
    )
    parser.add_argument(
        "--policy",
        metavar="LIST",
        help="policies with commas between them: contiguous (linear is the same), round-robin, "
        "balanced, eplb, topology-aware, co-activation, package.module:function, or a file of a "
        "placement that ends in .json (default: all that can be had)",
    )
    for flag, text in (
        ("--gpus", "that share the experts (default: all of the topology)"),
        ("--nodes", "that the GPUs are in (default 1, or as the topology has it)"),
        ("--replicas", "slots of all GPUs together, at least one per expert (default: experts)"),
        ("--groups", "of experts, as eplb takes them (default 1; 8 for DeepSeek-V3)"),
    ):
        parser.add_argument(flag, type=_count, metavar="N", help=text)
    parser.add_argument(
        "--topology", metavar="T", help="the cluster, for topology-aware: a shipped name or a path"
    )
    parser.add_argument("--expert-bytes", metavar="SIZE", help="weights of an expert, as in 44 MB")
    parser.add_argument(
        "--workload", metavar="W", help="its model's expert, in place of --expert-bytes"
    )
    parser.add_argument(
        "--from",
        dest="start",
        metavar="P",
        help="from where experts move: a policy, or a file of a placement (default: contiguous, "
        "one copy of each expert)",
    )
    parser.add_argument("-o", "--output", metavar="OUT", help="write the placement of one policy")
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON")


def run(options: argparse.Namespace) -> None:
    """Print a row for each policy; write the placement with -o."""
    from simulator.api import announced_compilation
    from simulator.cli.flows import check_fresh
    from simulator.cli.output import print_json, say
    from simulator.policies.placement_file import write_placement
    from simulator.results.text import lines_of

    check_fresh(options.output)
    names = _names(options)
    with announced_compilation(say):
        asked = question(options, names, say)
        placed = placements(asked, names, say)
        found = rows(asked, placed, options.start)
    if options.output is not None:
        ((name, placement),) = placed.items()
        write_placement(options.output, name, placement, asked.target.gpus)
    if options.json:
        print_json(found)
    else:
        print(render(found))
        say("\n".join(lines_of(moved_note(found, options.start), then="  ")))
    if options.output is not None:
        say(f"kept in {options.output}")


def question(options: argparse.Namespace, names: list[str] | None, say: Say) -> Question:
    """What is asked for; raises InputError for what does not go together or cannot be placed."""
    from simulator.policies.placement import Target
    from simulator.policies.placement_types import check_question
    from simulator.spec.find import find

    path = find("trace", options.loads)
    expert_bytes, token_bytes, told_experts = _sizes(options)
    node_of, seconds_per_byte, latency_s = _gpus(options)
    loads, together = _read(path, names, say)
    experts = loads.counts.shape[1]
    if told_experts not in (None, experts):
        raise InputError(
            f"--workload {options.workload}: a model of {told_experts} experts; {options.loads} "
            f"has {experts}"
        )
    physical = experts if options.replicas is None else options.replicas
    if physical < experts:
        raise InputError(
            f"--replicas {physical}: {options.loads} has {experts} experts, and every one needs a "
            f"slot; write {experts} or more"
        )
    gpus = len(node_of)
    if physical < gpus:
        raise InputError(
            f"--replicas {physical}: every one of {gpus} GPUs needs a slot; write {gpus} or more, "
            "or fewer GPUs"
        )
    if physical > experts * gpus:
        raise InputError(
            f"--replicas {physical}: {experts} experts on {gpus} GPUs have at most "
            f"{experts * gpus} copies, one of each on every GPU; write {experts * gpus} or less"
        )
    target = Target(
        gpus,
        physical,
        int(node_of.max()) + 1,
        node_of,
        1 if options.groups is None else options.groups,
        seconds_per_byte,
        latency_s,
        together,
        token_bytes,
    )
    check_question(loads.counts, target)
    for line in loads.notes:
        say(f"note: {line}")
    return Question(loads, target, expert_bytes)


def placements(asked: Question, names: list[str] | None, say: Say) -> dict[str, Placement]:
    """What each named policy answers, by name; without names all policies that have an answer."""
    from simulator.policies.placement import PLACEMENTS, place
    from simulator.policies.placement_file import SUFFIX, read_placement

    loads, target = asked.loads.counts, asked.target
    found = {}
    for name in names or PLACEMENTS:
        if name.endswith(SUFFIX):
            found[name] = read_placement(name, target.gpus, *loads.shape)
            continue
        try:
            found[name] = place(name, loads, target)
        except InputError as error:
            if names is not None:
                raise
            say(f"note: left out: {error}")
    if "topology-aware" in found and target.seconds_per_byte is None and target.nodes > 1:
        say(
            "note: topology-aware takes NVLink (450 GB/s) within a node and a 400 Gb/s NIC per "
            "GPU between nodes; --topology tells it otherwise"
        )
    return found


def rows(asked: Question, placed: dict[str, Placement], start: str | None) -> list[Row]:
    """A row for each placement. `worst` is the highest max/mean of a layer, `worst_layer` the
    number of that layer in the file; `start` as --from.
    """
    from simulator.policies.placement_figures import balance_of, moved_experts

    loads, gpus = asked.loads.counts, asked.target.gpus
    before = _start(asked, start)
    found = []
    for name, placement in placed.items():
        balance = balance_of(loads, placement, gpus)
        worst = int(balance.max_over_mean.argmax())
        moved = int(moved_experts(before, placement, loads.shape[1], gpus).sum())
        size = asked.expert_bytes
        found.append(
            {
                "policy": name,
                "max_over_mean": float(balance.max_over_mean.mean()),
                "worst": float(balance.max_over_mean[worst]),
                "worst_layer": int(asked.loads.layers[worst]),
                "balancedness": balance.balancedness,
                "moved_experts": moved,
                "moved_bytes": None if size is None else moved * size,
                "replicas": placement.expert_of.shape[1],
                "gpus": gpus,
                "nodes": asked.target.nodes,
            }
        )
    return found


def render(found: list[Row]) -> str:
    """The rows as a table of at most 80 columns."""
    from simulator.results.summary import size
    from simulator.results.text import lay_out

    known = found[0]["moved_bytes"] is not None
    cells = [
        (
            row["policy"],
            f"{row['max_over_mean']:.4f}",
            f"{row['worst']:.4f}",
            str(row["worst_layer"]),
            f"{row['balancedness']:.4f}",
            size(row["moved_bytes"]) if known else f"{row['moved_experts']:,}",
        )
        for row in found
    ]
    header = (*TEXT_COLUMNS, "moved_bytes" if known else "moved_experts")
    return lay_out(header, cells, right=range(1, len(header)))


def moved_note(found: list[Row], start: str | None) -> str:
    """From where experts move, and what is needed to know their bytes."""
    where = "contiguous, one copy of each" if start is None else start
    line = f"moved: experts (of all layers) that a GPU did not hold before; from {where}"
    if found[0]["moved_bytes"] is None:
        line += "; --expert-bytes SIZE or --workload W turns them into bytes"
    return line


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= 1 << 20):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {1 << 20}")
    return int(text)


def _names(options: argparse.Namespace) -> list[str] | None:
    """The policies asked for, each known; None for all."""
    from simulator.policies.placement import placement_policy
    from simulator.policies.placement_file import SUFFIX

    if options.policy is None:
        if options.output is not None:
            raise InputError("-o writes one placement; name its policy with --policy")
        return None
    names = [name.strip() for name in options.policy.split(",") if name.strip()]
    names = list(dict.fromkeys(names))
    if not names:
        raise InputError("--policy: names no policy; write for example linear,eplb")
    for name in names:
        if not name.endswith(SUFFIX):
            placement_policy(name)
    if options.output is not None and len(names) > 1:
        raise InputError(f"-o writes one placement, but --policy names {len(names)}; write one")
    return names


def _sizes(options: argparse.Namespace) -> tuple[float | None, float, int | None]:
    """Bytes of an expert (None: not known) and of a token (0: not known), and experts of the model
    (None: not known).
    """
    if options.expert_bytes is not None and options.workload is not None:
        raise InputError("--expert-bytes and --workload both tell the bytes; leave one out")
    if options.expert_bytes is not None:
        from simulator.spec.units import parse_quantity

        try:
            return parse_quantity(options.expert_bytes, "bytes"), 0.0, None
        except InputError as error:
            raise InputError(f"--expert-bytes: {error}") from None
    if options.workload is None:
        return None, 0.0, None

    from simulator.engine.transport import token_bytes
    from simulator.model.sizes import expert_bytes
    from simulator.spec.load import load_workload

    workload = load_workload(options.workload)
    sent = token_bytes(workload.transport, "dispatch", workload.model.hidden)
    return expert_bytes(workload.model), sent, workload.model.moe.experts


def _gpus(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Of the GPUs, the node of each int32 [gpus], and where a topology tells them seconds per byte
    and latency between two, float64 [gpus, gpus]; else None.
    """
    from simulator.policies.placement import even_nodes

    if options.topology is None:
        if options.gpus is None:
            raise InputError("--gpus is required (or --topology): how many share the experts")
        nodes = 1 if options.nodes is None else options.nodes
        if options.gpus % nodes:
            raise InputError(
                f"--nodes {nodes} does not divide --gpus {options.gpus}; write a divisor of it"
            )
        return even_nodes(options.gpus, nodes), None, None

    from simulator.cluster.graph import build_graph
    from simulator.cluster.graph import gpus as gpus_of
    from simulator.engine.homes import near_of
    from simulator.engine.ranks import ranks_of
    from simulator.spec.load import load_topology

    graph = build_graph(load_topology(options.topology))
    names = gpus_of(graph)
    if options.gpus is not None and options.gpus > len(names):
        raise InputError(f"--gpus {options.gpus}: {graph.name} has {len(names)}")
    names = names[: options.gpus]
    node_of = even_nodes(1, 1) if len(names) == 1 else ranks_of(graph, len(names)).node
    nodes = int(node_of.max()) + 1
    if options.nodes not in (None, nodes):
        raise InputError(
            f"--nodes {options.nodes}: {len(names)} GPUs of {graph.name} are in "
            f"{nodes} {'node' if nodes == 1 else 'nodes'}; leave --nodes out"
        )
    near = near_of(graph, names, node_of, len(names), None)
    return node_of, near.seconds_per_byte, near.latency_s


def _read(path: Path, names: list[str] | None, say: Say) -> tuple[Loads, Any]:
    """The loads, and experts taken together where they are asked for and tokens are recorded."""
    from simulator.routing.importers import open_trace
    from simulator.routing.loads import load_windows, loads_of

    if load_windows(path) is not None:
        return loads_of(path, say), None
    trace = open_trace(path, say)
    loads = loads_of(trace)
    if names is not None and "co-activation" not in names:
        return loads, None
    experts = loads.counts.shape[1]
    if (int(loads.layers.max()) + 1) * experts**2 > MAX_PAIRS:
        if names is None:
            return loads, None
        raise InputError(f"co-activation: {experts} experts have too many pairs to count")

    from simulator.engine.placed import taken_together

    return loads, taken_together(trace, experts)[loads.layers]


def _start(asked: Question, start: str | None) -> Placement:
    """The placement from which experts move."""
    from simulator.policies.placement import contiguous, place
    from simulator.policies.placement_file import SUFFIX, read_placement

    loads, target = asked.loads.counts, asked.target
    if start is None:
        return contiguous(loads, target._replace(physical=loads.shape[1]))
    if start.endswith(SUFFIX):
        return read_placement(start, target.gpus, *loads.shape)
    return place(start, loads, target)
