"""A function of the user's: what it raises is told with the place in the user's file."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.spec.functions import imported

TEXT = '''
from typing import NamedTuple

import numpy as np

from simulator.errors import InputError


class Pair(NamedTuple):
    ask: object
    limit: int


def adds(one, two=2):
    """Adds."""
    return one + two


def fails(x):
    raise KeyError("two\\nlines")


def silent(x):
    raise RuntimeError


def in_numpy(x):
    return np.zeros(3).reshape(2, 2)


def makes(x):
    def made(y):
        return 1 / y

    return made


def makes_pair(x):
    return Pair(lambda y: [][y], 4)


def stops(x):
    raise SystemExit(3)


def told(x):
    raise InputError("x: write another")


number = 3
'''


def line_of(text: str) -> int:
    """Where a line of the module stands."""
    return TEXT.splitlines().index(text) + 1


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Make a module of a text that is forgotten after the test; its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(text: str) -> str:
        name = f"of_the_user_{len(list(tmp_path.iterdir()))}_{id(tmp_path)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    yield make
    for name in [name for name in sys.modules if name.startswith("of_the_user_")]:
        del sys.modules[name]


def failure(function: Callable[..., object], *given: object) -> str:
    """What a call says."""
    with pytest.raises(InputError) as caught:
        function(*given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_it_returns_is_returned(module: Callable[[str], str]) -> None:
    """Its arguments, its signature and its name stay."""
    adds = imported("law", f"{module(TEXT)}:adds")
    assert (adds(1), adds(1, two=4)) == (3, 5)
    assert list(inspect.signature(adds).parameters) == ["one", "two"]
    assert (adds.__name__, adds.__doc__) == ("adds", "Adds.")


def test_what_it_raises_is_one_line(module: Callable[[str], str], tmp_path: Path) -> None:
    """The user's own line, also where a library raised."""
    name = module(TEXT)
    file = tmp_path / f"{name}.py"
    for function, line, said in [
        ("fails", '    raise KeyError("two\\nlines")', ": KeyError: 'two\\nlines'"),
        ("silent", "    raise RuntimeError", ": RuntimeError"),
        ("stops", "    raise SystemExit(3)", ": SystemExit: 3"),
        ("in_numpy", "    return np.zeros(3).reshape(2, 2)", ": ValueError: cannot reshape array"),
    ]:
        found = failure(imported("law", f"{name}:{function}"), 1)
        assert found.startswith(f"law '{name}:{function}' failed: {file}:{line_of(line)}{said}")
    assert failure(imported("law", f"{name}:told"), 1) == "x: write another"
    assert "takes from 1 to 2 positional arguments but 3 were given" in failure(
        imported("law", f"{name}:adds"), 1, 2, 3
    )


def test_what_its_functions_raise_is_too(module: Callable[[str], str], tmp_path: Path) -> None:
    """A policy is made by a function: a function itself, or a tuple that holds some."""
    name = module(TEXT)
    file = tmp_path / f"{name}.py"
    made = imported("law", f"{name}:makes")(1)
    assert made(4) == 0.25
    where = f"{file}:{line_of('        return 1 / y')}"
    assert failure(made, 0) == (
        f"law '{name}:makes' failed: {where}: ZeroDivisionError: division by zero"
    )
    pair = imported("law", f"{name}:makes_pair")(1)
    assert pair.limit == 4
    assert "IndexError: list index out of range" in failure(pair.ask, 3)


@pytest.mark.parametrize(
    ("text", "function", "said"),
    [
        (TEXT, "number", "is not a function"),
        (TEXT, "gone", "cannot be imported: module"),
        ("import no_such_thing", "f", "cannot be imported: No module named 'no_such_thing'"),
        ("def f(", "f", "cannot be imported: SyntaxError: '(' was never closed"),
        ("\nraise ValueError('no')", "f", ".py:2: ValueError: no"),
        ("import sys\nsys.exit(3)", "f", ".py:2: SystemExit: 3"),
    ],
)
def test_what_cannot_be_imported(
    module: Callable[[str], str], text: str, function: str, said: str
) -> None:
    """Whatever a module does when it is read."""
    assert said in failure(imported, "law", f"{module(text)}:{function}")
    assert "No module named" in failure(imported, "law", "no.such:law")
    assert "cannot be imported" in failure(imported, "law", ":law")
