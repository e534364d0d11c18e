"""Where the nodes of a cluster stand in its picture: a row for each kind, a box for each host.

A unit of x is one column, about a GPU wide; a unit of y is one row, and y grows upwards. In a
cluster with many hosts a few are placed in full and the rest are folded: one tile for each.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from simulator.results.host_layout import Host, lay_out_host, mean_or_middle, row_level

NETWORK = ("spine", "leaf")

FULL_COLUMNS = 44  # a wider cluster is folded

HEAD_COLUMNS = 22  # so wide at most are the hosts placed in full before the folded ones

MANY_LEAVES = 24  # of more leaves, those of folded hosts alone are folded with them

GAP = 1.0  # columns between hosts

CURVE_ROWS = 2.6  # room below GPUs for curves between those of one row

# Rows between which lines fan out are further apart, so that these keep off the nodes beside them.
_BELOW_CPU, _ABOVE_NVSWITCH, _ABOVE_FABRIC, _ABOVE_LEAF, _ABOVE_SPINE = 1.5, 1.7, 2.2, 1.6, 1.9


class Node(NamedTuple):
    """A node. host: its number, -1 for none; model: what it is, for the reader ("" for no more)."""

    name: str
    kind: str
    host: int = -1
    model: str = ""


class Link(NamedTuple):
    """One direction of a link."""

    source: str
    target: str
    kind: str
    bandwidth_bytes_per_s: float
    latency_s: float


class Box(NamedTuple):
    """A frame with a label. depth: 0 around other boxes, 1 a host, 2 folded hosts."""

    label: str
    left: float
    bottom: float
    right: float
    top: float
    depth: int


class Tile(NamedTuple):
    """A folded host: its number, where its tile stands, and the nodes it stands for."""

    host: int
    x: float
    y: float
    nodes: tuple[str, ...]


class Fold(NamedTuple):
    """Hosts that are not placed in full; like: the host that all of them are like, -1 for none."""

    box: Box
    tiles: tuple[Tile, ...]
    like: int


class Placed(NamedTuple):
    """A cluster laid out.

    at: node -> (x, y), of those placed in full; folds, and fold_of: node -> index of the fold that
    it is in; rows: (y, kind) from top to bottom.
    """

    at: dict[str, tuple[float, float]]
    boxes: tuple[Box, ...]
    folds: tuple[Fold, ...]
    fold_of: dict[str, int]
    rows: tuple[tuple[float, str], ...]

    def extent(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top of all that is placed."""
        xs = [x for x, _ in self.at.values()]
        ys = [y for _, y in self.at.values()]
        frames = [*self.boxes, *(fold.box for fold in self.folds)]
        return (
            min(xs + [box.left for box in frames]),
            min(ys + [box.bottom for box in frames]),
            max(xs + [box.right for box in frames]),
            max(ys + [box.top for box in frames]),
        )


def place(
    nodes: Sequence[Node], links: Iterable[Link], shared_word: str = "NVLink domain"
) -> Placed:
    """Lay out a cluster; `shared_word` labels the hosts on one NVSwitch fabric ("rack").

    Spines and leaves stand on top, below them each host with its NICs, memory, sockets, PCIe
    switches, GPUs and NVSwitch, and at the bottom NVSwitches that hosts share.
    """
    links = list(links)
    kind = {node.name: node.kind for node in nodes}
    beside: dict[str, list[str]] = {node.name: [] for node in nodes}
    for link in links:
        beside[link.source].append(link.target)
        beside[link.target].append(link.source)
    beside = {name: list(dict.fromkeys(others)) for name, others in beside.items()}
    home = _homes(nodes, kind, beside)
    domain = _domains(nodes, kind, home, beside)
    of_host: dict[int, list[str]] = defaultdict(list)
    for node in nodes:
        if home[node.name] is not None:
            of_host[home[node.name] or 0].append(node.name)
    hosts = sorted(of_host, key=lambda host: (domain.get(host, host), host))
    inside = {host: lay_out_host(of_host[host], kind, beside) for host in hosts}
    shown = _shown(hosts, inside, domain)
    row_y, bottom, top = _rows(inside, shown, kind, links)

    at: dict[str, tuple[float, float]] = {}
    boxes: list[Box] = []
    folds: list[Fold] = []
    fold_of: dict[str, int] = {}
    spans: dict[int, tuple[float, float]] = {}
    alike = _signatures(nodes, links, home)
    shown_domains = {domain[host] for host in shown if host in domain}

    def fold_key(host: int) -> tuple[bool, int]:
        return host in shown, host if host in shown else _kept(domain.get(host), shown_domains)

    x = 0.0
    for (full, _), members in groupby(hosts, key=fold_key):
        some = list(members)
        if full:
            width = inside[some[0]].width
            for name, (column, row) in inside[some[0]].at.items():
                at[name] = (x + column, row_y[row])
            boxes.append(Box(f"host {some[0]}", x - 0.7, bottom, x + width - 0.3, top, 1))
        else:
            fold = _fold(some, of_host, x, bottom, top, alike, shown)
            fold_of |= {name: len(folds) for tile in fold.tiles for name in tile.nodes}
            folds.append(fold)
            width = fold.box.right - fold.box.left
        for host in some:
            spans[host] = (x - 0.7, x + width - 0.3)
        x += width + GAP
    right = x - GAP

    lowest, fabric_y = bottom, bottom + 0.6 - _ABOVE_FABRIC
    for number, (first, group) in enumerate(_grouped(domain).items()):
        if first not in shown_domains:
            folded = fold_of[of_host[group[0]][0]]
            fold_of |= dict.fromkeys(_fabrics(group, kind, home, beside), folded)
            continue
        left, end = min(spans[h][0] for h in group), max(spans[h][1] for h in group)
        fabrics = _fabrics(group, kind, home, beside)
        for place_in, name in enumerate(fabrics):
            at[name] = (left + (end - left) * (place_in + 0.5) / len(fabrics), fabric_y)
        lowest = fabric_y - 0.6
        boxes.insert(
            0, Box(f"{shared_word} {number}", left - 0.3, lowest, end + 0.3, top + 0.65, 0)
        )
    roof = top + (0.65 if shown_domains else 0.0)
    network = _network(nodes, kind, beside, at, fold_of, right)
    level = roof + _ABOVE_LEAF - 0.6
    rows = [(level_y, row) for row, level_y in row_y.items()]
    for row in reversed(NETWORK):
        if network[row]:
            at |= {name: (column, level) for name, column in network[row].items()}
            rows.append((level, row))
            level += _ABOVE_SPINE
    if lowest < bottom:
        rows.append((fabric_y, "nvswitch"))
    rows.sort(reverse=True)
    return Placed(at, tuple(boxes), tuple(folds), fold_of, tuple(rows))


