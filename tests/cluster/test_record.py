"""The graph from what `result.json` holds of a topology is the graph that was run."""

from __future__ import annotations

import json

import pytest

from simulator.cluster.graph import Graph, build_graph
from simulator.cluster.record import graph_of_record
from simulator.errors import InputError
from simulator.spec.find import shipped
from simulator.spec.load import load_topology

SMALL = [name for name in shipped("topology") if name not in ("h100x1024-rail", "h100x512-rail")]


def same(a: Graph, b: Graph) -> bool:
    return (
        list(a.nodes(data=True)) == list(b.nodes(data=True))
        and list(a.edges(data=True)) == list(b.edges(data=True))
        and a.graph == b.graph
    )


@pytest.mark.parametrize("name", SMALL)
def test_every_shipped_topology_comes_back(name: str) -> None:
    topology = load_topology(name)
    record = json.loads(json.dumps(topology.model_dump(mode="json"), sort_keys=True))
    assert same(graph_of_record(record), build_graph(topology))


def test_changed_keys_come_back() -> None:
    changes = ["build.nic.bandwidth=10 GB/s", "build.oversubscription=4"]
    topology = load_topology("h100x16-rail", changes)
    found = graph_of_record(topology.model_dump(mode="json"))
    assert same(found, build_graph(topology))
    assert not same(found, build_graph(load_topology("h100x16-rail")))


@pytest.mark.parametrize("damage", [{}, {"build": {}}, {"build": {"kind": "ring"}}, {"build": 3}])
def test_a_damaged_record_is_told(damage: object) -> None:
    with pytest.raises(InputError, match=r"result\.json: the topology is damaged"):
        graph_of_record({"name": "x", **damage})  # type: ignore[dict-item]
