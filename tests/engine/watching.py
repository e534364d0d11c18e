"""Watching a run from the side: every expert that took a slot, whose place it took, its kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from engine.harness import Run, run

from simulator.engine import core, memory, simulate
from simulator.engine.memory import ExpertMemory, Slot
from simulator.engine.step import Step
from simulator.policies import eviction
from simulator.spec.load import Inputs


class Stay(NamedTuple):
    """An expert in a slot: its fetch, the kernels (start, end) that used it there, whose place it
    took (index of the stay, -1: nobody's). Times are infinite for a fetch that the run did not end.
    """

    gpu: int
    layer: int
    expert: int
    prefetch: bool
    asked_s: float
    start_s: float
    end_s: float
    kernels: list[tuple[float, float]]
    replaced: int


def watched(inputs: Inputs, seed: int = 0) -> tuple[Run, list[Stay]]:
    """A run, and the stays of all experts in the order in which they took their slots."""
    slots: list[Slot] = []
    kernels: list[list[tuple[float, float]]] = []
    closed: list[bool] = []
    replaced: list[int] = []
    gpu_of: dict[int, int] = {}
    gone: list[int] = []

    def make(*args: Any, **kwargs: Any) -> Slot:
        slots.append(Slot(*args, **kwargs))
        kernels.append([])
        closed.append(False)
        replaced.append(gone.pop() if gone else -1)
        assert not gone, "two experts went for one that came"
        return slots[-1]

    def spying(made: Any) -> Any:
        evict = maker(made)

        def spy(candidates: Sequence[Slot], coming: Any) -> int:
            chosen = evict.choose(candidates, coming)
            found = next(i for i, slot in enumerate(slots) if slot is candidates[chosen])
            gone.append(found)
            return chosen

        return evict._replace(choose=spy)

    def read(step: Step) -> Any:
        times = step.machine.driver.net.op_f
        for index, slot in enumerate(slots):
            if not closed[index]:
                kernels[index] += [
                    (times[op, core.START], times[op, core.END]) for op in slot.kernels
                ]
                closed[index] = slot.evicted
        return read_spans(step)

    def end_of_step(self: ExpertMemory, last: bool) -> Any:
        for slot in self._fetches:
            gpu_of[id(slot)] = self._stream
        return told(self, last)

    policy = inputs.workload.eviction
    maker, read_spans, told = (
        eviction.EVICTIONS[policy],
        simulate.read_spans,
        memory.ExpertMemory.end_of_step,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "Slot", make)
        patch.setitem(eviction.EVICTIONS, policy, spying)
        patch.setattr(simulate, "read_spans", read)
        patch.setattr(memory.ExpertMemory, "end_of_step", end_of_step)
        found = run(inputs, seed)
    stays = []
    for index, slot in enumerate(slots):
        over = slot.fetch < 0
        stays.append(
            Stay(
                gpu_of[id(slot)] - 2 * found.report.gpus,
                slot.layer,
                slot.expert,
                slot.prefetch,
                slot.asked_s,
                slot.start_s if over else np.inf,
                slot.end_s if over else np.inf,
                kernels[index],
                replaced[index],
            )
        )
    return found, stays
