"""Requests come, are dispatched, served step by step, and end: finished, failed or rejected."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np
import simpy
from numpy.typing import NDArray

from simulator.engine.serving.group import Group, Step
from simulator.engine.serving.scheduler import N_WAITING, Ledger
from simulator.policies.dispatch import Dispatcher, View

PENDING, FINISHED, FAILED, REJECTED = range(4)  # `Outcomes.outcome`
NORMAL = 1  # simpy's priority of what happens at an instant
SEEN = 0.2  # weight of the last step in the speed that a dispatcher sees


class Tries(NamedTuple):
    """How often a request is tried. attempts: at most; timeout_s: an attempt that has not ended
    after this fails; failure_probability: of an attempt, found out at its end, float64 [groups]
    (None: never); kept: a request that loses its GPU goes on with the tokens that it has (their KV
    is computed again).
    """

    attempts: int = 1
    timeout_s: float = math.inf
    failure_probability: NDArray[np.float64] | None = None
    kept: bool = True


class Outcomes(NamedTuple):
    """What became of each request; arrays [requests].

    outcome; arrival_s: when it came (closed concurrency: when its turn came); finish_s: when it
    ended, however; worker: where last; attempts; wasted: tokens generated in attempts that failed.
    """

    outcome: NDArray[np.int8]
    arrival_s: NDArray[np.float64]
    finish_s: NDArray[np.float64]
    worker: NDArray[np.int32]
    attempts: NDArray[np.int32]
    wasted: NDArray[np.int32]


class Told(NamedTuple):
    """A step that is over: when, of which group, its tokens, and the group's state after it."""

    group: int
    step: Step
    waiting: int
    running: int
    used_blocks: int


