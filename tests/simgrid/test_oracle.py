"""Every finish time equals SimGrid's to 1e-9, on random graphs of four shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from needed import needed
from simgrid.oracle import Case, absent, ask, build

from simulator.cluster.graph import gpus
from simulator.cluster.routes import route_table
from simulator.engine.transfers import transfers

PER_SHAPE = 150
REL = 1e-9

Rng = np.random.Generator


def join(graph: nx.DiGraph, a: str, b: str, kind: str, there: float, back: float) -> None:
    for source, target, bandwidth in ((a, b, there), (b, a, back)):
        graph.add_edge(
            source, target, kind=kind, bandwidth_bytes_per_s=float(bandwidth), latency_s=0.0
        )


def add_gpu(graph: nx.DiGraph, index: int, host: int = 0) -> str:
    graph.add_node(f"gpu{index}", kind="gpu", host=host, index=index)
    return f"gpu{index}"


def drawn(rng: Rng, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def star(rng: Rng) -> nx.DiGraph:
    """GPUs on one switch, every link and direction with a bandwidth of its own, or all alike."""
    graph = nx.DiGraph(name="star")
    graph.add_node("switch", kind="nvswitch", host=0)
    alike = rng.random() < 0.3
    for index in range(rng.integers(2, 17)):
        there, back = (450e9, 450e9) if alike else (drawn(rng, 1e9, 1e12), drawn(rng, 1e9, 1e12))
        join(graph, add_gpu(graph, index), "switch", "nvlink", there, back)
    return graph


def rails(rng: Rng) -> nx.DiGraph:
    """HGX nodes on a leaf per rail, with one to three spines, oversubscribed up to 8 times."""
    graph = nx.DiGraph(name="rails")
    nodes, local_gpus = int(rng.integers(2, 5)), int(rng.integers(2, 5))
    spines, nic = int(rng.integers(1, 4)), drawn(rng, 10e9, 100e9)
    uplink = nic * nodes / drawn(rng, 1.0, 8.0) / spines
    for rail in range(local_gpus):
        graph.add_node(f"leaf{rail}", kind="leaf", host=-1)
        for spine in range(spines):
            graph.add_node(f"spine{spine}", kind="spine", host=-1)
            join(graph, f"leaf{rail}", f"spine{spine}", "network", uplink, uplink)
    for node in range(nodes):
        graph.add_node(f"nvswitch{node}", kind="nvswitch", host=node)
        for rail in range(local_gpus):
            gpu = add_gpu(graph, node * local_gpus + rail, node)
            pcie, nic_name = f"pcie{node}.{rail}", f"nic{node}.{rail}"
            graph.add_node(pcie, kind="pcie", host=node)
            graph.add_node(nic_name, kind="nic", host=node)
            join(graph, gpu, f"nvswitch{node}", "nvlink", 450e9, 450e9)
            join(graph, gpu, pcie, "pcie", 64e9, 64e9)
            join(graph, pcie, nic_name, "pcie", 64e9, 64e9)
            join(graph, nic_name, f"leaf{rail}", "network", nic, nic)
    return graph


def fat_tree(rng: Rng) -> nx.DiGraph:
    """Single GPUs under leaves under spines, without rails."""
    graph = nx.DiGraph(name="fat tree")
    leaves, below, spines = (int(n) for n in rng.integers(2, 5, size=3))
    uplink = drawn(rng, 20e9, 200e9)
    for leaf in range(leaves):
        graph.add_node(f"leaf{leaf}", kind="leaf", host=-1)
        for spine in range(spines):
            graph.add_node(f"spine{spine}", kind="spine", host=-1)
            join(graph, f"leaf{leaf}", f"spine{spine}", "network", uplink, drawn(rng, 2e10, 2e11))
        for port in range(below):
            gpu = add_gpu(graph, leaf * below + port, leaf * below + port)
            join(graph, gpu, f"leaf{leaf}", "network", drawn(rng, 20e9, 100e9), 50e9)
    return graph


def mesh(rng: Rng) -> nx.DiGraph:
    """A grid of switches with a GPU each: routes of many hops that cross; some GPUs also joined."""
    graph = nx.DiGraph(name="mesh")
    rows, columns = int(rng.integers(2, 5)), int(rng.integers(2, 5))
    for row in range(rows):
        for column in range(columns):
            here = f"switch{row}.{column}"
            graph.add_node(here, kind="nvswitch", host=0)
            gpu = add_gpu(graph, row * columns + column)
            join(graph, gpu, here, "nvlink", drawn(rng, 5e10, 5e11), drawn(rng, 5e10, 5e11))
            for before in (f"switch{row - 1}.{column}", f"switch{row}.{column - 1}"):
                if before in graph:
                    rates = drawn(rng, 1e10, 1e11), drawn(rng, 1e10, 1e11)
                    join(graph, before, here, "nvlink", *rates)
            if column and rng.random() < 0.3:
                other = f"gpu{row * columns + column - 1}"
                join(graph, other, gpu, "nvlink", 25e9, drawn(rng, 1e9, 1e11))
    return graph


SHAPES: dict[str, Callable[[Rng], nx.DiGraph]] = {
    "star": star,
    "rails": rails,
    "fat tree": fat_tree,
    "mesh": mesh,
}


def starts(rng: Rng, count: int) -> np.ndarray:
    """All at once, in a few waves, or each at a time of its own."""
    way = rng.integers(3)
    if way == 0:
        return np.zeros(count)
    if way == 1:
        return rng.choice([0.0, 1e-3, 2.5e-3, 7e-3], size=count)
    return rng.uniform(0.0, 0.02, size=count)


def with_latency(graph: nx.DiGraph, latency_s: float) -> nx.DiGraph:
    """The same latency for every route: it is all on the way out of the GPU."""
    for source, _, link in graph.edges(data=True):
        link["latency_s"] = latency_s if graph.nodes[source]["kind"] == "gpu" else 0.0
    return graph


def draw(shape: str, number: int) -> tuple[nx.DiGraph, list[str], list[str], Case]:
    rng = np.random.default_rng([list(SHAPES).index(shape), number])
    graph = with_latency(SHAPES[shape](rng), drawn(rng, 1e-7, 1e-3))
    names = np.array(gpus(graph))
    count = int(rng.integers(2, 150))
    source = rng.integers(names.size, size=count)
    target = (source + rng.integers(1, names.size, size=count)) % names.size
    sources, targets = names[source].tolist(), names[target].tolist()
    routes = route_table(graph, zip(sources, targets, strict=True))
    sizes = np.ceil(rng.gamma(rng.choice([0.3, 1.0, 4.0]), drawn(rng, 1e4, 1e9), size=count))
    pairs = zip(sources, targets, strict=True)
    route = np.array([routes.index[pair] for pair in pairs], dtype=np.int32)
    case = Case(f"{shape} {number}", routes, route, np.maximum(sizes, 1.0), starts(rng, count))
    return graph, sources, targets, case


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled oracle. In CI its absence is a failure: `make test` installs SimGrid there."""
    needed(absent())
    return build(tmp_path_factory.mktemp("simgrid"))


