"""The closed form of the Prophet study against the published table, digit by digit."""

from __future__ import annotations

import pytest

from simulator.errors import InputError
from simulator.studies.common.claims import NOT, REPRODUCED, form_verdict, read_published
from simulator.studies.prophet.forms import (
    ORDERS,
    Standing,
    closed_form,
    dollars_per_million,
    holds_at,
    overlap_bound,
)
from simulator.studies.prophet.runs import strategies
from simulator.studies.prophet.spec import load_study

STUDY = load_study()

# The hybrid's row as published: throughputs, speed-up, $/1M token, $ per year.
TABLE = {
    "2xA100": ("200.0", "800.0", "4.00", "8.33", "2.08", "75,000"),
    "4xH100": ("105.9", "679.2", "6.42", "41.98", "6.54", "425,185"),
    "8xA100": ("171.4", "1,263.2", "7.37", "38.89", "5.28", "403,333"),
    "10xA6000": ("61.4", "823.5", "13.41", "67.86", "5.06", "753,571"),
}
SHARES = {"4xH100": ("47.1", "15.1"), "8xA100": ("57.1", "21.1"), "10xA6000": ("87.7", "58.8")}


def hybrid(system: str, *overrides: str):
    study = load_study(overrides)
    return closed_form(study.point(system, *strategies(study.systems[system])["hybrid"]))


@pytest.mark.parametrize("system", TABLE)
def test_the_published_table_to_the_printed_digits(system):
    found = hybrid(system)
    printed = (
        f"{found.baseline_tokens_per_s:.1f}",
        f"{found.prophet_tokens_per_s:,.1f}",
        f"{found.speedup:.2f}",
        f"{found.cost_baseline:.2f}",
        f"{found.cost_prophet:.2f}",
        f"{found.saving_per_year:,.0f}",
    )
    assert printed == TABLE[system]
    assert found.cost_ratio == pytest.approx(found.speedup)


@pytest.mark.parametrize("system", SHARES)
def test_the_published_shares_of_communication(system):
    found = hybrid(system)
    shown = (f"{100 * found.comm_baseline:.1f}", f"{100 * found.comm_prophet:.1f}")
    assert shown == SHARES[system]


def test_what_the_form_does_not_reproduce():
    two, ten = hybrid("2xA100"), hybrid("10xA6000")
    # At EP = 1 nothing is communicated, so that 57.1 % and 20.8 % have no place in it.
    assert (two.comm_baseline, two.comm_prophet, two.comm_reduction) == (0.0, 0.0, None)
    assert form_verdict(100 * two.comm_baseline, read_published("57.1")) == NOT
    assert form_verdict(100 * two.comm_prophet, read_published("20.8")) == NOT
    assert form_verdict(100 * ten.comm_baseline, read_published("92.8")) == NOT
    assert form_verdict(100 * ten.comm_baseline, read_published("87.7")) == REPRODUCED


def test_other_strategies_by_the_same_form():
    point = STUDY.point("8xA100", 1, 8)
    data = closed_form(point)
    assert (data.baseline_tokens_per_s, data.prophet_tokens_per_s) == (800.0, 3200.0)
    expert = closed_form(point._replace(ep=8, dp=1))
    assert expert.baseline_tokens_per_s == pytest.approx(8 * 100 / (7 / 3))
    assert expert.prophet_tokens_per_s == pytest.approx(8 * 400 / (1 + 0.2 * 4 / 3))


def test_overlap_alone_is_bound():
    bounds = {
        name: overlap_bound(STUDY.point(name, *strategies(STUDY.systems[name])["hybrid"]))
        for name in ("8xA100", "4xH100", "10xA6000")
    }
    assert [round(bounds[name], 2) for name in bounds] == [1.75, 1.89, 1.14]


def test_cost_of_the_abstracts_baseline():
    assert dollars_per_million(STUDY.point("8xA100", 4, 2), 520.0) == pytest.approx(12.82, abs=5e-3)


def test_scaling_efficiency_per_counted_unit():
    found = [hybrid(name).scaling_prophet for name in ("4xH100", "8xA100", "10xA6000")]
    assert [round(100 * x) for x in found] == [85, 79, 41]


