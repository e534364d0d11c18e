"""Names with an argument, and that the names are those of the functions behind them."""

from __future__ import annotations

import pytest

from simulator.policies.eviction import EVICTIONS
from simulator.policies.placement import ALIASES, PLACEMENTS
from simulator.policies.prefetch import PREFETCHERS
from simulator.routing.laws import LAWS, is_law, parse_law
from simulator.spec.choices import FAMILIES, Choice, ChoiceError, parse_choice, routing_law


@pytest.mark.parametrize(
    ("text", "family", "choice"),
    [
        ("none", "overlap", Choice("none")),
        ("two-batch", "overlap", Choice("two-batch")),
        ("chunked:4", "overlap", Choice("chunked", 4)),
        ("synthetic:0.8", "prefetch", Choice("synthetic", 0.8)),
        ("synthetic:1", "prefetch", Choice("synthetic", 1.0)),
        ("lru", "eviction", Choice("lru")),
        ("zipf:1.2", "routing", Choice("zipf", 1.2)),
        ("zipf", "routing", Choice("zipf")),
        ("pkg.mod:fn", "prefetch", Choice("pkg.mod:fn", imported=True)),
        ("mod:fn", "eviction", Choice("mod:fn", imported=True)),
    ],
)
def test_reads(text, family, choice):
    assert parse_choice(text, family) == choice


@pytest.mark.parametrize("text", ["chunked:0", "chunked:-1", "chunked:1e3", "chunked:", "chunked:x",
                                  "none:1", "two_batch", "a/b:c", "", "mod:fn:3"])  # fmt: skip
def test_refuses(text):
    with pytest.raises(ChoiceError):
        parse_choice(text, "overlap")


def test_the_names_are_those_of_the_functions():
    assert set(FAMILIES["eviction"]) == set(EVICTIONS)
    assert set(FAMILIES["prefetch"]) == set(PREFETCHERS)
    assert set(FAMILIES["placement"]) == set(PLACEMENTS) | set(ALIASES)
    assert set(FAMILIES["routing"]) == set(LAWS)


@pytest.mark.parametrize("name", FAMILIES["routing"])
def test_every_law_that_is_accepted_can_be_read_by_the_floor_above(name):
    argument = FAMILIES["routing"][name]
    for text in [name] + ([argument.example] if argument else []):
        assert routing_law(text) is not None
        assert is_law(text)
        function, parameters = parse_law(text)
        assert function is LAWS[name]
        assert parameters == tuple(float(part) for part in text.split(":")[1:])


@pytest.mark.parametrize(
    "text",
    ["moe128-python", "traces/a.parquet", "a.parquet", "../x:y.parquet", "mod:fn", "a.b/c:d"],
)
def test_what_is_no_law_is_a_trace(text):
    assert routing_law(text) is None
    assert not is_law(text)


@pytest.mark.parametrize("text", ["my.laws:mine", "my.own.laws:mine:1.2", "my.laws:mine:1.2,3"])
def test_a_law_of_ones_own(text):
    assert routing_law(text) == Choice(text, imported=True)
    assert is_law(text)
