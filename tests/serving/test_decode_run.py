"""`serving.decode_run`: steps taken like the first of a run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import simpy
from serving import toy

from simulator.engine.serving.group import Group
from simulator.engine.serving.service import FINISHED, Service, Tries
from simulator.policies.dispatch import DISPATCHERS, Setup


def _served(repeat: int, groups: int = 1, blocks: int = 1 << 30):
    """Requests on groups whose steps all take one second, arriving by their own clock."""
    rng = np.random.default_rng(5)
    number = 60
    ledger = toy.ledger(rng.integers(1, 40, number), rng.integers(1, 90, number))
    arrival_s = np.sort(rng.integers(0, 400, number) + 0.5)
    made = [toy.group(ledger, most=6, blocks=blocks) for _ in range(groups)]
    made = [Group(one.of._replace(repeat=repeat), ledger) for one in made]
    env = simpy.Environment()
    setup = Setup(np.arange(groups, dtype=np.int32), None)
    service = Service(env, made, ledger, DISPATCHERS["round-robin"](setup), Tries(), rng)
    steps = []
    service.on_step = steps.append
    for request, time_s in enumerate(arrival_s.tolist()):
        service.at(time_s, lambda request=request: service.submit(request))
    env.run()
    assert (service.of.outcome == FINISHED).all()
    assert all((one.ranks.free == one.of.limits.blocks).all() for one in made)
    return service, ledger, steps


@pytest.mark.parametrize("repeat", [2, 7, 64])
def test_where_all_steps_are_alike_nothing_changes(repeat: int):
    alone, ledger, steps = _served(1)
    run, merged, fewer = _served(repeat)
    assert np.array_equal(run.of.finish_s, alone.of.finish_s)
    assert np.array_equal(merged.first_s, ledger.first_s)
    assert np.array_equal(merged.last_s, ledger.last_s)
    assert np.array_equal(merged.largest_gap_s, ledger.largest_gap_s)
    gaps = [service.groups[0].ranks.gaps for service in (run, alone)]
    assert np.array_equal(*gaps)
    assert sum(step.step.repeated for step in fewer) == len(steps)
    assert len(fewer) < len(steps)
    tokens = [sum(step.step.generated for step in one) for one in (steps, fewer)]
    assert tokens[0] == tokens[1]


def test_a_run_ends_before_anything_comes_from_outside():
    service, _, steps = _served(64, groups=2)
    arrivals = np.unique(service.of.arrival_s)
    for told in steps:
        if told.step.repeated > 1:
            inside = (arrivals > told.step.start_s) & (arrivals < told.step.end_s)
            assert not inside.any()


def test_a_run_is_cut_where_the_kv_cache_has_no_room():
    """40 + 90 tokens need 9 blocks of 16; with 12 two such requests preempt each other."""
    alone, ledger, _ = _served(1, blocks=12)
    run, merged, steps = _served(64, blocks=12)
    assert ledger.preempted.sum() > 0
    assert merged.preempted.sum() > 0
    assert max(step.used_blocks for step in steps) <= 12
    assert math.isclose(run.of.finish_s.max(), alone.of.finish_s.max(), rel_tol=0.02)
