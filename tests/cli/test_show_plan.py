"""`show plan`: figures against hand counts, the page, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.running import Call

DENSE = (
    *("--topology", "nvswitch16", "--workload", "mixtral-8x7b"),
    *("--set", "model.moe=null", "--set", "model.dense_intermediate=14336"),
    *("--set", "traffic.phase=prefill", "--set", "traffic.tokens_per_gpu=1000"),
)


def test_a_plan_by_hand(call: Call) -> None:
    done = call(
        "show", "plan", *DENSE, "--set", "parallel={tp: 4, pp: 2, microbatches: 5}", "--json"
    )
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    assert (found["gpus"], found["microbatches"], found["tokens"]) == (16, 5, 16_000)
    first, last = found["stages"]
    assert (first["layers"], last["layers"]) == (list(range(16)), list(range(16, 32)))
    assert (first["gpus"], last["gpus"]) == (list(range(8)), list(range(8, 16)))
    assert [first[name] for name in ("tp", "dp", "ep", "expert_tp")] == [4, 2, 1, 4]
    assert first["tokens_per_replica"] == 16_000 / 2 / 5
    # Attention 4096 x 128 x (2 x 32 + 2 x 8), FFN 3 x 4096 x 14336, a quarter each; embedding.
    layer = 4096 * 128 * 80 + 3 * 4096 * 14336
    weights = 2 * (16 * layer + 32_000 * 4096) / 4
    parts = first["memory_bytes_per_gpu"]
    assert parts["dense weights"] == weights
    assert parts["experts"] == 0
    # Two KV heads of 128 on each GPU, keys and values, of 2048 + 8000 tokens in 16 layers.
    assert parts["KV cache"] == 10_048 * 16 * 2 * 2 * 128 * 2
    # Sent to the next stage: filled and read in turn.
    assert parts["buffers"] == 2 * 1600 * 4096 * 2
    size = 1600 * 4096 * 2
    wires = [w for w in found["wires"] if w["stage"] == 0 and w["layer"] == 0]
    assert [(w["what"], w["ranks"], w["groups"], w["bytes"]) for w in wires] == [
        ("allreduce", 4, 2, size),
        ("allreduce", 4, 2, size),
    ]
    (send,) = [w for w in found["wires"] if w["what"] == "send"]
    assert (send["layer"], send["groups"], send["bytes"]) == (15, 8, size)


def test_the_tables_fit_a_terminal_and_name_the_parts(call: Call) -> None:
    done = call("show", "plan", *DENSE, "--set", "parallel={tp: 4, pp: 2, microbatches: 5}")
    assert max(map(len, done.out.splitlines())) <= 80
    for words in ("0-15", "16-31", "all-reduce, 2 times", "to the next stage", "KV cache"):
        assert words in done.out


def test_a_plain_run_has_a_plan_too(call: Call) -> None:
    done = call("show", "plan", "--topology", "nvswitch16", "--workload", "moe128", "--json")
    (stage,) = json.loads(done.out)["stages"]
    assert [stage[name] for name in ("tp", "dp", "ep", "expert_tp")] == [1, 16, 16, 1]


def test_experts_are_summed_with_the_largest_share(call: Call) -> None:
    """7 experts on 2 GPUs: 4 and 3."""
    done = call(
        "show", "plan", "--topology", "a100x2", "--workload", "moe128", "--json",
        "--set", "model.moe.experts=7", "--set", "model.layers=1", "--set", "parallel.ep=2",
    )  # fmt: skip
    (stage,) = json.loads(done.out)["stages"]
    assert stage["memory_bytes_per_gpu"]["experts"] == 4 * 3 * 3072 * 3008 * 2


def test_the_page(call: Call, tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    plan = "parallel={tp: 4, pp: 2}"
    done = call("show", "plan", *DENSE, "--set", plan, "--html", str(page), "--plotlyjs", "cdn")
    assert (done.status, done.err) == (0, "")
    text = page.read_text()
    assert "mixtral-8x7b on nvswitch16" in text
    assert "layer 31, GPU 15" in text
    assert "stage 1: replica 1 of 2, rank 3 of 4" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "plan"), "error: show plan: write --topology T --workload W"),
        (("show", "plan", "--topology", "nvswitch16"), "error: show plan: write --topology T"),
        (("show", "plan", "moe128", "--topology", "h100x4"), "error: show plan: 'moe128': write "),
        (("show", "topology"), "error: show topology: give its name, or a path"),
        (("show", "gpu", "H100-SXM", "--workload", "x"), "error: show gpu: --workload goes with "),
        (
            ("show", "plan", "--topology", "h100x4", "--workload", "moe128", "--set",
             "parallel.tp=3"),
            "error: --set parallel.tp: tp 3 x pp 1 does not divide the 4 GPUs of h100x4",
        ),
        (("show", "plans"), "error: show: no 'plans' (did you mean 'plan'?); known: topology, "),
    ],
)  # fmt: skip
def test_refusals(call: Call, arguments: tuple[str, ...], said: str) -> None:
    done = call(*arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(said)
    assert done.err.count("\n") == 1


def test_what_lies_in_host_memory(call: Call) -> None:
    """Mixtral whole on each GPU: 8 of 32 layers of 2.90 GB must come, to two buffers."""
    given = (
        *("show", "plan", "--topology", "h100x4", "--workload", "mixtral-8x7b"),
        *("--set", "parallel={ep: 1, offload: layers}"),
    )
    done = call(*given, "--json")
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    (stage,) = found["stages"]
    layer = 2 * (4096 * 128 * 80 + 8 * 4096 + 8 * 3 * 4096 * 14336)
    parts = stage["memory_bytes_per_gpu"]
    assert stage["streamed_layers"] == [3, 7, 11, 15, 19, 23, 27, 31]
    assert stage["streamed_bytes_per_gpu"] == 8 * layer
    assert parts["fetched"] == 2 * layer
    assert parts["dense weights"] + parts["experts"] == 24 * layer + 2 * 2 * 32_000 * 4096
    # One layer more on the GPU would be too much.
    assert sum(parts.values()) <= found["hbm_bytes"] < sum(parts.values()) + layer
    text = call(*given).out
    assert max(map(len, text.splitlines())) <= 80
    assert "in host memory: weights, streamed to a GPU for every micro-batch" in text
    assert "8 of 32  23.2 GB" in text


def test_nothing_lies_in_host_memory_where_all_fits(call: Call) -> None:
    given = ("--set", "parallel={tp: 4, ep: 4, offload: experts}")
    done = call("show", "plan", "--topology", "h100x4", "--workload", "mixtral-8x7b", *given)
    assert (done.status, done.err) == (0, "")
    assert "in host memory: nothing, the routed experts of all layers fit" in done.out
