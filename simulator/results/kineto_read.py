"""Recorded traces of PyTorch's profiler (Kineto): what each GPU did, and how long steps took.

One file per rank, `*.json` or `*.json.gz`. Kernels are the complete events of the categories below;
which of them communicate is told by their names. Times are whole nanoseconds from the text.
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from simulator.errors import InputError
from simulator.results.intervals import COMMUNICATING, COMPUTING, COPYING, GpuTime, gpu_time
from simulator.results.kineto_json import EventFile

_COPIES = ("gpu_memcpy", "gpu_memset", "memcpy", "memset")
_KERNELS = ("kernel", *_COPIES)
_MARKS = ("gpu_user_annotation", "user_annotation")

# Kernels of NCCL, RCCL, MSCCL, NVSHMEM, DeepEP and the all-reduces of serving engines (vLLM's
# cross_device_reduce, TensorRT-LLM's and FlashInfer's allreduce_fusion, SymmetricMemory's
# one_shot_all_reduce); and, of operators on a CPU, the collectives of torch.distributed.
_COMMUNICATION = re.compile(
    r"nccl|rccl|nvshmem|deep_?ep|gloo:|c10d::|cross_device_reduce|all_?reduce|all_?gather"
    r"|reduce_?scatter|all_?to_?all",
    re.IGNORECASE,
)
_STEP = re.compile(r"ProfilerStep#?\s*(\d+)")
_RANK = re.compile(r"rank[-_]?(\d+)", re.IGNORECASE)

_MOST_NAMES = 20_000
_MOST_NS = 1 << 61
_NO_STEP = 0.01
"""A step shorter than this part of the median is a closing mark, no step."""


@dataclass
class Kernel:
    """All kernels of one name: their sort, how many, how long in all."""

    sort: int
    count: int = 0
    time_s: float = 0.0


@dataclass
class Recorded:
    """What traces hold: GPUs (of all files), steps [files][steps] in s, kernels by name, notes."""

    source: Path
    gpus: list[GpuTime] = field(default_factory=list)
    steps_s: list[list[float]] = field(default_factory=list)
    kernels: dict[str, Kernel] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    cpu: bool = False


@dataclass
class _Device:
    """Kernels of one device, in the order of the file."""

    begin_ns: array[int] = field(default_factory=lambda: array("q"))
    end_ns: array[int] = field(default_factory=lambda: array("q"))
    sort: array[int] = field(default_factory=lambda: array("b"))
    stream: array[int] = field(default_factory=lambda: array("l"))
    streams: dict[str, int] = field(default_factory=dict)


def trace_files(path: Path) -> list[Path]:
    """The traces at `path`, a file or a folder, in natural order; [] if there are none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        return []
    found = [one for one in path.iterdir() if one.name.endswith((".json", ".json.gz"))]
    return sorted((one for one in found if one.is_file()), key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts rank2 before rank10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part)
        for part in re.split(r"(\d+)", path.name)
        if part
    ]


def read_traces(path: Path, cpu: bool = False) -> Recorded:
    """Read the trace at `path`, or all in this folder. Memory: the kernels of one file, 25 B each.

    cpu: take operators on the CPU for kernels, as a profile without a GPU has them.

    What cannot be used is told in `notes`. Errors: InputError if nothing can.
    """
    files = trace_files(path)
    if not files:
        why = "holds no *.json or *.json.gz"
        if not path.is_dir():
            why = "is neither a file nor a folder" if path.exists() else "is missing"
        raise InputError(f"{path}: {why}; a trace or a folder of traces is needed")
    found = Recorded(path, cpu=cpu)
    faults: list[str] = []
    operators = 0
    ranks: dict[int, str] = {}
    for index, file in enumerate(files):
        known = len(found.gpus)
        try:
            operators += _read_file(file, index, found)
            found.files += 1
        except InputError as error:
            faults.append(str(error))
        for rank in dict.fromkeys(gpu.rank for gpu in found.gpus[known:]):
            first = ranks.setdefault(rank, file.name)
            if first != file.name:
                found.notes.append(
                    f"{file.name}: is of rank {rank}, and so is {first}; they count as several GPUs"
                )
    if found.gpus:
        found.notes += faults
        return found
    if operators:
        raise InputError(
            f"{path}: no GPU kernels, but {operators:,} operators on the CPU: it was recorded "
            "without a GPU; --cpu takes them for compute"
        )
    if faults:
        raise InputError("\n".join(faults))
    why = f" ({'; '.join(found.notes)})" if found.notes else ""
    raise InputError(f"{path}: no GPU kernels{why}")


