"""SimGrid as an independent solver: compiles `oracle.cpp` and asks it for finish times.

SimGrid weights a flow by its path's latency, so all routes of a case must have the same.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.routes import RouteTable

FLAGS = (
    # Plain max-min after the latency: no cross traffic, no TCP window, no penalty for slow links;
    # every step solves and advances all flows.
    *("network/model:CM02", "network/crosstraffic:0", "network/weight-S:0", "network/TCP-gamma:0"),
    "network/optim:Full",
)


class Case(NamedTuple):
    """Transfers on routes: route int32, size_bytes (whole numbers) and start_s float64 [flows]."""

    name: str
    routes: RouteTable
    route: NDArray[np.int32]
    size_bytes: NDArray[np.float64]
    start_s: NDArray[np.float64]


def absent() -> str | None:
    """Why SimGrid cannot be asked here, or None."""
    if shutil.which("g++") is None:
        return "no g++ to compile the SimGrid oracle with"
    if not Path("/usr/include/simgrid/s4u.hpp").is_file():
        return "SimGrid is not installed (apt-get install libsimgrid-dev)"
    return None


def build(folder: Path) -> Path:
    """Compile the oracle into `folder`."""
    program = folder / "oracle"
    source = Path(__file__).with_name("oracle.cpp")
    subprocess.run(["g++", "-O2", "-o", str(program), str(source), "-lsimgrid"], check=True)
    return program


def ask(program: Path, cases: Sequence[Case]) -> Iterator[tuple[float, NDArray[np.float64]]]:
    """Per case, the seconds that SimGrid took to run it, and the finish times [flows]."""
    arguments = [str(program), *(f"--cfg={flag}" for flag in FLAGS), "--log=root.thres:error"]
    done = subprocess.run(
        arguments, input="".join(map(_text, cases)), capture_output=True, text=True, check=True
    )
    for case, line in zip(cases, done.stdout.splitlines(), strict=True):
        took_s, *times = map(float, line.split())
        finish_s = np.empty(len(case.route))
        finish_s[_by_start(case)] = times
        yield took_s, finish_s


def _by_start(case: Case) -> NDArray[np.int64]:
    return np.argsort(case.start_s, kind="stable")


def _text(case: Case) -> str:
    routes = case.routes
    if np.ptp(routes.latency_s) > 0.0 or routes.latency_s.min() <= 0.0:
        raise ValueError(f"{case.name}: the routes' latencies differ, or are 0")
    nodes: dict[str, int] = {}
    for pair in routes.index:
        for name in pair:
            nodes.setdefault(name, len(nodes))
    lines = [f"{len(nodes)} {len(routes.links)} {routes.count} {len(case.route)}"]
    lines += [repr(value) for value in routes.bandwidth_bytes_per_s.tolist()]
    for (source, target), route in routes.index.items():
        links = " ".join(map(str, routes.all_links[route].tolist()))
        ends = f"{nodes[source]} {nodes[target]}"
        lines.append(
            f"{ends} {float(routes.latency_s[route])!r} {routes.all_links[route].size} {links}"
        )
    for i in _by_start(case).tolist():
        lines.append(f"{case.route[i]} {int(case.size_bytes[i])} {float(case.start_s[i])!r}")
    return "\n".join([*lines, ""])
