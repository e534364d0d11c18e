"""Cache replay: accesses per second of LRU, LFU and Belady, and against a bare pass over them."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from simulator.compiled import compiled
from simulator.policies.caching import POLICIES, of_equal_size

Int32s = npt.NDArray[np.int32]

LAYERS, ACCESSES, EXPERTS = 20, 500_000, 256  # 10 M accesses
CAPACITIES = (4, 8, 16, 32, 64)
# Zipf's exponent: 1 is about as skewed as the experts of one layer get, 0 is uniform.
INPUTS = {"skewed": 1.0, "uniform": 0.0}
POLICY_GOALS = {"lru": ">= 60", "lfu": ">= 25"}
BELADY_GOALS = {"skewed": "<= 4", "uniform": "<= 5"}
REPEATS = 3


def run() -> list[tuple[str, float, str]]:
    """Measure: rows (figure, value, goal). Each figure is the worst over `CAPACITIES`."""
    rows = []
    for name, skew in INPUTS.items():
        asked = draw(skew)
        work: dict[object, Callable[[], object]] = {"bare": partial(bare_pass, asked)}
        for capacity in CAPACITIES:
            for policy in POLICIES:
                work[policy, capacity] = partial(_replay, policy, asked, capacity)
        seconds = _shortest(work)
        bare_s = seconds["bare"]
        worst = {
            policy: max(seconds[policy, capacity] for capacity in CAPACITIES) for policy in POLICIES
        }
        for policy, worst_s in worst.items():
            rate = asked.size / worst_s / 1e6
            rows.append((f"{policy}, {name} (M accesses/s)", rate, POLICY_GOALS.get(policy, "")))
        for policy in (*POLICY_GOALS, "belady"):
            rows.append((f"{policy}, {name}, time over a bare pass", worst[policy] / bare_s, ""))
        slower = max(seconds["belady", c] / seconds["lru", c] for c in CAPACITIES)
        rows.append((f"belady, {name}, time over lru", slower, BELADY_GOALS[name]))
    return rows


def draw(skew: float) -> Int32s:
    """Independent accesses [layers, n], the favourite experts of each layer others."""
    rng = np.random.default_rng([3, round(skew * 10)])
    weight = 1.0 / np.arange(1, EXPERTS + 1) ** skew
    edges = np.cumsum(weight / weight.sum())
    asked = np.empty((LAYERS, ACCESSES), dtype=np.int32)
    for layer in range(LAYERS):
        rank = np.minimum(np.searchsorted(edges, rng.random(ACCESSES)), EXPERTS - 1)
        asked[layer] = rng.permutation(EXPERTS)[rank]
    return asked


@compiled
def bare_pass(asked: Int32s) -> int:
    """Count each expert once: what any look at every access costs at least."""
    seen = np.zeros(EXPERTS, dtype=np.int64)
    for layer in range(asked.shape[0]):
        for at in range(asked.shape[1]):
            seen[asked[layer, at]] += 1
    return int(seen.max())


def _replay(policy: str, asked: Int32s, capacity: int) -> None:
    starts = np.array([0, ACCESSES], dtype=np.int64)
    POLICIES[policy](asked, starts, True, of_equal_size(LAYERS, EXPERTS, capacity))


def _shortest(work: dict[object, Callable[[], object]]) -> dict[object, float]:
    """The shortest of some runs of each, in turn, after one that compiles: others use the machine
    too, and what is compared should see the same of them.
    """
    took = dict.fromkeys(work, float("inf"))
    for each in work.values():
        each()
    for _ in range(REPEATS):
        for name, each in work.items():
            start = time.perf_counter()
            each()
            took[name] = min(took[name], time.perf_counter() - start)
    return took
