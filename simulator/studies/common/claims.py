"""Published claims beside what a closed form and a simulation give: verdicts, and what would have
to be true.

A study makes one `Judged` per claim. Readings are ways to simulate one claim, such as two places
for the weights; what does not fit in memory is judged too, but gives no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from typing import NamedTuple

REPRODUCED = "reproduced"
DIRECTION = "direction only"
NOT = "not reproduced"
UNJUDGED = "-"
MARKS = {REPRODUCED: "=", DIRECTION: "~", NOT: "x", UNJUDGED: " "}


class Published(NamedTuple):
    """A figure as printed: from `low` to `high` (equal for a single one), and half of its last
    digit, 0 for a range.
    """

    low: float
    high: float
    half_digit: float


class Found(NamedTuple):
    """What one reading gives for a claim. value: None where it gives nothing; fits: False if it
    holds only if GPUs had more memory; holds_at: what would have to be true for the claim.
    """

    value: float | None
    verdict: str
    holds_at: str
    fits: bool = True


class Judged(NamedTuple):
    """A claim and all that was found. form: None where there is no closed form; simulated: by the
    name of the reading.
    """

    system: str
    text: str
    published: str
    form: Found | None
    simulated: dict[str, Found]

    @property
    def verdict(self) -> str:
        """The best verdict among the readings that fit in memory."""
        given = [found.verdict for found in self.simulated.values() if found.fits]
        return next((name for name in (REPRODUCED, DIRECTION, NOT) if name in given), UNJUDGED)


def read_published(text: str) -> Published:
    """Read "171.4" or "85-90"; ValueError for anything else."""
    parts = text.split("-")
    try:
        values = [Decimal(part) for part in parts]
    except InvalidOperation:
        values = []
    if not 1 <= len(values) <= 2 or not all(value.is_finite() for value in values):
        raise ValueError(f"{text!r} is not a figure as 171.4 or a range as 85-90")
    if values[0] > values[-1]:
        raise ValueError(f"{text!r}: the range ends before it begins")
    exponent = values[0].as_tuple().exponent
    half = 0.5 * 10.0 ** int(exponent) if len(values) == 1 else 0.0
    return Published(float(values[0]), float(values[-1]), half)


def form_verdict(value: float | None, claim: Published) -> str:
    """Of a closed form: reproduced to the printed digits, or not. A half may have been rounded
    either way.
    """
    if value is None:
        return NOT
    slack = claim.half_digit * (1.0 + 1e-9) + 1e-12 * abs(claim.high)
    return REPRODUCED if claim.low - slack <= value <= claim.high + slack else NOT


def verdict(
    value: float | None,
    claim: Published,
    tolerance: float,
    neutral: float | None = None,
    direction: float = 0.0,
    whole: float | None = None,
) -> str:
    """Of a simulation: within `tolerance` (relative) of the claim, else whether it lies on the
    same side of `neutral`, the value without any effect, by more than `direction` (absolute).

    whole: for a share of it, which is judged as the ratio to the rest: 96 % and 88 % are near each
    other, but 24 to 1 and 7 to 1 are not.
    """
    if value is None:
        return NOT
    if whole is not None:
        value, low, high = (_odds(x, whole) for x in (value, claim.low, claim.high))
        claim = Published(low, high, 0.0)
    margins = (tolerance * abs(claim.low), tolerance * abs(claim.high))
    if claim.low - margins[0] <= value <= claim.high + margins[1]:
        return REPRODUCED
    if neutral is not None:
        claimed = 0.5 * (claim.low + claim.high) - neutral
        if abs(value - neutral) > direction and (value - neutral) * claimed > 0.0:
            return DIRECTION
    return NOT


def _odds(share: float, whole: float) -> float:
    return share / (whole - share) if share < whole else math.inf


def crossing(
    xs: Sequence[float], ys: Sequence[float | None], claim: Published, start: float
) -> float | None:
    """The x nearest to `start` at which a sampled y reaches the claim; None if it never does.

    Between two samples y is linear in x, each as its logarithm where that can be. A sample
    without a y is left out.
    """
    known = [(x, y) for x, y in sorted(zip(xs, ys, strict=True)) if y is not None]
    logarithmic = bool(known) and known[0][0] > 0.0
    low, high = claim.low - claim.half_digit, claim.high + claim.half_digit
    found = [x for x, y in known if low <= y <= high]
    for (x0, y0), (x1, y1) in pairwise(known):
        for edge in (claim.low, claim.high):
            if (y0 - edge) * (y1 - edge) < 0.0:
                share = _share(edge, y0, y1)
                if logarithmic:
                    found.append(x0 * (x1 / x0) ** share)
                else:
                    found.append(x0 + share * (x1 - x0))
    if not found:
        return None
    distance = (lambda x: abs(math.log(x / start))) if logarithmic else (lambda x: abs(x - start))
    return min(found, key=distance)


def _share(edge: float, first: float, last: float) -> float:
    """How far from the first to the last value an edge between them lies."""
    if min(first, last) > 0.0:
        edge, first, last = math.log(edge), math.log(first), math.log(last)
    return (edge - first) / (last - first)


def solve(
    value: Callable[[float], float | None], grid: Sequence[float], claim: Published, start: float
) -> float | None:
    """The x nearest to `start` at which a function reaches the claim (of a range the nearer end);
    None if the increasing `grid` has none between two of its values. To 1e-12 of the bracket.
    """
    now = value(start)
    if now is None:
        return None
    edge = claim.high if now > claim.high else claim.low
    found = []
    ys = [value(x) for x in grid]
    for x0, y0, x1, y1 in zip(grid[:-1], ys[:-1], grid[1:], ys[1:], strict=True):
        if y0 is None or y1 is None or (y0 - edge) * (y1 - edge) > 0.0 or y0 == y1:
            continue
        rising = y1 > y0
        for _ in range(40):
            middle = 0.5 * (x0 + x1)
            at = value(middle)
            if at is None:
                break
            if (at < edge) == rising:
                x0 = middle
            else:
                x1 = middle
        found.append(0.5 * (x0 + x1))
    return min(found, key=lambda x: abs(x - start)) if found else None


def flat(judged: Judged) -> dict[str, object]:
    """One row of the table, its keys the names of the columns."""
    row: dict[str, object] = {
        "system": judged.system,
        "claim": judged.text,
        "published": judged.published,
        "closed_form": judged.form.value if judged.form else None,
        "closed_form_verdict": judged.form.verdict if judged.form else UNJUDGED,
        "closed_form_holds_at": judged.form.holds_at if judged.form else "",
    }
    for name, found in judged.simulated.items():
        row |= {
            name: found.value,
            f"{name}_verdict": found.verdict,
            f"{name}_fits": found.fits,
            f"{name}_holds_at": found.holds_at,
        }
    return row | {"verdict": judged.verdict}


def told(found: Found | None, published: str) -> str:
    """A figure to as many digits as the claim has, with the mark of its verdict; in parentheses if
    it does not fit in memory.
    """
    if found is None or found.value is None:
        return "-  "
    return f"{figure(found.value, published)} {MARKS[found.verdict]}{' ' if found.fits else '*'}"


def figure(value: float | None, published: str) -> str:
    """`value` with as many decimals as the claim, more where that would leave nothing of it."""
    if value is None:
        return "-"
    decimals = max(len(part.partition(".")[2]) for part in published.split("-"))
    if abs(value) < 10.0 and decimals < 2 and value != 0.0:
        decimals = 2
    return f"{value:,.{decimals}f}"


def counted(rows: Sequence[Judged]) -> list[str]:
    """How many claims the closed form and the simulation reproduce, in sentences."""
    forms = [row.form for row in rows if row.form is not None]
    good = sum(form.verdict == REPRODUCED for form in forms)
    by_run = {name: sum(row.verdict == name for row in rows) for name in MARKS}
    judged = len(rows) - by_run[UNJUDGED]
    return [
        f"closed form: reproduces {good} of {len(forms)} claims",
        f"simulation: reproduces {by_run[REPRODUCED]} of {judged}, the direction only of "
        f"{by_run[DIRECTION]}, not {by_run[NOT]}",
    ]
