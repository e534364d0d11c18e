"""The wheel holds everything that a run needs and works from any directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = ("topologies", "traces", "transports", "whatif", "workloads")
SHIPPED = {".yaml", ".parquet", ".json", ".md"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that nothing left in build/ gets into it."""
    source = tmp_path_factory.mktemp("source")
    for folder in ("simulator", *DATA):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, ignore=skip)
    for name in ("setup.cfg", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel alone into a fresh venv that borrows the libraries of this interpreter."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = str(venv / "bin" / "python")
    install = ["install", "--quiet", "--no-deps", "--no-index", "--no-compile", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True)
    # Only now: pip would take an editable install among the borrowed libraries for its own. A .pth
    # inside a directory that a .pth adds is not read, so that install stays unseen afterwards.
    (site,) = venv.glob("lib/python*/site-packages")
    borrowed = {sysconfig.get_path(key) for key in ("purelib", "platlib")}
    (site / "borrowed.pth").write_text("".join(f"{path}\n" for path in sorted(borrowed)))
    return venv


def run_elsewhere(command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run in a directory that is not the checkout, with nothing but the venv to import from."""
    outside = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        command, cwd=directory, env=outside, capture_output=True, text=True, timeout=60
    )


def test_the_wheel_holds_every_module_and_data_file(wheel: Path):
    expected = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "simulator").rglob("*.py")
    } | {
        "simulator/py.typed",
        "simulator/spec/energy.yaml",
        "simulator/spec/gpus.yaml",
        "simulator/spec/kernels.yaml",
        "simulator/studies/deepseek_v3/deepseek_v3.yaml",
        "simulator/studies/large_ep/large_ep.yaml",
        "simulator/studies/layerwise/layerwise.yaml",
        "simulator/studies/validation/limits.yaml",
        "simulator/studies/mlperf/mlperf.yaml",
        "simulator/studies/prophet/prophet.yaml",
    }
    tables = list((ROOT / "simulator" / "studies" / "validation" / "data").glob("*.csv"))
    assert tables, "validate has no tables"
    expected |= {path.relative_to(ROOT).as_posix() for path in tables}
    for folder in DATA:
        files = {path for path in (ROOT / folder).iterdir() if path.suffix in SHIPPED}
        assert files, f"{folder}/ ships nothing"
        expected |= {f"simulator/data/{folder}/{path.name}" for path in files}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected


def test_every_data_file_is_of_a_kind_that_ships():
    stray = [
        path.relative_to(ROOT).as_posix()
        for folder in DATA
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and (path.suffix not in SHIPPED or path.parent != ROOT / folder)
    ]
    assert stray == [], "setup.cfg, package_data, does not put these into the wheel"


def test_the_wheel_carries_its_licence(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        licences = [name for name in archive.namelist() if name.endswith("LICENSE")]
        assert len(licences) == 1
        assert "Apache License" in archive.read(licences[0]).decode()


def test_the_installed_package_is_the_one_that_runs(venv: Path, tmp_path: Path):
    done = run_elsewhere(
        [str(venv / "bin" / "python"), "-c", "import simulator; print(simulator.__file__)"],
        tmp_path,
    )
    assert done.stdout.startswith(str(venv)), done.stdout + done.stderr


@pytest.mark.parametrize("entry", [["python", "-m", "simulator"], ["moe-simulator"]], ids=" ".join)
def test_the_shipped_names_are_found_from_any_directory(
    venv: Path, tmp_path: Path, entry: list[str]
):
    program, *rest = entry
    done = run_elsewhere([str(venv / "bin" / program), *rest, "list"], tmp_path)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert "nvswitch16" in words
    assert "moe128" in words
    assert "deepep-normal" in words
    assert list(tmp_path.iterdir()) == [], "list must write nothing"
