"""Who sends what to whom in a collective operation; what the wires make of it is not asked here.

Each algorithm is a plain function in `COLLECTIVES`, which gives the messages of the operation's
phases. The even operations (`UNIFORM`) take the ranks and a size as nccl-tests counts it: bytes of
the buffer that a rank sends (alltoall, sendrecv), reduces (allreduce, reducescatter) or ends up
with (allgather). `dispatch` and `combine` take the ranks, the tokens that each rank sends
(`counted`) and the bytes of one.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.engine.ranks import Ranks
from simulator.engine.rings import depth, parent, placed, rings, shared_nics, through
from simulator.engine.tiers import landing_of, tiers
from simulator.errors import InputError
from simulator.routing.traffic import traffic

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]


class Phase(NamedTuple):
    """Messages that begin together; an operation's phases follow each other.

    source, target: int32 [flows], ranks, or ranks + i for the i-th of `extra`, node names that are
    no ranks. A flow is `messages` messages of `message_bytes` each (float64 [flows]) from one end
    to another; a fraction of a message where each is cut over several rings or trees, as over the
    channels of a transport; what goes over a hop piece after piece is one message. waits:
    float64 [flows], how often the latency of this flow's path
    is paid on top, because bytes go on only where others have arrived; a fraction where several
    flows stand for the same hop.
    """

    source: Ints
    target: Ints
    message_bytes: Floats
    messages: Floats
    waits: Floats
    extra: tuple[str, ...] = ()


class Counts(NamedTuple):
    """Tokens that the ranks send, int32: a token is counted as often as the transport sends it.

    pairs [ranks, ranks]: from rank to rank, if all go there directly; the diagonal stays. nodes
    [ranks, nodes]: from rank to node. choices: (token, expert) choices of the busiest rank. packed:
    all tokens of a flow are one message, otherwise each is one.
    """

    pairs: Ints
    nodes: Ints
    choices: int
    packed: bool


# --- even operations ---------------------------------------------------------------------


def _phase(
    ends: list[tuple[int, int]],
    message_bytes: float,
    messages: float = 1.0,
    hops: float = 1.0,
    extra: tuple[str, ...] = (),
) -> Phase:
    """Equal flows between these ends; a byte makes `hops` of them one after the other."""
    pairs = np.array(ends, dtype=np.int32).reshape(-1, 2)
    flows = len(pairs)
    return Phase(
        source=pairs[:, 0].copy(),
        target=pairs[:, 1].copy(),
        message_bytes=np.full(flows, message_bytes),
        messages=np.full(flows, messages, dtype=np.float64),
        waits=np.full(flows, (hops - 1.0) / max(flows, 1)),
        extra=extra,
    )


def _joined(parts: list[Phase], extra: tuple[str, ...] = ()) -> Phase:
    """Phases that begin at once as one."""
    return Phase(
        np.concatenate([part.source for part in parts]),
        np.concatenate([part.target for part in parts]),
        np.concatenate([part.message_bytes for part in parts]),
        np.concatenate([part.messages for part in parts]),
        np.concatenate([part.waits for part in parts]),
        extra,
    )


def direct(ranks: Ranks, size_bytes: float) -> list[Phase]:
    """Every rank sends a message of size / n to every other one."""
    n = ranks.size
    source, target = np.divmod(np.arange(n * n, dtype=np.int32), np.int32(n))
    apart = source != target
    flows = n * (n - 1)
    return [
        Phase(
            source[apart],
            target[apart],
            np.full(flows, size_bytes / n),
            np.ones(flows),
            np.zeros(flows),
        )
    ]


def two_tier(ranks: Ranks, size_bytes: float) -> list[Phase]:
    """All-to-all in two tiers: one message to each node, to the GPU there of the same local index.

    That GPU hands on what is for its neighbours, a message to each. Both tiers flow at once; a byte
    that takes both pays both latencies.
    """
    n = ranks.size
    pairs = np.full((n, n), 1.0)
    nodes = np.array([[len(there) for there in ranks.members]] * n, dtype=np.float64)
    return [_tiers(ranks, pairs, nodes, size_bytes / n, packed=True)]


def ring_allreduce(ranks: Ranks, size_bytes: float) -> list[Phase]:
    """2 (n - 1) steps of size / n around a ring: reduce-scatter, then all-gather."""
    return _around(ranks, size_bytes, 2 * (ranks.size - 1))


def ring_half(ranks: Ranks, size_bytes: float) -> list[Phase]:
    """All-gather or reduce-scatter: n - 1 steps of size / n around a ring."""
    return _around(ranks, size_bytes, ranks.size - 1)


def _around(ranks: Ranks, size_bytes: float, steps: int) -> list[Phase]:
    """`steps` steps around all rings at once, each with its share of the bytes."""
    found = rings(ranks)
    ends = [end for ring in found for end in ring]
    # A ring that hands over to the GPU beside the NIC has more hops than ranks.
    hops = steps * len(ends) / len(found) / ranks.size
    return [_phase(ends, steps * size_bytes / ranks.size, 1 / len(found), hops)]


def tree(ranks: Ranks, size_bytes: float) -> list[Phase]:
    """All-reduce up and down a double binary tree, pipelined, half of the bytes in each tree.

    Every rank is a leaf in one of the two trees (but one rank, if their number is odd), so that all
    send and receive about twice the size (Sanders, Speck, Traff, "Two-tree algorithms for full
    bandwidth broadcast, reduction and scan", 2009). Across nodes the trees join one GPU per node,
    and a chain the GPUs of each node to it; once for each NIC, as for `rings`.
    """
    if len(ranks.members) == 1:
        return [_double_tree(list(range(ranks.size)), size_bytes)]
    nics = shared_nics(ranks)
    parts = []
    chains: list[tuple[int, int]] = []
    for number in range(nics):
        orders = [list(dict.fromkeys(through(ranks, m, number))) for m in ranks.members]
        part = _double_tree([order[0] for order in orders], size_bytes)
        parts.append(part._replace(messages=part.messages / nics, waits=part.waits / nics))
        for order in orders:
            chains += zip(order[1:], order[:-1], strict=True)
            chains += pairwise(order)
    length = 2 * (max(map(len, ranks.members)) - 1)
    return [_joined([*parts, _phase(chains, size_bytes, 1 / nics, length + 1)])]


def _double_tree(members: list[int], size_bytes: float) -> Phase:
    """Both trees over these ranks, up and down."""
    n = len(members)
    ends: list[tuple[int, int]] = []
    for turned in (False, True):
        for position in range(1, n + 1):
            above = parent(position, n)
            if above:
                low, high = (placed(members, p, turned) for p in (position, above))
                ends += [(low, high), (high, low)]
    deepest = max(depth(position, n) for position in range(1, n + 1))
    return _phase(ends, size_bytes / 2, hops=2.0 * deepest)


def nvls(ranks: Ranks, size_bytes: float) -> list[Phase]:
    """All-reduce in the switch (NVLink SHARP).

    Each rank reduces its n-th of the bytes with loads that the switch answers with the sum over all
    GPUs, and stores the result to all through the switch. A GPU thus sends size / n for each of the
    n loads and once its own result: size (n + 1) / n, and receives as much; without the switch it
    is 2 size (n - 1) / n. So says NCCL's maintainer: algbw = bandwidth on the wire x n / (n + 1)
    (github NVIDIA/nccl-tests pull 239). Four hops: to the switch and back, twice.
    Raises InputError where not all ranks hang on one NVSwitch.
    """
    if ranks.switch is None:
        raise InputError("nvls needs all ranks on one NVSwitch")
    n = ranks.size
    ends = [(rank, n) for rank in range(n)] + [(n, rank) for rank in range(n)]
    return [_phase(ends, size_bytes * (n + 1) / n, 1.0, 4.0, (ranks.switch,))]


def next_rank(ranks: Ranks, size_bytes: float) -> list[Phase]:
    """Every rank sends to the next and receives from the one before, as nccl-tests' sendrecv."""
    n = ranks.size
    return [_phase([(rank, (rank + 1) % n) for rank in range(n)], size_bytes)]


# --- tokens ------------------------------------------------------------------------------


def counted(
    ranks: Ranks, ids: NDArray[np.int16], source: Ints, owner: Ints, deduplicate: str
) -> Counts:
    """Count the tokens that dispatch sends, by the transport's deduplication.

    ids: int16 [tokens, k] chosen experts; source: int32 [tokens], rank of each token, not
    decreasing; owner: int32 [experts], rank of each expert. `none`: a token goes once for each
    expert; `gpu`: once to each rank; `node`: once to each node, and there once to each rank.
    """
    n = ranks.size
    pairs = traffic(ids, source, owner, n, n, deduplicate != "none")[1]
    if deduplicate == "node":
        nodes = traffic(ids, source, ranks.node[owner], n, n)[1][:, : len(ranks.members)]
    else:
        nodes = np.stack([pairs[:, list(there)].sum(axis=1) for there in ranks.members], axis=1)
    choices = int(np.bincount(source, (ids >= 0).sum(axis=1), minlength=n).max())
    return Counts(pairs, nodes.astype(np.int32), choices, deduplicate != "none")


def dispatch_direct(ranks: Ranks, counts: Counts, token_bytes: float) -> list[Phase]:
    """Every rank sends its tokens straight to the ranks of their experts."""
    pairs = counts.pairs.astype(np.float64)
    np.fill_diagonal(pairs, 0.0)
    source, target = np.nonzero(pairs)
    return [_tokens(source, target, pairs[source, target], token_bytes, counts.packed)]


def dispatch_two_tier(ranks: Ranks, counts: Counts, token_bytes: float) -> list[Phase]:
    """Tokens go to each node through the GPU of the same local index there (`two_tier`)."""
    pairs, nodes = counts.pairs.astype(np.float64), counts.nodes.astype(np.float64)
    return [_tiers(ranks, pairs, nodes, token_bytes, counts.packed)]


def combine_direct(ranks: Ranks, counts: Counts, token_bytes: float) -> list[Phase]:
    """Results go back the way that the tokens came."""
    return _reversed(dispatch_direct(ranks, counts, token_bytes))


def combine_two_tier(ranks: Ranks, counts: Counts, token_bytes: float) -> list[Phase]:
    """Results are summed up per node and go back the way that the tokens came."""
    return _reversed(dispatch_two_tier(ranks, counts, token_bytes))


def _reversed(phases: list[Phase]) -> list[Phase]:
    return [p._replace(source=p.target, target=p.source) for p in reversed(phases)]


def _tokens(
    source: NDArray[Any], target: NDArray[Any], count: Floats, token_bytes: float, packed: bool
) -> Phase:
    flows = len(count)
    return Phase(
        source.astype(np.int32),
        target.astype(np.int32),
        count * token_bytes if packed else np.full(flows, token_bytes),
        np.ones(flows) if packed else count,
        np.zeros(flows),
    )


def _tiers(ranks: Ranks, pairs: Floats, nodes: Floats, item_bytes: float, packed: bool) -> Phase:
    """Both tiers of `pairs` [ranks, ranks] items, of which `nodes` [ranks, nodes] cross between."""
    landing = landing_of(ranks.node, ranks.size)
    crossing, within = tiers(ranks.node, landing, pairs, nodes)
    parts = []
    for count in (crossing, within):
        source, target = np.nonzero(count)
        parts.append(_tokens(source, target, count[source, target], item_bytes, packed))
    first, second = parts
    if len(first.source) and len(second.source):
        second = second._replace(waits=np.full(len(second.source), 1 / len(second.source)))
    return _joined([first, second])


Collective = Callable[..., list[Phase]]

COLLECTIVES: dict[str, dict[str, Collective]] = {
    "alltoall": {"direct": direct, "two-tier": two_tier},
    "allreduce": {"ring": ring_allreduce, "tree": tree, "nvls": nvls},
    "allgather": {"ring": ring_half, "direct": direct},
    "reducescatter": {"ring": ring_half, "direct": direct},
    "sendrecv": {"direct": next_rank},
    "dispatch": {"direct": dispatch_direct, "two-tier": dispatch_two_tier},
    "combine": {"direct": combine_direct, "two-tier": combine_two_tier},
}

UNIFORM = ("alltoall", "allreduce", "allgather", "reducescatter", "sendrecv")
"""Operations of a size; the others are of tokens."""


def bus_factor(op: str, ranks: int) -> float:
    """The ratio busbw / algbw as nccl-tests defines it (its doc/PERFORMANCE.md).

    dispatch and combine have that of alltoall.
    """
    if op == "allreduce":
        return 2 * (ranks - 1) / ranks
    return 1.0 if op == "sendrecv" else (ranks - 1) / ranks
