"""A step of one micro-batch with collectives in closed form, written plainly: what the compiled
step time is held against.

It shares nothing with `simulator.engine.serving.timing` but the times of the kernels, which are
tested apart: tokens are counted by the step engine's tables, bytes and routes are the step
engine's, and links are looked up one by one.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from simulator.engine.serving.exact import Engine
from simulator.engine.serving.group import Group
from simulator.engine.step import Sending


class ClosedForm:
    """The step that stands in a group's `work`; `engine`: of that group, with any network."""

    def __init__(self, group: Group, engine: Engine) -> None:
        self.work, self.costs = group.work, group.of.costs
        self.ranks = group.of.ranks
        self.machine, self.tiers = engine.machine, engine.tiers
        self.tables = engine._microbatch(group, 0).chunks[0]
        between, wires = self.machine.between, self.machine.wires
        weight = np.ones(len(wires.link)) if wires.weight is None else wires.weight
        senders, receivers = defaultdict(set), defaultdict(set)
        self.links = {}  # of each pair: (link, seconds that a byte takes)
        for a in range(self.ranks):
            for b in range(self.ranks):
                route = between[a, b]
                if a == b or route < 0:
                    continue
                crossed = range(wires.ptr[route], wires.ptr[route + 1])
                self.links[a, b] = [
                    (int(wires.link[h]), weight[h] / wires.capacity_bytes_per_s[wires.link[h]])
                    for h in crossed
                ]
                for h in crossed:
                    senders[wires.link[h]].add(a)
                    receivers[wires.link[h]].add(b)
        self.of_one_sender = {link for link, of in senders.items() if len(of) == 1}

    def seconds(self) -> float:
        """How long the step takes."""
        ready = np.zeros(self.ranks)
        for layer, at in enumerate(self.costs.evaluation.tolist()):
            sparse = at >= 0
            variant = 2 * sparse + self.costs.windowed[layer]
            ready = ready + self.work.attention_s[0, variant]
            shared = ready + self.work.ffn_s[0, int(sparse)]
            if sparse:
                pairs = self.tables.pairs[at]
                came = self.latest(self.collective(ready, pairs, self.machine.dispatch))
                ready = np.maximum(ready, came)
                takes = self.work.experts_s[0, at]
                ready = np.where(takes > 0.0, np.maximum(ready, shared) + takes, ready)
                back = self.collective(self.latest(ready), pairs.T, self.machine.combine)
                ready = np.maximum(ready, back)
            ready = np.maximum(ready, shared)
        return float((ready + self.work.head_s[0]).max())

    def latest(self, times: np.ndarray) -> np.ndarray:
        """In two tiers, a rank waits for its node."""
        if self.tiers is None:
            return times
        node = self.tiers.node
        return np.array([times[node == mine].max() for mine in node])

    def collective(self, ready: np.ndarray, tokens: np.ndarray, of: Sending) -> np.ndarray:
        """When each rank has received all, float64 [ranks], from when each has what it sends."""
        got = np.full(self.ranks, -np.inf)
        free_s: dict[int, float] = {}
        over: dict[int, list[int]] = defaultdict(list)  # receivers that wait for a link
        for rank in sorted(range(self.ranks), key=lambda rank: (ready[rank], rank)):
            begun = ready[rank] + of.delay_s
            targets = np.flatnonzero(tokens[rank]).tolist()
            routes = self.machine.between[rank, targets]
            latency_s = self.machine.wires.latency_s[routes].tolist()
            sizes = of.on_wire(tokens[rank, targets], routes).tolist()
            busy = defaultdict(dict)  # seconds of each transfer on each link
            for target, size, late in zip(targets, sizes, latency_s, strict=True):
                for link, pace in self.links[rank, target]:
                    busy[link][target] = size * pace
                    if link not in self.of_one_sender:
                        there = max(free_s.get(link, -np.inf), begun + late)
                        free_s[link] = there + size * pace
                        over[link].append(target)
            for target, late in zip(targets, latency_s, strict=True):
                slowest = 0.0
                for link, _ in self.links[rank, target]:
                    if link in self.of_one_sender:
                        mine = busy[link][target]
                        slowest = max(slowest, sum(min(mine, of) for of in busy[link].values()))
                got[target] = max(got[target], begun + late + slowest)
        for link, targets in over.items():
            for target in targets:
                got[target] = max(got[target], free_s[link])
        return got
