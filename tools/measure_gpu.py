#!/usr/bin/env python3
"""Time GEMM, grouped GEMM, a plain MoE, attention and copies on this GPU; fit a profile to them.

    tools/measure_gpu.py measure rows.csv          needs torch and an NVIDIA GPU, about 5 minutes
    tools/measure_gpu.py fit rows.csv profile.yaml needs neither
    python -m simulator ... --set gpu.profile=profile.yaml

Every shape but the copies over a link is captured into one CUDA graph of 20 or more runs over
random data, whose weights (for attention: caches) take turns so that none is still in the L2 cache;
after 3 warm-up replays the median of 10, timed with CUDA events, is divided by the runs. Clocks are
not set but told in the table, before and after. Exit codes: 0 written, 2 bad input or no GPU.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from simulator.cli.fitting import write  # noqa: E402
from simulator.cli.flows import check_fresh  # noqa: E402
from simulator.errors import InputError  # noqa: E402
from simulator.spec import catalogue  # noqa: E402
from simulator.spec.schema import Gpu  # noqa: E402
from simulator.spec.units import did_you_mean, parse_quantity  # noqa: E402
from simulator.studies.validation.gpu_profile import fit_profile, profile_text  # noqa: E402
from simulator.studies.validation.gpu_rows import SIZES, Shape, read_table, write_table  # noqa: E402

RUNS, MOST_COPIES = 20, 128  # launches in a graph; sets of weights that take turns
WARM_UPS, REPLAYS = 3, 10

# What the driver calls a GPU -> the catalogue's name.
DEVICES = {
    "NVIDIA H100 80GB HBM3": "H100-SXM",
    "NVIDIA H800": "H800-SXM",
    "NVIDIA H20": "H20",
    "NVIDIA H200": "H200-SXM",
    "NVIDIA B200": "B200",
    "NVIDIA GB200": "GB200",
    "NVIDIA A100-SXM4-80GB": "A100-SXM-80GB",
    "NVIDIA A100-SXM4-40GB": "A100-SXM-40GB",
    "NVIDIA RTX A6000": "A6000",
    "NVIDIA L40S": "L40S",
    "Tesla V100-SXM2-32GB": "V100-SXM2-32GB",
}

ROWS = (1, 16, 64, 256, 1024, 4096, 16384)
# n x k: three squares, and projections of DeepSeek-V3, Mixtral-8x7B and Llama-3.1-8B.
WEIGHTS = ((1024, 1024), (4096, 4096), (16384, 16384), (2112, 7168), (7168, 2048), (28672, 4096),
           (4096, 14336))  # fmt: skip
# groups, n, k: expert matrices of Mixtral-8x7B, Qwen3-235B and DeepSeek-V3 (32 experts per GPU).
GROUPS = ((8, 28672, 4096), (128, 3072, 4096), (32, 4096, 7168))
ROWS_PER_GROUP = (1, 16, 64, 256, 1024)
# hidden, intermediate, top_k, experts: Mixtral-8x7B, Qwen3-235B, Qwen3-30B.
MOES = ((4096, 14336, 2, 8), (4096, 1536, 8, 128), (2048, 768, 8, 128))
TOKENS = (1, 16, 64, 256, 1024, 4096, 16384)
# heads, kv_heads, head_dim: Llama-3.1-8B, Qwen3-235B, multi-head.
HEADS = ((32, 8, 128), (64, 4, 128), (32, 32, 128))
PREFILL = (512, 2048, 8192, 32768)
DECODE = ((1, 1024), (1, 32768), (16, 2048), (64, 2048), (64, 8192), (256, 1024), (256, 4096))
COPIED = tuple(1 << power for power in (20, 22, 24, 26, 28, 30))

Timer = Callable[[Shape], float]
"""Seconds of a shape; a RuntimeError or its like where this GPU or torch cannot run it."""


def grid() -> list[Shape]:
    """All shapes, by kind."""
    found = []

    def add(kind: str, dtype: str, *sizes: int) -> None:
        found.append(Shape(kind, dtype, dict(zip(SIZES[kind], sizes, strict=True))))

    for dtype in ("bf16", "fp8"):
        for n, k in WEIGHTS:
            for m in ROWS:
                add("gemm", dtype, m, n, k)
    for groups, n, k in GROUPS:
        for rows in ROWS_PER_GROUP:
            add("grouped", "bf16", rows * groups, n, k, groups)
    for moe in MOES:
        for tokens in TOKENS:
            add("moe", "bf16", tokens, *moe)
    for heads in HEADS:
        for context in PREFILL:
            add("prefill", "bf16", 1, context, *heads)
        for batch, context in DECODE:
            add("decode", "bf16", batch, context, *heads)
    for kind in ("h2d", "d2h", "d2d", "peer"):
        for size in COPIED:
            add(kind, "", size)
    return found


def timed(shapes: Sequence[Shape], timer: Timer) -> Iterator[tuple[Shape, float]]:
    """The shapes that can be run, and their seconds; what cannot is told on stderr."""
    refused: dict[str, int] = {}
    for at, shape in enumerate(shapes, 1):
        try:
            yield shape, timer(shape)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0][:100]
            told = f"{shape.kind} {shape.dtype}".strip() + f": {reason}"
            refused[told] = refused.get(told, 0) + 1
        if sys.stderr.isatty():
            end = "\n" if at == len(shapes) else ""
            print(f"\r{at} of {len(shapes)}", end=end, file=sys.stderr)
    for told, count in refused.items():
        print(f"measure_gpu: left out, {count} shapes of {told}", file=sys.stderr)


class TorchTimer:
    """Times shapes on one GPU. Buffers of a shape are freed before the next."""

    def __init__(self, torch: Any, index: int) -> None:
        self.torch = torch
        self.device = torch.device("cuda", index)
        torch.cuda.set_device(index)
        properties = torch.cuda.get_device_properties(index)
        self.l2_bytes = getattr(properties, "L2_cache_size", 0) or 128 << 20

    def __call__(self, shape: Shape) -> float:
        """Seconds of one run, the median over replays."""
        torch = self.torch
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        # Outputs and temporaries of a MoE are no larger than what it is given.
        if needed_bytes(shape) > 0.4 * free:
            raise RuntimeError("the GPU has too little free memory")
        if shape.kind in ("h2d", "d2h", "peer"):
            runs, once = 4, self._copy(shape)
            return self._median([once] * runs) / runs
        makers = {
            "gemm": self._gemm,
            "grouped": self._grouped,
            "moe": self._moe,
            "prefill": self._attention,
            "decode": self._attention,
            "d2d": self._within,
        }
        fit = max(int(0.4 * free) // needed_bytes(shape), 1)
        wanted = -(-2 * self.l2_bytes // turned_bytes(shape)) + 1
        sets = [makers[shape.kind](shape) for _ in range(min(wanted, fit, MOST_COPIES))]
        works = [sets[at % len(sets)] for at in range(max(RUNS, len(sets)))]
        torch.cuda.synchronize()  # the buffers are made on another stream than the next
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            works[0]()  # libraries load and choose their kernels outside the graph
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for work in works:
                work()
        return self._median([graph.replay]) / len(works)

    def _median(self, works: Sequence[Callable[[], Any]]) -> float:
        torch, found = self.torch, []
        for replay in range(WARM_UPS + REPLAYS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for work in works:
                work()
            end.record()
            torch.cuda.synchronize()
            if replay >= WARM_UPS:
                found.append(start.elapsed_time(end) * 1e-3)
        return statistics.median(found)

    def _random(self, *shape: int) -> Any:
        return self.torch.randn(*shape, device=self.device, dtype=self.torch.bfloat16)

    def _gemm(self, shape: Shape) -> Callable[[], Any]:
        torch = self.torch
        m, n, k = (shape.sizes[key] for key in "mnk")
        given, weights = self._random(m, k), self._random(n, k)
        if shape.dtype == "bf16":
            out = self._random(m, n)
            return lambda: torch.mm(given, weights.t(), out=out)
        one = torch.ones((), device=self.device)
        a, b = given.to(torch.float8_e4m3fn), weights.to(torch.float8_e4m3fn)
        return lambda: torch._scaled_mm(
            a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
        )

    def _ends(self, rows: Sequence[int]) -> Any:
        torch = self.torch
        return torch.tensor(rows, device=self.device).cumsum(0).to(torch.int32)

    def _grouped(self, shape: Shape) -> Callable[[], Any]:
        torch = self.torch
        m, n, k, groups = (shape.sizes[key] for key in SIZES["grouped"])
        given, weights = self._random(m, k), self._random(groups, n, k)
        ends = self._ends([m // groups] * groups)
        return lambda: torch._grouped_mm(given, weights.transpose(-2, -1), offs=ends)

    def _moe(self, shape: Shape) -> Callable[[], Any]:
        torch = self.torch
        tokens, hidden, inner, top_k, experts = (shape.sizes[key] for key in SIZES["moe"])
        given = self._random(tokens, hidden)
        up = self._random(experts, 2 * inner, hidden).transpose(-2, -1)
        down = self._random(experts, hidden, inner).transpose(-2, -1)
        chosen = torch.tensor(choices(tokens, top_k, experts), device=self.device)
        order = chosen.argsort(stable=True)
        back, source = order.argsort(), order // top_k
        ends = self._ends(torch.bincount(chosen, minlength=experts).tolist())
        gates = self._random(tokens, top_k, 1)

        def work() -> Any:
            both = torch._grouped_mm(given.index_select(0, source), up, offs=ends)
            gate, value = both.chunk(2, dim=1)
            acted = torch.nn.functional.silu(gate) * value
            rows = torch._grouped_mm(acted, down, offs=ends).index_select(0, back)
            return (rows.view(tokens, top_k, hidden) * gates).sum(1)

        return work

    def _attention(self, shape: Shape) -> Callable[[], Any]:
        torch = self.torch
        batch, context, heads, kv_heads, dim = (shape.sizes[key] for key in SIZES["decode"])
        causal = shape.kind == "prefill"
        queries = self._random(batch, heads, context if causal else 1, dim)
        keys, values = (self._random(batch, kv_heads, context, dim) for _ in range(2))
        attend = torch.nn.functional.scaled_dot_product_attention
        grouped = {"enable_gqa": True} if kv_heads < heads else {}
        return lambda: attend(queries, keys, values, is_causal=causal, **grouped)

    def _within(self, shape: Shape) -> Callable[[], Any]:
        torch, size = self.torch, shape.sizes["bytes"]
        source, target = (torch.ones(size, dtype=torch.uint8, device=self.device) for _ in range(2))
        return lambda: target.copy_(source)

    def _copy(self, shape: Shape) -> Callable[[], Any]:
        torch, size = self.torch, shape.sizes["bytes"]
        own = torch.ones(size, dtype=torch.uint8, device=self.device)
        if shape.kind == "peer":
            others = [
                other for other in range(torch.cuda.device_count())
                if other != self.device.index
                and torch.cuda.can_device_access_peer(self.device.index, other)
            ]  # fmt: skip
            if not others:
                raise RuntimeError("no other GPU that this one reaches")
            other = torch.ones(size, dtype=torch.uint8, device=torch.device("cuda", others[0]))
        else:
            other = torch.ones(size, dtype=torch.uint8, pin_memory=True)
        source, target = (other, own) if shape.kind == "h2d" else (own, other)
        return lambda: target.copy_(source, non_blocking=True)


def choices(tokens: int, top_k: int, experts: int) -> list[int]:
    """Experts of token 0, of token 1, ...: a token's lie experts / top_k apart, as
    `compute_tables.loads` counts them.
    """
    stride = -(-experts // top_k)
    first = [at if tokens >= stride else at * stride // tokens for at in range(tokens)]
    return [(at + choice * stride) % experts for at in first for choice in range(top_k)]


def turned_bytes(shape: Shape) -> int:
    """Bytes of what takes turns: weights, caches, or the source of a copy."""
    of = shape.sizes
    if shape.kind in ("gemm", "grouped"):
        return of["n"] * of["k"] * of.get("groups", 1) * (1 if shape.dtype == "fp8" else 2)
    if shape.kind == "moe":
        return of["experts"] * of["hidden"] * of["intermediate"] * 3 * 2
    if shape.kind in ("prefill", "decode"):
        return of["batch"] * of["context"] * of["kv_heads"] * of["head_dim"] * 2 * 2
    return of["bytes"]


def needed_bytes(shape: Shape) -> int:
    """Bytes on the GPU of one set of a shape, inputs and outputs."""
    of = shape.sizes
    if shape.kind in ("gemm", "grouped"):
        rows = of["m"] * (of["k"] + of["n"]) * 2
        # FP8 is made of BF16, which is there for a moment.
        return turned_bytes(shape) * (3 if shape.dtype == "fp8" else 1) + 2 * rows
    if shape.kind == "moe":
        rows = of["tokens"] * of["top_k"] * (3 * of["hidden"] + 5 * of["intermediate"]) * 2
        return turned_bytes(shape) + rows
    if shape.kind in ("prefill", "decode"):
        queries = of["context"] if shape.kind == "prefill" else 1
        return turned_bytes(shape) + of["batch"] * queries * of["heads"] * of["head_dim"] * 4
    return 2 * of["bytes"]


def clocks(index: str) -> dict[str, str]:
    """What nvidia-smi says of a GPU; empty where there is none."""
    asked = {"driver": "driver_version", "sm": "clocks.sm", "memory": "clocks.mem",
             "most": "clocks.max.sm", "power": "power.limit", "gen": "pcie.link.gen.max",
             "width": "pcie.link.width.max"}  # fmt: skip
    command = ["nvidia-smi", f"--query-gpu={','.join(asked.values())}",
               "--format=csv,noheader,nounits", "-i", index]  # fmt: skip
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [cell.strip() for cell in said.stdout.strip().split(",")]
    return dict(zip(asked, values, strict=True)) if len(values) == len(asked) else {}


def about(torch: Any, index: int) -> tuple[list[tuple[str, str]], str]:
    """The table's comments, and how nvidia-smi names the GPU."""
    properties = torch.cuda.get_device_properties(index)
    uuid = getattr(properties, "uuid", None)
    smi = str(index) if uuid is None else f"GPU-{uuid}"
    said = clocks(smi)
    found = [("gpu", properties.name), ("torch", f"{torch.__version__}, CUDA {torch.version.cuda}")]
    if said:
        found += [
            ("driver", said["driver"]),
            ("pcie", f"gen {said['gen']} x {said['width']}"),
            ("clocks", f"SM {said['sm']} of at most {said['most']} MHz, memory {said['memory']} "
                       f"MHz, power limit {said['power']} W, not set by us"),
        ]  # fmt: skip
    method = (
        f"CUDA graphs of {RUNS} or more runs, CUDA events, median of {REPLAYS} after {WARM_UPS} "
        f"warm-ups, random data, weights and caches not in L2"
    )
    return [*found, ("method", method)], smi


