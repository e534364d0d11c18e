"""What is kept in memory, and the error that says by how much and where it does not fit."""

from __future__ import annotations

import re

import pytest

from simulator.engine.simulate import simulate
from simulator.errors import InputError
from simulator.model import footprint
from simulator.runfiles.rundir import open_run
from simulator.spec.load import load_inputs, load_workload

GIB = 2.0**30


def test_parts_by_hand():
    """Mixtral: 32 layers, GQA 4096 -> 32 and 8 heads of 128, experts of 3 x 4096 x 14336, BF16."""
    work = load_workload("mixtral-8x7b", ["traffic.tokens_per_gpu=3", "traffic.context=1000"])
    parts = footprint.gpu_bytes(work, resident_experts=2, home_experts=1)
    attention = 4096 * 128 * (2 * 32 + 2 * 8)
    assert parts["dense weights"] == 2 * (32 * (attention + 4096 * 8) + 2 * 32000 * 4096)
    assert parts["experts"] == 2 * 3 * 32 * 3 * 4096 * 14336
    assert parts["KV cache"] == 3 * 1000 * 131_072
    assert parts["activations"] > 0


def test_in_prefill_one_sequence_is_cached():
    changes = ["traffic.phase=prefill", "traffic.tokens_per_gpu=500", "traffic.context=1000"]
    parts = footprint.gpu_bytes(load_workload("mixtral-8x7b", changes), 1, 0)
    assert parts["KV cache"] == 1500 * 131_072


def test_dense_layers_and_shared_experts_are_on_every_gpu():
    work = load_workload("deepseek-v3")
    parts = footprint.gpu_bytes(work, 0, 0)
    attention = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168
    dense = 61 * attention + 3 * 3 * 7168 * 18432 + 58 * 3 * 7168 * 2048
    scaled = dense * (1 + 4 / 128**2)
    plain = 2 * (2 * 129280 * 7168 + 58 * 7168 * 256)
    assert parts["dense weights"] == pytest.approx(scaled + plain, rel=1e-12)
    assert parts["experts"] == 0


def test_a_windowed_layer_keeps_its_window_only():
    """gpt-oss-120b: 18 of 36 layers keep 128 of 2,048 tokens, 2 x 8 x 64 numbers each."""
    parts = footprint.gpu_bytes(load_workload("gpt-oss-120b"), 0, 0)
    assert parts["KV cache"] == 16 * 18 * (2048 + 128) * 2 * 8 * 64 * 2
    short = load_workload("gpt-oss-120b", ["traffic.context=100"])
    assert footprint.gpu_bytes(short, 0, 0)["KV cache"] == 16 * 36 * 100 * 2 * 8 * 64 * 2


def test_guesses_share_the_cache_of_their_sequence():
    changes = ["traffic.tokens_per_gpu=6", "traffic.context=1000"]
    guessing = [*changes, "traffic.speculative={draft_tokens: 2, acceptance: 0.8}"]
    alone, shared = (
        footprint.gpu_bytes(load_workload("mixtral-8x7b", some), 1, 0)["KV cache"]
        for some in (changes, guessing)
    )
    assert (alone, shared) == (6 * 1000 * 131_072, 2 * 1000 * 131_072)


