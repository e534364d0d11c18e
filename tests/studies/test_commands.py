"""`fit` and `validate` on the command line: what is printed, written and refused."""

from __future__ import annotations

import json

import pytest

from simulator.cli import main
from simulator.spec.transport import load_transport
from simulator.studies.validation import sets

# Times of an all-to-all over four H100s, us: 6 + V (n - 1) / n / (0.8 x 450 GB/s) + the path's.
HEADER = "system,version,op_name,num_gpus,message_bytes,time_us\n"
ROWS = "".join(
    f"h100_sxm,1,alltoall,4,{size},{6.936 + 0.75 * size / (0.8 * 450e3):.4f}\n"
    for size in (1024, 65536, 1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 28)
)


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """Run the command line in an empty directory: (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(list(argv))
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_fit_writes_a_transport(call, tmp_path):
    (tmp_path / "t.csv").write_text(HEADER + ROWS)
    status, out, err = call("fit", "t.csv", "-o", "mine.yaml")
    assert status == 0, err
    assert "1 rows below 64 KiB were left out" in err
    assert "6 rows, 3 parameters, error <0.1 %" in out
    mine = load_transport("mine.yaml")
    assert mine.name == "mine"
    cost = mine.costs["alltoall"]["direct"]
    assert cost.launch_s == pytest.approx(6e-6, rel=5e-3)
    assert cost.efficiency.nvlink == pytest.approx(0.8, rel=5e-3)
    assert any("t.csv" in source for source in mine.sources)
    assert any("6 rows" in source and "error" in source for source in mine.sources)


def test_fit_as_json(call, tmp_path):
    (tmp_path / "t.csv").write_text(HEADER + ROWS)
    status, out, _ = call("fit", "t.csv", "-o", "mine.yaml", "--topology", "dgx-h100", "--json")
    assert status == 0
    (row,) = json.loads(out)
    assert (row["op"], row["algorithm"], row["rows"], row["parameters"]) == (
        "alltoall",
        "direct",
        6,
        3,
    )
    assert row["nvlink"] == pytest.approx(0.8, rel=5e-3)


def test_fit_keeps_the_rest_of_another_transport(call, tmp_path):
    (tmp_path / "t.csv").write_text(HEADER + ROWS)
    assert call("fit", "t.csv", "-o", "mine.yaml", "--like", "deepep-normal")[0] == 0
    mine = load_transport("mine.yaml")
    assert (mine.deduplicate, mine.sms) == ("node", 24)
    assert list(mine.costs) == ["alltoall"]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (("fit", "none.csv", "-o", "o.yaml"), "error: none.csv: no such file"),
        (
            ("fit", "t.csv", "-o", "t.csv"),
            "error: t.csv: exists already; remove it or write another file",
        ),
        (
            ("fit", "bad.csv", "-o", "o.yaml"),
            "error: bad.csv:2: time_us: 'fast' is not a number",
        ),
        (
            ("fit", "t.csv", "-o", "o.yaml", "--min-bytes", "1 GiB"),
            "error: t.csv: the largest size is 2.68435e+08 B, all below 1 GiB; give a smaller "
            "--min-bytes",
        ),
        (
            ("fit", "t.csv", "-o", "o.yaml", "--min-bytes", "64"),
            'error: --min-bytes: 64 has no unit; write for example "64 GiB"',
        ),
        (
            ("fit", "t.csv", "-o", "o.yaml", "--topology", "a100x2"),
            "error: 4 ranks: a100x2 has 2 GPUs",
        ),
        (
            ("fit", "t.csv", "-o", "o.yaml", "--op", "scatter"),
            "error: --op: 'scatter' is none of allreduce, allgather, reducescatter, alltoall, "
            "sendrecv",
        ),
    ],
)
def test_fit_refuses_in_one_line(call, tmp_path, argv, line):
    (tmp_path / "t.csv").write_text(HEADER + ROWS)
    (tmp_path / "bad.csv").write_text(HEADER + "h100_sxm,1,alltoall,4,1024,fast\n")
    status, out, err = call(*argv)
    assert (status, out) == (2, "")
    assert err.splitlines() == [line]
    assert not (tmp_path / "o.yaml").exists()


NORMAL = (
    "nodes,hidden,tokens_per_rank,topk,experts,dispatch_sms,dispatch_transmit_us,combine_sms,"
    "combine_transmit_us\n"
)


def test_one_transport_is_for_one_number_of_sms(call, tmp_path):
    rows = "".join(
        f"1,7168,{tokens},8,256,{sms},{20 + tokens * 0.5},{sms},{40 + tokens * 0.9}\n"
        for sms in (20, 24)
        for tokens in (64, 1024)
    )
    (tmp_path / "n.csv").write_text(NORMAL + rows)
    status, _, err = call("fit", "n.csv", "-o", "o.yaml")
    assert status == 2
    assert err == (
        "error: n.csv: kernels on 20, 24 SMs; a transport is for one number of them, give it with "
        "--sms\n"
    )
    status, out, _ = call("fit", "n.csv", "-o", "o.yaml", "--sms", "20")
    assert status == 0
    assert "4 rows, 4 parameters" in out
    mine = load_transport("o.yaml")
    assert (mine.sms, mine.deduplicate) == (20, "node")


def test_tables_of_different_kinds_are_not_fitted_together(call, tmp_path):
    (tmp_path / "t.csv").write_text(HEADER + ROWS)
    table = str(sets.DATA / "deepep_low_latency.csv")
    status, _, err = call("fit", "t.csv", table, "-o", "o.yaml")
    assert status == 2
    assert err == ("error: the tables are of different kinds (deepep-ll, nccl); fit them apart\n")


def test_validate_prints_and_writes(call, tmp_path):
    status, out, err = call("validate", "-o", "page.md")
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["set", "rows", "par."]
    assert {line.split()[0] for line in lines[1:]} == set(sets.limits())
    assert (tmp_path / "page.md").read_text().startswith("<!-- Written by: ")
    assert call("validate", "-o", "page.md")[0] == 0, "its own page is written anew"


def test_validate_as_json(call):
    status, out, _ = call("validate", "--json")
    rows = json.loads(out)
    assert status == 0
    assert {row["set"] for row in rows} == set(sets.limits())
    assert all(row["error"] <= row["limit"] for row in rows)


def test_validate_does_not_overwrite_what_it_did_not_write(call, tmp_path):
    (tmp_path / "notes.md").write_text("mine\n")
    status, _, err = call("validate", "-o", "notes.md")
    assert status == 2
    assert err.splitlines()[-1] == (
        "error: notes.md: exists already, and was not written by validate; write another file"
    )
    assert (tmp_path / "notes.md").read_text() == "mine\n"


def test_validate_fails_above_a_limit(call, monkeypatch):
    real = sets.limits()
    tight = {**real, "nccl-calibration": real["nccl-calibration"]._replace(limit=0.01)}
    monkeypatch.setattr("simulator.studies.validation.validate.limits", lambda: tight)
    status, out, err = call("validate")
    assert status == 1
    assert "FAILED" in out
    assert "failed: nccl-calibration: error 6.7%, limit 1.0%" in err
