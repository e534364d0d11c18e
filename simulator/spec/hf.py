"""Reads the ``config.json`` of a Hugging Face model into the keys of ``model:``.

Known ``model_type``: mixtral, qwen3_moe, gpt_oss, deepseek_v3. Norms, biases and
multi-token-prediction layers are left out: the simulator has no place for them. MXFP4 is that of
the experts alone, as gpt-oss has it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from simulator.errors import InputError
from simulator.spec.document import read_text
from simulator.spec.units import did_you_mean

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_QUANTISED = {"fp8": "fp8", "mxfp4": "mxfp4"}


class _Config:
    """The keys of one file; a missing or mistyped one is an InputError that names file and key."""

    def __init__(self, keys: Mapping[str, Any], shown: str) -> None:
        self.keys = keys
        self.shown = shown

    def whole(self, *names: str, default: int | None = None) -> int:
        """A whole number >= 0 under the first of ``names`` that is there."""
        for name in names:
            value = self.keys.get(name)
            if value is not None:
                if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                    raise InputError(f"{self.shown}: {name}: must be a whole number, not {value!r}")
                return value
        if default is not None:
            return default
        raise InputError(f"{self.shown}: {names[0]}: required, but not given")

    def dtypes(self) -> dict[str, Any]:
        """``dtype``, the quantisation's, else ``torch_dtype``, else bf16; and ``dtypes``."""
        quantised = self.keys.get("quantization_config")
        if isinstance(quantised, Mapping):
            method = quantised.get("quant_method")
            if method not in _QUANTISED:
                known = ", ".join(_QUANTISED)
                raise InputError(
                    f"{self.shown}: quantization_config.quant_method: {method!r} is not known "
                    f"(known: {known}); say model.dtype and take quantization_config out"
                )
            if method == "mxfp4":
                return {"dtype": "bf16", "dtypes": {"experts": _QUANTISED["mxfp4"]}}
            return {"dtype": "fp8_block" if quantised.get("weight_block_size") else "fp8"}
        given = self.keys.get("torch_dtype", self.keys.get("dtype", "bfloat16"))
        if given not in _DTYPES:
            raise InputError(
                f"{self.shown}: torch_dtype: {given!r} is not one of {', '.join(_DTYPES)}"
            )
        return {"dtype": _DTYPES[str(given)]}


def read_config(path: Path, shown: str | None = None) -> dict[str, Any]:
    """The ``model:`` mapping of a config.json (YAML keys); raises InputError with one line that
    names file and key.
    """
    shown = shown or str(path)
    text = read_text(path, shown)
    try:
        keys = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{shown}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}"
        ) from None
    except RecursionError:
        raise InputError(f"{shown}: not valid JSON: nested too deeply") from None
    if not isinstance(keys, dict):
        raise InputError(f"{shown}: not a Hugging Face config: expected a JSON object")
    model_type = keys.get("model_type")
    if model_type is None:
        raise InputError(f"{shown}: model_type: required, but not given")
    reader = READERS.get(model_type) if isinstance(model_type, str) else None
    if reader is None:
        hint = did_you_mean(str(model_type), list(READERS))
        raise InputError(
            f"{shown}: model_type: {model_type!r} is not supported{hint}; "
            f"known: {', '.join(READERS)}"
        )
    config = _Config(keys, shown)
    name = str(keys.get("_name_or_path") or model_type).rstrip("/").rpartition("/")[2]
    return {
        "name": name,
        "hidden": config.whole("hidden_size"),
        "layers": config.whole("num_hidden_layers"),
        "vocab": config.whole("vocab_size"),
        **config.dtypes(),
        **reader(config),
    }


def _gqa(config: _Config) -> dict[str, Any]:
    heads = config.whole("num_attention_heads")
    # Without head_dim the heads share the hidden width; max() keeps a zero for the schema to
    # refuse.
    head_dim = config.whole("head_dim", default=config.whole("hidden_size") // max(heads, 1))
    kv_heads = config.whole("num_key_value_heads", default=heads)
    return {"kind": "gqa", "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}


def _mixtral(config: _Config) -> dict[str, Any]:
    moe = {
        "experts": config.whole("num_local_experts"),
        "top_k": config.whole("num_experts_per_tok"),
        "intermediate": config.whole("intermediate_size"),
    }
    return {"attention": _gqa(config), "moe": moe}


def _gpt_oss(config: _Config) -> dict[str, Any]:
    """As Mixtral; every second layer attends to the window only, the first among them."""
    window = config.whole("sliding_window", default=0)
    sliding = {"tokens": window, "full_every": 2} if window else None
    return {**_mixtral(config), "sliding_window": sliding}


def _qwen3_moe(config: _Config) -> dict[str, Any]:
    for key, plain in (("decoder_sparse_step", 1), ("mlp_only_layers", [])):
        if config.keys.get(key, plain) != plain:
            raise InputError(
                f"{config.shown}: {key}: {config.keys[key]!r} is not supported "
                f"(only {plain!r}: every layer is MoE)"
            )
    moe = {
        "experts": config.whole("num_experts", "num_local_experts"),
        "top_k": config.whole("num_experts_per_tok"),
        "intermediate": config.whole("moe_intermediate_size"),
    }
    return {"attention": _gqa(config), "moe": moe}


def _deepseek_v3(config: _Config) -> dict[str, Any]:
    if config.keys.get("moe_layer_freq", 1) != 1:
        raise InputError(f"{config.shown}: moe_layer_freq: only 1 is supported")
    names = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    attention: dict[str, Any] = {"kind": "mla", "heads": config.whole("num_attention_heads")}
    attention |= {name: config.whole(name) for name in names}
    width = config.whole("moe_intermediate_size")
    shared = config.whole("n_shared_experts", default=0)
    moe = {
        "experts": config.whole("n_routed_experts"),
        "top_k": config.whole("num_experts_per_tok"),
        "intermediate": width,
        "shared_experts": shared,
        "shared_intermediate": width if shared else 0,
        "first_dense_layers": config.whole("first_k_dense_replace", default=0),
    }
    dense = config.whole("intermediate_size")
    return {"attention": attention, "dense_intermediate": dense, "moe": moe}


READERS: dict[str, Callable[[_Config], dict[str, Any]]] = {
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "gpt_oss": _gpt_oss,
    "deepseek_v3": _deepseek_v3,
}
"""From ``model_type`` to the reader of its keys."""
