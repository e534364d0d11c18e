"""Experts that move while a run goes on: a new placement every so many steps, by what was seen.

The policy is shown the loads of all steps so far, layer by layer. A layer takes its answer if the
largest over mean load of the GPUs falls by `min_gain` at least. What a GPU lacks then comes over
the links from the GPU of its group that was nearest to it among those that held the expert, on the
copy stream, one transfer after the other, while tokens go on as before. The new placement holds
from the first step that begins after the last transfer has arrived; until then a GPU keeps what it
had, so it needs room for both. Layers with most to gain come first, as long as there is room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.engine import core
from simulator.engine.driver import Driver
from simulator.engine.homes import Homes, Near, homes_of
from simulator.engine.layout import Layout, serves_of
from simulator.engine.parts import Cut, MicroBatch
from simulator.engine.placed import BLIND, target_of
from simulator.engine.roads import Roads
from simulator.errors import InputError
from simulator.model import sizes
from simulator.policies.placement import ALIASES, Placement, gpu_loads, place
from simulator.runfiles import spans
from simulator.spec.schema import PLACEMENT_FILE, Workload

Floats = NDArray[np.float64]
Int32s = NDArray[np.int32]
GIB = 2.0**30


class Move(NamedTuple):
    """An expert's weights that a GPU needs: MoE layer (from 0), GPU, expert, route to come over."""

    layer: int
    gpu: int
    expert: int
    route: int


@dataclass
class _Under:
    """A rebalancing under way: the step that it began in, and when; operation -> move."""

    placement: Placement
    step: int
    asked_s: float
    moves: list[Move]
    ops: dict[int, Move]


