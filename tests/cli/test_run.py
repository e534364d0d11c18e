"""Runs: what they print, what they keep, and that what is kept says the same."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numba
import pyarrow.parquet as pq
import pytest
from cli.running import SMALL, Call, listing

from simulator import __version__, api
from simulator.errors import InputError
from simulator.runfiles.rundir import RunDir
from simulator.spec.load import load_inputs

TABLES = ["accesses", "links", "loads", "spans", "steps"]


def test_the_summary_begins_with_how_fast_and_what_limits(call: Call, tmp_path: Path) -> None:
    done = call(*SMALL)
    assert (done.status, done.err) == (0, "")
    speed, step, limit, *_ = done.out.splitlines()
    assert speed.startswith("Speed ")
    assert "tokens/s on 16 GPUs" in speed
    assert step.startswith("Step ")
    assert limit.startswith("Limit ")
    assert max(map(len, done.out.splitlines())) <= 80
    assert "- routing drawn from the law zipf:0.8, not recorded" in done.out.splitlines()
    assert listing(tmp_path) == [], "without --out nothing is kept"


def test_json_is_one_object_of_the_same_figures(call: Call, kept: Path) -> None:
    done = call("run", *SMALL, "--json")
    assert (done.status, done.err) == (0, "")
    summary = json.loads(done.out)
    assert list(summary) == sorted(summary)
    assert summary == json.loads((kept / "result.json").read_text())["summary"]
    assert summary["gpus"] == 16
    assert summary["tokens"] == 16 * 8
    assert summary["throughput_tokens_per_s"] == pytest.approx(
        summary["tokens"] / summary["simulated_time_s"]
    )
    rates = [summary[f"cache_{name}_rate"] for name in ("hit", "late_hit", "miss")]
    assert sum(rates) == pytest.approx(1)
    assert 0 < rates[0] < 1
    shares = [value for name, value in summary.items() if name.endswith("utilization")]
    assert len(shares) == 7
    assert all(0 <= share <= 1 for share in shares)
    assert sum(summary["breakdown"].values()) == pytest.approx(1)
    assert sum(summary["critical_path"].values()) == pytest.approx(1)


def test_what_is_kept(kept: Path) -> None:
    assert listing(kept) == sorted(
        ["report.html", "result.json", *(f"{name}.parquet" for name in TABLES)]
        + [f"trace_rank{gpu}.json.gz" for gpu in range(16)]
    )
    assert listing(kept.parent)[0] == "run", "no partial directory is left"
    result = json.loads((kept / "result.json").read_text())
    assert sorted(result) == [
        *("context", "given", "input", "memory", "notes", "routing", "seed", "summary", "versions"),
    ]
    assert result["seed"] == 0
    context = result["context"]
    energy, prices = context.pop("energy"), context.pop("prices")
    assert context == {
        "gpus": 16,
        "experts": 128,
        "peak_flops_per_s": 989.4e12,
        "fetch_from": "host memory over PCIe",
        "tokens_per_row": 1.0,
    }
    assert (energy["idle_w"], energy["tdp_w"]) == (85, 700)
    assert energy["beside_w"] == {"nic": 0, "nvswitch": pytest.approx(16 * 99)}
    assert prices == {
        "gpu_usd_per_hour": 4.0,
        "electricity_usd_per_kwh": 0.10,
        "electricity_in_price": True,
        "volume_tokens_per_year": 12e9,
        "phase": "decode",
    }
    assert result["input"]["workload"]["model"]["layers"] == 2
    assert result["input"]["workload"]["routing"]["source"] == "zipf:0.8"
    assert result["input"]["topology_given"] == "nvswitch16"
    assert sorted(result["versions"]) == ["numba", "numpy", "simpy", "simulator"]
    assert result["versions"]["simulator"] == __version__


def test_bytes_of_the_tables_agree(kept: Path) -> None:
    # What went to and from the GPUs over NVLink is what the comm spans say, seen from both ends.
    result = json.loads((kept / "result.json").read_text())["summary"]
    links = pq.read_table(kept / "links.parquet").to_pylist()
    nvlink = sum(link["bytes"] for link in links if link["kind"] == "nvlink")
    assert nvlink == pytest.approx(2 * (result["dispatch_bytes"] + result["combine_bytes"]))
    spans = pq.read_table(kept / "spans.parquet")
    fetched = sum(
        size
        for size, stream in zip(
            spans["bytes"].to_pylist(), spans["stream"].to_pylist(), strict=True
        )
        if stream == "copy"
    )
    pcie = sum(link["bytes"] for link in links if link["kind"] == "pcie")
    assert pcie == pytest.approx(fetched)


def test_analyzing_a_kept_run_gives_its_own_summary(call: Call, kept: Path) -> None:
    done = call("analyze", str(kept), "--json")
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out) == json.loads((kept / "result.json").read_text())["summary"]
    shown = call("analyze", str(kept))
    first = call(*SMALL)
    assert first.out == shown.out


def test_traces_hold_as_many_steps_as_asked_for(call: Call, tmp_path: Path) -> None:
    more = ("--set", "traffic.steps=3", "--set", "model.layers=1", "--set", "prefetch=none")
    for asked, marks in (("2", 3), ("0", 0)):
        done = call(*SMALL, *more, "--trace-steps", asked, "--out", asked)
        assert (done.status, done.err) == (0, f"kept in {asked}\n")
        traces = sorted((tmp_path / asked).glob("trace_rank*.json.gz"))
        assert len(traces) == (16 if marks else 0)
        for path in traces[:1]:
            events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
            # One more, which is empty: readers drop the last.
            assert sum(event["name"].startswith("ProfilerStep#") for event in events) == marks


def test_the_seed_and_the_settings_count(call: Call, kept: Path) -> None:
    base = json.loads((kept / "result.json").read_text())["summary"]
    other = json.loads(call(*SMALL, "--seed", "1", "--json").out)
    assert other["throughput_tokens_per_s"] != base["throughput_tokens_per_s"]
    resident = json.loads(
        call(*SMALL, "--set", "expert_slots=null", "--set", "prefetch=none", "--json").out
    )
    assert resident["demand_bytes"] == resident["prefetch_bytes"] == 0
    assert resident["throughput_tokens_per_s"] > base["throughput_tokens_per_s"]


@pytest.mark.parametrize("out", [None, "run"])
def test_an_interruption_leaves_nothing(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str | None
) -> None:
    seen: list[Path] = []

    def interrupted(inputs: object, run: RunDir, *_: object) -> None:
        run.spans.write_text("half of the spans")
        seen.append(run.path)
        raise KeyboardInterrupt

    monkeypatch.setattr("simulator.engine.simulate.simulate", interrupted)
    done = call(*SMALL, *(("--out", out) if out else ()))
    assert done == (130, "", "interrupted; no files were kept\n")
    assert listing(tmp_path) == []
    assert not seen[0].exists()


def test_the_function_gives_what_the_command_prints(call: Call, kept: Path) -> None:
    told: list[tuple[int, int]] = []
    result = api.simulate(
        "nvswitch16",
        "moe128",
        overrides=[text for flag, text in pairwise(SMALL) if flag == "--set"],
        routing="zipf:0.8",
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 1)]
    assert result.path is None
    assert result.summary == json.loads((kept / "result.json").read_text())["summary"]
    assert result.input == json.loads((kept / "result.json").read_text())["input"]
    assert all(count >= 0 for count in result.solver.values())
    assert result.solver
    assert call(*SMALL).out == result.render(80)
    with pytest.raises(InputError, match="trace_steps: -1 is negative"):
        api.simulate("nvswitch16", "moe128", trace_steps=-1)


@pytest.mark.parametrize(
    ("topology", "workload", "overrides", "peak", "words"),
    [
        # Dense rates of the datasheets; an A100 has no FP8 units, so the weights are computed in
        # BF16.
        ("h100x4", "deepseek-v3", [], 1978.9e12, "host memory over PCIe"),
        ("a100x8", "deepseek-v3", [], 312e12, "host memory over PCIe"),
        ("a100x8", "mixtral-8x7b", ["expert_home=peer"], 312e12, "a peer GPU"),
    ],
)
def test_what_the_analyzer_is_told(
    topology: str, workload: str, overrides: list[str], peak: float, words: str
) -> None:
    context = api._context(load_inputs(topology, workload, overrides), 8)
    assert context.peak_flops_per_s == pytest.approx(peak, rel=1e-3)
    assert context.fetch_from == words


def test_compilation_is_announced_once_and_only_when_it_happens() -> None:
    @numba.njit
    def twice(x: Any) -> Any:
        return 2 * x

    said: list[str] = []
    with api.announced_compilation(said.append):
        assert said == []
        assert twice(2) == 4
        assert twice(2.0) == 4.0
    assert said == ["compiling kernels (each only once; the first run of all takes about 30 s) ..."]
    with api.announced_compilation(said.append):
        assert twice(3) == 6
    assert len(said) == 1


def test_a_bar_is_drawn_on_a_terminal_alone(
    call: Call, monkeypatch: pytest.MonkeyPatch, kept: Path
) -> None:
    assert call(*SMALL).err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    done = call(*SMALL)
    assert "1/1" in done.err or "step" in done.err
    assert done.out == call(*SMALL).out
