"""What `network: coflow` gets wrong under shipped plans, against exact: the table of docs/plans.md.

`python tests/engine/plan_approximations.py` prints it, with the errors as they are now.
"""

from __future__ import annotations

from typing import NamedTuple

from simulator.api import simulate


class Case(NamedTuple):
    """A plan, what is set beside the workload, and the most that a step may be off; 0: rounding."""

    topology: str
    workload: str
    sets: tuple[str, ...]
    most: float


CASES = (
    Case("nvswitch16", "layerwise", (), 0.0),
    Case("nvswitch16", "large-ep", ("parallel={tp: 8, pp: 2, microbatches: 8}",), 0.0),
    Case("h800x32-rail", "deepseek-v3", ("parallel={tp: 8, pp: 4}",), 0.0),
    Case("nvswitch16", "large-ep", (), 0.002),
    Case("h100x16-fat-tree", "large-ep", (), 0.002),
    Case("h100x32-rail", "large-ep", ("overlap=chunked:4",), 0.002),
    Case("h800x32-rail", "deepseek-v3", ("parallel={tp: 2, ep: 32}",), 0.015),
    Case("h800x32-rail", "deepseek-v3", ("parallel={tp: 2, ep: 32}", "overlap=two-batch"), 0.015),
    Case("h800x32-rail", "deepseek-v3", ("parallel={pp: 2, ep: 16}",), 0.015),
)


def error(case: Case) -> float:
    """Simulated time with coflow over that with exact, less one."""
    seconds = [
        simulate(case.topology, case.workload, overrides=[*case.sets, f"network={name}"]).summary[
            "simulated_time_s"
        ]
        for name in ("coflow", "exact")
    ]
    return float(seconds[0] / seconds[1] - 1.0)


def table() -> list[str]:
    """The rows of the table as Markdown."""
    rows = ["| topology | workload | set | a step is as with `exact` |", "|---|---|---|---|"]
    for case in CASES:
        told = ", ".join(f"`{one}`" for one in case.sets) or "as shipped"
        within = f"within {100 * case.most:g} %" if case.most else "to rounding"
        rows.append(f"| `{case.topology}` | `{case.workload}` | {told} | {within} |")
    return rows


if __name__ == "__main__":
    print("\n".join(table()))
    for case in CASES:
        print(f"{100 * error(case):+.4f} % {' '.join((case.topology, case.workload, *case.sets))}")
