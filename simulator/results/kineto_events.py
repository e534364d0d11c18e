"""Spans as the text of Kineto events: launches, kernels, flow arrows, counters.

All rows of a block are made at once, as one Arrow array of text [rows], whose bytes are written as
they lie. Every text begins with a comma and a line end, so that pieces can follow one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from simulator.runfiles.spans import (
    COMBINE,
    COMM,
    COMPUTE,
    COPY,
    DISPATCH,
    EXPERTS,
    KINDS,
    REBALANCE,
    SEND,
)
from simulator.runfiles.tables import Columns

HOST_PID = 1_000_000
"""Plus the GPU's index: process of its launches and step marks. Kernels lie in the process of that
index. So a viewer that is given the traces of several ranks keeps them apart.
"""

STEP_TID = 0

Ints = npt.NDArray[np.int64]
Texts = tuple[npt.NDArray[np.int32], memoryview]
"""Texts [rows]: where each begins [rows + 1], and the bytes of all."""


def stream_id(stream: Any) -> Any:
    """The `tid` and `args.stream` of a stream (of `STREAMS`); 0 is the row of the step marks."""
    return stream + 1


def kernel_name(stream: int, kind: int) -> str:
    """A name by which readers tell communication, copies and compute apart."""
    name = KINDS[kind]
    if stream == COMM:
        return f"ncclDevKernel_{name}"
    if stream != COPY:
        return name
    return f"Memcpy PtoP ({name})" if kind in (SEND, REBALANCE) else f"Memcpy HtoD ({name})"


def kernels(spans: Columns, begin: Ints, end: Ints, correlation: Ints, stream: int) -> Texts:
    """Each span [rows] of one stream as its launch and its kernel, from begin to end in us."""
    tid = stream_id(stream)
    low = int(spans["gpu"].min())
    gpus = range(low, int(spans["gpu"].max()) + 1)
    # Made once for each GPU and kind, which are few beside the rows.
    which = spans["gpu"].astype(np.int64) - low
    launched = [
        ',\n{"ph":"X","cat":"cuda_runtime","name":"cudaLaunchKernel",'
        f'"pid":{HOST_PID + gpu},"tid":{tid},"ts":'
        for gpu in gpus
    ]
    names = [kernel_name(stream, kind) for kind in range(len(KINDS))]
    ran = [
        f'}}}},\n{{"ph":"X","cat":"kernel","name":"{name}","pid":{gpu},"tid":{tid},"ts":'
        for gpu in gpus
        for name in names
    ]
    where = [f',"args":{{"device":{gpu},"stream":{tid},"correlation":' for gpu in gpus]
    at, link = _number(begin), _number(correlation)
    pieces: list[Any] = [
        _taken(launched, which), at, ',"dur":1,"args":{"correlation":', link,
        _taken(ran, which * len(KINDS) + spans["kind"]), at, ',"dur":', _number(end - begin),
        _taken(where, which), link,
        ',"layer":', _number(spans["layer"]), ',"microbatch":', _number(spans["microbatch"]),
        *_details(spans, stream), "}}",
    ]  # fmt: skip
    return _joined(pieces)


def _details(spans: Columns, stream: int) -> list[Any]:
    """What the reader of a trace may want to know about a span, in its `args`."""
    found: list[Any] = []
    if stream == COPY:
        used = _taken(["false", "true"], spans["used"])
        found += [',"expert":', _number(spans["expert"]), ',"used":', used]
    else:
        found += [',"chunk":', _number(spans["chunk"])]
    if stream != COMPUTE:
        return [*found, ',"bytes":', _number(np.rint(spans["bytes"]))]
    found += [',"rows":', _number(spans["rows"]), ',"flops":', _number(np.rint(spans["flops"]))]
    wait_us = _decimal(np.round(1e6 * spans["fetch_wait_s"], 3))
    found += [',"peer":', _number(spans["peer"]), ',"fetch_wait_us":', wait_us]
    expert = spans["expert"]
    if np.any(expert >= 0):
        told = pc.binary_join_element_wise(',"expert":', _number(expert), "")
        found.append(pc.if_else(_truth(expert >= 0), told, ""))
    return found


def arrows(spans: Columns, begin: Ints, correlation: Ints) -> tuple[Ints, Texts] | None:
    """Arrows of whole steps: from a GPU's dispatch to the first expert kernel of the same layer,
    micro-batch and chunk, and from the last of those to its combine; None if there are none.

    Spans [rows] are sorted by GPU, then by time in each stream. The arrows' GPUs [arrows] are
    sorted too. An arrow that would point back in time is left out.
    """
    kind = spans["kind"]
    key = np.zeros(len(kind), dtype=np.int64)
    for name in ("gpu", "step", "layer", "microbatch", "chunk"):
        low = int(spans[name].min())
        key = key * (int(spans[name].max()) - low + 1) + (spans[name].astype(np.int64) - low)
    groups = {of: np.flatnonzero(kind == of) for of in (DISPATCH, EXPERTS, COMBINE)}
    for of, rows in groups.items():
        groups[of] = rows[np.argsort(key[rows], kind="stable")]
    experts = groups[EXPERTS]
    keys = key[experts]
    first = experts[np.append(True, keys[1:] != keys[:-1])] if len(experts) else experts
    last = experts[np.append(keys[1:] != keys[:-1], True)] if len(experts) else experts
    tails, heads = [], []
    for tail, head in ((groups[DISPATCH], first), (last, groups[COMBINE])):
        if len(tail) and len(head):
            index = np.minimum(np.searchsorted(key[head], key[tail]), len(head) - 1)
            found = (key[head][index] == key[tail]) & (begin[head[index]] >= begin[tail])
            tails.append(tail[found])
            heads.append(head[index[found]])
    if not any(map(len, tails)):
        return None
    tail, head = np.concatenate(tails), np.concatenate(heads)
    order = np.lexsort((begin[tail], spans["gpu"][tail]))
    tail, head = tail[order], head[order]
    gpu = spans["gpu"][tail]
    # Unique among the traces of all ranks, for a viewer that is given several.
    number = gpu.astype(np.int64) * 10_000_000_000 + 2 * correlation[tail]
    number += kind[tail] == EXPERTS
    pid, link = _number(gpu), _number(number)
    pieces: list[Any] = []
    for phase, rows in (('"s"', tail), ('"f","bp":"e"', head)):
        tid = _number(stream_id(spans["stream"][rows].astype(np.int64)))
        pieces += [
            f',\n{{"ph":{phase},"cat":"tokens","name":"tokens","id":', link,
            ',"pid":', pid, ',"tid":', tid, ',"ts":', _number(begin[rows]), "}",
        ]  # fmt: skip
    return gpu.astype(np.int64), _joined(pieces)


def counter(name: str, gpu: int, at: Ints, values: dict[str, npt.NDArray[Any]]) -> memoryview:
    """A counter's values [n] from the instants `at` [n] in us on, several series in one.

    It is of the process; Perfetto finds that by the thread, of which 0 is none of the GPU's.
    """
    if not len(at):
        return memoryview(b"")
    pieces: list[Any] = [
        f',\n{{"ph":"C","name":"{name}","pid":{gpu},"tid":{stream_id(COMPUTE)}',
        ',"ts":', _number(at), ',"args":{',
    ]  # fmt: skip
    for series, of in values.items():
        whole = np.issubdtype(of.dtype, np.integer)
        pieces += [f'"{series}":', _number(of) if whole else _decimal(of), ","]
    return _joined([*pieces[:-1], "}}"])[1]


def _joined(pieces: Sequence[Any]) -> Texts:
    """Texts and arrays of text [rows] side by side, row by row."""
    array = pc.binary_join_element_wise(*pieces, "")
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32)[array.offset : array.offset + len(array) + 1]
    return ends, memoryview(b"" if data is None else data)


def _whole(values: npt.NDArray[Any]) -> pa.Array:
    held = np.ascontiguousarray(values, dtype=np.int64)
    return pa.Array.from_buffers(pa.int64(), len(held), [None, pa.py_buffer(held)])


def _number(values: npt.NDArray[Any]) -> pa.Array:
    """Whole numbers [rows] as text."""
    return _whole(values).cast(pa.string())


def _decimal(values: npt.NDArray[np.float64]) -> pa.Array:
    """Numbers [rows] as text, the shortest that reads the same."""
    held = np.ascontiguousarray(values, dtype=np.float64)
    array = pa.Array.from_buffers(pa.float64(), len(held), [None, pa.py_buffer(held)])
    return array.cast(pa.string())


def _truth(values: npt.NDArray[np.bool_]) -> pa.Array:
    return _whole(values).cast(pa.bool_())


def _taken(words: Sequence[str], index: npt.NDArray[Any]) -> pa.Array:
    """The words at `index` [rows].

    Not by `pa.array`, which imports pandas wherever it is installed.
    """
    held = [word.encode() for word in words]
    ends = np.cumsum([0, *map(len, held)], dtype=np.int32)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(held))]
    return pa.Array.from_buffers(pa.string(), len(held), buffers).take(_whole(index))
