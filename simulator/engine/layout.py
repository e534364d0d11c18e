"""Who serves which expert, what each GPU keeps of it, and whether that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.graph import Graph, memory_of_host
from simulator.errors import InputError
from simulator.model import footprint, sizes
from simulator.policies.placement import Placement, contiguous_owner, expert_parallel_degree
from simulator.spec.schema import Gpu, Workload

MOST_SLOTS = 32_767
"""Slots of a group and layer: their numbers are 16 bit."""


@dataclass(frozen=True)
class Layout:
    """Experts on GPUs.

    GPUs form groups of `ep` neighbours; each group holds all experts, in the slots of `placement`
    (of each MoE layer). serves: bool [layers, gpus, experts], what a GPU may have to compute in an
    MoE layer; slots: experts per layer that a GPU keeps; fetch: weights travel to the tokens;
    on_peers: what is not kept lies on another GPU, not in host memory.
    """

    gpus: int
    ep: int
    placement: Placement
    serves: NDArray[np.bool_]
    slots: int
    fetch: bool
    on_peers: bool

    @cached_property
    def offloaded(self) -> bool:
        """Whether a GPU keeps fewer experts than it serves."""
        return self.slots < int(self.serves.sum(axis=2).max())

    @cached_property
    def owner(self) -> NDArray[np.int32]:
        """The GPU of each expert's first copy in the first MoE layer, int32 [experts]."""
        _, first = np.unique(self.placement.expert_of[0], return_index=True)
        return self.placement.gpu_of[first]

    def home(self, gpu: int, expert: int) -> int:
        """The GPU that keeps an expert's weights for `gpu` when they are kept on a peer.

        Weights that travel come from the expert's owner; an offloaded share lies on the next GPU.
        """
        first = gpu // self.ep * self.ep
        if self.fetch:
            return first + int(self.owner[expert])
        return first + (gpu - first + 1) % self.ep

    def pairs(self) -> Iterator[tuple[int, int]]:
        """GPUs (source, target) between which something may have to travel."""
        if self.fetch and not (self.offloaded and self.on_peers):
            return
        for source in range(self.gpus):
            first = source // self.ep * self.ep
            for target in range(first, first + self.ep):
                if source != target:
                    yield source, target


def group_size(workload: Workload, gpus: int, cluster: str) -> int:
    """GPUs of an expert-parallel group; InputError where they cannot be had, or hold all slots."""
    experts = workload.model.moe.experts
    physical = experts + workload.redundant_experts
    ep = workload.parallel.ep or expert_parallel_degree(gpus, physical)
    if gpus % ep:
        raise InputError(f"parallel.ep: {ep} does not divide the {gpus} GPUs of {cluster}")
    if ep > physical:
        raise InputError(f"parallel.ep: {ep} GPUs for {physical} experts; write {physical} or less")
    if physical > min(experts * ep, MOST_SLOTS):
        most = min(experts * ep, MOST_SLOTS) - experts
        raise InputError(
            f"redundant_experts: {workload.redundant_experts}, but {most} is the most that "
            f"{experts} experts on {ep} GPUs can have; write {most} or less"
        )
    return ep


def layout_of(
    workload: Workload, gpus: int, cluster: str, placement: Placement | None = None
) -> Layout:
    """The layout that a workload asks for on `gpus` GPUs; InputError if it cannot be had.

    placement: where the experts are; None: in order, which is as many to each GPU as any.
    """
    experts = workload.model.moe.experts
    ep = group_size(workload, gpus, cluster)
    if placement is None:
        physical = experts + workload.redundant_experts
        order = np.arange(physical, dtype=np.int32)[None, :] % np.int32(experts)
        placement = Placement(order, contiguous_owner(physical, ep))
    sparse = workload.model.layers - workload.model.moe.first_dense_layers
    fetch = workload.expert_access == "fetch"
    held = serves_of(placement, gpus, ep, experts)
    serves = np.broadcast_to(np.ones_like(held) if fetch else held, (sparse, gpus, experts))
    most = int(serves.sum(axis=2).max())
    slots = workload.expert_slots or most
    if slots > most:
        raise InputError(
            f"expert_slots: {slots} per layer, but a GPU serves {most} experts per layer; "
            f"write {most} or less, or leave it out"
        )
    layout = Layout(gpus, ep, placement, serves, slots, fetch, workload.expert_home == "peer")
    if layout.offloaded and layout.on_peers and ep == 1:
        raise InputError(
            "expert_home: peer needs at least two GPUs in an expert-parallel group; "
            "set parallel.ep or expert_home=host"
        )
    return layout


