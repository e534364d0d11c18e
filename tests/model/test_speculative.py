"""Draft and verify: tokens per step against the sum over how many guesses are right."""

from __future__ import annotations

import closed_forms
import pytest

from simulator.model import speculative
from simulator.spec.schema import Traffic


@pytest.mark.parametrize("guesses", [1, 2, 5])
@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.85, 1.0])
def test_expected_tokens(guesses: int, acceptance: float):
    wanted = closed_forms.expected_tokens(guesses, acceptance)
    assert speculative.expected_tokens(guesses, acceptance) == pytest.approx(wanted, rel=1e-12)


def test_one_guess_of_deepseek_v3():
    """85 to 90 % of the second tokens are accepted (arXiv 2412.19437): 1.85 to 1.9 per step."""
    assert speculative.expected_tokens(1, 0.85) == pytest.approx(1.85)


def test_rows_of_a_sequence():
    guessing = {"draft_tokens": 3, "acceptance": 0.5}
    base = {"tokens_per_gpu": 8, "context": 10}
    decode = Traffic.model_validate(base | {"speculative": guessing})
    assert speculative.queries(decode) == 4
    assert speculative.tokens_per_row(decode) == pytest.approx((1 + 0.5 + 0.25 + 0.125) / 4)
    prefill = decode.model_copy(update={"phase": "prefill"})
    for plain in (prefill, Traffic.model_validate(base)):
        assert (speculative.queries(plain), speculative.tokens_per_row(plain)) == (1, 1.0)
