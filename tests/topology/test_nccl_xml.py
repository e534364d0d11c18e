"""NCCL topology XML: what is kept, what is assumed, and every refusal with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.cluster.graph import build_graph, gpus, memory_of_host
from simulator.cluster.imported import MAX_BYTES
from simulator.cluster.nccl_xml import import_nccl
from simulator.errors import InputError
from simulator.spec.load import load_topology

GPU = 'class="0x030200" vendor="0x10de" device="0x2330"'
BRIDGE = 'class="0x060400" vendor="0x1000" device="0xc030"'
NIC = 'class="0x020700" vendor="0x15b3" device="0x1021"'
GEN5 = 'link_speed="32.0 GT/s PCIe" link_width="16"'
EMULATED = 'link_speed="2.5 GT/s PCIe" link_width="1"'

# Two sockets. On the first an emulated bridge with GPUs of unknown width and a NIC; on the other
# two GPUs, one on eight lanes, and a chain of switches with nothing on it.
DUMP = f"""\
<system version="1">
  <cpu numaid="0" affinity="ff" arch="x86_64">
    <pci busid="0000:10:00.0" {BRIDGE} {EMULATED}>
      <pci busid="0000:11:00.0" {GPU} link_speed="32.0 GT/s PCIe" link_width="0">
        <gpu dev="1" sm="90" rank="1" gdr="1">
          <nvlink target="0000:05:00.0" count="5" tclass="0x068000"/>
          <nvlink target="0000:06:00.0" count="13" tclass="0x068000"/>
        </gpu>
      </pci>
      <pci busid="0000:12:00.0" {GPU} {GEN5}>
        <gpu dev="0" sm="90" rank="0" gdr="1">
          <nvlink target="fffffff:ff:ff.0" count="18" tclass="0x068000"/>
        </gpu>
      </pci>
      <pci busid="0000:13:00.0" {NIC} link_speed="16.0 GT/s PCIe" link_width="16">
        <nic><net name="mlx5_0" dev="0" speed="400000" port="1"/></nic>
      </pci>
    </pci>
    <nic><net name="eth0" dev="9" speed="10000" port="1"/></nic>
  </cpu>
  <cpu numaid="1">
    <pci busid="0000:20:00.0" {GPU} link_speed="32.0 GT/s PCIe" link_width="8">
      <gpu dev="2" sm="90"><nvlink target="0000:21:00.0" count="4" tclass="0x030200"/></gpu>
    </pci>
    <pci busid="0000:21:00.0" {GPU} {GEN5}>
      <gpu dev="3" sm="90"><nvlink target="0000:20:00.0" count="4" tclass="0x030200"/></gpu>
    </pci>
    <pci busid="0000:30:00.0" {BRIDGE} {GEN5}><pci busid="0000:31:00.0" {BRIDGE} {GEN5}/></pci>
    <nic><net name="eth0" dev="9" speed="10000" port="1"/></nic>
  </cpu>