def _read_file(path: Path, index: int, found: Recorded) -> int:
    """Add one file to `found`; how many operators on the CPU it had."""
    events = EventFile(path)
    devices: dict[str, _Device] = {}
    steps: dict[str, dict[int, float]] = {mark: {} for mark in _MARKS}
    operators = bad = 0
    for event in events:
        if not isinstance(event, dict):
            bad += 1
            continue
        if event.get("ph") != "X":
            continue
        category = event.get("cat")
        category = category.lower() if isinstance(category, str) else ""
        operators += category == "cpu_op"
        wanted = category == "cpu_op" if found.cpu else category in _KERNELS
        if not wanted and category not in _MARKS:
            continue
        begin, length = _ns(event.get("ts")), _ns(event.get("dur"))
        if begin is None or length is None or length < 0:
            bad += 1
            continue
        name = str(event.get("name", ""))
        if wanted:
            _add(devices, event, name, category, begin, length, found)
        elif mark := _STEP.match(name):
            steps[category][int(mark[1])] = length / 1e9
    rank = _rank(path, events.head, index)
    if events.cut:
        found.notes.append(f"{path.name}: {events.cut}; the figures are of what is there")
    if bad:
        told = (
            "1 event without a usable time was"
            if bad == 1
            else f"{bad:,} events without a usable time were"
        )
        found.notes.append(f"{path.name}: {told} left out")
    for device, held in devices.items():
        found.gpus.append(_gpu(rank, device, held))
    lengths = list((steps[_MARKS[0]] or steps[_MARKS[1]]).values())
    # Of a file that was cut off, marks may be there without their kernels.
    if lengths and devices and not events.cut:
        least = _NO_STEP * float(np.median(lengths))
        found.steps_s.append([length for length in lengths if length >= least])
    return operators


def _add(
    devices: dict[str, _Device],
    event: dict[str, Any],
    name: str,
    category: str,
    begin: int,
    length: int,
    found: Recorded,
) -> None:
    """Note one kernel."""
    args = event.get("args")
    args = args if isinstance(args, dict) else {}
    device = "cpu" if found.cpu else str(args.get("device", event.get("pid", 0)))
    stream = str(event.get("tid", 0) if found.cpu else args.get("stream", event.get("tid", 0)))
    kernel = found.kernels.get(name)
    if kernel is None:
        sort = sort_of(name, category)
        if len(found.kernels) >= _MOST_NAMES:
            name = "(other names)"
        kernel = found.kernels.setdefault(name, Kernel(sort))
    else:
        sort = kernel.sort
    kernel.count += 1
    kernel.time_s += length / 1e9
    held = devices.setdefault(device, _Device())
    held.begin_ns.append(begin)
    held.end_ns.append(begin + length)
    held.sort.append(sort)
    held.stream.append(held.streams.setdefault(stream, len(held.streams)))


def sort_of(name: str, category: str = "kernel") -> int:
    """What a kernel does, by its name and category: an index into `intervals.SORTS`."""
    if category in _COPIES or name.startswith(("Memcpy", "Memset")):
        return COPYING
    return COMMUNICATING if _COMMUNICATION.search(name) else COMPUTING


def _gpu(rank: int, device: str, held: _Device) -> GpuTime:
    return gpu_time(
        rank,
        device,
        np.frombuffer(held.begin_ns, dtype=np.int64),
        np.frombuffer(held.end_ns, dtype=np.int64),
        np.frombuffer(held.sort, dtype=np.int8),
        np.frombuffer(held.stream, dtype=np.int64),
        list(held.streams),
    )


def _rank(path: Path, head: dict[str, Any], index: int) -> int:
    """Of a file: what it says, else what its name says, else its place in the folder."""
    told = head.get("distributedInfo")
    rank = told.get("rank") if isinstance(told, dict) else None
    if isinstance(rank, int) and not isinstance(rank, bool):
        return rank
    named = _RANK.search(path.name)
    return int(named[1][:9]) if named else index


def _ns(value: object) -> int | None:
    """A time in us, whole or a fraction as text, in whole ns; None for what is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        ns = 1000 * value
    elif isinstance(value, str):
        whole, _, fraction = value.partition(".")
        sign = -1 if whole.startswith("-") else 1
        digits = whole[1:] if sign < 0 else whole
        if digits.isdecimal() and len(digits) < 20 and (fraction.isdecimal() or not fraction):
            ns = 1000 * int(digits) + int((fraction + "000")[:3])
            ns *= sign
        else:
            try:
                number = float(value)
            except ValueError:
                return None
            if not abs(number) < _MOST_NS:
                return None
            ns = round(1000 * number)
    else:
        return None
    return ns if abs(ns) < _MOST_NS else None
