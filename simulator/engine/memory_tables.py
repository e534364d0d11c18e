"""The expert memories of all GPUs as arrays: what `memory_kernel` works on.

State lies in arrays, as the tuple `Tables` (S: GPU, layer and slot as one number; E: experts;
K: micro-batches x chunks, the most kernels that use a stay in one step):

    of        int64 [FIXED]         what stays the same for a run (SHARED: K)
    at        int64 [PLACES]        lengths, and what is under decision
    slot_of   int32 [gpus, layers, E]       S of an expert, -1: not there
    held      int32 [S, 4]          expert (-1: free), fetch while not known to be over (else
                                    -1), its row in `stay_i` (-1: told), kernels
    kernels   int32 [S, K]          those that use it in this step
    last_use  int64 [S]             number of the last access (of the GPU)
    filled    int32 [gpus, layers]  slots taken
    uses      int64 [gpus]          accesses and prefetches so far
    added_s   float64 [gpus]        when a fetch was added last
    route     int32 [gpus, E]       of the weights, -1: held for good; wire_bytes float64 [routes]
    reached   int32 [gpus, microbatches]    the layer whose tokens came last
    asked     int16 [gpus, microbatches, layers, slots]     experts predicted, and how many
    asked_n   int32 [gpus, microbatches, layers]            (-1: nothing was)
    foreseen  int16 [gpus, microbatches, slots]             the same of the layer reached
    foreseen_n int32 [gpus, microbatches]
    wish_i    int32 [gpus, wishes, 5]       prefetches not begun: micro-batch, layer, expert, layer
                                    in which it was asked for, 1 = at once; wish_f: when (s)
    wishes    int32 [gpus]
    often     int64 [gpus, layers, E]       lfu: accesses so far; accessed int64 [gpus, layers]
    list_of   int8  [gpus, layers, E]       arc: the list (T1, T2, B1, B2) of an expert, -1: none
    stamp     int64 [gpus, layers, E]       arc: the order within the lists
    ahead     bool  [gpus, layers, E]       arc: fetched ahead and not used since
    arc_i     int64 [gpus, layers, 9]       arc: lengths of the lists, clock, from B2, forget, and
                                    what room was made for: expert (-1), list
    arc_f     float64 [gpus, layers]        arc: what T1 should take
    order, rows  int32 [asked for]          of this step: experts in the order of first need, rows
    ptr       int64 [tables * gpus + 1]     which of them belong to a table and GPU
    came      int64 [tables, gpus]          tokens there
    table_of  int32 [microbatches, chunks, layers]
    tokens    int16 [tokens, recorded layers, k]    markov: experts taken in this step; token_ptr
                                    int64 [microbatches + 1]: of which; recorded int32 [layers]
    group     int32 [gpus]          of GPUs that share their tokens' experts
    serves    bool  [layers, gpus, E]       what a GPU may have to compute
    pairs     float32 [layers, E, E]        markov: tokens that took both, here and in the next
                                    layer; took float32 [layers, E]: that took the first
    taken     int64 [layers, groups, E]     popularity: rows so far
    expected, after float64 [groups, E]     rows of a layer, and of the one after it
    wanted    int16 [gpus, slots]   predicted, most wanted first; how many: wanted_n int32 [gpus]
    idle      bool  [gpus]          no tokens come to a GPU in this layer
    alone     float64 [most rows + 1, 3]    an expert by itself: seconds, FLOPs, bytes
    price_key int64 [2^n, 4], price float64 [2^n, 3]      the same of grouped kernels, hashed
    kernel_i  int32 [kernels, 8], kernel_f float64 [kernels, 3]     out: operation, expert, rows,
                                    micro-batch, chunk, layer, GPU, peer; tokens there (s), FLOPs,
                                    bytes
    stay_i    int32 [stays, 10], stay_f float64 [stays, 3]  step, micro-batch, layer, GPU, 1 =
                                    prefetch, expert, used, 1 = evicted, fetch, S; asked for, start
                                    and end of the fetch (s)
    accesses  int64 [gpus, step layers, 5]  out: hits, late hits, misses, foreseen, cancelled
    ids       int32 [ops]           numbers free for operations
    mine, mine_rows, fetches, own  int32 [E], rank float64 [E]      of one decision
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Shorts = NDArray[np.int16]
Singles = NDArray[np.float32]
Tiny = NDArray[np.int8]

# of
GPUS, LAYERS, EXPERTS, SLOTS, SHARED, MICROBATCHES, KINDS, ALL_LAYERS, DENSE = range(9)
GATES, FOR_PYTHON, RESIDENT_FIRST, POLICY, HALVE, TILE, SPARE, PREDICTOR, DEPTH = range(9, 18)
FIXED = 18
LRU, LFU, ARC = range(3)
ELSEWHERE, ORACLE, POPULARITY, MARKOV = range(4)  # PREDICTOR; the first: nowhere, or in Python
# at
IDS, STAYS, KERNELS, FOUND, NEXT, PRICING, STEP = range(7)
OP, MICROBATCH, CHUNK_AT, LAYER, GPU, GROUPED, FETCHES, COMING, RESIDENTS = range(7, 16)
ROWS, TILES, CAME, TARGET = range(16, 20)  # TARGET: the layer of which Python has asked
PLACES = 20
# held; wish_i
EXPERT, FETCH, STAY, USED_BY = range(4)
W_MICROBATCH, W_LAYER, W_EXPERT, W_SINCE, W_AT_ONCE = range(5)
# stay_i, stay_f
S_STEP, S_MICROBATCH, S_LAYER, S_GPU, S_PREFETCH, S_EXPERT, S_USES, S_GONE, S_FETCH, S_SLOT = range(
    10
)
ASKED_S, START_S, END_S = range(3)
# arc_i
T1, T2, B1, B2, CLOCK, FROM_B2, FORGET, INTO, INTO_LIST = range(9)
FORESEEN, CANCELLED = 3, 4  # places in `accesses`

ROOM, PRICE = -1, -2  # answers: tables are too small; the price of a grouped kernel is not known


class Tables(NamedTuple):
    """The memories of a run (module docstring)."""

    of: Longs
    at: Longs
    slot_of: Ints
    held: Ints
    kernels: Ints
    last_use: Longs
    filled: Ints
    uses: Longs
    added_s: Floats
    route: Ints
    wire_bytes: Floats
    reached: Ints
    asked: Shorts
    asked_n: Ints
    foreseen: Shorts
    foreseen_n: Ints
    wish_i: Ints
    wish_f: Floats
    wishes: Ints
    often: Longs
    accessed: Longs
    list_of: Tiny
    stamp: Longs
    ahead: Bools
    arc_i: Longs
    arc_f: Floats
    order: Ints
    rows: Ints
    ptr: Longs
    came: Longs
    table_of: Ints
    tokens: Shorts
    token_ptr: Longs
    recorded: Ints
    group: Ints
    serves: Bools
    pairs: Singles
    took: Singles
    taken: Longs
    expected: Floats
    after: Floats
    wanted: Shorts
    wanted_n: Ints
    idle: Bools
    alone: Floats
    price_key: Longs
    price: Floats
    kernel_i: Ints
    kernel_f: Floats
    stay_i: Ints
    stay_f: Floats
    accesses: Longs
    ids: Ints
    mine: Ints
    mine_rows: Ints
    fetches: Ints
    own: Ints
    rank: Floats
