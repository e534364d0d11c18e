"""Matrices of nvidia-smi topo -m: the tree that they describe, and every refusal with its line."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from simulator.cluster.graph import build_graph, gpus, memory_of_host
from simulator.cluster.nvidia_smi import import_smi, read_matrix
from simulator.cluster.routes import route_table
from simulator.errors import InputError
from simulator.spec.load import load_topology


def matrix(cells: dict[tuple[str, str], str], names: list[str], rest: dict[str, str]) -> str:
    """As nvidia-smi prints it: tabs, underlined header, affinities after the GPUs' rows."""
    lines = ["\t\x1b[4m" + "\t".join(names) + "\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m"]
    for a in names:
        row = [" X " if a == b else cells.get((a, b)) or cells[b, a] for b in names]
        lines.append("\t".join([a, *row, rest.get(a, "\t\t")]))
    return "\n".join([*lines, "", "Legend:", "", "  X    = Self", "  NV#  = Connection"])


NAMES = ["GPU0", "GPU1", "GPU2", "GPU3", "NIC0", "NIC1"]
CELLS = dict.fromkeys(combinations(NAMES, 2), "SYS") | {
    ("GPU0", "GPU1"): "PIX", ("GPU0", "NIC0"): "PXB", ("GPU1", "NIC0"): "PXB",
    ("GPU0", "GPU2"): "NODE", ("GPU1", "GPU2"): "NODE", ("GPU2", "NIC0"): "PHB",
    ("GPU3", "NIC1"): "PIX",
}  # fmt: skip
REST = {f"GPU{i}": f"0-7\t{i // 3}\t\tN/A" for i in range(4)}
TREE = matrix(CELLS, NAMES, REST)


def convert(tmp_path: Path, text: str, gpu: str, **options):
    source, target = tmp_path / "topo.txt", tmp_path / "out.yaml"
    source.write_text(text)
    target.unlink(missing_ok=True)
    import_smi(source, target, gpu, **options)
    return build_graph(load_topology(str(target)))


def kinds_between(graph, source: str, target: str) -> list[str]:
    table = route_table(graph, [(source, target)])
    return [table.kinds[link] for link in table.all_links[0]]


def through(graph, source: str, target: str) -> list[str]:
    table = route_table(graph, [(source, target)])
    return [table.links[link][1] for link in table.all_links[0]][:-1]


def test_a_tree_has_the_crossings_that_the_matrix_states(tmp_path):
    graph = convert(tmp_path, TREE, "A6000")
    assert gpus(graph) == ["gpu0", "gpu1", "gpu2", "gpu3"]
    # PIX one switch, PXB two, PHB and NODE the socket, SYS both sockets.
    assert through(graph, "gpu0", "gpu1") == ["pcie0"]
    assert through(graph, "gpu0", "NIC0") == ["pcie0", "pcie2"]
    assert through(graph, "gpu2", "NIC0") == ["cpu0", "pcie2"]
    assert through(graph, "gpu0", "gpu2") == ["pcie0", "pcie2", "cpu0"]
    assert through(graph, "gpu2", "gpu3") == ["cpu0", "cpu1", "pcie1"]
    assert [memory_of_host(graph, gpu) for gpu in gpus(graph)] == ["dram0"] * 3 + ["dram1"]
    assert graph.edges["gpu0", "pcie0"]["bandwidth_bytes_per_s"] == 32e9
    two = convert(tmp_path, TREE, "A6000", nodes=2, nic="100 Gb/s")
    assert kinds_between(two, "host0/gpu3", "host1/gpu3") == [
        "pcie", "pcie", "network", "network", "pcie", "pcie",
    ]  # fmt: skip


