"""Which cells of the published tables can be: each against the other printed figures, as a range.

A printed figure stands for all that rounds to it, so a check gives a range too; a cell that no
value of the range rounds to is arithmetically impossible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import NamedTuple

from simulator.studies.common.claims import read_published

Range = tuple[float, float]
SLACK = 1e-9


class Check(NamedTuple):
    """A cell against the others. ranges: what they allow, in its unit; nearest: of that to the
    printed figure; possible: whether something in the ranges rounds to it; why: the sum, in words.
    """

    cell: str
    printed: str
    ranges: tuple[Range, ...]
    nearest: float
    possible: bool
    why: str


def span(text: str) -> Range:
    """What a printed figure may have been before it was rounded; a range as it is."""
    of = read_published(text)
    return of.low - of.half_digit, of.high + of.half_digit


def spread(of: Callable[..., float], *given: Range) -> Range:
    """The least and the largest of a function that is monotone in each argument."""
    found = [of(*ends) for ends in product(*given)]
    return min(found), max(found)


def sd_range(number: int, mean: float, low: float, high: float, freedom: int) -> Range | None:
    """Between which a standard deviation lies, given number, mean, least and largest; None if
    there are no such values. freedom: 1 divides by number - 1, 0 by number.

    Least: all others are equal. Largest: as many as can be at the ends, one between them.
    """
    others = number - 2
    rest = number * mean - low - high
    if others < 1 or not low * others - SLACK <= rest <= high * others + SLACK:
        return None
    ends = (low - mean) ** 2 + (high - mean) ** 2
    least = ends + others * (rest / others - mean) ** 2
    most = ends + sum((x - mean) ** 2 for x in extreme(others, rest, low, high))
    divisor = number - freedom
    return (least / divisor) ** 0.5, (most / divisor) ** 0.5


def extreme(number: int, total: float, low: float, high: float) -> list[float]:
    """Values within low and high with this sum, all but one of them at an end: of these a convex
    function has its largest sum.
    """
    if high <= low:
        return [low] * number
    at_high = min(int((total - number * low) / (high - low) + SLACK), number)
    if at_high == number:
        return [high] * number
    between = total - at_high * high - (number - at_high - 1) * low
    return [high] * at_high + [between] + [low] * (number - at_high - 1)


def most_mean_rate(number: int, mean_s: float, low_s: float, high_s: float, tokens: float) -> float:
    """The largest mean of tokens / latency that samples of at most `tokens` can have."""
    rest = number * mean_s - low_s - high_s
    each = [low_s, high_s, *extreme(number - 2, rest, low_s, high_s)]
    return tokens * sum(1.0 / x for x in each) / number


def whole_shares(number: int, low: float, high: float) -> list[int]:
    """The counts out of `number` whose percentage is between low and high."""
    return [k for k in range(number + 1) if low <= 100.0 * k / number <= high]


def check(cell: str, printed: str, allowed: Iterable[Range], why: str) -> Check:
    """A cell against the ranges that the others allow."""
    ranges = tuple(allowed)
    low, high = span(printed)
    possible = any(a <= high + SLACK * abs(high) and b >= low - SLACK * abs(low) for a, b in ranges)
    given = read_published(printed)
    told = 0.5 * (given.low + given.high)
    nearest = min((min(max(told, a), b) for a, b in ranges), key=lambda x: abs(x - told))
    return Check(cell, printed, ranges, nearest, possible, why)


def all_checks(
    printed: Mapping[str, str], weights_bytes: float, gpu_memory_bytes: float
) -> dict[str, Check]:
    """Every check by the name of its cell in `printed`.

    weights_bytes: of the model; gpu_memory_bytes: what the published text has a GPU hold.
    """
    p = printed
    s = {name: span(text) for name, text in p.items()}
    found = [*_rates(p, s), *_latencies(p, s), *_tokens(p, s)]
    found += _memory(p, s, weights_bytes, gpu_memory_bytes)
    return {one.cell: one for one in found}


def _rates(p: Mapping[str, str], s: Mapping[str, Range]) -> Iterable[Check]:
    half = spread(lambda both: both / 2.0, s["rate_both"])
    yield check(
        "rate_single", p["rate_single"], [half],
        f"half of {p['rate_both']}, for nodes that share nothing",
    )  # fmt: skip
    both = spread(lambda a, b: a + b, s["rate_jw2"], s["rate_jw3"])
    yield check("rate_both", p["rate_both"], [both], f"{p['rate_jw2']} + {p['rate_jw3']}")
    linear = spread(
        lambda both, a, b: 100.0 * both / (a + b), s["rate_both"], s["rate_jw2"], s["rate_jw3"]
    )
    yield check(
        "efficiency", p["efficiency"], [linear],
        f"{p['rate_both']} over {p['rate_jw2']} + {p['rate_jw3']}; "
        f"{p['efficiency']} is against 2 x {p['rate_single']}, a single node rounded",
    )  # fmt: skip
    twice = spread(lambda one: 2.0 * one, s["rate_single"])
    yield check("rate_theory", p["rate_theory"], [twice], f"2 x {p['rate_single']}")
    for node in ("jw2", "jw3"):
        inverse = spread(lambda ms: 1000.0 / ms, s[f"latency_{node}"])
        told = f"1 / {p[f'latency_{node}']} ms"
        yield check(f"rate_{node}", p[f"rate_{node}"], [inverse], told)
    more = spread(lambda a, b: 100.0 * (b / a - 1.0), s["rate_jw2"], s["rate_jw3"])
    yield check("rate_variance", p["rate_variance"], [more], "jw3 over jw2")
    gap = spread(lambda a, b: b - a, s["rate_jw2"], s["rate_jw3"])
    yield check("rate_gap", p["rate_gap"], [gap], "jw3 - jw2")
    done, of = (round(read_published(p[name]).low) for name in ("completed", "samples"))
    share = 100.0 * done / of
    yield check("success_jw2", p["success_jw2"], [(share, share)], f"{done} of {of}")
    failed = 1.0 - done / of
    lost = spread(lambda a, both: 100.0 * failed * a / both, s["rate_jw2"], s["rate_both"])
    yield check(
        "throughput_lost", p["throughput_lost"], [lost, (0.0, 0.0)],
        f"{failed:.0%} of jw2's {p['rate_jw2']} out of {p['rate_both']} if {p['rate_both']} is "
        f"what both could do, nothing if it is what they did; {failed / 2:.0%} are the samples",
    )  # fmt: skip


def _latencies(p: Mapping[str, str], s: Mapping[str, Range]) -> Iterable[Check]:
    done, of = (round(read_published(p[name]).low) for name in ("completed", "samples"))
    numbers = {"jw2": done, "jw3": of}
    mean = spread(
        lambda a, b: (done * a + of * b) / (done + of), s["latency_jw2"], s["latency_jw3"]
    )
    plain = 0.5 * (read_published(p["latency_jw2"]).low + read_published(p["latency_jw3"]).low)
    yield check(
        "latency_both", p["latency_both"], [mean],
        f"the mean of {done} and {of} samples; {plain:,.0f} is the mean of two means",
    )  # fmt: skip
    less = spread(lambda ms: 100.0 * 1000.0 / ms, s["latency_both"])
    yield check(
        "latency_efficiency",
        p["latency_efficiency"],
        [less],
        f"1000 / {p['latency_both']}, and no single GPU was measured",
    )
    for node, number in numbers.items():
        names = (f"latency_{node}", f"low_{node}", f"high_{node}")
        found = [
            sd
            for ends in product(*(s[name] for name in names))
            for freedom in (0, 1)
            if (sd := sd_range(number, ends[0], ends[1], ends[2], freedom)) is not None
        ]
        ranges = [_joined(found[freedom::2]) for freedom in (0, 1)] if found else [(0.0, 0.0)]
        told = " or ".join(f"{low:.0f}-{high:.0f}" for low, high in ranges)
        yield check(
            f"sd_{node}", p[f"sd_{node}"], ranges,
            f"{number} samples with that mean, minimum and maximum have {told} "
            f"(divided by {number} or {number - 1})",
        )  # fmt: skip
    gap = spread(lambda a, b: a - b, s["latency_jw2"], s["latency_jw3"])
    yield check("latency_gap", p["latency_gap"], [gap], "jw2 - jw3")
    more = spread(lambda a, b: 100.0 * (a / b - 1.0), s["latency_jw2"], s["latency_jw3"])
    yield check("latency_variance", p["latency_variance"], [more], "jw2 over jw3")
    above = spread(lambda a, b: 100.0 * (a / b - 1.0), s["high_jw2"], s["latency_jw2"])
    least = 100.0 * (read_published(p["high_jw2"]).low / read_published(p["low_jw2"]).low - 1.0)
    yield check(
        "cold_excess", p["cold_excess"], [above],
        f"{p['high_jw2']} over the average {p['latency_jw2']}; {least:.0f} % is above the minimum",
    )  # fmt: skip
    low, high = s["within_15"]
    counts = whole_shares(of, low, high)
    near = min(
        range(of + 1), key=lambda k: abs(100.0 * k / of - read_published(p["within_15"]).low)
    )
    shares = [(100.0 * k / of, 100.0 * k / of) for k in counts or [near]]
    told = f"{counts[0]} of {of}" if counts else f"no count out of {of}; the nearest is {near}"
    yield check("within_15", p["within_15"], shares, told)


def _joined(ranges: list[Range]) -> Range:
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _tokens(p: Mapping[str, str], s: Mapping[str, Range]) -> Iterable[Check]:
    done, of = (round(read_published(p[name]).low) for name in ("completed", "samples"))
    numbers = {"jw2": done, "jw3": of}
    tokens = read_published(p["most_tokens"]).low  # whole, so as printed
    for name in ("jw2", "jw3", "both", "single"):
        highest = s[f"rate_{name}"][1] * tokens
        told = f"at most {p['most_tokens']} tokens x {p[f'rate_{name}']} samples/s"
        if name in numbers:
            ends = [s[f"{what}_{name}"] for what in ("latency", "low", "high")]
            seconds = [[0.001 * end for end in pair] for pair in ends]
            most = max(
                most_mean_rate(numbers[name], *three, tokens)  # type: ignore[call-arg]
                for three in product(*seconds)
            )
            told += f"; as a mean of per-sample rates up to {most:.1f} can be"
        yield check(f"tokens_{name}", p[f"tokens_{name}"], [(0.0, highest)], told)
    same = spread(
        lambda both, one: 100.0 * both / (2.0 * one), s["tokens_both"], s["tokens_single"]
    )
    yield check(
        "tokens_efficiency",
        p["tokens_efficiency"],
        [same],
        f"{p['tokens_both']} over 2 x {p['tokens_single']}",
    )
    more = spread(lambda a, b: 100.0 * (b / a - 1.0), s["tokens_jw2"], s["tokens_jw3"])
    yield check("tokens_variance", p["tokens_variance"], [more], "jw3 over jw2")
    less = spread(lambda a, b: 100.0 * a / b, s["tokens_jw2"], s["tokens_jw3"])
    yield check("tokens_consistency", p["tokens_consistency"], [less], "jw2 over jw3")
    least = read_published(p["least_tokens"]).low
    slow = spread(lambda n, ms: 1000.0 * n / ms, (least, tokens), s["high_jw2"])
    yield check(
        "lowest_rate",
        p["lowest_rate"],
        [slow],
        f"{p['least_tokens']}-{p['most_tokens']} tokens in {p['high_jw2']} ms",
    )
    fastest = 1000.0 * tokens / s["low_jw2"][0]
    yield check(
        "peak_rate", p["peak_rate"], [(0.0, fastest)],
        f"at most {p['most_tokens']} tokens in {p['low_jw2']} ms or more",
    )  # fmt: skip


def _memory(
    p: Mapping[str, str], s: Mapping[str, Range], weights_bytes: float, gpu_memory_bytes: float
) -> Iterable[Check]:
    least, gib = weights_bytes / 1e9, 2.0**30
    yield check(
        "memory_node", p["memory_node"], [(least, gpu_memory_bytes / 1e9)],
        f"the weights in BF16 are {least:.2f} GB; in GiB ({weights_bytes / gib:.2f}) it can be",
    )  # fmt: skip
    total = spread(lambda one: 2.0 * one, s["memory_node"])
    yield check("memory_total", p["memory_total"], [total], f"2 x {p['memory_node']}")
    whole = gpu_memory_bytes / 1e9
    share = spread(lambda one: 100.0 * one / whole, s["memory_node"])
    would = read_published(p["memory_node"]).low / read_published(p["memory_share"]).low * 100.0
    yield check(
        "memory_share", p["memory_share"], [share],
        f"{p['memory_node']} of {whole:.0f}; it is that of {would:.1f}",
    )  # fmt: skip
