"""Which expert makes room."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from simulator.errors import InputError
from simulator.policies.eviction import EVICTIONS, lru
from simulator.policies.pick import pick


class Held(NamedTuple):
    expert: int
    last_use: int
    uses: int


def test_the_least_recently_used_goes():
    assert lru([Held(4, 9, 1), Held(7, 2, 5), Held(1, 3, 0)]) == 7
    assert lru([Held(4, 9, 1)]) == 4


@pytest.mark.parametrize("name", sorted(EVICTIONS))
def test_every_eviction_names_a_candidate(name: str):
    held = [Held(expert, (expert * 7) % 11, expert % 3) for expert in range(3, 9)]
    for count in range(1, len(held) + 1):
        assert EVICTIONS[name](held[:count]) in [h.expert for h in held[:count]]


def test_a_policy_of_ones_own_by_module_and_function():
    assert pick("eviction", EVICTIONS, "simulator.policies.eviction:lru") is lru
    assert pick("eviction", EVICTIONS, "lru") is lru


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lur", "eviction: no 'lur'; known: lru"),
        ("no.such.module:f", "eviction: 'no.such.module:f' cannot be imported: No module named"),
        ("simulator.policies.eviction:nobody", "cannot be imported: module"),
    ],
)
def test_what_cannot_be_picked_is_one_line(name: str, said: str):
    with pytest.raises(InputError) as caught:
        pick("eviction", EVICTIONS, name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
