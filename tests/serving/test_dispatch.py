"""What every dispatch policy keeps, and what comes of some where the answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st
from serving import toy

from simulator.engine.serving.service import FAILED, FINISHED, Service, Tries
from simulator.policies.dispatch import DISPATCHERS, Setup, View


@st.composite
def sights(draw):
    """A setup of groups of workers, and what is seen at successive requests."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    group = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    workers = len(group)
    shares = np.array(
        draw(st.lists(st.integers(1, 5), min_size=len(sizes), max_size=len(sizes))), float
    )

    def array(of, count, dtype):
        return np.array(draw(st.lists(of, min_size=count, max_size=count)), dtype=dtype)

    seen = [
        View(
            array(st.booleans(), workers, np.bool_),
            array(st.integers(0, 3), workers, np.int32),
            array(st.integers(0, 3), workers, np.int32),
            array(st.floats(0, 1), workers, np.float64),
            array(
                st.floats(0, 100).map(lambda of: of if of > 0.01 else 0.0), len(sizes), np.float64
            ),
            draw(st.integers(1, 1000)),
        )
        for _ in range(draw(st.integers(1, 12)))
    ]
    return Setup(group, shares), seen


@pytest.mark.parametrize("name", DISPATCHERS)
@given(case=sights())
def test_answers_an_open_worker_or_none_and_always_the_same(name, case):
    setup, seen = case
    first, second = DISPATCHERS[name](setup), DISPATCHERS[name](setup)
    for view in seen:
        before = [np.array(part, copy=True) for part in view]
        worker = first(view)
        assert worker == second(view)
        assert worker == -1 or view.open[worker]
        # Only one queue for all holds a request while somebody is open.
        idle = view.open & (view.waiting + view.running == 0)
        assert (worker >= 0) == bool(idle.any() if name == "central" else view.open.any())
        for part, kept in zip(view, before, strict=True):
            np.testing.assert_array_equal(part, kept)


@given(sights())
def test_policies_do_what_they_are_called(case):
    setup, seen = case
    for view in seen:
        if not view.open.any():
            continue
        load = view.waiting + view.running
        worker = DISPATCHERS["least-loaded"](setup)(view)
        assert load[worker] == load[view.open].min()
        worker = DISPATCHERS["join-shortest-kv"](setup)(view)
        key = view.waiting + view.kv
        assert key[worker] == key[view.open].min()


@pytest.mark.parametrize("shares", [(1.0, 1.0), (3.0, 1.0), (1.0, 2.0, 4.0)])
def test_shares_are_kept_to_a_request(shares):
    groups = len(shares)
    group = np.repeat(np.arange(groups, dtype=np.int32), 2)
    choose = DISPATCHERS["static"](Setup(group, np.array(shares)))
    zero = np.zeros(2 * groups, dtype=np.int32)
    view = View(zero == 0, zero, zero, zero / 1.0, np.zeros(groups), 1)
    given_to = np.zeros(2 * groups)
    for count in range(1, 200):
        given_to[choose(view)] += 1
        part = given_to.reshape(groups, 2)
        expected = count * np.array(shares) / sum(shares)
        assert np.abs(part.sum(axis=1) - expected).max() <= 1.0 + 1e-9
        assert np.abs(part[:, 0] - part[:, 1]).max() <= 1


def served(arrival_s, output, dispatch, step_s=(0.1, 0.1), most=4, tries=None, seed=0):
    """All requests through groups of one GPU with steps of these lengths."""
    number = len(output)
    ledger = toy.ledger(np.ones(number, dtype=int), output)
    groups = [toy.group(ledger, step, most=most) for step in step_s]
    env = simpy.Environment()
    choose = DISPATCHERS[dispatch](Setup(np.arange(len(groups), dtype=np.int32), None))
    rng = np.random.default_rng(seed)
    service = Service(env, groups, ledger, choose, tries or Tries(), rng)
    for request, when in enumerate(np.asarray(arrival_s).tolist()):
        service.at(when, lambda request=request: service.submit(request))
    env.run()
    assert service.left == 0
    return service


def test_performance_aware_on_equal_groups_is_round_robin():
    """Throughput and mean time in the system to 1 %, over replications with seeds chosen before."""
    ratios = []
    for seed in range(4):
        rng = np.random.default_rng([808, seed])
        arrival_s = np.cumsum(rng.exponential(1.0, 1500))
        output = np.full(1500, 10)
        both = [
            served(arrival_s, output, name, most=64)
            for name in ("round-robin", "performance-aware")
        ]
        span = [of.of.finish_s.max() for of in both]
        took = [(of.of.finish_s - of.of.arrival_s).mean() for of in both]
        ratios.append((span[1] / span[0], took[1] / took[0]))
    np.testing.assert_allclose(np.mean(ratios, axis=0), 1.0, atol=0.01)


def test_performance_aware_gives_more_to_the_faster():
    rng = np.random.default_rng(909)
    arrival_s = np.cumsum(rng.exponential(0.4, 1500))
    output = np.full(1500, 10)
    took, slow_share = {}, {}
    for name in ("round-robin", "performance-aware"):
        of = served(arrival_s, output, name, step_s=(0.05, 0.15), most=8)
        took[name] = (of.of.finish_s - of.of.arrival_s).mean()
        slow_share[name] = (of.served_by == 1).mean()
    assert took["performance-aware"] < 0.8 * took["round-robin"]
    assert slow_share["performance-aware"] < 0.4 < slow_share["round-robin"]


@pytest.mark.parametrize("failing", [0.1, 0.5])
def test_without_retries_a_share_is_lost(failing):
    """One group, failure probability p: a binomial number of n requests fails (z-test)."""
    n = 2000
    of = served(np.arange(n) * 0.01, np.full(n, 2), "round-robin", (0.1,), 64,
                Tries(failure_probability=np.array([failing])), 1010).of  # fmt: skip
    lost = int((of.outcome == FAILED).sum())
    assert lost + int((of.outcome == FINISHED).sum()) == n
    assert abs(lost - n * failing) <= 4.5 * math.sqrt(n * failing * (1.0 - failing))
    assert (of.attempts == 1).all()
    assert of.wasted.sum() == 2 * lost


def test_retries_leave_the_power_of_the_share():
    """With 3 attempts p^3 are lost, and the attempts are a cut geometric number."""
    n, p = 3000, 0.5
    of = served(np.arange(n) * 0.01, np.full(n, 2), "round-robin", (0.1,), 64,
                Tries(attempts=3, failure_probability=np.array([p])), 1111).of  # fmt: skip
    lost = (of.outcome == FAILED).mean()
    assert abs(lost - p**3) <= 4.5 * math.sqrt(p**3 * (1 - p**3) / n)
    mean, second = 1 + p + p**2, 1 * (1 - p) + 4 * p * (1 - p) + 9 * p**2
    assert abs(of.attempts.mean() - mean) <= 4.5 * math.sqrt((second - mean**2) / n)
    assert (of.attempts[of.outcome == FAILED] == 3).all()


def test_timed_out_attempts_free_their_place():
    """A request longer than the time-out fails each time; a shorter one behind it finishes."""
    of = served([0.0, 0.5], [50, 3], "round-robin", (0.1,), 1, Tries(attempts=2, timeout_s=1.0))
    assert of.of.outcome.tolist() == [FAILED, FINISHED]
    assert of.of.attempts[0] == 2
    assert of.of.finish_s[0] == pytest.approx(2.0)
    group = of.groups[0]
    assert group.ranks.free[0] == group.of.limits.blocks
