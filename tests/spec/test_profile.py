"""`gpu.profile`: measured figures under a topology's own, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.spec.load import load_inputs, load_topology, resolved

PROFILE = """\
model: H100-SXM
description: made up
compute_efficiency: 0.5
launch_overhead: 9 us
kernels:
  moe_bf16: {launches: 30, passes: 0.25}
copy_efficiency: {pcie: 0.7}
sources:
  compute_efficiency: fitted, 30 rows
  decode: 4 rows, not fitted
"""
TOPOLOGY = """\
name: t
gpu: {gpu}
build: {{kind: explicit, nodes: [{{name: g, kind: gpu}}]}}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Works in a new directory with p.yaml, a profile."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(PROFILE, encoding="utf-8")
    return tmp_path


def gpu(*overrides: str, name: str = "nvswitch16"):
    return load_topology(name, overrides).gpu


def told(name: str, *overrides: str) -> str:
    with pytest.raises(InputError) as refused:
        load_topology(name, overrides)
    return str(refused.value)


def test_its_figures_replace_the_catalogues_and_the_rest_stays():
    plain, found = gpu(), gpu("gpu.profile=p.yaml")
    assert plain.compute_efficiency != 0.5
    assert (found.compute_efficiency, found.launch_overhead_s) == (0.5, 9e-6)
    assert found.memory_efficiency == plain.memory_efficiency
    moe = plain.kernels["moe_bf16"].model_copy(update={"launches": 30.0, "passes": 0.25})
    assert found.kernels == {**plain.kernels, "moe_bf16": moe}
    assert found.flops_per_s == plain.flops_per_s
    assert (found.name, found.profile) == ("H100-SXM", "p.yaml")