class Service:
    """State of a cluster that serves: all groups, the dispatcher, and who is where.

    open: bool [groups], whether a group takes new requests; stopped: bool [groups], whether it
    steps; there: bool [workers], whether a GPU is part of its group (it may be broken). `on_step`
    is told of every step; `on_handed` has (request, worker) of requests whose KV goes to another
    group, `on_taken` requests that are taken away, `on_over` is called when a step ended some.
    """

    def __init__(
        self,
        env: simpy.Environment,
        groups: Sequence[Group],
        ledger: Ledger,
        dispatcher: Dispatcher,
        tries: Tries,
        rng: np.random.Generator,
        entry: NDArray[np.bool_] | None = None,
    ) -> None:
        """entry: bool [groups], those that new requests go to (None: all)."""
        number = len(ledger.prompt)
        self.env = env
        self.groups = groups
        self.ledger = ledger
        self.first = np.cumsum([0, *(group.of.ranks for group in groups)])
        self.group_of = np.repeat(np.arange(len(groups), dtype=np.int32), np.diff(self.first))
        self.open = np.ones(len(groups), dtype=np.bool_)
        self.stopped = np.zeros(len(groups), dtype=np.bool_)
        self.there = np.ones(int(self.first[-1]), dtype=np.bool_)
        self.entry = np.ones(len(groups), dtype=np.bool_) if entry is None else entry
        self.of = Outcomes(
            np.full(number, PENDING, dtype=np.int8),
            np.full(number, math.nan),
            np.full(number, math.nan),
            np.full(number, -1, dtype=np.int32),
            np.zeros(number, dtype=np.int32),
            np.zeros(number, dtype=np.int32),
        )
        self.on_step: Callable[[Told], None] = lambda _: None
        self.on_end: Callable[[int], None] = lambda _: None
        self.on_handed: Callable[[int, int], None] | None = None
        self.on_taken: Callable[[int], None] = lambda _: None
        self.on_over: Callable[[], None] = lambda: None
        self.left = number
        self.served_by = np.full(number, -1, dtype=np.int32)  # the worker that it was with last
        self._dispatch = dispatcher
        self._tries = tries
        self._rng = rng
        self._held: deque[int] = deque()
        self._outside: list[float] = []
        self._version = [0] * len(groups)
        self._seen = np.zeros(len(groups))

    # --- requests

    def submit(self, request: int) -> None:
        """A request has come (or comes again after a failed attempt)."""
        if math.isnan(self.of.arrival_s[request]):
            self.of.arrival_s[request] = self.env.now
        if not self.can_serve(request):
            self.end(request, REJECTED)
            return
        self.of.attempts[request] += 1
        if self._tries.timeout_s < math.inf:
            attempt = int(self.of.attempts[request])
            self.at(self.env.now + self._tries.timeout_s, lambda: self._timed_out(request, attempt))
        self._held.append(request)
        self.deal()

    def can_serve(self, request: int) -> bool:
        """Whether some group could ever take it and, where KV is handed on, another go on."""
        fits = np.array([group.fits(request, whole=True) for group in self.groups])
        entered = bool((fits & self.entry).any())
        return entered and (bool(self.entry.all()) or bool((fits & ~self.entry).any()))

    def deal(self) -> None:
        """Give the requests that are held to workers, in their order, until one finds none; those
        that are too long for every group that is open now let others pass.
        """
        too_long: list[int] = []
        while self._held and (self.open & self.entry).any():
            request = self._held[0]
            view = self.view(request)
            worker = self._dispatch(view)
            if worker < 0 and view.open.any():
                break
            self._held.popleft()
            if worker < 0:
                too_long.append(request)
            else:
                self.place(request, worker)
        self._held.extendleft(reversed(too_long))

    def view(self, request: int) -> View:
        """What a dispatcher sees now."""
        groups = self.groups
        fits = np.array([group.fits(request) for group in groups])
        opened = self.taking(self.entry & fits)
        return View(
            opened,
            np.concatenate([group.ranks.waiting for group in groups]),
            np.concatenate([group.ranks.busy for group in groups]),
            np.concatenate([group.used_blocks / group.of.limits.blocks for group in groups]),
            self._seen,
            int(self.ledger.prompt[request]),
        )

    def taking(self, groups: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The workers of some groups (bool [groups]) that take requests now, bool [workers]."""
        return (self.open & groups)[self.group_of] & self.there

    def place(self, request: int, worker: int, front: bool = False) -> None:
        """Put a request into a worker's queue."""
        group, rank = self.at_rank(worker)
        self.of.worker[request] = self.served_by[request] = worker
        self.groups[group].enqueue(request, rank, front)
        self.poke(group)

    def take(self, request: int) -> None:
        """Take a request away from where it is."""
        self.on_taken(request)
        worker = int(self.of.worker[request])
        if worker >= 0:
            group, rank = self.at_rank(worker)
            self.groups[group].withdraw(request, rank)
            self.of.worker[request] = -1
        elif request in self._held:
            self._held.remove(request)

    def end(self, request: int, outcome: int) -> None:
        """A request has ended for good."""
        self.of.outcome[request] = outcome
        self.of.finish_s[request] = self.env.now
        self.left -= 1
        self.on_end(request)

    def try_again(self, request: int, keep: bool) -> None:
        """An attempt failed: submit the request again, or give it up. `keep`: its tokens count."""
        ledger = self.ledger
        ledger.done[request] = 0
        if not keep:
            self.of.wasted[request] += ledger.made[request]
            ledger.made[request] = 0
            ledger.first_s[request] = ledger.last_s[request] = -1.0
            ledger.largest_gap_s[request] = 0.0
        if self.of.attempts[request] >= self._tries.attempts:
            self.end(request, FAILED)
        else:
            self.submit(request)

    def _timed_out(self, request: int, attempt: int) -> None:
        if self.of.outcome[request] == PENDING and self.of.attempts[request] == attempt:
            self.take(request)
            self.try_again(request, keep=False)

    def _ended(self, request: int) -> None:
        of = self._tries.failure_probability
        failed = 0.0 if of is None else of[self.group_of[self.served_by[request]]]
        if failed and self._rng.random() < failed:
            self.try_again(request, keep=False)
        else:
            self.end(request, FINISHED)

    def at_rank(self, worker: int) -> tuple[int, int]:
        """Group and rank of a worker."""
        group = int(self.group_of[worker])
        return group, worker - int(self.first[group])

    # --- groups

    def at_workers(self, workers: NDArray[np.bool_]) -> list[int]:
        """The requests that are with these workers (bool [workers]), in the order of arrival."""
        there = (self.of.outcome == PENDING) & (self.of.worker >= 0)
        there[there] = workers[self.of.worker[there]]
        return [int(request) for request in np.flatnonzero(there)]

    def displace(self, requests: Sequence[int]) -> int:
        """The KV of requests is gone: they go on elsewhere with the tokens that they have, before
        those that wait, or their attempt has failed. Returns how many ended by it.
        """
        left = self.left
        for request in requests:
            self.take(request)
            self.ledger.done[request] = 0
        if self._tries.kept:
            self._held.extendleft(reversed(requests))
            self.deal()
        else:
            for request in requests:
                self.try_again(request, keep=False)
        return left - self.left

    def give_up(self) -> int:
        """End every request that has come and is still here as failed; how many."""
        came = (self.of.outcome == PENDING) & ~np.isnan(self.of.arrival_s)
        pending = [int(request) for request in np.flatnonzero(came)]
        for request in pending:
            self.take(request)
        for request in pending:
            self.end(request, FAILED)
        return len(pending)

    def halt(self, group: int) -> None:
        """A group stops where it is; its step in flight comes to nothing."""
        self._version[group] += 1
        self.groups[group].abandon()
        self.stopped[group] = True

    def resume(self, group: int) -> None:
        """A group steps again, and takes requests."""
        self.stopped[group] = False
        self.open[group] = True
        self.poke(group)
        self.deal()

    def poke(self, group: int) -> None:
        """Have an idle group begin a step at the end of this instant."""
        if self.stopped[group] or self.groups[group].step is not None:
            return
        self._version[group] += 1
        version = self._version[group]
        self.at(self.env.now, lambda: self._start(group, version), NORMAL + 1, inside=True)

    def _start(self, group: int, version: int) -> None:
        if version != self._version[group]:
            return
        of = self.groups[group]
        until_s = self._next_from_outside() if of.of.repeat > 1 else math.inf
        end_s = of.start(self.env.now, until_s)
        if end_s < math.inf:
            self.at(end_s, lambda: self._over(group, version), inside=True)

    def _over(self, group: int, version: int) -> None:
        if version != self._version[group]:
            return
        of = self.groups[group]
        step = of.step
        assert step is not None
        ended = of.finish()
        if step.generated:
            rate = step.repeated / (step.end_s - step.start_s)
            before = self._seen[group]
            self._seen[group] = rate if before == 0.0 else before + SEEN * (rate - before)
        self.on_step(Told(group, step, *of.ranks.now[N_WAITING:].tolist()))
        for request, rank in ended:
            if self.ledger.made[request] < self.ledger.output[request]:
                assert self.on_handed is not None
                self.on_handed(request, int(self.first[group]) + rank)
            else:
                self.of.worker[request] = -1
                self._ended(request)
        if ended:
            self.deal()
            self.on_over()
        if self.env.peek() > self.env.now and not self.stopped[group] and of.step is None:
            self._version[group] += 1  # nothing else happens at this instant
            self._start(group, self._version[group])
        else:
            self.poke(group)

    def _next_from_outside(self) -> float:
        """When something happens that is not the end of a step: an arrival, a time-out, a fault."""
        outside = self._outside
        while outside and outside[0] <= self.env.now:
            heappop(outside)
        return outside[0] if outside else math.inf

    def at(
        self,
        time_s: float,
        do: Callable[[], None],
        priority: int = NORMAL,
        inside: bool = False,
    ) -> None:
        """Have something done at a time, exactly: a delay would not always add up to it. inside:
        it comes of a group's own steps.
        """
        if not inside and time_s > self.env.now:
            heappush(self._outside, time_s)
        event = simpy.Event(self.env)
        event._ok = True
        event._value = None
        event.callbacks = [lambda _: do()]
        heappush(self.env._queue, (time_s, priority, next(self.env._eid), event))  # type: ignore[misc]
