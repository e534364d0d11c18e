"""One host in the picture of a cluster: a column for each GPU, a row for each kind of node.

A unit of x is one column. PCIe switches below PCIe switches have rows of their own: pcie0, pcie1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

# From top to bottom; PCIe switches below PCIe switches have rows of their own.
_INSIDE = ("nic", "dram", "cpu", "pcie", "gpu", "nvswitch")


class Host(NamedTuple):
    """A host laid out from x = 0: node -> (x, row), and how many columns it takes."""

    at: dict[str, tuple[float, str]]
    width: float


def lay_out_host(
    names: Sequence[str], kind: Mapping[str, str], beside: Mapping[str, list[str]]
) -> Host:
    """Lay out a host: GPUs in the order of its PCIe tree, the rest above or below what they join.

    names: its nodes; kind: node -> kind; beside: node -> nodes that links join it to.
    """
    mine = set(names)
    order, depth, children = _tree(names, kind, beside, mine)
    x: dict[str, float] = {}
    column, root_end = 0.0, False
    for name in order:
        if depth[name] == 0 and root_end:
            column += 0.4  # between two sockets
        root_end = False
        if not children[name] and kind[name] != "cpu":
            x[name] = column
            column += 1.0
            root_end = True
    for name in reversed(order):
        below = [x[child] for child in children[name]]
        if below:
            x[name] = sum(below) / len(below)
        elif name not in x:
            x[name] = max(column - 1.0, 0.0) / 2
    row = {name: kind[name] for name in names}
    for name in order:
        if kind[name] == "pcie":
            row[name] = f"pcie{max(depth[name] - 1, 0)}"
    _spread([name for name in order if kind[name] == "cpu"], x)
    for level in sorted({row[name] for name in order if kind[name] == "pcie"}):
        _spread([name for name in order if row[name] == level], x)
    for placed_kind in ("nvswitch", "nic"):
        some = [name for name in names if kind[name] == placed_kind]
        for name in some:
            x[name] = mean_or_middle([x[o] for o in beside[name] if o in mine and o in x], column)
        _spread(some, x)
    _step_aside([name for name in names if kind[name] == "cpu"], x, row, beside)
    memories = [name for name in names if kind[name] == "dram"]
    for name in memories:
        x[name] = mean_or_middle([x[o] for o in beside[name] if o in mine and o in x], column)
    _spread(memories, x)
    _step_aside(memories, x, row, beside)
    left = min(x.values())
    width = max(max(x.values()) - left + 1.0, 2.0)
    shift = (width - 1.0 - (max(x.values()) - left)) / 2 - left
    return Host({name: (x[name] + shift, row[name]) for name in names}, width)


def spaced(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending positions at least `gap` apart, together as near to the wanted ones as can be.

    Least squares: what is too near is pooled into blocks, each around the mean of what it wants.
    """
    blocks: list[tuple[float, int]] = []  # sum of (wanted - index * gap), members
    for index, want in enumerate(wanted):
        total, count = want - index * gap, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / count:
            total, count = total + blocks[-1][0], count + blocks[-1][1]
            blocks.pop()
        blocks.append((total, count))
    means = [total / count for total, count in blocks for _ in range(count)]
    return [mean + index * gap for index, mean in enumerate(means)]


def row_level(row: str) -> float:
    """Where a row stands, from the top; what lies between rows does not matter here."""
    if row.startswith("pcie"):
        return _INSIDE.index("pcie") + 1.0 - 1.0 / (1 + int(row[4:]))
    return float(_INSIDE.index(row))


def mean_or_middle(values: Sequence[float], width: float) -> float:
    """The mean; with nothing to go by the middle."""
    return sum(values) / len(values) if values else max(width - 1.0, 0.0) / 2


def _tree(
    names: Sequence[str], kind: Mapping[str, str], beside: Mapping[str, list[str]], mine: set[str]
) -> tuple[list[str], dict[str, int], dict[str, list[str]]]:
    """CPUs, PCIe switches and GPUs of a host as trees: depth first order, depth, children."""
    depth: dict[str, int] = {}
    children: dict[str, list[str]] = {}
    roots: list[str] = []
    for wanted in ("cpu", "pcie", "gpu"):
        for root in [name for name in names if kind[name] == wanted]:
            if root in depth:
                continue
            # All CPUs are roots before anything is hung below one of them.
            roots.append(root)
            depth[root] = 0
            children[root] = []
        near = [root for root in roots if kind[root] == wanted]
        while near:
            further = []
            for name in near:
                for other in beside[name]:
                    if other in mine and other not in depth and kind[other] in ("pcie", "gpu"):
                        if kind[name] == "gpu":
                            continue  # a link between GPUs is no part of the tree
                        depth[other] = depth[name] + 1
                        children[name].append(other)
                        children[other] = []
                        further.append(other)
            near = further
    rank = {name: number for number, name in enumerate(names)}
    order: list[str] = []
    ahead = list(reversed(roots))
    while ahead:
        name = ahead.pop()
        order.append(name)
        children[name].sort(key=rank.__getitem__)
        ahead += reversed(children[name])
    return order, depth, children


def _spread(names: Sequence[str], x: dict[str, float]) -> None:
    """Move the nodes of one row a column apart."""
    ordered = sorted(names, key=lambda name: x[name])
    for name, position in zip(ordered, spaced([x[name] for name in ordered], 1.0), strict=True):
        x[name] = position


def _step_aside(
    names: Sequence[str],
    x: dict[str, float],
    row: Mapping[str, str],
    beside: Mapping[str, list[str]],
) -> None:
    """Move nodes off the lines that pass through their row, by the smallest of a few steps."""
    for name in names:
        level = row_level(row[name])
        passing = []
        for one, place_one in x.items():
            if row_level(row[one]) >= level:
                continue
            for other in beside[one]:
                if other in x and row_level(row[other]) > level:
                    high, low = row_level(row[one]), row_level(row[other])
                    share = (level - high) / (low - high)
                    passing.append(place_one + share * (x[other] - place_one))
        fixed = [x[o] for o in x if o != name and row[o] == row[name]]
        start = x[name]
        for step in (0.0, -0.5, 0.5, -1.0, 1.0, -1.5, 1.5):
            clear = all(abs(start + step - line) > 0.35 for line in passing)
            if clear and all(abs(start + step - other) > 0.7 for other in fixed):
                x[name] = start + step
                break