def test_the_sources_name_the_profile():
    sources = gpu("gpu.profile=p.yaml", "gpu.launch_overhead=1 us").sources
    assert sources["compute_efficiency"] == "p.yaml: fitted, 30 rows"
    assert sources["decode"] == "p.yaml: 4 rows, not fitted"
    assert sources["kernels"] == "p.yaml"
    assert sources["launch_overhead"].startswith("given in the topology")
    assert sources["memory_efficiency"] == gpu().sources["memory_efficiency"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_key_beside_it_wins_whatever_the_order(order: int):
    given = ["gpu.profile=p.yaml", "gpu.compute_efficiency=0.4", "gpu.kernels.moe_bf16.passes=0.9"]
    found = gpu(*given[::order])
    assert found.compute_efficiency == 0.4
    assert found.sources["compute_efficiency"].startswith("given in the topology")
    assert found.kernels["moe_bf16"].passes == 0.9
    assert found.kernels["moe_bf16"].launches == 30.0
    assert found.sources["kernels"] == "p.yaml; in part given in the topology"


def test_it_is_looked_for_beside_the_topology_then_here(here: Path):
    below = here / "below"
    below.mkdir()
    topology = below / "t.yaml"
    topology.write_text(
        TOPOLOGY.format(gpu="{model: H100-SXM, profile: p.yaml, memory_efficiency: 0.3}"),
        encoding="utf-8",
    )
    assert gpu(name=str(topology)).compute_efficiency == 0.5
    (below / "p.yaml").write_text("model: H100-SXM\ncompute_efficiency: 0.6\n", encoding="utf-8")
    found = gpu(name=str(topology))
    assert (found.compute_efficiency, found.memory_efficiency) == (0.6, 0.3)


def test_without_a_model_it_is_the_profiles(here: Path):
    (here / "t.yaml").write_text(TOPOLOGY.format(gpu="{profile: p.yaml}"), encoding="utf-8")
    found = gpu(name="t.yaml")
    assert (found.name, found.compute_efficiency) == ("H100-SXM", 0.5)


def test_its_copies_stand_under_the_workloads():
    profile, routing = "gpu.profile=p.yaml", "uniform"
    plain = load_inputs("nvswitch16", "moe128", (), routing).workload.copy_efficiency
    measured = load_inputs("nvswitch16", "moe128", (profile,), routing).workload.copy_efficiency
    assert measured == plain.model_copy(update={"pcie": 0.7})
    own = (profile, "copy_efficiency.pcie=0.6", "copy_efficiency.nvlink=0.5")
    given = load_inputs("nvswitch16", "moe128", own, routing)
    assert (given.workload.copy_efficiency.pcie, given.workload.copy_efficiency.nvlink) == (
        0.6,
        0.5,
    )
    assert resolved(given)["topology"]["gpu"]["profile"] == "p.yaml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: H100-SXM\ncompute_eficiency: 0.5\n",
         "p.yaml:2:1: compute_eficiency: unknown key (did you mean 'compute_efficiency'?)"),
        ("model: H100-SXM\ncompute_efficiency: 1.5\n",
         "p.yaml:2:21: compute_efficiency: must be <= 1, not 1.5"),
        ("model: H100-SXM\nlaunch_overhead: 3\n",
         'p.yaml:2:18: launch_overhead: 3 has no unit; write for example "3 us"'),
        ("model: H100-SXM\nkernels: {bf17: {fill: 3}}\n",
         "p.yaml:2:10: kernels: unknown kernel family 'bf17' (did you mean 'bf16'?); known: bf16, "
         "fp8, fp8_block, moe_bf16, moe_fp8, moe_mxfp4, moe_mxfp4_trtllm"),
        ("model: H100-SXM\nkernels: {bf16: {fil: 3}}\n",
         "p.yaml:2:18: kernels.bf16.fil: unknown key (did you mean 'fill'?)"),
        ("model: H100-SXM\ncopy_efficiency: {pci: 0.5}\n",
         "p.yaml:2:19: copy_efficiency.pci: unknown key (did you mean 'pcie'?)"),
        ("model: H100-SXX\ncompute_efficiency: 0.5\n",
         "p.yaml:1:8: model: no GPU 'H100-SXX' in the catalogue (did you mean 'H100-SXM'?)"),
        ("model: H100-SXM\ncompute_efficiency: null\n",
         "p.yaml:2:1: gpu.compute_efficiency: must be a number, not nothing"),
        ("compute_efficiency: 0.5\n",
         "p.yaml:1:1: no GPU profile: it needs 'model: NAME', the GPU that was measured, and a "
         "figure; tools/measure_gpu.py writes one"),
        ("model: H100-SXM\nsources: {}\n",
         "p.yaml:1:1: no GPU profile: it needs 'model: NAME', the GPU that was measured, and a "
         "figure; tools/measure_gpu.py writes one"),
        ("kind,dtype,m\n", "p.yaml:1:1: expected key: value lines at the top"),
        ("", "p.yaml:1:1: empty, expected key: value lines"),
        ("model: !!python/object/apply:os.system [ls]\n",
         "p.yaml:1:8: tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed"),
        ("model: H200-SXM\ncompute_efficiency: 0.5\n",
         "--set gpu.profile: p.yaml is of H200-SXM, but the GPU here is H100-SXM"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_profile_is_refused(here: Path, text: str, message: str):
    (here / "p.yaml").write_text(text, encoding="utf-8")
    assert told("nvswitch16", "gpu.profile=p.yaml") == message


@pytest.mark.parametrize(
    ("given", "what"),
    [("q.yaml", "no such file 'q.yaml'"), ("3", "no path: 3"), ("[a]", "no path: ['a']")],
)
def test_no_such_file(here: Path, given: str, what: str):
    assert told("nvswitch16", f"gpu.profile={given}") == f"--set gpu.profile: {what}"
    text = TOPOLOGY.format(gpu=f"{{model: H100-SXM, profile: {given}}}")
    (here / "t.yaml").write_text(text, encoding="utf-8")
    assert told("t.yaml") == f"t.yaml:2:33: gpu.profile: {what}"


def test_a_misspelled_key_is_told():
    message = "--set gpu.profil: unknown key 'profil' (did you mean 'profile'?)"
    assert told("nvswitch16", "gpu.profil=p.yaml") == message


def test_the_command_line_exits_with_2_and_one_line():
    command = [sys.executable, "-m", "simulator", "show", "topology", "nvswitch16",
               "--set", "gpu.profile=q.yaml"]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stderr.endswith("--set gpu.profile: no such file 'q.yaml'\n")
