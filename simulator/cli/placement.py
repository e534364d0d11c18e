"""`placement LOADS_OR_TRACE`: placements of experts tried out on clusters, in one table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from simulator.errors import InputError

if TYPE_CHECKING:
    from simulator.routing.loads import Loads
    from simulator.spec.transport import Transport
    from simulator.studies.placing import Asked, Row

POLICIES = "contiguous,balanced,eplb,topology-aware"
TOKENS, LAYERS = 128, 8
# Of DeepSeek-V3 (arXiv 2412.19437, section 4.2): hidden size, experts per token, and the width of
# an expert, whose three matrices have one byte per weight (FP8).
HIDDEN, TOP_K, WIDTH = 7168, 8, 2048
TRANSPORT = "deepep-ll"


def arguments(parser: argparse.ArgumentParser) -> None:
    """`placement`."""
    parser.add_argument(
        "loads",
        metavar="LOADS",
        help="expert loads or a recording of routing: a path, or the shipped name of a trace",
    )
    parser.add_argument(
        "--topology",
        required=True,
        metavar="LIST",
        help="clusters with commas between them: shipped names or paths",
    )
    parser.add_argument(
        "--policy",
        metavar="LIST",
        help="policies, or placement files that end in .json (default, as far as they have an "
        f"answer, {POLICIES})",
    )
    for flag, text in (
        ("--tokens", f"of each GPU (default {TOKENS})"),
        ("--ep", "GPUs of an expert-parallel group (default: all, as far as experts go)"),
        ("--groups", "of experts, as eplb takes them (default 1; 8 for DeepSeek-V3)"),
        ("--layers", f"how many are timed, evenly spaced (default {LAYERS})"),
        ("--hidden", f"elements of a token (default: the workload's, else {HIDDEN})"),
        ("--topk", f"experts that a token takes (default: the file's, the workload's, {TOP_K})"),
    ):
        parser.add_argument(flag, type=_count, metavar="N", help=text)
    for flag, text in (
        ("--redundant", "copies beside one of each expert, for policies that look at loads"),
        ("--seed", "of the draws of tokens, where only loads are known (default 0)"),
    ):
        parser.add_argument(flag, type=whole, default=0, metavar="N", help=text)
    parser.add_argument(
        "--replica-choice",
        choices=("nearest", "least-loaded"),
        default="nearest",
        help="which copy a token goes to (default nearest)",
    )
    parser.add_argument(
        "--workload", metavar="W", help="a model: its hidden size, experts per token, expert bytes"
    )
    parser.add_argument(
        "--expert-bytes",
        metavar="SIZE",
        help=f"weights of an expert, as in 44 MB (default: 3 x hidden x {WIDTH}, a byte each)",
    )
    parser.add_argument(
        "--transport",
        metavar="X",
        help=f"what moves tokens: a shipped name or a path (default: the workload's, {TRANSPORT})",
    )
    parser.add_argument(
        "--network",
        choices=("exact", "coflow"),
        default="exact",
        help="exact (default), or until the slowest link has carried its bytes, which is quicker",
    )
    parser.add_argument("-o", "--output", metavar="OUT", help="also write the rows as CSV")
    parser.add_argument("--json", action="store_true", help="print a list of rows as JSON")


def run(options: argparse.Namespace) -> None:
    """Print a row for each topology and policy."""
    from simulator.cli.flows import check_fresh, write_fresh
    from simulator.cli.output import print_json, progress_bar, say
    from simulator.results.text import lines_of
    from simulator.spec.load import load_topology

    check_fresh(options.output)
    policies = _names(options.policy or POLICIES)
    topologies = [load_topology(name) for name in _listed("--topology", options.topology)]

    from simulator.api import announced_compilation
    from simulator.studies.placing import rows

    with announced_compilation(say), progress_bar("layer") as progress:
        wanted = asked(options, policies)
        # Who names a policy, or a number that only some look at, is told that it does not fit.
        meant = options.policy or options.redundant or options.groups
        excused = None if meant else lambda why: say(f"note: left out: {why}")
        found = list(rows(wanted, topologies, progress, excused))
    if options.output is not None:
        write_fresh(options.output, list(found[0]), ([*row.values()] for row in found))
    if options.json:
        print_json(found)
    else:
        print(render(found))
        for line in said(wanted, found):
            say("\n".join(lines_of(line, then="  ")))
    if options.output is not None:
        say(f"kept in {options.output}")


def asked(options: argparse.Namespace, policies: list[str]) -> Asked:
    """What is to be tried out; raises InputError for what does not go together."""
    from simulator.engine.placed import taken_together
    from simulator.routing.importers import open_trace
    from simulator.routing.loads import is_load_file, loads_of
    from simulator.spec.find import find
    from simulator.spec.transport import load_transport
    from simulator.studies.placing import Asked, drawn, replayed, spaced

    folder = Path(options.loads).expanduser()
    path = folder if folder.is_dir() else find("trace", options.loads)
    trace = None if is_load_file(path) else open_trace(path)
    loads = loads_of(path if trace is None else trace)
    model = _model(options, loads)
    if loads.k is not None and options.topk not in (None, loads.k):
        raise InputError(f"--topk {options.topk}: tokens of {options.loads} take {loads.k}")
    k = loads.k or options.topk or model.top_k
    if k > loads.counts.shape[1]:
        raise InputError(f"--topk {k}: {options.loads} has {loads.counts.shape[1]} experts")
    layers = spaced(len(loads.counts), options.layers or LAYERS)
    tokens = options.tokens or TOKENS
    if trace is None:
        draw = drawn(loads, layers, tokens, k, options.seed)
    else:
        draw = replayed(trace, loads.layers[layers].tolist(), tokens)
    named = options.transport
    together = None
    if trace is not None and any(name == "co-activation" or ":" in name for name in policies):
        together = taken_together(trace, loads.counts.shape[1])[loads.layers]
    return Asked(
        loads=loads,
        together=together,
        layers=layers,
        draw=draw,
        transport=model.transport if named is None else load_transport(named),
        policies=policies,
        redundant=options.redundant,
        groups=options.groups or 1,
        least_loaded=options.replica_choice == "least-loaded",
        expert_bytes=model.expert_bytes,
        moe_layers=model.moe_layers,
        hidden=model.hidden,
        ep=options.ep,
        network=options.network,
    )


class _Model(NamedTuple):
    """Elements of a token; experts that it takes; bytes of an expert in one layer; MoE layers."""

    hidden: int
    top_k: int
    expert_bytes: float
    moe_layers: int
    transport: Transport


def _model(options: argparse.Namespace, loads: Loads) -> _Model:
    """The workload's model, or DeepSeek-V3's sizes with the layers of the loads."""
    from simulator.spec.transport import load_transport
    from simulator.spec.units import parse_quantity

    layers, experts = loads.counts.shape
    given = None
    if options.expert_bytes is not None:
        try:
            given = parse_quantity(options.expert_bytes, "bytes")
        except InputError as error:
            raise InputError(f"--expert-bytes: {error}") from None
    if options.workload is None:
        hidden = options.hidden or HIDDEN
        size = given or 3.0 * hidden * WIDTH
        return _Model(hidden, min(TOP_K, experts), size, layers, load_transport(TRANSPORT))

    from simulator.model import sizes
    from simulator.spec.load import load_workload

    workload = load_workload(options.workload)
    model = workload.model
    if model.moe.experts != experts:
        raise InputError(
            f"--workload {options.workload}: a model of {model.moe.experts} experts; "
            f"{options.loads} has {experts}"
        )
    size = given or sizes.expert_bytes(model)
    sparse = model.layers - model.moe.first_dense_layers
    hidden = options.hidden or model.hidden
    return _Model(hidden, model.moe.top_k, size, sparse, workload.transport)


def render(found: list[Row]) -> str:
    """The rows as a table of at most 80 columns for each topology."""
    from simulator.results.summary import size
    from simulator.results.text import lay_out

    header = ("policy", "us", "worst", "max/mean", "GiB", "moved", "hottest link")
    parts = []
    for topology in dict.fromkeys(row["topology"] for row in found):
        mine = [row for row in found if row["topology"] == topology]
        nodes = f"{mine[0]['nodes']} node" + ("s" if mine[0]["nodes"] > 1 else "")
        cells = [
            (
                row["policy"],
                f"{row['alltoall_us']:.1f}",
                f"{row['alltoall_worst_us']:.1f}",
                f"{row['max_over_mean']:.3f}",
                f"{row['expert_GiB']:.1f}",
                size(row["moved_bytes"]),
                f"{row['hottest_link'].replace(' ', '')} {100 * row['hottest_link_busy']:.0f} %",
            )
            for row in mine
        ]
        title = f"{topology}: {mine[0]['gpus']} GPUs in {nodes}"
        parts.append(f"{title}\n{lay_out(header, cells, right=range(1, 6))}")
    return "\n\n".join(parts)


def said(wanted: Asked, found: list[Row]) -> list[str]:
    """What the columns are and what was sampled."""
    layers = len(wanted.loads.counts)
    slots = {row["slots"] for row in found}
    lines = [
        "us: dispatch and combine of one layer, alone on the network, mean of "
        f"{len(wanted.layers)} of {layers} layers; worst: of the slowest of them",
        "max/mean: rows of the busiest GPU in these layers; GiB: experts on a GPU, "
        f"{wanted.moe_layers} layers",
        "moved: weights that GPUs lack that hold one copy of each expert in order, "
        f"{wanted.moe_layers} layers",
        "hottest link: the share of the all-to-all time that its bytes take at full bandwidth",
    ]
    if len(slots) > 1:
        lines.append(
            f"{max(slots)} slots per layer; policies that are blind to loads: {min(slots)}"
        )
    if any(row["network"] != "exact" for row in found):
        lines.append("times are approximate: all flows of a phase are taken to end together")
    return lines + [f"note: {line}" for line in wanted.loads.notes]


def _names(text: str) -> list[str]:
    from simulator.policies.placement import placement_policy
    from simulator.policies.placement_file import SUFFIX

    names = _listed("--policy", text)
    for name in names:
        if not name.endswith(SUFFIX):
            placement_policy(name)
    return names


def _listed(flag: str, text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise InputError(f"{flag}: names nothing; write one or more, with commas between them")
    return names


def whole(text: str) -> int:
    """A whole number that may be 0."""
    if not (text.isascii() and text.isdigit() and int(text[:9]) <= 1 << 20):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {1 << 20}")
    return int(text)


def _count(text: str) -> int:
    if not whole(text):
        raise argparse.ArgumentTypeError("0 is too few; write 1 or more")
    return int(text)
