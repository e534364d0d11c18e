"""Figures of hand-made runs, worked out on paper beside the spans.

The run of `hand_made`: two GPUs, step 0 a warm-up (0..10 s), step 1 measured (10..20 s), one MoE
layer and the LM head. In the sketch a letter is half a second; a attention, e experts, h head,
d dispatch, c combine.

    s        10  11  12  13  14  15  16  17  18  19  20
    compute0 a a a a . . . . . . . . e e h h . . . .
    comm0    . . . . . d d d . . . . . . . c . . . .     (the combine from 17.25 to 18)
    compute1 a a a a a a . . e e e . . . . . h h h .
    comm1    . . . . . . . d d d . c . . . . . . . .
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from simulator.errors import InputError
from simulator.results.analyzer import Context, analyze, analyze_dir
from simulator.runfiles.rundir import RunDir
from simulator.runfiles.spans import (
    ATTENTION,
    COMBINE,
    COMM,
    COMPUTE,
    COPY,
    DEMAND,
    DISPATCH,
    EXPERTS,
    FFN,
    LM_HEAD,
    PREFETCH,
    AccessWriter,
    SpanWriter,
    write_links,
    write_loads,
    write_steps,
)
from simulator.runfiles.tables import whole_steps

CONTEXT = Context(gpus=2, experts=4, peak_flops_per_s=100.0)


def hand_made(path: Path) -> Path:
    files = RunDir(path)
    with SpanWriter(files.spans) as spans:
        spans.append(0, 0, 0, 0, 0, COMPUTE, ATTENTION, 0, 9, 0, flops=1e9)
        spans.append(0, 0, 0, 0, 0, COMM, DISPATCH, 1, 9, 1, bytes_=1e9)
        spans.append(1, 0, 0, 0, 0, COMPUTE, ATTENTION, 10, 12, 10, flops=100)
        # Asked for in the warm-up: its bytes are not counted, its second within the step is.
        spans.append(0, -1, 0, 0, 1, COPY, PREFETCH, 9, 11, 9, expert=1, bytes_=50, used=True)
        spans.append(1, -1, 0, 0, 0, COPY, PREFETCH, 12, 12.5, 12, expert=2, bytes_=30, used=True)
        spans.append(1, 0, 0, 0, 1, COMPUTE, ATTENTION, 10, 13, 10, flops=200)
        spans.append(1, 0, 0, 0, 0, COMM, DISPATCH, 12.5, 14, 12, bytes_=7)
        spans.append(1, 0, 0, 0, 1, COMM, DISPATCH, 13.5, 15, 13, bytes_=8)
        spans.append(1, 0, 0, 0, 1, COMPUTE, EXPERTS, 14, 15.5, 14, peer=0, flops=40)
        spans.append(1, 0, 0, 0, 0, COPY, DEMAND, 15, 16, 15, expert=3, bytes_=100, used=True)
        spans.append(1, 0, 0, 0, 1, COMM, COMBINE, 15.5, 16, 15.5, bytes_=9)
        spans.append(1, 0, 0, 0, 0, COMPUTE, EXPERTS, 16, 17, 15, peer=1, fetch_wait_s=1, flops=60)
        spans.append(1, 0, 0, 1, 0, COMPUTE, LM_HEAD, 17, 18, 17, peer=1, flops=100)
        spans.append(1, 0, 0, 0, 0, COMM, COMBINE, 17.25, 18, 17, bytes_=11)
        spans.append(1, 0, 0, 1, 1, COMPUTE, LM_HEAD, 18, 19.5, 18, peer=0, flops=100)
        # Runs on after the end of the last step.
        spans.append(1, -1, 0, 0, 1, COPY, PREFETCH, 18, 22, 18, expert=0, bytes_=70)
    write_steps(files.steps, [0, 1], [0.0, 10.0], [10.0, 20.0], [64, 128], [True, False])
    write_links(
        files.links,
        ["gpu0 -> switch", "gpu1 -> switch", "dram -> gpu0"],
        ["nvlink", "nvlink", "pcie"],
        [10.0, 10.0, 20.0],
        [18.0, 17.0, 200.0],
    )
    with AccessWriter(files.accesses) as accesses:
        accesses.append(0, [0], [0], [9], [9], [9])
        accesses.append(1, [0, 1], [0, 0], [3, 2], [1, 0], [2, 0])
    # Layer 0: GPUs 30 and 10 rows, experts 20, 10, 10, 0; layer 1: 5 and 5, experts 5, 0, 0, 5.
    write_loads(files.loads, [0, 0, 0, 1, 1], [0, 1, 2, 0, 3], [0, 0, 1, 0, 1], [20, 10, 10, 5, 5])
    return path


@pytest.fixture
def figures(tmp_path: Path) -> dict[str, Any]:
    return analyze(hand_made(tmp_path), CONTEXT)


def test_speed(figures: dict[str, Any]) -> None:
    assert figures["gpus"] == 2
    assert figures["steps"] == 1
    assert figures["tokens"] == 128
    assert figures["simulated_time_s"] == 10
    assert figures["throughput_tokens_per_s"] == pytest.approx(12.8)
    assert figures["throughput_tokens_per_s_per_gpu"] == pytest.approx(6.4)
    assert figures["step_time_s"] == {"mean": 10, "p50": 10, "min": 10, "max": 10}


def test_breakdown(figures: dict[str, Any]) -> None:
    # GPU 0: 2 + 1 + 1 compute. Before the experts 12..16: the peer computes until 13, its data
    #        travel until 15, the weights come at 16. The head follows at once. Idle from 18.
    # GPU 1: 3 + 1.5 + 1.5 compute. Before the experts 13..14: GPU 0's data were there at 12.
    #        Before the head 15.5..18: GPU 0 computes until 17. Idle from 19.5.
    expected_s = {
        "compute": (4 + 6) / 2,
        "exposed_communication": (2 + 2) / 2,
        "fetch_stall": (1 + 0) / 2,
        "peer_wait": (1 + 1.5) / 2,
        "idle": (2 + 0.5) / 2,
    }
    assert figures["breakdown_s"] == pytest.approx(expected_s, rel=1e-12)
    assert figures["breakdown"] == pytest.approx({k: v / 10 for k, v in expected_s.items()})


def test_critical_path(figures: dict[str, Any]) -> None:
    # Back from 19.5: head of GPU 1 (1.5), combine of GPU 0 since 17 (1), its experts (1), their
    # weights (1), dispatch of GPU 1 since 13 (2), its attention (3).
    assert figures["critical_path"] == pytest.approx(
        {"compute": 0.55, "communication": 0.3, "fetch_stall": 0.1, "idle": 0.05}, rel=1e-12
    )
    assert figures["bottleneck"] == "compute"
    assert figures["bottleneck_sentence"] == "computing on the GPUs: 55 % of a step"


def test_streams_links_and_overlap(figures: dict[str, Any]) -> None:
    assert figures["compute_utilization"] == pytest.approx(0.5)
    assert figures["compute_max_utilization"] == pytest.approx(0.6)
    assert figures["comm_utilization"] == pytest.approx((2.25 + 2.0) / 2 / 10)
    assert figures["comm_max_utilization"] == pytest.approx(0.225)
    assert figures["copy_utilization"] == pytest.approx((1.5 + 3.0) / 2 / 10)
    assert figures["copy_max_utilization"] == pytest.approx(0.3)
    # Of 4.25: GPU 1's dispatch 14..15 under its experts, GPU 0's combine 17.25..18 under its head.
    assert figures["overlap_achieved"] == pytest.approx(1.75 / 4.25)
    assert figures["links"] == {
        "nvlink": {
            "links": 2,
            "bytes": 35.0,
            "mean_utilization": pytest.approx(0.175),
            "max_utilization": pytest.approx(0.18),
        },
        "pcie": {"links": 1, "bytes": 200.0, "mean_utilization": 1.0, "max_utilization": 1.0},
    }
    assert figures["hottest_link"] == "dram -> gpu0"
    assert figures["hottest_link_utilization"] == 1.0


def test_cache_traffic_load_and_mfu(figures: dict[str, Any]) -> None:
    assert figures["cache_accesses"] == 8
    assert figures["cache_hit_rate"] == pytest.approx(5 / 8)
    assert figures["cache_late_hit_rate"] == pytest.approx(1 / 8)
    assert figures["cache_miss_rate"] == pytest.approx(2 / 8)
    assert figures["dispatch_bytes"] == 15
    assert figures["combine_bytes"] == 20
    assert figures["demand_bytes"] == 100
    assert figures["prefetch_bytes"] == 100
    assert figures["wasted_prefetch_bytes"] == 70
    assert figures["prefetch_accuracy"] == 0.5
    assert figures["load_imbalance"] == {
        "gpus": pytest.approx((30 / 20 + 1) / 2),
        "experts": pytest.approx((20 / 10 + 5 / 2.5) / 2),
    }
    assert len(figures["gpu_load"]["layers"]) == 2
    assert figures["gpu_load"]["max_over_mean"] == [pytest.approx(1.5), pytest.approx(1.0)]
    assert figures["gpu_load"]["balancedness"] == pytest.approx((20 / 30 + 1) / 2)
    assert figures["rebalance_bytes"] == 0
    assert figures["mfu"] == pytest.approx(600 / (100 * 2 * 10))


def test_the_figures_are_json(figures: dict[str, Any]) -> None:
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_a_finished_run_gives_the_same_figures(tmp_path: Path, figures: dict[str, Any]) -> None:
    RunDir(tmp_path).write_result({"context": asdict(CONTEXT), "summary": figures})
    assert analyze_dir(tmp_path) == figures


def one_step(path: Path, rows: list[tuple[Any, ...]], gpus: int = 2, length_s: float = 10) -> Any:
    """Figures of a step 0..length_s of these spans (arguments of `append` after `step`)."""
    files = RunDir(path)
    with SpanWriter(files.spans) as spans:
        for row in rows:
            spans.append(0, *row)
    write_steps(files.steps, [0], [0.0], [length_s], [10], [False])
    write_links(files.links, [], [], [], [])
    AccessWriter(files.accesses).close()
    write_loads(files.loads, [], [], [], [])
    return analyze(path, Context(gpus=gpus, experts=4, peak_flops_per_s=1.0))


def test_what_does_not_apply_is_none(tmp_path: Path) -> None:
    figures = one_step(tmp_path, [(0, 0, 0, 0, COMPUTE, FFN, 0, 10, 0)], gpus=1)
    assert figures["breakdown"]["compute"] == 1
    assert figures["critical_path"]["compute"] == 1
    for name in (
        "overlap_achieved",
        "cache_hit_rate",
        "cache_late_hit_rate",
        "cache_miss_rate",
        "prefetch_accuracy",
        "hottest_link",
        "hottest_link_utilization",
    ):
        assert figures[name] is None, name
    assert figures["load_imbalance"] == {"gpus": None, "experts": None}
    assert figures["gpu_load"] == {"layers": [], "max_over_mean": [], "balancedness": None}
    assert figures["links"] == {}


def test_a_busy_stream_is_followed_and_a_late_start_is_idle(tmp_path: Path) -> None:
    # Micro-batch 1 is ready at 1 but its stream is busy until 3; the last kernel starts a second
    # after its data were there, without a fetch.
    figures = one_step(
        tmp_path,
        [
            (0, 0, 0, 0, COMPUTE, ATTENTION, 0, 3, 0),
            (1, 0, 0, 0, COMPUTE, ATTENTION, 3, 5, 1),
            (0, 0, 0, 0, COMPUTE, FFN, 6, 9, 5),
        ],
        gpus=1,
    )
    assert figures["breakdown_s"] == pytest.approx(
        {"compute": 8, "exposed_communication": 0, "fetch_stall": 0, "peer_wait": 0, "idle": 2}
    )
    assert figures["critical_path"] == pytest.approx(
        {"compute": 0.8, "communication": 0, "fetch_stall": 0, "idle": 0.2}
    )


def test_a_fetch_asked_for_under_compute_stalls_only_after_it(tmp_path: Path) -> None:
    # Fetch mode: the experts of micro-batch 0 are wanted at 2, their weights arrive at 7; until 5
    # the stream works on micro-batch 1. The GPU stalls 5..7; the path waits for the weights 2..7.
    figures = one_step(
        tmp_path,
        [
            (0, 0, 0, 0, COMPUTE, ATTENTION, 0, 2, 0),
            (1, 0, 0, 0, COMPUTE, ATTENTION, 2, 5, 0),
            (0, 0, 0, 0, COMPUTE, EXPERTS, 7, 10, 2, -1, 5.0),
        ],
        gpus=1,
    )
    assert figures["breakdown_s"]["fetch_stall"] == pytest.approx(2)
    assert figures["breakdown_s"]["compute"] == pytest.approx(8)
    assert figures["critical_path"] == pytest.approx(
        {"compute": 0.5, "communication": 0, "fetch_stall": 0.5, "idle": 0}
    )
    assert figures["bottleneck_sentence"] == "computing on the GPUs: 50 % of a step"


def test_a_fetch_that_had_to_wait_for_a_slot_counts_in_full_on_the_path(tmp_path: Path) -> None:
    # The tokens of both kernels are there at 2; the second's weights find a slot at 5, when the
    # first has ended, and come at 7. The GPU stalls 5..7; the path waited for the weights 2..7.
    figures = one_step(
        tmp_path,
        [
            (0, 0, 0, 0, COMPUTE, ATTENTION, 0, 2, 0),
            (0, 0, 0, 0, COMPUTE, EXPERTS, 2, 5, 2),
            (0, 0, 0, 0, COMPUTE, EXPERTS, 7, 10, 2, -1, 5.0),
        ],
        gpus=1,
    )
    assert figures["breakdown_s"]["fetch_stall"] == pytest.approx(2)
    assert figures["breakdown_s"]["compute"] == pytest.approx(8)
    expected = {"compute": 0.5, "communication": 0, "fetch_stall": 0.5, "idle": 0}
    assert figures["critical_path"] == pytest.approx(expected)


def test_weights_that_came_under_a_busy_stream_cost_nothing(tmp_path: Path) -> None:
    # Wanted at 2 and loaded at 4, but the stream is busy until 5: the stream was the last thing
    # waited for, so the writer gives no wait, and the path follows the stream. A writer that gave
    # the wait none the less would not change that.
    for fetch_wait_s in (0.0, 2.0):
        figures = one_step(
            tmp_path,
            [
                (0, 0, 0, 0, COMPUTE, ATTENTION, 0, 2, 0),
                (1, 0, 0, 0, COMPUTE, ATTENTION, 2, 5, 0),
                (0, 0, 0, 0, COMPUTE, EXPERTS, 5, 10, 2, -1, fetch_wait_s),
            ],
            gpus=1,
        )
        assert figures["breakdown_s"]["fetch_stall"] == 0
        assert figures["critical_path"]["compute"] == pytest.approx(1)


def test_weights_after_tokens_that_travelled(tmp_path: Path) -> None:
    # GPU 1's tokens are made at 1 and arrive at 3, the weights at 7, while the stream works on the
    # other micro-batch until 5. Path: weights 3..7, transfer 1..3, GPU 1's attention.
    figures = one_step(
        tmp_path,
        [
            (0, 0, 0, 1, COMPUTE, ATTENTION, 0, 1, 0),
            (0, 0, 0, 1, COMM, DISPATCH, 1, 3, 1),
            (1, 0, 0, 0, COMPUTE, ATTENTION, 0, 5, 0),
            (0, 0, 0, 0, COMPUTE, EXPERTS, 7, 10, 3, 1, 4.0),
        ],
    )
    assert figures["breakdown_s"]["fetch_stall"] == pytest.approx(2 / 2)
    assert figures["breakdown_s"]["exposed_communication"] == 0
    expected = {"compute": 0.4, "communication": 0.2, "fetch_stall": 0.4, "idle": 0}
    assert figures["critical_path"] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_a_step_come_in_any_order(
    tmp_path: Path, figures: dict[str, Any], seed: int
) -> None:
    path = RunDir(hand_made(tmp_path)).spans
    table = pq.read_table(path)
    step = table.column("step").to_numpy().copy()
    # Copies of the warm-up among the measured rows too, as a prefetch may come late.
    step[np.array(table.column("stream").to_pylist()) == "copy"] = 1
    order = np.lexsort((np.random.default_rng(seed).random(len(step)), step))
    assert order.tolist() != sorted(order.tolist())
    pq.write_table(table.take(order), path)
    # All times are exact in binary, so the sums are too.
    assert analyze(tmp_path, CONTEXT) == figures


def test_launch_latency_is_communication(tmp_path: Path) -> None:
    # GPU 1's data are there at 2, its comm stream begins at 3, the last byte arrives at 4; a
    # writer that gives the start of the sending as `ready_s` leads to the same figures.
    for ready_s in (2, 3):
        figures = one_step(
            tmp_path,
            [
                (0, 0, 0, 0, COMPUTE, ATTENTION, 0, 1, 0),
                (0, 0, 0, 1, COMPUTE, ATTENTION, 0, 2, 0),
                (0, 0, 0, 1, COMM, DISPATCH, 3, 4, ready_s),
                (0, 0, 0, 0, COMPUTE, EXPERTS, 4, 10, 4, 1),
            ],
        )
        assert figures["breakdown_s"]["peer_wait"] == pytest.approx(1 / 2)
        assert figures["breakdown_s"]["exposed_communication"] == pytest.approx(2 / 2)
        assert figures["critical_path"]["communication"] == pytest.approx(0.2)


def test_chunks_and_layers_find_their_own_transfer(tmp_path: Path) -> None:
    # GPU 1 sends two chunks of dispatch (ready 1 and 3) and two of combine (ready 4 and 6, of
    # which the second ends last); decoys of another layer and micro-batch are ready at 0.
    figures = one_step(
        tmp_path,
        [
            (0, 0, 1, 1, COMM, DISPATCH, 1, 2, 1),
            (0, 1, 1, 1, COMM, DISPATCH, 3, 4, 3),
            (0, 0, 2, 1, COMM, DISPATCH, 0.1, 0.2, 0),
            (1, 1, 1, 1, COMM, DISPATCH, 0.2, 0.3, 0),
            (0, 0, 1, 0, COMPUTE, EXPERTS, 2, 2.5, 2, 1),  # waits 0..1 for the peer, then 1
            (0, 1, 1, 0, COMPUTE, EXPERTS, 4, 5, 4, 1),  # 2.5..3 peer, 3..4 transfer
            (0, 1, 1, 1, COMM, COMBINE, 6, 7, 6),
            (0, 0, 1, 1, COMM, COMBINE, 4, 5, 4),
            (0, 0, 2, 0, COMPUTE, ATTENTION, 7, 10, 7, 1),  # 5..6 peer, 6..7 transfer
        ],
    )
    # Over two GPUs, the second of which only sends.
    assert figures["breakdown_s"] == pytest.approx(
        {
            "compute": 4.5 / 2,
            "exposed_communication": 3 / 2,
            "fetch_stall": 0,
            "peer_wait": 2.5 / 2,
            "idle": 10 / 2,
        }
    )


def test_a_transfer_that_took_no_time_is_waiting_for_the_peer(tmp_path: Path) -> None:
    rows = [
        (0, 0, 0, 0, COMPUTE, ATTENTION, 0, 1, 0),
        (0, 0, 0, 1, COMPUTE, ATTENTION, 0, 4, 0),
        (0, 0, 0, 0, COMPUTE, EXPERTS, 4, 10, 4, 1),
    ]
    figures = one_step(tmp_path, rows)
    assert figures["breakdown_s"]["peer_wait"] == pytest.approx(3 / 2)
    assert figures["breakdown_s"]["exposed_communication"] == 0
    assert figures["critical_path"]["compute"] == pytest.approx(1)


def test_steps_without_spans_and_between_others_count_as_idle(tmp_path: Path) -> None:
    files = RunDir(hand_made(tmp_path))
    write_steps(
        files.steps, [0, 1, 2], [0, 10, 20], [10, 20, 40], [1, 128, 0], [True, False, False]
    )
    figures: Any = analyze(tmp_path, CONTEXT)
    assert figures["breakdown"]["compute"] == pytest.approx(5 / 30)
    assert sum(figures["breakdown"].values()) == pytest.approx(1, rel=1e-12)
    assert sum(figures["critical_path"].values()) == pytest.approx(1, rel=1e-12)


FILES = ("spans.parquet", "links.parquet", "steps.parquet", "accesses.parquet", "loads.parquet")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (hand_made(tmp_path) / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: is missing") as caught:
        analyze(tmp_path, CONTEXT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_cut_file_is_named(tmp_path: Path, name: str, share: float) -> None:
    path = hand_made(tmp_path) / name
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=rf"{name}: cannot be read") as caught:
        analyze(tmp_path, CONTEXT)
    assert "\n" not in str(caught.value)


def test_a_damaged_page_is_named(tmp_path: Path) -> None:
    path = hand_made(tmp_path) / "spans.parquet"
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"spans.parquet: cannot be read"):
        analyze(tmp_path, CONTEXT)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"context": {"gpus": 2}}'])
def test_a_bad_result_is_named(tmp_path: Path, text: str) -> None:
    (hand_made(tmp_path) / "result.json").write_text(text)
    with pytest.raises(InputError, match=r"result\.json"):
        analyze_dir(tmp_path)


def test_another_table_in_place_of_spans(tmp_path: Path) -> None:
    files = RunDir(hand_made(tmp_path))
    files.spans.write_bytes(files.steps.read_bytes())
    with pytest.raises(InputError, match=r"spans.parquet: column 'microbatch' is missing"):
        analyze(tmp_path, CONTEXT)


def test_no_measured_step_is_an_error(tmp_path: Path) -> None:
    files = RunDir(hand_made(tmp_path))
    write_steps(files.steps, [0, 1], [0, 10], [10, 20], [1, 1], [True, True])
    with pytest.raises(InputError, match="no step was measured"):
        analyze(tmp_path, CONTEXT)


def test_more_gpus_than_the_run_had(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="row 3: gpu is 1, but the run had 1 GPU"):
        analyze(hand_made(tmp_path), Context(gpus=1, experts=4, peak_flops_per_s=1.0))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(0, 0, 0, 0, COMPUTE, FFN, 0, 11, 0)], "outside its step"),
        ([(0, 0, 0, 0, COMPUTE, FFN, 0, 1, 0, 7)], "row 0: peer is 7, but the run had 2 GPUs"),
        (
            [(0, 0, 0, 0, COMPUTE, FFN, 0, 5, 0), (0, 0, 3, 0, COMPUTE, FFN, 4, 6, 0)],
            "layer 3 on GPU 0 in step 0 begins before",
        ),
    ],
)
def test_impossible_spans(tmp_path: Path, rows: list[tuple[Any, ...]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        one_step(tmp_path, rows)


@pytest.mark.parametrize("cuts", [[], [1], [3, 4], [2, 5, 6], [1, 2, 3, 4, 5, 6, 7]])
def test_steps_are_never_cut_in_two(cuts: list[int]) -> None:
    step = np.array([0, 0, 1, 1, 1, 1, 2, 3])
    row = np.arange(8)
    stream = np.array([COMPUTE, COMM, COMPUTE, COPY, COMM, COMPUTE, COMM, COMPUTE])
    blocks = (
        {"step": s, "row": r, "stream": x}
        for s, r, x in zip(
            np.split(step, cuts), np.split(row, cuts), np.split(stream, cuts), strict=True
        )
    )
    found = list(whole_steps(blocks, Path("spans.parquet")))
    assert np.concatenate([block["row"] for block in found]).tolist() == [0, 1, 2, 4, 5, 6, 7]
    ranges = [set(block["step"].tolist()) for block in found]
    assert sum(len(steps) for steps in ranges) == 4  # each of the steps in one block only


def test_steps_out_of_order_are_refused() -> None:
    blocks = iter([{"step": np.array([1, 0]), "stream": np.array([COMPUTE, COMPUTE])}])
    with pytest.raises(InputError, match="spans of a step lie among those of a later one"):
        list(whole_steps(blocks, Path("spans.parquet")))