def test_a_hand_count(program: Path) -> None:
    """The oracle itself: 3 MB and 1 MB from 0 on 1 GB/s after 1 ms; the second takes 2 ms."""
    graph = nx.DiGraph(name="two")
    graph.add_node("switch", kind="nvswitch", host=0)
    for index in range(3):
        join(graph, add_gpu(graph, index), "switch", "nvlink", 1e9, 1e9)
    pairs = [("gpu0", "gpu2"), ("gpu1", "gpu2")]
    routes = route_table(with_latency(graph, 1e-3), pairs)
    flows = np.array([0, 1], dtype=np.int32), np.array([3e6, 1e6]), np.zeros(2)
    ((_, found),) = ask(program, [Case("two", routes, *flows)])
    assert found == pytest.approx([5e-3, 3e-3], rel=REL)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_finish_time_is_simgrids(program: Path, shape: str) -> None:
    drawn_cases = [draw(shape, number) for number in range(PER_SHAPE)]
    answers = ask(program, [case for *_, case in drawn_cases])
    for (graph, sources, targets, case), (_, wanted) in zip(drawn_cases, answers, strict=True):
        found = transfers(graph, sources, targets, case.size_bytes, case.start_s).finish_s
        np.testing.assert_allclose(found, wanted, rtol=REL, atol=0.0, err_msg=case.name)
