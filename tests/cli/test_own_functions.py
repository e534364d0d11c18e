"""Functions of the user's: what they raise, and answers that cannot be used, are one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.running import SMALL, Call

OWN = """
import numpy as np

from simulator.policies.eviction import Eviction


def raises(*given, **named):
    raise LookupError("not today")


def nothing(*given, **named):
    return None


def gives_nothing(setup):
    return lambda *given: None


def evicts_nobody(setup):
    return Eviction(lambda residents, coming: len(residents))


def evicts_the_first(setup):
    return Eviction(lambda residents, coming: np.int64(0))


def beyond(setup):
    return lambda past, future: [[setup.experts]] * len(setup.group)


def for_one_gpu(setup):
    return lambda past, future: [[0]]


def holds(setup):
    return lambda view: -1


def far(setup):
    return lambda view: len(view.open)


def none_recorded(rng, tokens, layers, experts, k, *, previous=None):
    return np.full((tokens, layers, k), -1, dtype=np.int16)


def twice(rng, tokens, layers, experts, k, *, previous=None):
    return np.zeros((tokens, layers, k), dtype=np.int16)


def beyond_all(rng, tokens, layers, experts, k, *, previous=None):
    return np.tile(np.arange(experts, experts + k, dtype=np.int16), (tokens, layers, 1))


def words(rng, count):
    return ["x"] * count
"""

RAISED = "own_functions/here.py:8: LookupError: not today"

SERVED = (
    *("serve", "--topology", "nvswitch16", "--workload", "moe128-serving"),
    *("--set", "model.layers=2", "--set", "requests.limit=4"),
)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`own_functions.here`, to be imported during the test."""
    (tmp_path / "own_functions").mkdir()
    (tmp_path / "own_functions" / "here.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("own_functions.here", "own_functions"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((*SMALL, "--set", "eviction={}:raises"), RAISED),
        ((*SMALL, "--set", "eviction={}:nothing"), "returned None; write a function that returns"),
        ((*SMALL, "--set", "eviction={}:evicts_nobody"), "chose 4 of 4 residents"),
        ((*SMALL, "--set", "prefetch={}:raises"), RAISED),
        ((*SMALL, "--set", "prefetch={}:nothing"), "returned None; write a function that returns"),
        ((*SMALL, "--set", "prefetch={}:gives_nothing"), "answered None; return a list of experts"),
        ((*SMALL, "--set", "prefetch={}:beyond"), "experts, 0 to 127, for each of 16 GPUs"),
        ((*SMALL, "--set", "prefetch={}:for_one_gpu"), "experts, 0 to 127, for each of 16 GPUs"),
        ((*SMALL, "--set", "placement={}:raises"), RAISED),
        ((*SMALL, "--routing", "{}:raises"), RAISED),
        ((*SMALL, "--routing", "{}:nothing"), "returned None, not int16 (128, 2, 4)"),
        ((*SMALL, "--routing", "{}:none_recorded"), "returned [-1, -1, -1, -1] for token 0"),
        ((*SMALL, "--routing", "{}:twice"), "return 4 different experts, 0 to 127"),
        ((*SMALL, "--routing", "{}:beyond_all"), "returned [128, 129, 130, 131] for token 0"),
        ((*SERVED, "--set", "serving.dispatch={}:raises"), RAISED),
        ((*SERVED, "--set", "serving.dispatch={}:nothing"), "returned None; write a function"),
        ((*SERVED, "--set", "serving.dispatch={}:gives_nothing"), "answered None; return the num"),
        ((*SERVED, "--set", "serving.dispatch={}:far"), "answered 16; return the number of a"),
        ((*SERVED, "--set", "serving.dispatch={}:holds"), "holds 4 requests back to the end"),
        ((*SERVED, "--requests", "{}:raises"), RAISED),
        ((*SERVED, "--requests", "{}:words"), "must return 4 times"),
        ((*SERVED, "--set", "requests.prompt={}:words"), "must return 4 numbers"),
        (("cache", "moe128-python", "--capacity", "4", "--policy", "{}:raises"), RAISED),
        (("balance", "moe128-python", "--gpus", "16", "--policy", "{}:raises"), RAISED),
    ],
)
def test_one_line(call: Call, argv: tuple[str, ...], said: str) -> None:
    """Which function, where it failed, and what it should answer."""
    given = [word.replace("{}", "own_functions.here") for word in argv]
    done = call(*given)
    assert done.status == 2
    assert said in done.err
    assert [line for line in done.err.splitlines() if "Error" in line or "error: " in line] == [
        done.err.splitlines()[-1]
    ]
    named = next(word for word in given if "own_functions" in word).rpartition(":")[2]
    assert named in done.err


@pytest.mark.usefixtures("own")
def test_an_index_of_numpy_is_one(call: Call) -> None:
    """A policy that counts with numpy need not convert."""
    assert call(*SMALL, "--set", "eviction=own_functions.here:evicts_the_first").status == 0


def test_a_raise_is_kept_for_those_who_call_the_library(own: None) -> None:
    """The user's traceback is the cause of the error."""
    del own
    from simulator.errors import InputError
    from simulator.routing.laws import parse_law

    law, _ = parse_law("own_functions.here:raises")
    with pytest.raises(InputError) as caught:
        law(None, 1, 1, 4, 2, previous=None)
    assert isinstance(caught.value.__cause__, LookupError)