@pytest.mark.parametrize(
    ("override", "baseline", "prophet"),
    [
        # r = 800 / 1200 = 2/3
        ("systems.8xA100.bandwidth=1200 GB/s", 400 / (5 / 3), 1600 / (1 + 0.2 * 2 / 3)),
        # 16 GPUs: EP 8, DP 2
        ("systems.8xA100.gpus=16", 800 / (7 / 3), 3200 / (1 + 0.2 * 4 / 3)),
        ("assumptions.accuracy=0.9", 400 / (7 / 3), 1600 / (1 + 0.1 * 4 / 3)),
        ("assumptions.memory_reduction=2", 400 / (7 / 3), 800 / (1 + 0.2 * 4 / 3)),
    ],
)
def test_a_changed_assumption_changes_the_figures(override, baseline, prophet):
    found = hybrid("8xA100", override)
    assert found.baseline_tokens_per_s == pytest.approx(baseline)
    assert found.prophet_tokens_per_s == pytest.approx(prophet)
    gpus = 16 if "gpus" in override else 8
    dollars = gpus * 3.0 / 3600 / baseline * 1e6
    assert found.cost_baseline == pytest.approx(dollars)
    dear, cheap = dollars, gpus * 3.0 / 3600 / prophet * 1e6
    assert found.saving_per_year == pytest.approx(12 * 1000 * (dear - cheap))


def test_a_changed_price_changes_cost_and_saving_only():
    before, after = hybrid("8xA100"), hybrid("8xA100", "systems.8xA100.price=$6/h")
    assert after.speedup == before.speedup
    assert after.cost_prophet == pytest.approx(2 * before.cost_prophet)
    assert after.saving_per_year == pytest.approx(2 * before.saving_per_year)


@pytest.mark.parametrize(
    ("system", "figure", "published", "scale", "told"),
    [
        # (1 - hit) r = 0.208 / 0.792 and r = 800 / B: but EP = 1 has no r at all.
        ("2xA100", "comm_prophet", "20.8", 100.0, "no value of any one assumption"),
        # r = 0.928 / 0.072 = 12.89: B = 62.07 GB/s, or a rate of 180.4 token/s.
        ("10xA6000", "comm_baseline", "92.8", 100.0, "62.07 GB/s or 180.4 token/s on one GPU"),
        # 1600 / (1 + 4/15) is 1263; 2000 takes m = 2000 / 1263.2 x 4.
        ("8xA100", "prophet_tokens_per_s", "2000-3000", 1.0,
         "memory reduction 6.333 or 187.5 token/s on one GPU"),
        ("8xA100", "cost_baseline", "3-5", 1.0, "$0.3857/h"),
        # 400 / (1 + r) never exceeds 400, the four units that are counted.
        ("8xA100", "baseline_tokens_per_s", "520", 1.0, "no value of any one assumption"),
    ],
)  # fmt: skip
def test_where_the_form_would_give_a_claim(system, figure, published, scale, told):
    point = STUDY.point(system, *strategies(STUDY.systems[system])["hybrid"])
    assert holds_at(point, figure, read_published(published), scale) == told


def test_claims_on_all_systems_by_the_form():
    standings = {
        name: Standing(system.gpus, system.bandwidth_bytes_per_s, f.speedup, f.comm_reduction)
        for name, system in STUDY.systems.items()
        for f in (hybrid(name),)
    }
    answers = {
        claim.text: ORDERS[claim.order](standings, claim.system, claim.other)
        for claim in STUDY.orders
    }
    assert [text for text, holds in answers.items() if not holds] == [
        "8xA100 has the highest speed-up (instructions)"
    ]
    standings["8xA100"] = standings["8xA100"]._replace(speedup=20.0)
    assert not ORDERS["grows_with_gpus"](standings, "", "")
    assert ORDERS["highest"](standings, "8xA100", "")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("systems.8xA100.price=3", "--set systems.8xA100.price: 3 has no unit; write for example"),
        ("systems.8xA101.price=$3/h", "--set systems.8xA101: unknown key '8xA101' (did you mean"),
        ("systems.8xA100.dp=3", "--set systems.8xA100.dp: 3 does not divide the 8 GPUs"),
        ("assumptions.accuracy=1.5", "--set assumptions.accuracy: "),
        ("claims.0.published=fast", "--set claims.0.published: "),
        ("claims.0.figure=speed", "--set claims.0.figure: no figure 'speed'; known: "),
        ("claims.0.system=9xA100", "--set claims.0.system: no system '9xA100' (did you mean"),
        ("orders.0.order=most", "--set orders.0.order: no order 'most'; known: "),
        ("simulation.quick.accuracies=[0.5, 0.1]", "--set simulation.quick.accuracies: "),
        ("accuracy", "--set 'accuracy': write key.path=value"),
        ("assumptions.accuracy.x=1", "--set assumptions.accuracy.x: unknown key 'x'"),
    ],
)
def test_a_wrong_override_is_one_line(override, line):
    with pytest.raises(InputError) as refused:
        load_study([override])
    (told,) = str(refused.value).splitlines()
    assert told.startswith(line)