def _homes(
    nodes: Sequence[Node], kind: Mapping[str, str], beside: Mapping[str, list[str]]
) -> dict[str, int | None]:
    """The host that each node is drawn in; None: in none (network, NVSwitches that hosts share)."""
    host = {node.name: max(node.host, 0) for node in nodes}
    homes: dict[str, int | None] = {}
    for node in nodes:
        if node.kind in NETWORK:
            homes[node.name] = None
        elif node.kind == "nvswitch":
            ends = {host[other] for other in beside[node.name] if kind[other] == "gpu"}
            homes[node.name] = min(ends) if len(ends) == 1 else None if ends else host[node.name]
        else:
            homes[node.name] = host[node.name]
    return homes


def _domains(
    nodes: Sequence[Node],
    kind: Mapping[str, str],
    home: Mapping[str, int | None],
    beside: Mapping[str, list[str]],
) -> dict[int, int]:
    """Host -> first host of those that it shares NVSwitches with; hosts that share none are left
    out.
    """
    first: dict[int, int] = {}
    for node in nodes:
        if node.kind != "nvswitch" or home[node.name] is not None:
            continue
        ends = sorted({home[n] or 0 for n in beside[node.name] if kind[n] == "gpu"})
        joined = {first.get(host, host) for host in ends}
        for host in [*ends, *(host for host, lead in first.items() if lead in joined)]:
            first[host] = min(joined)
    return first


