"""From what the user wrote to the requests of a run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np

from simulator.errors import InputError
from simulator.requests.laws import SCENARIOS, draw_arrivals, draw_lengths
from simulator.requests.readers import read_requests
from simulator.requests.requests import Int64s, Requests, plain_requests
from simulator.spec.requests import (
    ARRIVAL_LAWS,
    EMPIRICAL,
    Law,
    RequestsSpec,
    arrival_examples,
    arrival_law,
    length_law,
)
from simulator.spec.units import did_you_mean


def load_requests(spec: RequestsSpec, seed: int, base_dir: str | Path = ".") -> Requests:
    """The requests of a run: read or drawn, then window, rate, count, lengths and priorities.

    base_dir: where relative file names start. One random stream per purpose: another rate or
    window leaves request i its lengths and priority. Raises InputError with one line.
    """
    law = arrival_law(spec.source)
    found = _recorded(spec, Path(base_dir)) if law is None else _drawn(spec, law, seed)
    found = _cut(spec, found)
    found = _lengths(spec, found, seed, Path(base_dir))
    return _prioritised(spec, found, seed)


def stream(seed: int, name: str) -> np.random.Generator:
    """The random stream of one purpose."""
    return np.random.default_rng([seed, crc32(name.encode())])


def _recorded(spec: RequestsSpec, base_dir: Path) -> Requests:
    path = base_dir / Path(spec.source).expanduser()
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "no such file"
        hint = did_you_mean(spec.source.partition(":")[0], list(ARRIVAL_LAWS))
        laws = ", ".join(arrival_examples())
        raise InputError(f"requests {spec.source!r}: {what}{hint}; laws: {laws}")
    return read_requests(
        path, skip_bad=spec.skip_bad, sort=spec.sort, block_tokens=spec.block_tokens
    )


def _drawn(spec: RequestsSpec, law: Law, seed: int) -> Requests:
    end_s = math.inf if spec.end_s is None else spec.end_s
    arrival_s = draw_arrivals(
        law, lambda: stream(seed, "arrivals"), spec.limit, spec.start_s, end_s
    )
    notes = [SCENARIOS[law.name]] if law.name in SCENARIOS else []
    one = np.ones(len(arrival_s), dtype=np.int32)
    found = plain_requests(arrival_s, one, one, spec.source, notes)
    if law.name == "singlestream":
        return replace(found, concurrency=1)
    if law.name == "closed":
        return replace(found, concurrency=int(law.arguments[0]))
    return found


def _cut(spec: RequestsSpec, found: Requests) -> Requests:
    if spec.start_s > 0 or spec.end_s is not None:
        end_s = math.inf if spec.end_s is None else spec.end_s
        inside = found.window(spec.start_s, end_s)
        if not len(inside):
            last = f"the last arrives at {found.arrival_s[-1]:g} s" if len(found) else "none at all"
            raise InputError(
                f"requests {spec.source!r}: none arrive from {spec.start_s:g} to {end_s:g} s "
                f"({last}); choose another window"
            )
        found = inside
    if spec.rate_scale != 1.0:
        found = found.scaled(spec.rate_scale)
    return found if spec.limit is None else found.first(spec.limit)


def _lengths(spec: RequestsSpec, found: Requests, seed: int, base_dir: Path) -> Requests:
    n = len(found)
    laws = {
        key: length_law(text)
        for key, text in (("prompt", spec.prompt), ("output", spec.output))
        if text is not None
    }
    if not laws:
        return found
    together = len(laws) == 2 and laws["prompt"] == laws["output"]
    drawn: dict[str, Int64s] = {}
    notes = list(found.notes)
    for key, law in laws.items():
        name = "lengths" if together and law.name == EMPIRICAL else key
        rng = stream(seed, name)
        if law.name == EMPIRICAL:
            drawn[key] = _from_file(law, key, rng, n, base_dir)
            continue
        drawn[key], cut = draw_lengths(law, rng, n)
        if cut:
            notes.append(f"{cut:,} {key} lengths were cut to {drawn[key].max():,} tokens")
    found = replace(found, notes=notes)
    if "output" in drawn:
        found = replace(found, output_tokens=drawn["output"].astype(np.int32))
    if "prompt" not in drawn:
        return found
    if len(found.block_hash):
        notes.append("the recorded prefix blocks belong to other prompt lengths and were dropped")
    return replace(
        found,
        prompt_tokens=drawn["prompt"].astype(np.int32),
        block_ptr=np.zeros(n + 1, dtype=np.int64),
        block_hash=np.empty(0, dtype=np.int64),
        block_tokens=0,
    )


def _from_file(law: Law, key: str, rng: np.random.Generator, n: int, base_dir: Path) -> Int64s:
    """Lengths of n rows of a recorded file, drawn with replacement."""
    recorded = read_requests(base_dir / Path(law.file or "").expanduser(), sort=True)
    rows = (rng.random(n) * len(recorded)).astype(np.int64)
    lengths = recorded.prompt_tokens if key == "prompt" else recorded.output_tokens
    return lengths[rows].astype(np.int64)


def _prioritised(spec: RequestsSpec, found: Requests, seed: int) -> Requests:
    if not spec.priority_fractions:
        return found
    edges = np.cumsum(spec.priority_fractions)
    # The last edge is 1 but for rounding, and no draw may fall beyond it.
    edges[-1] = 1.0
    drawn = np.searchsorted(edges, stream(seed, "priorities").random(len(found)), side="right")
    return replace(found, priority=drawn.astype(np.int16))
