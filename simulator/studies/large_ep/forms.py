"""Closed forms of the study `large-ep`: what TP x PP and EP cost, from FLOPs, bytes and rates.

    compute    2 matrices hidden intermediate FLOPs per token and expert, at a large GEMM's rate
    TP x PP    a stage: layers / pp times (compute on tp GPUs + all-reduce of the micro-batch);
               a batch of m micro-batches: (m + p - 1) stages + (p - 1) sends
    EP         layers times (dispatch + compute + combine), or the longer of both side by side
    all-reduce ring 2 (n - 1) / n, in the switch (n + 1) / n of the tensor per GPU and direction
    dispatch   a token goes to each GPU that holds one of its experts, once (`visits`)

The rates are those of the GPU catalogue and of the transport's fit; nothing is fitted here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb
from typing import NamedTuple

from simulator.results.summary import number
from simulator.studies.common.claims import Published, solve

ELEMENT_BYTES = 2.0  # BF16


class Point(NamedTuple):
    """All that the forms take; rates in SI units, of one direction, after efficiencies.

    matrices: of an expert (2: up and down); network_bytes_per_s: of one GPU's NIC, 0 if all GPUs
    are on one switch; allreduce: bytes per GPU and direction over the tensor's, `ring` or `nvls`;
    baseline_share: share of the compute rate that the baseline's kernels reach.
    """

    tokens: float
    hidden: float
    intermediate: float
    matrices: float
    layers: float
    top_k: int
    experts: int
    gpus: int
    gpus_per_node: int
    flops_per_s: float
    dispatch_bytes_per_s: float
    allreduce_bytes_per_s: float
    send_bytes_per_s: float
    network_bytes_per_s: float
    in_switch: bool
    tp: int
    pp: int
    microbatches: float
    overlapped: bool
    baseline_share: float = 1.0


def ring_volume(ranks: int) -> float:
    """Bytes that a GPU sends in a ring all-reduce, over those of the tensor."""
    return 2.0 * (ranks - 1) / ranks


def switch_volume(ranks: int) -> float:
    """Bytes that a GPU sends when the switch adds up, over those of the tensor."""
    return (ranks + 1) / ranks


def bubble(microbatches: float, stages: float) -> float:
    """Time of one flushed batch over that of a full pipeline."""
    return (microbatches + stages - 1.0) / microbatches


def visits(gpus: int, experts: int, top_k: int) -> float:
    """GPUs that a token goes to under uniform routing, its own included."""
    held = experts // gpus
    return gpus * (1.0 - comb(experts - held, top_k) / comb(experts, top_k))


def token_flops(at: Point) -> float:
    """FLOPs of one token in one layer."""
    return 2.0 * at.matrices * at.hidden * at.intermediate * at.top_k


def token_bytes(at: Point) -> float:
    """Bytes of one token's activations."""
    return at.hidden * ELEMENT_BYTES


def stage_s(at: Point) -> float:
    """One micro-batch in one stage of TP x PP."""
    tokens = at.tokens / at.microbatches
    compute_s = tokens * token_flops(at) / at.tp / (at.flops_per_s * at.baseline_share)
    volume = switch_volume(at.tp) if at.in_switch else ring_volume(at.tp)
    reduce_s = volume * tokens * token_bytes(at) / at.allreduce_bytes_per_s if at.tp > 1 else 0.0
    return at.layers / at.pp * (compute_s + reduce_s)


def send_s(at: Point) -> float:
    """One micro-batch between two stages, every rank all of it to the rank of its own number."""
    moved = at.tokens / at.microbatches * token_bytes(at)
    return moved / (at.network_bytes_per_s or at.send_bytes_per_s)


def baseline_s(at: Point) -> float:
    """A flushed batch by TP x PP."""
    m, p = at.microbatches, at.pp
    return (m + p - 1.0) * stage_s(at) + (p - 1.0) * send_s(at)


