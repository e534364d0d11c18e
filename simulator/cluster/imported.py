"""What the readers of other tools' files share: a host being put together, what no such file says
(with its source), and the explicit topology that is written from both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from simulator.errors import InputError
from simulator.spec import catalogue
from simulator.spec.document import parse_document
from simulator.spec.units import QuantityError, counted, did_you_mean, parse_quantity

# What readers call the nodes that they make; no device of a file may have such a name.
OUR_NAMES = re.compile(r"(gpu|cpu|dram|pcie|leaf)\d+|nvswitch|pcie-.*")
MAX_BYTES = 16 << 20  # of a file to be read

# GB/s of one direction of ONE link, from the data sheets that the catalogue names under
# nvlink_bandwidth: their sum of both directions / 2 / links of the GPU (18, 8, 12, 4, 6 and 7).
LINK_GB_PER_S = {
    "H100-SXM": 25.0,
    "H200-SXM": 25.0,
    "H20": 25.0,
    "H800-SXM": 25.0,
    "B200": 50.0,
    "GB200": 50.0,
    "A100-SXM-80GB": 25.0,
    "A100-SXM-40GB": 25.0,
    "A6000": 14.0625,
    "V100-SXM2-32GB": 25.0,
    "MI300X": 64.0,
}
# GPUs whose eight-GPU boards and racks all have NVSwitch.
ON_NVSWITCH = ("A100-SXM", "H100-SXM", "H800-SXM", "H200-SXM", "H20", "B200", "GB200")
# Transfers per second and lane of a GPU's PCIe (data sheets); PCI Express 5.0 where not listed.
PCIE_GT_PER_S = {
    "A100-SXM-80GB": 16.0,
    "A100-SXM-40GB": 16.0,
    "A6000": 16.0,
    "L40S": 16.0,
    "V100-SXM2-32GB": 8.0,
}
PCIE_LANES = 16

NVLINK_LATENCY = "468 ns"
PCIE_LATENCY = "250 ns"
SOCKET = ("67.2 GB/s", "70 ns")
DRAM = ("204.8 GB/s", "100 ns", "512 GiB")
NIC_LATENCY = "500 ns"
# By the latency of the links that they are about.
_ASSUMED = {
    NVLINK_LATENCY: f"nvlink latency {NVLINK_LATENCY}: half of the 936 ns GPU-switch-GPU of "
    "ASTRA-sim's validated HGX-H100 network file (518bd51); assumed for direct links too",
    PCIE_LATENCY: f"pcie latency {PCIE_LATENCY}: Neugebauer et al., SIGCOMM 2018, round trips of "
    "about 1 us, over two links",
    SOCKET[1]: f"socket {SOCKET[0]}, {SOCKET[1]}: assumption, 3 UPI links x 11.2 GT/s x 2 B "
    "between every two NUMA nodes",
    DRAM[1]: f"dram {DRAM[0]}, {DRAM[1]}, {DRAM[2]} per NUMA node: assumption, 8 channels "
    "DDR4-3200",
}


@dataclass
class Host:
    """One machine: nodes by name, directed links, NICs in order with their speed (B/s; None:
    unknown), and where its figures come from.
    """

    nodes: dict[str, str] = field(default_factory=dict)
    links: dict[tuple[str, str], tuple[float, str]] = field(default_factory=dict)
    nics: dict[str, float | None] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)

    def join(self, a: str, b: str, bandwidth_bytes_per_s: float, latency: str) -> None:
        """Both directions; of two links between the same nodes the faster one is kept."""
        for ends in ((a, b), (b, a)):
            if ends not in self.links or self.links[ends][0] < bandwidth_bytes_per_s:
                self.links[ends] = (bandwidth_bytes_per_s, latency)

    def note(self, text: str) -> None:
        """A source or an assumption, once."""
        if text not in self.sources:
            self.sources.append(text)

    def add_sockets(self, cpus: Iterable[str]) -> None:
        """CPUs with DRAM, each joined to each."""
        names = list(cpus)
        for cpu in names:
            self.nodes[cpu] = "cpu"
            memory = cpu.replace("cpu", "dram")
            self.nodes[memory] = "dram"
            self.join(memory, cpu, parse_quantity(DRAM[0], "bandwidth"), DRAM[1])
        for a, b in combinations(names, 2):
            self.join(a, b, parse_quantity(SOCKET[0], "bandwidth"), SOCKET[1])


def read_bounded(path: Path) -> bytes:
    """The bytes of a file of at most MAX_BYTES; InputError with its name otherwise."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    if len(raw) > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES >> 20} MiB")
    return raw


def known_gpu(name: str) -> str:
    """A GPU of the catalogue; InputError with the nearest name for another."""
    if name not in catalogue.names():
        hint = did_you_mean(name, catalogue.names())
        raise InputError(
            f"--gpu {name}: no such GPU in the catalogue{hint}; "
            f"known: {', '.join(catalogue.names())}"
        )
    return name


