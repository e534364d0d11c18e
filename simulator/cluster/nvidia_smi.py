"""The matrix that ``nvidia-smi topo -m`` prints -> explicit topology.

A cell says what the way between two devices crosses: NV# bonded NVLinks, PIX one PCIe switch, PXB
several, PHB the host bridge, NODE the host bridges of a NUMA node, SYS the link between sockets.
The tree that is built has these crossings; PHB and NODE both lead through the socket.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from simulator.cluster.imported import (
    LINK_GB_PER_S,
    NVLINK_LATENCY,
    OUR_NAMES,
    PCIE_LATENCY,
    Host,
    known_gpu,
    nvlink_bytes_per_s,
    pcie_bytes_per_s,
    read_bounded,
    write_topology,
)
from simulator.errors import InputError

_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
_NAME = re.compile(r"[A-Za-z][\w.-]*", re.ASCII)
_CELL = re.compile(r"X|PIX|PXB|PHB|NODE|SYS|SOC|NV([1-9]\d?)")
MAX_DEVICES = 256


@dataclass(frozen=True)
class Matrix:
    """names: devices in the order of the columns; cells: what lies between two of them, by name;
    numa: NUMA node (or CPU list) of those that state it; lines: where each row stands.
    """

    names: tuple[str, ...]
    cells: dict[tuple[str, str], str]
    numa: dict[str, str]
    lines: dict[str, int]


def import_smi(
    source: str | Path, target: str | Path, gpu: str | None = None, nodes: int = 1,
    nic: str | None = None,
) -> list[str]:  # fmt: skip
    """Write the topology of a matrix and say in lines what was kept and what assumed.

    gpu: catalogue name, needed (the matrix does not tell). nodes, nic: see
    ``imported.write_topology``. InputError with file and line for what is no such matrix.
    """
    path = Path(source)
    if gpu is None:
        raise InputError(f"{path}: a matrix does not say which GPU; give --gpu, as in --gpu A6000")
    model = known_gpu(gpu)
    try:
        text = read_bounded(path).decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path}:1: not a text in UTF-8") from None
    matrix = read_matrix(text, str(path))
    host = Host()
    gpus = [name for name in matrix.names if re.fullmatch(r"GPU\d+", name)]
    nodes_of = {name: f"gpu{i}" for i, name in enumerate(gpus)}
    nodes_of |= {name: name for name in matrix.names if name not in nodes_of}
    host.nodes = {node: "gpu" if name in gpus else "nic" for name, node in nodes_of.items()}
    host.nics = dict.fromkeys((n for n in matrix.names if n not in gpus), None)
    _join_pcie(host, matrix, nodes_of, pcie_bytes_per_s(model))
    host.note(
        f"pcie: {pcie_bytes_per_s(model) / 1e9:g} GB/s on every link, what {model} can; the matrix "
        "states no speed"
    )
    _join_nvlink(host, matrix, gpus, nodes_of, model, path)
    return write_topology(host, model, path.name, Path(target), nodes, nic)


def read_matrix(text: str, shown: str) -> Matrix:
    """The matrix in a text; comments before it and the legend after it are passed over.

    Raises InputError with the line for a row that is cut off, missing, there twice, has an unknown
    cell, or does not agree with its column.
    """

    def fail(line: int, what: str) -> NoReturn:
        raise InputError(f"{shown}:{line}: {what}")

    columns: list[str] = []
    cells: dict[tuple[str, str], str] = {}
    numa: dict[str, str] = {}
    lines: dict[str, int] = {}
    number = header = 1
    for number, raw in enumerate(text.splitlines(), start=1):
        words = _ESCAPE.sub("", raw).split()
        if not columns:
            if words and words[0] == "GPU0" and "X" not in words:
                stop = words.index("CPU") if "CPU" in words else len(words)
                columns, header = words[:stop], number
                _check_columns(columns, shown, number)
            continue
        if not words:
            if lines:
                break
            continue
        name, row = words[0], words[1 : 1 + len(columns)]
        if name not in columns:
            fail(number, f"a row {name!r}, but there is no column of that name (line {header})")
        if name in lines:
            fail(number, f"{name} a second time, first in line {lines[name]}")
        if len(row) < len(columns):
            fail(number, f"cut off: {len(row)} of {len(columns)} cells in the row {name}")
        for column, cell in zip(columns, row, strict=True):
            if _CELL.fullmatch(cell) is None or (cell == "X") != (name == column):
                fail(
                    number, f"{cell!r} between {name} and {column} is nothing that nvidia-smi says"
                )
            cells[name, column] = "SYS" if cell == "SOC" else cell
        lines[name] = number
        rest = words[1 + len(columns) :]
        if rest and rest[0] != "N/A":
            numa[name] = rest[1] if len(rest) > 1 and rest[1] != "N/A" else rest[0]
    if not columns:
        fail(1, "no matrix of nvidia-smi topo -m: no line that begins with GPU0 and names devices")
    for name in columns:
        if name not in lines:
            fail(number, f"cut off: no row {name}, which line {header} names")
        for other in columns:
            if cells[name, other] != cells.get((other, name), cells[name, other]):
                fail(
                    max(lines[name], lines[other]),
                    f"{cells[name, other]!r} from {name} to {other}, but "
                    f"{cells[other, name]!r} back",
                )
    return Matrix(tuple(columns), cells, numa, lines)


def _check_columns(columns: list[str], shown: str, line: int) -> None:
    for index, name in enumerate(columns):
        if _NAME.fullmatch(name) is None or OUR_NAMES.fullmatch(name):
            raise InputError(f"{shown}:{line}: {name!r} is no device's name")
        if name in columns[:index]:
            raise InputError(f"{shown}:{line}: {name} a second time")
    if len(columns) > MAX_DEVICES:
        raise InputError(f"{shown}:{line}: more than {MAX_DEVICES} devices")


def _groups(matrix: Matrix, joined: set[str], numa: bool = False) -> list[list[str]]:
    """Devices that cells of these kinds join (and one NUMA node, with `numa`), in order."""
    group = {name: index for index, name in enumerate(matrix.names)}
    for a in matrix.names:
        for b in matrix.names:
            same = numa and a in matrix.numa and matrix.numa[a] == matrix.numa.get(b)
            if group[a] != group[b] and (matrix.cells[a, b] in joined or same):
                old, new = group[b], group[a]
                group = {name: new if g == old else g for name, g in group.items()}
    numbers = dict.fromkeys(group.values())
    return [[name for name in matrix.names if group[name] == number] for number in numbers]


def _join_pcie(
    host: Host, matrix: Matrix, nodes_of: dict[str, str], bandwidth_bytes_per_s: float
) -> None:
    """Devices on PCIe switches where the matrix has some, these on the sockets."""
    above = {name: nodes_of[name] for name in matrix.names}
    count = 0
    for kinds in ({"PIX"}, {"PIX", "PXB"}):
        for group in _groups(matrix, kinds):
            below = list(dict.fromkeys(above[name] for name in group))
            if len(below) < 2:
                continue
            switch, count = f"pcie{count}", count + 1
            host.nodes[switch] = "pcie"
            for node in below:
                host.join(node, switch, bandwidth_bytes_per_s, PCIE_LATENCY)
            above |= dict.fromkeys(group, switch)
    sockets = _groups(matrix, {"PIX", "PXB", "PHB", "NODE"}, numa=True)
    host.add_sockets(f"cpu{number}" for number in range(len(sockets)))
    for number, group in enumerate(sockets):
        for node in dict.fromkeys(above[name] for name in group):
            host.join(node, f"cpu{number}", bandwidth_bytes_per_s, PCIE_LATENCY)


def _join_nvlink(
    host: Host,
    matrix: Matrix,
    gpus: list[str],
    nodes_of: dict[str, str],
    model: str,
    path: Path,
) -> None:
    """NVLinks: pairs as stated, or a switch where a GPU's pairs need more links than it has."""
    counts = {
        (a, b): int(matrix.cells[a, b].removeprefix("NV"))
        for a in gpus
        for b in gpus
        if matrix.cells[a, b].startswith("NV")
    }
    if not counts:
        return
    rate, total = LINK_GB_PER_S.get(model), nvlink_bytes_per_s(model)
    first = next(iter(counts))
    if rate is None or total is None:
        line = matrix.lines[first[0]]
        raise InputError(
            f"{path}:{line}: NVLink between {' and '.join(first)}, but {model} has none"
        )
    host.note(f"nvlink: {rate:g} GB/s per link each way (data sheet of {model})")
    links = round(total / (rate * 1e9))
    most = max(counts.values())
    if most > links:
        a, b = max(counts, key=lambda pair: counts[pair])
        raise InputError(
            f"{path}:{matrix.lines[a]}: {matrix.cells[a, b]} between {a} and {b}, but {model} has "
            f"{links} NVLinks"
        )
    if max(sum(counts.get((a, b), 0) for b in gpus) for a in gpus) <= links:
        for (a, b), count in counts.items():
            host.join(nodes_of[a], nodes_of[b], count * rate * 1e9, NVLINK_LATENCY)
        return
    if len(counts) < len(gpus) * (len(gpus) - 1):
        raise InputError(
            f"{path}:{matrix.lines[first[0]]}: more NVLinks than the {links} of {model}, yet not "
            "between all GPUs, as a switch would; is --gpu right?"
        )
    host.nodes["nvswitch"] = "nvswitch"
    host.note(f"nvlink: a GPU's pairs share its links (it has {links}), so they are on NVSwitch")
    for a in gpus:
        own = max(counts[a, b] for b in gpus if b != a)
        host.join(nodes_of[a], "nvswitch", own * rate * 1e9, NVLINK_LATENCY)
