"""The pass over the spans: bins, seconds by layer, the window, and files that are damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from results.runs import ROWS, write_spans

from simulator.errors import InputError
from simulator.results import report_scan
from simulator.results.report_scan import BINS, LAYER_PARTS, Steps, add_to_bins, scan
from simulator.runfiles.spans import COMM, COMPUTE, COPY

STEPS = Steps(
    np.array([0, 1]), np.array([0.0, 10.0]), np.array([10.0, 20.0]), np.array([False, True])
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_spans(tmp_path / "spans.parquet")
    return tmp_path / "spans.parquet"


def test_bins_hold_what_a_loop_finds() -> None:
    rng = np.random.default_rng(3)
    bins, count = 7, 500
    row = rng.integers(0, 3, count)
    begin = rng.uniform(-1, bins + 1, count)
    end = begin + rng.choice([0.01, 0.5, 3.0, 20.0], count) * rng.uniform(0.5, 1, count)
    # Edges of bins are where such sums go wrong.
    begin[:3], end[:3] = (0.0, 2.0, 3.0), (7.0, 3.0, 5.0)
    total, change = np.zeros((3, bins)), np.zeros(3 * (bins + 1))
    weight = rng.uniform(0.5, 2.0, count)
    add_to_bins(total, change, row, begin, end, weight)
    total += np.cumsum(change.reshape(3, bins + 1), axis=1)[:, :bins]
    expected = np.zeros((3, bins))
    for r, a, b, w in zip(row, begin, end, weight, strict=True):
        for at in range(bins):
            expected[r, at] += w * max(min(b, at + 1) - max(a, at), 0.0)
    np.testing.assert_allclose(total, expected, atol=1e-9)


def test_seconds_by_layer_and_gpu(path: Path) -> None:
    found = scan(path, STEPS, 2)
    assert found.count == len(ROWS)
    # GPU 0 of the measured step: attention 2 s, a gap of 4 s of which 3 waited for weights,
    # experts 2 s, a gap of 1 s, the LM head 1 s; GPU 1: 1 s of nothing, then attention 4 s.
    by_part = dict(zip(LAYER_PARTS, found.layer_s.T.tolist(), strict=True))
    assert by_part == {
        "attention": [6, 0],
        "ffn": [0, 0],
        "experts": [2, 0],
        "lm_head": [0, 1],
        "weights": [3, 0],
        "tokens": [2, 1],
    }
    assert found.busy_s[COMPUTE].tolist() == [5, 4]
    assert found.busy_s[COMM].tolist() == [1, 0]
    assert found.busy_s[COPY].tolist() == [3, 0]
    assert found.stream_s.tolist() == [[8, 1], [1, 0], [3, 0]]


def test_the_overview_holds_all_the_time(path: Path) -> None:
    found = scan(path, STEPS, 2)
    assert found.busy.shape == (3, 2, BINS)
    assert found.bin_s == pytest.approx(20.0 / BINS)
    seconds = found.busy.sum(axis=2) * found.bin_s
    assert seconds[COMPUTE].tolist() == pytest.approx([7, 8])
    assert found.busy.max() <= 1 + 1e-9
    # 16 s to 18 s: GPU 0 computes without a pause.
    inside = found.busy[COMPUTE, 0, int(16 / found.bin_s) + 1 : int(18 / found.bin_s) - 1]
    assert np.allclose(inside, 1.0)


def test_the_window_is_the_first_measured_step(path: Path) -> None:
    found = scan(path, STEPS, 2)
    assert (found.window.first, found.window.last) == (1, 1)
    assert sorted(found.spans["start_s"].tolist()) == [10, 11, 12, 13, 16, 19]
    # In the order of the rows of the timeline: GPU, stream, time.
    keys = list(
        zip(*(found.spans[name].tolist() for name in ("gpu", "stream", "start_s")), strict=True)
    )
    assert keys == sorted(keys)
    asked = scan(path, STEPS, 2, (0, 0))
    assert sorted(asked.spans["end_s"].tolist()) == [2, 4]


def test_a_window_has_as_many_steps_as_fit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = scan(path, STEPS, 2, (0, 1)).window
    assert (both.first, both.last, both.asked_last) == (0, 1, 1)
    monkeypatch.setattr(report_scan, "MAX_SPANS", 5)
    less = scan(path, STEPS, 2, (0, 1)).window
    assert (less.first, less.last, less.asked_last) == (0, 0, 1)
    # One step is too much: fewer GPUs.
    one = scan(path, STEPS, 2, (1, 1))
    assert one.window.gpus.tolist() == [0]
    assert set(one.spans["gpu"].tolist()) == {0}
    # One GPU is too much: not to the end of the step.
    monkeypatch.setattr(report_scan, "MAX_SPANS", 2)
    cut = scan(path, STEPS, 2, (1, 1))
    assert cut.cut
    assert cut.spans["start_s"].tolist() == [10, 12]


def test_gpus_beyond_the_screen_share_lanes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_scan, "MAX_GPUS", 1)
    found = scan(path, STEPS, 2)
    assert found.busy.shape[1] == 1
    # The mean of 7 s and 8 s.
    assert found.busy[COMPUTE].sum() * found.bin_s == pytest.approx(7.5)


def test_what_comes_before_the_damage_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "spans.parquet"
    many = [(step, 0, 0, 0, COMPUTE, 0, step + 0.1, step + 0.9, 0.0) for step in range(200_000)]
    write_spans(path, many)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)
    steps = np.arange(200_000)
    found = scan(path, Steps(steps, steps + 0.0, steps + 1.0, steps >= 0), 1)
    assert "damaged or cut short" in found.fault
    assert 0 < found.busy_s[COMPUTE, 0] < 0.8 * 200_000
    assert len(found.spans["gpu"])


def test_a_file_without_its_end_is_an_error(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged or cut short"):
        scan(path, STEPS, 2)
