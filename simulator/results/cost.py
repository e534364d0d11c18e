"""What tokens cost: GPU hours at a price, electricity, a year at a stated volume, and savings.

    $/1M tokens = GPUs x price per hour / 3600 / (tokens/s) x 1e6
    $/year      = tokens per year / 1e6 x $/1M tokens        (hours are paid as they are used)

A rental price holds the electricity, which is then told beside the cost and not added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulator.errors import InputError

HOURS_PER_YEAR = 8760.0
PHASES = {"prefill": "prompt", "decode": "generated"}
"""Which tokens a step of each phase makes."""


@dataclass(frozen=True)
class Prices:
    """Prices of one run: $/h of one GPU, $/kWh, whether the first holds the second, tokens per year
    to tell the cost of, and the phase (`PHASES`).
    """

    gpu_usd_per_hour: float
    electricity_usd_per_kwh: float
    electricity_in_price: bool
    volume_tokens_per_year: float
    phase: str


def usd_per_million_tokens(usd_per_hour: float, tokens_per_s: float) -> float:
    """$ per million tokens of a cluster at this price and throughput."""
    return usd_per_hour / 3600.0 / tokens_per_s * 1e6


def usd_per_year(usd_per_million: float, tokens_per_year: float) -> float:
    """$ per year at this volume, hours paid as they are used."""
    return usd_per_million * tokens_per_year / 1e6


def cost_figures(
    prices: Prices, gpus: int, tokens_per_s: float, power_w: float | None
) -> dict[str, Any]:
    """The figures of `cost` in a summary; `power_w`: of all that is counted, None if unknown.

    Of the tokens' two kinds, that which the run made has its price, the other None. Of a run
    without tokens, only what an hour costs is told.
    """
    kw = None if power_w is None else power_w / 1000.0
    electricity_usd_per_hour = None if kw is None else kw * prices.electricity_usd_per_kwh
    usd_per_hour = gpus * prices.gpu_usd_per_hour
    if not prices.electricity_in_price and electricity_usd_per_hour is not None:
        usd_per_hour += electricity_usd_per_hour
    volume = prices.volume_tokens_per_year
    per_million = usd_per_million_tokens(usd_per_hour, tokens_per_s) if tokens_per_s else None
    hours = volume / tokens_per_s / 3600.0 if tokens_per_s else None
    made = PHASES[prices.phase]
    return {
        "gpu_usd_per_hour": prices.gpu_usd_per_hour,
        "usd_per_hour": usd_per_hour,
        "usd_per_million_tokens": per_million,
        **{
            f"usd_per_million_{kind}_tokens": per_million if kind == made else None
            for kind in PHASES.values()
        },
        "volume_tokens_per_year": volume,
        "usd_per_year": None if per_million is None else usd_per_year(per_million, volume),
        "cluster_hours_per_year": hours,
        "clusters_for_volume": None if hours is None else hours / HOURS_PER_YEAR,
        "electricity_usd_per_kwh": prices.electricity_usd_per_kwh,
        "electricity_in_price": prices.electricity_in_price,
        "electricity_usd_per_hour": electricity_usd_per_hour,
        "electricity_usd_per_million_tokens": _product(
            electricity_usd_per_hour, None if hours is None else hours / (volume / 1e6)
        ),
        "electricity_usd_per_year": _product(electricity_usd_per_hour, hours),
        "kwh_per_year": _product(kw, hours),
    }


def saving(summary: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    """What the run of `summary` saves against that of `baseline` (positive: it is cheaper).

    Years are at the volume of `summary`. Errors: InputError if one of them holds no cost (an older
    version wrote it) or they make tokens of different kinds.
    """
    mine, other = _cost(summary, "the run"), _cost(baseline, "the baseline")
    for kind in PHASES.values():
        key = f"usd_per_million_{kind}_tokens"
        if (mine[key] is None) != (other[key] is None):
            raise InputError(
                "--baseline: one run makes prompt tokens (prefill), the other generated ones "
                "(decode); give two runs of one phase"
            )
    volume = mine["volume_tokens_per_year"]
    saved = other["usd_per_million_tokens"] - mine["usd_per_million_tokens"]
    kwh = _difference(baseline, summary, "kwh_per_million_tokens")
    return {
        "speed_up": summary["throughput_tokens_per_s"] / baseline["throughput_tokens_per_s"],
        "baseline_usd_per_million_tokens": other["usd_per_million_tokens"],
        "saved_usd_per_million_tokens": saved,
        "saved_fraction": saved / other["usd_per_million_tokens"]
        if other["usd_per_million_tokens"]
        else None,
        "volume_tokens_per_year": volume,
        "saved_usd_per_year": usd_per_year(saved, volume),
        "saved_joules_per_token": _difference(baseline, summary, "joules_per_token"),
        "saved_kwh_per_year": None if kwh is None else kwh * volume / 1e6,
    }


def _cost(summary: Mapping[str, Any], which: str) -> Mapping[str, Any]:
    found = summary.get("cost")
    if not found or found["usd_per_million_tokens"] is None:
        raise InputError(f"--baseline: {which} holds no cost of tokens; simulate it again")
    cost: Mapping[str, Any] = found
    return cost


def _difference(more: Mapping[str, Any], less: Mapping[str, Any], key: str) -> float | None:
    """`key` of the energies of two summaries, the first less the second."""
    if not more.get("energy") or not less.get("energy"):
        return None
    return float(more["energy"][key]) - float(less["energy"][key])


def _product(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a * b