def _grouped(domain: Mapping[int, int]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = defaultdict(list)
    for host in sorted(domain):
        groups[domain[host]].append(host)
    return dict(sorted(groups.items()))


def _fabrics(
    group: Sequence[int],
    kind: Mapping[str, str],
    home: Mapping[str, int | None],
    beside: Mapping[str, list[str]],
) -> list[str]:
    """The NVSwitches that these hosts share."""
    members = set(group)
    return [
        name
        for name, others in beside.items()
        if kind[name] == "nvswitch"
        and home[name] is None
        and any(kind[other] == "gpu" and home[other] in members for other in others)
    ]


def _kept(domain: int | None, shown: set[int]) -> int:
    """A domain of which a part is shown; -1 for any other."""
    return domain if domain is not None and domain in shown else -1


def _shown(hosts: Sequence[int], inside: Mapping[int, Host], domain: Mapping[int, int]) -> set[int]:
    """Hosts to place in full: all if they are not too wide, else the first ones and the last."""
    if len(hosts) < 4 or sum(inside[host].width + GAP for host in hosts) <= FULL_COLUMNS:
        return set(hosts)
    chosen, used = {hosts[0]}, inside[hosts[0]].width
    for host in hosts[1:-2]:
        used += GAP + inside[host].width
        if used > HEAD_COLUMNS:
            break
        chosen.add(host)
    # Within one fabric the last host would stand apart from its rack.
    return chosen if domain else chosen | {hosts[-1]}


def _rows(
    inside: Mapping[int, Host], shown: set[int], kind: Mapping[str, str], links: Iterable[Link]
) -> tuple[dict[str, float], float, float]:
    """Row -> y for what is shown, the bottom and the top of a host's box."""
    present = {row for host in shown for _, row in inside[host].at.values()}
    home = {name: host for host in shown for name in inside[host].at}
    curved = any(
        kind[link.source] == kind[link.target] == "gpu"
        and home.get(link.source, -1) == home.get(link.target, -2)
        and abs(
            inside[home[link.source]].at[link.source][0]
            - inside[home[link.source]].at[link.target][0]
        )
        > 1.5
        for link in links
    )
    row_y: dict[str, float] = {}
    y, lowest = 0.0, 0.0
    for row in sorted(present, key=row_level):
        if row == "nvswitch" and "gpu" in row_y:
            y -= _ABOVE_NVSWITCH - 1.0
        row_y[row] = lowest = y
        y -= _BELOW_CPU if row == "cpu" else 1.0
        if row == "gpu" and curved:
            y -= CURVE_ROWS
            lowest -= CURVE_ROWS
    return row_y, lowest - 0.6, 1.0


def _signatures(
    nodes: Sequence[Node], links: Iterable[Link], home: Mapping[str, int | None]
) -> dict[int, tuple[object, ...]]:
    """What tells hosts apart: their nodes by kind and model, and the links at them by rate."""
    kind = {node.name: node.kind for node in nodes}
    seen: dict[int, Counter[object]] = defaultdict(Counter)
    for node in nodes:
        host = home[node.name]
        if host is not None:
            seen[host][node.kind, node.model] += 1
    for link in links:
        ends = (kind[link.source], kind[link.target])
        for host in {home[link.source], home[link.target]} - {None}:
            seen[host or 0][(*ends, *link[2:])] += 1
    return {host: tuple(sorted(map(repr, counts.items()))) for host, counts in seen.items()}


def _fold(
    hosts: Sequence[int],
    of_host: Mapping[int, list[str]],
    x: float,
    bottom: float,
    top: float,
    alike: Mapping[int, tuple[object, ...]],
    shown: set[int],
) -> Fold:
    """The hosts as tiles in rows, in a box from x - 0.7 on that is as tall as a host's."""
    columns = max(min(len(hosts), 4), round((len(hosts) * 2.6) ** 0.5))
    width = max(columns * 0.9, 7.0)
    deep = -(-len(hosts) // columns)
    down = min((top - bottom - 2.2) / max(deep - 1, 1), 0.6)
    across = min((width - 1.4) / max(columns - 1, 1), 1.0)
    left = x - 0.7 + (width - across * (columns - 1)) / 2
    start = (top - 0.9 + bottom + 0.7) / 2 + down * (deep - 1) / 2
    tiles = tuple(
        Tile(
            host,
            left + across * (number % columns),
            start - down * (number // columns),
            tuple(of_host[host]),
        )
        for number, host in enumerate(hosts)
    )
    first = min(shown)
    like = first if all(alike[host] == alike[first] for host in hosts) else -1
    label = f"{len(hosts)} hosts more" + (f"<br>like host {first}" if like >= 0 else "")
    return Fold(Box(label, x - 0.7, bottom, x - 0.7 + width, top, 2), tiles, like)


def _network(
    nodes: Sequence[Node],
    kind: Mapping[str, str],
    beside: Mapping[str, list[str]],
    at: Mapping[str, tuple[float, float]],
    fold_of: dict[str, int],
    right: float,
) -> dict[str, dict[str, float]]:
    """Row -> node -> x of leaves and spines, in the order of what they join, evenly spread.

    Leaves of folded hosts alone are folded with them where there are many.
    """
    leaves = [node.name for node in nodes if node.kind == "leaf"]
    if len(leaves) > MANY_LEAVES:
        for leaf in leaves:
            below = [other for other in beside[leaf] if kind[other] not in NETWORK]
            if below and all(other in fold_of for other in below):
                fold_of[leaf] = fold_of[below[0]]
    x: dict[str, dict[str, float]] = {}
    for row in ("leaf", "spine"):
        names = [node.name for node in nodes if node.kind == row and node.name not in fold_of]
        rank = {name: number for number, name in enumerate(names)}
        wanted = {
            name: mean_or_middle(
                [at[other][0] for other in beside[name] if other in at]
                + [
                    x["leaf"][other]
                    for other in beside[name]
                    if row == "spine" and other in x["leaf"]
                ],
                right,
            )
            for name in names
        }
        ordered = sorted(names, key=lambda name: (round(wanted[name], 6), rank[name]))
        places = [right * (number + 0.5) / len(names) - 0.5 for number in range(len(names))]
        x[row] = dict(zip(ordered, places, strict=True))
    return x
