"""Closed forms and brute-force references that the tests compare with.

Nothing here imports the simulator: each is written from the definition, slowly and plainly.
"""

from __future__ import annotations

import math
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


def on_wire(
    message_bytes: float,
    half_size_bytes: float,
    efficiency: float,
    peers: int = 1,
    own_piece: float = 0.0,
) -> float:
    """Bytes that a message to one of some peers puts on a link: m / efficiency, a ramp that doubles
    half_size bytes to all peers together, and the peer's part of what the own piece takes.
    """
    ramp = (half_size_bytes / peers * message_bytes) ** 0.5
    return (message_bytes + ramp) * (1.0 + own_piece / peers) / efficiency


# --- computing ---------------------------------------------------------------------------


class Rates(NamedTuple):
    """What GEMMs run at: FLOP/s, B/s, seconds per launch and per doubling of 1 + k / 512.

    `fill`: elements of k that a tile costs besides. Types: bytes of a weight and of an input.
    """

    flops_per_s: float
    bytes_per_s: float
    launch_s: float
    depth_s: float
    fill: float
    weight_bytes: float = 2.0
    input_bytes: float = 2.0
    quantise_bytes_per_s: float = float("inf")


class GroupedRates(NamedTuple):
    """What a fused MoE runs at: FLOP/s and B/s of its GEMMs, seconds before and after them.

    `tile`: most rows of a tile; `passes_bytes_per_s`: of what is no GEMM; `spare`: rows up to which
    a tile is to hold twice the mean load; `depth_s`: per doubling of 1 + k / 512.
    """

    flops_per_s: float
    bytes_per_s: float
    launch_s: float
    fill: float
    tile: int
    passes_bytes_per_s: float
    weight_bytes: float = 2.0
    input_bytes: float = 2.0
    l2_bytes_per_s: float = math.inf
    spare: int = 0
    depth_s: float = 0.0


def rounded_ridge(compute_s: float, memory_s: float) -> float:
    """The fourth root of the sum of fourth powers."""
    return float((compute_s**4 + memory_s**4) ** 0.25)


def gemm(of: Rates, m: int, n: int, k: int) -> float:
    """Seconds of [m, k] x [k, n]: launch, rounded roofline, depth, and quantising the input."""
    moved = n * k * of.weight_bytes + m * k * of.input_bytes + m * n * 2
    seconds = of.launch_s + of.depth_s * math.log(1 + k / 512) / math.log(2)
    seconds += rounded_ridge(2 * m * n * (k + of.fill) / of.flops_per_s, moved / of.bytes_per_s)
    return seconds + 3 * m * k / of.quantise_bytes_per_s


def passed(of: Rates, elements: float) -> float:
    """Seconds of a kernel that reads and writes so many 16-bit elements together."""
    return of.launch_s + 2 * elements / of.bytes_per_s


def heads(of: Rates, scored: float, read_bytes: float) -> float:
    """Seconds of scores and weighted values: 2 FLOPs per multiplication, bytes read and written."""
    return of.launch_s + rounded_ridge(2 * scored / of.flops_per_s, read_bytes / of.bytes_per_s)


def gqa_attention(
    of: Rates, rows: int, hidden: int, heads_: int, kv_heads: int, head: int, keys: int, gate: int
) -> float:
    """Seconds of attention in decode, all in 16 bit.

    Two norms (four passes each), Q K V in one matrix, rotary embedding, scores over `keys` cached
    tokens of every row, output; a gate for `gate` experts (0: none).
    """
    width, inner = heads_ * head, (heads_ + 2 * kv_heads) * head
    seconds = 2 * passed(of, 4 * rows * hidden)
    seconds += gemm(of, rows, inner, hidden) + passed(of, 2 * rows * inner)
    cache = 2 * 2 * kv_heads * head * keys * rows
    seconds += heads(of, 2 * width * keys * rows, cache + 2 * 2 * rows * width)
    seconds += gemm(of, rows, hidden, width)
    return seconds + (gemm(of, rows, gate, hidden) if gate else 0.0)


