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
    """What a layer attends to: `rows` queries, each to `keys`, in `sequences` caches."""

    rows: int
    keys: int
    sequences: float
    decode: bool


def kernels_of(model: Model, of: Rates, plain: Rates, asked: Asked) -> tuple[list[Work], int]:
    """The kernels of a layer without norms and gate, and how many the host launches.

    of: the projections' family; plain: BF16, for what has no weights.
    """
    cache = asked.sequences * asked.keys * sizes.kv_bytes_per_token_layer(model)
    if isinstance(model.attention, GqaAttention):
        return _gqa(model, model.attention, of, plain, asked, cache)
    return _mla(model, model.attention, of, plain, asked, cache)


def _gqa(
    model: Model, a: GqaAttention, of: Rates, plain: Rates, asked: Asked, cache: float
) -> tuple[list[Work], int]:
    rows, width = asked.rows, a.heads * a.head_dim
    inner = width + 2 * a.kv_heads * a.head_dim
    flops = 4.0 * width * asked.keys * rows
    parts = [
        kernels.gemm(of, rows, inner, model.hidden),
        _placed(plain, rows, inner),
        kernels.moved(plain, cache + 2 * rows * width * ELEMENT, flops),
        kernels.gemm(of, rows, model.hidden, width),
    ]
    return parts, 2 + 2 * of.kernels


def _mla(
    model: Model, a: MlaAttention, of: Rates, plain: Rates, asked: Asked, cache: float
) -> tuple[list[Work], int]:
    rows = asked.rows
    qk = a.qk_nope_head_dim + a.qk_rope_head_dim
    latent = a.kv_lora_rank + a.qk_rope_head_dim
    parts = [
        kernels.gemm(of, rows, a.q_lora_rank + latent, model.hidden),
        kernels.gemm(of, rows, a.heads * qk, a.q_lora_rank),
        _placed(plain, rows, a.heads * qk + latent),
    ]
    if a.absorb == "always" or (a.absorb == "decode" and asked.decode):
        scored, valued = latent, a.kv_lora_rank
        parts += [
            kernels.gemm(of, rows, a.kv_lora_rank, a.qk_nope_head_dim, batch=a.heads),
            kernels.gemm(of, rows, a.v_head_dim, a.kv_lora_rank, batch=a.heads),
        ]
        read, count = cache, 5
    else:
        scored, valued = qk, a.v_head_dim
        # Prefill expands what it has just written; decode would have to expand the whole cache.
        expanded = int(asked.sequences * asked.keys) if asked.decode else rows
        up = a.heads * (a.qk_nope_head_dim + a.v_head_dim)
        parts.append(kernels.gemm(of, expanded, up, a.kv_lora_rank))
        width = a.heads * (qk + a.v_head_dim)
        read, count = asked.sequences * asked.keys * width * ELEMENT, 4
    flops = 2.0 * a.heads * (scored + valued) * asked.keys * rows
    touched = rows * a.heads * (scored + valued) * ELEMENT
    parts += [
        kernels.moved(plain, read + touched, flops),
        kernels.gemm(of, rows, model.hidden, a.heads * a.v_head_dim),
    ]
    return parts, 2 + count * of.kernels


def _placed(plain: Rates, rows: int, width: int) -> Work:
    """Rotary embedding and writing keys and values: everything read and written once."""
    return kernels.moved(plain, 2 * rows * width * ELEMENT)
