"""The expert memories of all GPUs of a run, each deciding for itself in Python."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simulator.engine.memory import ExpertMemory
from simulator.engine.slots import Told


class OneByOne:
    """each: one memory per GPU; depth: for how many layers ahead a prefetcher is asked."""

    def __init__(self, each: Sequence[ExpertMemory], depth: int) -> None:
        self.each = each
        self._depth = depth

    def prefetch(
        self,
        step: int,
        microbatch: int,
        since: int,
        layer: int,
        wanted: Sequence[Sequence[int]],
        at_once: NDArray[np.bool_],
    ) -> None:
        """In layer `since`, have each GPU ask for its `wanted` experts of a `layer` ahead, those of
        `at_once` bool [gpus] without waiting for tokens (see `ExpertMemory.prefetch`).
        """
        for memory, experts, now in zip(self.each, wanted, at_once.tolist(), strict=True):
            if experts or (self._depth > 1 and memory.predicts(microbatch, layer)):
                memory.prefetch(step, microbatch, since, layer, experts, now)

    def end_of_step(self, last: bool) -> Told:
        """As `ExpertMemory.end_of_step`, of all GPUs."""
        told = [
            (gpu, slot, used)
            for gpu, memory in enumerate(self.each)
            for slot, used in memory.end_of_step(last)
        ]
        whole = np.array(
            [
                (s.step, s.microbatch, s.layer, gpu, s.prefetch, s.expert, used, s.route)
                for gpu, s, used in told
            ],
            dtype=np.int32,
        ).reshape(-1, 8)
        times = np.array([(s.size, s.asked_s, s.start_s, s.end_s) for _, s, _ in told])
        step, microbatch, layer, gpu, prefetch, expert, used, route = whole.T
        of = (step, microbatch, layer, gpu, prefetch == 1, expert, used == 1, route)
        return Told(*of, *times.reshape(-1, 4).T)

    def cancelled(self) -> NDArray[np.int64]:
        """Prefetches never begun since the last call, int64 [gpus, layers]."""
        return np.array([memory.take_cancelled() for memory in self.each], dtype=np.int64)
