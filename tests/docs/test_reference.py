"""docs/reference.md is what tools/reference.py writes, and leaves nothing out."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from simulator.cli import COMMANDS
from simulator.policies.eviction import EVICTIONS
from simulator.spec.schema import Serving, Workload

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "tools" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(heading: str) -> dict[str, list[str]]:
    """The table under a heading, by its first column."""
    section = PAGE.split(f"\n### {heading}\n", 1)[1].split("\n### ", 1)[0].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return {first.strip().strip("`"): [cell.strip() for cell in rest] for first, *rest in cells}


def test_the_page_is_what_the_tool_writes(reference):
    assert reference.page() == PAGE, "python tools/reference.py writes it anew"


def test_every_command_has_its_arguments():
    for name in COMMANDS:
        assert rows(f"`{name}`"), name
    assert {"--topology T", "--seed N", "--json"} <= set(rows("`run`"))


def test_units_bounds_and_defaults_are_told():
    serving = rows("Serving")
    assert set(serving) == {field.alias or name for name, field in Serving.model_fields.items()}
    assert serving["max_seqs"][:2] == ["whole, from 1 to 65,536", "`256`"]
    assert serving["timeout"][:2] == ["time or `null`", "`null`"]
    assert rows("LinkRate")["bandwidth"][:2] == ["bandwidth", "required"]
    assert rows("Cost energy")["electricity"][:2] == ["tariff", "`0.1 $/kWh`"]


def test_nearly_every_key_of_a_workload_has_a_meaning():
    meant = {key for key, (_, _, meaning) in rows("Workload").items() if meaning}
    wanted = {field.alias or name for name, field in Workload.model_fields.items()}
    # What has a section of its own, or needs no words.
    assert wanted - meant <= {"name", "description", "sources", "model", "traffic", "routing"}


def test_names_come_with_what_their_functions_say():
    evictions = rows("`eviction`, and `--policy` of `cache`")
    assert set(evictions) == set(EVICTIONS)
    assert evictions["lru"] == ["The least recently used."]


def test_every_link_within_the_page_leads_somewhere():
    titles = re.findall(r"^### (.*)$", PAGE, flags=re.M)
    anchors = [title.lower().replace("`", "").replace(" ", "-") for title in titles]
    for target in re.findall(r"\]\(#([^)]*)\)", PAGE):
        assert anchors.count(target) == 1, target


def test_what_a_docstring_says_is_one_sentence(reference):
    def law() -> None:
        """Ranks 1, 2, ... are dealt. And more."""

    assert reference.first_sentence(law) == "Ranks 1, 2, ... are dealt."
