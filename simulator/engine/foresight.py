"""Batches taken ahead of their time, and the next uses that an oracle of eviction is told."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from simulator.engine.parts import MicroBatch
from simulator.policies.eviction import NEVER
from simulator.routing.batches import Batch

WINDOW = 64  # steps that an oracle of eviction sees: they are all in memory

Cutter = Callable[[Batch], list[MicroBatch]]


class Foresight:
    """Accesses that one GPU is still to make, in the order of a pass without overlap."""

    def __init__(self, layers: int) -> None:
        self._uses: list[dict[int, deque[int]]] = [{} for _ in range(layers)]
        self._told = 0

    def add(self, layer: int, experts: Sequence[int]) -> None:
        """Accesses that follow all that were added before."""
        uses = self._uses[layer]
        for expert in experts:
            self._told += 1
            uses.setdefault(expert, deque()).append(self._told)

    def passed(self, layer: int, expert: int) -> None:
        """The next access of an expert is made now."""
        self._uses[layer][expert].popleft()

    def next_use(self, layer: int, expert: int) -> int:
        """Place of the next access that is known, `NEVER` if there is none."""
        uses = self._uses[layer].get(expert)
        return uses[0] if uses else NEVER


class Ahead:
    """The batches of a run of `steps`, cut, those of a window taken before their time.

    `foresights`: one per GPU, told of each batch that comes into the window; none: no window.
    """

    def __init__(
        self, batches: Iterator[Batch], cutter: Cutter, steps: int, foresights: Sequence[Foresight]
    ) -> None:
        self._batches = batches
        self._cut = cutter
        self._left = steps
        self._foresights = foresights
        self._held: deque[tuple[Batch, list[MicroBatch]]] = deque()

    def next(self) -> tuple[Batch, list[MicroBatch]]:
        """The next batch and its micro-batches."""
        wanted = WINDOW + 1 if self._foresights else 1
        while self._left and len(self._held) < wanted:
            batch = next(self._batches)
            microbatches = self._cut(batch)
            self._held.append((batch, microbatches))
            self._left -= 1
            for gpu, foresight in enumerate(self._foresights):
                _tell(foresight, gpu, microbatches)
        return self._held.popleft()


def _tell(foresight: Foresight, gpu: int, microbatches: Sequence[MicroBatch]) -> None:
    for layer in range(len(microbatches[0].table_of)):
        for microbatch in microbatches:
            for chunk in microbatch.chunks:
                foresight.add(layer, chunk.order[microbatch.table_of[layer]][gpu])
