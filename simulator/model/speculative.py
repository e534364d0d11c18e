"""Speculative decoding and multi-token prediction (Leviathan, Kalman, Matias, arXiv 2211.17192)."""

from __future__ import annotations

from simulator.spec.schema import Traffic


def expected_tokens(draft_tokens: int, acceptance: float) -> float:
    """Tokens that a sequence gains in a step that verifies `draft_tokens` guesses.

    (1 - a^(n + 1)) / (1 - a): guesses up to the first wrong one, and the one that the step itself
    makes; every guess is right with the same probability a if all before it were.
    """
    if acceptance == 1.0:
        return draft_tokens + 1.0
    return float((1.0 - acceptance ** (draft_tokens + 1)) / (1.0 - acceptance))


def queries(traffic: Traffic) -> int:
    """Rows per sequence in a decode step: the last token and the guesses."""
    asked = traffic.speculative
    return 1 + asked.draft_tokens if asked and traffic.phase == "decode" else 1


def tokens_per_row(traffic: Traffic) -> float:
    """Tokens gained per row that a decode step computes; 1 without guesses."""
    asked = traffic.speculative
    if not asked or traffic.phase != "decode":
        return 1.0
    return expected_tokens(asked.draft_tokens, asked.acceptance) / queries(traffic)
