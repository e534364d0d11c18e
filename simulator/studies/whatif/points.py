"""The points of a study as cases, and what one of them gives."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any
from zlib import crc32

from simulator.errors import InputError
from simulator.spec.find import shipped
from simulator.spec.load import load_topology, load_workload
from simulator.studies.whatif.metrics import flat
from simulator.studies.whatif.spec import NAMES, Study, Value, override_of

Choice = tuple[int, ...]
"""A point of a study: which value of each axis it has."""


@dataclass(frozen=True)
class Case:
    """One run of a study: `simulator.api`'s arguments. folder: beside which files are looked for
    first; it is no part of what the case is.
    """

    kind: str
    topology: str
    workload: str
    overrides: tuple[str, ...]
    seed: int
    folder: str = ""

    @property
    def key(self) -> str:
        """What the case is, in one line; equal cases have equal keys in all processes."""
        parts = [self.kind, self.topology, self.workload, *self.overrides, f"seed={self.seed}"]
        return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))


Row = dict[str, Any]
"""What became of a case: `key`, `status` (ok, failed: refused as input, error: a fault of the
simulator or of a process), `reason`, `notes` of the run, `seconds`, `figures`."""


def case_of(study: Study, choice: Choice) -> Case:
    """The run at a point."""
    values = [axis.values[at] for axis, at in zip(study.axes, choice, strict=True)]
    return _case(study, values)


def _case(study: Study, values: Iterable[Value]) -> Case:
    keys = dict(study.base)
    for value in values:
        for key, given in value.keys:
            # Who sets a mapping as a whole has the last word on what is in it.
            for below in [name for name in keys if name.startswith(f"{key}.")]:
                del keys[below]
            keys[key] = given
    topology, workload = (keys.pop(name, "") for name in NAMES)
    # A mapping comes before what is below it.
    overrides = tuple(override_of(key, keys[key]) for key in sorted(keys))
    return Case(study.kind, str(topology), str(workload), overrides, study.seed, str(study.folder))


def choices_of(study: Study) -> Iterator[Choice]:
    """The points of a grid, a list or a random draw, in their order. Not of a search."""
    sizes = [len(axis.values) for axis in study.axes]
    if study.points is not None:
        yield from dict.fromkeys(study.points)
    elif study.random is not None:
        yield from _drawn(sizes, study.random.points, study.random.seed)
    else:
        yield from product(*map(range, sizes))


def _drawn(sizes: list[int], points: int, seed: int) -> Iterator[Choice]:
    """Different points, each as likely as any other; all of them if there are no more."""
    import math

    import numpy as np

    total = math.prod(sizes)
    if points >= total:
        yield from product(*map(range, sizes))
        return
    rng = np.random.default_rng([seed, crc32(b"whatif.random")])
    seen: dict[Choice, None] = {}
    while len(seen) < points:
        seen.setdefault(tuple(int(rng.integers(size)) for size in sizes))
    yield from seen


def run_case(case: Case) -> Row:
    """Run a case, in whatever process; what the input layer refuses is a row with its reason."""
    from simulator.api import serve, simulate

    start = time.perf_counter()
    row: Row = {"key": case.key, "status": "ok", "reason": "", "notes": [], "figures": {}}
    topology, workload = (located(name, case.folder) for name in (case.topology, case.workload))
    overrides = [_located_override(text, case.folder) for text in case.overrides]
    try:
        if case.kind == "serve":
            served = serve(topology, workload, overrides=overrides, seed=case.seed)
            summary, notes = served.summary, served.notes
        else:
            ran = simulate(topology, workload, overrides=overrides, seed=case.seed, trace_steps=0)
            summary, notes = ran.summary, ran.notes
        row |= {"figures": flat(summary), "notes": notes}
    except InputError as error:
        row |= {"status": "failed", "reason": str(error).splitlines()[0]}
    except OSError:
        # A full disk, say: no property of the point, and the next one would meet it too.
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        reason = f"internal error: {type(error).__name__}: {error} ({where})"
        row |= {"status": "error", "reason": " ".join(reason.split())}
    row["seconds"] = time.perf_counter() - start
    return row


def located(name: str, folder: str) -> str:
    """A path that lies beside the study, or the text as it is."""
    if name in _shipped() or not name or not folder:
        return name
    beside = Path(folder) / Path(name).expanduser()
    return str(beside) if beside.is_file() else name


@lru_cache(maxsize=1)
def _shipped() -> frozenset[str]:
    kinds = ("topology", "workload", "transport", "trace")
    return frozenset(name for kind in kinds for name in shipped(kind))


def _located_override(text: str, folder: str) -> str:
    """An override whose value may be a path beside the study."""
    key, _, value = text.partition("=")
    if not value.startswith('"'):
        return text
    given = json.loads(value)
    found = located(given, folder)
    return text if found == given else f"{key}={json.dumps(found)}"


def check(study: Study) -> None:
    """Refuse values that no run of the study can use: a wrong key, a file that is not there.

    Each value is tried on the base, and if that refuses it (it may be meant for what another axis
    brings) beside each value of the others. Raises InputError with a line for each that fails.
    """
    found: list[str] = []
    said: set[str] = set()
    first = [axis.values[0] for axis in study.axes]
    loads = _Loads()
    for at, axis in enumerate(study.axes):
        rest = [other for number, other in enumerate(study.axes) if number != at]
        for value in axis.values:
            told = loads.refusal(_case(study, [*first[:at], value, *first[at + 1 :]]))
            others = [[one] for other in rest for one in other.values]
            for beside in [[], *others] if told is not None else []:
                if loads.refusal(_case(study, [*beside, value])) is None:
                    told = None
                    break
            line = told.splitlines()[0] if told is not None else ""
            # What is wrong with the key, or with the base, is wrong with every value.
            if line and line not in said:
                mine = any(key in line for key, _ in value.keys)
                where = value.mark if mine else f"{value.mark.partition(':')[0]}: base"
                found.append(f"{where}: {line}")
                said.add(line)
    if found:
        raise InputError("\n".join(found))


class _Loads:
    """Topologies and workloads that were read, each once, and what was wrong with them."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str, tuple[str, ...]], str | None] = {}

    def refusal(self, case: Case) -> str | None:
        """Why a case cannot be read, None if it can; whether it fits is not looked at."""
        try:
            parted = self._parted(case)
        except InputError as error:
            return str(error)
        for kind, (name, overrides) in parted.items():
            key = (kind, name, overrides)
            if key not in self.seen:
                self.seen[key] = _refusal(kind, name, overrides)
            if self.seen[key] is not None:
                return self.seen[key]
        return None

    def _parted(self, case: Case) -> Mapping[str, tuple[str, tuple[str, ...]]]:
        """What is set of which file."""
        from simulator.spec.load import root_of

        mine: dict[str, list[str]] = {"topology": [], "workload": []}
        for text in case.overrides:
            mine[root_of(text)].append(_located_override(text, case.folder))
        names = {"topology": case.topology, "workload": case.workload}
        return {kind: (located(names[kind], case.folder), tuple(mine[kind])) for kind in mine}


def _refusal(kind: str, name: str, overrides: tuple[str, ...]) -> str | None:
    try:
        if kind == "topology":
            load_topology(name, overrides)
        else:
            load_workload(name, overrides)
    except InputError as error:
        return str(error)
    return None
