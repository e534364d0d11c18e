"""The public names: what a notebook uses, against the command line's own figures."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path

import pytest

import simulator
from simulator import library

SMALL = {"model.layers": 2, "traffic.steps": 1, "traffic.warmup_steps": 0}


@pytest.fixture(scope="module")
def run():
    return simulator.simulate("nvswitch16", "moe128", overrides=SMALL, seed=3)


@pytest.fixture(scope="module")
def served():
    return simulator.serve("h100x16-rail", "moe128-serving", overrides=["requests.limit=12"])


def test_there_are_ten_public_names_each_with_a_docstring():
    assert len(simulator.__all__) == 10
    for name in simulator.__all__:
        assert getattr(simulator, name).__doc__, name
        assert f"`{name}`" in simulator.__doc__, name


def test_importing_it_loads_no_library():
    code = "import sys, simulator; print([m for m in ('numpy', 'numba') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("module", [simulator, library], ids=["simulator", "library"])
def test_the_examples_in_docstrings_run(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


def test_a_run_has_the_figures_of_the_command_line(run):
    line = [sys.executable, "-m", "simulator", "--topology", "nvswitch16", "--workload", "moe128"]
    for key, value in SMALL.items():
        line += ["--set", f"{key}={value}"]
    printed = subprocess.run(
        [*line, "--seed", "3", "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(printed.stdout) == run.summary()


def test_tables_are_data_frames(run, served):
    compute = run.spans.query("stream == 'compute'")
    share = run.summary()["compute_utilization"]
    busy = (compute["end_s"] - compute["start_s"]).sum() / 16 / run.summary()["simulated_time_s"]
    assert busy == pytest.approx(share, rel=1e-9)
    assert (run.links["bytes"] >= 0).all()
    assert len(served.requests) == 12
    with pytest.raises(simulator.InputError, match="no table 'requests'"):
        run.table("requests")


def test_a_run_shows_itself_in_a_notebook(run, served):
    for one in (run, served):
        assert one._repr_html_().startswith("<pre>")
        assert one.figure().data
    assert sum(run.figure().data[0].x) == pytest.approx(1.0)


def test_a_kept_run_is_loaded_again(tmp_path: Path):
    out = tmp_path / "kept"
    first = simulator.simulate("nvswitch16", "moe128", overrides=SMALL, out=out)
    again = simulator.load_run(out)
    assert again.summary() == first.summary()
    assert again.inputs["workload"]["model"]["layers"] == 2
    with pytest.raises(simulator.InputError, match="no run"):
        simulator.load_run(tmp_path)


def test_a_lone_transfer_takes_its_bytes_over_the_bandwidth():
    import pandas as pd

    flows = pd.DataFrame({"src": ["gpu0"], "dst": ["gpu1"], "bytes": [4.5e9], "start_s": [1.0]})
    found = simulator.transfers("nvswitch16", flows)
    assert found["finish_s"][0] == pytest.approx(1.01, abs=1e-4)  # 450 GB/s, and the latency
    with pytest.raises(simulator.InputError, match="no node 'gpu99'"):
        simulator.transfers("nvswitch16", flows.assign(dst="gpu99"))


def test_hit_rates_and_balance_give_rows():
    rates = simulator.hit_rates("moe128-python", ("lru", "belady"), (8, 32))
    assert rates.groupby("policy")["hit_rate"].apply(list)["belady"] > [0.4, 0.6]
    even = simulator.balance("moe128-python", gpus=16)
    assert (even["max_over_mean"] >= 1.0).all()
    assert even.set_index("policy")["max_over_mean"]["balanced"] < even["max_over_mean"].max()


def test_shipped_names_can_be_shown():
    names = simulator.shipped()
    assert simulator.show("topology", names["topologies"][0])["name"] == names["topologies"][0]
    with pytest.raises(simulator.InputError, match="show"):
        simulator.show("gpus", "h100")  # type: ignore[arg-type]
