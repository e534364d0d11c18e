"""Timelines that cannot be: one line that says where and what to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simulator.engine.serving.cluster import cluster_of
from simulator.engine.serving.simulate import timeline_of
from simulator.errors import InputError
from simulator.requests.load import load_requests
from simulator.spec.load import load_inputs
from tests.serving.faulty import SMALL, inputs_of

GPU = {"at": "1 s", "what": "gpu", "name": "gpu3"}


def told(folder: Path, faults: list[dict[str, Any]], *overrides: str) -> str:
    """What is said about a timeline when it is read."""
    with pytest.raises(InputError) as error:
        inputs_of(folder, faults, *overrides)
    return str(error.value)


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ({"at": "-1 s", "what": "gpu", "name": "gpu3"}, "faults.0.at: '-1 s' is negative"),
        ({**GPU, "at": 3}, 'faults.0.at: 3 has no unit; write for example "3 us"'),
        ({**GPU, "for": "0 s"}, "faults.0.for: must be above 0; leave it out for good"),
        ({**GPU, "what": "gpus"}, "faults.0.what: 'gpus' is not one of gpu, nic, link"),
        ({**GPU, "do": "broken"}, "faults.0.do: 'broken' is not one of down, up, degrade, slow"),
        ({**GPU, "nmae": "x"}, "faults.0.nmae: unknown key (did you mean 'name'?)"),
        ({**GPU, "do": "degrade"}, "faults.0.factor: the share of the bandwidth that is left"),
        ({**GPU, "do": "degrade", "factor": 1.5}, "faults.0.factor: the share of the bandwidth"),
        ({**GPU, "do": "slow"}, "faults.0.factor: how many times as long"),
        ({**GPU, "factor": 0.5}, "faults.0.factor: goes with do: degrade or slow"),
        ({**GPU, "what": "nic", "do": "slow", "factor": 2.0}, "faults.0.do: a nic does not"),
        ({**GPU, "spread": 0.1}, "faults.0.spread: goes with do: slow"),
        ({**GPU, "what": "nic", "load_from": "host"}, "faults.0.load_from: goes with a gpu or"),
        ({**GPU, "load_from": "disk"}, "faults.0.load_from: 'disk' is not a bandwidth"),
        ({**GPU, "mtbf": "1 h", "mttr": "1 s"}, "faults.0.mtbf: give either at, or mtbf and mttr"),
        ({"what": "gpu", "name": "gpu3", "mtbf": "1 h"}, "faults.0.mttr: give at, or both mtbf"),
        (
            {"what": "gpu", "name": "gpu3", "mtbf": "0 s", "mttr": "1 s"},
            "faults.0.mtbf: must be above 0",
        ),
        ({**GPU, "do": "up"}, "faults.0.name: nothing happens to 'gpu3' before it is up"),
    ],
)
def test_an_entry_that_cannot_be(tmp_path: Path, entry: dict[str, Any], line: str) -> None:
    found = told(tmp_path, [entry])
    assert line in found
    assert found.startswith(f"{tmp_path / 'faults.yaml'}:")
    assert "\n" not in found


def test_times_go_forward(tmp_path: Path) -> None:
    found = told(tmp_path, [GPU, {**GPU, "at": "500 ms"}])
    assert found.endswith("faults.1.at: 0.5 s is before the 1 s of an entry above it")
    assert ":5:" in found  # its line in the file


def test_a_file_has_two_keys(tmp_path: Path) -> None:
    path = tmp_path / "faults.yaml"
    for text, line in (
        ("fault: []\n", ":1:1: fault: unknown key (did you mean 'faults'?)"),
        ("on_member_loss: drain\n", "faults: required, but not given"),
        (
            "faults: []\non_member_loss: [replica]\n",
            "is not one of replicas, reload, shrink, drain",
        ),
        (
            "faults: []\non_member_loss: []\n",
            "on_member_loss: must be a list of at least 1, not []",
        ),
        ("- a\n", "expected key: value lines"),
    ):
        path.write_text(text)
        with pytest.raises(InputError) as error:
            load_inputs("h100x16-rail", "moe128", SMALL, "uniform", "poisson:10", str(path))
        assert line in str(error.value)
        assert str(error.value).startswith(str(path))
    with pytest.raises(InputError, match="cannot be read"):
        load_inputs("h100x16-rail", "moe128", SMALL, "uniform", "poisson:10", "no-such.yaml")


def refused(folder: Path, faults: list[dict[str, Any]], topology: str = "h100x16-rail") -> str:
    """What is said about a timeline when the graph is there."""
    inputs = inputs_of(folder, faults, topology=topology)
    assert inputs.workload.requests is not None
    cluster = cluster_of(inputs, load_requests(inputs.workload.requests, 0), 0)

    def begun() -> None:
        timeline = timeline_of(inputs, cluster, 0)
        assert timeline is not None
        timeline.begin()

    with pytest.raises(InputError) as error:
        begun()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("what", "name", "line"),
    [
        ("gpu", "gpu33", "h100x16-rail has no gpu 'gpu33' (did you mean 'gpu3'?)"),
        ("nic", "gpu3", "'gpu3' is a gpu, not a nic; write what: gpu"),
        ("switch", "dram0", "'dram0' is a dram, not a switch"),
        ("node", "node7", "h100x16-rail has no node 'node7' (did you mean 'node1'?)"),
        ("link", "gpu3", "'gpu3' is not a link; write for example 'gpu0 -> nvswitch0'"),
        (
            "link",
            "gpu3 -> leaf0",
            "no link 'gpu3 -> leaf0'; there are gpu3 -> nvswitch0, gpu3 -> p",
        ),
        ("link", "gpu3 -> laef0", "h100x16-rail has no 'laef0' (did you mean 'leaf0'?)"),
    ],
)
def test_something_that_is_not_there(tmp_path: Path, what: str, name: str, line: str) -> None:
    found = refused(tmp_path, [{"at": "1 s", "what": what, "name": name}])
    assert line in found
    assert f"{tmp_path / 'faults.yaml'}:4:" in found  # at, what, name below `faults:`
    assert "faults.0.name: " in found


def test_no_path_from_the_start_is_refused(tmp_path: Path) -> None:
    found = refused(tmp_path, [{"at": "0 s", "what": "switch", "name": "spine0"}] + [
        {"at": "0 s", "what": "switch", "name": f"leaf{n}"} for n in range(8)
    ])  # fmt: skip
    assert "cannot be reached from" in found
    assert "faults.8.name" in found


def test_gpus_without_host_memory_load_from_a_stated_bandwidth(tmp_path: Path) -> None:
    topology = tmp_path / "pair.yaml"
    topology.write_text(
        "name: pair\ngpu: H100-SXM\nbuild:\n  kind: explicit\n  nodes:\n"
        "    - {name: a, kind: gpu}\n    - {name: b, kind: gpu}\n"
        "  links:\n    - {from: a, to: b, bandwidth: 100 GB/s, latency: 1 us, both: true}\n"
    )
    fault = {"at": "1 s", "what": "gpu", "name": "a", "for": "1 s", "load_from": "host"}
    found = refused(tmp_path, [fault], str(topology))
    assert "a has no host memory; write a bandwidth for load_from" in found
