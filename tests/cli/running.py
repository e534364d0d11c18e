"""What the tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# Two of 36 layers, one step without warm-up, routing from a law: a fraction of a second.
SMALL = (
    *("--topology", "nvswitch16", "--workload", "moe128", "--routing", "zipf:0.8"),
    *("--set", "model.layers=2", "--set", "traffic.steps=1", "--set", "traffic.warmup_steps=0"),
    *("--set", "traffic.tokens_per_gpu=8", "--set", "expert_slots=4"),
)


class Done(NamedTuple):
    """How a call of the command line ended."""

    status: int
    out: str
    err: str


Call = Callable[..., Done]


def listing(path: Path) -> list[str]:
    """Everything below a directory, hidden files too, sorted."""
    return sorted(entry.relative_to(path).as_posix() for entry in path.rglob("*"))