def pcie_bytes_per_s(gpu: str) -> float:
    """Raw PCIe bandwidth of a GPU of the catalogue, one direction."""
    return PCIE_GT_PER_S.get(gpu, 32.0) * PCIE_LANES / 8 * 1e9


def nvlink_bytes_per_s(gpu: str) -> float | None:
    """One direction of all NVLinks of a GPU of the catalogue together; None if it has none."""
    text = catalogue.entries()[gpu].get("nvlink_bandwidth")
    return None if text is None else parse_quantity(text, "bandwidth")


def write_topology(
    host: Host, gpu: str, origin: str, target: Path, nodes: int, nic: str | None
) -> list[str]:
    """Write the explicit topology of `nodes` such hosts and say in lines what it holds.

    NIC i of every host is on switch i, at `nic` or what the file says. InputError: the target
    exists, there is no NIC to join hosts by, a NIC's speed is not known, the result is too big.
    """
    if target.exists():
        raise InputError(f"{target}: exists already; remove it or write another file")
    if nodes == 1 and nic is not None:
        raise InputError("--nic is the speed between hosts: give --nodes 2 or more with it")
    kinds, links = _cluster(host, origin, nodes, nic)
    used = {latency for _, latency in host.links.values()}
    assumed = [text for latency, text in _ASSUMED.items() if latency in used]
    sources = [f"wiring: {origin}", *host.sources, *assumed]
    if nodes > 1:
        sources.append(
            f"network: assumption, {nodes} such hosts, NIC i of each on switch i, latency "
            f"{NIC_LATENCY}"
        )
    shown = "" if nodes == 1 else f"{nodes} hosts, each "
    gpus = sum(kind == "gpu" for kind in host.nodes.values())
    about = f"{shown}{gpus} {gpu}, read from {origin}"
    lines = [
        f"name: {_text(target.stem)}",
        f"description: {_text(about)}",
        "sources:",
        *(f"  - {_text(source)}" for source in sources),
        f"gpu: {gpu}",
        "build:",
        "  kind: explicit",
        "  nodes:",
    ]
    for name, (kind, number) in kinds.items():
        more = f", capacity: {DRAM[2]}" if kind == "dram" else ""
        at = "" if number < 0 else f", host: {number}"
        lines.append(f"    - {{name: {_text(name)}, kind: {kind}{at}{more}}}")
    lines.append("  links:")
    for (a, b), (bandwidth, latency) in links.items():
        lines.append(
            f"    - {{from: {_text(a)}, to: {_text(b)}, bandwidth: {bandwidth / 1e9:.12g} GB/s, "
            f"latency: {latency}}}"
        )
    text = "\n".join([*lines, ""])
    parse_document(text, str(target))  # Refuses what would be too big to be read again.
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{target}: {error.strerror or error}") from None
    switches = sum(kind == "pcie" for kind in host.nodes.values())
    return [
        f"{about}: {counted(len(host.nics), 'NIC')}, {counted(switches, 'PCIe switch', 'es')} "
        f"per host, {counted(len(links), 'directed link')} in all",
        *host.sources,
        *assumed,
    ]


def _cluster(
    host: Host, origin: str, nodes: int, nic: str | None
) -> tuple[dict[str, tuple[str, int]], dict[tuple[str, str], tuple[float, str]]]:
    """Nodes (kind, host; -1 for none) and links of `nodes` hosts, joined by a switch per NIC."""
    kinds: dict[str, tuple[str, int]] = {}
    links: dict[tuple[str, str], tuple[float, str]] = {}
    for number in range(nodes):
        before = "" if nodes == 1 else f"host{number}/"
        kinds |= {before + name: (kind, number) for name, kind in host.nodes.items()}
        links |= {(before + a, before + b): rate for (a, b), rate in host.links.items()}
    if nodes == 1:
        return kinds, links
    if not host.nics:
        raise InputError(f"--nodes {nodes}: {origin} names no NIC to join hosts by")
    try:
        given = None if nic is None else parse_quantity(nic, "bandwidth")
    except QuantityError as error:
        raise InputError(f"--nic: {error}") from None
    if given == 0:
        raise InputError(f"--nic {nic}: a link of zero bandwidth")
    for rail, (name, speed) in enumerate(host.nics.items()):
        rate = speed if given is None else given
        if rate is None:
            raise InputError(
                f"--nodes {nodes}: {origin} does not say how fast {name} is; "
                'give it, as in --nic "400 Gb/s"'
            )
        kinds[f"leaf{rail}"] = ("leaf", -1)
        for number in range(nodes):
            ends = (f"host{number}/{name}", f"leaf{rail}")
            links[ends] = links[ends[::-1]] = (rate, NIC_LATENCY)
    return kinds, links


def _text(text: str) -> str:
    return json.dumps(text)
