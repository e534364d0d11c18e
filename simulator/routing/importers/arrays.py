"""Recordings as numpy arrays: vLLM's routed experts, and Hugging Face's router logits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.errors import InputError
from simulator.routing.importers.boxes import iter_npz, read_npy
from simulator.routing.importers.drawn import import_loads
from simulator.routing.importers.report import ImportReport, check_target
from simulator.routing.importers.writing import Part, write_parts
from simulator.routing.trace import UNKNOWN

Array = npt.NDArray[Any]

# A model of k experts per token has no more of them.
MAX_TOP_K = 64
DEFAULT_TOP_K = 8
# Tokens of an array looked at to tell ids from counts.
SNIFFED_TOKENS = 256


def iter_arrays(path: Path) -> Iterator[tuple[str, Array]]:
    """Yield (name, array) of an .npy or .npz file."""
    with path.open("rb") as file:
        single = file.read(6) == b"\x93NUMPY"
    if single:
        yield path.stem, read_npy(path)
    else:
        yield from iter_npz(path)


def looks_routed(array: Array) -> bool:
    """Whether an array [tokens, layers, k] may hold expert ids: few per layer, no one twice."""
    if array.ndim != 3 or array.dtype.kind not in "iu" or not 1 <= array.shape[2] <= MAX_TOP_K:
        return False
    some = np.asarray(array[:SNIFFED_TOKENS])
    if some.size == 0 or some.min() < -1 or some.max() > 32_766:
        return False
    if array.shape[2] == 1:
        return True
    ordered = np.sort(some, axis=2)
    twice = (ordered[:, :, 1:] == ordered[:, :, :-1]) & (ordered[:, :, 1:] >= 0)
    return float(twice.any(axis=2).mean()) < 0.01


def import_vllm(
    source: str | Path,
    target: str | Path,
    *,
    experts: int | None = None,
    model: str | None = None,
    k: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
) -> ImportReport:
    """Convert vLLM's `routed_experts` to a routing trace: integers [tokens, layers, k] in an .npy
    or .npz file, each array one request, tokens in order, -1 where nothing was recorded.

    A file of expert load windows ([windows, layers, experts]) is drawn from (`import_loads`; k,
    tokens and seed are for that). Raises InputError for other arrays, and for ids that are no
    experts or twice in a layer of a token.
    """
    from simulator.routing.importers.recognise import recognise

    source, target = Path(source), Path(target)
    check_target(target)
    if recognise(source) == "loads":
        return import_loads(
            source, target, experts=experts, model=model, k=k, tokens=tokens, seed=seed
        )
    if k is not None or tokens is not None:
        raise InputError(
            f"{source}: holds recorded tokens; --top-k and --tokens are for drawing from loads"
        )
    report = ImportReport(unit="arrays")

    def parts() -> Iterator[Part]:
        for number, (name, array) in enumerate(iter_arrays(source)):
            report.lines_read = number + 1
            count = array.shape[0] if array.ndim else 0
            yield Part(
                number, np.arange(count), np.full(count, UNKNOWN, np.int8), array, f"array {name!r}"
            )

    return write_parts(source, target, parts, report, experts=experts, model=model)


def import_huggingface(
    source: str | Path,
    target: str | Path,
    *,
    experts: int | None = None,
    model: str | None = None,
    k: int | None = None,
) -> ImportReport:
    """Convert Hugging Face `router_logits` to a routing trace of one request.

    An .npz file with a float array [tokens, experts] per layer (in the order of the numbers in
    their names, else of the file), or an .npz or .npy file with one of [layers, tokens, experts].
    The k experts of the largest logits are taken, best first; without `k` it is 8, or half of the
    experts where those are fewer than 16, and the report says so. Raises InputError for other
    shapes and for logits that are not numbers (NaN).
    """
    source, target = Path(source), Path(target)
    check_target(target)
    layers = _logits(source)
    tokens, width = layers[0].shape
    if experts is not None and experts != width:
        raise InputError(f"{source}: logits of {width} experts, but the model has {experts}")
    taken = k if k is not None else min(DEFAULT_TOP_K, max(1, width // 2))
    if not 1 <= taken <= min(width, MAX_TOP_K):
        raise InputError(f"{source}: --top-k {taken} of {width} experts: must be 1 to {width}")
    report = ImportReport(unit="layers of logits", lines_read=len(layers))
    if k is None:
        report.notes.append(
            f"top-{taken} taken, which the file does not tell; give --top-k if the model's differs"
        )

    def parts() -> Iterator[Part]:
        step = max(1, (1 << 22) // (len(layers) * width))
        for start in range(0, tokens, step):
            chosen = [
                _best(source, at, part[start : start + step], taken, start)
                for at, part in enumerate(layers)
            ]
            ids = np.stack(chosen, axis=1)
            yield Part(
                0,
                np.arange(start, start + len(ids)),
                np.full(len(ids), UNKNOWN, np.int8),
                ids,
                f"tokens {start} to {start + len(ids) - 1}",
            )

    return write_parts(source, target, parts, report, experts=width, model=model)


def _logits(source: Path) -> list[Array]:
    """The logits of each layer, [tokens, experts]."""
    found = list(iter_arrays(source))
    if len(found) == 1 and found[0][1].ndim == 3:
        layers = [found[0][1][at] for at in range(len(found[0][1]))]
    else:
        numbers = [re.findall(r"\d+", name) for name, _ in found]
        if all(numbers):
            found = [
                found[at]
                for at in sorted(
                    range(len(found)), key=lambda at: ([int(number) for number in numbers[at]], at)
                )
            ]
        layers = [array for _, array in found]
    shapes = {array.shape for array in layers}
    right = all(array.ndim == 2 and array.dtype.kind == "f" for array in layers)
    if len(shapes) != 1 or not right or layers[0].size == 0:
        some = sorted(shapes)[:3]
        raise InputError(
            f"{source}: router logits must be floats [tokens, experts], of one shape in all "
            f"layers; found {', '.join(str(list(shape)) for shape in some) or 'no array'}"
        )
    return layers


def _best(source: Path, layer: int, logits: Array, k: int, first: int) -> Array:
    """Ids int16 [tokens, k] of the largest logits, best first, ties to the lower id."""
    bad = np.isnan(logits).any(axis=1)
    if bad.any():
        raise InputError(f"{source}: layer {layer}, token {first + int(np.argmax(bad))}: NaN logit")
    order = np.argsort(-np.asarray(logits, dtype=np.float64), axis=1, kind="stable")
    return order[:, :k].astype(np.int16)
