"""Parameters and bytes of models against hand counts and published figures."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.model import sizes
from simulator.spec.load import load_workload
from simulator.spec.schema import Model

BASE: dict[str, Any] = {
    "name": "made",
    "hidden": 10,
    "layers": 5,
    "vocab": 100,
    "dtype": "bf16",
    "attention": {"kind": "gqa", "heads": 6, "kv_heads": 2, "head_dim": 4},
    "moe": {"experts": 7, "top_k": 2, "intermediate": 3},
}


def made(**changes: Any) -> Model:
    return Model.model_validate(BASE | changes)


MLA = {
    "kind": "mla",
    "heads": 3,
    "q_lora_rank": 8,
    "kv_lora_rank": 5,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 2,
    "v_head_dim": 6,
}


def test_gqa_projections_by_hand():
    """Q and O: 10 x 24 each; K and V: 10 x 8 each."""
    assert sizes.attention_parameters(made()) == 2 * 240 + 2 * 80


def test_mla_projections_by_hand():
    """Down to 8, up to 3 x (4 + 2); down to 5 + 2, up to 3 x (4 + 6); out from 3 x 6."""
    wanted = 10 * 8 + 8 * 18 + 10 * 7 + 5 * 30 + 18 * 10
    assert sizes.attention_parameters(made(attention=MLA)) == wanted


def test_all_parameters_by_hand():
    """Two embeddings of 1,000; per layer 640 of attention; two dense layers of 3 x 10 x 20; three
    with a gate of 70, 7 experts of 90 and 2 shared ones of 3 x 10 x 4.
    """
    moe = BASE["moe"] | {"first_dense_layers": 2, "shared_experts": 2, "shared_intermediate": 4}
    model = made(dense_intermediate=20, moe=moe)
    wanted = 2 * 1000 + 5 * 640 + 2 * 600 + 3 * (70 + 7 * 90 + 2 * 120)
    assert sizes.parameters(model) == wanted


# Matrices only, worked out from each config.json by hand.
@pytest.mark.parametrize(
    ("name", "wanted", "published"),
    [
        ("mixtral-8x7b", 46_702_526_464, 46.7e9),
        ("qwen3-235b-a22b", 235_092_836_352, 235.1e9),
        ("gpt-oss-120b", 116_788_838_400, 116.83e9),
        ("deepseek-v3", 671_025_397_760, 671.0e9),
    ],
)
def test_shipped_models_have_their_published_size(name: str, wanted: int, published: float):
    counted = sizes.parameters(load_workload(name).model)
    assert counted == wanted
    assert counted == pytest.approx(published, rel=2e-3)


def test_an_expert_of_the_main_job_is_two_gigabytes_over_all_layers():
    model = load_workload("moe128").model
    assert sizes.expert_bytes(model) == 3 * 3072 * 3008 * 2
    assert 36 * sizes.expert_bytes(model) == pytest.approx(2.0e9, rel=5e-3)


@pytest.mark.parametrize(
    ("dtype", "element"), [("fp32", 4), ("bf16", 2), ("fp16", 2), ("fp8", 1), ("int8", 1),
                           ("fp4", 0.5)],
)  # fmt: skip
def test_bytes_follow_the_type(dtype: str, element: float):
    assert sizes.expert_bytes(made(dtype=dtype)) == 90 * element
    assert sizes.kv_bytes_per_token_layer(made(kv_dtype=dtype)) == 2 * 2 * 4 * element
    mla = made(attention=MLA, kv_dtype=dtype)
    assert sizes.kv_bytes_per_token_layer(mla) == (5 + 2) * element


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("deepseek-v3", 70_272),
        ("mixtral-8x7b", 131_072),
        ("qwen3-235b-a22b", 192_512),
        ("gpt-oss-120b", 73_728),
    ],
)
def test_kv_cache_per_token_of_shipped_models(name: str, wanted: int):
    model = load_workload(name).model
    assert model.layers * sizes.kv_bytes_per_token_layer(model) == wanted


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [("fp8_block", 8 + 32 / 16384), ("int4", 4 + 16 / 128), ("mxfp4", 4 + 8 / 32),
     ("nvfp4", 4 + 8 / 16)],
)  # fmt: skip
def test_scales_are_counted(dtype: str, bits: float):
    assert sizes.expert_bytes(made(dtype=dtype)) == pytest.approx(90 * bits / 8, rel=1e-12)


def test_parts_have_types_of_their_own():
    model = made(dtype="fp8", dtypes={"experts": "mxfp4", "attention": "bf16"})
    parts = {part: sizes.dtype_of(model, part) for part in ("attention", "dense", "experts",
                                                            "lm_head", "gate")}  # fmt: skip
    assert parts == {"attention": "bf16", "dense": "fp8", "experts": "mxfp4", "lm_head": "bf16",
                     "gate": "bf16"}  # fmt: skip
    head = made(dtypes={"lm_head": "fp8"})
    assert sizes.weight_bytes(head, "lm_head") == 1.0


def test_gpt_oss_weighs_what_its_files_do():
    """60.8 GiB (model card, arXiv 2508.10925): experts in MXFP4, the rest in BF16."""
    model = load_workload("gpt-oss-120b").model
    experts = model.layers * 128 * sizes.expert_bytes(model)
    rest = sizes.parameters(model) - model.layers * 128 * 3 * 2880 * 2880
    assert (experts + 2 * rest) / 2**30 == pytest.approx(60.8, rel=0.005)


@pytest.mark.parametrize(
    ("window", "wanted"),
    [
        (None, [False] * 5),
        ({"tokens": 9}, [True] * 5),
        ({"tokens": 9, "full_every": 2}, [True, False, True, False, True]),
        ({"tokens": 9, "full_every": 3}, [True, True, False, True, True]),
    ],
)
def test_windowed_layers(window: Any, wanted: list[bool]):
    model = made(sliding_window=window)
    assert sizes.windowed_layers(model) == wanted
    near = sum(wanted)
    assert sizes.kept_tokens(model, 20) == near * 9 + (5 - near) * 20
    assert sizes.kept_tokens(model, 4) == 5 * 4


def test_kv_cache_per_token_of_llama_3_1_8b():
    attention = {"kind": "gqa", "heads": 32, "kv_heads": 8, "head_dim": 128}
    model = made(hidden=4096, layers=32, attention=attention)
    assert model.layers * sizes.kv_bytes_per_token_layer(model) == 131_072


def test_llama_3_1_8b_has_its_published_size():
    """A dense model: 8.03 B parameters, 16.06 GB in BF16 (model card)."""
    model = made(
        hidden=4096,
        layers=32,
        vocab=128_256,
        attention={"kind": "gqa", "heads": 32, "kv_heads": 8, "head_dim": 128},
        dense_intermediate=14_336,
        moe=None,
    )
    assert sizes.parameters(model) == pytest.approx(8.03e9, rel=5e-3)
    assert sizes.parameters(model) * 2 == pytest.approx(16.06e9, rel=5e-3)


def test_multi_head_attention_is_gqa_with_as_many_kv_heads():
    attention = {"kind": "gqa", "heads": 6, "kv_heads": 6, "head_dim": 4}
    assert sizes.attention_parameters(made(attention=attention)) == 4 * 10 * 24