def timer_of(index: int) -> tuple[Timer, list[tuple[str, str]], str]:
    """A timer for a GPU, the table's comments and its nvidia-smi name; InputError without a GPU."""
    try:
        import torch
    except ImportError:
        raise InputError("needs torch and an NVIDIA GPU; torch is not installed") from None
    if not torch.cuda.is_available() or torch.version.cuda is None:
        raise InputError(f"torch {torch.__version__} finds no NVIDIA GPU; run this where one is")
    if index >= torch.cuda.device_count():
        raise InputError(f"--device {index}: there are {torch.cuda.device_count()} GPUs")
    return TorchTimer(torch, index), *about(torch, index)


def measure(options: argparse.Namespace) -> None:
    """Time the grid and write the table."""
    kinds = options.kinds.split(",") if options.kinds else list(SIZES)
    for kind in kinds:
        if kind not in SIZES:
            hint = did_you_mean(kind, list(SIZES))
            raise InputError(f"--kinds: unknown kind {kind!r}{hint}; known: {', '.join(SIZES)}")
    check_fresh(options.rows)
    timer, told, smi = timer_of(options.device)
    shapes = [shape for shape in grid() if shape.kind in kinds]
    try:
        with open(options.rows, "x", encoding="utf-8", newline="") as stream:
            write_table(stream, told, timed(shapes, timer))
            after = clocks(smi)
            if after:
                told_after = f"SM {after['sm']} MHz, memory {after['memory']} MHz"
                stream.write(f"# clocks after: {told_after}\n")
    except OSError as error:
        raise InputError(f"{options.rows}: cannot be written: {error.strerror}") from None