class Rebalancer:
    """State of a run's rebalancing: loads seen, the placement in force, transfers under way.

    `cut` is how the next batch is to be cut.
    """

    def __init__(
        self,
        workload: Workload,
        layout: Layout,
        near: Near,
        roads: Roads,
        driver: Driver,
        cut: Cut,
        free_bytes: Sequence[float],
    ) -> None:
        """free_bytes: room on each GPU beside what it always holds."""
        assert workload.rebalance is not None
        self.cut = cut
        self._workload = workload
        self._every = workload.rebalance.every
        self._policy = policy_of(workload)
        self._least = workload.rebalance.min_gain
        self._layout = layout
        self._near = near
        self._roads = roads
        self._driver = driver
        self._free = np.array(free_bytes)
        relative = workload.model.moe.expert_sizes
        each = np.ones(cut.experts) if relative is None else np.array(relative)
        self._size_bytes = each * sizes.expert_bytes(workload.model)
        self._placement = layout.placement
        layers = workload.model.layers - workload.model.moe.first_dense_layers
        self._loads = np.zeros((layers, cut.experts))
        self._under: _Under | None = None
        self._arrived = 0
        self._arrived_bytes = 0.0
        self._asked = 0
        self._most_bytes = 0.0
        self._told: list[tuple[int, float, float]] = []  # step, max/mean before and after
        self._in_force: list[int] = []  # steps from which a new placement held

    def begin(self, step: int) -> None:
        """The step has begun: put what was decided at the end of the last on its way."""
        under = self._under
        if under is None or under.ops or not under.moves:
            return
        driver, gpus = self._driver, self._layout.gpus
        under.step, under.asked_s = step, driver.env.now
        ops = driver.ids(len(under.moves))
        whole: list[int] = []
        for op, move in zip(ops, under.moves, strict=True):
            whole += (op, core.FETCH, 2 * gpus + move.gpu, move.route)
        wire, size_bytes = self._roads.copy_wire_bytes, self._size_bytes
        real = [float(wire[move.route] * size_bytes[move.expert]) for move in under.moves]
        driver.add(whole, real, [])
        under.ops = dict(zip(ops, under.moves, strict=True))
        self._asked += len(ops)

    def ended(
        self, step: int, microbatches: Sequence[MicroBatch], last: bool, dense: int
    ) -> tuple[NDArray[np.void], list[int]]:
        """The step has ended: spans of the transfers that arrived in it, and the route of each.

        Where all have arrived, the new placement holds from now on; where none are under way and
        it is time, a new one is asked for. `dense` layers come before the first MoE layer.
        """
        for microbatch in microbatches:
            for layer in range(len(self._loads)):
                self._loads[layer] += microbatch.expert_rows(layer).sum(axis=0)
        records, routes = self._arrivals(dense)
        under = self._under
        if under is not None and not under.ops:
            self._take(under.placement, step + 1)
        if self._under is None and (step + 1) % self._every == 0 and not last:
            self._decide(step + 1)
        return records, routes

    def notes(self) -> list[str]:
        """What to say of it at the end."""
        if not self._told:
            return [f"rebalance: no layer gained {self._least:.0%}, so nothing was moved"]
        first, final = self._told[0], self._told[-1]
        moved = self._arrived_bytes / GIB
        found = [
            f"rebalance {self._policy}: {_times(len(self._told))}, {self._arrived:,} experts "
            f"({moved:.3g} GiB) moved; {_listed(self._in_force)}",
            "max/mean load of GPUs, by the loads seen, before and after: "
            f"{first[1]:.3f} -> {first[2]:.3f} at step {first[0]}"
            + (f", {final[1]:.3f} -> {final[2]:.3f} at step {final[0]}" if final != first else ""),
            f"experts that arrive took up to {self._most_bytes / GIB:.3g} GiB more on a GPU",
        ]
        if self._asked > self._arrived:
            left = self._asked - self._arrived
            found.append(f"{left:,} of {self._asked:,} transfers had not arrived at the end")
        return found

    # --- what has arrived, and what follows

    def _arrivals(self, dense: int) -> tuple[NDArray[np.void], list[int]]:
        under = self._under
        if under is None or not under.ops:
            return np.zeros(0, dtype=spans.RECORD), []
        times = self._driver.net.op_f
        done = [op for op in under.ops if times[op, core.END] >= 0.0]
        moves = [under.ops.pop(op) for op in done]
        records = np.zeros(len(done), dtype=spans.RECORD)
        records["step"] = under.step
        records["microbatch"] = -1
        records["layer"] = [move.layer + dense for move in moves]
        records["gpu"] = [move.gpu for move in moves]
        records["stream"], records["kind"] = spans.COPY, spans.REBALANCE
        records["start_s"] = times[done, core.START]
        records["end_s"] = times[done, core.END]
        records["ready_s"] = under.asked_s
        records["peer"] = -1
        records["expert"] = [move.expert for move in moves]
        records["bytes"] = self._size_bytes[records["expert"]]
        self._arrived += len(done)
        self._arrived_bytes += float(records["bytes"].sum())
        order = np.lexsort((records["gpu"], records["end_s"]))
        return records[order], [moves[place].route for place in order.tolist()]

    def _take(self, placement: Placement, step: int) -> None:
        self._placement = placement
        homes, home_of = _homes(self._workload, placement, self._near)
        self.cut = replace(self.cut, homes=homes, home_of=home_of)
        self._under = None
        self._in_force.append(step)

    def _decide(self, step: int) -> None:
        now = self._placement
        ep = self._layout.ep
        wanted = place(self._policy, self._loads, target_of(self._workload, self._near, None))
        if not np.array_equal(wanted.gpu_of, now.gpu_of):
            raise InputError(
                f"rebalance: {self._policy} gives GPUs other numbers of slots than the placement "
                f"{self._workload.placement}; take one policy for both"
            )
        before, after = imbalance(self._loads, now, ep), imbalance(self._loads, wanted, ep)
        gain = 1.0 - after / before
        chosen = np.flatnonzero((gain >= self._least) & (after < before))
        room = self._free.copy()
        expert_of = now.expert_of.copy()
        moves: list[Move] = []
        for layer in chosen[np.argsort(-gain[chosen], kind="stable")].tolist():
            mine = relabelled(
                now.expert_of[layer], wanted.expert_of[layer], now.gpu_of,
                self._near.node[:ep], self.cut.experts,
            )  # fmt: skip
            found = self._moves(layer, mine)
            size_bytes = [self._size_bytes[move.expert] for move in found]
            needed = np.bincount([m.gpu for m in found], size_bytes, minlength=len(room))
            if (needed <= room).all():
                room -= needed
                expert_of[layer] = mine
                moves += found
        if not moves:
            return
        self._most_bytes = max(self._most_bytes, float((self._free - room).max()))
        placement = Placement(expert_of, now.gpu_of)
        at_last = imbalance(self._loads, placement, ep)
        self._told.append((step, float(before.mean()), float(at_last.mean())))
        self._under = _Under(placement, step, 0.0, moves, {})

    def _moves(self, layer: int, expert_of: Int32s) -> list[Move]:
        """What GPUs lack in a layer when the slots hold these experts, int32 [slots]."""
        layout = self._layout
        given = (layout.gpus, layout.ep, self.cut.experts)
        gpu_of = self._placement.gpu_of
        old = serves_of(Placement(self._placement.expert_of[[layer]], gpu_of), *given)[0]
        new = serves_of(Placement(expert_of[None, :], gpu_of), *given)[0]
        homes = self.cut.homes[self.cut.home_of[layer]]
        found = []
        for gpu, expert in np.argwhere(new & ~old).tolist():
            source = gpu // layout.ep * layout.ep + _holder(homes, gpu, expert)
            found.append(Move(layer, gpu, expert, int(self._roads.between[source, gpu])))
        return found


