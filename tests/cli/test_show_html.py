"""`show topology NAME --html FILE`: one file, never overwritten, nothing of the user is markup."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from cli.running import Call, listing

HOSTILE = "</script><script>alert(1)</script>\"'&<b>"


class Page(HTMLParser):
    """What a browser makes of the page. State: the element it is in, and what was found."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[dict[str, str | None]] = []
        self.text: dict[str, str] = {}
        self.tags: set[str] = set()
        self._at = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attrs)
        self._at = found.get("id") or found.get("class") or tag
        if tag == "script":
            self.scripts.append(found)

    def handle_endtag(self, tag: str) -> None:
        self._at = ""

    def handle_data(self, data: str) -> None:
        if self._at:
            self.text[self._at] = self.text.get(self._at, "") + data

    def figure(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text["figure"])["figure"]
        return found


def test_one_file_is_written_beside_the_text(call: Call, tmp_path: Path) -> None:
    plain = call("show", "topology", "h100x16-rail")
    done = call("show", "topology", "h100x16-rail", "--html", "out.html")
    assert (done.status, done.err) == (0, "")
    assert done.out == plain.out
    assert listing(tmp_path) == ["out.html"]
    text = (tmp_path / "out.html").read_text()
    page = Page(text)
    assert page.text["h1"] == "h100x16-rail"
    # As `show topology` prints it: 16 GPUs; 32 + 4 + 96 + 48 directed links; 8 x 50 GB/s.
    assert page.text["figures"] == (
        "16 x H100-SXM · directed links: NVLink / xGMI 32, memory bus 4, PCIe 96, network 48 · "
        "bisection 400 GB/s each way · diameter 8 links, 3.00 us"
    )
    assert len(page.scripts) == 3
    assert not [script for script in page.scripts if "src" in script], "nothing is loaded"
    assert 3_000_000 < len(text) < 10_000_000


def test_the_same_topology_gives_the_same_bytes(call: Call, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        assert call("show", "topology", "mi300x8", "--html", name, "--json").status == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_overrides_are_drawn(call: Call, tmp_path: Path) -> None:
    flags = ("--set", "build.gpus=4", "--html", "out.html", "--plotlyjs", "cdn")
    assert call("show", "topology", "nvswitch16", *flags).status == 0
    (gpus,) = [
        trace
        for trace in Page((tmp_path / "out.html").read_text()).figure()["data"]
        if trace["meta"]["role"] == "gpu"
    ]
    assert len(gpus["x"]) == 4


def test_one_gpu_and_gpus_that_nothing_joins(call: Call, tmp_path: Path) -> None:
    flags = ("--plotlyjs", "cdn", "--html")
    one = ("--set", "build.gpus=1", "--set", "build.hosts=1")
    assert call("show", "topology", "nvswitch16", *one, *flags, "a").status == 0
    assert "one GPU" in Page((tmp_path / "a").read_text()).text["figures"]
    (tmp_path / "apart.yaml").write_text(
        "name: apart\ngpu: H100-SXM\nbuild:\n  kind: explicit\n"
        "  nodes: [{name: a, kind: gpu}, {name: b, kind: gpu}]\n"
    )
    assert call("show", "topology", "apart.yaml", *flags, "b").status == 0
    assert "nothing joins" in Page((tmp_path / "b").read_text()).text["figures"]


def test_plotly_from_the_network(call: Call, tmp_path: Path) -> None:
    done = call("show", "topology", "dgx-h100", "--html", "out.html", "--plotlyjs", "cdn")
    assert done.status == 0
    library = Page((tmp_path / "out.html").read_text()).scripts[0]
    assert str(library["src"]).startswith("https://cdn.plot.ly/plotly-")
    assert str(library["integrity"]).startswith("sha256-")
    assert (tmp_path / "out.html").stat().st_size < 200_000


def test_plotly_in_the_directory(call: Call, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        done = call("show", "topology", "dgx-h100", "--html", name, "--plotlyjs", "directory")
        assert (done.status, done.err) == (0, "")
    assert listing(tmp_path) == ["a.html", "b.html", "plotly.min.js"]
    assert Page((tmp_path / "a.html").read_text()).scripts[0]["src"] == "plotly.min.js"
    (tmp_path / "plotly.min.js").write_text("// mine")
    done = call("show", "topology", "dgx-h100", "--html", "c.html", "--plotlyjs", "directory")
    assert done.status == 2
    assert done.err == (
        "error: plotly.min.js: is there already and another version; write elsewhere\n"
    )
    assert listing(tmp_path) == ["a.html", "b.html", "plotly.min.js"]
    assert (tmp_path / "plotly.min.js").read_text() == "// mine"


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (
            ("topology", "dgx-h100", "--html", "there"),
            "there: exists already; remove it or write another file",
        ),
        (("topology", "dgx-h100", "--html", "no/out"), "no/out: there is no directory no"),
        (
            ("workload", "moe128", "--html", "out"),
            "show workload: --html draws a topology or a plan; leave it out",
        ),
        (
            ("gpu", "H100-SXM", "--html", "out"),
            "show gpu: --html draws a topology or a plan; leave it out",
        ),
        (
            ("topology", "dgx-h100", "--plotlyjs", "cdn"),
            "show topology: --plotlyjs goes with --html FILE",
        ),
        (
            ("topology", "dgx-h100", "--html", "out", "--plotlyjs", "inlin"),
            "--plotlyjs: no 'inlin' (did you mean 'inline'?); write inline, cdn, directory",
        ),
    ],
)
def test_refusals(call: Call, tmp_path: Path, flags: tuple[str, ...], error: str) -> None:
    (tmp_path / "there").write_text("mine")
    done = call("show", *flags)
    assert (done.status, done.out, done.err) == (2, "", f"error: {error}\n")
    assert listing(tmp_path) == ["there"]
    assert (tmp_path / "there").read_text() == "mine"


def test_a_wrong_topology_leaves_no_file(call: Call, tmp_path: Path) -> None:
    assert call("show", "topology", "nosuch", "--html", "out.html").status == 2
    assert listing(tmp_path) == []


def test_nothing_is_left_when_the_disk_is_full(tmp_path: Path) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    argv = [sys.executable, "-m", "simulator", "show", "topology", "dgx-h100", "--html", "out.html"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, preexec_fn=small)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: out.html: cannot be written: File too large\n"
    assert listing(tmp_path) == []


def test_nothing_of_the_user_is_markup(call: Call, tmp_path: Path) -> None:
    quoted = json.dumps(HOSTILE)
    (tmp_path / "hostile.yaml").write_text(
        f"name: {quoted}\ndescription: {quoted}\ngpu: H100-SXM\nbuild:\n  kind: explicit\n"
        f"  nodes:\n    - {{name: {quoted}, kind: gpu}}\n    - {{name: b, kind: gpu}}\n"
        f"  links:\n    - {{from: {quoted}, to: b, bandwidth: 1 GB/s, latency: 1 us, both: true}}\n"
    )
    assert call("show", "topology", "hostile.yaml", "--html", "out.html").status == 0
    text = (tmp_path / "out.html").read_text()
    assert HOSTILE not in text
    page = Page(text)
    assert len(page.scripts) == 3
    assert not page.tags & {"b", "img", "a"}
    assert page.text["h1"] == page.text["title"] == page.text["about"] == HOSTILE
    told = [text for trace in page.figure()["data"] for text in trace.get("hovertext", ())]
    shown = HOSTILE.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert any(text.startswith(f"<b>{shown}</b><br>GPU") for text in told)
    assert any(f"{shown} ↔ b" in text or f"b ↔ {shown}" in text for text in told)