def fit(options: argparse.Namespace) -> None:
    """Fit a profile to a table and write it."""
    check_fresh(options.profile)
    table = read_table(Path(options.rows), options.rows)
    name = options.gpu or DEVICES.get(table.about.get("gpu", ""))
    if name is None:
        raise InputError(
            f"{options.rows}: of {table.about.get('gpu', 'no named GPU')!r}; say with --gpu which "
            f"GPU of the catalogue that is: {', '.join(catalogue.names())}"
        )
    try:
        like = Gpu.model_validate(catalogue.expand(name))
    except InputError as error:
        raise InputError(f"--gpu: {error}") from None
    try:
        raw = None if options.pcie is None else parse_quantity(options.pcie, "bandwidth")
    except InputError as error:
        raise InputError(f"--pcie: {error}") from None
    found = fit_profile(table, like, raw)
    write(options.profile, profile_text(found, table.about, Path(options.rows).name))
    for key, text in found.sources.items():
        print(f"{key}: {text}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("measure_gpu", description=__doc__, formatter_class=plain)
    commands = parser.add_subparsers(required=True, metavar="measure|fit")
    one = commands.add_parser("measure", help="time the grid on this GPU")
    one.add_argument("rows", help="the CSV file to write")
    one.add_argument("--device", type=int, default=0, help="which GPU, as torch counts (0)")
    one.add_argument("--kinds", help=f"of {','.join(SIZES)}; all if left out")
    one.set_defaults(run=measure)
    two = commands.add_parser("fit", help="fit a profile to a table")
    two.add_argument("rows", help="the CSV file that `measure` wrote")
    two.add_argument("profile", help="the YAML file to write")
    two.add_argument("--gpu", help="the GPU's name in the catalogue; by the table if left out")
    two.add_argument("--pcie", help='raw bandwidth in one direction, "64 GB/s"; by the table')
    two.set_defaults(run=fit)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except InputError as error:
        for line in str(error).splitlines():
            print(f"measure_gpu: error: {line}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
