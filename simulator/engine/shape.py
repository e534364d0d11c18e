"""The fixed part of a step: which operations there are and what waits for what.

For every micro-batch, layer and GPU there is a column of operations; chunks repeat the expert
part. What a step does not need (a dense layer's experts, a GPU without tokens) takes no time.

    attention -> [shared FFN]
              -> per chunk: send dispatch ---transfers--> receive -> experts
                            -> send combine ---transfers--> receive -> attention of the next layer

In two tiers, tokens from other nodes land on one GPU, which hands them on to its node: all of the
node wait for what lands there, and results leave it when all have worked.

Where a collective is one flow (`whole` GPUs each), it is the first of them that sends; it waits for
all, and all receive when it ends.

An operation's number is ((microbatch * layers + layer) * KINDS + kind) * gpus + gpu; after these
come a gate per (micro-batch, layer), where all attentions meet, a head per (micro-batch, GPU), and
the end of the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

ATTENTION, SHARED, CHUNK = 0, 1, 2  # kinds; from CHUNK on, six per chunk:
SEND_DISPATCH, RECEIVE_DISPATCH, EXPERTS, SEND_COMBINE, RECEIVE_COMBINE, LANDED = range(6)
PER_CHUNK = 6


@dataclass(frozen=True)
class Shape:
    """Numbers of the operations of a step.

    whole: GPUs of a collective that is one flow, 0: every GPU has its own transfers; node: of each
    GPU, if tokens go in two tiers.
    """

    microbatches: int
    layers: int
    chunks: int
    gpus: int
    whole: int = 0
    node: tuple[int, ...] = ()

    @cached_property
    def kinds(self) -> int:
        """Operations of a GPU per micro-batch and layer."""
        return CHUNK + PER_CHUNK * self.chunks

    @cached_property
    def gates(self) -> int:
        """Number of the first gate."""
        return self.microbatches * self.layers * self.kinds * self.gpus

    @cached_property
    def heads(self) -> int:
        """Number of the first head."""
        return self.gates + self.microbatches * self.layers

    @cached_property
    def end(self) -> int:
        """Number of the end of the step, the last one."""
        return self.heads + self.microbatches * self.gpus

    @property
    def count(self) -> int:
        """How many operations there are."""
        return self.end + 1

    @cached_property
    def grid(self) -> NDArray[np.int32]:
        """Numbers int32 [microbatches, layers, kinds, gpus]."""
        shape = (self.microbatches, self.layers, self.kinds, self.gpus)
        return np.arange(self.gates, dtype=np.int32).reshape(shape)

    def kind(self, chunk: int, what: int) -> int:
        """The kind of a chunk's operation."""
        return CHUNK + PER_CHUNK * chunk + what

    def place(self, op: int) -> tuple[int, int, int, int]:
        """(microbatch, layer, kind, gpu) of an operation below `gates`."""
        op, gpu = divmod(op, self.gpus)
        op, kind = divmod(op, self.kinds)
        microbatch, layer = divmod(op, self.layers)
        return microbatch, layer, kind, gpu

    @cached_property
    def edges(self) -> NDArray[np.int32]:
        """What waits for what, int32 [edges, 2] (from, to), sorted by from, then by chunk.

        Transfers are not among them: they count down the receiver themselves.
        """
        grid = self.grid
        found: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []

        def edge(before: NDArray[np.int32], after: NDArray[np.int32]) -> None:
            a, b = np.broadcast_arrays(before, after)
            found.append((a.ravel(), b.ravel()))

        gates = np.arange(self.gates, self.heads, dtype=np.int32)
        numbers = np.arange(self.heads, self.end, dtype=np.int32)
        heads = numbers.reshape(self.microbatches, self.gpus)
        following = np.concatenate([grid[:, 1:, ATTENTION], heads[:, None]], axis=1)
        edge(grid[:, :, ATTENTION], gates.reshape(self.microbatches, self.layers, 1))
        edge(grid[:, :, ATTENTION], grid[:, :, SHARED])
        edge(grid[:, :, SHARED], following)
        for chunk in range(self.chunks):
            of = [grid[:, :, self.kind(chunk, what)] for what in range(PER_CHUNK)]
            dispatch, combine = (self._sender(of[s]) for s in (SEND_DISPATCH, SEND_COMBINE))
            edge(grid[:, :, ATTENTION], dispatch)
            edge(grid[:, :, ATTENTION], of[RECEIVE_DISPATCH])
            edge(of[RECEIVE_DISPATCH], of[EXPERTS])
            edge(of[EXPERTS], combine)
            if self.node and not self.whole:
                edge(grid[:, :, ATTENTION], of[LANDED])
                for gpu, others in enumerate(self._neighbours()):
                    edge(of[LANDED][..., [gpu]], of[RECEIVE_DISPATCH][..., others])
                    apart = [other for other in others if other != gpu]
                    edge(of[EXPERTS][..., [gpu]], of[SEND_COMBINE][..., apart])
            edge(of[EXPERTS], of[RECEIVE_COMBINE])
            if self.whole:
                edge(dispatch, of[RECEIVE_DISPATCH])
                edge(combine, of[RECEIVE_COMBINE])
            edge(of[RECEIVE_COMBINE], following)
        edge(heads, np.array([self.end], dtype=np.int32))
        edges = np.stack([np.concatenate([p[i] for p in found]) for i in (0, 1)], axis=1)
        order = np.argsort(edges[:, 0], kind="stable")
        return edges[order]

    @cached_property
    def abroad(self) -> NDArray[np.bool_] | None:
        """Which transfers of a dispatch in two tiers cross to another node, bool [gpus, gpus]."""
        if not self.node or self.whole:
            return None
        node = np.array(self.node)
        return np.asarray(node[:, None] != node[None, :])

    def _neighbours(self) -> list[list[int]]:
        """The GPUs of each GPU's node."""
        return [
            [other for other, there in enumerate(self.node) if there == here] for here in self.node
        ]

    def _sender(self, sends: NDArray[np.int32]) -> NDArray[np.int32]:
        """The operation that sends for each GPU, int32 [microbatches, layers, gpus]."""
        return sends[..., np.arange(self.gpus) // self.whole * self.whole] if self.whole else sends

    @cached_property
    def waits(self) -> NDArray[np.int32]:
        """How many edges end at each operation, int32 [count]; 1 for the first layer's attention,
        which the start of the step lets go.
        """
        waits = np.bincount(self.edges[:, 1], minlength=self.count).astype(np.int32)
        waits[self.grid[:, 0, ATTENTION]] = 1
        return waits
