"""Parameter counts and bytes of a model, by part. Counts follow the layers' matrices; norms and
biases (well below 0.1 % of any shipped model) are left out.
"""

from __future__ import annotations

from typing import Literal

from simulator.spec.schema import Gpu, GqaAttention, Model

# Bytes of one weight with its share of the scales.
BYTES_PER_ELEMENT = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,  # one scale per tensor
    "fp8_block": 1.0 + 4.0 / (128 * 128),  # FP32 per 128 x 128 weights (DeepSeek-V3, 2412.19437)
    "int8": 1.0,  # one scale per output channel: below 0.1 % of any shipped model, left out
    "int4": 0.5 + 2.0 / 128,  # FP16 per 128 weights (AWQ, arXiv 2306.00978; GPTQ with groups)
    "fp4": 0.5,  # without scales
    "mxfp4": 0.5 + 1.0 / 32,  # 8 bit per 32 weights (OCP Microscaling Formats v1.0)
    "nvfp4": 0.5 + 1.0 / 16,  # FP8 per 16 weights (NVIDIA, Introducing NVFP4, 2025)
}

# The unit that a weight's type is multiplied on, where the GPU has it; else weights are converted
# to BF16 on the way (weight-only quantisation).
_UNITS = {
    "fp32": "fp32",
    "fp16": "fp16",
    "fp8": "fp8",
    "fp8_block": "fp8",
    "int8": "int8",
    "fp4": "fp4",
    "nvfp4": "fp4",
}

ACTIVATION_BYTES = 2.0  # of a number between kernels and on the wire under a plan: BF16

Part = Literal["attention", "dense", "experts", "lm_head", "gate"]
_IN_BF16 = ("lm_head", "gate")


def dtype_of(model: Model, part: Part) -> str:
    """The type of a part's weights: `dtypes`, else BF16 for LM head and gate, `dtype` for the rest.

    dense: FFNs of dense layers and shared experts; lm_head: and the input embedding.
    """
    given: str | None = getattr(model.dtypes, part)
    return given or ("bf16" if part in _IN_BF16 else model.dtype)


def weight_bytes(model: Model, part: Part) -> float:
    """Bytes of one weight of a part, with its share of the scales."""
    return BYTES_PER_ELEMENT[dtype_of(model, part)]


def compute_dtype(dtype: str, gpu: Gpu) -> str:
    """The entry of the GPU's `flops` that weights of a type are multiplied at."""
    unit = _UNITS.get(dtype, "bf16")
    return unit if unit in gpu.flops_per_s else "bf16"


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
    return ffn_parameters(model, model.moe.intermediate) * weight_bytes(model, "experts")


def kv_bytes_per_token_layer(model: Model) -> float:
    """KV cache of one token in one layer (GQA: K and V heads; MLA: the latent and the rope key)."""
    a = model.attention
    if isinstance(a, GqaAttention):
        elements = 2 * a.kv_heads * a.head_dim
    else:
        elements = a.kv_lora_rank + a.qk_rope_head_dim
    return elements * BYTES_PER_ELEMENT[model.kv_dtype]


def windowed_layers(model: Model) -> list[bool]:
    """Per layer, whether it attends to the sliding window only."""
    window = model.sliding_window
    if window is None:
        return [False] * model.layers
    every = window.full_every
    return [not every or (layer + 1) % every != 0 for layer in range(model.layers)]


def kept_tokens(model: Model, context: int) -> float:
    """Tokens of a sequence in the KV cache, summed over layers."""
    window = model.sliding_window
    windowed = sum(windowed_layers(model))
    if window is None:
        return model.layers * context
    return (model.layers - windowed) * context + windowed * min(context, window.tokens)


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
