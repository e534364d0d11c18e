"""With one server, or several alike, the simulator is a queue of which the theory is known.

A service is a prompt of n tokens with one token of output, which is one step of n times a fixed
time, or several steps of fixed length. Seeds are chosen beforehand; the bounds are those of a test
at 4.5 standard errors of the mean over independent replications (one in 150,000 fails).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import simpy
from serving import toy

from simulator.engine.serving.service import FINISHED, Service, Tries
from simulator.policies.dispatch import DISPATCHERS, Setup
from simulator.results.serving import littles_law

SIGMAS = 4.5
FINE = 400  # tokens of a mean service that is one step
STEPS = 4  # of a mean service in several


def served(
    arrival_s: np.ndarray,
    tokens: np.ndarray,
    servers: int = 1,
    dispatch: str = "round-robin",
    concurrency: int | None = None,
    most: int = 1,
    stepwise: bool = True,
) -> Service:
    """All requests through servers that work on `most` at once; tokens: [requests], of output in
    steps of 1 / STEPS, or of prompts (not `stepwise`), each 1 / FINE.
    """
    number = len(tokens)
    one = np.ones(number, dtype=int)
    ledger = toy.ledger(one, tokens) if stepwise else toy.ledger(tokens, one)
    how = {"step_s": 1.0 / STEPS} if stepwise else {"step_s": 1.0 / FINE, "per_token": True}
    groups = [toy.group(ledger, most=most, tokens=16 * FINE, **how) for _ in range(servers)]
    env = simpy.Environment()
    setup = Setup(np.arange(servers, dtype=np.int32), None)
    rng = np.random.default_rng(0)
    service = Service(env, groups, ledger, DISPATCHERS[dispatch](setup), Tries(), rng)

    def come(request: int) -> None:
        service.submit(request)
        if concurrency is None and request + 1 < number:
            service.at(float(arrival_s[request + 1]), lambda: come(request + 1))

    if concurrency is None:
        service.at(float(arrival_s[0]), lambda: come(0))
    else:
        following = iter(range(concurrency, number))
        for request in range(concurrency):
            service.at(0.0, lambda request=request: come(request))

        def ended(_: int) -> None:
            request = next(following, None)
            if request is not None:
                service.at(env.now, lambda: come(request))

        service.on_end = ended
    env.run()
    assert (service.of.outcome == FINISHED).all()
    # Little's law is an identity of every run.
    both = littles_law({"arrival_s": service.of.arrival_s, "end_s": service.of.finish_s})
    assert both["mean_in_system"] == pytest.approx(both["rate_times_time"], rel=1e-9)
    return service


def replicate(times, seed, rate, tokens_of, requests=2500, warm=500, **how):
    """Times in the system of each replication after the warm-up, float64 [times, requests]."""
    found = []
    for number in range(times):
        rng = np.random.default_rng([seed, number])
        arrival_s = np.cumsum(rng.exponential(1.0 / rate, requests))
        service = served(arrival_s, tokens_of(rng, requests), **how)
        found.append((service.of.finish_s - service.of.arrival_s)[warm:])
    return np.array(found)


def agree(means: np.ndarray, expected: float, within: float = 0.0, largest: float = 0.03) -> None:
    """z-test of independent means against theory, known to a bias of `within`. The test must be
    able to fail: its standard error is at most `largest` of what is expected.
    """
    error = float(means.std(ddof=1) / math.sqrt(len(means)))
    assert error < largest * expected
    assert abs(float(means.mean()) - expected) <= SIGMAS * error + within


def pollaczek_khinchine(rate: float, mean: float, second: float) -> float:
    """Mean time in an M/G/1 queue, with it the service, of moments of the service time."""
    return mean + rate * second / (2.0 * (1.0 - rate * mean))


def exponential(rng, number):
    """Exponential services in whole tokens, rounded up: longer than drawn by one token at most."""
    return np.ceil(rng.exponential(FINE, number)).astype(int)


SLOW = 1.0 + 1.0 / FINE  # no mean service is longer than this
FINELY = {"stepwise": False}


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_m_d_1(load):
    found = replicate(14, 101, load, lambda _, n: np.full(n, FINE), **FINELY)
    agree(found.mean(axis=1), pollaczek_khinchine(load, 1.0, 1.0))


def test_m_d_1_in_steps():
    """Fixed output of several tokens: the same as one long step."""
    rng = np.random.default_rng(151)
    arrival_s = np.cumsum(rng.exponential(2.0, 400))
    stepwise = served(arrival_s, np.full(400, STEPS))
    whole = served(arrival_s, np.full(400, FINE), **FINELY)
    np.testing.assert_allclose(stepwise.of.finish_s, whole.of.finish_s, rtol=1e-12)


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_m_geometric_1(load):
    """Geometric numbers of output tokens: Pollaczek-Khinchine with their own moments, exactly."""
    p = 1.0 / STEPS
    second = (2.0 - p) / p**2 / STEPS**2
    found = replicate(12, 202, load, lambda rng, n: rng.geometric(p, n))
    agree(found.mean(axis=1), pollaczek_khinchine(load, 1.0, second))


def test_m_m_1_mean_and_99th_percentile():
    """The time in the system is exponential with rate mu - lambda. The bias allowed is that of a
    server slower by the rounding of a token.
    """
    load = 0.5
    found = replicate(24, 303, load, exponential, **FINELY)
    expected, most = 1.0 / (1.0 - load), SLOW / (1.0 - load * SLOW)
    agree(found.mean(axis=1), expected, within=most - expected)
    percentile = -math.log(0.01)
    agree(
        np.percentile(found, 99, axis=1), percentile * expected,
        within=percentile * (most - expected), largest=0.04,
    )  # fmt: skip


@pytest.mark.parametrize("servers", [2, 4])
def test_m_m_c(servers):
    """One queue for c servers: Erlang's C formula."""
    rate = 0.7 * servers
    how = {"servers": servers, "dispatch": "central", **FINELY}
    found = replicate(14, 404 + servers, rate, exponential, **how)

    def erlang(mean: float) -> float:
        offered = rate * mean
        terms = [offered**k / math.factorial(k) for k in range(servers)]
        last = offered**servers / math.factorial(servers) / (1.0 - offered / servers)
        return last / (sum(terms) + last) * mean / (servers - offered) + mean

    agree(found.mean(axis=1), erlang(1.0), within=erlang(SLOW) - erlang(1.0))


