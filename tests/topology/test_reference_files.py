"""Listings of real machines, where they are at hand: imported, shown, used in an all-to-all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from simulator.cluster.figures import Figures, figures
from simulator.cluster.graph import build_graph, gpus
from simulator.spec.load import load_topology

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT.parent / "shared" / "reference" / "topology"

# Kind, file, GPU to be named, GPUs, GB/s over the bisection of the one host, more hosts.
FILES = [
    # NVSwitch assumed for written files: four GPUs at 300 or 450 GB/s.
    ("nccl-topo", "aws_p4d-24xl-topo.xml", None, 8, 4 * 300, "100 Gb/s"),
    ("nccl-topo", "azure_ndv4-topo.xml", "A100-SXM-40GB", 8, 4 * 300, "200 Gb/s"),
    ("nccl-topo", "azure_ndv5-topo.xml", "H100-SXM", 8, 4 * 450, "400 Gb/s"),
    # Every two of four joined by one xGMI link of 64 GB/s: four cross.
    ("nccl-topo", "rccl_topo_4p_940.xml", "MI300X", 4, 4 * 64, None),
    # xGMI between GPU 0-3 and 4-7: 2 + 1 + 1 + 1 + 2 + 1 links of 50 GB/s; the sockets 67.2, but
    # PCIe carries less there: 32 GB/s of the switch under each CPU.
    ("nccl-topo", "rccl_topo_8p1h.xml", "MI300X", 8, 8 * 50 + 32, None),
    # Sockets of six and two GPUs: GPU 4 and 5 reach 0 to 3 over the root complex, 6 and 7 over the
    # link between the sockets; 4 x 32 GB/s leave the first half.
    ("nvidia-smi", "pcie8_complete.txt", "A6000", 8, 2 * 32 + 2 * 32, None),
    # NVLinks between {0, 1} and {2, 3}: 1 + 2 + 2 + 1, all of 25 GB/s.
    ("nvidia-smi", "v100_4gpu_complete.txt", "V100-SXM2-32GB", 4, 6 * 25, "100 Gb/s"),
    ("astra-network", "HGX-H100-validated.yml", "H100-SXM", 8, 4 * 400, None),
]


def run(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "simulator", *words],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr.count("error")) == (0, 0), done.stderr
    return done.stdout


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the listings are not here")
def test_none_is_left_out():
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(name for _, name, *_ in FILES)


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the listings are not here")
@pytest.mark.parametrize(("kind", "name", "gpu", "count", "gb_per_s", "nic"), FILES)
def test_a_real_machine(tmp_path, kind, name, gpu, count, gb_per_s, nic):
    words = ["import", kind, str(FOLDER / name), *(("--gpu", gpu) if gpu else ())]
    assert f"{count} " in run(tmp_path, *words, "-o", "one.yaml")
    shown = json.loads(run(tmp_path, "show", "topology", "one.yaml", "--json"))
    assert shown["gpus"] == count
    assert shown["figures"]["bisection_bytes_per_s"] == pytest.approx(gb_per_s * 1e9)
    path = "one.yaml"
    if nic is not None:
        path = "two.yaml"
        run(tmp_path, *words, "-o", path, "--nodes", "2", "--nic", nic)
        found = figures(build_graph(load_topology(str(tmp_path / path))), False)
        assert isinstance(found, Figures)
        assert "network" in found.bisection_kinds
    words = ("collective", "--topology", path, "--op", "alltoall", "-b", "16M", "-e", "16M")
    (row,) = json.loads(run(tmp_path, *words, "--json"))
    gpus_there = len(gpus(build_graph(load_topology(str(tmp_path / path)))))
    assert row["ranks"] == gpus_there
    # Half of the bytes of each half cross the bisection: 16 MB x GPUs / 4 each way.
    crossing_s = 16 * 2**20 * count / 4 / (gb_per_s * 1e9)
    assert row["time_us"] * 1e-6 > crossing_s
    small = ("model.layers=2", "traffic.steps=1", "traffic.tokens_per_gpu=4")
    sets = [word for text in small for word in ("--set", text)]
    work = ("--topology", path, "--workload", "mixtral-8x7b", "--json")
    summary = json.loads(run(tmp_path, *work, *sets))
    assert len(gpus(build_graph(load_topology(str(tmp_path / path))))) == summary["gpus"]
    assert summary["dispatch_bytes"] > 0
    assert summary["combine_bytes"] > 0
