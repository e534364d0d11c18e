from __future__ import annotations

import io
import math
import re
from typing import Any

import pytest

from simulator.results.summary import duration, number, percent, render, size


def typical() -> dict[str, Any]:
    return {
        "gpus": 16,
        "steps": 20,
        "tokens": 81_920,
        "simulated_time_s": 1.66,
        "throughput_tokens_per_s": 49_349.4,
        "throughput_tokens_per_s_per_gpu": 3_084.3,
        "step_time_s": {"mean": 0.083, "p50": 0.0829, "min": 0.0801, "max": 0.0907},
        "breakdown": {
            "compute": 0.181,
            "exposed_communication": 0.084,
            "fetch_stall": 0.61249,
            "peer_wait": 0.12231,
            "idle": 0.0002,
        },
        "breakdown_s": {
            "compute": 0.015,
            "exposed_communication": 0.00697,
            "fetch_stall": 0.0508,
            "peer_wait": 0.0102,
            "idle": 1.66e-5,
        },
        "critical_path": {
            "compute": 0.17,
            "communication": 0.118,
            "fetch_stall": 0.71,
            "idle": 0.002,
        },
        "bottleneck": "fetch_stall",
        "bottleneck_sentence": ("fetching weights from host memory over PCIe: 71 % of a step"),
        "compute_utilization": 0.181,
        "compute_max_utilization": 0.193,
        "comm_utilization": 0.112,
        "comm_max_utilization": 0.13,
        "copy_utilization": 0.774,
        "copy_max_utilization": 0.91,
        "overlap_achieved": 0.412,
        "links": {
            "nvlink": {
                "links": 32,
                "bytes": 1.82e10,
                "mean_utilization": 0.031,
                "max_utilization": 0.042,
            },
            "pcie": {
                "links": 16,
                "bytes": 5.3e11,
                "mean_utilization": 0.774,
                "max_utilization": 0.91,
            },
        },
        "hottest_link": "host0-dram -> gpu3",
        "hottest_link_utilization": 0.91,
        "cache_accesses": 122_880,
        "cache_hit_rate": 0.612,
        "cache_late_hit_rate": 0.201,
        "cache_miss_rate": 0.187,
        "dispatch_bytes": 6.1e9,
        "combine_bytes": 1.21e10,
        "demand_bytes": 3.2e11,
        "prefetch_bytes": 2.1e11,
        "wasted_prefetch_bytes": 9.0e10,
        "prefetch_accuracy": 0.571,
        "load_imbalance": {"gpus": 1.31, "experts": 4.62},
        "mfu": 0.0612,
    }


def bare() -> dict[str, Any]:
    """A run with one GPU, no cache, no traffic and nothing to compare."""
    return typical() | {
        "gpus": 1,
        "steps": 1,
        "critical_path": {"compute": 1.0, "communication": 0.0, "fetch_stall": 0.0, "idle": 0.0},
        "bottleneck": "compute",
        "bottleneck_sentence": "computing on the GPUs: 100 % of a step",
        "overlap_achieved": None,
        "links": {},
        "hottest_link": None,
        "hottest_link_utilization": None,
        "cache_accesses": 0,
        "cache_hit_rate": None,
        "cache_late_hit_rate": None,
        "cache_miss_rate": None,
        "prefetch_accuracy": None,
        "load_imbalance": {"gpus": None, "experts": None},
        **{f"{name}_bytes": 0.0 for name in ("dispatch", "combine", "demand", "prefetch")},
        "wasted_prefetch_bytes": 0.0,
    }


def huge() -> dict[str, Any]:
    figures = typical()
    figures |= {
        "gpus": 131_072,
        "throughput_tokens_per_s": 1.23456789e12,
        "throughput_tokens_per_s_per_gpu": 9.4e6,
        "tokens": 10**15,
        "cache_accesses": 10**13,
        "hottest_link": "a-rather-long-name-of-a-node " * 4 + "-> " + "x" * 90,
    }
    figures["breakdown"] = dict.fromkeys(figures["breakdown"], 1.0)
    figures["breakdown_s"] = dict.fromkeys(figures["breakdown_s"], 99_949.9)
    return figures


NOTES = ["the 32 MoE layers read the 8 recorded ones in turn " * 3, "no KV-cache paging"]


def test_the_first_three_lines_answer_the_question() -> None:
    lines = render(typical(), unicode=True).splitlines()
    assert lines[:4] == [
        "Speed   49,350 tokens/s on 16 GPUs (3,080 tokens/s per GPU)",
        "Step    83.0 ms for 4,096 tokens; 80.1 ms to 90.7 ms in 20 measured steps",
        "Limit   fetching weights from host memory over PCIe: 71 % of a step",
        "Path    weight fetches 71.0 %, compute 17.0 %, communication 11.8 %, idle 0.2 %",
    ]


def test_one_step_has_no_range() -> None:
    assert render(bare()).splitlines()[1] == "Step    83.0 ms for 81,920 tokens; 1 measured step"


@pytest.mark.parametrize("figures", [typical(), bare(), huge()], ids=["typical", "bare", "huge"])
@pytest.mark.parametrize("width", [80, 81, 132])
@pytest.mark.parametrize("unicode", [True, False])
def test_every_line_fits_and_says_something(
    figures: dict[str, Any], width: int, unicode: bool
) -> None:
    text = render(figures, NOTES, width, unicode)
    assert max(len(line) for line in text.splitlines()) <= width
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", text)
    assert all(line == line.rstrip() for line in text.splitlines())
    if not unicode:
        text.encode("ascii")


def test_sections_that_do_not_apply_are_left_out() -> None:
    text = render(bare(), unicode=False)
    assert "Expert cache" not in text
    assert "Links" not in text
    assert "Bytes" not in text
    assert "imbalance" not in text
    assert "prefetches used" not in text
    assert "Notes" not in text


def test_bars_are_drawn_to_scale() -> None:
    for unicode, mark in ((True, "█"), (False, "#")):
        text = render(typical(), width=80, unicode=unicode)
        bars = [line.count(mark) for line in text.splitlines() if "  " in line]
        assert max(bars) == pytest.approx(0.61249 * 31, abs=1)


def test_a_terminal_that_cannot_draw_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    render(typical()).encode("ascii")
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert "█" in render(typical())


def test_a_width_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="width=40"):
        render(typical(), width=40)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (4.567, "4.57"),
        (12_345.6, "12,300"),
        (999.7, "1,000"),
        (9.999, "10.0"),
        (-2.5, "-2.50"),
        (1e-9, "1.00e-09"),
        (None, "-"),
        (math.nan, "-"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_units() -> None:
    assert duration(0.0830) == "83.0 ms"
    assert duration(1.66e-5) == "16.6 us"
    assert duration(0.99999) == "1.00 s"
    assert duration(5e-12) == "0.00500 ns"
    assert duration(0) == "0 s"
    assert duration(None) == "-"
    assert size(1.82e10) == "18.2 GB"
    assert size(999.9e6) == "1.00 GB"
    assert size(0) == "0 B"
    assert size(512) == "512 B"
    assert percent(0.0004) == "<0.1 %"
    assert percent(0.71) == "71.0 %"
    assert percent(0) == "0.0 %"
    assert percent(None) == "-"
