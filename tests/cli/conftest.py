"""A small run that many tests look at, and a way to call the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli.running import SMALL, Call, Done

from simulator.cli import main


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Call:
    """Run the command line in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> Done:
        capsys.readouterr()
        status = main(list(argv))
        said = capsys.readouterr()
        return Done(status, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the small run, kept; not to be written to."""
    path = tmp_path_factory.mktemp("kept") / "run"
    assert main(["run", *SMALL, "--out", str(path), "--json"]) == 0
    return path
