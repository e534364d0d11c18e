"""`validate`: its tables, its figures, what makes it fail, and the page that it writes."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.spec.transport import load_transport
from simulator.studies.validation import validate as study
from simulator.studies.validation import verdicts as figures
from simulator.studies.validation.compute_sets import kernel_sets
from simulator.studies.validation.measured import Measurement, comments
from simulator.studies.validation.page import MARK, flat, render
from simulator.studies.validation.sets import DATA, SHIPPED, Limit, Set, calibration, limits, sets

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT.parent / "shared" / "reference" / "measured"


@pytest.fixture(scope="module")
def verdicts() -> list[figures.Verdict]:
    """What the shipped rows give."""
    return study.validate()


def test_all_sets_are_within_their_limits(verdicts):
    told = {verdict.set.key: (round(verdict.error, 4), verdict.word) for verdict in verdicts}
    assert [key for key, (_, word) in told.items() if word == "FAILED"] == [], told
    assert set(told) == set(limits())


def test_the_page_is_what_the_command_writes(verdicts):
    page = (ROOT / "docs" / "validation.md").read_text()
    assert page == render(verdicts), "python -m simulator validate -o docs/validation.md"
    assert page.startswith(MARK)


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the full tables are not there")
def test_all_rows_are_within_the_limits_too(verdicts):
    full = study.validate(REFERENCE)
    assert [v.set.key for v in full if not v.ok] == []
    rows = {verdict.set.key: len(verdict.rows) for verdict in full}
    assert rows["nccl-blind"] == 112
    assert rows["nccl-calibration"] == 168
    assert sum(rows.values()) > sum(len(verdict.rows) for verdict in verdicts)


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the full tables are not there")
def test_every_shipped_row_is_one_of_the_full_table():
    def known(found: list[Set]) -> dict[tuple[object, ...], list[float]]:
        times: dict[tuple[object, ...], list[float]] = {}
        for some in found:
            for row in some.rows:
                key = (some.transport, *row._replace(where="", time_s=0.0))
                times.setdefault(key, []).append(row.time_s)
        return times

    full = known(sets(REFERENCE))
    for key, times in known(sets()).items():
        for time_s in times:
            # Transcribed to 0.01 us.
            assert any(abs(time_s - other) <= 0.0051e-6 for other in full[key]), key


def test_tables_are_small_and_say_where_they_are_from():
    names = [name for some in SHIPPED.values() for name in some]
    kernels = {found.rows[0].where.partition(":")[0] for found in kernel_sets()}
    assert {*names, *kernels} == {path.name for path in DATA.glob("*")}
    for name in names:
        lines = (DATA / name).read_text().splitlines()
        rows = [line for line in lines if line and not line.startswith("#")]
        assert len(rows) - 1 <= 60, name
        told = " ".join(comments(DATA / name))
        for word in ("Source: ", "Licence: "):
            assert word in told, (name, word)
        assert "Rule" in told or "All" in told, (name, "which rows were chosen")


def test_no_blind_row_was_fitted():
    found = sets()
    fitted = {row.where for some in found if some.kind == "calibration" for row in some.rows}
    for some in found:
        if some.kind == "blind":
            assert some.rows, some.key
            assert fitted.isdisjoint(row.where for row in some.rows), some.key
    for transport in ("nccl", "mnnvl", "deepep-ll", "deepep-normal"):
        mine = calibration(transport)
        assert {row.where for row in mine.rows} <= fitted


def test_nccl_is_calibrated_on_what_was_agreed():
    systems = {(row.system, row.ranks) for row in calibration("nccl").rows}
    assert systems == {("h100_sxm", 2), ("h100_sxm", 8), ("a100_sxm", 8)}
    (blind,) = [some for some in sets() if some.key == "nccl-blind"]
    assert {(row.system, row.ranks) for row in blind.rows} == {("h100_sxm", 4), ("a100_sxm", 4)}
    assert min(row.size_bytes for row in blind.rows) == 65536


@pytest.mark.parametrize("name", ["nccl", "mnnvl", "deepep-ll", "deepep-normal"])
def test_a_shipped_transport_is_what_its_rows_give(name):
    shipped = load_transport(name)
    again = study.refit(name, shipped).transport
    for operation, algorithms in again.costs.items():
        for algorithm, cost in algorithms.items():
            written = shipped.costs[operation][algorithm]
            pairs = zip(_numbers(written), _numbers(cost), strict=True)
            for one, other in pairs:
                assert one == pytest.approx(other, rel=5e-3, abs=1e-9), (operation, algorithm)


def _numbers(cost) -> list[float]:
    dumped = cost.model_dump()
    shares = dumped.pop("efficiency")
    return [value or 0.0 for value in (*dumped.values(), *shares.values())]


def test_rows_that_the_published_column_repeats_are_no_measurement_of_their_own():
    found = {some.key: some.rows for some in sets()}
    times = {(row.ranks, row.operation): row.time_s for row in found["deepep-ll-rdma-blind"]}
    for row in found["deepep-ll-repeated"]:
        assert row.time_s == times[row.ranks, row.operation]
    for row in found["deepep-ll-blind"]:
        assert row.time_s < 0.95 * times[row.ranks, row.operation], "NVLink helps"


def test_rdma_only_is_the_same_transport_on_another_path():
    mixed, rdma = load_transport("deepep-ll"), load_transport("deepep-ll-rdma")
    assert rdma.costs == mixed.costs
    assert (mixed.path, rdma.path) == ("fastest", "network")


def _set(kind: str, factor: float) -> tuple[Set, list[figures.Simulated]]:
    """Two rows, simulated by a factor above and below what was measured."""
    rows = [Measurement(f"t:{i}", "h100", "alltoall", 8, 1e-5, 1e6 * (i + 1)) for i in range(2)]
    found = [
        figures.Simulated(rows[0], 1e-5 * factor, "dgx-h100"),
        figures.Simulated(rows[1], 1e-5 / factor, "dgx-h100"),
    ]
    return Set("x", "X", kind, "nccl", tuple(rows), lambda row: "dgx-h100"), found


def test_above_the_limit_it_fails():
    some, found = _set("apart", 1.2)
    assert figures.judged(some, found, Limit(0.21, None, ""), 0).ok
    verdict = figures.judged(some, found, Limit(0.19, None, ""), 0)
    assert not verdict.ok
    assert verdict.word == "FAILED"
    assert verdict.error == pytest.approx(0.2), "too high and too low do not cancel"


def test_a_missed_goal_is_told():
    some, found = _set("blind", 1.2)
    assert figures.judged(some, found, Limit(0.5, 0.1, ""), 0).word == "goal missed"


def test_a_blind_row_far_off_needs_an_explanation():
    some, found = _set("blind", 1.4)
    assert not figures.judged(some, found, Limit(0.5, None, ""), 0).ok
    assert figures.judged(some, found, Limit(0.5, None, "The model lacks it."), 0).ok
    some, found = _set("apart", 1.4)
    assert figures.judged(some, found, Limit(0.5, None, ""), 0).ok


def test_flat_rows_are_plain_values(verdicts):
    rows = [flat(verdict) for verdict in verdicts]
    assert {len(row) for row in rows} == {len(rows[0])}
    first = rows[0]
    assert (first["set"], first["kind"], first["parameters"]) == (
        "nccl-calibration",
        "calibration",
        14,
    )
    assert first["p95"] >= first["error"]


def test_the_page_on_transports_tells_the_same_errors(verdicts):
    page = (ROOT / "docs" / "transports.md").read_text()
    for verdict in verdicts:
        if verdict.set.kind == "calibration" and verdict.set.transport:
            (line,) = [
                line
                for line in page.splitlines()
                if line.startswith(f"| `{verdict.set.transport}`")
            ]
            assert f"{len(verdict.rows)} rows" in line
            assert line.endswith(f"| {verdict.parameters} | {100 * verdict.error:.1f} % |")


# --- the noise floor ---------------------------------------------------------------------


def test_a_rising_curve_has_no_noise():
    assert figures.monotone([[1.0], [2.0], [2.0], [5.0]]) == pytest.approx([1.0, 2.0, 2.0, 5.0])


def test_neighbours_out_of_order_are_pooled():
    middle = math.sqrt(2.0 * 3.0)
    assert figures.monotone([[1.0], [3.0], [2.0], [4.0]]) == pytest.approx(
        [1.0, middle, middle, 4.0]
    )


def _cost(curve, times) -> float:
    return sum(
        abs(math.log(value / time))
        for value, some in zip(curve, times, strict=True)
        for time in some
    )


@pytest.mark.parametrize("seed", range(20))
def test_no_other_rising_curve_is_nearer(seed):
    rng = np.random.default_rng(seed)
    times = [rng.lognormal(0.3 * i, 0.6, size=rng.integers(1, 3)).tolist() for i in range(5)]
    # The best curve needs no other values than those that were measured.
    values = sorted(itertools.chain.from_iterable(times))
    best = min(
        _cost(curve, times) for curve in itertools.combinations_with_replacement(values, len(times))
    )
    curve = figures.monotone(times)
    assert curve == sorted(curve)
    assert _cost(curve, times) == pytest.approx(best, rel=1e-9)


def test_too_few_sizes_tell_no_noise():
    rows = [Measurement("t", "h800", "dispatch", n, 1e-4, tokens=128) for n in (16, 32, 64)]
    assert figures.noise_floor(rows) is None


def test_a_folder_without_the_tables_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"nccl_h100_a100\.csv: no such file$"):
        study.validate(tmp_path)
