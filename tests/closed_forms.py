"""Closed forms and brute-force references that the tests compare with.

Nothing here imports the simulator: each is written from the definition, slowly and plainly.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

# --- transfers ---------------------------------------------------------------------------


def lone_transfer(size_bytes: float, bandwidth_bytes_per_s: float, latency_s: float) -> float:
    """Seconds that one transfer takes on an idle path."""
    return latency_s + size_bytes / bandwidth_bytes_per_s


def equal_transfers(
    count: int, size_bytes: float, bandwidth_bytes_per_s: float, latency_s: float
) -> float:
    """Seconds until all of `count` equal transfers that share one link end (they end together)."""
    return latency_s + count * size_bytes / bandwidth_bytes_per_s


def all_to_all(
    gpus: int, message_bytes: float, bandwidth_bytes_per_s: float, alpha_s: float
) -> float:
    """Seconds of an all-to-all of equal messages on a switch: alpha + (n - 1) m / B."""
    return alpha_s + (gpus - 1) * message_bytes / bandwidth_bytes_per_s


def parking_lot(
    capacities: Sequence[float], long_bytes: float, short_bytes: Sequence[float]
) -> tuple[float, list[float]]:
    """Finish of one flow over all links, and of one flow per link, when the long one ends first.

    The long flow gets half of the smallest link, each short one the rest of its own; afterwards
    each short one has its link alone, which is therefore busy from 0 to the end.
    """
    long_rate = min(capacities) / 2
    long_s = long_bytes / long_rate
    for capacity, size in zip(capacities, short_bytes, strict=True):
        assert size >= (capacity - long_rate) * long_s, "a short flow ends first: another form"
    return long_s, [
        (size + long_bytes) / capacity
        for capacity, size in zip(capacities, short_bytes, strict=True)
    ]


class Flow(NamedTuple):
    """A transfer: the links that it crosses, its bytes, and when it is on the wire (s)."""

    links: tuple[Hashable, ...]
    size_bytes: float
    on_wire_s: float


def max_min_rates(
    capacity: Mapping[Hashable, float], paths: Sequence[tuple[Hashable, ...]]
) -> list[float]:
    """Max-min fair rates (B/s): all rates rise together; those on a full link stay as they are."""
    rates = [0.0] * len(paths)
    rising = set(range(len(paths)))
    left = dict(capacity)
    while rising:
        users = {link: sum(link in paths[f] for f in rising) for link in left}
        rise = min(left[link] / n for link, n in users.items() if n)
        full = {link for link, n in users.items() if n and left[link] / n <= rise * (1 + 1e-12)}
        for flow in rising:
            rates[flow] += rise
        for link, n in users.items():
            left[link] -= n * rise
        rising = {flow for flow in rising if not full & set(paths[flow])}
    return rates


def weighted_max_min_rates(
    capacity: Mapping[Hashable, float], uses: Sequence[Mapping[Hashable, float]]
) -> list[float]:
    """As `max_min_rates`, a flow of rate r taking r times its weight of each link it uses."""
    rates = [0.0] * len(uses)
    rising = set(range(len(uses)))
    left = dict(capacity)
    while rising:
        loads = {link: sum(uses[f].get(link, 0.0) for f in rising) for link in left}
        shares = {link: left[link] / load for link, load in loads.items() if load}
        rise = min(shares.values())
        full = {link for link, share in shares.items() if share <= rise * (1 + 1e-12)}
        for flow in rising:
            rates[flow] += rise
        for link, load in loads.items():
            left[link] -= load * rise
        rising = {flow for flow in rising if not full & set(uses[flow])}
    return rates


def fluid(capacity: Mapping[Hashable, float], flows: Sequence[Flow]) -> list[float]:
    """Finish times (s) of flows at max-min fair rates, from event to event."""
    left = [flow.size_bytes for flow in flows]
    finish = [-1.0] * len(flows)
    now = 0.0
    waiting = set(range(len(flows)))
    active: set[int] = set()
    while waiting or active:
        order = sorted(active)
        rates = max_min_rates(capacity, [flows[f].links for f in order])
        steps = [left[f] / rate for f, rate in zip(order, rates, strict=True)]
        next_start = min((flows[f].on_wire_s for f in waiting), default=float("inf"))
        step = min([*steps, next_start - now])
        for f, rate in zip(order, rates, strict=True):
            left[f] -= rate * step
        now = next_start if step == next_start - now else now + step
        for f in order:
            if left[f] <= 1e-13 * flows[f].size_bytes:
                finish[f] = now
                active.discard(f)
        begun = {f for f in waiting if flows[f].on_wire_s <= now}
        waiting -= begun
        active |= begun
    return finish


def on_wire(message_bytes: float, half_size_bytes: float, efficiency: float) -> float:
    """Bytes that a message puts on a link: m / efficiency and a ramp that doubles half_size."""
    return (message_bytes + (half_size_bytes * message_bytes) ** 0.5) / efficiency


# --- computing ---------------------------------------------------------------------------


def roofline(
    flops: float,
    moved_bytes: float,
    flops_per_s: float,
    bytes_per_s: float,
    launches: int,
    launch_overhead_s: float,
) -> float:
    """Seconds of a kernel: the slower of computing and moving, and its launches."""
    return launches * launch_overhead_s + max(flops / flops_per_s, moved_bytes / bytes_per_s)


class Rates(NamedTuple):
    """What kernels run at: FLOP/s for 16-bit weights, B/s of memory, seconds per launch."""

    flops_per_s: float
    bytes_per_s: float
    launch_s: float


def gqa_attention(
    rates: Rates, rows: int, hidden: int, heads: int, kv_heads: int, head: int, keys: int, gate: int
) -> float:
    """Seconds of attention in decode, all in 16 bit.

    Projections, scores over `keys` cached tokens of every row, a gate for `gate` experts (0: none).
    """
    inner = 2 * (heads + kv_heads) * head  # Q, K, V and what goes into O
    moved = 2.0 * (hidden * inner + rows * (2 * hidden + inner))
    seconds = roofline(2.0 * hidden * inner * rows, moved, *rates[:2], 2, rates.launch_s)
    moved = 2.0 * 2 * kv_heads * head * keys * rows
    seconds += roofline(4.0 * heads * head * keys * rows, moved, *rates[:2], 1, rates.launch_s)
    if gate:
        moved = 2.0 * (hidden * gate + rows * hidden)
        seconds += roofline(2.0 * hidden * gate * rows, moved, *rates[:2], 1, rates.launch_s)
    return seconds


def gated_ffn(rates: Rates, rows: int, active: int, hidden: int, intermediate: int) -> float:
    """Seconds of a gated FFN of `active` weight sets, in 16 bit, with `rows` rows together."""
    parameters = 3 * hidden * intermediate
    moved = 2.0 * (active * parameters + rows * (2 * hidden + 3 * intermediate))
    return roofline(2.0 * parameters * rows, moved, *rates[:2], 2, rates.launch_s)


def lm_head(rates: Rates, rows: int, hidden: int, vocab: int) -> float:
    """Seconds of the logits, in 16 bit."""
    moved = 2.0 * (hidden * vocab + rows * (hidden + vocab))
    return roofline(2.0 * hidden * vocab * rows, moved, *rates[:2], 1, rates.launch_s)


def pipeline(first_s: float, second_s: float, count: int) -> float:
    """Seconds of `count` equal pieces through two stages, each one piece at a time."""
    return first_s + (count - 1) * max(first_s, second_s) + second_s


def free_network_step(
    attention_s: Sequence[float],
    head_s: Sequence[float],
    experts_s: Sequence[Sequence[float]],
    sends: Sequence[Iterable[tuple[int, int]]],
) -> float:
    """Seconds of a step when nothing takes time but kernels.

    `attention_s`, `head_s` [gpus]; `experts_s` [layers][gpus]; `sends` [layers] pairs (from, to).
    A GPU computes its experts when all who send to it have done their attention, and goes on when
    all to whom it sent have computed.
    """
    ready = [0.0] * len(attention_s)
    for layer_s, pairs in zip(experts_s, sends, strict=True):
        given = [set() for _ in ready]  # type: list[set[int]]
        for source, target in pairs:
            given[source].add(target)
        attended = [r + a for r, a in zip(ready, attention_s, strict=True)]
        computed = [
            max([attended[g]] + [attended[s] for s in range(len(ready)) if g in given[s]])
            + layer_s[g]
            for g in range(len(ready))
        ]
        ready = [max([computed[g]] + [computed[t] for t in given[g]]) for g in range(len(ready))]
    return max(r + h for r, h in zip(ready, head_s, strict=True))


# --- routing and memory ------------------------------------------------------------------


def tokens_between(
    ids: Sequence[Sequence[int]], source: Sequence[int], owner: Sequence[int], group: int, gpus: int
) -> list[list[int]]:
    """Tokens from GPU to GPU, [gpus][gpus], each once however many of its experts are there.

    `ids` [tokens][k], -1 = none; `owner` [experts], GPU within its group of `group` GPUs.
    """
    pairs = [[0] * gpus for _ in range(gpus)]
    for chosen, gpu in zip(ids, source, strict=True):
        first = gpu - gpu % group
        for target in {first + owner[expert] for expert in chosen if expert >= 0}:
            pairs[gpu][target] += 1
    return pairs


def rows_per_expert(
    ids: Sequence[Sequence[int]], source: Sequence[int], owner: Sequence[int], group: int, gpus: int
) -> list[list[int]]:
    """Rows that each GPU computes for each expert, [gpus][experts]."""
    rows = [[0] * len(owner) for _ in range(gpus)]
    for chosen, gpu in zip(ids, source, strict=True):
        first = gpu - gpu % group
        for expert in chosen:
            if expert >= 0:
                rows[first + owner[expert]][expert] += 1
    return rows


def lru_hits(accesses: Iterable[Hashable], capacity: int) -> int:
    """Hits of an LRU cache that begins empty."""
    held: OrderedDict[Hashable, None] = OrderedDict()
    hits = 0
    for item in accesses:
        if item in held:
            hits += 1
            held.move_to_end(item)
            continue
        if len(held) == capacity:
            held.popitem(last=False)
        held[item] = None
    return hits