def policy_of(workload: Workload) -> str:
    """The policy that rebalances; InputError for one that does not look at loads."""
    assert workload.rebalance is not None
    name = workload.rebalance.policy or workload.placement
    if ALIASES.get(name, name) in BLIND or name.endswith(PLACEMENT_FILE):
        raise InputError(
            f"rebalance: {name} does not look at loads; write a policy that does, such as "
            "rebalance: {every: 8, policy: balanced}"
        )
    if name == "co-activation":
        raise InputError(
            "rebalance: co-activation needs a recording, not the loads of steps; write another "
            "policy, such as balanced"
        )
    return name


def imbalance(loads: Floats, placement: Placement, gpus: int) -> Floats:
    """Largest over mean load of the GPUs of a group, float64 [layers]; 1 where there is none."""
    each = gpu_loads(loads, placement, gpus)
    mean = each.mean(axis=1)
    return np.where(mean > 0.0, each.max(axis=1) / np.where(mean > 0.0, mean, 1.0), 1.0)


def relabelled(old: Int32s, new: Int32s, gpu_of: Int32s, node_of: Int32s, experts: int) -> Int32s:
    """The new experts of a layer's slots, int32 [slots], with GPUs of one node and as many slots
    exchanged so that most experts stay where they are: the pair with most in common first.
    """
    gpus = len(node_of)
    share = np.bincount(gpu_of, minlength=gpus)
    held = np.zeros((2, gpus, experts), dtype=np.int32)
    held[0, gpu_of, old] = held[1, gpu_of, new] = 1
    common = held[1] @ held[0].T  # [GPU in the answer, GPU that it becomes]
    alike = (node_of[:, None] == node_of[None, :]) & (share[:, None] == share[None, :])
    common = np.where(alike, common, -1)
    becomes = np.empty(gpus, dtype=np.int64)
    for _ in range(gpus):
        a, b = divmod(int(np.argmax(common)), gpus)
        becomes[a] = b
        common[a], common[:, b] = -2, -2
    return new[np.argsort(becomes[gpu_of], kind="stable")]


def _holder(homes: Homes, gpu: int, expert: int) -> int:
    """The GPU, within the group, from which a GPU gets an expert."""
    if homes.copies is None:
        return int(homes.owner[expert])
    return int(homes.copies.owner[homes.copies.nearest[gpu, expert]])


def _homes(
    workload: Workload, placement: Placement, near: Near
) -> tuple[tuple[Homes, ...], Int32s]:
    size = target_of(workload, near, None).bytes_per_token
    least_loaded = workload.replica_choice == "least-loaded"
    return homes_of(placement, workload.model.moe.experts, near, size, least_loaded)


def _listed(steps: Sequence[int]) -> str:
    if not steps:
        return "never in force: the run ended before"
    return (
        "in force from step " + ", ".join(map(str, steps[:6])) + (", ..." if len(steps) > 6 else "")
    )


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