</system>
"""


def convert(tmp_path: Path, text: str, **options):
    source = tmp_path / "topo.xml"
    source.write_text(text)
    target = tmp_path / "out.yaml"
    target.unlink(missing_ok=True)
    lines = import_nccl(source, target, **options)
    topology = load_topology(str(target))
    return lines, topology, build_graph(topology)


def speed(graph, a: str, b: str) -> float:
    assert graph.edges[a, b] == graph.edges[b, a]
    return graph.edges[a, b]["bandwidth_bytes_per_s"]


def test_a_dump(tmp_path):
    lines, topology, graph = convert(tmp_path, DUMP)
    assert topology.gpu.name == "H100-SXM", "by its PCI device id"
    assert gpus(graph) == ["gpu0", "gpu1", "gpu2", "gpu3"]
    assert {n: d["kind"] for n, d in graph.nodes(data=True)} == {
        "gpu0": "gpu", "gpu1": "gpu", "gpu2": "gpu", "gpu3": "gpu", "nvswitch": "nvswitch",
        "pcie-0000:10:00.0": "pcie", "mlx5_0": "nic", "eth0": "nic",
        "cpu0": "cpu", "cpu1": "cpu", "dram0": "dram", "dram1": "dram",
    }  # fmt: skip
    # dev numbers the GPUs: gpu1 is the one without a width, which gets its generation's 16 lanes.
    bridge = "pcie-0000:10:00.0"
    assert speed(graph, "gpu0", bridge) == speed(graph, "gpu1", bridge) == 32 * 16 / 8 * 1e9
    assert speed(graph, "mlx5_0", bridge) == 16 * 16 / 8 * 1e9
    # 2.5 GT/s x 1 is no speed: that of the fastest below it.
    assert speed(graph, bridge, "cpu0") == 64e9
    assert speed(graph, "gpu2", "cpu1") == 32e9
    # 5 + 13 links to two NVSwitches are one switch; between GPUs a pair of its own.
    assert speed(graph, "gpu1", "nvswitch") == speed(graph, "gpu0", "nvswitch") == 450e9
    assert speed(graph, "gpu2", "gpu3") == 100e9
    assert graph.edges["cpu0", "cpu1"]["kind"] == "socket"
    assert [memory_of_host(graph, gpu) for gpu in gpus(graph)] == ["dram0"] * 2 + ["dram1"] * 2
    sources = "\n".join(topology.sources)
    assert "pcie of gpu1, eth0: not in the file, 64 GB/s assumed (H100-SXM)" in sources
    assert "eth0 stands more than once (line 29)" in sources
    assert "dram 204.8 GB/s, 100 ns, 512 GiB per NUMA node: assumption" in sources
    assert sources.startswith("wiring: topo.xml")
    assert lines[0].startswith("4 H100-SXM, read from topo.xml: 2 NICs, 1 PCIe switch per host")


def test_several_hosts(tmp_path):
    _, _, graph = convert(tmp_path, DUMP, nodes=3)
    assert gpus(graph)[:5] == [f"host0/gpu{i}" for i in range(4)] + ["host1/gpu0"]
    assert [graph.nodes[gpu]["host"] for gpu in gpus(graph)] == [0] * 4 + [1] * 4 + [2] * 4
    # A switch for each NIC of a host, at the speeds in the file.
    assert sorted(b for _, b in graph.out_edges("leaf0")) == [f"host{i}/mlx5_0" for i in range(3)]
    assert speed(graph, "host2/mlx5_0", "leaf0") == 50e9
    assert speed(graph, "host2/eth0", "leaf1") == 1.25e9
    _, _, graph = convert(tmp_path, DUMP, nodes=2, nic="200 Gb/s")
    assert speed(graph, "host1/eth0", "leaf1") == 25e9


def test_a_written_file_gets_its_nvswitch(tmp_path):
    text = f"""<system version="1"><cpu numaid="0">
    <pci busid="0" class="0x030200" {GEN5}/><pci busid="1" class="0x030200" {GEN5}/>
    <pci busid="2" class="0x020700" {GEN5}/></cpu></system>"""
    lines, _, graph = convert(tmp_path, text, gpu="A100-SXM-80GB")
    assert speed(graph, "gpu1", "nvswitch") == 300e9
    assert speed(graph, "nic-2", "cpu0") == 64e9
    assert any("A100-SXM-80GB behind NVSwitch assumed" in line for line in lines)
    _, _, graph = convert(tmp_path, text, gpu="A6000")
    assert "nvswitch" not in graph


def test_xgmi_and_a_speed_in_kbit(tmp_path):
    gpu = 'class="0x120000" vendor="0x1002" device="0x74a1"'
    text = f"""<system version="2"><cpu numaid="0">
    <pci busid="a" {gpu} {GEN5}><gpu dev="0" sm="94" gcn="%s">
      <xgmi target="b" count="2" tclass="0x120000"/></gpu></pci>
    <pci busid="b" {gpu} {GEN5}><gpu dev="1" sm="94" gcn="%s">
      <xgmi target="A" count="2" tclass="0x120000"/></gpu></pci>
    <pci busid="c" {NIC} {GEN5}><nic><net name="cxi0" speed="200000000"/></nic></pci>
    </cpu></system>"""
    lines, topology, graph = convert(tmp_path, text % ("942", "942"), nodes=2)
    assert topology.gpu.name == "MI300X"
    assert speed(graph, "host0/gpu0", "host0/gpu1") == 2 * 64e9
    assert speed(graph, "host0/cxi0", "leaf0") == 200e9 / 8
    assert 'cxi0: speed="200000000" is not in Mb/s; read as kb/s' in lines
    _, _, graph = convert(tmp_path, text % ("gfx90a:sramecc+", "gfx90a:sramecc+"))
    assert speed(graph, "gpu0", "gpu1") == 2 * 50e9


def test_nvlink_c2c_leads_to_the_cpu(tmp_path):
    text = f"""<system version="1"><cpu numaid="0"><pci busid="1" {BRIDGE} {GEN5}>
    <pci busid="2" class="0x030200" vendor="0x10de" device="0x2941" {GEN5}>
    <gpu dev="0" sm="100"><c2c bw="44712" count="5"/></gpu></pci></pci></cpu></system>"""
    _, _, graph = convert(tmp_path, text)
    assert speed(graph, "gpu0", "cpu0") == 5 * 44712e6
    assert graph.edges["gpu0", "cpu0"]["kind"] == "pcie"


BOMB = (
    '<!DOCTYPE s [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>\n'
    "<system>&b;</system>"
)


@pytest.mark.parametrize(
    ("text", "options", "fault"),
    [
        (BOMB, {}, "topo.xml:1: a document type or an entity is declared; a topology needs none"),
        ("", {}, "topo.xml:1: not an XML file: no element found"),
        ("name: x\n", {}, "topo.xml:1: not an XML file: syntax error"),
        ('<?xml version="1.0" encoding="big5"?>\n<system/>', {},
         "topo.xml:1: not an XML file in an encoding that we read"),
        ("<html>\n</html>", {},
         "topo.xml:1: <html> is no NCCL topology, which is one <system>"),
        ("<system/>", {}, "topo.xml:1: <system> without a <cpu> is no NCCL topology"),
        ('<system><cpu numaid="0"/></system>', {},
         "topo.xml:1: no GPU in it: no <pci> of class 0x03 or 0x12 and none with <gpu>"),
        (DUMP[:600], {}, "topo.xml:10: not an XML file: cut off: <pci> of line 3 is not closed"),
        ("\n".join(DUMP.split("\n")[:25]), {},
         "topo.xml:25: not an XML file: cut off: <pci> of line 25 is not closed"),
        (DUMP.replace("0000:21:00.0", "0000:11:00.0"), {},
         "topo.xml:25: GPU 0000:11:00.0 a second time, first in line 4"),
        (DUMP.replace('numaid="1"', 'numaid="0"'), {},
         "topo.xml:21: <cpu numaid='0'> a second time, first in line 2"),
        (DUMP.replace('<cpu numaid="1"', '<cpu host_hash="0x1" numaid="1"'), {},
         "topo.xml:1: the CPUs of 2 hosts; keep those of one host and give --nodes 2"),
        (DUMP.replace('busid="0000:20:00.0"', ""), {}, "topo.xml:22: <pci> without a busid"),
        (DUMP.replace('link_width="8"', 'link_width="x8"'), {},
         "topo.xml:22: link_width='x8' is no number of lanes"),
        (DUMP.replace('link_width="8"', 'link_width="64"'), {},
         "topo.xml:22: 32.0 GT/s PCIe x 64 is no PCIe link"),
        (DUMP.replace('count="18"', 'count="-18"'), {},
         "topo.xml:12: <nvlink> count='-18' is not a whole number from 1"),
        (DUMP.replace('target="0000:21:00.0"', 'target="0000:20:00.0"'), {},
         "topo.xml:23: GPU 0000:20:00.0 is linked to itself"),
        (DUMP.replace('"400000"', '"fast"'), {}, "topo.xml:16: speed='fast' is no number of Mb/s"),
        (DUMP.replace('"400000"', '"400000000000"'), {},
         'topo.xml:16: speed="400000000000" of mlx5_0 is no speed in Mb/s'),
        (DUMP.replace('"0x2330"', '"0x9999"'), {},
         "topo.xml:4: vendor:device 0x10de:0x9999 is no GPU that we know; say which with "
         "--gpu NAME"),
        (DUMP, {"nodes": 2, "nic": "0 Gb/s"}, "--nic 0 Gb/s: a link of zero bandwidth"),
        (DUMP, {"nodes": 2, "nic": "400"},
         '--nic: 400 has no unit; write for example "400 GB/s"'),
        (DUMP, {"nic": "400 Gb/s"},
         "--nic is the speed between hosts: give --nodes 2 or more with it"),
        (DUMP.replace('speed="400000"', ""), {"nodes": 2},
         "--nodes 2: topo.xml does not say how fast mlx5_0 is; give it, as in "
         '--nic "400 Gb/s"'),
        ("<system>" + "<cpu>" * 70, {}, "topo.xml:1: nested deeper than 64 levels"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, monkeypatch, text, options, fault):
    monkeypatch.chdir(tmp_path)
    Path("topo.xml").write_text(text)
    with pytest.raises(InputError) as caught:
        import_nccl("topo.xml", "out.yaml", **options)
    assert str(caught.value) == fault
    assert not Path("out.yaml").exists()


def test_a_file_cut_off_anywhere_is_refused_in_one_line(tmp_path):
    source = tmp_path / "topo.xml"
    for length in range(0, len(DUMP) - 2, 7):
        source.write_text(DUMP[:length])
        with pytest.raises(InputError) as caught:
            import_nccl(source, tmp_path / "out.yaml")
        assert str(caught.value).startswith(f"{source}:")
        assert "\n" not in str(caught.value)


def test_unknown_gpu_existing_target_and_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("topo.xml").write_text(DUMP)
    with pytest.raises(InputError, match=r"--gpu H100: no such GPU .*did you mean 'H100-SXM'"):
        import_nccl("topo.xml", "out.yaml", gpu="H100")
    Path("out.yaml").write_text("mine")
    with pytest.raises(InputError, match=r"^out.yaml: exists already"):
        import_nccl("topo.xml", "out.yaml")
    assert Path("out.yaml").read_text() == "mine"
    Path("topo.xml").write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(InputError, match=r"^topo.xml: larger than 16 MiB$"):
        import_nccl("topo.xml", "new.yaml")
    with pytest.raises(InputError, match=r"^no.xml: No such file or directory$"):
        import_nccl("no.xml", "new.yaml")