def test_bridges_in_pairs_and_one_numa_node(tmp_path):
    cells = dict.fromkeys(combinations(NAMES[:4], 2), "SYS")
    cells |= {("GPU0", "GPU1"): "NV4", ("GPU2", "GPU3"): "NV4"}
    rest = {f"GPU{i}": f"0-7\t{i // 2}" for i in range(4)}
    graph = convert(tmp_path, matrix(cells, NAMES[:4], rest), "A6000")
    assert graph.edges["gpu0", "gpu1"]["bandwidth_bytes_per_s"] == 56.25e9
    # NVLink hides how two GPUs lie on PCIe; the affinity tells.
    assert through(graph, "gpu1", "gpu2") == ["cpu0", "cpu1"]
    assert graph.edges["gpu1", "cpu0"]["kind"] == "pcie"


@pytest.mark.parametrize(("gpu", "links"), [("A100-SXM-80GB", 12), ("H800-SXM", 8)])
def test_links_that_every_pair_shares_are_a_switch(tmp_path, gpu, links):
    names = [f"GPU{i}" for i in range(8)]
    cells = dict.fromkeys(combinations(names, 2), f"NV{links}")
    graph = convert(tmp_path, matrix(cells, names, {}), gpu)
    assert graph.edges["gpu7", "nvswitch"]["bandwidth_bytes_per_s"] == links * 25e9
    assert not graph.has_edge("gpu0", "gpu1")


def test_blanks_and_a_header_without_affinity():
    text = "# taken on a Tuesday\n  GPU0 GPU1\nGPU0  X  NV2\nGPU1 NV2   X\n"
    found = read_matrix(text, "t")
    assert found.names == ("GPU0", "GPU1")
    assert found.cells["GPU1", "GPU0"] == "NV2"
    assert found.numa == {}


PAIR = "\tGPU0\tGPU1\tCPU Affinity\nGPU0\t X \tNV2\t0-3\nGPU1\tNV2\t X \t0-3\n"


@pytest.mark.parametrize(
    ("text", "gpu", "fault"),
    [
        (PAIR, None, "t.txt: a matrix does not say which GPU; give --gpu, as in --gpu A6000"),
        ("", "A6000", "t.txt:1: no matrix of nvidia-smi topo -m: no line that begins with GPU0 and "
         "names devices"),
        (PAIR.replace("\t X \t0-3\n", "\n"), "A6000",
         "t.txt:3: cut off: 1 of 2 cells in the row GPU1"),
        (PAIR.split("GPU1\tNV2")[0], "A6000",
         "t.txt:2: cut off: no row GPU1, which line 1 names"),
        (PAIR + "GPU1\tNV2\t X \n", "A6000", "t.txt:4: GPU1 a second time, first in line 3"),
        (PAIR.replace("\tGPU1\t", "\tGPU0\t", 1), "A6000", "t.txt:1: GPU0 a second time"),
        (PAIR + "GPU7\tNV2\t X \n", "A6000",
         "t.txt:4: a row 'GPU7', but there is no column of that name (line 1)"),
        (PAIR.replace("NV2", "NVX"), "A6000",
         "t.txt:2: 'NVX' between GPU0 and GPU1 is nothing that nvidia-smi says"),
        (PAIR.replace("GPU1\tNV2", "GPU1\tNV1"), "A6000",
         "t.txt:3: 'NV2' from GPU0 to GPU1, but 'NV1' back"),
        (PAIR.replace("NV2", "NV12"), "A6000",
         "t.txt:2: NV12 between GPU0 and GPU1, but A6000 has 4 NVLinks"),
        (PAIR, "L40S", "t.txt:2: NVLink between GPU0 and GPU1, but L40S has none"),
        (PAIR.replace("GPU1\tCPU", "../x\tCPU"), "A6000", "t.txt:1: '../x' is no device's name"),
        (PAIR.replace("GPU1\tCPU", "cpu0\tCPU"), "A6000", "t.txt:1: 'cpu0' is no device's name"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, monkeypatch, text, gpu, fault):
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text(text)
    with pytest.raises(InputError) as caught:
        import_smi("t.txt", "out.yaml", gpu)
    assert str(caught.value) == fault
    assert not Path("out.yaml").exists()
