"""The tutorial's table of knobs is what the runs give."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.api import simulate

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith(("| none |", "| two-batch |"))
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}, {row[1]}")
def test_a_row_of_the_table_is_true(row: list[str]):
    overlap, prefetch, *shown = row
    found = simulate(
        "nvswitch16", "moe128", overrides=[f"overlap={overlap}", f"prefetch={prefetch}"]
    ).summary
    step_s = found["step_time_s"]["mean"]
    figures = [
        f"{found['throughput_tokens_per_s']:.1f}",
        f"{found['breakdown']['exposed_communication'] * step_s * 1e6:.0f} us",
        f"{found['cache_hit_rate']:.3f}",
        f"{found['cache_late_hit_rate']:.3f}",
        f"{found['breakdown']['fetch_stall'] * step_s * 1e3:.1f} ms",
    ]
    assert figures == shown


def test_the_table_is_there():
    assert len(ROWS) == 6