def serves_of(placement: Placement, gpus: int, ep: int, experts: int) -> NDArray[np.bool_]:
    """Which experts each GPU has in a slot, bool [layers, gpus, experts]; groups are alike."""
    layers = len(placement.expert_of)
    held = np.zeros((layers, ep, experts), dtype=np.bool_)
    held[np.arange(layers)[:, None], placement.gpu_of[None, :], placement.expert_of] = True
    return np.tile(held, (1, gpus // ep, 1))


def gpu_memory(workload: Workload, layout: Layout, gpu: int) -> dict[str, float]:
    """Bytes on a GPU by part (`footprint.gpu_bytes`)."""
    share = _shares(workload, layout)
    # A peer keeps all of a share: what is resident changes, and nothing is written back.
    for_peers = max(share) if layout.offloaded and layout.on_peers else 0
    if not layout.offloaded:
        # Two copies of one expert on a GPU take two slots.
        served = sum(share) if layout.fetch else share[gpu % layout.ep]
        return footprint.gpu_bytes(workload, served, for_peers)
    served = int(layout.serves[:, gpu].sum(axis=1).max())
    return footprint.gpu_bytes(workload, min(layout.slots, served), for_peers)


def _shares(workload: Workload, layout: Layout) -> list[float]:
    """Slots of a layer, in experts of size 1, that each GPU of a group has, [ep]."""
    gpu_of, given = layout.placement.gpu_of, workload.model.moe.expert_sizes
    if given is None:
        found: list[float] = np.bincount(gpu_of, minlength=layout.ep).tolist()
        return found
    taken = np.array(given)[layout.placement.expert_of]  # [layers, slots]
    return [float(taken[:, gpu_of == gpu].sum(axis=1).max()) for gpu in range(layout.ep)]


def memories_of(graph: Graph, names: Sequence[str]) -> list[str | None]:
    """The DRAM node of each GPU's host, None where it has none."""
    return [memory_of_host(graph, name) for name in names]


def check_memory(
    workload: Workload,
    gpu: Gpu,
    layout: Layout,
    names: Sequence[str],
    memories: Sequence[str | None],
    graph: Graph,
    advice: Callable[[], str] = str,
) -> None:
    """Raise InputError if a GPU, or the host memory that GPUs fetch from, cannot hold its part.

    `memories`: the DRAM node of each GPU; advice: says what to change where a GPU cannot.
    """
    for index, name in enumerate(names[: layout.ep]):  # groups are alike
        footprint.check_gpu(workload, gpu, gpu_memory(workload, layout, index), name, advice)
    if not layout.offloaded or layout.on_peers:
        return
    model = workload.model
    for memory in dict.fromkeys(m for m in memories if m is not None):
        mine = [index for index, m in enumerate(memories) if m == memory]
        kept = layout.serves[:, mine].any(axis=1).sum(axis=0)  # of each expert, over all layers
        capacity = graph.nodes[memory].get("capacity_bytes")
        if capacity is not None:
            given = model.moe.expert_sizes
            count = float(kept.sum() if given is None else kept @ np.array(given))
            needed = count * sizes.expert_bytes(model)
            footprint.check_host(workload, memory, needed, capacity)
