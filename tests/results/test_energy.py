"""Joules of hand-made spans, worked out beside them, and what must hold of any."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.results.analyzer import Context, analyze, analyze_dir
from simulator.results.cost import Prices
from simulator.results.energy import EnergyRates, EnergyTally, energy_figures
from simulator.results.summary import render
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
    KINDS,
    AccessWriter,
    SpanWriter,
    write_links,
    write_loads,
    write_steps,
)

RATES = EnergyRates(
    idle_w=100.0,
    tdp_w=500.0,
    j_per_flop={kind: 2e-12 if kind == "attention" else 1e-12 for kind in KINDS},
    hbm_j_per_byte=50e-12,
    link_j_per_byte={"nvlink": 10e-12, "pcie": 50e-12},
    beside_w={"nvswitch": 40.0, "nic": 10.0},
    pue=1.5,
)

Span = tuple[int, int, int, float, float, float, float]
"""GPU, stream, kind, start_s, end_s, bytes, FLOPs."""

SPANS: list[Span] = [
    (0, COMPUTE, ATTENTION, 0.0, 1.0, 1e12, 20e12),
    (1, COMPUTE, EXPERTS, 0.0, 2.0, 2e12, 30e12),
    (0, COMM, DISPATCH, 1.0, 2.0, 3e11, 0.0),
    (1, COPY, DEMAND, 1.0, 3.0, 4e11, 0.0),
]


def write(path: Path, spans: list[Span], length_s: float = 4.0, scale: float = 1.0) -> Path:
    """One measured step 0..length_s of two GPUs and 8 tokens; `scale` multiplies all bytes."""
    path.mkdir(exist_ok=True)
    files = RunDir(path)
    with SpanWriter(files.spans) as writer:
        for gpu, stream, kind, start_s, end_s, moved, flops in spans:
            writer.append(
                0, 0, 0, 0, gpu, stream, kind, start_s, end_s, start_s,
                bytes_=moved * scale, flops=flops,
            )  # fmt: skip
    write_steps(files.steps, [0], [0.0], [length_s], [8], [False])
    links = ["gpu0 -> sw", "sw -> gpu1", "cpu0 -> gpu1"]
    moved = [scale * x for x in (3e11, 3e11, 4e11)]
    write_links(files.links, links, ["nvlink", "nvlink", "pcie"], [1e12] * 3, moved)
    AccessWriter(files.accesses).close()
    write_loads(files.loads, [], [], [], [])
    return path


def context(rates: EnergyRates = RATES) -> Context:
    prices = Prices(3.0, 0.10, True, 12e9, "decode")
    return Context(2, 4, 1e15, energy=rates, prices=prices)


def energy_of(path: Path, spans: list[Span], rates: EnergyRates = RATES, **more: Any) -> Any:
    return analyze(write(path, spans, **more), context(rates))["energy"]


def test_every_part_by_hand(tmp_path: Path) -> None:
    found = energy_of(tmp_path, SPANS)
    expected = {
        "gpu_idle": 2 * 100 * 4,
        "gpu_compute": 20e12 * 2e-12 + 30e12 * 1e-12,
        # Kernels once, what is sent twice (read and written), what is fetched once.
        "gpu_hbm": (1e12 + 2e12 + 2 * 3e11 + 4e11) * 50e-12,
        "link_nvlink": 6e11 * 10e-12,
        "link_pcie": 4e11 * 50e-12,
        "nvswitch": 40 * 4,
        "nic": 10 * 4,
    }
    expected["site"] = 0.5 * sum(expected.values())
    total = sum(expected.values())
    assert found["joules_per_step_by_part"] == pytest.approx(expected, rel=1e-12)
    assert found["joules_per_step"] == pytest.approx(total, rel=1e-12)
    assert found["joules_per_token"] == pytest.approx(total / 8, rel=1e-12)
    assert found["kwh_per_million_tokens"] == pytest.approx(total / 8 * 1e6 / 3.6e6, rel=1e-12)
    assert found["power_w"] == pytest.approx(total / 4, rel=1e-12)
    gpu0 = 100 + (40 + (1e12 + 6e11) * 50e-12) / 4
    gpu1 = 100 + (30 + (2e12 + 4e11) * 50e-12) / 4
    assert found["gpu_power_w"] == pytest.approx(
        {"mean": (gpu0 + gpu1) / 2, "max": max(gpu0, gpu1), "idle": 100, "tdp": 500}
    )
    assert found["over_tdp_joules_per_step"] == 0
    assert found["boundary"] == {
        "nvswitch": "counted", "nic": "counted", "cpu": "excluded", "pue": 1.5
    }  # fmt: skip


def test_doubling_all_bytes_doubles_what_bytes_cost(tmp_path: Path) -> None:
    once = energy_of(tmp_path / "a", SPANS)["joules_per_step_by_part"]
    twice = energy_of(tmp_path / "b", SPANS, scale=2.0)["joules_per_step_by_part"]
    for part in ("gpu_hbm", "link_nvlink", "link_pcie"):
        assert twice[part] == pytest.approx(2 * once[part], rel=1e-12)
    for part in ("gpu_idle", "gpu_compute", "nvswitch", "nic"):
        assert twice[part] == once[part]


def test_a_run_that_only_waits_costs_idle_power(tmp_path: Path) -> None:
    bare = replace(RATES, beside_w={}, pue=1.0)
    # A kernel must be there for a step to be read; it neither computes nor moves anything.
    spans: list[Span] = [(gpu, COMPUTE, EXPERTS, 0.0, 1.0, 0.0, 0.0) for gpu in (0, 1)]
    found = energy_of(tmp_path, spans, bare, scale=0.0)
    assert found["joules_per_step"] == 2 * 100 * 4
    assert found["power_w"] == 200
    assert found["gpu_power_w"]["mean"] == 100


def test_a_kernel_above_tdp_is_booked_at_tdp_and_said(tmp_path: Path) -> None:
    # 700 + 100 W asked for where 400 are left over idle, for half of the step.
    spans: list[Span] = [
        (0, COMPUTE, EXPERTS, 0.0, 2.0, 4e12, 1400e12),
        (1, COMPUTE, EXPERTS, 0.0, 2.0, 0.0, 0.0),
    ]
    found = energy_of(tmp_path, spans)
    parts = found["joules_per_step_by_part"]
    assert parts["gpu_compute"] == pytest.approx(1400 / 2)
    assert parts["gpu_hbm"] == pytest.approx(200 / 2)
    assert found["over_tdp_joules_per_step"] == pytest.approx(800)
    assert found["over_tdp_time_fraction"] == pytest.approx(2 / 4 / 2)
    assert found["gpu_power_w"]["max"] == pytest.approx(100 + 800 / 4)
    text = render(analyze(tmp_path, context()), unicode=False)
    assert "above TDP, cut off: 800 J per step" in text
    assert "a real GPU would slow down" in " ".join(text.split())


def test_copies_on_top_of_a_full_kernel_cannot_pass_tdp(tmp_path: Path) -> None:
    spans: list[Span] = [
        (0, COMPUTE, EXPERTS, 0.0, 4.0, 0.0, 1600e12),
        (1, COMPUTE, EXPERTS, 0.0, 4.0, 0.0, 0.0),
        (0, COPY, DEMAND, 0.0, 4.0, 8e12, 0.0),
    ]
    found = energy_of(tmp_path, spans)
    assert found["gpu_power_w"]["max"] == pytest.approx(500)
    assert found["over_tdp_joules_per_step"] == pytest.approx(8e12 * 50e-12)
    parts = found["joules_per_step_by_part"]
    assert parts["gpu_compute"] + parts["gpu_hbm"] == pytest.approx(1600)


AMOUNT = st.floats(0, 1e16)
SPAN = st.tuples(
    st.integers(0, 1),
    st.sampled_from([(COMPUTE, ATTENTION), (COMPUTE, EXPERTS), (COMM, COMBINE), (COPY, DEMAND)]),
    st.floats(1e-6, 1.0),
    AMOUNT,
    AMOUNT,
)


@given(spans=st.lists(SPAN, max_size=20), step_s=st.floats(1.0, 10.0))
def test_power_lies_between_idle_and_tdp_and_parts_add_up(spans: Any, step_s: float) -> None:
    tally = EnergyTally(2)
    columns = {
        "gpu": np.array([s[0] for s in spans], dtype=np.int64),
        "stream": np.array([s[1][0] for s in spans], dtype=np.int64),
        "kind": np.array([s[1][1] for s in spans], dtype=np.int64),
        "start_s": np.zeros(len(spans)),
        "end_s": np.array([s[2] for s in spans]),
        "bytes": np.array([s[3] for s in spans]),
        "flops": np.array([s[4] for s in spans]),
    }
    tally.add(columns, np.ones(len(spans), dtype=bool), RATES)
    links = {"kind": np.array(["pcie"], dtype=object), "bytes": np.array([1e12])}
    found = energy_figures(tally, RATES, links, step_s, 1, 8)
    for which in ("mean", "max"):
        assert 100 * (1 - 1e-12) <= found["gpu_power_w"][which] <= 500 * (1 + 1e-12)
    parts = found["joules_per_step_by_part"]
    assert found["joules_per_step"] == pytest.approx(sum(parts.values()), rel=1e-12)
    assert all(part >= 0 for part in parts.values())
    # What is booked and what is cut off is what was asked for.
    asked = sum(
        (s[4] * RATES.j_per_flop[KINDS[s[1][1]]] if s[1][0] == COMPUTE else 0)
        + s[3] * 50e-12 * (2 if s[1][0] == COMM else 1)
        for s in spans
    )
    booked = parts["gpu_compute"] + parts["gpu_hbm"] + found["over_tdp_joules_per_step"]
    assert booked == pytest.approx(asked, rel=1e-9, abs=1e-9)


def test_a_finished_run_holds_the_figures_of_its_context(tmp_path: Path) -> None:
    figures = analyze(write(tmp_path, SPANS), context())
    RunDir(tmp_path).write_result({"context": asdict(context()), "summary": figures})
    assert analyze_dir(tmp_path) == figures
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_the_text_fits_80_columns_and_names_the_boundary(tmp_path: Path) -> None:
    text = render(analyze(write(tmp_path, SPANS), context()), unicode=False)
    assert max(map(len, text.splitlines())) <= 80
    lines = text.splitlines()
    row = next(line for line in lines if "all that is counted" in line)
    # 40 + 30 + 200 + 6 + 20 + 800 + 200 J and half of it again for the site.
    assert row.split()[-8:] == ["1.94", "kJ", "243", "J", "100.0", "%", "486", "W"]
    assert any("not counted: CPUs, switches of the network" in line for line in lines)
    assert any(line.startswith("  generated tokens") for line in lines)


def test_a_run_without_figures_has_no_section(tmp_path: Path) -> None:
    figures = analyze(write(tmp_path, SPANS), Context(2, 4, 1e15))
    assert figures["energy"] is None
    assert figures["cost"] is None
    assert "Energy" not in render(figures, unicode=False)
