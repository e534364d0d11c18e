"""Loads without tokens -> a trace of tokens drawn so that they have these loads."""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

import numpy as np

from simulator.errors import InputError
from simulator.routing.importers.report import ImportReport, check_target
from simulator.routing.trace import MAX_IDS_PER_TOKEN, UNKNOWN, TraceWriter
from simulator.spec.units import counted

DEFAULT_TOKENS = 4096
DEFAULT_TOP_K = 8
# Tokens that are drawn do not depend on each other; requests are there for commands that need some.
REQUEST_TOKENS = 64
DRAWN_AT_ONCE = 1 << 22


def import_loads(
    source: str | Path,
    target: str | Path,
    *,
    experts: int | None = None,
    model: str | None = None,
    k: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
) -> ImportReport:
    """Draw a routing trace from a file of loads: each expert of a layer is taken with probability
    k times its share of the layer's load (at most 1), tokens independent of each other.

    4,096 tokens unless `tokens` says otherwise, in requests of 64; `k` experts per token, else what
    the file tells, else 8, or half of the experts where those are fewer than 16. `model` chooses
    in a table of several models. Raises InputError for a file without loads.
    """
    from simulator.routing.loads import is_load_file, loads_of
    from simulator.routing.systematic import draw_systematic, inclusion

    source, target = Path(source), Path(target)
    check_target(target)
    tokens = DEFAULT_TOKENS if tokens is None else tokens
    if not 1 <= tokens <= 2**31 - 1:
        raise InputError(f"--tokens {tokens}: at least 1")
    if not is_load_file(source):
        raise InputError(f"{source}: no file of expert loads; see docs/recordings.md")
    loads = loads_of(source, model=model)
    layers, width = loads.counts.shape
    if experts is not None and experts != width:
        raise InputError(f"{source}: loads of {width} experts, but the model has {experts}")
    notes = list(loads.notes)
    taken = k if k is not None else loads.k
    if taken is None:
        taken = min(DEFAULT_TOP_K, max(1, width // 2))
        notes.append(
            f"top-{taken} taken, which the file does not tell; give --top-k if the model's differs"
        )
    if not 1 <= taken <= width or layers * taken > MAX_IDS_PER_TOKEN:
        raise InputError(f"{source}: top-{taken} of {width} experts cannot be drawn")
    chance = inclusion(loads.counts, taken)
    share = loads.counts / loads.counts.sum(axis=1, keepdims=True)
    over = int((taken * share > 1.0 + 1e-12).any(axis=1).sum())
    if over:
        notes.append(
            f"in {counted(over, 'layer')} an expert has more than 1/{taken} of the load: every "
            "token takes it, and the rest of its load goes to the others"
        )
    notes.append("the tokens are drawn, not recorded: only their loads are those of the file")
    report = ImportReport(
        unit="layers of loads",
        lines_read=layers,
        layers=layers,
        experts=width,
        k=taken,
        experts_from="as in the file",
        drawn=True,
        notes=notes,
    )
    rng = np.random.default_rng([seed, crc32(b"import loads")])
    with TraceWriter(
        target,
        model=model or "unknown",
        layers=layers,
        experts=width,
        k=taken,
        origin=f"drawn from the loads of {source.name}",
    ) as writer:
        step = max(1, DRAWN_AT_ONCE // (layers * taken))
        for start in range(0, tokens, step):
            count = min(step, tokens - start)
            out = np.empty((layers, count, taken), dtype=np.int16)
            draw_systematic(rng, chance, out)
            number = np.arange(start, start + count)
            report.count(out.transpose(1, 0, 2))
            writer.write(
                number // REQUEST_TOKENS,
                number % REQUEST_TOKENS,
                np.full(count, UNKNOWN),
                out.transpose(1, 0, 2),
            )
    report.requests = -(-tokens // REQUEST_TOKENS)
    return report
