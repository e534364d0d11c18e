"""A GPU's expert memory: slots, residents, and the copy stream that fills them.

A GPU has a number of slots per MoE layer, or one pool of slots for all layers. What is in a slot is
decided when an expert is asked for; the fetch that fills it starts when the kernels that still use
its last expert, and the copies that other GPUs still take of it, have ended, so that slots are
never exceeded. The copy stream carries one fetch at a time; a prefetch starts only when it has
nothing else to do. Two requests for one expert are one transfer.

An access of an expert is a *hit* (resident), a *late* hit (its transfer has begun or is queued,
and is not over) or a *miss* (it is asked for now).
"""

from __future__ import annotations

from collections.abc import Sequence

from simulator.engine import core
from simulator.engine.driver import Driver
from simulator.engine.foresight import Foresight
from simulator.engine.slots import NEW, WHOLE, Access, Pool, Slot, Sources, Wish
from simulator.policies.eviction import AHEAD, HIT, LATE, MISS, Coming, Eviction

__all__ = ["HIT", "LATE", "MISS", "Access", "ExpertMemory", "Pool", "Slot", "Sources"]

NOBODY: frozenset[int] = frozenset()


class ExpertMemory:
    """State of one GPU's slots across events. `stream`: the number of its copy stream; `sources`:
    whence experts come; `future`: the accesses to come, if the policy is told of them.

    `lenders`: memories of GPUs that may lend an expert that they hold, with the route from each,
    nearest first; `neighbours`: memories whose copies share links with those of this GPU.
    """

    def __init__(
        self,
        driver: Driver,
        stream: int,
        pool: Pool,
        sources: Sources,
        evict: Eviction,
        future: Foresight | None = None,
    ) -> None:
        self.lenders: list[tuple[ExpertMemory, int]] = []
        self.neighbours: list[ExpertMemory] = []
        self._pool = pool
        self._pooled, self._sizes = pool.pooled, pool.sizes
        self._most = pool.most
        self._plain = not pool.pooled and pool.sizes is None
        self._fetches: list[Slot] = []
        self._driver = driver
        self._stream = stream
        self._layers: list[dict[int, Slot]] = [{} for _ in range(pool.layers)]
        self._free = [pool.most * WHOLE] * (1 if pool.pooled else pool.layers)
        self._parts = None if pool.sizes is None else [round(s * WHOLE) for s in pool.sizes]
        self._leaving: list[list[int]] = [[] for _ in self._free]
        self.sources = sources
        self._choose, self._seen = evict
        self._future = future
        self._uses = 0
        self._added_s = -1.0  # when a fetch was added last: it runs from the end of that instant
        self._demanded_s = -1.0  # when a demand fetch was
        self._ahead = -1  # the last prefetch begun
        self._wishes: list[Wish] = []
        self._cancelled = [0] * pool.layers
        self._waiting: list[ExpertMemory] = []
        self._reached: dict[int, int] = {}  # micro-batch -> the layer whose tokens came last
        self._predicted: dict[tuple[int, int], frozenset[int]] = {}
        self._foreseen: dict[int, frozenset[int]] = {}  # of the layers that they have reached

    def resident_first(self, layer: int, experts: Sequence[int]) -> list[int]:
        """The experts, those that are here before those on their way before the rest."""
        slots = self._layers[layer]
        sources = self.sources.routes[layer]
        here, coming, missing = [], [], []
        for expert in experts:
            slot = slots.get(expert)
            if slot is None and sources[expert] >= 0:
                missing.append(expert)
            elif slot is None or slot.fetch < 0 or self._loaded(slot):
                here.append(expert)
            else:
                coming.append(expert)
        return here + coming + missing

    def use(
        self, step: int, microbatch: int, layer: int, experts: Sequence[int], kernel: int
    ) -> Access:
        """Access experts of a layer in this order. The kernel of the resident ones is `kernel`."""
        slots = self._layers[layer]
        sources = self.sources.routes[layer]
        seen, future, lenders = self._seen, self._future, self.lenders
        plain, free, choose = self._plain, self._free, self._choose
        wire_bytes = self.sources.wire_bytes
        now = self._driver.env.now
        resident: list[int] = []
        coming: list[int] = []
        kernels: list[int] = []
        fetches: list[int] = []
        sizes: list[float] = []
        edges: list[int] = []
        late = 0
        for expert in experts:
            if sources[expert] < 0:
                resident.append(expert)
                continue
            self._uses += 1
            if future is not None:
                future.passed(layer, expert)
            slot = slots.get(expert)
            if slot is None:
                if seen is not None:
                    seen(layer, expert, MISS)
                fetch, own = self._driver.ids(2)
                route, lent = self._source(layer, expert) if lenders else (sources[expert], None)
                if plain and not free[layer]:  # the usual case: one goes for one that comes
                    candidates = list(slots.values())
                    gone = candidates[choose(candidates, Coming(layer, expert, False))]
                    del slots[gone.expert]
                    gone.evicted = True
                    for op in gone.kernels:
                        edges += (op, fetch)
                    if gone.fetch >= 0:
                        edges += (gone.fetch, fetch)
                    size = 1.0
                else:
                    size = self._make_way(layer, expert, fetch, edges)
                slot = Slot(
                    layer, expert, step, microbatch, False, now, fetch, self._uses, route, size, NEW
                )  # fmt: skip
                slots[expert] = slot
                self._fetches.append(slot)
                if lent is not None:
                    lent.kernels.append(fetch)
                fetches += (fetch, core.FETCH, self._stream, route)
                sizes.append(wire_bytes[route] * size)
            elif slot.fetch < 0 or self._loaded(slot):
                if seen is not None:
                    seen(layer, expert, HIT)
                resident.append(expert)
                slot.last_use = self._uses
                slot.uses += 1
                slot.kernels.append(kernel)
                continue
            else:
                if seen is not None:
                    seen(layer, expert, LATE)
                late += 1
                own = self._driver.ids(1)[0]
            slot.last_use = self._uses
            slot.uses += 1
            slot.kernels.append(own)
            edges += (slot.fetch, own)
            coming.append(expert)
            kernels.append(own)
        if fetches:
            self._added_s = self._demanded_s = now
            for slot in self._fetches[len(self._fetches) - len(fetches) // 4 :]:
                slot.start_s = 0.0
        predicted = self._foreseen.get(microbatch)
        foreseen = len(predicted.intersection(experts)) if predicted else 0
        return Access(resident, coming, kernels, fetches, sizes, edges, late, foreseen)

    def _source(self, layer: int, expert: int) -> tuple[int, Slot | None]:
        """The route over which an expert comes, and the slot of the GPU that lends it, if any."""
        for lender, route in self.lenders:
            slot = lender._layers[layer].get(expert)
            if slot is not None and (slot.fetch < 0 or lender._loaded(slot)):
                return route, slot
        return self.sources.routes[layer][expert], None

    def _make_way(self, layer: int, expert: int, fetch: int, edges: list[int]) -> float:
        """Take room for an expert, whose `fetch` is to wait for all that still uses that room.

        Gives the size of the expert.
        """
        at = 0 if self._pooled else layer
        parts = WHOLE if self._parts is None else self._parts[expert]
        if self._parts is not None:
            for op in self._leaving[at]:
                edges += (op, fetch)
        while self._free[at] < parts:
            candidates = self._residents(layer)
            gone = candidates[self._choose(candidates, Coming(layer, expert, False))]
            ops = gone.kernels if gone.fetch < 0 else [*gone.kernels, gone.fetch]
            for op in ops:
                edges += (op, fetch)
            self._leave(gone, at)
            if self._parts is not None:  # what is left of its room is not free before
                self._leaving[at] += ops
        self._free[at] -= parts
        return 1.0 if self._sizes is None else self._sizes[expert]

    def _residents(self, layer: int) -> list[Slot]:
        if self._pooled:
            return [slot for slots in self._layers for slot in slots.values()]
        return list(self._layers[layer].values())

    def _leave(self, gone: Slot, at: int) -> None:
        del self._layers[gone.layer][gone.expert]
        gone.evicted = True
        self._free[at] += WHOLE if self._parts is None else self._parts[gone.expert]

    def prefetch(
        self,
        step: int,
        microbatch: int,
        since: int,
        layer: int,
        experts: Sequence[int],
        at_once: bool,
    ) -> None:
        """In layer `since`, ask for experts of a `layer` ahead.

        Replaces what this micro-batch asked for before of that layer and of those it has come to:
        what has not begun is cancelled unless it is asked for again.

        They are fetched `at_once`, or when the tokens of layer `since` have arrived here: what
        those need comes first, and a fetch that has begun is not broken off.
        """
        now = self._driver.env.now
        experts = experts[: self._most]
        if self._pool.budget_bytes is not None:
            experts = self._affordable(layer, experts, self._pool.budget_bytes)
        slots = self._layers[layer]
        sources = self.sources.routes[layer]
        wishes = [
            Wish(step, microbatch, layer, expert, now, since, at_once)
            for expert in experts
            if expert not in slots and sources[expert] >= 0
        ]
        if self._wishes:
            self._wishes = self._among_wishes(microbatch, since, layer, wishes)
        else:
            self._wishes = wishes
        self._predicted[microbatch, layer] = frozenset(experts)
        self.idle()

    def _among_wishes(
        self, microbatch: int, since: int, layer: int, wishes: list[Wish]
    ) -> list[Wish]:
        """The wishes with new ones of a layer in place of those that they replace."""
        again = {wish.expert for wish in wishes}
        kept: list[Wish] = []
        place = -1
        for wish in self._wishes:
            if wish.microbatch != microbatch or since < wish.layer != layer:
                if place < 0 and wish.microbatch == microbatch and wish.layer > layer:
                    place = len(kept)  # what is needed sooner is fetched sooner
                kept.append(wish)
            elif wish.layer != layer or wish.expert not in again:
                self._cancelled[wish.layer] += 1
        place = len(kept) if place < 0 else place
        return kept[:place] + wishes + kept[place:]

    def predicts(self, microbatch: int, layer: int) -> bool:
        """Whether something of that layer has been asked for, for this micro-batch."""
        return (microbatch, layer) in self._predicted

    def _affordable(self, layer: int, experts: Sequence[int], left: float) -> list[int]:
        """As many of the experts, from the first on, as `left` bytes pay for."""
        slots, sizes = self._layers[layer], self._sizes
        chosen = []
        for expert in experts:
            if expert not in slots:
                left -= self._pool.expert_bytes * (1.0 if sizes is None else sizes[expert])
                if left < 0.0:
                    break
            chosen.append(expert)
        return chosen

    def arrived(self, microbatch: int, layer: int) -> None:
        """The micro-batch has reached this layer: what it asked for ahead no longer matters."""
        if self._wishes:
            kept = []
            for wish in self._wishes:
                if wish.microbatch != microbatch or wish.layer > layer:
                    kept.append(wish)
                else:
                    self._cancelled[wish.layer] += 1
            self._wishes = kept
        if self._reached.get(microbatch) != layer:
            self._reached[microbatch] = layer
            self._foreseen[microbatch] = self._predicted.pop((microbatch, layer), NOBODY)

    def idle(self) -> None:
        """Begin the next prefetch if the copy stream is idle, else be called again when it is."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for other in waiting:
                other.idle()
        if not self._wishes:
            return
        reached = self._reached
        while True:
            for wish in self._wishes:
                # What is predicted when its micro-batch has already come as far is of no use.
                if wish.at_once or wish.since <= reached.get(wish.microbatch, -1) < wish.layer:
                    break
            else:
                return
            stream = self._driver.net.stream_i[self._stream]  # anew: an `add` may move the tables
            if stream[core.RUNNING] >= 0 or self._added_s == self._driver.env.now:
                stream[core.TELL_IDLE] = 1
                return
            route, lent = self._source(wish.layer, wish.expert)
            if self._blocked(route):
                return
            self._wishes.remove(wish)
            slots = self._layers[wish.layer]
            if wish.expert in slots:
                continue
            if not self._make_room(wish.layer, wish.expert):
                self._cancelled[wish.layer] += 1
                continue
            fetch = self._driver.ids(1)[0]
            self._uses += 1
            size = 1.0 if self._sizes is None else self._sizes[wish.expert]
            slot = Slot(
                wish.layer, wish.expert, wish.step, wish.microbatch, True, wish.asked_s, fetch,
                self._uses, route, size,
            )  # fmt: skip
            slots[wish.expert] = slot
            self._fetches.append(slot)
            if lent is not None:
                lent.kernels.append(fetch)
            self._added_s = self._driver.env.now
            self._ahead = fetch
            self._driver.add(
                [fetch, core.FETCH, self._stream, route],
                [self.sources.wire_bytes[route] * size],
                [],
            )

    def _blocked(self, route: int) -> bool:
        """Whether a demand fetch of another GPU is on a link of the route; if so, this memory is
        called again when that GPU's copy stream falls idle.
        """
        of = self.sources.links
        if of is None:
            return False
        links, now, net = of(route), self._driver.env.now, self._driver.net
        for other in self.neighbours:
            running = int(net.stream_i[other._stream, core.RUNNING])
            if running < 0 or running == other._ahead:
                busy = running < 0 and other._demanded_s == now and bool(other._shared(links))
            else:
                busy = not links.isdisjoint(of(int(net.op_i[running, core.ROW])))
            if busy:
                net.stream_i[other._stream, core.TELL_IDLE] = 1
                if self not in other._waiting:
                    other._waiting.append(self)
                return True
        return False

    def _shared(self, links: frozenset[int]) -> bool:
        """Whether a demand fetch added last comes over one of these links."""
        of = self.sources.links
        return of is not None and not links.isdisjoint(of(self._fetches[-1].route))

    def end_of_step(self, last: bool) -> list[tuple[Slot, bool]]:
        """Fetches whose fate is now known, with whether they were used; all kernels have ended.

        A prefetch that still waits for its use stays for a later step, unless this is the `last`.
        """
        told, kept = [], []
        for slot in self._fetches:
            loaded = self._loaded(slot)
            if loaded and (slot.uses or slot.evicted or last):
                told.append((slot, slot.uses > 0))
            else:
                kept.append(slot)
        self._fetches = kept
        for wish in self._wishes:
            self._cancelled[wish.layer] += 1
        self._wishes.clear()
        self._waiting.clear()
        self._predicted.clear()
        self._foreseen.clear()
        self._reached.clear()
        for layer in self._layers:
            for slot in layer.values():
                if self.lenders:
                    slot.kernels = self._still_running(slot.kernels)
                else:
                    slot.kernels.clear()
        self._leaving = [self._still_running(ops) for ops in self._leaving]
        return told

    def _still_running(self, ops: list[int]) -> list[int]:
        """Those that outlast the step: prefetches that other GPUs take from here."""
        ends = self._driver.net.op_f
        return [op for op in ops if ends[op, core.END] < 0.0]

    def take_cancelled(self) -> list[int]:
        """Prefetches of each layer that were asked for and never begun, since the last call."""
        taken, self._cancelled = self._cancelled, [0] * self._pool.layers
        return taken

    def held(self, layer: int) -> int:
        """Slots of a layer that are taken."""
        return len(self._layers[layer])

    def _loaded(self, slot: Slot) -> bool:
        if slot.fetch < 0:
            return True
        if slot.start_s == NEW:
            return False
        times = self._driver.net.op_f
        end_s = times.item(slot.fetch, core.END)
        if end_s < 0.0:
            return False
        slot.start_s, slot.end_s = times.item(slot.fetch, core.START), end_s
        slot.fetch = -1
        return True

    def _make_room(self, layer: int, expert: int) -> bool:
        """Free room in a layer for a prefetch, from idle experts that nobody is predicted to want;
        whether there is room now.
        """
        at = 0 if self._pooled else layer
        parts = WHOLE if self._parts is None else self._parts[expert]
        ends = self._driver.net.op_f
        if any(ends[op, core.END] < 0.0 for op in self._leaving[at]):
            return False
        idle: list[Slot] = []
        if self._free[at] < parts:
            wanted = {
                (at, expert)
                for (_, at), experts in self._predicted.items()
                if self._pooled or at == layer
                for expert in experts
            }
            idle = [
                slot
                for slot in self._residents(layer)
                if (slot.layer, slot.expert) not in wanted
                and self._loaded(slot)
                and all(ends[op, core.END] >= 0.0 for op in slot.kernels)
            ]
            whole = self._parts
            could = sum(WHOLE if whole is None else whole[slot.expert] for slot in idle)
            if self._free[at] + could < parts:
                return False
        if self._seen is not None:
            self._seen(layer, expert, AHEAD)
        while self._free[at] < parts:
            self._leave(idle.pop(self._choose(idle, Coming(layer, expert, True))), at)
        self._free[at] -= parts
        return True
