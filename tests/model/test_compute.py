"""Kernel times of a model against closed forms, on both sides of the ridge."""

from __future__ import annotations

from typing import Any

import closed_forms
import pytest

from simulator.model.compute import NOTHING, ComputeModel
from simulator.model.kernels import HOST_LAUNCH_S
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
    """1 TFLOP/s in BF16 at 80 %, 100 GB/s at 90 %, L2 so slow that it binds short tiles, 3 us per
    launch; round figures for families.
    """
    shown = [
        "gpu.flops={bf16: 1 TFLOP/s, fp8: 2 TFLOP/s}",
        "gpu.hbm_bandwidth=100 GB/s",
        "gpu.l2_bandwidth=40 GB/s",
        "gpu.compute_efficiency=0.8",
        "gpu.memory_efficiency=0.9",
        "gpu.launch_overhead=3 us",
        "gpu.kernels={bf16: {depth: 0.5, fill: 100.0},"
        " fp8: {compute: 0.5, memory: 0.8, launches: 2.0, depth: 0.1, fill: 50.0, quantise: 0.4},"
        " moe_bf16: {launches: 10.0, depth: 0.0, fill: 100.0, tile: 64, passes: 0.5},"
        " moe_mxfp4: {compute: 0.7, memory: 0.6, launches: 12.0, depth: 0.25, fill: 100.0,"
        " tile: 128, spare: 64, passes: 0.25}}",
    ]
    return load_topology("h100x4", [*shown, *overrides]).gpu


RATES = closed_forms.Rates(0.8e12, 0.9e11, 3e-6, 1.5e-6, 100)
FP8 = closed_forms.Rates(0.8e12, 0.72e11, 6e-6, 0.3e-6, 50, 1.0, 1.0, 0.4e11)
GROUPED = closed_forms.GroupedRates(0.8e12, 0.9e11, 30e-6, 100, 64, 0.5e11, l2_bytes_per_s=0.4e11)
MXFP4 = closed_forms.GroupedRates(
    0.56e12, 0.54e11, 36e-6, 100, 128, 0.25e11, 0.53125, l2_bytes_per_s=0.4e11, spare=64,
    depth_s=0.75e-6,
)  # fmt: skip


def compute(phase: str = "decode", context: int = 100, **changes: Any) -> ComputeModel:
    return ComputeModel(Model.model_validate(MODEL | changes), gpu(), phase, context)


@pytest.mark.parametrize("counts", [[1], [7, 0, 64, 65], [5000, 1], [3] * 32, [0, 128]])
@pytest.mark.parametrize("tokens", [None, 9])
def test_experts_by_their_real_rows(counts: list[int], tokens: int | None):
    work = compute().experts_by_rows(counts, tokens)
    came = sum(counts) if tokens is None else tokens
    wanted = closed_forms.fused_moe(GROUPED, came, counts, 1024, 512)
    assert work.seconds == pytest.approx(wanted, rel=REL)
    assert work.flops == 2.0 * sum(counts) * 3 * 1024 * 512
    weights = sum(1 for count in counts if count) * 3 * 1024 * 512
    gemms = sum(counts) * (1024 + 2 * 512 + 512 + 1024)
    passes = came * 1024 + sum(counts) * 3 * (1024 + 512)
    assert work.bytes == pytest.approx(2.0 * (weights + gemms + passes), rel=REL)


