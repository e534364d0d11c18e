"""Kernel times against the roofline by hand, on both sides of the ridge."""

from __future__ import annotations

from typing import Any

import closed_forms
import pytest

from simulator.model.compute import NOTHING, ComputeModel
from simulator.spec.load import load_topology
from simulator.spec.schema import Gpu, Model

REL = 1e-9
MODEL: dict[str, Any] = {
    "name": "made",
    "hidden": 1024,
    "layers": 2,
    "vocab": 5000,
    "dtype": "bf16",
    "attention": {"kind": "gqa", "heads": 16, "kv_heads": 4, "head_dim": 64},
    "dense_intermediate": 3000,
    "moe": {
        "experts": 32,
        "top_k": 4,
        "intermediate": 512,
        "shared_experts": 2,
        "shared_intermediate": 700,
        "first_dense_layers": 1,
    },
}
MLA = {
    "kind": "mla",
    "heads": 8,
    "q_lora_rank": 96,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
}


def gpu(*overrides: str) -> Gpu:
    """1 TFLOP/s in BF16 at 80 %, 100 GB/s at 90 %, 3 us per launch: the ridge is at 8.9 FLOP/B."""
    shown = [
        "gpu.flops={bf16: 1 TFLOP/s, fp8: 2 TFLOP/s}",
        "gpu.hbm_bandwidth=100 GB/s",
        "gpu.compute_efficiency=0.8",
        "gpu.memory_efficiency=0.9",
        "gpu.launch_overhead=3 us",
    ]
    return load_topology("h100x4", [*shown, *overrides]).gpu


RATES = closed_forms.Rates(0.8e12, 0.9e11, 3e-6)


def compute(phase: str = "decode", context: int = 100, **changes: Any) -> ComputeModel:
    return ComputeModel(Model.model_validate(MODEL | changes), gpu(), phase, context)


@pytest.mark.parametrize("rows", [1, 7, 64, 5000])
@pytest.mark.parametrize("active", [1, 3, 32])
def test_experts(rows: int, active: int):
    work = compute().experts(rows, active)
    flops = 2.0 * rows * 3 * 1024 * 512
    moved = 2.0 * active * 3 * 1024 * 512 + 2.0 * rows * (2 * 1024 + 3 * 512)
    assert (work.flops, work.bytes) == (flops, moved)
    wanted = closed_forms.roofline(flops, moved, 0.8e12, 0.9e11, 2, 3e-6)
    assert work.seconds == pytest.approx(wanted, rel=REL)
    wanted = closed_forms.gated_ffn(RATES, rows, active, 1024, 512)
    assert work.seconds == pytest.approx(wanted, rel=REL)


def test_few_rows_are_bound_by_memory_and_many_by_computing():
    """Below the ridge time hardly changes with the rows; above it it is proportional."""
    of = compute()
    few = [of.experts(rows, 1).seconds - 6e-6 for rows in (1, 2)]
    assert few[1] / few[0] < 1.01
    weights = 3 * 1024 * 512
    assert few[0] == pytest.approx((2.0 * weights + 2.0 * 3584) / 0.9e11, rel=REL)
    many = [of.experts(rows, 1).seconds - 6e-6 for rows in (5000, 10_000)]
    assert many[1] / many[0] == pytest.approx(2, rel=REL)
    assert many[0] == pytest.approx(2.0 * weights * 5000 / 0.8e12, rel=REL)


def test_at_the_ridge_both_sides_are_equal():
    """Rows r with 2 p r / F = (2 p + a r) / B, a bytes of activations per row."""
    parameters, per_row = 3 * 1024 * 512, 2.0 * 3584
    ridge = 2.0 * parameters / 0.9e11 / (2.0 * parameters / 0.8e12 - per_row / 0.9e11)
    of = compute()
    below, above = int(ridge), int(ridge) + 1
    moved = (2.0 * parameters + per_row * below) / 0.9e11
    assert of.experts(below, 1).seconds == pytest.approx(6e-6 + moved, rel=REL)
    computed = 2.0 * parameters * above / 0.8e12
    assert of.experts(above, 1).seconds == pytest.approx(6e-6 + computed, rel=REL)


