"""Where a run has its experts: the loads that a placement policy is shown, and its answer."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.graph import Graph
from simulator.engine.homes import Near, near_of
from simulator.engine.layout import group_size
from simulator.engine.ranks import ranks_of
from simulator.engine.transport import token_bytes
from simulator.errors import InputError
from simulator.policies.placement import ALIASES, Placement, Target, place
from simulator.spec.load import Inputs
from simulator.spec.schema import PLACEMENT_FILE, Workload

Floats = NDArray[np.float64]

BLIND = ("contiguous", "round-robin")
"""Policies that do not look at loads."""

SAMPLE_TOKENS = 8192
"""Tokens per layer drawn from a law: an expert of mean load in 256, top-8, is met 256 times, give
or take 6 %."""

ELSEWHERE = 1 << 64
"""Draws by which the sample is ahead of the run's own: no run makes as many."""


class Seen(NamedTuple):
    """What a policy is shown: loads float64 [MoE layers, experts]; together float64 [MoE layers,
    experts, experts], tokens that took both, None if only loads are known; how it came by them.
    """

    loads: Floats
    together: Floats | None
    told: str


def plain(workload: Workload) -> bool:
    """Whether experts are where they are without any of the keys of placement."""
    return (
        ALIASES.get(workload.placement, workload.placement) == "contiguous"
        and not workload.redundant_experts
        and workload.rebalance is None
    )


def refuse_placing(workload: Workload, where: str) -> None:
    """Raise InputError for keys of placement where all experts must be in order."""
    if plain(workload):
        return
    key = "placement" if workload.rebalance is None else "rebalance"
    key = "redundant_experts" if workload.redundant_experts else key
    raise InputError(
        f"{key}: {where}; write placement: contiguous, redundant_experts: 0 and rebalance: null"
    )


def near(inputs: Inputs, graph: Graph, names: list[str]) -> Near:
    """Distances between the GPUs of a run's groups, as its transport goes."""
    ep = group_size(inputs.workload, len(names), inputs.topology.name)
    node = ranks_of(graph).node if len(names) > 1 else np.zeros(1, dtype=np.int32)
    via = "network" if inputs.workload.transport.path == "network" else None
    return near_of(graph, names, node, ep, via)


def target_of(workload: Workload, near: Near, together: Floats | None) -> Target:
    """What a policy places on: a group of GPUs, wired as the first one is."""
    ep = near.ep
    _, node_of = np.unique(near.node[:ep], return_inverse=True)
    return Target(
        gpus=ep,
        physical=workload.model.moe.experts + workload.redundant_experts,
        nodes=int(node_of.max()) + 1,
        node_of=node_of.ravel().astype(np.int32),
        groups=workload.placement_groups,
        seconds_per_byte=near.seconds_per_byte[:ep],
        latency_s=near.latency_s[:ep],
        together=together,
        bytes_per_token=token_bytes(workload.transport, "dispatch", workload.model.hidden),
    )


def placement_of(inputs: Inputs, near: Near, seed: int) -> tuple[Placement, str]:
    """The placement of a run's MoE layers, and a sentence on what it was made from.

    Raises InputError for a policy, a file of loads or a placement that does not fit the model.
    """
    workload = inputs.workload
    moe = workload.model.moe
    layers = workload.model.layers - moe.first_dense_layers
    name = workload.placement
    if name.endswith(PLACEMENT_FILE):
        return _read(inputs, name, layers, near.ep), f"placement read from {name}"
    if ALIASES.get(name, name) in BLIND:
        even = np.ones((layers, moe.experts))
        return place(name, even, target_of(workload, near, None)), ""
    seen = seen_by(inputs, layers, seed)
    found = place(name, seen.loads, target_of(workload, near, seen.together))
    return found, f"placement {name}, by {seen.told}"


def _read(inputs: Inputs, name: str, layers: int, ep: int) -> Placement:
    from simulator.policies.placement_file import read_placement
    from simulator.routing.batches import map_layers
    from simulator.routing.importers import open_trace
    from simulator.routing.loads import law_of
    from simulator.routing.trace import read_info

    path = beside(inputs, name, "placement")
    experts = inputs.workload.model.moe.experts
    found = read_placement(path, ep, None, experts)
    given = len(found.expert_of)
    trace, recorded = inputs.trace_path, layers
    if trace is not None and law_of(inputs.workload.routing.source, trace) is None:
        recorded = read_info(open_trace(trace)).layers
    if given == recorded != layers:  # a placement of the recording's layers
        layer_of = map_layers(layers, recorded, inputs.workload.routing.layer_map)
        found = Placement(found.expert_of[layer_of], found.gpu_of)
    else:
        found = read_placement(path, ep, layers, experts)
    copies = found.expert_of.shape[1] - experts
    if copies != inputs.workload.redundant_experts:
        raise InputError(
            f"placement: {path} has {copies} slots more than experts; the workload says "
            f"redundant_experts: {inputs.workload.redundant_experts}; write {copies}"
        )
    return found