def test_one_queue_beats_turns_and_turns_beat_chance():
    """Turns give each of two servers Erlang arrivals: better than M/M/1, worse than M/M/2."""
    apart = replicate(6, 505, 1.4, exponential, servers=2, **FINELY).mean()
    central = replicate(6, 505, 1.4, exponential, servers=2, dispatch="central", **FINELY).mean()
    assert central < apart < 1.0 / (1.0 - 0.7)


def test_m_g_infinity():
    """A batch as large as it needs to be: nobody waits but for the step in flight, and the number
    there is Poisson with mean rate x time.
    """
    rng = np.random.default_rng(606)
    rate, number = 3.0, 3000
    arrival_s = np.cumsum(rng.exponential(1.0 / rate, number))
    of = served(arrival_s, np.full(number, STEPS), most=60).of
    took = of.finish_s - of.arrival_s
    assert took.min() >= 1.0 - 1e-9
    assert took.max() <= 1.0 + 1.0 / STEPS + 1e-9
    instants = np.arange(50.0, 900.0, 2.0)  # independent: nobody is there for two seconds
    seen = np.array([((of.arrival_s <= t) & (of.finish_s > t)).sum() for t in instants])
    mean, count = rate * float(took.mean()), len(instants)
    assert abs(seen.mean() - mean) <= SIGMAS * math.sqrt(mean / count)
    spread = math.sqrt(2.0 / count + 1.0 / (mean * count))
    assert abs(seen.var(ddof=1) / mean - 1.0) <= SIGMAS * spread


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("clients", [1, 3, 8])
def test_closed_concurrency(clients, batch):
    """N clients without thinking, a server for `batch` at once: min(N, batch) / S requests per s,
    and the interactive response time law, N = X R.
    """
    number = 240
    of = served(np.zeros(0), np.full(number, STEPS), concurrency=clients, most=batch).of
    rate = min(clients, batch)
    assert of.finish_s.max() == pytest.approx(number / rate, rel=1e-9)
    took = of.finish_s - of.arrival_s
    assert took[clients:].mean() == pytest.approx(clients / rate, rel=1e-9)


def test_a_batch_of_two_is_two_servers():
    rng = np.random.default_rng(707)
    tokens = rng.geometric(1.0 / STEPS, 300)
    together = served(np.zeros(300), tokens, most=2)
    apart = served(np.zeros(300), tokens, servers=2, dispatch="central")
    np.testing.assert_allclose(together.of.finish_s, apart.of.finish_s, rtol=1e-9)
