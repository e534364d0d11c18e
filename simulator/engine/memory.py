"""A GPU's expert memory: slots, residents, and the copy stream that fills them.

Per MoE layer a GPU has a number of slots. What is in a slot is decided when an expert is asked
for; the fetch that fills the slot starts when the kernels that still use its last expert have
ended, so that slots are never exceeded. The copy stream carries one fetch at a time; a prefetch
starts only when it has nothing else to do. Two requests for one expert are one transfer.

An access of an expert is a *hit* (resident), a *late* hit (its transfer has begun or is queued,
and is not over) or a *miss* (it is asked for now).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from simulator.engine import core
from simulator.engine.driver import Driver
from simulator.policies.eviction import Eviction

HIT, LATE, MISS = range(3)

NEW = -1.0  # start of a fetch whose operation is not in the core yet


@dataclass(slots=True)
class Slot:
    """An expert in a slot. `fetch`: its transfer's operation while that is not known to be over;
    `kernels`: operations that use it and may not have ended; `uses`: kernels so far.
    """

    layer: int
    expert: int
    step: int
    microbatch: int
    prefetch: bool
    asked_s: float
    fetch: int
    last_use: int
    start_s: float = 0.0
    end_s: float = 0.0
    uses: int = 0
    evicted: bool = False
    kernels: list[int] = field(default_factory=list)


class Access(NamedTuple):
    """What came of an access: the resident experts; the others with a kernel operation for each;
    the fetches to add (four numbers each, as `Driver.add` takes them) with their bytes on the wire,
    and what the new operations wait for (from, to); how many of the others were late hits.
    """

    resident: list[int]
    coming: list[int]
    kernels: list[int]
    fetches: list[int]
    sizes: list[float]
    edges: list[int]
    late: int


class Wish(NamedTuple):
    """A prefetch not begun. `at_once`: this GPU awaits no tokens in the layer before."""

    step: int
    microbatch: int
    layer: int
    expert: int
    asked_s: float
    at_once: bool


class ExpertMemory:
    """State of one GPU's slots across events.

    `sources`: route of each expert's weights to this GPU (-1: held here for good, outside the
    slots); `wire_bytes`: what each puts on its links. `stream`: the number of the copy stream.
    """

    def __init__(
        self,
        driver: Driver,
        stream: int,
        layers: int,
        slots: int,
        sources: Sequence[int],
        wire_bytes: Sequence[float],
        evict: Eviction,
    ) -> None:
        self.slots = slots
        self._fetches: list[Slot] = []
        self._driver = driver
        self._stream = stream
        self._layers: list[dict[int, Slot]] = [{} for _ in range(layers)]
        self.sources = sources
        self._wire_bytes = wire_bytes
        self._evict = evict
        self._uses = 0
        self._added_s = -1.0  # when a fetch was added last: it runs from the end of that instant
        self._wishes: list[Wish] = []
        self._reached: dict[int, int] = {}  # micro-batch -> the layer whose tokens came last
        self._predicted: dict[tuple[int, int], frozenset[int]] = {}

    def resident_first(self, layer: int, experts: Sequence[int]) -> list[int]:
        """The experts, those that are here before those on their way before the rest."""
        slots = self._layers[layer]
        sources = self.sources
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
        sources = self.sources
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
            slot = slots.get(expert)
            if slot is None:
                fetch, own = self._driver.ids(2)
                if len(slots) >= self.slots:
                    gone = slots.pop(self._evict(list(slots.values())))
                    gone.evicted = True
                    for op in gone.kernels:
                        edges += (op, fetch)
                    if gone.fetch >= 0:
                        edges += (gone.fetch, fetch)
                slot = Slot(layer, expert, step, microbatch, False, now, fetch, self._uses, NEW)
                slots[expert] = slot
                self._fetches.append(slot)
                fetches += (fetch, core.FETCH, self._stream, sources[expert])
                sizes.append(self._wire_bytes[expert])
            elif slot.fetch < 0 or self._loaded(slot):
                resident.append(expert)
                slot.last_use = self._uses
                slot.uses += 1
                slot.kernels.append(kernel)
                continue
            else:
                late += 1
                own = self._driver.ids(1)[0]
            slot.last_use = self._uses
            slot.uses += 1
            slot.kernels.append(own)
            edges += (slot.fetch, own)
            coming.append(expert)
            kernels.append(own)
        if fetches:
            self._added_s = now
        for slot in self._fetches[len(self._fetches) - len(fetches) // 4 :]:
            slot.start_s = 0.0
        return Access(resident, coming, kernels, fetches, sizes, edges, late)

    def prefetch(
        self, step: int, microbatch: int, layer: int, experts: Sequence[int], at_once: bool
    ) -> None:
        """Ask for experts of a layer ahead; replaces what this micro-batch asked for before.

        They are fetched `at_once`, or when the tokens of the layer before have arrived here: what
        those need comes first, and a fetch that has begun is not broken off.
        """
        now = self._driver.env.now
        experts = experts[: self.slots]
        slots = self._layers[layer]
        self._wishes = [w for w in self._wishes if w.microbatch != microbatch]
        self._wishes += [
            Wish(step, microbatch, layer, expert, now, at_once)
            for expert in experts
            if expert not in slots and self.sources[expert] >= 0
        ]
        self._predicted[microbatch, layer] = frozenset(experts)
        self.idle()

    def arrived(self, microbatch: int, layer: int) -> None:
        """The micro-batch has reached this layer: what it asked for ahead no longer matters."""
        if self._wishes:
            self._wishes = [
                w for w in self._wishes if w.microbatch != microbatch or w.layer > layer
            ]
        self._predicted.pop((microbatch, layer), None)
        self._reached[microbatch] = layer

    def idle(self) -> None:
        """Begin the next prefetch if the copy stream is idle, else be called again when it is."""
        if not self._wishes:
            return
        while True:
            wish = next((w for w in self._wishes if self._may_begin(w)), None)
            if wish is None:
                return
            stream = self._driver.net.stream_i[self._stream]  # anew: an `add` may move the tables
            if stream[core.RUNNING] >= 0 or self._added_s == self._driver.env.now:
                stream[core.TELL_IDLE] = 1
                return
            self._wishes.remove(wish)
            slots = self._layers[wish.layer]
            if wish.expert in slots or not self._make_room(wish.layer):
                continue
            fetch = self._driver.ids(1)[0]
            self._uses += 1
            slot = Slot(
                wish.layer, wish.expert, wish.step, wish.microbatch, True, wish.asked_s, fetch,
                self._uses,
            )  # fmt: skip
            slots[wish.expert] = slot
            self._fetches.append(slot)
            self._added_s = self._driver.env.now
            self._driver.add(
                [fetch, core.FETCH, self._stream, self.sources[wish.expert]],
                [self._wire_bytes[wish.expert]],
                [],
            )

    def _may_begin(self, wish: Wish) -> bool:
        return wish.at_once or self._reached.get(wish.microbatch) == wish.layer - 1

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
        self._wishes.clear()
        self._predicted.clear()
        self._reached.clear()
        for layer in self._layers:
            for slot in layer.values():
                slot.kernels.clear()
        return told

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

    def _make_room(self, layer: int) -> bool:
        """Free a slot of a layer for a prefetch, from an idle expert that nobody is predicted to
        want; whether there is room now.
        """
        slots = self._layers[layer]
        if len(slots) < self.slots:
            return True
        wanted: Collection[int] = {
            e for (_, at), experts in self._predicted.items() if at == layer for e in experts
        }
        ends = self._driver.net.op_f
        idle = [
            s
            for s in slots.values()
            if s.expert not in wanted
            and self._loaded(s)
            and all(ends[op, core.END] >= 0.0 for op in s.kernels)
        ]
        if not idle:
            return False
        slots.pop(self._evict(idle)).evicted = True
        return True