@pytest.mark.parametrize("rows", [1, 30, 4000])
def test_dense_and_shared_ffn_and_head(rows: int):
    of = compute()
    dense = closed_forms.gated_ffn(RATES, rows, 1, 1024, 3000)
    shared = closed_forms.gated_ffn(RATES, rows, 1, 1024, 1400)
    head = closed_forms.lm_head(RATES, rows, 1024, 5000)
    assert of.dense_ffn(rows).seconds == pytest.approx(dense, rel=REL)
    assert of.shared_experts(rows).seconds == pytest.approx(shared, rel=REL)
    assert of.lm_head(rows).seconds == pytest.approx(head, rel=REL)
    assert of.lm_head(rows).flops == 2.0 * rows * 1024 * 5000


@pytest.mark.parametrize("rows", [1, 30, 4000])
@pytest.mark.parametrize("gate", [False, True])
def test_attention_with_grouped_heads_in_decode(rows: int, gate: bool):
    work = compute().attention(rows, gate)
    experts = 32 if gate else 0
    wanted = closed_forms.gqa_attention(RATES, rows, 1024, 16, 4, 64, 100, experts)
    assert work.seconds == pytest.approx(wanted, rel=REL)
    projections = 1024 * 64 * (2 * 16 + 2 * 4)
    flops = 2.0 * rows * (projections + 2 * 16 * 64 * 100 + 1024 * experts)
    assert work.flops == pytest.approx(flops, rel=REL)


def test_in_prefill_the_keys_are_read_once_and_not_by_every_row():
    decode = compute("decode", 1000).attention(64, False)
    prefill = compute("prefill", 1000).attention(64, False)
    keys = 2 * 4 * 64 * 2.0 * 1000
    assert decode.bytes - prefill.bytes == pytest.approx(63 * keys, rel=REL)
    assert decode.flops == prefill.flops


def test_latent_attention_works_on_the_latent_in_decode_and_on_heads_in_prefill():
    """Per key and head: scores over 64 + 16 and values over 64, against 32 + 16 and 24."""
    decode, prefill = (compute(phase, 1000, attention=MLA) for phase in ("decode", "prefill"))
    linear = 2.0 * 7 * (
        1024 * 96 + 96 * 8 * 48 + 1024 * 80 + 64 * 8 * (32 + 24) + 8 * 24 * 1024
    )  # fmt: skip
    assert decode.attention(7, False).flops == linear + 2.0 * 7 * 1000 * 8 * (80 + 64)
    assert prefill.attention(7, False).flops == linear + 2.0 * 7 * 1000 * 8 * (48 + 24)


def test_weights_of_a_type_with_units_of_its_own_run_at_their_rate():
    rows = 100_000  # bound by computing
    bf16 = compute().experts(rows, 1).seconds - 6e-6
    fp8 = compute(dtype="fp8").experts(rows, 1).seconds - 6e-6
    fp4 = compute(dtype="fp4").experts(rows, 1).seconds - 6e-6  # no units: converted to BF16
    assert bf16 == pytest.approx(2 * fp8, rel=REL)
    assert fp4 == bf16


def test_no_tokens_cost_nothing():
    of = compute()
    assert of.attention(0, True) == of.dense_ffn(0) == of.shared_experts(0) == NOTHING


def test_a_model_without_shared_experts_has_no_kernel_for_them():
    moe = {"experts": 32, "top_k": 4, "intermediate": 512}
    assert compute(moe=moe).shared_experts(5) == NOTHING


def test_a_shape_asked_for_again_is_the_same():
    of = compute()
    assert of.experts(5, 2) is of.experts(5, 2)
    assert of.attention(5, True) is of.attention(5, True)
    assert of.attention(5, True) != of.attention(5, False)
    assert of.experts(5, 2) != of.experts(2, 5)
