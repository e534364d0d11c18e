"""A group of GPUs that step together: its queues, its KV cache, and the step in flight."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.compiled import entry
from simulator.engine.serving import scheduler, timing
from simulator.engine.serving.scheduler import Ledger, Limits
from simulator.engine.serving.timing import Costs, Routing, Wires


class Setup(NamedTuple):
    """What a group is made of. ranks: its GPUs; most: requests that a rank works on at once;
    halves: micro-batches of a step (2: two-batch overlap); prefixes: different prefix blocks;
    swap_s_per_token: to copy a token's KV to host memory or back; repeat: so many steps in which
    all generate may be taken like the first of them.
    """

    ranks: int
    most: int
    halves: int
    prefixes: int
    costs: Costs
    wires: Wires
    routing: Routing
    limits: Limits
    swap_s_per_token: float
    repeat: int = 1


class Step(NamedTuple):
    """One step of a group, or `repeated` ones of `each_s`: when, and the tokens (of prompts,
    generated).
    """

    start_s: float
    end_s: float
    prompt: int
    generated: int
    repeated: int
    each_s: float


class Group:
    """State of a group across events: `ledger` holds the requests of the whole run.

    speed: float64 [ranks], factors on compute times (1: as the model has it); spread: draws more of
    them for every step; whole_blocks: KV blocks of a rank when nothing is broken; delay_s: what the
    next step takes besides (a cold start); step: the one in flight, None if the group is idle.
    """

    def __init__(self, of: Setup, ledger: Ledger) -> None:
        self.of = of
        self.ledger = ledger
        self.wires, self.routing = of.wires, of.routing
        self.whole_blocks = of.limits.blocks
        self.ranks = scheduler.ranks_for(of.ranks, of.most, of.limits, of.prefixes)
        self.speed = np.ones(of.ranks)
        self.spread: Callable[[], NDArray[np.float64]] | None = None
        self.delay_s = 0.0
        self.step: Step | None = None
        self._ended = np.zeros((2, of.ranks * of.most), dtype=np.int32)
        self._make_room()

    def _make_room(self) -> None:
        of, work = self.of, timing.work_for(
            self.of.ranks, self.of.limits.tokens, self.wires, self.routing, self.of.halves
        )  # fmt: skip
        self.work = work
        lists = self.ledger, self.ranks, of.limits
        self._plan = entry(scheduler.plan, *lists, 0, 0, 0.0, work.token, work.ends, work.phase)
        self._finish = entry(scheduler.finish, *lists, 0.0, 1, 0.0, *self._ended)
        self._seconds = entry(
            timing.step_seconds, of.costs, self.wires, self.routing, work, self.speed, of.halves
        )

    def rewire(
        self, wires: Wires, routing: Routing, evaluation: NDArray[np.int32] | None = None
    ) -> None:
        """Go on over other wires, or with experts in other places; a step in flight keeps its time.

        evaluation: int32 [layers], of `Costs`, if the routing has others.
        """
        self.wires, self.routing = wires, routing
        if evaluation is not None:
            self.of = self.of._replace(costs=self.of.costs._replace(evaluation=evaluation))
        self._make_room()

    def resize(self, blocks: int) -> None:
        """Give every rank so many KV blocks. Where more are in use, unused prefixes go, then the
        requests admitted last: their KV is computed again. Only between steps.
        """
        more = blocks - self.of.limits.blocks
        if more == 0:
            return
        ranks = self.ranks
        ranks.free[:] += more
        self.of = self.of._replace(limits=self.of.limits._replace(blocks=blocks))
        for rank in np.flatnonzero(ranks.free < 0).tolist():
            while ranks.free[rank] < 0 and not scheduler.make_room(ranks, self.of.limits, rank, 0):
                request = int(ranks.running[rank, ranks.busy[rank] - 1])
                self.withdraw(request, rank)
                self.ledger.preempted[request] += 1
                self.enqueue(request, rank, front=True)

    def forget(self, rank: int) -> None:
        """The KV of a rank without requests is lost, known prefixes too."""
        ranks = self.ranks
        ranks.holders[rank] = -1
        ranks.older[rank] = ranks.newer[rank] = 0
        ranks.free[rank] = self.of.limits.blocks

    def fits(self, request: int, whole: bool = False) -> bool:
        """Whether a rank could ever hold the request with all that it generates; `whole`: if
        nothing were broken.
        """
        limits = self.of.limits
        made = max(1, int(self.ledger.made[request]))
        generated = made if limits.hand_on else int(self.ledger.output[request])
        tokens = int(self.ledger.prompt[request]) + generated
        one_step = limits.chunked or int(self.ledger.prompt[request]) <= limits.tokens
        blocks = self.whole_blocks if whole else limits.blocks
        return one_step and -(-tokens // limits.block_tokens) <= blocks

    def start(self, now_s: float, until_s: float = math.inf) -> float:
        """Begin a step at `now_s` if there is work; when it ends, infinity if there is none.

        until_s: when something happens that may bring work; repeated steps end before.
        """
        work, of = self.work, self.of
        tokens = self._plan(
            self.ledger, self.ranks, of.limits, of.costs.window, of.halves, now_s,
            work.token, work.ends, work.phase,
        )  # fmt: skip
        if tokens == 0:
            return math.inf
        generated, swapped = self.ranks.now[: scheduler.N_WAITING].tolist()
        besides_s = self.delay_s + swapped * of.swap_s_per_token
        self.delay_s = 0.0
        seconds = self.seconds()
        most = int(min(of.repeat, (until_s - now_s) / seconds)) if of.repeat > 1 else 1
        repeated = 1
        if most > 1 and besides_s == 0.0:
            repeated = scheduler.repeatable(self.ledger, self.ranks, of.limits, most)
        end_s = float(now_s + repeated * seconds + besides_s)
        self.step = Step(now_s, end_s, tokens - generated, generated * repeated, repeated, seconds)
        return end_s

    def seconds(self) -> float:
        """How long the step takes whose tokens stand in `work`."""
        speed = self.speed if self.spread is None else self.speed * self.spread()
        return self._seconds(
            self.of.costs, self.wires, self.routing, self.work, speed, self.of.halves
        )

    def finish(self) -> list[tuple[int, int]]:
        """The step in flight is over: the (request, rank) that ended, or are handed on."""
        step = self.step
        assert step is not None
        found = self._finish(
            self.ledger, self.ranks, self.of.limits, step.end_s, step.repeated, step.each_s,
            *self._ended,
        )  # fmt: skip
        self.step = None
        if not found:
            return []
        return list(zip(*self._ended[:, :found].tolist(), strict=True))

    def abandon(self) -> None:
        """The step in flight comes to nothing: none of its tokens count."""
        self.step = None
        self.ranks.chunk[:] = 0

    def enqueue(self, request: int, rank: int, front: bool = False) -> None:
        """Put a request into a rank's queue."""
        scheduler.enqueue(self.ledger, self.ranks, rank, request, front)

    def withdraw(self, request: int, rank: int) -> bool:
        """Take a request away and free its KV; False if it is not there."""
        return bool(scheduler.withdraw(self.ledger, self.ranks, self.of.limits, rank, request))

    @property
    def load(self) -> NDArray[np.int32]:
        """Requests of each rank, waiting or running, int32 [ranks]."""
        return self.ranks.busy + self.ranks.waiting

    @property
    def used_blocks(self) -> NDArray[np.int64]:
        """KV blocks that each rank's requests and prefixes take, int64 [ranks]."""
        return self.of.limits.blocks - self.ranks.free