def refused(topology: str, workload: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught, open_run(None) as run:
        simulate(load_inputs(topology, workload, overrides), run, 0)
    return str(caught.value)


def test_the_error_says_by_how_much_and_where():
    """Mixtral on one A100: 8 experts x 32 layers x 352 MB are 84 GiB alone."""
    said = refused("a100x2", "mixtral-8x7b", "parallel.ep=1")
    work = load_workload("mixtral-8x7b")
    needed = sum(footprint.gpu_bytes(work, 8, 0).values())
    room = 0.95 * load_inputs("a100x2", "mixtral-8x7b").topology.gpu.hbm_capacity_bytes
    assert "\n" not in said
    assert said.startswith(
        f"mixtral-8x7b does not fit: gpu0 (A100-SXM-80GB) needs {needed / GIB:.1f} GiB"
    )
    assert f"experts {8 * 32 * 3 * 4096 * 14336 * 2 / GIB:.1f}" in said
    assert f"{(needed - room) / GIB:.1f} GiB too much" in said
    assert said.endswith(
        "any of these would do: parallel.ep=2, expert_slots=6 or less, parallel.offload=experts, "
        "or parallel.offload=layers"
    )


SMALL = ("traffic.steps=1", "traffic.warmup_steps=0")


@pytest.mark.parametrize(
    ("topology", "workload", "overrides", "ways"),
    [
        (
            "a100x8",
            "mixtral-8x7b",
            ("parallel.ep=1",),
            ["ep=2", "expert_slots=", "offload=experts", "offload=layers"],
        ),
        ("h100x4", "mixtral-8x7b", ("traffic.context=40000",), ["tokens_per_gpu=", "context="]),
        (
            "h100x4",
            "mixtral-8x7b",
            ("parallel.ep=2", "traffic.tokens_per_gpu=600"),
            ["tokens_per_gpu=", "context="],
        ),
        (
            "h100x4",
            "mixtral-8x7b",
            ("parallel={ep: 1, microbatches: 1}", "overlap=none"),
            ["ep=2", "offload=experts", "offload=layers"],
        ),
        (
            "a100x8",
            "mixtral-8x7b",
            ("parallel={ep: 1, offload: experts, resident_layers: 31}",),
            ["ep=2", "resident_layers="],
        ),
        (
            "h100x4",
            "qwen3-235b-a22b",
            (),
            ["slots=", "offload=experts", "offload=layers", "8 GPUs"],
        ),
        ("h100x4", "qwen3-235b-a22b", ("traffic.context=2000000",), ["no one change"]),
        ("dgx-h100", "mlperf-summarization", ("model.layers=200",), ["offload=layers"]),
    ],
)
def test_each_way_out_is_one(
    topology: str, workload: str, overrides: tuple[str, ...], ways: list[str]
) -> None:
    """Alone each makes a run possible, and one more of what is to be less does not."""
    said = refused(topology, workload, *overrides).partition("too much; ")[2]
    found = re.findall(r"(\S+=\w+)(?: or less)?|(\d+) GPUs", said)
    told = [change or f"{count} GPUs" for change, count in found] or [said]
    assert [way in text for way, text in zip(ways, told, strict=True)] == [True] * len(ways)
    for change, count in found:
        given = [*overrides, *SMALL]
        if count:
            given.append(f"build.gpus={count}")
        elif change.startswith("parallel.") and given[0].startswith("parallel={"):
            key, _, value = change.removeprefix("parallel.").partition("=")
            before = [part for part in given[0][10:-1].split(", ") if part.split(":")[0] != key]
            given[0] = "parallel={" + ", ".join([*before, f"{key}: {value}"]) + "}"
        else:
            given.append(change)
        with open_run(None) as run:
            assert simulate(load_inputs(topology, workload, given), run, 0).gpus
        key, _, value = change.partition("=")
        if change and f"{change} or less" in said and "resident" not in key:
            assert "too much" in refused(topology, workload, *given, f"{key}={int(value) + 1}")


def test_what_would_let_a_model_be_served() -> None:
    """A replica on one A100 does not fit; on as many as are said it does, on half of them not."""
    from simulator.engine.serving.simulate import serve

    with pytest.raises(InputError, match=r"too much; parallel.ep=4 would do$"), open_run(None) as r:
        serve(load_inputs("a100x8", "moe128-serving", ["parallel.ep=1"]), r, 0)
    with pytest.raises(InputError, match=r"parallel.ep=4 would do$"), open_run(None) as run:
        serve(load_inputs("a100x8", "moe128-serving", ["parallel.ep=2"]), run, 0)
    given = ["parallel.ep=4", "requests.limit=2", "model.layers=36"]
    with open_run(None) as run:
        assert serve(load_inputs("a100x8", "moe128-serving", given), run, 0).gpus == 8


def test_keeping_fewer_experts_makes_it_fit():
    inputs = load_inputs("a100x2", "mixtral-8x7b", ["parallel.ep=1", "expert_slots=4"])
    with open_run(None) as run:
        assert simulate(inputs, run, 0).gpus == 2


def test_the_gpu_with_the_larger_share_is_named():
    """5 experts on 2 GPUs: shares of 2 and 3; only the second GPU is too small for its share."""
    moe = "{experts: 5, top_k: 1, intermediate: 14336}"
    work = load_workload("mixtral-8x7b", [f"model.moe={moe}"])
    parts = [sum(footprint.gpu_bytes(work, held, 0).values()) for held in (2, 3)]
    capacity = sum(parts) / 2 / 0.95
    said = refused(
        "a100x2", "mixtral-8x7b", f"model.moe={moe}", f"gpu.hbm_capacity={capacity / GIB} GiB"
    )
    assert "does not fit: gpu1 " in said


def test_a_host_that_cannot_hold_the_offloaded_experts():
    said = refused("h100x4", "moe128", "topology.build.dram.capacity=200 GiB", "expert_slots=4")
    needed = 128 * 36 * 3 * 3072 * 3008 * 2 / GIB
    assert said.startswith(
        f"moe128 does not fit: dram0 must hold {needed:.0f} GiB of experts and has 200 GiB"
    )
