"""What one step computes: the tokens of a batch, their experts and the GPUs that hold them.

`replay` takes the tokens from a recorded trace, `synthesize` from a law; both go on for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.routing.laws import parse_law
from simulator.routing.slots import RequestRows, TraceSlots
from simulator.routing.trace import GENERATED, PROMPT, TraceInfo, iter_blocks, read_info

Int16s = npt.NDArray[np.int16]
Int32s = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

PHASES = ("decode", "prefill")
LAYER_MAPS = ("cycle", "stretch")
# Which phases of a trace's rows a filter lets through; None = all, also those of unknown phase.
FILTERS: dict[str, int | None] = {"any": None, "prompt": PROMPT, "generated": GENERATED}


@dataclass(frozen=True)
class Batch:
    """The tokens of one step, sorted by the GPU that holds them.

    ids: int16 [tokens, recorded layers, k], gate order, -1 = not recorded.
    layer_of: int32 [layers], the recorded layer that stands for each layer of the model.
    source_gpu: int32 [tokens], non-decreasing.
    position, request: int32 [tokens].
    new_sequence: bool [tokens], the first token of its request in that slot.
    """

    ids: Int16s
    layer_of: Int32s
    source_gpu: Int32s
    position: Int32s
    request: Int32s
    new_sequence: Bools

    @property
    def tokens(self) -> int:
        """Number of tokens, at least 1."""
        return len(self.source_gpu)

    def layer_ids(self, layer: int) -> Int16s:
        """Experts of one layer of the model, int16 [tokens, k], contiguous (normally no copy)."""
        return np.ascontiguousarray(self.ids[:, self.layer_of[layer]])


@dataclass
class ReplayState:
    """How far a replay is, kept up to date while it goes on.

    `requests` and `tokens` count what passes the filter, `wraps` how often the end of the trace
    was passed (0 until a token is used for the second time).
    """

    requests: int = 0
    tokens: int = 0
    wraps: int = 0


def check_trace(info: TraceInfo, experts: int, k: int, path: str | Path) -> None:
    """Raise InputError unless a trace is of a model with `experts` experts and top-`k`."""
    if experts != info.experts:
        than = "more" if experts > info.experts else "fewer"
        raise InputError(
            f"{path}: the model has {experts} experts, {than} than the {info.experts} of the trace "
            f"(recorded on {info.model}); give a trace of a model with {experts} experts, "
            "or a law such as --routing zipf:1.0"
        )
    if k != info.k:
        raise InputError(
            f"{path}: the model takes {k} experts per token, the trace has {info.k} "
            f"(recorded on {info.model}); give a trace recorded with top-{k}, "
            "or a law such as --routing zipf:1.0"
        )


def map_layers(layers: int, recorded: int, layer_map: str) -> Int32s:
    """The recorded layer for each of a model's layers, int32 [layers].

    With more layers than recorded, `cycle` starts over (l mod recorded) and `stretch` uses each
    recorded layer for a run of neighbours (l * recorded // layers); with fewer, the first ones.
    """
    if layer_map not in LAYER_MAPS:
        raise InputError(f"layer map '{layer_map}' is unknown; write {' or '.join(LAYER_MAPS)}")
    layer = np.arange(layers, dtype=np.int64)
    if layers > recorded and layer_map == "stretch":
        return (layer * recorded // layers).astype(np.int32)
    return (layer % recorded).astype(np.int32)


def replay(
    path: str | Path,
    gpus: int,
    tokens_per_gpu: int,
    phase: str,
    layers: int,
    layer_map: str = "cycle",
    tokens_filter: str = "any",
    seed: int = 0,
    state: ReplayState | None = None,
) -> Iterator[Batch]:
    """Give the batches of a recorded trace without end, streaming.

    `phase` "decode": there are gpus * tokens_per_gpu slots, slot i on GPU i // tokens_per_gpu, each
    with one request, of which it takes one token per step; a request that ends is followed by the
    next of the file, and the last by the first again. Requests are in the order of their first
    rows. A trace with fewer requests than slots gives smaller batches: request r is on GPU
    r mod gpus, and all start over together when the longest has ended.

    `phase` "prefill": each step takes the next gpus * tokens_per_gpu rows of the file, the first
    tokens_per_gpu for GPU 0 and so on, and goes on with row 0 after the last row; a sequence is new
    where the request differs from the row before.

    `layers` are the model's (`map_layers`); `tokens_filter` is any, prompt or generated. `state` is
    kept up to date for the caller. `seed` changes nothing (a recording is replayed as it is); it is
    here so that `replay` and `synthesize` are called alike.
    Raises InputError, when the first batch is asked for or later, for what `iter_blocks` refuses,
    a filter that leaves nothing, and requests too interleaved to buffer.
    """
    del seed
    path = Path(path)
    state = ReplayState() if state is None else state
    _check_sizes(gpus, tokens_per_gpu, phase)
    if tokens_filter not in FILTERS:
        raise InputError(f"token filter '{tokens_filter}' is unknown; write {', '.join(FILTERS)}")
    info = read_info(path)
    layer_of = map_layers(layers, info.layers, layer_map)
    wanted = FILTERS[tokens_filter]
    requests = RequestRows.scan(path, wanted)
    state.requests, state.tokens = len(requests.ids), int(requests.rows.sum())
    if state.tokens == 0:
        raise InputError(f"{path}: has no {tokens_filter} tokens; write 'any' as the token filter")
    recorded = min(layers, info.layers)
    if phase == "decode":
        yield from _decode(path, info, gpus, tokens_per_gpu, recorded, layer_of, requests, state)
    else:
        yield from _prefill(path, info, gpus, tokens_per_gpu, recorded, layer_of, wanted, state)


def synthesize(
    law: str,
    gpus: int,
    tokens_per_gpu: int,
    phase: str,
    layers: int,
    experts: int,
    k: int,
    seed: int = 0,
) -> Iterator[Batch]:
    """Give batches drawn from a law ("zipf:1.2", or "package.module:function:parameters").

    All gpus * tokens_per_gpu tokens are there in every step. In `phase` "decode" each is the next
    token of a sequence of its own (request = slot); in "prefill" the tokens of a GPU are one
    stretch of one sequence (request = GPU). The sequences never end.
    Raises InputError for an unknown law, wrong parameters, or k > experts.
    """
    _check_sizes(gpus, tokens_per_gpu, phase)
    draw, parameters = parse_law(law)
    rng = np.random.default_rng([seed, crc32(b"routing")])
    tokens = gpus * tokens_per_gpu
    per_sequence = 1 if phase == "decode" else tokens_per_gpu
    layer_of = np.arange(layers, dtype=np.int32)
    source_gpu = np.repeat(np.arange(gpus, dtype=np.int32), tokens_per_gpu)
    request = np.arange(tokens, dtype=np.int32) // np.int32(per_sequence)
    within = np.arange(tokens, dtype=np.int32) % np.int32(per_sequence)
    previous = np.full((tokens // per_sequence, layers, k), -1, dtype=np.int16)
    step = 0
    while True:
        ids = draw(rng, tokens, layers, experts, k, *parameters, previous=previous)
        position = (within + step * per_sequence).astype(np.int32)
        yield Batch(ids, layer_of, source_gpu, position, request, position == 0)
        previous = ids[per_sequence - 1 :: per_sequence]
        step += 1


def _check_sizes(gpus: int, tokens_per_gpu: int, phase: str) -> None:
    if phase not in PHASES:
        raise InputError(f"phase '{phase}' is unknown; write {' or '.join(PHASES)}")
    if gpus < 1 or tokens_per_gpu < 1:
        raise InputError(f"{gpus} GPUs x {tokens_per_gpu} tokens: both must be at least 1")


def _decode(
    path: Path,
    info: TraceInfo,
    gpus: int,
    tokens_per_gpu: int,
    recorded: int,
    layer_of: Int32s,
    requests: RequestRows,
    state: ReplayState,
) -> Iterator[Batch]:
    total = len(requests.ids)
    count = gpus * tokens_per_gpu
    refill = total >= count
    if refill:
        order = np.arange(count, dtype=np.int64)
        slot_gpu = (order // tokens_per_gpu).astype(np.int32)
    else:
        every = np.arange(total, dtype=np.int64)
        order = np.argsort(every % gpus, kind="stable")
        slot_gpu = (order % gpus).astype(np.int32)
    slots = TraceSlots(path, requests, order, recorded, info.k, refill)
    while True:
        slot, ids, position, new = slots.step()
        state.wraps = slots.wraps
        request = requests.ids[slots.request_of(slot)]
        yield Batch(ids, layer_of, slot_gpu[slot], position, request, new)
        slots.advance(slot)


def _prefill(
    path: Path,
    info: TraceInfo,
    gpus: int,
    tokens_per_gpu: int,
    recorded: int,
    layer_of: Int32s,
    wanted: int | None,
    state: ReplayState,
) -> Iterator[Batch]:
    count = gpus * tokens_per_gpu
    source_gpu = np.repeat(np.arange(gpus, dtype=np.int32), tokens_per_gpu)
    rows = _endless_rows(path, wanted, recorded)
    taken = 0
    last_request = -1
    ids, request, position, wraps = next(rows)
    while True:
        # Layer-major in memory, so that the ids of one layer are contiguous.
        base = np.empty((recorded, count, info.k), dtype=np.int16)
        batch_request = np.empty(count, dtype=np.int32)
        batch_position = np.empty(count, dtype=np.int32)
        fresh = np.zeros(count, dtype=np.bool_)
        filled = 0
        while filled < count:
            if taken == len(request):
                ids, request, position, passes = next(rows)
                taken = 0
                fresh[filled] = passes != wraps
                wraps = passes
            n = min(count - filled, len(request) - taken)
            part, rest = slice(filled, filled + n), slice(taken, taken + n)
            base[:, part] = ids[rest].transpose(1, 0, 2)
            batch_request[part], batch_position[part] = request[rest], position[rest]
            filled += n
            taken += n
        fresh |= np.concatenate(([last_request], batch_request[:-1])) != batch_request
        last_request = int(batch_request[-1])
        state.wraps = wraps
        yield Batch(
            base.transpose(1, 0, 2), layer_of, source_gpu, batch_position, batch_request, fresh
        )


def _endless_rows(
    path: Path, wanted: int | None, recorded: int
) -> Iterator[tuple[Int16s, Int32s, Int32s, int]]:
    """Yield (ids [n, recorded, k], request [n], position [n], passes before), n >= 1, for ever."""
    passes = 0
    while True:
        for block in iter_blocks(path):
            keep = slice(None) if wanted is None else block.phase == wanted
            request = block.request[keep]
            if len(request):
                yield block.experts[keep, :recorded], request, block.position[keep], passes
        passes += 1
