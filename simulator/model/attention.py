"""The kernels of an attention layer: multi-head, grouped-query and latent (MLA); both phases.

Scores and weighted values are one kernel (FlashAttention, arXiv 2205.14135): it reads each
sequence's cache once, the queries, and writes the outputs. It runs at the efficiencies of a BF16
GEMM; none of the tables that the model is fitted to holds attention. MLA (DeepSeek-V2, arXiv
2405.04434) makes the keys and values of all heads of a latent; absorbed, the queries are taken to
the latent instead.
"""

from __future__ import annotations

from typing import NamedTuple

from simulator.model import kernels, sizes
from simulator.model.kernels import Rates, Work
from simulator.spec.schema import GqaAttention, MlaAttention, Model

ELEMENT = 2.0  # bytes of an activation


class Asked(NamedTuple):
    """What a layer attends to in one phase: `rows` queries with `pairs` (query, key) products, in
    caches of `cached` keys together.
    """

    rows: int
    pairs: float
    cached: float
    decode: bool


class Scores(NamedTuple):
    """What the one kernel of scores and weighted values takes: FLOPs per (query, key) pair, bytes
    per key that is read and per query.
    """

    flops_per_pair: float
    bytes_per_key: float
    bytes_per_row: float


class Parts(NamedTuple):
    """The kernels of a layer: `before` and `after` for all rows, `inside` for those of one phase.

    launches: how many the host launches for all rows, and more for the phase.
    """

    before: list[Work]
    inside: list[Work]
    after: list[Work]
    launches: tuple[int, int]


def uniform(rows: int, keys: int, sequences: float, decode: bool) -> Asked:
    """`rows` queries, each to `keys`, in `sequences` caches."""
    return Asked(rows, float(keys * rows), sequences * keys, decode)


def kernels_of(model: Model, of: Rates, plain: Rates, asked: Asked) -> Parts:
    """The kernels of a layer without norms and gate, all rows in one phase.

    of: the projections' family; plain: BF16, for what has no weights.
    """
    if isinstance(model.attention, GqaAttention):
        return _gqa(model, model.attention, of, plain, asked)
    return _mla(model, model.attention, of, plain, asked)


def scores_of(model: Model, decode: bool) -> Scores:
    """What scores and values take in a phase."""
    a = model.attention
    if isinstance(a, GqaAttention):
        width = a.heads * a.head_dim
        return Scores(4.0 * width, sizes.kv_bytes_per_token_layer(model), 2 * width * ELEMENT)
    if absorbed(a, decode):
        scored, valued = a.kv_lora_rank + a.qk_rope_head_dim, a.kv_lora_rank
        read = sizes.kv_bytes_per_token_layer(model)
    else:
        scored, valued = a.qk_nope_head_dim + a.qk_rope_head_dim, a.v_head_dim
        read = a.heads * (scored + valued) * ELEMENT
    width = a.heads * (scored + valued)
    return Scores(2.0 * width, read, width * ELEMENT)


def absorbed(a: MlaAttention, decode: bool) -> bool:
    """Whether the queries of a phase are taken to the latent."""
    return a.absorb == "always" or (a.absorb == "decode" and decode)


def _scored(model: Model, plain: Rates, asked: Asked) -> Work:
    """Scores and weighted values, one kernel."""
    of = scores_of(model, asked.decode)
    touched = asked.cached * of.bytes_per_key + asked.rows * of.bytes_per_row
    return kernels.moved(plain, touched, of.flops_per_pair * asked.pairs)


def _gqa(model: Model, a: GqaAttention, of: Rates, plain: Rates, asked: Asked) -> Parts:
    rows, width = asked.rows, a.heads * a.head_dim
    inner = width + 2 * a.kv_heads * a.head_dim
    return Parts(
        [kernels.gemm(of, rows, inner, model.hidden), _placed(plain, rows, inner)],
        [_scored(model, plain, asked)],
        [kernels.gemm(of, rows, model.hidden, width)],
        (1 + 2 * of.kernels, 1),
    )


def _mla(model: Model, a: MlaAttention, of: Rates, plain: Rates, asked: Asked) -> Parts:
    rows = asked.rows
    qk = a.qk_nope_head_dim + a.qk_rope_head_dim
    latent = a.kv_lora_rank + a.qk_rope_head_dim
    before = [
        kernels.gemm(of, rows, a.q_lora_rank + latent, model.hidden),
        kernels.gemm(of, rows, a.heads * qk, a.q_lora_rank),
        _placed(plain, rows, a.heads * qk + latent),
    ]
    if absorbed(a, asked.decode):
        inside = [
            kernels.gemm(of, rows, a.kv_lora_rank, a.qk_nope_head_dim, batch=a.heads),
            kernels.gemm(of, rows, a.v_head_dim, a.kv_lora_rank, batch=a.heads),
        ]
    else:
        # Prefill expands what it has just written; decode would have to expand the whole cache.
        expanded = int(asked.cached) if asked.decode else rows
        up = a.heads * (a.qk_nope_head_dim + a.v_head_dim)
        inside = [kernels.gemm(of, expanded, up, a.kv_lora_rank)]
    launched = len(inside) * of.kernels
    inside.append(_scored(model, plain, asked))
    after = [kernels.gemm(of, rows, model.hidden, a.heads * a.v_head_dim)]
    return Parts(before, inside, after, (1 + 3 * of.kernels, 1 + launched))


def _placed(plain: Rates, rows: int, width: int) -> Work:
    """Rotary embedding and writing keys and values: everything read and written once."""
    return kernels.moved(plain, 2 * rows * width * ELEMENT)
