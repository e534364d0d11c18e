"""ASTRA-sim network files: figures by hand, and every refusal with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.cluster.astra import import_astra
from simulator.cluster.graph import build_graph, gpus, memory_of_host
from simulator.cluster.routes import route_table
from simulator.errors import InputError
from simulator.spec.load import load_topology

FILE = "topology: [ Switch ]\nnpus_count: [ 4 ]\nbandwidth: [ 300.0 ]\nlatency: [ 900.5 ]\n"


@pytest.mark.parametrize(
    ("wiring", "bandwidth", "links"), [("Switch", 300e9, 2), ("FullyConnected", 100e9, 1)]
)
def test_figures(tmp_path, wiring, bandwidth, links):
    source, target = tmp_path / "n.yml", tmp_path / "out.yaml"
    source.write_text(FILE.replace("Switch", wiring))
    import_astra(source, target, "H100-SXM")
    topology = load_topology(str(target))
    graph = build_graph(topology)
    assert gpus(graph) == ["gpu0", "gpu1", "gpu2", "gpu3"]
    assert memory_of_host(graph, "gpu3") == "dram0"
    table = route_table(graph, [("gpu0", "gpu3")])
    assert table.bandwidth_bytes_per_s.tolist() == [bandwidth] * links
    assert table.latency_s[0] == pytest.approx(900.5e-9)
    # Its latency is the file's own; there is one socket.
    assert not any(text.startswith(("nvlink latency", "socket")) for text in topology.sources)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("Switch", "Swich", "n.yml:1:13: topology.0: 'Swich' is not one of Switch, FullyConnected "
         "(did you mean 'Switch'?)"),
        ("[ Switch ]", "[ Switch, Ring ]",
         "n.yml:1:11: topology: 2 dimensions; files of one dimension are read"),
        ("[ 4 ]", "4", "n.yml:2:13: npus_count: a list is required in an ASTRA-sim network file"),
        ("[ 4 ]", "[ 1.5 ]",
         "n.yml:2:15: npus_count.0: must be a whole number from 2, not 1.5"),
        ("300.0", "0",
         "n.yml:3:14: bandwidth.0: must be a number above 0 and up to 1e+06, not 0"),
        ("900.5", ".nan",
         "n.yml:4:12: latency.0: must be a number above 0 and up to 1e+09, not nan"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, monkeypatch, old, new, fault):
    monkeypatch.chdir(tmp_path)
    Path("n.yml").write_text(FILE.replace(old, new))
    with pytest.raises(InputError) as caught:
        import_astra("n.yml", "out.yaml", "H100-SXM")
    assert str(caught.value) == fault
    assert not Path("out.yaml").exists()


def test_what_the_file_does_not_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("n.yml").write_text(FILE)
    with pytest.raises(InputError, match=r"^n.yml: the file does not say which GPU; give --gpu"):
        import_astra("n.yml", "out.yaml")
    with pytest.raises(InputError, match=r"^--nodes 2: n.yml names no NIC to join hosts by$"):
        import_astra("n.yml", "out.yaml", "H100-SXM", 2)
