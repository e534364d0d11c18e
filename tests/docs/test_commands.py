"""Every command shown in the README and in docs/ runs and prints what is shown under it.

A fenced block of kind `console` holds commands behind `$ `, each followed by its output. Those
that begin with `python -m simulator`, or run a script of the document (`python NAME`), are run, in
order, in one fresh directory for each document.
Under a command the whole output is expected, line for line; a line `...` stands for any number of
lines; no output shown means that it is not looked at. A block marked `console exit=2` shows a
refusal: that exit status is expected, and its lines are those of stderr. A block of any kind
marked `file=NAME` is first written to NAME in the directory, for commands that read it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>```+)(?P<info>[^`]*)$")


class Block(NamedTuple):
    """A fenced block: its kind, its marks (exit=2 -> {"exit": "2"}), its lines, where it is."""

    kind: str
    marks: dict[str, str]
    lines: list[str]
    line: int


class Command(NamedTuple):
    """One `$ ` line: what is typed, the exit status and output lines expected, where it is."""

    text: str
    status: int
    shown: list[str]
    line: int


def blocks_of(text: str) -> list[Block]:
    """Find the fenced blocks of a Markdown text, also indented ones (in a list)."""
    blocks: list[Block] = []
    closing = ""
    indent = 0
    for number, line in enumerate(text.splitlines(), start=1):
        if closing:
            if line.strip() == closing:
                closing = ""
            else:
                blocks[-1].lines.append(line[indent:].rstrip())
        elif match := FENCE.match(line):
            kind, *marks = match["info"].split() or [""]
            closing, indent = match["ticks"], len(match["indent"])
            pairs = dict(mark.split("=", 1) for mark in marks)
            blocks.append(Block(kind, pairs, [], number))
    if closing:
        raise ValueError(f"the block that opens in line {blocks[-1].line} is not closed")
    return blocks


def commands_of(block: Block) -> list[Command]:
    """Split a console block into its commands; a line ending in a backslash goes on."""
    commands: list[Command] = []
    status = int(block.marks.get("exit", "0"))
    continued = False
    for number, line in enumerate(block.lines, start=block.line + 1):
        if continued:
            text = commands[-1].text[:-1] + line.removeprefix("> ").strip()
            commands[-1] = commands[-1]._replace(text=text)
        elif line.startswith("$ "):
            commands.append(Command(line.removeprefix("$ "), status, [], number))
        elif commands:
            commands[-1].shown.append(line)
        else:
            raise ValueError(f"line {number}: output before the first command")
        continued = (continued or line.startswith("$ ")) and line.endswith("\\")
    return commands


def is_run(text: str, scripts: set[str]) -> bool:
    """Whether a command is one of the simulator's, or a script that the document has."""
    return text.startswith("python -m simulator") or text.removeprefix("python ") in scripts


def matches(shown: list[str], printed: list[str]) -> bool:
    """Whether the printed lines are those shown, `...` standing for any lines, also none."""
    if not shown:
        return not printed
    if shown[0] == "...":
        return any(matches(shown[1:], printed[skip:]) for skip in range(len(printed) + 1))
    return bool(printed) and shown[0] == printed[0] and matches(shown[1:], printed[1:])


def tidy(lines: list[str]) -> list[str]:
    """Drop what Markdown cannot show: blanks at line ends, empty lines at the start and end."""
    return "\n".join(line.rstrip() for line in lines).strip("\n").splitlines()


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@cache
def read_document(path: Path) -> tuple[list[Block], list[Command]]:
    """Read a document's blocks and those of its commands that are run."""
    blocks = blocks_of(path.read_text()) if path.exists() else []
    found = [c for block in blocks if block.kind == "console" for c in commands_of(block)]
    scripts = {block.marks["file"] for block in blocks if "file" in block.marks}
    return blocks, [command for command in found if is_run(command.text, scripts)]


