"""Imports go only to the floors that the table of docs/architecture.md allows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "simulator"
# Below floor 0: everything may import these, and they import nothing of ours.
CELLAR = {"simulator.errors", "simulator.compiled"}
OUTSIDE = {"tests", "tools", "benchmarks"}
HEAVY = ("networkx", "numba", "pandas", "plotly", "pyarrow")

ROW = re.compile(r"^\| (?P<floor>\d+) \| `(?P<package>simulator\.\w+)` \|.*\| (?P<may>[^|]+) \|$")


def read_table(text: str) -> dict[str, tuple[int, set[int]]]:
    """Read the floors table: package -> (its floor, the floors it may import)."""
    rows = [match for line in text.splitlines() if (match := ROW.match(line))]
    floors = {int(row["floor"]) for row in rows}
    table = {}
    for row in rows:
        may = row["may"].strip()
        if may == "-":
            allowed = set()
        elif may == "all":
            allowed = set(floors)
        else:
            first, _, last = may.partition("-")
            allowed = set(range(int(first), int(last or first) + 1))
        table[row["package"]] = (int(row["floor"]), allowed)
    return table


TABLE = read_table((ROOT / "docs" / "architecture.md").read_text())


def module_name(path: Path) -> str:
    """Give the dotted name of a source file: simulator/spec/__init__.py -> simulator.spec."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, module: str, is_package: bool = False) -> set[str]:
    """Name everything that a module imports at any depth, also inside functions, dotted in full.

    `from a import b` counts as `a.b`, since b may be a module.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                up = node.level - 1 if is_package else node.level
                parts = module.split(".")
                base = parts[: len(parts) - up] + base
            names |= {".".join([*base, alias.name]) for alias in node.names}
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).rpartition(".")[2]
            first = node.args[0]
            if called in {"import_module", "__import__"} and isinstance(first, ast.Constant):
                names.add(str(first.value))
    return names


def fault(module: str, target: str) -> str | None:
    """Say what is wrong with `module` importing `target`, or None."""
    line = f"{module} imports {target}: "
    if target.partition(".")[0] in OUTSIDE:
        return line + "nothing in simulator/ may need what is not shipped with it"
    if target.partition(".")[0] != "simulator":
        return None
    if target == "simulator.__version__":
        return None
    source, destination = (".".join(name.split(".")[:2]) for name in (module, target))
    if destination in CELLAR and source not in CELLAR:
        return None
    if source == "simulator":  # hands out the public names when they are asked for
        known = ("simulator.library", "simulator.errors")
        return None if destination in known else line + "the library has the names"
    if source == "simulator.__main__":
        return None if destination == "simulator.cli" else line + "it may only start the cli"
    if source not in TABLE:
        return line + f"{source} stands below floor 0 and may import nothing of simulator"
    if destination not in TABLE:
        return line + f"{destination} stands on no floor of docs/architecture.md"
    if source == destination:
        return None
    if destination == "simulator.cli":
        return line + "the command line is the top"
    floor, allowed = TABLE[source]
    if TABLE[destination][0] in allowed:
        return None
    return line + f"floor {floor} may import {sorted(allowed)}, not {TABLE[destination][0]}"


MODULES = sorted(PACKAGE.rglob("*.py"))


def test_the_table_is_read_in_full():
    floors = {package.partition(".")[2]: floor for package, (floor, _) in TABLE.items()}
    assert floors["spec"] == 0
    assert floors["cluster"] == floors["model"] == floors["routing"] == 1
    assert floors["policies"] < floors["engine"] < floors["results"] < floors["cli"]
    assert TABLE["simulator.spec"][1] == set()
    assert TABLE["simulator.engine"][1] == {0, 1, 2}
    assert TABLE["simulator.results"][1] == {0}, "results work from files, not from the engine"
    assert max(TABLE.values())[0] == TABLE["simulator.cli"][0]


def test_no_package_may_import_its_own_floor_or_a_higher_one():
    for package, (floor, allowed) in TABLE.items():
        if package != "simulator.cli":
            assert all(lower < floor for lower in allowed), package


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_down(path: Path):
    module = module_name(path)
    targets = imported(path.read_text(), module, path.name == "__init__.py")
    faults = [line for target in sorted(targets) if (line := fault(module, target))]
    assert not faults, "\n".join(faults)


def test_every_module_stands_on_a_floor():
    known = {*TABLE, *CELLAR, "simulator", "simulator.__main__"}
    places = {".".join(module_name(path).split(".")[:2]) for path in MODULES}
    assert places - known == set()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("simulator.spec.units", "from simulator.cluster import graph"),
        ("simulator.model.bytes", "from simulator.routing.laws import zipf"),
        ("simulator.policies.prefetch", "def f():\n    import simulator.engine.step"),
        ("simulator.results.chrome", "from simulator.engine import step"),
        ("simulator.results.chrome", "from ..engine import step"),
        ("simulator.results.chrome", "import_module('simulator.engine')"),
        ("simulator.engine.step", "from simulator import cli"),
        ("simulator.engine.step", "from simulator.cli import main"),
        ("simulator.engine.step", "from simulator.extras import thing"),
        ("simulator.engine.step", "from tests.forms import alltoall"),
        ("simulator.engine.step", "import benchmarks"),
        ("simulator.errors", "from simulator.spec import units"),
        ("simulator.compiled", "from simulator.errors import InputError"),
        ("simulator.__main__", "from simulator.engine import step"),
    ],
)
def test_an_import_upward_is_found(module: str, source: str):
    assert [line for target in imported(source, module) if (line := fault(module, target))]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("simulator.spec.units", "from simulator.errors import InputError"),
        ("simulator.spec.units", "from .schema import Model"),
        ("simulator.engine.network", "from simulator.compiled import compiled"),
        ("simulator.engine.step", "from simulator.policies.placement import PLACEMENTS"),
        ("simulator.engine.step", "import simpy\nfrom ..cluster import routes"),
        ("simulator.results.analyzer", "from simulator.spec.load import read"),
        ("simulator.engine.step", "from simulator.runfiles.spans import SpanWriter"),
        ("simulator.api", "from simulator import __version__"),
        ("simulator.cli", "from simulator.results import analyzer"),
        ("simulator.__main__", "from simulator.cli import main"),
    ],
)
def test_an_import_downward_is_allowed(module: str, source: str):
    assert [fault(module, target) for target in imported(source, module)].count(None) == len(
        imported(source, module)
    )


def test_the_command_line_starts_light():
    code = f"import sys, simulator.cli; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [], "imported at start-up; import them where they are used"