@pytest.mark.parametrize(("rows", "active"), [(64, 4), (1, 1), (640, 32), (100, 3)])
def test_experts_evenly_spread(rows: int, active: int):
    each = -(-rows // active)
    counts = [each] * active
    counts[0] -= each * active - rows
    by_rows = compute().experts_by_rows(counts)
    assert compute().experts(rows, active) == by_rows


def test_skewed_rows_take_longer_only_by_their_tiles():
    """Same rows, same experts: four times 64 are four tiles; 253 and three single ones seven. The
    longest tile is the same where experts have 6400 rows on average.
    """
    even, skewed = (compute().experts_by_rows(c) for c in ([64] * 4, [253, 1, 1, 1]))
    assert (even.flops, even.bytes) == (skewed.flops, skewed.bytes)
    assert skewed.seconds > even.seconds
    many = compute().experts_by_rows([6400] * 4).seconds - 30e-6
    assert compute().experts_by_rows([25_597, 1, 1, 1]).seconds - 30e-6 == pytest.approx(
        many, rel=0.01
    )


def test_a_fetched_expert_is_two_plain_gemms():
    for rows in (1, 300):
        wanted = closed_forms.gated_ffn(RATES, rows, 1024, 512)
        assert compute().expert(rows).seconds == pytest.approx(wanted, rel=REL)


def test_few_rows_are_bound_by_memory_and_many_by_computing():
    fast = gpu("gpu.flops={bf16: 100 TFLOP/s}", "gpu.l2_bandwidth=10 TB/s")
    quick = ComputeModel(Model.model_validate(MODEL), fast, "decode", 100)
    few = [quick.experts(rows, 1).seconds - 30e-6 for rows in (1, 2)]
    assert few[1] / few[0] < 1.01
    of, weights = compute(), 3 * 1024 * 512
    assert few[0] == pytest.approx(2.0 * weights / 0.9e11, rel=0.01)
    many = [of.experts(rows, 1).seconds - 30e-6 for rows in (64_000, 128_000)]
    assert many[1] / many[0] == pytest.approx(2, rel=1e-3)
    filled = 2.0 * 64_000 * (1024 * (1024 + 100) + 1024 * (512 + 100)) / 0.8e12
    passes = 64_000 * (4 * 1024 + 3 * 512) * 2 / 0.5e11
    assert many[0] == pytest.approx(filled + passes, rel=2e-3)


@pytest.mark.parametrize("rows", [1, 30, 4000])
def test_dense_and_shared_ffn_and_head(rows: int):
    of = compute()
    dense = closed_forms.gated_ffn(RATES, rows, 1024, 3000)
    shared = closed_forms.gated_ffn(RATES, rows, 1024, 1400)
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


def test_multi_head_attention_has_as_many_key_heads():
    many = {"kind": "gqa", "heads": 16, "kv_heads": 16, "head_dim": 64}
    wanted = closed_forms.gqa_attention(RATES, 8, 1024, 16, 16, 64, 100, 0)
    assert compute(attention=many).attention(8, False).seconds == pytest.approx(wanted, rel=REL)


def test_in_prefill_the_keys_are_read_once_and_not_by_every_row():
    decode = compute("decode", 1000).attention(64, False)
    prefill = compute("prefill", 1000).attention(64, False)
    keys = 2 * 4 * 64 * 2.0 * 1000
    assert decode.bytes - prefill.bytes == pytest.approx(63 * keys, rel=REL)
    assert decode.flops == prefill.flops


def test_a_window_bounds_the_keys():
    """Every second layer attends to 128 keys, the others to all 1,000."""
    of = compute("decode", 1000, layers=4, sliding_window={"tokens": 128, "full_every": 2})
    assert of.windowed == [0, 2]
    for windowed, keys in ((False, 1000), (True, 128)):
        wanted = closed_forms.gqa_attention(RATES, 8, 1024, 16, 4, 64, keys, 32)
        assert of.attention(8, True, windowed).seconds == pytest.approx(wanted, rel=REL)
    short = compute("decode", 100, sliding_window={"tokens": 128})
    assert short.windowed == [0, 1]
    assert short.attention(8, True, True) == short.attention(8, True)


def latent(rows: int, keys: int, absorbed: bool, sequences: float, expanded: int) -> float:
    """8 heads of 32 + 16 and 24, latent 64 + 16, query rank 96."""
    g, of = closed_forms.gemm, RATES
    seconds = 2 * closed_forms.passed(of, 4 * rows * 1024)
    seconds += g(of, rows, 96 + 80, 1024) + g(of, rows, 8 * 48, 96)
    seconds += closed_forms.passed(of, 2 * rows * (8 * 48 + 80))
    if absorbed:
        for n, k in ((64, 32), (24, 64)):  # eight products in one kernel
            moved = 8 * 2 * (n * k + rows * k + rows * n)
            computed = 8 * 2 * rows * n * (k + 100) / 0.8e12
            seconds += 3e-6 + closed_forms.rounded_ridge(computed, moved / 0.9e11)
            seconds += g(of, 0, 0, k) - 3e-6  # depth
        scored, valued, read = 80, 64, sequences * keys * 80 * 2
    else:
        seconds += g(of, expanded, 8 * (32 + 24), 64)
        scored, valued, read = 48, 24, sequences * keys * 8 * (48 + 24) * 2
    touched = rows * 8 * (scored + valued) * 2
    seconds += closed_forms.heads(of, 8 * (scored + valued) * keys * rows, read + touched)
    return seconds + g(of, rows, 1024, 8 * 24)


@pytest.mark.parametrize(
    ("phase", "absorb", "absorbed"),
    [
        ("decode", "decode", True),
        ("decode", "never", False),
        ("prefill", "decode", False),
        ("prefill", "always", True),
    ],
)
def test_latent_attention_absorbed_or_not(phase: str, absorb: str, absorbed: bool):
    work = compute(phase, 1000, attention={**MLA, "absorb": absorb}).attention(7, False)
    sequences = 7 if phase == "decode" else 1
    expanded = 7000 if phase == "decode" else 7
    wanted = latent(7, 1000, absorbed, sequences, expanded)
    assert work.seconds == pytest.approx(wanted, rel=REL)


def test_latent_attention_works_on_the_latent_in_decode_and_on_heads_in_prefill():
    """Per key and head: scores over 64 + 16 and values over 64, against 32 + 16 and 24."""
    decode, prefill = (compute(phase, 1000, attention=MLA) for phase in ("decode", "prefill"))
    linear = 2.0 * 7 * (
        1024 * 96 + 96 * 8 * 48 + 1024 * 80 + 64 * 8 * (32 + 24) + 8 * 24 * 1024
    )  # fmt: skip
    assert decode.attention(7, False).flops == linear + 2.0 * 7 * 1000 * 8 * (80 + 64)
    assert prefill.attention(7, False).flops == linear + 2.0 * 7 * 1000 * 8 * (48 + 24)


def test_parts_have_types_of_their_own():
    """Experts in MXFP4, the rest in BF16; then everything but the head and the gate in FP8."""
    of = compute(dtypes={"experts": "mxfp4"})
    wanted = closed_forms.fused_moe(MXFP4, 40, [40], 1024, 512)
    assert of.experts(20, 1).seconds == pytest.approx(
        closed_forms.fused_moe(MXFP4, 20, [20], 1024, 512), rel=REL
    )
    assert of.experts(40, 1).seconds == pytest.approx(wanted, rel=REL)
    assert of.dense_ffn(40) == compute().dense_ffn(40)
    eight = compute(dtype="fp8")
    wanted = closed_forms.gemm(FP8, 40, 6000, 1024) + closed_forms.passed(RATES, 3 * 40 * 3000)
    wanted += closed_forms.gemm(FP8, 40, 1024, 3000)
    assert eight.dense_ffn(40).seconds == pytest.approx(wanted, rel=REL)
    assert eight.lm_head(40) == compute().lm_head(40)
    assert compute(dtypes={"lm_head": "fp8"}).lm_head(40) != compute().lm_head(40)


def test_weights_without_units_of_their_own_are_converted_on_the_way():
    """INT4 reads fewer bytes and computes as BF16."""
    four, plain = compute(dtypes={"dense": "int4"}), compute()
    assert four.dense_ffn(100_000).seconds == pytest.approx(
        plain.dense_ffn(100_000).seconds, rel=0.01
    )
    weights = 3 * 1024 * 3000
    saved = plain.dense_ffn(1).bytes - four.dense_ffn(1).bytes
    assert saved == pytest.approx(weights * (2.0 - 0.515625), rel=REL)


def test_guesses_share_the_cache_of_their_sequence():
    """Four sequences of three rows each read four caches; twelve rows of their own, twelve."""
    model = Model.model_validate(MODEL)
    guessed = ComputeModel(model, gpu(), "decode", 1000, queries=3).attention(12, False)
    alone = compute("decode", 1000).attention(12, False)
    cache = 2 * 4 * 64 * 2.0 * 1000
    assert alone.bytes - guessed.bytes == pytest.approx(8 * cache, rel=REL)
    assert alone.flops == guessed.flops


def test_without_graphs_the_host_bounds_short_kernels_and_not_long_ones():
    model = Model.model_validate(MODEL)
    fast = gpu("gpu.launch_overhead=0.1 us", "gpu.hbm_bandwidth=100 TB/s",
               "gpu.l2_bandwidth=100 TB/s", "gpu.flops={bf16: 1 PFLOP/s}")  # fmt: skip
    eager = ComputeModel(model, fast, "decode", 100, cuda_graphs=False)
    graph = ComputeModel(model, fast, "decode", 100)
    # Norm and logits; two GEMMs and the activation; two norms, four of attention, the gate.
    for work, count in ((eager.lm_head(1), 2), (eager.dense_ffn(1), 3),
                        (eager.attention(1, True), 7), (eager.experts(1, 1), 8)):  # fmt: skip
        assert work.seconds == pytest.approx(count * HOST_LAUNCH_S, rel=REL)
    assert graph.dense_ffn(1).seconds < 3 * HOST_LAUNCH_S
    assert eager.dense_ffn(100_000) == graph.dense_ffn(100_000)


def test_no_tokens_cost_nothing():
    of = compute()
    assert of.attention(0, True) == of.dense_ffn(0) == of.shared_experts(0) == NOTHING
    assert of.lm_head(0) == of.expert(0) == of.experts_by_rows([0, 0]) == NOTHING


def test_a_model_without_shared_experts_has_no_kernel_for_them():
    moe = {"experts": 32, "top_k": 4, "intermediate": 512}
    assert compute(moe=moe).shared_experts(5) == NOTHING


def test_a_shape_asked_for_again_is_the_same():
    of = compute()
    assert of.experts(5, 2) is of.experts(5, 2)
    assert of.experts_by_rows([2, 3], 4) is of.experts_by_rows([3, 2], 4)
    assert of.attention(5, True) is of.attention(5, True)
    assert of.attention(5, True) != of.attention(5, False)
    assert of.experts(5, 2) != of.experts(2, 5)
