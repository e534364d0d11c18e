"""Which experts of the layers to come to fetch ahead.

A prefetcher is made once per run from a `Setup` and called once per micro-batch, layer and layer
ahead (`Past.ahead` = 1 up to `prefetch_depth`), when the gates of all GPUs have spoken. It sees the
past only (`Past`); those listed in `ORACLES` are also handed the truth of the layer asked for. It
answers with a list of experts per GPU, most wanted first; the engine fetches what is not there, as
far as slots and budget go. In the last layer, which only the others are shown, the answer is not
used.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import index
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.policies.cooccurrence import count_transitions, follow

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]
Ids = NDArray[np.int16]
Int32s = NDArray[np.int32]
Longs = NDArray[np.int64]

ASKED_ROWS = float(np.log(2.0))  # expected rows at which the chance of at least one is one half
TOKENS = 4  # that `history` looks back, unless it is told otherwise (ours)


class Setup(NamedTuple):
    """What a prefetcher may know beforehand.

    serves: bool [layers, gpus, experts], which experts a GPU may have to compute. group: int32
    [gpus], its expert-parallel group, or the GPU itself where weights travel. slots: experts of one
    layer that a GPU can keep. argument: the number after the name ("synthetic:0.8"), None if none.
    rng: the prefetcher's own stream.
    """

    layers: int
    experts: int
    serves: Bools
    group: Int32s
    slots: int
    argument: float | None
    rng: np.random.Generator


class Past(NamedTuple):
    """What has happened: `ids` int16 [tokens, k] of this layer, `before` of the layer before it
    (None in the first), `rows` int32 [gpus, experts] of this layer; `source_gpu`, `request` int32
    [tokens]: where each token is, and of which request. Asked for is layer `layer + ahead`.
    """

    microbatch: int
    layer: int
    ids: Ids
    before: Ids | None
    rows: Int32s
    source_gpu: Int32s
    request: Int32s
    ahead: int = 1


class Future(NamedTuple):
    """What the layer asked for will need: `rows` int32 [gpus, experts]."""

    rows: Int32s


Prefetcher = Callable[[Past, Future | None], list[list[int]]]
Maker = Callable[[Setup], Prefetcher]


def made(maker: Maker, setup: Setup) -> Prefetcher:
    """The prefetcher that `maker` makes; InputError where a function of the user's makes none, and
    when it answers with anything but a list of experts for each GPU.
    """
    predict: object = maker(setup)
    name, gpus = getattr(maker, "__name__", maker), len(setup.group)
    if not callable(predict):
        raise InputError(
            f"prefetch {name}: returned {predict!r:.40}; write a function that returns a function "
            "(past, future) -> experts of each GPU"
        )
    if maker in PREFETCHERS.values():
        return predict

    def checked(past: Past, future: Future | None) -> list[list[int]]:
        answer = predict(past, future)
        if past.layer + past.ahead >= setup.layers:  # not used
            return []
        try:
            found = [list(dict.fromkeys(map(index, experts))) for experts in answer]
        except TypeError:
            found = []
        if len(found) != gpus or not all(0 <= e < setup.experts for mine in found for e in mine):
            raise InputError(
                f"prefetch {name}: answered {answer!r:.40}; return a list of experts, 0 to "
                f"{setup.experts - 1}, for each of {gpus} GPUs"
            )
        return found

    return checked


def oracle(setup: Setup) -> Prefetcher:
    """Knows the layer asked for: the bound for every predictor that looks as far ahead."""

    def predict(_: Past, future: Future | None) -> list[list[int]]:
        assert future is not None
        return [
            np.argsort(-row, kind="stable")[: np.count_nonzero(row)].tolist() for row in future.rows
        ]

    return predict


def synthetic(setup: Setup) -> Prefetcher:
    """Right with the stated accuracy.

    Each expert that will be needed is named with that probability, else another of the GPU's
    experts is named: one that is not needed, if there is one.
    """
    accuracy = 1.0 if setup.argument is None else setup.argument

    def predict(past: Past, future: Future | None) -> list[list[int]]:
        answers = []
        serves = setup.serves[min(past.layer + past.ahead, setup.layers - 1)]
        for named, mine in zip(oracle(setup)(past, future), serves, strict=True):
            others = np.setdiff1d(np.flatnonzero(mine), named)
            right = setup.rng.random(len(named)) < accuracy
            wrong = setup.rng.permutation(others)[: np.count_nonzero(~right)]
            answers.append([e for e, r in zip(named, right, strict=True) if r] + wrong.tolist())
        return answers

    return predict


def markov(setup: Setup) -> Prefetcher:
    """A first-order Markov model from layer to layer, counted as the run goes.

    count[l, a, b] is how often a token that took expert a in layer l took b in layer l + 1. A
    token's chance of b is the mean over its experts a of count[a, b] / (uses[a] + 1), which does
    not trust what was seen once; a GPU's expected rows of b are the sum over the tokens of its
    group. It asks for b if the chance of at least one row, 1 - exp(-expected rows), is above one
    half. Further ahead the rows expected of one layer stand for those taken in it.
    """
    counts = np.zeros((setup.layers, setup.experts, setup.experts), dtype=np.float32)
    uses = np.zeros((setup.layers, setup.experts), dtype=np.float32)
    members = _members(setup)

    def predict(past: Past, _: Future | None) -> list[list[int]]:
        if past.before is not None and past.ahead == 1:
            count_transitions(past.before, past.ids, counts[past.layer - 1], uses[past.layer - 1])
        expected = (members @ past.rows).astype(np.float64)  # [groups, experts]
        for layer in range(past.layer, past.layer + past.ahead):
            after = np.empty_like(expected)
            follow(expected, uses[layer], counts[layer], past.ids.shape[1], after)
            expected = after
        wanted = np.where(_serves(setup, past), expected[setup.group], 0.0)
        return _most_wanted(setup, wanted, ASKED_ROWS)

    return predict


def popularity(setup: Setup) -> Prefetcher:
    """What the tokens of a GPU's group have taken most often in that layer so far, as many as there
    are slots.
    """
    members = _members(setup)
    taken = np.zeros((setup.layers, len(members), setup.experts), dtype=np.int64)

    def predict(past: Past, _: Future | None) -> list[list[int]]:
        if past.ahead == 1:
            taken[past.layer] += (members @ past.rows).astype(np.int64)
        target = min(past.layer + past.ahead, setup.layers - 1)
        return _most_wanted(setup, np.where(_serves(setup, past), taken[target][setup.group], 0))

    return predict


def history(setup: Setup) -> Prefetcher:
    """What the last tokens of the same requests took in that layer, most often taken first.

    `history:n` looks back n tokens of each request. The requests seen last are remembered, four
    times as many as a micro-batch holds.
    """
    depth = TOKENS if setup.argument is None else int(setup.argument)
    gpus, groups = len(setup.group), int(setup.group.max()) + 1
    row_of: dict[int, int] = {}  # of each request, the one not seen for longest first
    kept = np.full((0, setup.layers, depth, 1), -1, dtype=np.int16)  # [rows, layers, depth, k]
    batches: dict[int, tuple[Longs, list[Longs]]] = {}

    def begin(past: Past) -> tuple[Longs, list[Longs]]:
        """Row of each token's request, and the tokens that are the first of theirs, the second, ...
        (of a long prompt the last ones only).
        """
        nonlocal kept
        requests, inverse, counts = np.unique(past.request, return_inverse=True, return_counts=True)
        if len(kept) < 4 * len(requests):
            shape = (4 * len(requests), setup.layers, depth, past.ids.shape[1])
            more = np.full(shape, -1, dtype=np.int16)
            more[: len(kept)] = kept
            kept = more
        mine = {request: row_of.pop(request, -1) for request in requests.tolist()}
        for request, row in mine.items():
            if row < 0:
                used = len(row_of) + sum(1 for other in mine.values() if other >= 0)
                mine[request] = used if used < len(kept) else row_of.pop(next(iter(row_of)))
                kept[mine[request]] = -1
        row_of.update(mine)
        inverse = inverse.ravel()
        order = np.argsort(inverse, kind="stable")
        nth = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        nth -= np.repeat(np.maximum(counts - depth, 0), counts)
        tokens = [order[nth == n] for n in range(int(min(counts.max(initial=0), depth)))]
        return np.array(list(mine.values()), dtype=np.int64)[inverse], tokens

    def predict(past: Past, _: Future | None) -> list[list[int]]:
        if past.layer == 0 and past.ahead == 1:
            batches[past.microbatch] = begin(past)
        row, following = batches[past.microbatch]
        if past.ahead == 1:
            for tokens in following:
                at = row[tokens]
                kept[at, past.layer, 1:] = kept[at, past.layer, :-1]
                kept[at, past.layer, 0] = past.ids[tokens]
        wanted = np.zeros((groups, setup.experts))
        # A request counts once on each GPU that has tokens of it.
        mine, gpu = np.divmod(np.unique(row * gpus + past.source_gpu), gpus)
        took = kept[mine, min(past.layer + past.ahead, setup.layers - 1)]
        took = took.reshape(len(mine), depth * past.ids.shape[1])
        group = np.broadcast_to(setup.group[gpu][:, None], took.shape)
        known = took >= 0
        np.add.at(wanted, (group[known], took[known]), 1.0)
        return _most_wanted(setup, np.where(_serves(setup, past), wanted[setup.group], 0.0))

    return predict


def nothing(setup: Setup) -> Prefetcher:
    """Asks for nothing."""
    empty: list[list[int]] = [[] for _ in setup.group]
    return lambda _past, _future: empty


def _members(setup: Setup) -> Floats:
    """Which GPUs are in which group, float32 [groups, gpus]."""
    members = np.arange(int(setup.group.max()) + 1)[:, None] == setup.group
    return np.asarray(members, dtype=np.float32)


def _serves(setup: Setup, past: Past) -> Bools:
    """Which experts GPUs serve in the layer asked for, bool [gpus, experts]."""
    served: Bools = setup.serves[min(past.layer + past.ahead, setup.layers - 1)]
    return served


def _most_wanted(
    setup: Setup, wanted: NDArray[np.float32] | Longs, above: float = 0.0
) -> list[list[int]]:
    """Per GPU the experts wanted more than `above`, [gpus, experts], as many as slots, in order."""
    order = np.argsort(-wanted, axis=1, kind="stable")[:, : setup.slots]
    likely = wanted > above
    return [row[likely[gpu, row]].tolist() for gpu, row in enumerate(order)]


PREFETCHERS: dict[str, Maker] = {
    "none": nothing,
    "popularity": popularity,
    "markov": markov,
    "learned": markov,  # the name that workloads written before there were others have
    "history": history,
    "oracle": oracle,
    "synthetic": synthetic,
}
ORACLES = frozenset({"oracle", "synthetic"})
