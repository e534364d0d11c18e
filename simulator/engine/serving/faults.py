"""What a cluster does when parts of it break while it serves.

A fault changes the graph. Groups whose routes cross what is down get routes over what is left; a
step in flight over a link that died comes to nothing (its collectives are lost), one over a link
that is slower now keeps the time that it was given. A group that loses a GPU loses its step and
that GPU's KV cache, and goes on as `serving.on_member_loss` says, or stops until it is whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.graph import Graph, memory_of_host
from simulator.engine.costs import by_kind
from simulator.engine.layout import Layout
from simulator.engine.serving import scheduler
from simulator.engine.serving.damage import WHOLE, Damage, Link, damage_of, damaged, part_of
from simulator.engine.serving.forms import WHOLE_WAY, Form, Former
from simulator.engine.serving.handover import Handover
from simulator.engine.serving.losses import Losses
from simulator.engine.serving.pool import Pool
from simulator.engine.serving.rewiring import load_seconds
from simulator.engine.serving.service import PENDING, Service
from simulator.engine.serving.stragglers import Stragglers
from simulator.errors import InputError
from simulator.spec.incidents import HOST
from simulator.spec.load import Inputs

STUCK = 10_000
"""Faults in a row without a step in between, while requests wait: nothing will come of it."""

KEPT_GRAPHS = 64

UP, FORMING, DOWN = "up", "forming", "down"


class Timeline:
    """State: the faults that last, the GPUs that load, and how each group goes on.

    `log` has a row for each fault that begins or ends and for each change of a group.
    """

    def __init__(
        self,
        inputs: Inputs,
        graph: Graph,
        names: Sequence[str],
        layout: Layout,
        pool: Pool,
        service: Service,
        handover: Handover | None,
        seed: int,
    ) -> None:
        self.faults = inputs.workload.faults
        self.log: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._parts = [
            part_of(graph, fault, told)
            for fault, told in zip(self.faults, inputs.fault_marks, strict=True)
        ]
        self._inputs, self._graph, self._names, self._layout = inputs, graph, names, layout
        self._service, self._seed = service, seed
        self._former = Former(inputs, graph, names, layout, pool, service.groups)
        self._share = by_kind(inputs.workload.copy_efficiency)
        self._active: dict[int, int] = {}
        self._serial = 0
        self._down: frozenset[int] = frozenset()
        self._cause: dict[int, int] = {}
        self._loading: dict[int, int] = {}
        self._cold: dict[int, float] = {}
        self._damage = WHOLE
        self._graphs: dict[Damage, Graph] = {WHOLE: graph}
        self._forms: list[Form | None] = [self._former.whole(g) for g in range(len(service.groups))]
        self._state = [UP] * len(service.groups)
        self._said = [(UP, layout.ep, WHOLE_WAY)] * len(service.groups)
        self._version = [0] * len(service.groups)
        self._stragglers = Stragglers(service.groups, seed)
        self._losses = Losses(service, handover)
        self._handover = handover
        self._over = False
        self._idle = 0
        self._stranded = 0
        self._progress = -1

    @property
    def lost(self) -> int:
        """Requests that failed because of faults."""
        return self._losses.failed

    def begin(self) -> None:
        """Put all faults into the future. Raises InputError where one at the start and for good
        leaves GPUs of a group without a path, and for GPUs without the memory to load from.
        """
        self._check_start()
        self._check_memory()
        for index, fault in enumerate(self.faults):
            if fault.at_s is not None:
                self._service.at(fault.at_s, partial(self._begin, index))
            else:
                rng = np.random.default_rng([self._seed, crc32(f"faults.{index}".encode())])
                self._again(index, rng)

    def end(self) -> int:
        """Nothing happens any more: requests that are still here have failed; how many."""
        gone = self._service.give_up()
        if gone and not self._stranded:
            self.notes.append(
                f"requests failed from {self._service.env.now:g} s on: no group that could take "
                "them came back"
            )
        self._stranded += gone
        self._losses.failed += gone
        return gone

    # --- when

    def _check_start(self) -> None:
        now = [
            index
            for index, fault in enumerate(self.faults)
            if fault.at_s == 0.0 and fault.for_s is None and fault.do == "down"
        ]
        if not now:
            return
        damage = damage_of([(self.faults[index], self._parts[index]) for index in now], ())
        for group in range(len(self._service.groups)):
            alive = self._alive(group, damage)
            if len(alive) == self._layout.ep:
                try:
                    self._former.wired(group, alive, damage, damaged(self._graph, damage))
                except InputError as error:
                    raise InputError(f"{self._inputs.fault_marks[now[-1]]}{error}") from None

    def _check_memory(self) -> None:
        for fault, part, told in zip(
            self.faults, self._parts, self._inputs.fault_marks, strict=True
        ):
            for gpu in part.gpus if fault.load_from == HOST else ():
                if memory_of_host(self._graph, self._names[gpu]) is None:
                    raise InputError(
                        f"{told}{self._names[gpu]} has no host memory; write a bandwidth for "
                        "load_from"
                    )

    def _again(self, index: int, rng: np.random.Generator) -> None:
        """One failure and repair after the other, until the run is over."""
        fault = self.faults[index]
        assert fault.mtbf_s is not None
        service = self._service

        def fails() -> None:
            if not service.left:
                return
            serial = self._hit(index)
            assert fault.mttr_s is not None
            if self._over:  # it stays so
                return
            service.at(service.env.now + rng.exponential(fault.mttr_s), partial(repaired, serial))

        def repaired(serial: int) -> None:
            if not self._over:
                self._mend([serial])
                self._again(index, rng)

        service.at(service.env.now + rng.exponential(fault.mtbf_s), fails)

    def _begin(self, index: int) -> None:
        self._hit(index)

    def _hit(self, index: int) -> int:
        """A fault begins; its number among all that did."""
        fault, service = self.faults[index], self._service
        self._serial += 1
        serial = self._serial
        if not service.left:
            return serial
        self._tell("begin", fault=index, what=fault.what, name=fault.name, do=fault.do)
        if fault.do == "up":
            self._mend([s for s, i in self._active.items() if self.faults[i].name == fault.name])
            return serial
        self._active[serial] = index
        if fault.do == "down":
            self._cause |= dict.fromkeys(self._parts[index].gpus, index)
        if fault.for_s is not None:
            service.at(service.env.now + fault.for_s, partial(self._mend, [serial]))
        self._apply()
        return serial

    def _mend(self, serials: list[int]) -> None:
        """What some faults did is over."""
        there = [serial for serial in serials if serial in self._active]
        for serial in there:
            index = self._active.pop(serial)
            fault = self.faults[index]
            self._tell("end", fault=index, what=fault.what, name=fault.name, do=fault.do)
        if there and self._service.left:
            self._apply()

    # --- what

    def _apply(self) -> None:
        """Bring every group to what is left of it."""
        self._watch()
        active = [(self.faults[i], self._parts[i]) for i in self._active.values()]
        alone = damage_of(active, ())
        self._load(self._down - alone.gpus, self._graph_of(alone))
        self._down = alone.gpus
        for gpu in alone.gpus:
            self._loading.pop(gpu, None)
        before, self._damage = self._damage, damage_of(active, self._loading)
        self._stragglers.set(active)
        changed = _links(before) ^ _links(self._damage)
        changed_links = {link for link, _ in changed}
        dead = self._damage.dead - before.dead
        for group in range(len(self._service.groups)):
            if self._touched(group, changed_links):
                self._settle(group, dead)
        if self._handover is not None and (changed or before.gpus != self._damage.gpus):
            self._handover.rewire(self._graph_of(self._damage))

    def _load(self, back: frozenset[int], graph: Graph) -> None:
        """GPUs that are mended load their weights, if they are to, before they take part again."""
        service = self._service
        size_bytes = self._former.weight_bytes()
        from_host = {
            gpu: size_bytes for gpu in back if self.faults[self._cause[gpu]].load_from == HOST
        }
        together_s = load_seconds(graph, self._names, from_host, self._share)
        if together_s is None:  # the way is broken too: as long as when it is whole again
            together_s = load_seconds(self._graph, self._names, from_host, self._share)
        for gpu in sorted(back):
            fault = self.faults[self._cause[gpu]]
            self._cold[gpu] = fault.cold_start_s
            if fault.load_from is None:
                continue
            if gpu in from_host:
                assert together_s is not None
                takes_s = together_s
            else:
                assert isinstance(fault.load_from, float)
                takes_s = size_bytes / fault.load_from
            self._serial += 1
            self._loading[gpu] = self._serial
            service.at(service.env.now + takes_s, partial(self._loaded, gpu, self._serial))

    def _loaded(self, gpu: int, serial: int) -> None:
        if self._loading.get(gpu) == serial:
            del self._loading[gpu]
            if self._service.left:
                self._apply()

    def _touched(self, group: int, changed: set[Link]) -> bool:
        """Whether a change concerns a group: its GPUs, or links of its routes now or when whole."""
        form, whole = self._forms[group], self._former.whole(group)
        alive = self._alive(group, self._damage)
        if form is None or self._state[group] != UP or len(alive) != len(form.alive):
            return True
        if not np.array_equal(alive, form.alive) or form.wired is not whole.wired:
            return True
        return not changed.isdisjoint(whole.wired.links)

    def _alive(self, group: int, damage: Damage) -> NDArray[np.int32]:
        first, ep = group * self._layout.ep, self._layout.ep
        alive = [rank for rank in range(ep) if first + rank not in damage.gpus]
        return np.array(alive, dtype=np.int32)

    def _settle(self, group: int, dead: frozenset[Link]) -> None:
        service, former = self._service, self._former
        alive = self._alive(group, self._damage)
        there = service.there[self._losses.workers(group)]
        gone = there.copy()
        gone[alive] = False
        before = self._forms[group]
        broken = before is not None and not before.wired.links.isdisjoint(dead)
        if gone.any() or broken:
            service.halt(group)
            service.open[group] = False
        found = former.form(group, alive, self._damage, self._graph_of(self._damage))
        self.notes += [note for note in former.said() if note not in self.notes]
        self._version[group] += 1
        if isinstance(found, str):
            service.halt(group)
            service.open[group] = False
            self._losses.lose(group, gone)
            self._forms[group] = None
            self._change(group, DOWN, 0, found)
            if self._losses.others(group):
                self._losses.leave(group)
            return
        self._losses.lose(group, gone)
        takes_s = found.load_s
        if gone.any() or (before is not None and len(found.alive) < len(before.alive)):
            takes_s += self._inputs.workload.serving.regroup_s
        self._forms[group] = found
        if takes_s > 0.0:
            service.halt(group)
            service.open[group] = False
            self._change(group, FORMING, 0, f"{found.way}: {takes_s:g} s")
            version = self._version[group]
            service.at(service.env.now + takes_s, partial(self._formed, group, version))
        else:
            self._formed(group, self._version[group])

    def _formed(self, group: int, version: int) -> None:
        """A group goes on, as its form says."""
        form, service = self._forms[group], self._service
        if version != self._version[group] or form is None:
            return
        of = service.groups[group]
        if form.blocks < of.of.limits.blocks:
            service.halt(group)
            self._losses.clear_transfers(group)
        of.rewire(form.wired.wires, form.routing, form.evaluation)
        of.resize(form.blocks)
        self._former.has(group, form)
        there = service.there[self._losses.workers(group)]
        first = int(service.first[group])
        joined = [int(rank) for rank in form.alive if not there[rank]]
        there[form.alive] = True
        colds = [self._cold.pop(first + rank, 0.0) for rank in joined]
        of.delay_s = max([of.delay_s, *colds])
        whole = self._former.whole(group)
        rerouted = form.way == WHOLE_WAY and form.wired is not whole.wired
        way = f"{form.way}, other links" if rerouted else form.way
        self._change(group, UP, len(form.alive), way)
        service.resume(group)
        for other, state in enumerate(self._state):
            if state == DOWN and service.entry[other] == service.entry[group]:
                self._losses.leave(other)
        service.on_over()

    # --- records

    def _watch(self) -> None:
        """Leave down for good what fails again and again if no step ends between any more."""
        service = self._service
        totals = [group.ranks.totals for group in service.groups]
        progress = sum(
            int(of[scheduler.PROMPT_TOKENS] + of[scheduler.GENERATED_TOKENS]) for of in totals
        )
        progress -= service.left
        self._idle = self._idle + 1 if progress == self._progress else 0
        self._progress = progress
        again = any(fault.mtbf_s is not None for fault in self.faults)
        if self._over or not again or not (self._idle >= STUCK or self._hopeless()):
            return
        came = (service.of.outcome == PENDING) & ~np.isnan(service.of.arrival_s)
        if not came.any():
            self._idle = 0
            return
        self._over = True
        why = (
            f"{STUCK:,} faults in a row let no step end"
            if self._idle >= STUCK
            else "no group is left"
        )
        self.notes.append(
            f"what fails again and again stays down from {service.env.now:g} s: {why}"
        )

    def _hopeless(self) -> bool:
        """Whether the faults that are for good leave no group that could begin anything."""
        service = self._service
        if service.open.any() or any(state == FORMING for state in self._state):
            return False
        now_s = service.env.now
        up = {f.name for f in self.faults if f.do == "up" and f.at_s is not None and f.at_s > now_s}
        lasting = [
            (self.faults[index], self._parts[index])
            for index in self._active.values()
            if self.faults[index].for_s is None
            and self.faults[index].at_s is not None
            and self.faults[index].name not in up
        ]
        damage = damage_of(lasting, ())
        if damage == WHOLE:
            return False
        graph = self._graph_of(damage)
        return all(
            isinstance(self._former.form(group, self._alive(group, damage), damage, graph), str)
            for group in range(len(service.groups))
        )

    def _graph_of(self, damage: Damage) -> Graph:
        if damage not in self._graphs:
            if len(self._graphs) >= KEPT_GRAPHS:
                self._graphs = {WHOLE: self._graph}
            self._graphs[damage] = damaged(self._graph, damage)
        return self._graphs[damage]

    def _change(self, group: int, state: str, gpus: int, way: str) -> None:
        self._state[group] = state
        now = (state, gpus, way)
        if state == UP and self._said[group] == now:
            return
        self._said[group] = now
        self._tell("group", group=group, state=state, gpus=gpus, way=way)

    def _tell(self, kind: str, **row: Any) -> None:
        self.log.append({"time_s": float(self._service.env.now), "kind": kind, **row})


def _links(damage: Damage) -> set[tuple[Link, float]]:
    """Links and what they have left, where it is not all."""
    return {(link, 0.0) for link in damage.dead} | set(damage.share)