def sent_bytes(at: Point) -> tuple[float, float]:
    """Bytes that a GPU sends in one dispatch (or combine): within its node, and to others."""
    ep = min(at.gpus, at.experts)
    away = visits(ep, at.experts, at.top_k) * (ep - 1) / ep
    total = at.tokens / at.gpus * away * token_bytes(at)
    if not at.network_bytes_per_s or ep == 1:
        return total, 0.0
    near = (min(at.gpus_per_node, ep) - 1) / (ep - 1)
    return total * near, total * (1.0 - near)


def expert_s(at: Point) -> tuple[float, float]:
    """Computing, and dispatch and combine together, of one layer by EP."""
    compute_s = at.tokens / at.gpus * token_flops(at) / at.flops_per_s
    near, far = sent_bytes(at)
    moving_s = near / at.dispatch_bytes_per_s
    if far:
        moving_s = max(moving_s, far / at.network_bytes_per_s)
    return compute_s, 2.0 * moving_s


def proposed_s(at: Point) -> float:
    """A batch by EP."""
    compute_s, moving_s = expert_s(at)
    each = max(compute_s, moving_s) if at.overlapped else compute_s + moving_s
    return at.layers * each


def speedup(at: Point) -> float:
    """Throughput of EP over that of TP x PP on `tp pp` GPUs."""
    return baseline_s(at) / proposed_s(at)


def compute_bound_speedup(at: Point) -> float:
    """What EP would give if nothing but its own computing took time: no EP can give more."""
    return baseline_s(at) / (at.layers * expert_s(at)[0])


def utilisation(at: Point, nvlink_bytes_per_s: float, network_bytes_per_s: float) -> float:
    """Mean use of the links between GPUs by EP, raw bandwidth of one direction: of the network
    between nodes if there is one, else of NVLink.
    """
    near, far = sent_bytes(at)
    time_s = proposed_s(at)
    if at.network_bytes_per_s:
        return 2.0 * at.layers * far / (network_bytes_per_s * time_s)
    return 2.0 * at.layers * near / (nvlink_bytes_per_s * time_s)


def memory_bytes(at: Point, shared_by: int) -> dict[str, float]:
    """Of one GPU of EP: weights of its experts, and input, output and intermediate of the tokens
    that are shared by so many GPUs (1: the published sum, which splits nothing).
    """
    tokens = at.tokens / shared_by
    held = max(at.experts // at.gpus, 1)
    return {
        "experts": at.layers * held * at.matrices * at.hidden * at.intermediate * ELEMENT_BYTES,
        "input": tokens * token_bytes(at),
        "output": tokens * token_bytes(at),
        "intermediate": tokens * at.top_k * at.intermediate * ELEMENT_BYTES,
    }


# --- What would have to be true ----------------------------------------------------------

_GRID = [10.0 ** (step / 20.0) for step in range(-60, 61)]


def _times(field: str) -> Callable[[Point, float], Point]:
    return lambda at, x: at._replace(**{field: getattr(at, field) * x})


KNOBS: tuple[tuple[str, Callable[[Point, float], Point], Sequence[float], float], ...] = (
    (
        "m = {}",
        lambda at, x: at._replace(microbatches=x),
        [1.0 + step / 20.0 for step in range(1260)],
        0.0,
    ),
    ("all-reduce bandwidth x {}", _times("allreduce_bytes_per_s"), _GRID, 1.0),
    ("baseline's kernels x {}", _times("baseline_share"), _GRID, 1.0),
)


def holds_at(at: Point, claim: Published) -> str:
    """The nearest value of each single assumption at which the speed-up is the claimed one; the
    others stay as they are.
    """
    found = []
    for told, replaced, grid, start in KNOBS:

        def value(x: float, change: Callable[[Point, float], Point] = replaced) -> float:
            return speedup(change(at, x))

        x = solve(value, grid, claim, start or at.microbatches)
        if x is not None:
            found.append(told.format(number(x)))
    if not found:
        return "no value of any one assumption"
    return " or ".join(found)
