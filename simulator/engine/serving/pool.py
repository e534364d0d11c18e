"""The recorded choices that the tokens of requests follow."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.errors import InputError
from simulator.routing.batches import FILTERS, check_trace, map_layers, synthesize
from simulator.routing.importers import open_trace
from simulator.routing.loads import law_of
from simulator.routing.trace import iter_blocks, read_info
from simulator.spec.load import Inputs

MOST_BYTES = 4 << 30
DRAWN_TOKENS, DRAWN_STRETCH = 16_384, 256


class Pool(NamedTuple):
    """ids int16 [tokens, recorded, k]; row int64 and rows int32 [sequences], where the tokens of
    each recorded sequence begin and how many they are; layer_of int32 [MoE layers], the recorded
    layer of each; notes for the reader.
    """

    ids: NDArray[np.int16]
    row: NDArray[np.int64]
    rows: NDArray[np.int32]
    layer_of: NDArray[np.int32]
    notes: list[str]


def pool_of(inputs: Inputs, seed: int) -> Pool:
    """The choices of a workload's trace, or as many drawn from its law.

    Raises InputError for a trace of another model, or too large to hold.
    """
    workload = inputs.workload
    model, moe = workload.model, workload.model.moe
    layers = model.layers - moe.first_dense_layers
    source = workload.routing.source
    notes: list[str] = []
    if moe.experts == 0:
        nothing = np.zeros((1, 1, 1), dtype=np.int16)
        none = np.zeros(0, dtype=np.int32)
        return Pool(nothing, np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.int32), none, notes)
    law = law_of(source, inputs.trace_path)
    if inputs.trace_path is None or law is not None:
        law = law or source
        ids = next(
            synthesize(law, 1, DRAWN_TOKENS, "prefill", layers, moe.experts, moe.top_k, seed)
        ).ids
        row = np.arange(0, DRAWN_TOKENS, DRAWN_STRETCH, dtype=np.int64)
        rows = np.full(len(row), DRAWN_STRETCH, dtype=np.int32)
        notes.append(f"routing drawn from the law {law}, not recorded")
        every = np.arange(layers, dtype=np.int32)
        return Pool(np.ascontiguousarray(ids), row, rows, every, notes)
    path = open_trace(inputs.trace_path, notes.append)
    info = read_info(path)
    check_trace(info, moe.experts, moe.top_k, source)
    recorded = min(layers, info.layers)
    size = info.tokens * recorded * info.k * 2
    if size > MOST_BYTES:
        raise InputError(
            f"{path}: {size / 2**30:.1f} GiB of choices, and serving holds at most "
            f"{MOST_BYTES >> 30} GiB; cut the trace"
        )
    wanted = FILTERS[workload.routing.tokens]
    ids = np.empty((info.tokens, recorded, info.k), dtype=np.int16)
    request = np.empty(info.tokens, dtype=np.int32)
    filled = 0
    for block in iter_blocks(path):
        keep = slice(None) if wanted is None else block.phase == wanted
        more = block.request[keep]
        request[filled : filled + len(more)] = more
        ids[filled : filled + len(more)] = block.experts[keep, :recorded]
        filled += len(more)
    ids, request = ids[:filled], request[:filled]
    if filled == 0:
        raise InputError(f"{path}: has no {workload.routing.tokens} tokens; write 'any'")
    if (np.diff(request) < 0).any():  # the rows of a request need not be adjacent in a file
        order = np.argsort(request, kind="stable")
        ids, request = ids[order], request[order]
    row = np.flatnonzero(np.concatenate(([True], request[1:] != request[:-1])))
    rows = np.diff(np.append(row, filled)).astype(np.int32)
    notes.append(f"routing recorded on {info.model}: {len(row)} sequences, taken in turn")
    layer_of = map_layers(layers, info.layers, workload.routing.layer_map)
    return Pool(ids, row.astype(np.int64), rows, layer_of, notes)
