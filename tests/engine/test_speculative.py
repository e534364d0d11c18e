"""Speculative decoding in a run: what a step verifies, and what it gains."""

from __future__ import annotations

import pytest

from simulator.api import simulate


def test_speed_and_cost_count_what_is_gained():
    """Three guesses per sequence, each right with 0.8 if those before are: 1 + 0.8 + 0.64 + 0.512
    tokens for 4 rows. With the same rows the step takes no longer than without guesses, because a
    sequence's rows share its cache.
    """
    rows = ["traffic.tokens_per_gpu=8", "traffic.steps=1", "expert_slots=8", "prefetch=none"]
    plain = simulate("nvswitch16", "moe128", overrides=rows).summary
    guessed = simulate(
        "nvswitch16",
        "moe128",
        overrides=[*rows, "traffic.speculative={draft_tokens: 3, acceptance: 0.8}"],
    ).summary
    gained = (1 + 0.8 + 0.64 + 0.512) / 4
    assert plain["tokens"] == 16 * 8
    assert guessed["tokens"] == pytest.approx(16 * 8 * gained, rel=1e-12)
    assert guessed["throughput_tokens_per_s"] == pytest.approx(
        guessed["tokens"] / guessed["simulated_time_s"], rel=1e-12
    )
    assert guessed["step_time_s"]["mean"] <= plain["step_time_s"]["mean"]
    per_token = guessed["cost"]["usd_per_million_tokens"] * guessed["throughput_tokens_per_s"]
    assert per_token == pytest.approx(
        plain["cost"]["usd_per_million_tokens"] * plain["throughput_tokens_per_s"], rel=1e-9
    )
