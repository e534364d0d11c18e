"""Links between the documents lead somewhere, and the index names every page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "traces/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"\.(parquet|jsonl?|yaml)$")
FENCED = re.compile(r"^```.*?^```", flags=re.S | re.M)


def links_of(path: Path) -> list[str]:
    """Targets of a page's links to other files of the project."""
    found = LINK.findall(FENCED.sub("", path.read_text(encoding="utf-8")))
    return [target for target in found if not re.match(r"https?:|mailto:|#", target)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(path: Path):
    for target in links_of(path):
        assert (path.parent / target.partition("#")[0]).exists(), target


def test_the_index_names_every_page():
    index = ROOT / "docs" / "README.md"
    named = {(index.parent / target).resolve() for target in links_of(index)}
    assert set(PAGES) - {index} <= named


def module_exists(name: str) -> bool:
    """Whether `engine.core` is a module, a package, or a name in a module, below simulator/."""
    path = ROOT / "simulator" / Path(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_the_modules_that_the_architecture_names_are_there():
    text = FENCED.sub("", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    packages = "|".join(path.name for path in (ROOT / "simulator").iterdir() if path.is_dir())
    named = re.findall(rf"`(?:simulator\.)?((?:{packages})\.[a-z_0-9.]+)`", text)
    assert len(named) > 40
    wrong = [name for name in named if not FILE.search(name) and not module_exists(name)]
    assert wrong == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(path: Path):
    named = re.findall(
        r"`((?:simulator|tools|tests|topologies|workloads|transports|traces|whatif)/[\w./-]+)`",
        FENCED.sub("", path.read_text(encoding="utf-8")),
    )
    assert [n for n in named if "NAME" not in n and not (ROOT / n).exists()] == []
