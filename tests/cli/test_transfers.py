"""`transfers`: rows in, the same rows with finish_s out; refusals with file and line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from cli.running import Call, listing

ON = ("transfers", "--topology", "nvswitch16", "--flows", "flows.csv")
# 450 GB/s each way; GPU - switch - GPU takes 936 ns.
SET = ("--set", "build.nvlink={bandwidth: 450 GB/s, latency: 468 ns}")
LATENCY_S = 936e-9


def put(folder: Path, text: str) -> None:
    (folder / "flows.csv").write_bytes(text.encode())


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_rows_come_back_with_their_finish(call: Call, tmp_path: Path) -> None:
    put(tmp_path, 'note,src,dst,bytes,start_s\n"a, b",gpu0,gpu1,450000,0\n,2,3,64 MiB,5 us\n')
    done = call(*ON, *SET)
    assert done.status == 0
    assert done.out.splitlines()[0] == "note,src,dst,bytes,start_s,finish_s"
    first, second = rows_of(done.out)
    assert [first[key] for key in ("note", "src", "bytes")] == ["a, b", "gpu0", "450000"]
    assert [second[key] for key in ("src", "bytes", "start_s")] == ["2", "64 MiB", "5 us"]
    assert float(first["finish_s"]) == pytest.approx(LATENCY_S + 1e-6, rel=1e-9)
    assert float(second["finish_s"]) == pytest.approx(5e-6 + LATENCY_S + 2**26 / 450e9, rel=1e-9)
    assert done.err.splitlines()[0].split() == [
        "link",
        "kind",
        "bandwidth",
        "bytes",
        "busy",
        "used",
    ]
    assert len(done.err.splitlines()) == 1 + 4
    assert listing(tmp_path) == ["flows.csv"]


def test_networks_by_name(call: Call, tmp_path: Path) -> None:
    """Two transfers of 450 kB and 810 kB to different GPUs: alone 1 us and 1.8 us on the wire. As a
    coflow both end when the link of the source is done, and transfers of another name do not.
    """
    text = "src,dst,bytes,start_s,collective\n0,1,450000,0,a\n0,2,810000,0,a\n3,4,450000,0,b\n"
    put(tmp_path, text)
    ends = {}
    for network in ("exact", "epsilon:0.9", "coflow"):
        done = call(*ON, *SET, "--network", network)
        assert done.status == 0
        assert done.out.splitlines()[0].endswith("collective,finish_s")
        ends[network] = [float(row["finish_s"]) for row in rows_of(done.out)]
    us = 1e-6
    assert ends["exact"] == pytest.approx(
        [LATENCY_S + 2 * us, LATENCY_S + 2.8 * us, LATENCY_S + us], rel=1e-9
    )
    assert ends["coflow"] == pytest.approx(
        [LATENCY_S + 2.8 * us, LATENCY_S + 2.8 * us, LATENCY_S + us], rel=1e-9
    )
    # After 2 us the second lacks 1.6 us at its present rate: it ends together with the first.
    assert ends["epsilon:0.9"] == pytest.approx(
        [LATENCY_S + 2 * us, LATENCY_S + 2 * us, LATENCY_S + us], rel=1e-9
    )
    done = call(*ON, "--network", "coflo")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("error: 'coflo' is not a known network (did you mean 'coflow'?)")


def test_files_are_written(call: Call, tmp_path: Path) -> None:
    put(tmp_path, "src,dst,bytes,start_s\r\ngpu0,gpu1,900000,0\r\n\r\ngpu2,gpu1,450000,0\r\n")
    done = call(*ON, *SET, "-o", "out.csv", "--links", "links.csv")
    assert (done.status, done.out, done.err) == (0, "", "")
    assert listing(tmp_path) == ["flows.csv", "links.csv", "out.csv"]
    # Halves until the smaller has its 1 us' worth after 2 us; the other's second half takes 1 us.
    finish = [float(row["finish_s"]) for row in rows_of((tmp_path / "out.csv").read_text())]
    assert finish == pytest.approx([LATENCY_S + 3e-6, LATENCY_S + 2e-6], rel=1e-9)
    links = {row["link"]: row for row in rows_of((tmp_path / "links.csv").read_text())}
    assert set(links) == {"gpu0 -> nvswitch", "gpu2 -> nvswitch", "nvswitch -> gpu1"}
    into = links["nvswitch -> gpu1"]
    assert into["kind"] == "nvlink"
    assert float(into["bandwidth_bytes_per_s"]) == 450e9
    assert float(into["bytes"]) == 1_350_000
    assert float(into["busy_s"]) == pytest.approx(3e-6, rel=1e-9)
    assert float(into["utilization"]) == pytest.approx(3 / 3.936, rel=1e-9)


def test_json_has_si_numbers(call: Call, tmp_path: Path) -> None:
    put(tmp_path, "src,dst,bytes,start_s\n0,0,1 KiB,2 ms\ndram0,gpu1,0,0\n")
    rows = json.loads(call(*ON, "--json").out)
    assert rows[0] == {
        "src": "gpu0", "dst": "gpu0", "bytes": 1024.0, "start_s": 2e-3, "finish_s": 2e-3
    }  # fmt: skip
    assert (rows[1]["src"], rows[1]["bytes"]) == ("dram0", 0.0)


def test_a_long_table_is_cut(call: Call, tmp_path: Path) -> None:
    pairs = "".join(f"{gpu},{(gpu + 1) % 16},1 MB,0\n" for gpu in range(16))
    put(tmp_path, "src,dst,bytes,start_s\n" + pairs)
    done = call(*ON)
    assert done.err.splitlines()[-1] == "12 links more; --links FILE writes all"
    assert max(map(len, done.err.splitlines())) <= 80


HEADER = "src,dst,bytes,start_s\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "flows.csv:1: is empty; write the header src,dst,bytes,start_s and rows"),
        ("\n \n", "flows.csv:1: is empty"),
        (HEADER, "flows.csv:1: there is no row below the header"),
        (
            "source,dst,bytes,start_s\n0,1,1,0\n",
            "flows.csv:1: no column 'src' (is 'source' meant? Write 'src'); the header must name",
        ),
        ("src,dst,size,start_s\n0,1,1,0\n", "flows.csv:1: no column 'bytes'"),
        ("src,dst,byte,start_s\n0,1,1,0\n", "(is 'byte' meant? Write 'bytes')"),
        ("src,src,dst,bytes,start_s\n", "flows.csv:1: column 'src' is there 2 times"),
        ("src,dst,bytes,start_s,finish_s\n", "column 'finish_s' is there already"),
        (HEADER + "gup3,gpu1,1,0\n", "flows.csv:2: src: no node 'gup3' (did you mean 'gpu3'?)"),
        (HEADER + "0,16,1,0\n", "flows.csv:2: dst: no GPU 16: there are 0 to 15"),
        (HEADER + "0,-1,1,0\n", "flows.csv:2: dst: no node '-1'"),
        (HEADER + "0,,1,0\n", "flows.csv:2: dst: is empty"),
        (HEADER + "0,1,1,0\n\n0,1,-5,0\n", "flows.csv:4: bytes: -5 is negative"),
        (HEADER + "0,1,-5 MB,0\n", "flows.csv:2: bytes: '-5 MB' is negative"),
        (HEADER + "0,1,nan,0\n", "flows.csv:2: bytes: 'nan' is not finite"),
        (HEADER + "0,1,inf,0\n", "flows.csv:2: bytes: 'inf' is not finite"),
        (HEADER + "0,1,1e999,0\n", "flows.csv:2: bytes: 1e999 is too large"),
        (HEADER + "0,1,5 MX,0\n", "flows.csv:2: bytes: 'MX' is not a unit of bytes"),
        (HEADER + "0,1,,0\n", "flows.csv:2: bytes: is empty"),
        (HEADER + "0,1,1_000,0\n", "flows.csv:2: bytes: '_000' is not a unit"),
        (HEADER + "0,1,1,-1e-6\n", "flows.csv:2: start_s: -1e-6 is negative"),
        (HEADER + "0,1,1,NaN\n", "flows.csv:2: start_s: 'NaN' is not finite"),
        (HEADER + "0,1,1,5 GB\n", "flows.csv:2: start_s: 'GB' is not a unit of time"),
        (HEADER + "0,1,1\n", "flows.csv:2: 3 fields where the header has 4"),
        (HEADER + '0,1,"1,0\n', "flows.csv:2: not CSV"),
        (HEADER + "dram0,dram1,1,0\n", "flows.csv:2: dram1 cannot be reached from dram0"),
    ],
)
def test_one_line_and_nothing_written(call: Call, tmp_path: Path, text: str, said: str) -> None:
    put(tmp_path, text)
    done = call(*ON, "-o", "out.csv", "--links", "links.csv")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("error: flows.csv:")
    assert done.err.count("\n") == 1, done.err
    assert said in done.err
    assert listing(tmp_path) == ["flows.csv"]


def test_all_faults_are_told_at_once(call: Call, tmp_path: Path) -> None:
    put(tmp_path, HEADER + "0,1,x,y\n0,1,1,0\n99,1,1,0\n")
    lines = call(*ON).err.splitlines()
    assert [line[: len("error: flows.csv:2: bytes")] for line in lines] == [
        "error: flows.csv:2: bytes",
        "error: flows.csv:2: start",
        "error: flows.csv:4: src: ",
    ]
    put(tmp_path, HEADER + "0,1,x,0\n" * 50)
    lines = call(*ON).err.splitlines()
    assert len(lines) == 10 + 1
    assert lines[9].startswith("error: flows.csv:11: bytes")
    assert lines[10] == "error: flows.csv: there are more faults; these are the first"
    put(tmp_path, HEADER + "0,1,1,0\ndram0,dram1,1,0\ndram1,dram0,1,0\n")
    assert [line.partition(" cannot")[0] for line in call(*ON).err.splitlines()] == [
        "error: flows.csv:3: dram1",
        "error: flows.csv:4: dram0",
    ]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("-o", "old.csv"), "old.csv: exists already"),
        (("--links", "old.csv"), "old.csv: exists already"),
        (("-o", "new.csv", "--links", "new.csv"), "new.csv: is to be written twice"),
        (("-o", "nowhere/new.csv"), "nowhere/new.csv: there is no directory nowhere"),
        (("--topology", "nvswitch61"), "did you mean 'nvswitch16'?"),
        (("--flows", "absent.csv"), "absent.csv: cannot be read: No such file or directory"),
        (("--flows", "."), ".: cannot be read: Is a directory"),
        (("--flows", "binary.csv"), "binary.csv:2: not UTF-8 text"),
        (("--link", "x"), "unknown flag --link (did you mean '--links'?)"),
    ],
)
def test_wrong_arguments(call: Call, tmp_path: Path, argv: tuple[str, ...], said: str) -> None:
    put(tmp_path, HEADER + "0,1,1,0\n")
    (tmp_path / "old.csv").write_text("kept")
    (tmp_path / "binary.csv").write_bytes(b"src\n\xff\xfe")
    done = call(*ON, *argv)
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
    assert said in done.err
    assert listing(tmp_path) == ["binary.csv", "flows.csv", "old.csv"]
    assert (tmp_path / "old.csv").read_text() == "kept"
