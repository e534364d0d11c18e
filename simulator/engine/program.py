"""The operations of a plan and what waits for what.

A program is many passes (`simulator.engine.plan_pass`), operation `o` of pass p being number
p x size + o, and one more, the end. A GPU takes up a micro-batch (`enter`) when it has left the one
`depth` places before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from simulator.engine.plan_pass import MEETING, Meeting, StageOps, Template, lay_stage
from simulator.model.plan import Plan
from simulator.model.plan_memory import BUFFERS

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Program:
    """A number of passes (module docstring); `rounds` batches of `microbatches` each.

    what, layer, chunk, gpu: int32 [size]; inner: what waits for what within a pass, int32 [edges,
    2]; stages: as the plan has them; meetings: where groups of GPUs wait for each other; gate: for
    kernels whose weights come from host memory, where all else is there, int32 [size], -1 for
    others; done: the end of a pass; whole: whether a collective is one flow.
    """

    plan: Plan
    rounds: int
    size: int
    what: Ints
    layer: Ints
    chunk: Ints
    gpu: Ints
    inner: Ints
    stages: tuple[StageOps, ...]
    meetings: tuple[Meeting, ...]
    gate: Ints
    done: int
    whole: bool

    @property
    def passes(self) -> int:
        """Number of passes."""
        return self.rounds * self.plan.microbatches

    @property
    def end(self) -> int:
        """Number of the last operation, the end of the program."""
        return self.passes * self.size

    @cached_property
    def edges(self) -> Ints:
        """What waits for what, int32 [edges, 2] (from, to), sorted by from."""
        offsets = np.arange(self.passes, dtype=np.int32) * np.int32(self.size)
        found = [(self.inner[None] + offsets[:, None, None]).reshape(-1, 2)]
        found += self._order()
        found += self._streaming()
        dones = self.done + offsets
        found.append(np.stack([dones, np.full_like(dones, self.end)], axis=1))
        edges = np.concatenate(found).astype(np.int32)
        return edges[np.argsort(edges[:, 0], kind="stable")]

    def _order(self) -> list[Ints]:
        """The order in which a GPU takes up micro-batches, and batches that follow each other."""
        plan = self.plan
        found = []
        for place in range(plan.pipeline):
            items = self._items(place)
            for late, early in zip(items[plan.depth :], items, strict=False):
                before = self.stages[early[1]].leave + early[0] * self.size
                after = self.stages[late[1]].enter + late[0] * self.size
                found.append(np.stack([before, after], axis=1))
        enter = self.stages[0].enter
        for one in range(plan.microbatches, self.passes):
            done = np.full_like(enter, self.done + (one - plan.microbatches) * self.size)
            found.append(np.stack([done, enter + one * self.size], axis=1))
        return found

    def _streaming(self) -> list[Ints]:
        """A GPU's weights come one layer after the other, in the order of their use, and each when
        the last kernel has ended that uses what lay in its buffer.
        """
        found = []
        for place in range(self.plan.pipeline if self.plan.streams else 0):
            needed = [
                (one * self.size, layer)
                for one, stage in self._items(place)
                for layer in self.stages[stage].layers
                if layer.fetch.size
            ]
            for (was, before), (now, layer) in pairwise(needed):
                found.append(np.stack([before.fetch + was, layer.fetch + now], axis=1))
            for (was, before), (now, layer) in zip(needed, needed[BUFFERS:], strict=False):
                found += [np.stack([use + was, layer.fetch + now], axis=1) for use in before.uses]
        return found

    def _items(self, place: int) -> list[tuple[int, int]]:
        """(pass, stage) in the order in which the GPUs at a place of the pipeline take them up.

        Interleaved, micro-batches go in groups as large as the pipeline is long, a group through
        each part of the model in turn (Narayanan et al., SC 2021, section 2.2, forward only).
        """
        plan = self.plan
        parts = len(plan.stages) // plan.pipeline
        group = plan.pipeline if parts > 1 else plan.microbatches
        return [
            (first + i, part * plan.pipeline + place)
            for first in range(0, self.passes, group)
            for part in range(parts)
            for i in range(min(group, self.passes - first))
        ]

    @cached_property
    def waits(self) -> Ints:
        """How many edges end at each operation, int32 [end + 1]; 1 for the `starts`."""
        waits = np.bincount(self.edges[:, 1], minlength=self.end + 1).astype(np.int32)
        waits[waits == 0] = 1
        return waits

    @cached_property
    def starts(self) -> Ints:
        """What waits for nothing, and is let go at the start."""
        into = np.bincount(self.edges[:, 1], minlength=self.end + 1)
        return np.flatnonzero(into == 0).astype(np.int32)


def program_of(plan: Plan, rounds: int, whole: bool = False) -> Program:
    """The program of so many batches through a plan; `whole`: each collective is one flow."""
    t = Template(whole=whole)
    stages: list[StageOps] = []
    for number, stage in enumerate(plan.stages):
        stages.append(lay_stage(t, plan, number))
        if number:
            before, after = plan.stages[number - 1], stage
            # Where nothing is to be sent, the order remains.
            first = [
                j // after.degrees.tp * before.degrees.dp // after.degrees.dp * before.degrees.tp
                for j in range(len(after.gpus))
            ]
            t.edge(stages[-2].leave[np.array(first)], stages[-1].enter)
    (done,) = t.add(MEETING, [0]).tolist()
    t.edge(stages[-1].head, np.array([done], dtype=np.int32))
    edges = np.stack([np.concatenate([pair[i] for pair in t.edges]) for i in (0, 1)], axis=1)
    gate = np.full(t.size, -1, dtype=np.int32)
    for kernels, gates in t.gates:
        gate[kernels] = gates
    return Program(
        plan=plan,
        rounds=rounds,
        size=t.size,
        what=np.concatenate(t.what),
        layer=np.concatenate(t.layer),
        chunk=np.concatenate(t.chunk),
        gpu=np.concatenate(t.gpu),
        inner=edges[np.argsort(edges[:, 0], kind="stable")],
        stages=tuple(stages),
        meetings=tuple(t.meetings),
        gate=gate,
        done=done,
        whole=whole,
    )
