"""The forms that a group can take: which ranks, over which wires, with experts where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.graph import Graph
from simulator.engine.costs import by_kind
from simulator.engine.layout import MOST_SLOTS, Layout, serves_of
from simulator.engine.ranks import ranks_of
from simulator.engine.serving.copies import routing_of
from simulator.engine.serving.costs import kv_blocks, most_experts
from simulator.engine.serving.damage import WHOLE, Damage
from simulator.engine.serving.group import Group
from simulator.engine.serving.pool import Pool
from simulator.engine.serving.rewiring import Wired, load_seconds, wired
from simulator.engine.serving.survival import WAYS, Left
from simulator.engine.serving.timing import DELAY, Routing
from simulator.engine.transport import token_bytes
from simulator.errors import InputError
from simulator.model import footprint, sizes
from simulator.policies.placement import Placement
from simulator.spec.load import Inputs

Bools = NDArray[np.bool_]
Int32s = NDArray[np.int32]

KEPT = 64  # wirings in memory
WHOLE_WAY = "whole"


class Form(NamedTuple):
    """How a group goes on. alive: int32, its ranks; way: how it came to this; blocks: KV blocks of
    a rank; evaluation: int32 [layers], of `Costs`; load_s: to load the experts that are missing.
    """

    alive: Int32s
    way: str
    placement: Placement
    blocks: int
    wired: Wired
    routing: Routing
    evaluation: Int32s
    load_s: float


class Former:
    """State: which experts the GPUs of each group hold, and the wirings that were found."""

    def __init__(
        self,
        inputs: Inputs,
        graph: Graph,
        names: Sequence[str],
        layout: Layout,
        pool: Pool,
        groups: Sequence[Group],
    ) -> None:
        self._inputs, self._names, self._layout, self._pool = inputs, names, layout, pool
        model = inputs.workload.model
        self._experts = model.moe.experts
        self._layers = model.layers - model.moe.first_dense_layers
        self._node = ranks_of(graph).node if layout.gpus > 1 else np.zeros(1, dtype=np.int32)
        self._share = by_kind(inputs.workload.copy_efficiency)
        self._size_bytes = token_bytes(inputs.workload.transport, "dispatch", model.hidden)
        self._wired: dict[tuple[int, bytes, Damage], Wired] = {}
        self._notes: list[str] = []
        self._delay_s = [group.of.wires.sends[:, DELAY].tolist() for group in groups]
        self._original = self._holding(layout.placement)
        self._held = [self._original for _ in groups]
        everyone = np.arange(layout.ep, dtype=np.int32)
        self._whole = []
        for number, group in enumerate(groups):
            # The wires as they are from the start; only links and distances are new here.
            found = wired(
                inputs, graph, names, self._node, layout, number * layout.ep, everyone,
                self._delay_s[number],
            )._replace(wires=group.of.wires)  # fmt: skip
            of = group.of
            self._whole.append(
                Form(
                    everyone, WHOLE_WAY, layout.placement, of.limits.blocks, found, of.routing,
                    of.costs.evaluation, 0.0,
                )
            )  # fmt: skip

    def whole(self, group: int) -> Form:
        """The form of a group when nothing is broken."""
        return self._whole[group]

    def weight_bytes(self) -> float:
        """Weights of a GPU: what it loads when it starts."""
        parts = footprint.gpu_bytes(self._inputs.workload, most_experts(self._layout), 0)
        return parts["dense weights"] + parts["experts"]

    def has(self, group: int, form: Form) -> None:
        """A group has a form: its GPUs hold these experts, others will come back as before."""
        held = self._original.copy()
        held[:, form.alive] = self._holding(form.placement)[:, form.alive]
        self._held[group] = held

    def said(self) -> list[str]:
        """What could not be done since this was asked last."""
        found, self._notes = self._notes, []
        return found

    def wired(self, group: int, alive: Int32s, damage: Damage, graph: Graph) -> Wired:
        """Wires among the ranks that are alive; InputError where no path joins two of them."""
        whole = self._whole[group].wired
        if len(alive) == self._layout.ep and self._spares(whole, damage):
            return whole
        key = (group, alive.tobytes(), damage)
        if key not in self._wired:
            if len(self._wired) >= KEPT:
                self._wired.clear()
            self._wired[key] = wired(
                self._inputs, graph, self._names, self._node, self._layout,
                group * self._layout.ep, alive, self._delay_s[group],
            )  # fmt: skip
        return self._wired[key]

    def form(self, group: int, alive: Int32s, damage: Damage, graph: Graph) -> Form | str:
        """How a group goes on with these ranks (int32, sorted), or why it cannot."""
        if not len(alive):
            return "no GPU is left"
        try:
            found = self.wired(group, alive, damage, graph)
        except InputError as error:
            return str(error)
        whole = self._whole[group]
        if len(alive) == self._layout.ep:
            load_s = self._load_s(group, whole.placement, alive, graph)
            if load_s is None:
                return "the experts that it lacks cannot be loaded"
            if found is whole.wired:
                return whole._replace(load_s=load_s)
            return self._with(whole.placement, WHOLE_WAY, alive, whole.blocks, found, load_s)
        return self._on_loss(group, alive, found, graph)

    def _on_loss(self, group: int, alive: Int32s, found: Wired, graph: Graph) -> Form | str:
        whole = self._whole[group]
        left = Left(whole.placement, alive, self._layout.ep, self._experts)
        first = group * self._layout.ep
        gone = np.setdiff1d(whole.alive, alive).tolist()
        shown = ", ".join(self._names[first + rank] for rank in gone[:4])
        told = f"group {group} without {shown}{', ...' if len(gone) > 4 else ''}"
        for name in self._inputs.workload.serving.on_member_loss:
            if name == "drain":
                break
            placement = WAYS[name](left)
            why = "an expert has no other copy" if name == "replicas" else "too few experts"
            if placement is not None and placement.expert_of.shape[1] <= MOST_SLOTS:
                try:
                    blocks = whole.blocks if name == "replicas" else self._blocks(whole, placement)
                    load_s = self._load_s(group, placement, alive, graph)
                    if load_s is not None:
                        return self._with(placement, name, alive, blocks, found, load_s)
                    why = "the experts cannot be loaded from host memory"
                except InputError:
                    why = "the experts do not fit"
            self._notes.append(f"{told}: {name} cannot be done, {why}")
        return f"drain: waits for {shown}{', ...' if len(gone) > 4 else ''}"

    def _with(
        self,
        placement: Placement,
        way: str,
        alive: Int32s,
        blocks: int,
        found: Wired,
        load_s: float,
    ) -> Form:
        dense = self._inputs.workload.model.moe.first_dense_layers
        routing, evaluation = routing_of(
            placement, self._pool, dense, self._experts, self._layout.ep, alive, found.near,
            self._size_bytes,
        )  # fmt: skip
        return Form(alive, way, placement, blocks, found, routing, evaluation, load_s)

    def _blocks(self, whole: Form, placement: Placement) -> int:
        """KV blocks beside the experts of a placement; InputError if not one is left."""
        workload, asked = self._inputs.workload, self._inputs.workload.serving
        ep = self._layout.ep
        serves = serves_of(placement, ep, ep, self._experts)
        layout = replace(self._layout, gpus=ep, placement=placement, serves=serves)
        gpu = self._inputs.topology.gpu
        blocks = kv_blocks(workload, gpu, layout, asked.max_batched_tokens, asked.kv_block)
        return min(blocks, whole.blocks)

    def _holding(self, placement: Placement) -> Bools:
        """Who holds which expert, bool [MoE layers, ranks, experts]."""
        rows = serves_of(placement, self._layout.ep, self._layout.ep, self._experts)
        return np.broadcast_to(rows, (self._layers, *rows.shape[1:])) if len(rows) == 1 else rows

    def _load_s(
        self, group: int, placement: Placement, alive: Int32s, graph: Graph
    ) -> float | None:
        """Seconds to load what the GPUs lack, None if it cannot be had."""
        lacking = self._holding(placement)[:, alive] & ~self._held[group][:, alive]
        number = lacking.sum(axis=0)
        given = self._inputs.workload.model.moe.expert_sizes
        each = number.sum(axis=1) if given is None else number @ np.array(given)
        size_bytes = each * sizes.expert_bytes(self._inputs.workload.model)
        first = group * self._layout.ep
        wanted = {
            first + int(rank): float(size)
            for rank, size in zip(alive, size_bytes, strict=True)
            if size
        }
        return load_seconds(graph, self._names, wanted, self._share)

    def _spares(self, whole: Wired, damage: Damage) -> bool:
        """Whether damage leaves the routes of a whole group as they are."""
        if damage == WHOLE:
            return True
        hit = damage.dead | {link for link, _ in damage.share}
        return hit.isdisjoint(whole.links)
