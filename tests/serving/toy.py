"""Groups whose steps take a stated time, whatever is in them."""

from __future__ import annotations

import numpy as np

from simulator.engine.serving.group import Group, Setup
from simulator.engine.serving.scheduler import Ledger, Limits
from simulator.engine.serving.timing import Costs, Routing, Wires


def ledger(
    prompt: list[int] | np.ndarray,
    output: list[int] | np.ndarray,
    blocks: list[list[int]] | None = None,
    priority: list[int] | None = None,
) -> Ledger:
    """Requests of so many tokens, with prefix blocks if given."""
    n = len(prompt)
    ints = {name: np.zeros(n, dtype=np.int32) for name in Ledger._fields}
    floats = ("admitted_s", "first_s", "last_s", "largest_gap_s")
    of = ints | {name: np.full(n, 0.0 if "gap" in name else -1.0) for name in floats}
    of["prompt"] = np.asarray(prompt, dtype=np.int32)
    of["output"] = np.asarray(output, dtype=np.int32)
    of["priority"] = np.asarray(priority or [0] * n, dtype=np.int16)
    of["row"] = np.zeros(n, dtype=np.int64)
    of["rows"] = np.ones(n, dtype=np.int32)
    of["state"] = np.zeros(n, dtype=np.int8)
    parts = blocks or [[] for _ in range(n)]
    of["block_ptr"] = np.cumsum([0, *map(len, parts)]).astype(np.int64)
    of["block"] = np.array([b for part in parts for b in part], dtype=np.int32)
    return Ledger(**of)


def group(
    of: Ledger,
    step_s: float = 1.0,
    ranks: int = 1,
    most: int = 1,
    tokens: int = 4096,
    blocks: int = 1 << 30,
    per_token: bool = False,
    **limits: object,
) -> Group:
    """A group of ranks in which a step takes `step_s`, or so much per token of the fullest rank."""
    fixed = np.tile(step_s * np.arange(tokens + 1.0), (2, 1))
    if not per_token:
        fixed[:, 1:] = step_s
    nothing = np.zeros((2, tokens + 1))
    plain = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    costs = Costs(
        fixed, nothing, nothing[0], nothing, np.zeros((2, 3)), plain, np.ones(11),
        np.zeros(1, dtype=np.uint8), 0, np.array([-1], dtype=np.int32),
    )  # fmt: skip
    i32 = np.zeros(0, dtype=np.int32)
    wires = Wires(
        np.zeros((ranks, ranks)), np.zeros((2, ranks, ranks)), np.zeros((2, 0, ranks, ranks)),
        np.zeros((2, 0, ranks, ranks)), np.zeros(ranks * ranks + 1, dtype=np.int64), i32,
        np.zeros((2, 0)), np.zeros((2, 4)), np.zeros((2, 64)), True, False,
        np.zeros(ranks, dtype=np.int32), np.zeros((ranks, 1), dtype=np.int32),
    )  # fmt: skip
    routing = Routing(
        np.zeros((1, 1, 1), dtype=np.int16), i32, np.zeros((0, 1, 0), dtype=np.int16),
        np.zeros(ranks, dtype=np.int32), np.zeros(0, dtype=np.int16),
    )  # fmt: skip
    said = {
        "block_tokens": 16,
        "prefix_tokens": 0,
        "chunked": True,
        "swap": False,
        "hand_on": False,
    }
    how = Limits(tokens=tokens, blocks=blocks, **(said | limits))
    prefixes = int(of.block.max(initial=-1)) + 1
    return Group(Setup(ranks, most, 1, prefixes, costs, wires, routing, how, 0.0), of)
