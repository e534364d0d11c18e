"""ASTRA-sim network files of one dimension (``topology: [ Switch ]``) -> explicit topology.

``npus_count`` GPUs on one switch or each joined to each; ``bandwidth`` is GB/s of one direction of
a GPU, over all its links; ``latency`` is ns from GPU to GPU, half of it on either link of a switch.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from simulator.cluster.imported import (
    PCIE_LATENCY,
    Host,
    known_gpu,
    pcie_bytes_per_s,
    write_topology,
)
from simulator.errors import InputError
from simulator.spec.document import Document, read_document
from simulator.spec.units import did_you_mean

_WIRINGS = ("Switch", "FullyConnected")
MAX_GPUS = 1024


def import_astra(
    source: str | Path, target: str | Path, gpu: str | None = None, nodes: int = 1,
    nic: str | None = None,
) -> list[str]:  # fmt: skip
    """Write the topology of a network file and say in lines what was assumed.

    gpu: catalogue name, needed (the file does not tell). nodes, nic: the file has no NIC, so more
    than one host is refused. InputError with file and line for what is no such file.
    """
    path = Path(source)
    if gpu is None:
        raise InputError(
            f"{path}: the file does not say which GPU; give --gpu, as in --gpu H100-SXM"
        )
    model = known_gpu(gpu)
    document = read_document(path, str(path))
    wiring = _only(document, "topology")
    if wiring not in _WIRINGS:
        hint = did_you_mean(str(wiring), list(_WIRINGS))
        what = f"{wiring!r} is not one of {', '.join(_WIRINGS)}{hint}"
        raise InputError(document.fault(("topology", 0), what))
    count = _number(document, "npus_count", MAX_GPUS)
    if count != int(count) or count < 2:
        raise InputError(
            document.fault(("npus_count", 0), f"must be a whole number from 2, not {count:g}")
        )
    bandwidth = _number(document, "bandwidth", 1e6) * 1e9
    latency_ns = _number(document, "latency", 1e9)
    host = Host()
    gpus = [f"gpu{index}" for index in range(int(count))]
    host.nodes = dict.fromkeys(gpus, "gpu")
    if wiring == "Switch":
        host.nodes["nvswitch"] = "nvswitch"
        for name in gpus:
            host.join(name, "nvswitch", bandwidth, f"{latency_ns / 2:.12g} ns")
    else:
        for a, b in combinations(gpus, 2):
            host.join(a, b, bandwidth / (len(gpus) - 1), f"{latency_ns:.12g} ns")
    host.add_sockets(["cpu0"])
    for name in gpus:
        host.join(name, "cpu0", pcie_bytes_per_s(model), PCIE_LATENCY)
    host.note(f"pcie: {pcie_bytes_per_s(model) / 1e9:g} GB/s, what {model} can; not in the file")
    return write_topology(host, model, path.name, Path(target), nodes, nic)


def _only(document: Document, key: str) -> object:
    """The one item of a list: a file of several dimensions has more."""
    found = document.data.get(key)
    if not isinstance(found, list) or not found:
        raise InputError(document.fault((key,), "a list is required in an ASTRA-sim network file"))
    if len(found) > 1:
        raise InputError(
            document.fault((key,), f"{len(found)} dimensions; files of one dimension are read")
        )
    return found[0]


def _number(document: Document, key: str, most: float) -> float:
    found = _only(document, key)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found <= most:
        raise InputError(
            document.fault((key, 0), f"must be a number above 0 and up to {most:g}, not {found!r}")
        )
    return float(found)
