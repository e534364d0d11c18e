"""Parameter counts and bytes of a model, by part. Counts follow the layers' matrices; norms and
biases (well below 0.1 % of any shipped model) are left out.
"""

from __future__ import annotations

from simulator.spec.schema import GqaAttention, Model

BYTES_PER_ELEMENT = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5}


def attention_parameters(model: Model) -> int:
    """Projection weights of one layer (GQA: Q, K, V, O; MLA: down- and up-projections)."""
    a = model.attention
    if isinstance(a, GqaAttention):
        return model.hidden * a.head_dim * (2 * a.heads + 2 * a.kv_heads)
    qk = a.qk_nope_head_dim + a.qk_rope_head_dim
    return (
        model.hidden * a.q_lora_rank
        + a.q_lora_rank * a.heads * qk
        + model.hidden * (a.kv_lora_rank + a.qk_rope_head_dim)
        + a.kv_lora_rank * a.heads * (a.qk_nope_head_dim + a.v_head_dim)
        + a.heads * a.v_head_dim * model.hidden
    )


def ffn_parameters(model: Model, intermediate: int) -> int:
    """A gated FFN (SwiGLU: gate, up and down) of this width."""
    return 3 * model.hidden * intermediate


def gate_parameters(model: Model) -> int:
    """The router of one MoE layer."""
    return model.hidden * model.moe.experts


def expert_bytes(model: Model) -> float:
    """One routed expert of one layer."""
    return ffn_parameters(model, model.moe.intermediate) * BYTES_PER_ELEMENT[model.dtype]


def kv_bytes_per_token_layer(model: Model) -> float:
    """KV cache of one token in one layer (GQA: K and V heads; MLA: the latent and the rope key)."""
    a = model.attention
    if isinstance(a, GqaAttention):
        elements = 2 * a.kv_heads * a.head_dim
    else:
        elements = a.kv_lora_rank + a.qk_rope_head_dim
    return elements * BYTES_PER_ELEMENT[model.kv_dtype]


def parameters(model: Model) -> int:
    """All parameters, input embedding and LM head included."""
    dense = model.moe.first_dense_layers
    sparse = model.layers - dense
    return (
        2 * model.vocab * model.hidden
        + model.layers * attention_parameters(model)
        + dense * ffn_parameters(model, model.dense_intermediate)
        + sparse
        * (
            gate_parameters(model)
            + model.moe.experts * ffn_parameters(model, model.moe.intermediate)
            + model.moe.shared_experts * ffn_parameters(model, model.moe.shared_intermediate)
        )
    )
