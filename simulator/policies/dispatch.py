"""Which worker a request goes to. A worker is a GPU with a queue of its own (a rank of a group).

A policy is made once per run from a `Setup` and called once per request with a `View` of now; it
answers with a worker, or -1: hold the request until something ends. It sees no future: not how
many tokens a request will generate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError

Floats = NDArray[np.float64]


class Setup(NamedTuple):
    """What a policy may know beforehand. group: int32 [workers]; shares: float64 [groups], what
    `static` gives to each (None: equal).
    """

    group: NDArray[np.int32]
    shares: Floats | None


class View(NamedTuple):
    """What is known when a request comes. open: bool [workers], takes requests now; waiting,
    running: int32 [workers]; kv: float64 [workers], share of the KV cache in use; tokens_per_s:
    float64 [groups], what each has lately been seen to generate per busy second and request in its
    steps (0: not yet seen); prompt: tokens.
    """

    open: NDArray[np.bool_]
    waiting: NDArray[np.int32]
    running: NDArray[np.int32]
    kv: Floats
    tokens_per_s: Floats
    prompt: int


Dispatcher = Callable[[View], int]
Maker = Callable[[Setup], Dispatcher]


def made(maker: Maker, setup: Setup) -> Dispatcher:
    """The policy that `maker` makes; InputError where a function of the user's makes none, and
    when it answers with anything but an open worker or -1.
    """
    choose: object = maker(setup)
    name = getattr(maker, "__name__", maker)
    if not callable(choose):
        raise InputError(
            f"dispatch {name}: returned {choose!r:.40}; write a function that returns a function "
            "View -> worker"
        )
    if maker in DISPATCHERS.values():
        return choose

    def checked(view: View) -> int:
        worker = choose(view)
        known = isinstance(worker, int | np.integer) and -1 <= worker < len(view.open)
        if not known or (worker >= 0 and not view.open[worker]):
            raise InputError(
                f"dispatch {name}: answered {worker!r:.40}; return the number of a worker that is "
                "open, or -1 to hold the request"
            )
        return int(worker)

    return checked


def _least(key: NDArray[np.generic], view: View, turn: NDArray[np.int64]) -> int:
    """The open worker with the lowest key; among equals the one whose turn is longest ago."""
    here = np.flatnonzero(view.open)
    if not len(here):
        return -1
    lowest = here[key[here] == key[here].min()]
    return int(lowest[turn[lowest].argmin()])


def round_robin(setup: Setup) -> Dispatcher:
    """In turn: the groups, and the workers within each."""
    return shares_of(setup, np.ones(int(setup.group.max()) + 1))


def static(setup: Setup) -> Dispatcher:
    """Each group its share of the requests, as evenly as whole requests allow."""
    return shares_of(setup, setup.shares)


def shares_of(setup: Setup, shares: Floats | None) -> Dispatcher:
    """The group farthest below its share takes the next request."""
    groups = int(setup.group.max()) + 1
    share = np.ones(groups) if shares is None else shares
    share = share / share.sum()
    given = np.zeros(groups)
    turn = np.zeros(len(setup.group), dtype=np.int64)

    def choose(view: View) -> int:
        opened = np.zeros(groups, dtype=np.bool_)
        opened[setup.group[view.open]] = True
        opened &= share > 0.0
        if not opened.any():
            return -1
        debt = np.where(opened, given - share * (given.sum() + 1.0), np.inf)
        group = int(debt.argmin())
        given[group] += 1.0
        mine = np.flatnonzero((setup.group == group) & view.open)
        worker = int(mine[turn[mine].argmin()])
        turn[worker] += 1
        return worker

    return choose


def least_loaded(setup: Setup) -> Dispatcher:
    """Fewest requests, waiting and running."""
    turn = np.zeros(len(setup.group), dtype=np.int64)

    def choose(view: View) -> int:
        worker = _least(view.waiting + view.running, view, turn)
        turn[worker] += worker >= 0
        return worker

    return choose


def join_shortest_kv(setup: Setup) -> Dispatcher:
    """Least of the KV cache in use; those with a queue after those without."""
    turn = np.zeros(len(setup.group), dtype=np.int64)

    def choose(view: View) -> int:
        worker = _least(view.waiting + view.kv, view, turn)
        turn[worker] += worker >= 0
        return worker

    return choose


def performance_aware(setup: Setup) -> Dispatcher:
    """Where the request would be served soonest: requests there and this one, over the speed at
    which the group was lately seen to work; groups not yet seen count as the fastest.
    """
    turn = np.zeros(len(setup.group), dtype=np.int64)

    def choose(view: View) -> int:
        seen = view.tokens_per_s[setup.group]
        speed = np.where(seen > 0.0, seen, max(float(seen.max()), 1.0))
        worker = _least((view.waiting + view.running + 1.0) / speed, view, turn)
        turn[worker] += worker >= 0
        return worker

    return choose


def central(setup: Setup) -> Dispatcher:
    """One queue for all: a request goes to a worker that has none, and waits until there is one."""
    turn = np.zeros(len(setup.group), dtype=np.int64)

    def choose(view: View) -> int:
        idle = view._replace(open=view.open & (view.waiting + view.running == 0))
        worker = _least(turn, idle, turn)
        turn[worker] += worker >= 0
        return worker

    return choose


DISPATCHERS: dict[str, Maker] = {
    "round-robin": round_robin,
    "least-loaded": least_loaded,
    "join-shortest-kv": join_shortest_kv,
    "performance-aware": performance_aware,
    "static": static,
    "central": central,
}
