"""Costs: the published table of the expert-prefetching document, and hand-made prices.

The published throughputs, GPU counts and prices go in; the costs per million tokens and the savings
a year that the document prints must come out, to the printed digit.
"""

from __future__ import annotations

from typing import Any

import pytest

from simulator.errors import InputError
from simulator.results.cost import (
    Prices,
    cost_figures,
    saving,
    usd_per_million_tokens,
    usd_per_year,
)
from simulator.results.summary import dollars

# system: GPUs, $/GPU-h, GB/s, EP, DP; printed tokens/s, $/1M and saving per year.
PUBLISHED = {
    "2xA100": (2, 3.0, 600, 1, 2, (200.0, 800.0), (8.33, 2.08), 75_000),
    "4xH100": (4, 4.0, 900, 2, 2, (105.9, 679.2), (41.98, 6.54), 425_185),
    "8xA100": (8, 3.0, 600, 4, 2, (171.4, 1263.2), (38.89, 5.28), 403_333),
    "10xA6000": (10, 1.5, 112, 5, 2, (61.4, 823.5), (67.86, 5.06), 753_571),
}


def throughputs(bandwidth: float, ep: int, dp: int) -> tuple[float, float]:
    """The document's closed form, unrounded: tokens/s of baseline and of Prophet."""
    r = 800.0 / bandwidth if ep > 1 else 0.0
    units = max(ep, dp)
    return units * 100 / (1 + r), units * 400 / (1 + 0.2 * r)


def summary(gpus: int, price: float, tokens_per_s: float, phase: str = "decode") -> dict[str, Any]:
    prices = Prices(price, 0.10, True, 12e9, phase)
    return {
        "throughput_tokens_per_s": tokens_per_s,
        "cost": cost_figures(prices, gpus, tokens_per_s, 1000.0),
        "energy": {
            "joules_per_token": 1000.0 / tokens_per_s,
            "kwh_per_million_tokens": 1000.0 / tokens_per_s * 1e6 / 3.6e6,
            "power_w": 1000.0,
        },
    }


@pytest.mark.parametrize("system", PUBLISHED)
def test_the_published_costs_and_savings_come_out_to_the_printed_digit(system: str) -> None:
    gpus, price, bandwidth, ep, dp, printed, costs, saved = PUBLISHED[system]
    exact = throughputs(bandwidth, ep, dp)
    assert tuple(round(x, 1) for x in exact) == printed
    base, prophet = (summary(gpus, price, x) for x in exact)
    found = [round(s["cost"]["usd_per_million_tokens"], 2) for s in (base, prophet)]
    assert tuple(found) == costs
    assert round(saving(prophet, base)["saved_usd_per_year"]) == saved


@pytest.mark.parametrize("system", PUBLISHED)
def test_the_printed_throughputs_give_the_costs_to_their_own_rounding(system: str) -> None:
    gpus, price, _, _, _, printed, costs, _ = PUBLISHED[system]
    for tokens_per_s, cost in zip(printed, costs, strict=True):
        ends = [usd_per_million_tokens(gpus * price, tokens_per_s + half) for half in (-0.05, 0.05)]
        assert round(ends[1], 2) <= cost <= round(ends[0], 2)


def test_one_cluster_by_hand() -> None:
    # 10 GPUs of $3.60: $36/h, a cent a second; 1,000 tokens/s: $10 per million. 2 kW: 2 kWh/h.
    found = cost_figures(Prices(3.60, 0.25, True, 12e9, "decode"), 10, 1000.0, 2000.0)
    assert found["usd_per_hour"] == pytest.approx(36)
    assert found["usd_per_million_tokens"] == pytest.approx(10)
    assert found["usd_per_million_generated_tokens"] == found["usd_per_million_tokens"]
    assert found["usd_per_million_prompt_tokens"] is None
    assert found["usd_per_year"] == pytest.approx(120_000)
    assert found["cluster_hours_per_year"] == pytest.approx(12e6 / 3600)
    assert found["clusters_for_volume"] == pytest.approx(12e6 / 3600 / 8760)
    assert found["electricity_usd_per_hour"] == pytest.approx(0.5)
    assert found["kwh_per_year"] == pytest.approx(2 * 12e6 / 3600)
    assert found["electricity_usd_per_year"] == pytest.approx(0.5 * 12e6 / 3600)
    assert found["electricity_usd_per_million_tokens"] == pytest.approx(0.5 / 3.6)
    added = cost_figures(Prices(3.60, 0.25, False, 12e9, "prefill"), 10, 1000.0, 2000.0)
    assert added["usd_per_hour"] == pytest.approx(36.5)
    assert added["usd_per_million_prompt_tokens"] == pytest.approx(36.5 / 3.6)
    assert added["usd_per_million_generated_tokens"] is None


def test_a_year_is_twelve_months_of_the_volume() -> None:
    assert usd_per_year(8.0, 12e9) == 12 * 1000 * 8.0


def test_saving_in_energy_and_speed() -> None:
    mine, base = summary(4, 2.0, 400.0), summary(4, 2.0, 100.0)
    found = saving(mine, base)
    assert found["speed_up"] == 4
    assert found["saved_fraction"] == pytest.approx(0.75)
    assert found["saved_joules_per_token"] == pytest.approx(10 - 2.5)
    assert found["saved_kwh_per_year"] == pytest.approx(7.5 * 12e9 / 3.6e6)
    assert saving(base, mine)["saved_usd_per_year"] == pytest.approx(-found["saved_usd_per_year"])


def test_what_cannot_be_compared_is_refused() -> None:
    mine, prompt = summary(4, 2.0, 400.0), summary(4, 2.0, 400.0, "prefill")
    with pytest.raises(InputError, match="one run makes prompt tokens"):
        saving(mine, prompt)
    with pytest.raises(InputError, match="the baseline holds no cost"):
        saving(mine, {**prompt, "cost": None})


def test_no_tokens_cost_an_hour_and_nothing_else() -> None:
    found = cost_figures(Prices(2.0, 0.1, True, 12e9, "decode"), 4, 0.0, None)
    assert found["usd_per_hour"] == 8
    assert found["usd_per_million_tokens"] is None
    assert found["electricity_usd_per_hour"] is None


def test_amounts_as_text() -> None:
    assert dollars(41.98) == "$41.98"
    assert dollars(0.012345) == "$0.01235"
    assert dollars(425_185) == "$425,200"
    assert dollars(-1_120_000) == "-$1.120M"
    assert dollars(3.2e9) == "$3.200B"
    assert dollars(None) == "-"
