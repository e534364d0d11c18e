"""NCCL and RCCL topology XML (``NCCL_TOPO_FILE``, ``NCCL_TOPO_DUMP_FILE``) -> explicit topology.

A ``<pci>`` is a bridge, a GPU or a NIC, its link that to the element around it. Taken from the
file: the PCIe tree, its speeds, which GPUs NVLink or xGMI joins and by how many links, NIC speeds.
Two notations are no speeds: width 0 (unknown), and 2.5 GT/s x 1, which emulated bridges show.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

from simulator.cluster.imported import (
    LINK_GB_PER_S,
    NVLINK_LATENCY,
    ON_NVSWITCH,
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

MAX_DEPTH = 64
MAX_ELEMENTS = 100_000
MAX_NET_MBIT_PER_S = 3_200_000  # beyond it a speed is in kb/s: some RCCL plugins write it so

# PCI vendor:device -> catalogue (pci.ids).
_DEVICES = {
    "0x10de:0x1db5": "V100-SXM2-32GB",
    "0x10de:0x20b0": "A100-SXM-40GB",
    "0x10de:0x20b2": "A100-SXM-80GB",
    "0x10de:0x2230": "A6000",
    "0x10de:0x26b9": "L40S",
    "0x10de:0x2330": "H100-SXM",
    "0x10de:0x2324": "H800-SXM",
    "0x10de:0x2329": "H20",
    "0x10de:0x2335": "H200-SXM",
    "0x10de:0x2901": "B200",
    "0x10de:0x2941": "GB200",
    "0x1002:0x74a1": "MI300X",
}
# GB/s of one direction of one link by compute capability (NVIDIA) and by architecture (AMD).
_NVLINK_BY_SM = {
    "60": 20.0,
    "70": 25.0,
    "80": 25.0,
    "86": 14.0625,
    "90": 25.0,
    "100": 50.0,
    "103": 50.0,
}
_XGMI_BY_GCN = {"90a": 50.0, "910": 50.0, "940": 64.0, "941": 64.0, "942": 64.0}
_XGMI_SOURCE = "AMD CDNA 2 and CDNA 3 white papers: 16 lanes at 25 and 32 GT/s"


@dataclass
class _Element:
    tag: str
    attributes: dict[str, str]
    line: int
    children: list[_Element] = field(default_factory=list)

    def of(self, *tags: str) -> Iterator[_Element]:
        return (child for child in self.children if child.tag in tags)

    def below(self) -> Iterator[_Element]:
        for child in self.children:
            yield child
            yield from child.below()


@dataclass
class _Reading:
    """What is known while the tree is walked. gpus: bus id -> its <pci> element."""

    path: Path
    host: Host = field(default_factory=Host)
    gpus: dict[str, _Element] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    links: list[tuple[str, str, _Element]] = field(default_factory=list)
    nics: dict[str, tuple[str, float | None]] = field(default_factory=dict)

    def fail(self, line: int, what: str) -> NoReturn:
        raise InputError(f"{self.path}:{line}: {what}")


def import_nccl(
    source: str | Path, target: str | Path, gpu: str | None = None, nodes: int = 1,
    nic: str | None = None,
) -> list[str]:  # fmt: skip
    """Write the topology of an XML file and say in lines what was kept and what assumed.

    gpu: catalogue name, needed where the file has no known device id. nodes, nic: see
    ``imported.write_topology``. InputError with file and line for what is no such file.
    """
    path = Path(source)
    root = parse_xml(read_bounded(path), path)
    reading = _Reading(path)
    if root.tag != "system":
        reading.fail(root.line, f"<{root.tag}> is no NCCL topology, which is one <system>")
    cpus = _cpus(reading, root)
    for name, cpu in cpus.items():
        for child in cpu.of("pci", "nic"):
            _walk(reading, child, name)
    if not reading.gpus:
        reading.fail(root.line, "no GPU in it: no <pci> of class 0x03 or 0x12 and none with <gpu>")
    model = known_gpu(gpu) if gpu is not None else _model(reading)
    names = _number_gpus(reading)
    reading.host.add_sockets(cpus)
    _join_pcie(reading, names, model)
    _join_nvlink(reading, names, model)
    return write_topology(reading.host, model, path.name, Path(target), nodes, nic)


def parse_xml(raw: bytes, path: Path) -> _Element:
    """The elements of a file. Refuses declarations of types and entities, what is cut off or not
    well formed, more than 64 levels and more than 100,000 elements, with the line.
    """
    parser = expat.ParserCreate()
    top = _Element("", {}, 0)
    stack, count = [top], 0

    def fail(what: str) -> NoReturn:
        raise InputError(f"{path}:{parser.CurrentLineNumber}: {what}")

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if len(stack) > MAX_DEPTH:
            fail(f"nested deeper than {MAX_DEPTH} levels")
        if count > MAX_ELEMENTS:
            fail(f"more than {MAX_ELEMENTS:,} elements")
        element = _Element(tag, attributes, parser.CurrentLineNumber)
        stack[-1].children.append(element)
        stack.append(element)

    def refuse(*_: object) -> None:
        fail("a document type or an entity is declared; a topology needs none")

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: stack.pop()
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(raw, True)
    except (ValueError, LookupError):
        raise InputError(f"{path}:1: not an XML file in an encoding that we read") from None
    except expat.ExpatError as error:
        what = expat.ErrorString(error.code)
        cut = len(stack) > 1 and what in ("no element found", "unclosed token")
        text = f"cut off: <{stack[-1].tag}> of line {stack[-1].line} is not closed" if cut else what
        raise InputError(f"{path}:{error.lineno}: not an XML file: {text}") from None
    return top.children[0]


def _cpus(reading: _Reading, root: _Element) -> dict[str, _Element]:
    """Node name -> <cpu>, one for each NUMA node."""
    found: dict[str, _Element] = {}
    hosts = {cpu.attributes.get("host_hash") for cpu in root.of("cpu")}
    if len(hosts) > 1:
        reading.fail(
            root.line,
            f"the CPUs of {len(hosts)} hosts; keep those of one host and give --nodes {len(hosts)}",
        )
    for index, cpu in enumerate(root.of("cpu")):
        number = cpu.attributes.get("numaid", str(index))
        name = f"cpu{number if _is_whole(number) else index}"
        if name in found:
            reading.fail(
                cpu.line, f"<cpu numaid={number!r}> a second time, first in line {found[name].line}"
            )
        found[name] = cpu
    if not found:
        reading.fail(root.line, "<system> without a <cpu> is no NCCL topology")
    return found


def _walk(reading: _Reading, element: _Element, parent: str) -> None:
    """Note what an element is and what it hangs on; the speeds come later."""
    if element.tag == "nic":
        _walk_nic(reading, element, element, parent)
        return
    bus = element.attributes.get("busid", "").lower()
    if not bus:
        reading.fail(element.line, "<pci> without a busid")
    is_gpu = _is_gpu(element)
    if bus in reading.seen:
        what = "GPU" if is_gpu else "PCI device"
        reading.fail(element.line, f"{what} {bus} a second time, first in line {reading.seen[bus]}")
    reading.seen[bus] = element.line
    if is_gpu:
        if len(list(element.of("gpu"))) > 1:
            reading.fail(element.line, f"GPU {bus} in parts: partitions are not modelled")
        reading.gpus[bus] = element
        reading.links.append((bus, parent, element))
    elif element.attributes.get("class", "").startswith("0x02") or any(element.of("nic")):
        for nic in list(element.of("nic")) or [_Element("nic", {}, element.line)]:
            _walk_nic(reading, nic, element, parent)
    elif any(_is_end(below) for below in element.below()):
        name = f"pcie-{bus}"
        reading.host.nodes[name] = "pcie"
        reading.links.append((name, parent, element))
        for child in element.of("pci", "nic"):
            _walk(reading, child, name)


def _walk_nic(reading: _Reading, nic: _Element, on: _Element, parent: str) -> None:
    bus = on.attributes.get("busid", "").lower()
    ports = list(nic.of("net"))
    name = ports[0].attributes.get("name", "") if ports else ""
    if not name or OUR_NAMES.fullmatch(name):
        name = f"nic-{bus or on.line}"
    if name in reading.nics or name in reading.host.nodes:
        # A socket interface is listed under every CPU.
        reading.host.note(f"{name} stands more than once (line {nic.line}); the first one counts")
        return
    speeds = [_net_bytes_per_s(reading, port) for port in ports]
    known = [speed for speed in speeds if speed is not None]
    reading.nics[name] = (parent, sum(known) if known else None)
    reading.links.append((name, parent, on))


def _net_bytes_per_s(reading: _Reading, net: _Element) -> float | None:
    text = net.attributes.get("speed", "0")
    if not _is_whole(text):
        reading.fail(net.line, f"speed={text!r} is no number of Mb/s")
    speed = int(text)
    if speed > MAX_NET_MBIT_PER_S:
        name = net.attributes.get("name", "a NIC")
        if speed // 1000 > MAX_NET_MBIT_PER_S:
            reading.fail(net.line, f'speed="{text}" of {name} is no speed in Mb/s')
        reading.host.note(f'{name}: speed="{text}" is not in Mb/s; read as kb/s')
        speed //= 1000
    return speed * 1e6 / 8 or None


def _is_gpu(element: _Element) -> bool:
    vendor = element.attributes.get("vendor", "0x10de")
    display = element.attributes.get("class", "").startswith(("0x03", "0x12"))
    # A server has a VGA chip of its own.
    ours = vendor in ("0x10de", "0x1002", "0x0000", "0xffff")
    return any(element.of("gpu")) or (element.tag == "pci" and display and ours)


def _is_end(element: _Element) -> bool:
    is_nic = element.tag == "nic" or element.attributes.get("class", "").startswith("0x02")
    return is_nic or _is_gpu(element)


def _model(reading: _Reading) -> str:
    """The catalogue's name of the file's GPUs."""
    found: dict[str, int] = {}
    for pci in reading.gpus.values():
        device = f"{pci.attributes.get('vendor')}:{pci.attributes.get('device')}".lower()
        model = _DEVICES.get(device)
        if model is None:
            reading.fail(
                pci.line,
                f"vendor:device {device} is no GPU that we know; say which with --gpu NAME",
            )
        found.setdefault(model, pci.line)
    if len(found) > 1:
        reading.fail(
            max(found.values()), f"several GPU models: {', '.join(found)}; say which with --gpu"
        )
    return next(iter(found))


def _number_gpus(reading: _Reading) -> dict[str, str]:
    """Bus id -> node name, numbered by <gpu dev>, or in file order where not all have their own."""
    devices = [next(pci.of("gpu"), None) for pci in reading.gpus.values()]
    numbers = [gpu.attributes.get("dev", "") if gpu else "" for gpu in devices]
    order = list(reading.gpus)
    if all(map(_is_whole, numbers)) and len(set(numbers)) == len(numbers):
        order = [bus for _, bus in sorted(zip(map(int, numbers), order, strict=True))]
    names = {bus: f"gpu{index}" for index, bus in enumerate(order)}
    reading.host.nodes = dict.fromkeys(names.values(), "gpu") | reading.host.nodes
    for name, (_, speed) in reading.nics.items():
        reading.host.nodes[name] = "nic"
        reading.host.nics[name] = speed
    return names


def _join_pcie(reading: _Reading, names: dict[str, str], model: str) -> None:
    unknown: list[str] = []
    full = pcie_bytes_per_s(model)

    def speed(element: _Element) -> float | None:
        """Of an element's own link; unknown where a bridge's is, that of the fastest below it."""
        own = _link_bytes_per_s(reading, element)
        if own is not None or element.tag != "pci":
            return own
        below = [found for child in element.of("pci") if (found := speed(child)) is not None]
        return max(below, default=None)

    for node, parent, element in reading.links:
        rate = speed(element)
        if rate is None:
            unknown.append(names.get(node, node))
            rate = full
        reading.host.join(names.get(node, node), parent, rate, PCIE_LATENCY)
    if unknown:
        reading.host.note(
            f"pcie of {', '.join(unknown)}: not in the file, {full / 1e9:g} GB/s assumed ({model})"
        )


def _link_bytes_per_s(reading: _Reading, element: _Element) -> float | None:
    text = element.attributes.get("link_speed", "")
    lanes = element.attributes.get("link_width", "0")
    if not _is_whole(lanes):
        reading.fail(element.line, f"link_width={lanes!r} is no number of lanes")
    match = re.match(r"\s*(\d{1,3}(?:\.\d{1,3})?)\s*GT/s", text, re.ASCII)
    if match is None or int(lanes) == 0 or (float(match[1]), int(lanes)) == (2.5, 1):
        return None
    if int(lanes) > 32 or float(match[1]) == 0:
        reading.fail(element.line, f"{text.strip()} x {lanes} is no PCIe link")
    return float(match[1]) * int(lanes) / 8 * 1e9


def _join_nvlink(reading: _Reading, names: dict[str, str], model: str) -> None:
    host = reading.host
    parents = {node: parent for node, parent, _ in reading.links}
    devices = {bus: next(pci.of("gpu"), None) for bus, pci in reading.gpus.items()}
    if not any(devices.values()) and model.startswith(ON_NVSWITCH):
        rate = nvlink_bytes_per_s(model)
        assert rate is not None, model
        host.nodes["nvswitch"] = "nvswitch"
        for name in names.values():
            host.join(name, "nvswitch", rate, NVLINK_LATENCY)
        host.note(
            f"nvlink: a written file without <gpu>, which NCCL fills in on the machine; {model} "
            f"behind NVSwitch assumed, {rate / 1e9:g} GB/s each way (catalogue)"
        )
    for bus, gpu in devices.items():
        if gpu is None:
            continue
        for c2c in gpu.of("c2c"):
            mbytes = _count(reading, c2c, "bw") * _count(reading, c2c, "count")
            cpu = parents[bus]
            while cpu in parents:
                cpu = parents[cpu]
            host.join(names[bus], cpu, mbytes * 1e6, PCIE_LATENCY)
        switched = 0.0
        for link in gpu.of("nvlink", "xgmi"):
            other = link.attributes.get("target", "").lower()
            kind = link.attributes.get("tclass", "")
            if other == bus:
                reading.fail(link.line, f"GPU {bus} is linked to itself")
            rate = _count(reading, link, "count") * _one_link(reading, link.tag, gpu, model)
            if other in names:
                host.join(names[bus], names[other], rate, NVLINK_LATENCY)
            elif kind == "0x068000" or other.startswith("fffffff"):
                switched += rate
            else:
                host.note(f"line {link.line}: NVLink to {other}, which is not a GPU here; left out")
        if switched:
            host.nodes.setdefault("nvswitch", "nvswitch")
            host.join(names[bus], "nvswitch", switched, NVLINK_LATENCY)


def _is_whole(text: str) -> bool:
    """Whether a text is a number of at most 12 digits and nothing else."""
    return text.isascii() and text.isdigit() and len(text) <= 12


def _count(reading: _Reading, element: _Element, key: str) -> int:
    text = element.attributes.get(key, "")
    if not _is_whole(text) or int(text) == 0:
        reading.fail(element.line, f"<{element.tag}> {key}={text!r} is not a whole number from 1")
    return int(text)


def _one_link(reading: _Reading, tag: str, gpu: _Element, model: str) -> float:
    """B/s of one direction of one link: by the architecture in the file, else by the GPU."""
    if tag == "xgmi":
        arch = gpu.attributes.get("gcn", "").partition(":")[0].removeprefix("gfx")
        rate = _XGMI_BY_GCN.get(arch)
        source = _XGMI_SOURCE
    else:
        arch = gpu.attributes.get("sm", "")
        rate = _NVLINK_BY_SM.get(arch)
        source = "NVIDIA data sheets by compute capability"
    if rate is None:
        rate, source = LINK_GB_PER_S.get(model), f"data sheet of {model}"
    if rate is None:
        reading.fail(gpu.line, f"{tag} of {arch!r} and of {model}: its speed is not known to us")
    reading.host.note(f"{tag}: {rate:g} GB/s per link each way ({source})")
    return rate * 1e9