def gated_ffn(of: Rates, rows: int, hidden: int, intermediate: int) -> float:
    """Seconds of a gated FFN: gate and up in one matrix, activation, down."""
    seconds = gemm(of, rows, 2 * intermediate, hidden) + passed(of, 3 * rows * intermediate)
    return seconds + gemm(of, rows, hidden, intermediate)


def fused_moe(
    of: GroupedRates, tokens: int, rows_of: Sequence[int], hidden: int, intermediate: int
) -> float:
    """Seconds of the experts of a layer, `rows_of` [experts] rows each, for `tokens` that came."""
    rows, active = sum(rows_of), sum(1 for rows in rows_of if rows)
    if not rows:
        return 0.0
    lengths = [length for length in (16, 32, 64, 128, 256) if length <= of.tile] or [of.tile]
    mean = rows / active
    holding = [n for n in lengths if n >= 2 * mean and 2 * mean <= of.spare]
    holding += [n for n in lengths if n >= mean and 2 * mean > of.spare]
    tile = min(holding, default=of.tile)
    tiles = sum(-(-rows // tile) for rows in rows_of)
    seconds = of.launch_s
    for n, k in ((2 * intermediate, hidden), (hidden, intermediate)):
        moved = active * n * k * of.weight_bytes + rows * (k * of.input_bytes + 2 * n)
        computed = 2 * tiles * tile * n * (k + of.fill) / of.flops_per_s
        # A tile of 128 columns of the weights reads these and its rows.
        fed = 128 * of.weight_bytes + tile * of.input_bytes
        fed *= tiles * n / 128 * (k + of.fill) / of.l2_bytes_per_s
        seconds += rounded_ridge(max(computed, fed), moved / of.bytes_per_s)
        seconds += of.depth_s * math.log2(1 + k / 512)
    # Tokens written, and quantised if need be; rows gathered, added up, and through the activation.
    moved = tokens * hidden * (2 + (2 + of.input_bytes if of.input_bytes < 2 else 0))
    moved += rows * (hidden * (2 * of.input_bytes + 2) + intermediate * (4 + of.input_bytes))
    return seconds + moved / of.passes_bytes_per_s


def lm_head(of: Rates, rows: int, hidden: int, vocab: int) -> float:
    """Seconds of the last norm and the logits, in 16 bit."""
    return passed(of, 4 * rows * hidden) + gemm(of, rows, vocab, hidden)


def expected_tokens(guesses: int, acceptance: float) -> float:
    """Tokens per step of draft and verify, summed over how many guesses are right."""
    right = [acceptance**n * (1 - acceptance) for n in range(guesses)] + [acceptance**guesses]
    return sum((n + 1) * p for n, p in enumerate(right))


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


# --- plans -------------------------------------------------------------------------------


def pipeline_slowdown(microbatches: int, stages: int, interleave: int = 1) -> float:
    """Time of one flushed batch over that of a pipeline that is always full.

    Equal micro-batches m and stages p, each stage holding v parts of the model: p - 1 parts of a
    stage pass before the last one has work, so (m + (p - 1) / v) / m.
    """
    return (microbatches + (stages - 1) / interleave) / microbatches


def ring_allreduce_sent(ranks: int, size_bytes: float) -> float:
    """Bytes that each rank sends in a ring all-reduce: n - 1 parts of S / n, twice."""
    return 2 * (ranks - 1) / ranks * size_bytes


def chain_of_servers(items: int, service_s: Sequence[float], delay_s: Sequence[float]) -> float:
    """When the last of `items` leaves a chain of servers, all waiting at the first from the start.

    Each server takes one item at a time for `service_s`, and `delay_s` pass before an item comes to
    it. The last item leaves when the first would, and (items - 1) times the slowest service later.
    """
    return sum(service_s) + sum(delay_s) + (items - 1) * max(service_s)
