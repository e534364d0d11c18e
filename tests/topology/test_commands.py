"""`import nccl-topo`, `import nvidia-smi` and `show topology` from the command line."""

from __future__ import annotations

import json

import pytest

from simulator.cli import main

MATRIX = "\tGPU0\tGPU1\tmlx5_0\nGPU0\t X \tNV4\tPIX\nGPU1\tNV4\t X \tSYS\nmlx5_0\tPIX\tSYS\t X \n"


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.txt").write_text(MATRIX)

    def run(*argv: str) -> tuple[int, str, str]:
        status = main(list(argv))
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_import_show_and_run(call):
    status, out, err = call("import", "nvidia-smi", "m.txt", "-o", "m.yaml", "--gpu", "A6000")
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == "m.txt -> m.yaml"
    assert out.splitlines()[1].startswith("2 A6000, read from m.txt: 1 NIC, 1 PCIe switch per")
    status, out, _ = call("show", "topology", "m.yaml")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    lines = [line.split() for line in out.splitlines()]
    assert ["2", "nvlink", "gpu", "-", "gpu", "56.2", "GB/s", "468", "ns"] in lines
    assert any(line.startswith("bisection     56.2 GB/s each way") for line in out.splitlines())
    assert any(line.startswith("diameter      1 link, 468 ns: gpu0 to") for line in out.split("\n"))
    found = json.loads(call("show", "topology", "m.yaml", "--json")[1])["figures"]
    assert found["bisection_bytes_per_s"] == 56.25e9
    assert (found["hottest_kind"], found["hottest_bytes"]) == ("nvlink", 1.0)


def test_one_gpu_and_gpus_apart_are_shown_as_what_they_are(call, tmp_path):
    status, out, _ = call("show", "topology", "k8s-2node", "--set", "build.nodes=1")
    assert status == 0
    assert "bisection  none: one GPU" in out
    (tmp_path / "apart.yaml").write_text(
        "name: apart\ngpu: A6000\nbuild:\n  kind: explicit\n"
        "  nodes: [{name: a, kind: gpu}, {name: b, kind: gpu}]\n"
    )
    status, out, _ = call("show", "topology", "apart.yaml")
    assert status == 0
    assert "bisection  none: no path of links from a to b" in out


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        (("nvidia-smi", "m.txt"), "m.txt: a matrix does not say which GPU"),
        (("nvidia-smi", "m.txt", "--gpu", "A6000", "--experts", "8"),
         "import nvidia-smi: --experts does not go with it; leave it out"),
        (("jsonl", "m.txt", "--nodes", "2"),
         "import jsonl: --nodes does not go with it; leave it out"),
        (("nvidia-smi", "m.txt", "--gpu", "A6000", "--nodes", "0"), "--nodes 0: at least one host"),
        (("nvidia-smi", "m.txt", "--gpu", "A6000", "--nodes", "2"),
         "--nodes 2: m.txt does not say how fast mlx5_0 is"),
        (("nccl-topo", "m.txt"), "m.txt:1: not an XML file: syntax error"),
        (("nccl-top", "m.txt"), "import: no kind 'nccl-top' (did you mean 'nccl-topo'?)"),
    ],
)  # fmt: skip
def test_refusals(call, argv, fault, tmp_path):
    status, out, err = call("import", *argv, "-o", "out")
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"error: {fault}")
    assert not (tmp_path / "out").exists()
