"""`analyze RUN --baseline RUN2`: what one kept run saves against another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.running import SMALL, Call


@pytest.fixture
def dear(call: Call, tmp_path: Path) -> Path:
    """The small run on GPUs of twice the price."""
    path = tmp_path / "dear"
    assert call("run", *SMALL, "--set", "gpu.price=8 $/h", "--out", str(path)).status == 0
    return path


def test_half_the_price_saves_half(call: Call, kept: Path, dear: Path) -> None:
    done = call("analyze", str(kept), "--baseline", str(dear), "--json")
    assert (done.status, done.err) == (0, "")
    summary = json.loads(done.out)
    saving, cost = summary["saving"], summary["cost"]
    assert summary["gpus"] * 4.0 == cost["usd_per_hour"]
    assert saving["speed_up"] == pytest.approx(1)
    assert saving["saved_fraction"] == pytest.approx(0.5)
    assert saving["saved_usd_per_million_tokens"] == pytest.approx(cost["usd_per_million_tokens"])
    assert saving["saved_usd_per_year"] == pytest.approx(12_000 * cost["usd_per_million_tokens"])
    assert saving["saved_joules_per_token"] == pytest.approx(0)
    text = call("analyze", str(kept), "--baseline", str(dear)).out
    assert max(map(len, text.splitlines())) <= 80
    assert "Against the baseline" in text


def test_energy_and_cost_are_in_every_summary(call: Call, kept: Path) -> None:
    summary = json.loads((kept / "result.json").read_text())["summary"]
    energy, cost = summary["energy"], summary["cost"]
    parts = energy["joules_per_step_by_part"]
    assert energy["joules_per_step"] == pytest.approx(sum(parts.values()), rel=1e-12)
    assert parts["gpu_idle"] == pytest.approx(16 * 85 * summary["step_time_s"]["mean"], rel=1e-9)
    assert 85 <= energy["gpu_power_w"]["mean"] <= energy["gpu_power_w"]["max"] <= 700
    assert energy["boundary"] == {
        "cpu": "excluded", "nic": "counted", "nvswitch": "counted", "pue": 1.0
    }  # fmt: skip
    assert cost["usd_per_million_tokens"] == pytest.approx(
        16 * 4.0 / 3600 / summary["throughput_tokens_per_s"] * 1e6
    )
    text = call("analyze", str(kept)).out
    assert "all that is counted" in text
    assert "generated tokens" in text


def test_runs_of_two_phases_are_refused(call: Call, kept: Path, tmp_path: Path) -> None:
    path = tmp_path / "prefill"
    given = ["--set", "traffic.phase=prefill", "--out", str(path)]
    assert call("run", *SMALL, *given).status == 0
    done = call("analyze", str(kept), "--baseline", str(path))
    assert done.status == 2
    assert "one run makes prompt tokens (prefill), the other generated ones" in done.err
    done = call("analyze", str(kept), "--baseline", str(tmp_path / "nowhere"))
    assert done.status == 2
    assert "is missing; is this the directory of a finished run?" in done.err
