"""Which experts of the next layer to fetch ahead.

A prefetcher is made once per run from a `Setup` and called once per micro-batch and layer, when
the gates of all GPUs have spoken. It sees the past only (`Past`); those listed in `ORACLES` are
also handed the truth of the next layer. It answers with a list of experts per GPU, most wanted
first; the engine fetches what is not there, as far as the slots go. In the last layer, which only
the others are shown, the answer is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.policies.cooccurrence import count_transitions

Ids = NDArray[np.int16]
Rows = NDArray[np.int32]


class Setup(NamedTuple):
    """What a prefetcher may know beforehand.

    serves: bool [gpus, experts], which experts a GPU may have to compute. group: int32 [gpus],
    its expert-parallel group, or the GPU itself where weights travel. argument: the number after
    the name ("synthetic:0.8"), None if none. rng: the prefetcher's own stream.
    """

    layers: int
    experts: int
    serves: NDArray[np.bool_]
    group: NDArray[np.int32]
    slots: int
    argument: float | None
    rng: np.random.Generator


class Past(NamedTuple):
    """What has happened: `ids` int16 [tokens, k] of this layer, `before` of the layer before it
    (None in the first), `rows` int32 [gpus, experts] of this layer.
    """

    microbatch: int
    layer: int
    ids: Ids
    before: Ids | None
    rows: Rows


class Future(NamedTuple):
    """What the next layer will need: `rows` int32 [gpus, experts]."""

    rows: Rows


Prefetcher = Callable[[Past, Future | None], list[list[int]]]
Maker = Callable[[Setup], Prefetcher]


def oracle(setup: Setup) -> Prefetcher:
    """Knows the next layer: the bound for every predictor that looks one layer ahead."""

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
        for named, serves in zip(oracle(setup)(past, future), setup.serves, strict=True):
            others = np.setdiff1d(np.flatnonzero(serves), named)
            right = setup.rng.random(len(named)) < accuracy
            wrong = setup.rng.permutation(others)[: np.count_nonzero(~right)]
            answers.append([e for e, r in zip(named, right, strict=True) if r] + wrong.tolist())
        return answers

    return predict


def learned(setup: Setup) -> Prefetcher:
    """A first-order Markov model from layer to layer, counted as the run goes.

    count[l, a, b] is how often a token that took expert a in layer l took b in layer l + 1. A
    token's chance of b is the mean over its experts a of count[a, b] / (uses[a] + 1), which does
    not trust what was seen once; a GPU's expected rows of b are the sum over the tokens of its
    group. It asks for b if the chance of at least one row, 1 - exp(-expected rows), is above one
    half.
    """
    counts = np.zeros((setup.layers, setup.experts, setup.experts), dtype=np.float32)
    uses = np.zeros((setup.layers, setup.experts), dtype=np.float32)
    members = setup.group[:, None] == np.arange(setup.group.max() + 1)
    asked_rows = float(np.log(2.0))  # expected rows at which that chance is one half

    def predict(past: Past, _: Future | None) -> list[list[int]]:
        if past.before is not None:
            count_transitions(past.before, past.ids, counts[past.layer - 1], uses[past.layer - 1])
        seen = uses[past.layer]
        taken = members.T.astype(np.float32) @ past.rows  # [groups, experts]
        # A token votes once through each of its k experts: the mean of the votes is its chance.
        expected = (taken / (seen + 1.0)) @ counts[past.layer] / past.ids.shape[1]
        wanted = np.where(setup.serves, expected[setup.group], 0.0)
        order = np.argsort(-wanted, axis=1, kind="stable")[:, : setup.slots]
        likely = wanted > asked_rows
        return [row[likely[gpu, row]].tolist() for gpu, row in enumerate(order)]

    return predict


def nothing(setup: Setup) -> Prefetcher:
    """Asks for nothing."""
    empty: list[list[int]] = [[] for _ in setup.serves]
    return lambda _past, _future: empty


PREFETCHERS: dict[str, Maker] = {
    "none": nothing,
    "learned": learned,
    "oracle": oracle,
    "synthetic": synthetic,
}
ORACLES = frozenset({"oracle", "synthetic"})
