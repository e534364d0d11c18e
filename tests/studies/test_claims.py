"""Claims: printed figures read, verdicts, and where a claim would hold."""

from __future__ import annotations

import math

import pytest

from simulator.studies.common import claims
from simulator.studies.common.claims import DIRECTION, NOT, REPRODUCED, Found, Judged, Published


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("171.4", (171.4, 171.4, 0.05)),
        ("75000", (75000.0, 75000.0, 0.5)),
        ("4.00", (4.0, 4.0, 0.005)),
        ("85-90", (85.0, 90.0, 0.0)),
        ("0.8-1.2", (0.8, 1.2, 0.0)),
    ],
)
def test_a_printed_figure_has_half_of_its_last_digit_to_spare(text, found):
    assert claims.read_published(text) == pytest.approx(found)


@pytest.mark.parametrize("text", ["", "fast", "1-2-3", "9-3", "nan", "-4"])
def test_what_is_no_figure_is_refused(text):
    with pytest.raises(ValueError, match=r"figure|ends before"):
        claims.read_published(text)


def test_a_closed_form_reproduces_to_the_printed_digits():
    claim = claims.read_published("21.1")
    assert claims.form_verdict(21.0526, claim) == REPRODUCED
    assert claims.form_verdict(21.049, claim) == NOT
    assert claims.form_verdict(21.15, claim) == REPRODUCED
    assert claims.form_verdict(21.151, claim) == NOT
    assert claims.form_verdict(None, claim) == NOT
    # 5 by way of 1 / (1 - 0.8), which is a little more in floating point.
    assert claims.form_verdict(1.0 / (1.0 - 0.8), claims.read_published("4-5")) == REPRODUCED


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(8.0, REPRODUCED), (12.0, REPRODUCED), (12.1, DIRECTION), (1.02, DIRECTION), (1.005, NOT),
     (0.5, NOT), (None, NOT)],
)  # fmt: skip
def test_a_simulation_is_within_the_tolerance_or_on_the_same_side(value, verdict):
    claim = Published(10.0, 10.0, 0.5)
    assert claims.verdict(value, claim, 0.2, neutral=1.0, direction=0.01) == verdict


def test_without_a_neutral_value_there_is_no_direction():
    assert claims.verdict(20.0, Published(10.0, 10.0, 0.5), 0.2) == NOT


def test_a_range_is_widened_at_both_ends():
    claim = claims.read_published("50-60")
    assert claims.verdict(40.0, claim, 0.2) == REPRODUCED
    assert claims.verdict(72.0, claim, 0.2) == REPRODUCED
    assert claims.verdict(39.9, claim, 0.2) == NOT


def test_a_share_is_judged_by_its_ratio_to_the_rest():
    # 87.7 % is 7.13 to 1, 96 % is 24 to 1; within 20 %: 85.1 % (5.7 to 1) to 89.5 % (8.56 to 1).
    claim = claims.read_published("87.7")
    verdicts = [claims.verdict(x, claim, 0.2, whole=100.0) for x in (85.0, 85.2, 89.5, 89.6, 96.0)]
    assert verdicts == [NOT, REPRODUCED, REPRODUCED, NOT, NOT]
    assert claims.verdict(96.0, claim, 0.2) == REPRODUCED
    assert claims.verdict(100.0, claim, 0.2, whole=100.0) == NOT


def test_the_nearest_crossing_is_interpolated_in_logarithms():
    xs = (1.0, 4.0, 16.0)
    ys = (2.0, 8.0, 2.0)
    claim = Published(4.0, 4.0, 0.0)
    assert claims.crossing(xs, ys, claim, 1.0) == pytest.approx(2.0)
    assert claims.crossing(xs, ys, claim, 16.0) == pytest.approx(8.0)
    assert claims.crossing(xs, ys, Published(9.0, 9.0, 0.0), 1.0) is None
    assert claims.crossing(xs, (None, 8.0, 2.0), claim, 1.0) == pytest.approx(8.0)
    assert claims.crossing((0.0, 1.0), (-1.0, 1.0), Published(0.0, 0.0, 0.0), 1.0) == 0.5


def test_a_range_is_reached_at_its_nearer_end():
    xs, ys = (1.0, 10.0), (1.0, 10.0)
    assert claims.crossing(xs, ys, Published(3.0, 5.0, 0.0), 1.0) == pytest.approx(3.0)
    assert claims.crossing(xs, ys, Published(3.0, 5.0, 0.0), 10.0) == pytest.approx(5.0)


def test_a_function_is_solved_between_the_values_of_a_grid():
    grid = [0.5 * step for step in range(21)]
    claim = Published(10.0, 10.0, 0.5)
    assert claims.solve(lambda x: x * x, grid, claim, 1.0) == pytest.approx(math.sqrt(10.0))
    assert claims.solve(lambda x: -x * x, grid, claim, 1.0) is None
    assert claims.solve(lambda x: None, grid, claim, 1.0) is None
    rangy = Published(16.0, 25.0, 0.0)
    assert claims.solve(lambda x: x * x, grid, rangy, 1.0) == pytest.approx(4.0)
    assert claims.solve(lambda x: x * x, grid, rangy, 9.0) == pytest.approx(5.0)


def judged(**simulated: Found) -> Judged:
    form = Found(21.05, REPRODUCED, "")
    return Judged("s", "t", "21.1", form, simulated)


def test_the_verdict_is_the_best_of_what_fits_in_memory():
    good, bad = Found(21.0, REPRODUCED, ""), Found(1.0, NOT, "x 3")
    assert judged(a=bad, b=good).verdict == REPRODUCED
    assert judged(a=bad, b=good._replace(fits=False)).verdict == NOT
    assert judged(b=good._replace(fits=False)).verdict == claims.UNJUDGED
    row = claims.flat(judged(a=bad))
    assert (row["closed_form"], row["a"], row["a_holds_at"], row["verdict"]) == (
        21.05, 1.0, "x 3", NOT,
    )  # fmt: skip


def test_figures_are_told_as_the_claim_is_printed():
    assert claims.told(Found(1263.157, REPRODUCED, ""), "1263.2") == "1,263.2 = "
    assert claims.told(Found(30.4, NOT, "", fits=False), "171") == "30 x*"
    assert claims.told(Found(1.234, DIRECTION, ""), "5") == "1.23 ~ "
    assert claims.told(None, "5") == "-  "


def test_counts_leave_out_what_no_reading_judges():
    good = Found(21.0, REPRODUCED, "")
    rows = [judged(a=good), judged(a=Found(1.0, NOT, "")), judged(a=good._replace(fits=False))]
    assert claims.counted(rows) == [
        "closed form: reproduces 3 of 3 claims",
        "simulation: reproduces 1 of 2, the direction only of 0, not 1",
    ]