def beside(inputs: Inputs, name: str, key: str) -> Path:
    """A file that a workload names: beside its YAML file, or from the current directory."""
    given = Path(name).expanduser()
    for path in (inputs.workload_path.parent / given, given):
        if path.is_file():
            return path
    raise InputError(f"{key}: no such file {name!r}")


def seen_by(inputs: Inputs, layers: int, seed: int) -> Seen:
    """What a policy is shown of so many MoE layers: `placement_loads`, else the run's routing."""
    from simulator.routing.loads import law_of
    from simulator.spec.find import find, shipped

    workload = inputs.workload
    given = workload.placement_loads
    if given is not None:
        path = find("trace", given) if given in shipped("trace") else beside(
            inputs, given, "placement_loads"
        )  # fmt: skip
        return _from_file(inputs, path, layers, f"the loads of {given}")
    law = law_of(workload.routing.source, inputs.trace_path)
    if law is not None or inputs.trace_path is None:
        return _from_law(workload, law or workload.routing.source, layers, seed)
    told = f"all of {workload.routing.source}, seen beforehand: an upper bound"
    return _from_file(inputs, inputs.trace_path, layers, told)


def _from_file(inputs: Inputs, path: Path, layers: int, told: str) -> Seen:
    from simulator.routing.batches import map_layers
    from simulator.routing.importers import open_trace
    from simulator.routing.loads import is_load_file, loads_of
    from simulator.routing.trace import read_info

    workload = inputs.workload
    experts = workload.model.moe.experts
    tokens = not is_load_file(path)
    path = open_trace(path) if tokens else path
    found = loads_of(path)
    given = found.counts.shape[1]
    if given != experts:
        raise InputError(f"{path}: has loads of {given} experts; the model has {experts}")
    # Layers of a recording keep their numbers; a load file lists the MoE layers.
    count = read_info(path).layers if tokens else len(found.counts)
    loads = np.ones((count, experts))
    loads[found.layers if tokens else slice(None)] = found.counts
    layer_of = map_layers(layers, count, workload.routing.layer_map)
    together = taken_together(path, experts)[layer_of] if tokens and _wants(workload) else None
    return Seen(loads[layer_of], together, told)


def _wants(workload: Workload) -> bool:
    """Whether the policy may look at which experts are taken together (it is costly to count)."""
    return workload.placement == "co-activation" or ":" in workload.placement


def taken_together(path: Path, experts: int) -> Floats:
    """Tokens of a recording that took both of two experts, float64 [layers, experts, experts]."""
    from simulator.routing.importers import open_trace
    from simulator.routing.trace import iter_blocks, read_info

    trace = open_trace(path)
    layers = read_info(trace).layers
    found = np.zeros((layers, experts, experts))
    for block in iter_blocks(trace):
        for layer in range(layers):
            found[layer] += _both(block.experts[:, layer], experts)
    return found


def _both(ids: NDArray[np.int16], experts: int) -> Floats:
    """Tokens that took both of two experts, float64 [experts, experts]; ids: int16 [tokens, k]."""
    from simulator.policies.cooccurrence import count_transitions

    ids = np.ascontiguousarray(ids)
    both = np.zeros((experts, experts), dtype=np.float32)
    count_transitions(ids, ids, both, np.zeros(experts, dtype=np.float32))
    return both.astype(np.float64)


def _from_law(workload: Workload, text: str, layers: int, seed: int) -> Seen:
    """A sample of a law, of the popularity that the run's own draws have."""
    from simulator.routing.laws import OF_LOADS, parse_law
    from simulator.routing.loads import loads_of

    moe = workload.model.moe
    law, _, path = text.partition(":")
    if law == OF_LOADS:  # the law is its loads: no need to draw
        counts = loads_of(path).counts
        if counts.shape[1] == moe.experts and not _wants(workload):
            return Seen(counts[np.arange(layers) % len(counts)], None, f"the loads of {path}")
    draw, parameters = parse_law(text)
    # The same seed, or other experts would be popular; far ahead, or it would be the run itself.
    stream = np.random.PCG64(np.random.SeedSequence([seed, crc32(b"routing")]))
    rng = np.random.Generator(stream.advance(ELSEWHERE))
    ids = draw(rng, SAMPLE_TOKENS, layers, moe.experts, moe.top_k, *parameters, previous=None)
    loads = np.stack(
        [np.bincount(ids[:, layer].ravel(), minlength=moe.experts) for layer in range(layers)]
    )
    together = None
    if _wants(workload):
        together = np.stack([_both(ids[:, layer], moe.experts) for layer in range(layers)])
    told = f"a sample of {SAMPLE_TOKENS:,} tokens of {text}"
    return Seen(loads.astype(np.float64), together, told)
