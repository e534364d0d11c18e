"""Who serves which expert, what each GPU keeps of it, and whether that fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.graph import Graph
from simulator.errors import InputError
from simulator.model import footprint, sizes
from simulator.policies.placement import PLACEMENTS, expert_parallel_degree
from simulator.spec.schema import Gpu, Workload


@dataclass(frozen=True)
class Layout:
    """Experts on GPUs.

    GPUs form groups of `ep` neighbours; each group holds all experts. owner: int32 [experts], the
    GPU within its group; serves: bool [gpus, experts], what a GPU may have to compute; slots:
    experts per layer that a GPU keeps; fetch: weights travel to the tokens; on_peers: what is not
    kept lies on another GPU, not in host memory.
    """

    gpus: int
    ep: int
    owner: NDArray[np.int32]
    serves: NDArray[np.bool_]
    slots: int
    fetch: bool
    on_peers: bool

    @property
    def offloaded(self) -> bool:
        """Whether a GPU keeps fewer experts than it serves."""
        return self.slots < int(self.serves.sum(axis=1).max())

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


def layout_of(workload: Workload, gpus: int, cluster: str) -> Layout:
    """The layout that a workload asks for on `gpus` GPUs; InputError if it cannot be had."""
    experts = workload.model.moe.experts
    ep = workload.parallel.ep or expert_parallel_degree(gpus, experts)
    if gpus % ep:
        raise InputError(f"parallel.ep: {ep} does not divide the {gpus} GPUs of {cluster}")
    if ep > experts:
        raise InputError(f"parallel.ep: {ep} GPUs for {experts} experts; write {experts} or less")
    owner = PLACEMENTS["contiguous"](experts, ep)
    fetch = workload.expert_access == "fetch"
    held = owner[None, :] == (np.arange(gpus) % ep)[:, None]
    serves = np.ones_like(held) if fetch else held
    most = int(serves.sum(axis=1).max())
    slots = workload.expert_slots or most
    if slots > most:
        raise InputError(
            f"expert_slots: {slots} per layer, but a GPU serves {most} experts per layer; "
            f"write {most} or less, or leave it out"
        )
    layout = Layout(gpus, ep, owner, serves, slots, fetch, workload.expert_home == "peer")
    if layout.offloaded and layout.on_peers and ep == 1:
        raise InputError(
            "expert_home: peer needs at least two GPUs in an expert-parallel group; "
            "set parallel.ep or expert_home=host"
        )
    return layout


def gpu_memory(workload: Workload, layout: Layout, gpu: int) -> dict[str, float]:
    """Bytes on a GPU by part (`footprint.gpu_bytes`)."""
    # A peer keeps all of a share: what is resident changes, and nothing is written back.
    share = int(np.bincount(layout.owner).max())
    for_peers = share if layout.offloaded and layout.on_peers else 0
    served = int(layout.serves[gpu].sum())
    return footprint.gpu_bytes(workload, min(layout.slots, served), for_peers)


def check_memory(
    workload: Workload,
    gpu: Gpu,
    layout: Layout,
    names: Sequence[str],
    memories: Sequence[str | None],
    graph: Graph,
) -> None:
    """Raise InputError if a GPU, or the host memory that GPUs fetch from, cannot hold its part.

    `memories`: the DRAM node of each GPU.
    """
    for index, name in enumerate(names):
        footprint.check_gpu(workload, gpu, gpu_memory(workload, layout, index), name)
    if not layout.offloaded or layout.on_peers:
        return
    model = workload.model
    sparse = model.layers - model.moe.first_dense_layers
    for memory in dict.fromkeys(m for m in memories if m is not None):
        mine = [index for index, m in enumerate(memories) if m == memory]
        kept = int(layout.serves[mine].any(axis=0).sum())
        capacity = graph.nodes[memory].get("capacity_bytes")
        if capacity is not None:
            needed = kept * sparse * sizes.expert_bytes(model)
            footprint.check_host(workload, memory, needed, capacity)
