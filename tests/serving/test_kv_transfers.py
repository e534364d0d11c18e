"""KV from prefill to decode: the link as a queue, and where the blocks are."""

from __future__ import annotations

import math

import numpy as np
import simpy

from simulator.engine.links import Wires
from simulator.engine.serving.handover import Mover

BANDWIDTH = 4.0


def _mover(env: simpy.Environment, latency_s: float = 0.0, at_once: int = 4096) -> Mover:
    one = Wires(
        np.array([BANDWIDTH]),
        np.array([0, 1], dtype=np.int64),
        np.zeros(1, dtype=np.int32),
        None,
        np.array([latency_s]),
    )
    return Mover(env, one, at_once)


def _sojourns(load: float, number: int, seed: int) -> np.ndarray:
    """Times that transfers of exponential size spend on a link, Poisson arrivals."""
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(1.0 / load, number))
    size = rng.exponential(BANDWIDTH, number)  # one second alone, on average
    env = simpy.Environment()
    mover = _mover(env)
    end_s = np.full(number, math.nan)

    def come() -> object:
        for i in range(number):
            yield env.timeout(arrival_s[i] - env.now)
            mover.send(0, size[i], lambda i=i: end_s.__setitem__(i, env.now))

    env.process(come())
    env.run()
    assert not np.isnan(end_s).any()
    return end_s - arrival_s


def test_a_link_is_a_processor_sharing_queue():
    """M/M/1-PS: the mean time on the link is 1 / (1 - load), as first come, first served has it,
    and a transfer of size x takes x / (1 - load) on average, which only sharing does (Kleinrock,
    Queueing Systems II, section 4.4). Batch means, z below 3.5.
    """
    load = 0.6
    found = np.array([_sojourns(load, 3000, seed)[300:].mean() for seed in range(12)])
    z = (found.mean() - 1.0 / (1.0 - load)) / (found.std(ddof=1) / math.sqrt(len(found)))
    assert abs(z) < 3.5


def test_the_time_of_a_transfer_is_in_proportion_to_its_size():
    """What tells sharing from a queue: E[T | size] = size / (1 - load)."""
    load = 0.5
    ratios = []
    for seed in range(12):
        rng = np.random.default_rng(100 + seed)
        number = 3000
        np.cumsum(rng.exponential(1.0 / load, number))
        size = rng.exponential(BANDWIDTH, number)
        took = _sojourns(load, number, 100 + seed)
        small = size < np.median(size)
        ratios.append((took[small].mean() / (size[small].mean() / BANDWIDTH)) * (1.0 - load))
    mean = float(np.mean(ratios))
    z = (mean - 1.0) / (np.std(ratios, ddof=1) / math.sqrt(len(ratios)))
    assert abs(z) < 3.5


def test_a_lone_transfer_takes_latency_and_bytes_over_bandwidth():
    env = simpy.Environment()
    mover = _mover(env, latency_s=0.25)
    ends: list[float] = []
    mover.send(0, 8.0, lambda: ends.append(env.now))
    env.run()
    assert ends == [0.25 + 8.0 / BANDWIDTH]


def test_more_than_fit_on_a_route_wait_for_one_another():
    env = simpy.Environment()
    mover = _mover(env, at_once=2)
    ends: list[float] = []
    for _ in range(4):
        mover.send(0, 4.0, lambda: ends.append(env.now))
    env.run()
    assert np.allclose(ends, [2.0, 2.0, 4.0, 4.0], rtol=1e-12)