CASES = [
    pytest.param(path, number, id=f"{path.relative_to(ROOT)}:{command.line}")
    for path in DOCUMENTS
    for number, command in enumerate(read_document(path)[1])
]


@pytest.fixture(scope="module")
def outcomes():
    """Run a document's commands up to a number, each once, and give the outcome of that one."""
    folders: dict[Path, TemporaryDirectory[str]] = {}
    done: dict[Path, list[subprocess.CompletedProcess[str]]] = {}
    environment = os.environ | {
        "COLUMNS": "80",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }

    def outcome(path: Path, number: int) -> subprocess.CompletedProcess[str]:
        blocks, commands = read_document(path)
        if path not in folders:
            folders[path] = TemporaryDirectory()
            done[path] = []
            for block in blocks:
                if "file" in block.marks:
                    text = "\n".join([*block.lines, ""])
                    file = Path(folders[path].name) / block.marks["file"]
                    file.parent.mkdir(exist_ok=True)
                    file.write_text(text)
        for command in commands[len(done[path]) : number + 1]:
            done[path].append(
                subprocess.run(
                    ["bash", "-c", command.text],
                    cwd=folders[path].name,
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=300,
                )
            )
        return done[path][number]

    yield outcome
    for folder in folders.values():
        folder.cleanup()


@pytest.mark.parametrize(("path", "number"), CASES)
def test_the_documented_command_runs(path: Path, number: int, outcomes):
    command = read_document(path)[1][number]
    done = outcomes(path, number)
    assert done.returncode == command.status, f"$ {command.text}\n{done.stdout}{done.stderr}"
    shown = tidy(command.shown)
    if shown:
        printed = tidy((done.stderr if command.status else done.stdout).splitlines())
        assert matches(shown, printed), "\n".join([f"$ {command.text}", *printed])


def test_the_readme_shows_the_main_job():
    words = [shlex.split(command.text) for command in read_document(ROOT / "README.md")[1]]
    assert any({"nvswitch16", "moe128"} <= set(command) for command in words)


EXAMPLE = """\
Text.

```yaml file=mine.yaml
gpus: 2
```

1. In a list:

   ```console exit=2
   $ python -m simulator --topology \\
   >   nowhere
   error: no topology
   ...
   $ ls
   mine.yaml
   ```
"""


def test_blocks_and_commands_are_found_where_they_stand():
    first, second = blocks_of(EXAMPLE)
    assert first == Block("yaml", {"file": "mine.yaml"}, ["gpus: 2"], 3)
    assert (second.kind, second.marks, second.line) == ("console", {"exit": "2"}, 9)
    command, listing = commands_of(second)
    assert is_run(command.text, set())
    assert not is_run(listing.text, set())
    assert shlex.split(command.text) == ["python", "-m", "simulator", "--topology", "nowhere"]
    assert command == Command(command.text, 2, ["error: no topology", "..."], 10)


def test_scripts_of_the_document_are_run_and_no_others():
    assert is_run("python convert.py", {"convert.py"})
    assert not is_run("python tools/measure_gpu.py", {"convert.py"})
    assert not is_run("ls convert.py", {"convert.py"})


def test_a_block_left_open_is_an_error():
    with pytest.raises(ValueError, match="opens in line 2"):
        blocks_of("\n```console\n$ ls\n")


@pytest.mark.parametrize(
    ("shown", "printed", "agree"),
    [
        ("a b", "a b", True),
        ("a b", "a b c", False),
        ("a", "a b", False),
        ("a ...", "a b c", True),
        ("a ...", "a", True),
        ("... c", "a b c", True),
        ("... c", "a b", False),
        ("a ... c ... e", "a b c d e", True),
        ("a ... c ... e", "a c e f", False),
        ("a", "", False),
    ],
)
def test_shown_lines_are_compared_exactly(shown: str, printed: str, agree: bool):
    assert matches(shown.split(), printed.split()) is agree
