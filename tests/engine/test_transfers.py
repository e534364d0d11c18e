"""Transfers alone: finish times and what links carried, against hand counts."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cluster.graph import build_graph
from simulator.cluster.routes import unreachable
from simulator.engine import links
from simulator.engine.transfers import LINK_COLUMNS, Transfers, link_rows, transfers
from simulator.errors import InputError
from simulator.spec.load import load_topology

REL = 1e-9


def star(gpus: int, bandwidth: float = 1e9, latency_s: float = 1e-3) -> nx.DiGraph:
    graph = nx.DiGraph(name="star")
    graph.add_node("switch", kind="nvswitch", host=0)
    for index in range(gpus):
        graph.add_node(f"gpu{index}", kind="gpu", host=0, index=index)
        for a, b in ((f"gpu{index}", "switch"), ("switch", f"gpu{index}")):
            graph.add_edge(
                a, b, kind="nvlink", bandwidth_bytes_per_s=bandwidth, latency_s=latency_s / 2
            )
    return graph


def move(graph: nx.DiGraph, *sends: tuple[str, str, float, float]) -> Transfers:
    sources, targets, sizes, starts = map(list, zip(*sends, strict=True))
    return transfers(graph, sources, targets, np.array(sizes, float), np.array(starts, float))


def test_by_hand():
    """On 1 GB/s after 1 ms: 3 MB and 1 MB into gpu2 from 0 share it until 3 ms, when the one that
    is ready; the other's 2 MB that are left take 2 ms. 1 MB from 10 ms is alone.
    """
    found = move(
        star(3),
        ("gpu0", "gpu2", 3e6, 0.0),
        ("gpu1", "gpu2", 1e6, 0.0),
        ("gpu0", "gpu2", 1e6, 0.01),
    )
    assert found.finish_s == pytest.approx([5e-3, 3e-3, 12e-3], rel=REL)
    table = {row[0]: dict(zip(LINK_COLUMNS, row, strict=True)) for row in link_rows(found)}
    assert list(table) == ["gpu0 -> switch", "switch -> gpu2", "gpu1 -> switch"]
    carried = {name: row["bytes"] for name, row in table.items()}
    assert carried == {"gpu0 -> switch": 4e6, "switch -> gpu2": 5e6, "gpu1 -> switch": 1e6}
    busy = [row["busy_s"] for row in table.values()]
    assert busy == pytest.approx([4e-3 + 1e-3, 4e-3 + 1e-3, 2e-3], rel=REL)
    used = [row["utilization"] for row in table.values()]
    assert used == pytest.approx([4 / 12, 5 / 12, 1 / 12], rel=REL)
    assert {(row["kind"], row["bandwidth_bytes_per_s"]) for row in table.values()} == {
        ("nvlink", 1e9)
    }


def test_to_itself_it_arrives_at_its_start_and_uses_no_link():
    found = move(star(2), ("gpu0", "gpu0", 5e9, 0.25), ("gpu1", "gpu1", 0.0, 0.0))
    assert found.finish_s.tolist() == [0.25, 0.0]
    assert (found.links, found.bytes.size, found.busy_s.size) == ((), 0, 0)
    beside = move(star(2), ("gpu0", "gpu0", 5e9, 0.0), ("gpu0", "gpu1", 1e6, 0.0))
    assert beside.finish_s == pytest.approx([0.0, 2e-3], rel=REL)


def test_no_bytes_take_the_latency():
    found = move(star(2), ("gpu0", "gpu1", 0.0, 0.5), ("gpu0", "gpu1", 0.0, 0.0))
    assert found.finish_s == pytest.approx([0.501, 1e-3], rel=REL)
    assert found.bytes.tolist() == [0.0, 0.0]
    assert found.busy_s.tolist() == [0.0, 0.0]


def test_of_none_nothing_comes():
    found = transfers(star(2), [], [], np.zeros(0), np.zeros(0))
    assert found.finish_s.size == len(found.links) == found.utilization.size == 0


@pytest.mark.parametrize(
    ("source", "target", "crossed", "slowest", "latency_s"),
    [
        ("gpu0", "gpu9", 8, 50e9, 4 * 250e-9 + 4 * 500e-9),
        ("nic0", "nic8", 2, 50e9, 2 * 500e-9),
        ("gpu0", "nic0", 2, 64e9, 2 * 250e-9),
        ("nic1", "gpu3", 4, 64e9, 4 * 250e-9),
        ("nvswitch0", "gpu3", 1, 450e9, 468e-9),
        ("gpu3", "cpu0", 2, 64e9, 2 * 250e-9),
        ("dram0", "gpu3", 3, 64e9, 100e-9 + 2 * 250e-9),
        ("dram0", "dram1", 8, 50e9, 2 * 100e-9 + 4 * 250e-9 + 2 * 500e-9),
        ("leaf0", "nic1", 3, 50e9, 3 * 500e-9),
        ("cpu0", "spine0", 4, 50e9, 2 * 250e-9 + 2 * 500e-9),
    ],
)
def test_any_node_may_be_an_end(
    source: str, target: str, crossed: int, slowest: float, latency_s: float
):
    """Links by hand on two HGX nodes: gpu - pcie - nic - leaf - spine, pcie - cpu - dram."""
    graph = build_graph(
        load_topology(
            "h100x16-rail",
            ["build.pcie={bandwidth: 64 GB/s, latency: 250 ns}", "build.nic.bandwidth=50 GB/s"],
        )
    )
    found = move(graph, (source, target, 1e9, 0.0))
    assert len(found.links) == crossed
    assert found.finish_s == pytest.approx([latency_s + 1e9 / slowest], rel=REL)


def test_what_is_not_joined_is_named():
    graph = build_graph(load_topology("nvswitch16"))
    with pytest.raises(InputError, match="dram1 cannot be reached from dram0"):
        move(graph, ("gpu0", "gpu1", 1.0, 0.0), ("dram0", "dram1", 1.0, 0.0))
    pairs = [("gpu0", "gpu1"), ("dram0", "dram1"), ("dram0", "dram0"), ("dram1", "gpu0")]
    assert unreachable(graph, pairs) == [("dram0", "dram1"), ("dram1", "gpu0")]


sends_on_five = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.integers(0, 4),
        st.floats(0.0, 1e7),
        st.floats(0.0, 0.02) | st.sampled_from([0.0, 1e-3]),
    ),
    min_size=1,
    max_size=25,
)


@given(sends_on_five)
def test_links_carry_all_bytes_while_something_is_on_them(
    sends: list[tuple[int, int, float, float]],
):
    found = move(star(5), *((f"gpu{a}", f"gpu{b}", size, start) for a, b, size, start in sends))
    carried = dict(zip(found.links, found.bytes, strict=True))
    busy = dict(zip(found.links, found.busy_s, strict=True))
    for gpu in range(5):
        for link, end in (((f"gpu{gpu}", "switch"), 0), (("switch", f"gpu{gpu}"), 1)):
            over = [
                (send[2], send[3] + 1e-3, finish)
                for send, finish in zip(sends, found.finish_s, strict=True)
                if send[0] != send[1] and send[end] == gpu
            ]
            if not over:
                assert link not in carried
                continue
            assert carried[link] == pytest.approx(sum(size for size, _, _ in over), rel=REL)
            total, upto = 0.0, 0.0
            for _, begin, finish in sorted(over, key=lambda row: row[1]):
                total += max(finish - max(begin, upto), 0.0)
                upto = max(upto, finish)
            assert busy[link] == pytest.approx(total, rel=1e-6, abs=1e-15)
            assert carried[link] <= 1e9 * busy[link] * (1 + 1e-6) + 1e-3


@given(sends_on_five, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(sends: list, random):
    named = [(f"gpu{a}", f"gpu{b}", size, start) for a, b, size, start in sends]
    order = list(range(len(named)))
    random.shuffle(order)
    found = move(star(5), *named).finish_s
    mixed = move(star(5), *(named[i] for i in order)).finish_s
    assert mixed == pytest.approx(found[order], rel=REL)


def test_a_hundred_thousand_transfers():
    """Disjoint pairs at the same time and one after another: each takes what it takes alone."""
    count, waves = 8, 12_500
    sources = [f"gpu{i}" for i in range(count)] * waves
    targets = [f"gpu{(i + 1) % count}" for i in range(count)] * waves
    starts = np.repeat(np.arange(waves) * 1e-2, count)
    sizes = np.random.default_rng(0).uniform(1e5, 1e6, size=count * waves)
    found = transfers(star(count), sources, targets, sizes, starts)
    assert found.finish_s == pytest.approx(starts + 1e-3 + sizes / 1e9, rel=REL)
    assert found.busy_s[0] == pytest.approx(sizes[::count].sum() / 1e9, rel=1e-6)


def test_a_sprayed_transfer_takes_part_of_each_way():
    """gpu0 reaches gpu1 over b and over c, half each way; gpu2 only over b. At 2 GB/s out of b and
    1 GB/s out of c, r0 / 2 + r2 = 2 GB/s there: both have 4/3 GB/s. Alone, gpu0 has 2 GB/s, the
    half of which fills the way over c.
    """
    graph = nx.DiGraph(name="two ways", ecmp="sprayed")
    for name in ("gpu0", "gpu1", "gpu2"):
        graph.add_node(name, kind="gpu", host=0)
    for name in "abcd":
        graph.add_node(name, kind="leaf", host=0)
    for a, b, rate in (
        ("gpu0", "a", 10e9), ("a", "b", 10e9), ("a", "c", 10e9), ("gpu2", "b", 10e9),
        ("b", "d", 2e9), ("c", "d", 1e9), ("d", "gpu1", 10e9),
    ):  # fmt: skip
        graph.add_edge(a, b, kind="network", bandwidth_bytes_per_s=rate, latency_s=0.0)
    alone = move(graph, ("gpu0", "gpu1", 1e6, 0.0))
    assert alone.finish_s == pytest.approx([0.5e-3], rel=REL)
    carried = dict(zip(alone.links, alone.bytes, strict=True))
    assert carried["b", "d"] == carried["c", "d"] == pytest.approx(0.5e6, rel=REL)
    both = move(graph, ("gpu0", "gpu1", 1e6, 0.0), ("gpu2", "gpu1", 1e6, 0.0))
    assert both.finish_s == pytest.approx([0.75e-3] * 2, rel=REL)
    # 1 MB more from gpu0 after 0.75 ms: alone again.
    later = move(graph, ("gpu0", "gpu1", 2e6, 0.0), ("gpu2", "gpu1", 1e6, 0.0))
    assert later.finish_s == pytest.approx([0.75e-3 + 0.5e-3, 0.75e-3], rel=REL)


def test_collectives_as_one_flow_each_by_hand():
    """Three links of 1 B/s, routes over (0), (0, 1 with half its rate) and (2); a first collective
    sends 6 and 2 bytes on the first two, a second 1 and 3 on the last two.
    """
    wires = links.Wires(
        capacity_bytes_per_s=np.ones(3),
        ptr=np.array([0, 1, 3, 4]),
        link=np.array([0, 0, 1, 2], dtype=np.int32),
        weight=np.array([1.0, 1.0, 0.5, 1.0]),
        latency_s=np.array([3.0, 1.0, 2.0]),
    )
    route = np.array([0, 1, 1, 2], dtype=np.int32)
    found = links.merged(wires, np.array([0, 2, 4]), route, np.array([6.0, 2.0, 1.0, 3.0]))
    assert found.ptr.tolist() == [0, 2, 5]
    assert found.link.tolist() == [0, 1, 0, 1, 2]
    # Means of 4 and 2 bytes; 8 and 1 bytes cross links 0 and 1, then 1, 0.5 and 3.
    assert found.weight.tolist() == [2.0, 0.25, 0.5, 0.25, 1.5]
    assert found.size_bytes.tolist() == [4.0, 2.0]
    assert found.latency_s.tolist() == [3.0, 2.0]
    alone = [
        links.merged(wires, np.array([0, 2]), route[a:b], size)
        for a, b, size in ((0, 2, np.array([6.0, 2.0])), (2, 4, np.array([1.0, 3.0])))
    ]
    for one, other in zip(links.joined(alone), found, strict=True):
        assert one.tolist() == other.tolist()
