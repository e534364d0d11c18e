"""Hugging Face config.json -> model, and a workload that names one."""

from __future__ import annotations

import json

import pytest

from simulator.errors import InputError
from simulator.spec.hf import read_config
from simulator.spec.load import load_workload
from simulator.spec.schema import Model

# The figures that these models' publishers give in their config.json, other keys left out.
MIXTRAL = {
    "model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 32000,
    "torch_dtype": "bfloat16", "num_attention_heads": 32, "num_key_value_heads": 8,
    "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 14336,
}  # fmt: skip
QWEN3 = {
    "model_type": "qwen3_moe", "hidden_size": 4096, "num_hidden_layers": 94,
    "vocab_size": 151936, "torch_dtype": "bfloat16", "num_attention_heads": 64,
    "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
    "moe_intermediate_size": 1536, "intermediate_size": 12288, "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}  # fmt: skip
GPT_OSS = {
    "model_type": "gpt_oss", "hidden_size": 2880, "num_hidden_layers": 36, "vocab_size": 201088,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 128,
    "num_experts_per_tok": 4, "intermediate_size": 2880, "sliding_window": 128,
    "quantization_config": {"quant_method": "mxfp4"},
}  # fmt: skip
DEEPSEEK = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61,
    "vocab_size": 129280, "torch_dtype": "bfloat16", "num_attention_heads": 128,
    "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 256, "num_experts_per_tok": 8,
    "n_shared_experts": 1, "moe_intermediate_size": 2048, "intermediate_size": 18432,
    "first_k_dense_replace": 3, "moe_layer_freq": 1,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}  # fmt: skip


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"

    def write(keys: object):
        path.write_text(keys if isinstance(keys, str) else json.dumps(keys))
        return path

    return write


@pytest.mark.parametrize(
    ("keys", "workload"),
    [
        (MIXTRAL, "mixtral-8x7b"),
        (QWEN3, "qwen3-235b-a22b"),
        (GPT_OSS, "gpt-oss-120b"),
        (DEEPSEEK, "deepseek-v3"),
    ],
)
def test_the_published_config_is_the_shipped_model(keys, workload, config):
    shipped = load_workload(workload).model
    model = Model.model_validate(read_config(config(keys)))
    assert model.model_copy(update={"name": shipped.name}) == shipped


def test_a_workload_names_a_config_beside_it_and_overrides_keys(config, tmp_path):
    config({**QWEN3, "_name_or_path": "Qwen/Qwen3-235B-A22B"})
    work = tmp_path / "w.yaml"
    work.write_text(
        "name: w\nmodel: {config: config.json, dtype: fp8, moe: {top_k: 4}}\n"
        "traffic: {tokens_per_gpu: 1, context: 10}\nrouting: {source: uniform}\n"
    )
    model = load_workload(str(work)).model
    assert (model.name, model.config) == ("Qwen3-235B-A22B", "config.json")
    assert (model.layers, model.dtype) == (94, "fp8")
    assert (model.moe.top_k, model.moe.experts) == (4, 128)
    changed = load_workload(str(work), ["model.attention.heads=32", "model.hidden=2048"]).model
    assert (changed.attention.heads, changed.attention.kv_heads, changed.hidden) == (32, 4, 2048)
    mla = "kind: mla, heads: 8, q_lora_rank: 64, kv_lora_rank: 64, qk_nope_head_dim: 16, "
    override = f"model.attention={{{mla}qk_rope_head_dim: 16, v_head_dim: 16}}"
    assert load_workload(str(work), [override]).model.attention.kind == "mla"


def test_a_config_can_be_set(config, tmp_path):
    path = config(DEEPSEEK)
    model = load_workload("mixtral-8x7b", [f"model={{config: {path}}}", "model.layers=8"]).model
    assert (model.name, model.layers, model.attention.kind) == ("deepseek_v3", 8, "mla")


def test_faults_of_a_workload_with_a_config(config, tmp_path):
    config({**MIXTRAL, "num_experts_per_tok": 9})
    work = tmp_path / "w.yaml"
    text = "name: w\nmodel: {config: CONFIG}\ntraffic: {tokens_per_gpu: 1, context: 10}\n"
    text += "routing: {source: uniform}\n"
    work.write_text(text.replace("CONFIG", "config.json"))
    with pytest.raises(InputError) as caught:
        load_workload(str(work))
    assert str(caught.value) == "config.json: model.moe.top_k: 9 of 8 experts"
    work.write_text(text.replace("CONFIG", "none.json"))
    with pytest.raises(InputError) as caught:
        load_workload(str(work))
    assert str(caught.value) == f"{work}:2:17: model.config: no such file 'none.json'"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("{", ":1:2: not valid JSON: Expecting property name enclosed in double quotes"),
        ("[]", ": not a Hugging Face config: expected a JSON object"),
        ("[" * 100_000, ": not valid JSON: nested too deeply"),
        ({}, ": model_type: required, but not given"),
        (
            {"model_type": "llama"},
            ": model_type: 'llama' is not supported; "
            "known: mixtral, qwen3_moe, gpt_oss, deepseek_v3",
        ),
        (
            {"model_type": "qwen2_moe"},
            ": model_type: 'qwen2_moe' is not supported (did you mean 'qwen3_moe'?); "
            "known: mixtral, qwen3_moe, gpt_oss, deepseek_v3",
        ),
        (
            {key: value for key, value in MIXTRAL.items() if key != "num_local_experts"},
            ": num_local_experts: required, but not given",
        ),
        ({**MIXTRAL, "hidden_size": "4k"}, ": hidden_size: must be a whole number, not '4k'"),
        ({**MIXTRAL, "vocab_size": -1}, ": vocab_size: must be a whole number, not -1"),
        (
            {**MIXTRAL, "torch_dtype": "float64"},
            ": torch_dtype: 'float64' is not one of bfloat16, float16, float32",
        ),
        (
            {**MIXTRAL, "quantization_config": {"quant_method": "awq"}},
            ": quantization_config.quant_method: 'awq' is not known (known: fp8, mxfp4); "
            "say model.dtype and take quantization_config out",
        ),
        (
            {**QWEN3, "mlp_only_layers": [0]},
            ": mlp_only_layers: [0] is not supported (only []: every layer is MoE)",
        ),
        ({**DEEPSEEK, "moe_layer_freq": 2}, ": moe_layer_freq: only 1 is supported"),
    ],
)
def test_refuses(keys, message, config):
    with pytest.raises(InputError) as caught:
        read_config(config(keys), "config.json")
    assert str(caught.value) == f"config.json{message}"
