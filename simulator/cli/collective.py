"""`collective`: what is asked, checked; a row for each size or number of tokens; the table."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from simulator.errors import InputError
from simulator.results.text import lay_out
from simulator.spec.units import did_you_mean

if TYPE_CHECKING:
    from simulator.engine.transport import Cluster, Operation, Time
    from simulator.spec.transport import Transport

TOKEN_OPS = ("dispatch", "combine")
OPS = ("alltoall", "allreduce", "allgather", "reducescatter", "sendrecv", *TOKEN_OPS)
MAX_ROWS = 1000
MAX_SIZE = 1 << 50  # bytes; beyond, a typing error is likelier
MAX_TOKENS, MAX_HIDDEN = 1 << 20, 1 << 20

# Of nccl-tests (README): -b, -e, -f; of DeepEP's test_low_latency.py: the model's figures.
SIZE_DEFAULTS: dict[str, str] = {"begin": "8", "end": "512M"}
TOKEN_DEFAULTS: dict[str, Any] = {
    "tokens": "128",
    "hidden": 7168,
    "topk": 8,
    "experts": 256,
    "routing": "uniform",
}
FACTOR = "2"
FLAGS = {"begin": "-b", "end": "-e"}

_SIZE = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?)(?P<unit>[KMGT]?)", re.ASCII | re.IGNORECASE)
_POWERS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


class Asked(NamedTuple):
    """The rows that are asked for: sizes in bytes, or tokens per rank and how they are routed."""

    op: str
    points: list[int]
    hidden: int = 0
    topk: int = 0
    experts: int = 0
    routing: str = ""
    seed: int = 0


Row = dict[str, Any]
Progress = Callable[[int, int], None]
Say = Callable[[str], None]


def asked(options: Namespace) -> Asked:
    """What the options ask for; raises InputError for what does not go together or make sense."""
    op = options.op
    if op not in OPS:
        raise InputError(f"--op: no {op!r}{did_you_mean(op, list(OPS))}; known: {', '.join(OPS)}")
    with_tokens = op in TOKEN_OPS
    for name in SIZE_DEFAULTS if with_tokens else (*TOKEN_DEFAULTS, "seed"):
        if getattr(options, name) is not None:
            flag = FLAGS.get(name, f"--{name}")
            what = "--tokens" if with_tokens else "-b and -e"
            raise InputError(f"{flag} does not go with --op {op}, which takes {what}")
    if not with_tokens:
        begin, end = (
            read_size(FLAGS[name], getattr(options, name) or default)
            for name, default in SIZE_DEFAULTS.items()
        )
        if begin > end:
            raise InputError(f"-b {options.begin or begin} is more than -e {options.end or end}")
        return Asked(op, _grown(begin, end, _factor(options)))
    given = {
        name: default if getattr(options, name) is None else getattr(options, name)
        for name, default in TOKEN_DEFAULTS.items()
    }
    for name in ("hidden", "topk", "experts"):
        if given[name] < 1:
            raise InputError(f"--{name} {given[name]}: write 1 or more")
    if given["hidden"] > MAX_HIDDEN:
        raise InputError(f"--hidden {given['hidden']}: write {MAX_HIDDEN} at most")
    if given["topk"] > given["experts"]:
        raise InputError(f"--topk {given['topk']} of {given['experts']} experts: write fewer")
    return Asked(
        op,
        read_tokens(str(given["tokens"]), _factor(options)),
        given["hidden"],
        given["topk"],
        given["experts"],
        given["routing"],
        options.seed or 0,
    )


def read_size(flag: str, text: str) -> int:
    """A number of bytes as nccl-tests writes it: 8, 64K, 512M, 1G (powers of 1024)."""
    match = _SIZE.fullmatch(text.strip())
    size = 0
    if match:
        size = int(float(match["number"]) * (1 << _POWERS[match["unit"].upper()]))
    if not match:
        raise InputError(f"{flag} {text!r} is not a size; write for example 8, 64K, 512M or 1G")
    if not 1 <= size <= MAX_SIZE:
        raise InputError(f"{flag} {text}: write a size from 1 to {MAX_SIZE >> 40}T")
    return size


def read_tokens(text: str, factor: float) -> list[int]:
    """Numbers of tokens: one, several (1,16,128), or from - to (16-128), growing by the factor."""
    first, dash, last = text.partition("-")
    found = [_token_count(part, text) for part in ([first, last] if dash else text.split(","))]
    if dash and found[0] > found[1]:
        raise InputError(f"--tokens {text}: {found[0]} is more than {found[1]}")
    return _grown(found[0], found[1], factor) if dash else found


def _token_count(part: str, text: str) -> int:
    part = part.strip()
    if not (part.isascii() and part.isdigit()):
        raise InputError(f"--tokens {text!r}: write 128, 1,16,128 or 16-128")
    if not 1 <= int(part[:12]) <= MAX_TOKENS:
        raise InputError(f"--tokens {text}: write numbers from 1 to {MAX_TOKENS}")
    return int(part)


def _factor(options: Namespace) -> float:
    text = options.factor or FACTOR
    try:
        factor = float(text)
    except ValueError:
        raise InputError(f"-f {text!r} is not a number; write for example 2") from None
    if not 1.0 < factor < float("inf"):
        raise InputError(f"-f {text}: write a number above 1")
    return factor


def _grown(begin: int, end: int, factor: float) -> list[int]:
    """From begin to end, each the last one times the factor, rounded down, and at least 1 more."""
    found = []
    value = begin
    while value <= end:
        found.append(value)
        if len(found) > MAX_ROWS:
            raise InputError(f"-f {factor:g} gives more than {MAX_ROWS} rows; write more")
        value = max(int(value * factor), value + 1)
    return found


def split_overrides(overrides: list[str]) -> tuple[list[str], list[str]]:
    """`--set` texts for the topology and for the transport.

    A key may begin with `topology.` or `transport.`; without, it is the transport's if only that
    has it. Raises InputError for a key that neither has.
    """
    from simulator.spec.schema import Topology
    from simulator.spec.transport import Transport

    of_topology = list(Topology.model_fields)
    of_transport = [name for name in Transport.model_fields if name not in of_topology]
    on_topology, on_transport = [], []
    for text in overrides:
        first, dot, rest = text.partition(".")
        key = first.partition("=")[0].strip()
        if key == "transport" and dot:
            on_transport.append(rest)
        elif key in of_transport:
            on_transport.append(text)
        elif key in of_topology or key == "topology":
            on_topology.append(text)
        else:
            known = [*of_topology, *of_transport]
            hint = did_you_mean(key, known) or f"; known: {', '.join(known)}"
            raise InputError(f"--set {key}: unknown key {key!r}{hint}")
    return on_topology, on_transport


def rows(
    wanted: Asked,
    cluster: Cluster,
    transport: Transport,
    algorithm: str,
    progress: Progress | None,
    say: Say,
) -> Iterator[tuple[Row, Time]]:
    """The rows, each with how its time was found; raises InputError for what does not fit.

    progress is told of the rows done and their number; say, of what a recording was read as.

    Sizes and bandwidths are those of nccl-tests; for dispatch and combine `bytes` are DeepEP's:
    each (token, expert) choice of a rank counts, whether or not it is sent.
    """
    from simulator.engine.transport import algorithms

    names = algorithms(cluster, transport, wanted.op, algorithm)
    if wanted.op in TOKEN_OPS:
        made = _token_rows(wanted, cluster, transport, names, say)
    else:
        made = _size_rows(wanted, cluster, transport, names)
    for number, found in enumerate(made, start=1):
        if progress is not None:
            progress(number, len(wanted.points))
        yield found


def _size_rows(
    wanted: Asked, cluster: Cluster, transport: Transport, names: list[str]
) -> Iterator[tuple[Row, Time]]:
    from simulator.engine.transport import lay_even

    ranks = cluster.ranks.size
    laid = [lay_even(cluster, transport, wanted.op, name) for name in names]
    for size in wanted.points:
        best, time = _fastest(laid, size)
        row: Row = {"op": wanted.op, "ranks": ranks, "bytes": size}
        yield row | _speeds(wanted.op, ranks, size, best, time), time


def _token_rows(
    wanted: Asked, cluster: Cluster, transport: Transport, names: list[str], say: Say
) -> Iterator[tuple[Row, Time]]:
    from simulator.engine.transport import count_tokens, lay_tokens, token_bytes
    from simulator.policies.placement import contiguous_owner

    ranks = cluster.ranks
    if wanted.experts < ranks.size:
        raise InputError(
            f"--experts {wanted.experts} on {ranks.size} ranks: every rank needs one; "
            "write more experts, or fewer ranks with --ranks"
        )
    owner = contiguous_owner(wanted.experts, ranks.size)
    draw = _drawing(wanted, ranks.size, say)
    for tokens in wanted.points:
        counts = count_tokens(cluster, transport, *draw(tokens), owner)
        laid = [
            lay_tokens(cluster, transport, wanted.op, name, counts, wanted.hidden) for name in names
        ]
        best, time = _fastest(laid, 1.0)
        logical = counts.choices * token_bytes(transport, wanted.op, wanted.hidden)
        row: Row = {"op": wanted.op, "ranks": ranks.size, "tokens": tokens, "bytes": round(logical)}
        yield row | _speeds(wanted.op, ranks.size, logical, best, time), time


def _fastest(laid: list[Operation], size: float) -> tuple[str, Time]:
    from simulator.engine.transport import time_of

    times = [(time_of(operation, size), operation.algorithm) for operation in laid]
    time, name = min(times, key=lambda found: found[0].seconds)
    if time.seconds <= 0.0:
        raise InputError("nothing is sent and the transport has no launch time: no bandwidth")
    return name, time


def _speeds(op: str, ranks: int, size: float, algorithm: str, time: Time) -> Row:
    from simulator.engine.collectives import bus_factor

    algbw = size / time.seconds / 1e9
    return {
        "algorithm": algorithm,
        "time_us": time.seconds * 1e6,
        "algbw_GBps": algbw,
        "busbw_GBps": algbw * bus_factor(op, ranks),
    }


def _drawing(wanted: Asked, ranks: int, say: Say) -> Callable[[int], tuple[Any, Any]]:
    """A function from tokens per rank to (ids int16 [tokens, k], source rank int32 [tokens])."""
    from simulator.routing.batches import check_trace, replay
    from simulator.spec.choices import FAMILIES, routing_law

    if routing_law(wanted.routing) is None:
        from simulator.routing.importers import open_trace
        from simulator.routing.loads import law_of
        from simulator.routing.trace import read_info
        from simulator.spec.find import find, missing, shipped

        if wanted.routing not in shipped("trace") and not _is_file(wanted.routing):
            raise InputError(missing("trace", wanted.routing, tuple(FAMILIES["routing"])))
        found = find("trace", wanted.routing)
        law = law_of(wanted.routing, found)
        if law is not None:
            return _law_draws(law, wanted, ranks)
        path = open_trace(found, say)
        check_trace(read_info(path), wanted.experts, wanted.topk, path)

        def replayed(tokens: int) -> tuple[Any, Any]:
            batch = next(replay(path, ranks, tokens, "prefill", 1))
            return batch.layer_ids(0), batch.source_gpu

        return replayed

    return _law_draws(wanted.routing, wanted, ranks)


def _law_draws(law: str, wanted: Asked, ranks: int) -> Callable[[int], tuple[Any, Any]]:
    from simulator.routing.batches import synthesize

    def drawn(tokens: int) -> tuple[Any, Any]:
        given = (wanted.experts, wanted.topk, wanted.seed)
        batch = next(synthesize(law, ranks, tokens, "decode", 1, *given))
        return batch.layer_ids(0), batch.source_gpu

    return drawn


def _is_file(text: str) -> bool:
    from pathlib import Path

    return Path(text).expanduser().is_file()


COLUMNS = ("op", "ranks", "tokens", "bytes", "algorithm", "time_us", "algbw_GBps", "busbw_GBps")


def render(found: list[Row]) -> str:
    """The rows as a table of at most 80 columns."""
    columns = [name for name in COLUMNS if name in found[0]]
    cells = [[_cell(row[name]) for name in columns] for row in found]
    right = [i for i, name in enumerate(columns) if name not in ("op", "algorithm")]
    return lay_out(columns, cells, right=right)


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def note(times: list[Time]) -> str:
    """What is to be said of times that are not exact; empty if all are."""
    if any(time.network == "coflow" for time in times):
        return (
            "times are approximate: the flows of a phase are taken to end together "
            "(too many for the exact network)"
        )
    slack_s = max(time.slack_s for time in times)
    if slack_s > 0.0:
        return f"times are at most {slack_s * 1e6:.3g} us below the exact ones (equal flows)"
    return ""
