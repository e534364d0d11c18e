"""What is refused of a GPU's kernel figures and a model's types, and how it is said."""

from __future__ import annotations

import pytest

from simulator.errors import InputError
from simulator.spec.kernels import kernels
from simulator.spec.load import load_topology, load_workload


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "gpu.kernels={moe_bf17: {tile: 64}}",
            "--set gpu.kernels: unknown kernel family 'moe_bf17' (did you mean 'moe_bf16'?); "
            "known: bf16, fp8, fp8_block, moe_bf16, moe_fp8, moe_mxfp4, moe_mxfp4_trtllm",
        ),
        (
            "gpu.kernels={bf16: {fil: 64}}",
            "--set gpu.kernels.bf16.fil: unknown key (did you mean 'fill'?)",
        ),
        (
            "gpu.kernels={bf16: {passes: 1.5}}",
            "--set gpu.kernels.bf16.passes: must be <= 1, not 1.5",
        ),
        ("gpu.kernels={bf16: 3}", "--set gpu.kernels: bf16: must be a mapping, not 3"),
    ],
)
def test_a_gpu(override: str, message: str):
    with pytest.raises(InputError) as refused:
        load_topology("nvswitch16", [override])
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.dtypes={expert: fp8}",
            "--set model.dtypes.expert: unknown key (did you mean 'experts'?)",
        ),
        (
            "model.sliding_window={tokens: 0}",
            "--set model.sliding_window.tokens: must be >= 1, not 0",
        ),
        (
            "traffic.speculative={draft_tokens: 2, acceptance: 1.2}",
            "--set traffic.speculative.acceptance: must be <= 1, not 1.2",
        ),
        ("cuda_graphs=maybe", "--set cuda_graphs: must be true or false, not 'maybe'"),
    ],
)
def test_a_workload(override: str, message: str):
    with pytest.raises(InputError) as refused:
        load_workload("moe128", [override])
    assert str(refused.value) == message


def test_a_single_figure_by_its_path():
    gpu = load_topology("nvswitch16", ["gpu.kernels.moe_bf16.tile=32"]).gpu
    shipped = kernels()["moe_bf16"]
    assert gpu.kernels["moe_bf16"] == shipped.model_copy(update={"tile": 32})


def test_every_family_says_what_it_was_fitted_to():
    assert all("rows" in kernel.source for kernel in kernels().values())
