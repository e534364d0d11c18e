#!/usr/bin/env python3
"""Train a small Mixture-of-Experts language model and record which experts its router chooses.

The model is a byte-level, decoder-only transformer whose feed-forward layers are all sparse:
128 experts each, top-4 softmax routing with the gates renormalised over the chosen four and a mild
load-balancing loss, as in OLMoE and Qwen3-MoE. It is trained on Python sources, split by file into
training and held-out text, and must beat a byte-trigram model on the held-out text: the routing of
a model that has learnt nothing would say nothing about real routing. Then it continues held-out
prompts, and the experts of every token and layer are written as a trace (see traces/README.md).

Needs torch, numpy and pyarrow. Exit codes: 0 written, 1 the model missed its goal, 2 bad input.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import pickle
import platform
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

try:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ImportError as error:
    print(f"record_routing: error: {error}; install torch, numpy and pyarrow", file=sys.stderr)
    sys.exit(2)

LAYERS, EXPERTS, TOP_K = 8, 128, 4
WIDTH, HEADS, EXPERT_WIDTH = 128, 4, 64
CONTEXT, BATCH = 256, 16
BALANCE_WEIGHT, CAPACITY = 0.01, 1.5
PEAK_RATE, WARMUP, TEMPERATURE = 3e-3, 100, 0.8
# The held-out loss must be below this part of the trigram's: a clear win, not sampling noise.
GOAL = 0.97
EVALUATE_EVERY, EVALUATE_STRIDE = 250, 16
# Fixed, as the order of floating-point sums can depend on the number of threads.
THREADS = 2
# Tests are often data; encodings and pydoc_data are generated and would make the text lopsided.
EXCLUDED = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
STDLIB = Path(sysconfig.get_path("stdlib"))

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class InputError(Exception):
    """Something the user gave cannot be used; the message is one line."""


def read_text(root: Path) -> tuple[list[bytes], list[bytes]]:
    """Return the training and the held-out files under `root`, each file's content.

    A file's side depends on a hash of its relative path only, so that the split is the same on
    every machine; about one file in ten is held out.
    """
    sides: tuple[list[bytes], list[bytes]] = ([], [])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        built = name.name.startswith("_sysconfigdata")  # differs from machine to machine
        if EXCLUDED.isdisjoint(name.parts) and not built and path.stat().st_size:
            digest = hashlib.sha256(name.as_posix().encode()).digest()
            sides[digest[0] < 26].append(path.read_bytes())
    return sides


def join(files: list[bytes]) -> Bytes:
    """Return the files one after another, uint8 [bytes]; a copy that may be written to."""
    return np.frombuffer(bytearray(b"\n".join(files)), dtype=np.uint8)


def ngram_losses(train: Bytes, held: Bytes) -> dict[str, Floats]:
    """Return each n-gram model's loss in nats for every byte of `held` from the third on, [M - 2].

    Interpolated absolute discounting, unigram to trigram. The discounts are tuned on the held-out
    text itself, which can only favour these rivals of the model.
    """
    a, b, c = (train[i : train.size - 2 + i].astype(np.int64) for i in range(3))
    x, y, z = (held[i : held.size - 2 + i].astype(np.int64) for i in range(3))
    single = np.bincount(c, minlength=256) + 1.0
    pair = np.bincount(b * 256 + c, minlength=256**2).reshape(256, 256)
    triple = np.bincount((a * 256 + b) * 256 + c, minlength=256**3).reshape(256**2, 256)

    def discounted(counts: Ints, row: Ints, lower: Floats) -> Floats:
        total = np.maximum(counts.sum(axis=1), 1)[row]
        kinds = np.count_nonzero(counts, axis=1)[row]
        tries = []
        for discount in np.arange(0.05, 1.0, 0.1):
            rest = np.where(kinds > 0, discount * kinds / total, 1.0)
            tries.append(np.maximum(counts[row, z] - discount, 0.0) / total + rest * lower)
        return max(tries, key=lambda shares: float(np.log(shares).sum()))

    one = (single / single.sum())[z]
    two = discounted(pair, y, one)
    three = discounted(triple, x * 256 + y, two)
    return {"unigram": -np.log(one), "bigram": -np.log(two), "trigram": -np.log(three)}


class Permute(torch.autograd.Function):
    """Gather rows by `there`; the gradient gathers them back by `back`, its partial inverse.

    Both directions are gathers because scattering adds are slow on CPUs. An index one past the
    last row means a row of zeros.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, there: Tensor, back: Tensor) -> Tensor:
        """Map rows [A, d] to [B, d] by `there` [B] (values 0..A); `back` is [A] (values 0..B)."""
        ctx.save_for_backward(back)
        return F.pad(rows, (0, 0, 0, 1)).index_select(0, there)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Map the gradient [B, d] to [A, d]."""
        return F.pad(gradient, (0, 0, 0, 1)).index_select(0, ctx.saved_tensors[0]), None, None


def rotate(x: Tensor, start: int) -> Tensor:
    """Apply rotary position embedding to x [B, heads, T, head width], positions from `start`."""
    half = x.shape[-1] // 2
    rates = 10_000.0 ** (-torch.arange(half) / half)
    angles = torch.arange(start, start + x.shape[2])[:, None] * rates
    left, right = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


class Block(nn.Module):
    """One layer: causal attention, then 128 experts of which each token uses four."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_attention, self.norm_experts = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.norm_query, self.norm_key = nn.RMSNorm(WIDTH // HEADS), nn.RMSNorm(WIDTH // HEADS)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.mix = nn.Linear(WIDTH, WIDTH, bias=False)
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, 2 * EXPERT_WIDTH) * WIDTH**-0.5)
        self.down = nn.Parameter(torch.randn(EXPERTS, EXPERT_WIDTH, WIDTH) * EXPERT_WIDTH**-0.5)
        nn.init.normal_(self.qkv.weight, std=WIDTH**-0.5)
        nn.init.normal_(self.router.weight, std=WIDTH**-0.5)
        nn.init.normal_(self.mix.weight, std=WIDTH**-0.5 / LAYERS)

    def attend(self, x: Tensor, cache: list[Tensor]) -> Tensor:
        """Map x [B, T, d] to [B, T, d]; `cache` gains the new keys and values.

        With an empty cache the T positions are the first ones; later calls bring one at a time.
        """
        parts = self.qkv(x).view(*x.shape[:2], 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        start = cache[0].shape[2] if cache else 0
        query = rotate(self.norm_query(parts[0].float()), start).to(parts.dtype)
        key, value = rotate(self.norm_key(parts[1].float()), start).to(parts.dtype), parts[2]
        if cache:
            key, value = torch.cat((cache[0], key), 2), torch.cat((cache[1], value), 2)
        cache[:] = [key, value]
        y = F.scaled_dot_product_attention(query, key, value, is_causal=start == 0)
        return self.mix(y.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]

    def experts(self, x: Tensor, drop: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Map x [T, d] to (y [T, d], chosen experts [T, k] in gate order, balancing loss []).

        With `drop`, an expert takes at most `CAPACITY` times its even share of the tokens and the
        rest skip it (training only: it bounds the padding); without, no token is ever dropped.
        """
        with torch.autocast("cpu", enabled=False):  # in bfloat16 close gates would tie
            shares = self.router(x.float()).softmax(-1)
        gates, chosen = shares.topk(TOP_K)
        gates = gates / gates.sum(-1, keepdim=True)
        flat = chosen.reshape(-1)
        counts = flat.bincount(minlength=EXPERTS)
        balance = EXPERTS * (counts / flat.numel() * shares.mean(0)).sum()
        room = int(counts.max())
        if drop:
            room = min(room, math.ceil(CAPACITY * flat.numel() / EXPERTS))
        # The slot of each (token, choice) pair in the experts' padded inputs, and the inverse.
        order = flat.argsort(stable=True)
        ranked = flat[order]
        rank = torch.arange(flat.numel()) - (counts.cumsum(0) - counts)[ranked]
        slots = torch.where(rank < room, ranked * room + rank, EXPERTS * room)
        there = torch.empty_like(flat).index_copy_(0, order, slots)
        back = torch.full((EXPERTS * room + 1,), flat.numel()).index_copy_(0, slots, order)[:-1]
        pairs = x[:, None].expand(-1, TOP_K, -1).reshape(-1, WIDTH)
        gather: Any = Permute.apply
        inputs = gather(pairs, back, there).view(EXPERTS, room, WIDTH)
        gate, value = torch.bmm(inputs, self.up).chunk(2, -1)
        outputs = torch.bmm(F.silu(gate) * value, self.down).view(-1, WIDTH)
        y = gather(outputs, there, back).view(-1, TOP_K, WIDTH)
        return (y * gates[..., None].to(y.dtype)).sum(1), chosen, balance

    def forward(self, x: Tensor, cache: list[Tensor], drop: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Map x [B, T, d] to (x [B, T, d], chosen [B, T, k], balancing loss [])."""
        x = x + self.attend(self.norm_attention(x), cache)
        y, chosen, balance = self.experts(self.norm_experts(x).view(-1, WIDTH), drop)
        return x + y.view(x.shape), chosen.view(*x.shape[:2], TOP_K), balance


class Model(nn.Module):
    """Byte-level language model of `LAYERS` sparse blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 256, bias=False)
        nn.init.normal_(self.head.weight, std=WIDTH**-0.5 / 4)

    def forward(
        self, tokens: Tensor, caches: list[list[Tensor]] | None = None, drop: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map tokens [B, T] to (logits [B, T, 256], chosen [B, T, layers, k], balancing [])."""
        x = self.embed(tokens)
        choices, balances = [], []
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for block, cache in zip(self.blocks, caches or [[] for _ in self.blocks], strict=True):
                x, chosen, balance = block(x, cache, drop)
                choices.append(chosen)
                balances.append(balance)
            logits = self.head(self.norm(x)).float()
        return logits, torch.stack(choices, 2), torch.stack(balances).sum()


@torch.no_grad()
def heldout_loss(model: Model, windows: Tensor) -> float:
    """Return the mean loss in nats of the bytes of windows [W, C + 1] from the third byte on."""
    total = 0.0
    for some in torch.split(windows, BATCH):
        logits = model(some[:, :-1])[0][:, 1:]
        total += float(F.cross_entropy(logits.flatten(0, 1), some[:, 2:].flatten())) * len(some)
    return total / len(windows)


def train(
    model: Model, text: Tensor, windows: Tensor, target: float, options: argparse.Namespace
) -> int:
    """Train `model` in place on `text` [bytes] and return the number of steps it has had.

    `windows` [W, CONTEXT + 1] are evaluated now and then, beside `target` nats per byte. Ends
    after `--steps` steps, or early when `--minutes` have passed.
    """
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=True)
    step = 0
    if options.resume:
        try:
            state = torch.load(options.checkpoint, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            step = state["step"]
        except (OSError, KeyError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
            raise InputError(f"{options.checkpoint}: not a checkpoint of this model") from error
    began = time.monotonic()
    minutes = 0.0
    while step < options.steps and minutes < options.minutes:
        decay = 0.51 + 0.49 * math.cos(math.pi * step / options.steps)
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * decay * min(1.0, (step + 1) / WARMUP)
        # A generator per step, so that a resumed run sees what an unbroken one would.
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        starts = torch.randint(text.numel() - CONTEXT - 1, (BATCH, 1), generator=generator)
        window = text[starts + torch.arange(CONTEXT + 1)].long()
        logits, _, balance = model(window[:, :-1], drop=True)
        loss = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        (loss + BALANCE_WEIGHT * balance).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        minutes = (time.monotonic() - began) / 60
        if step % EVALUATE_EVERY == 0 or step == options.steps or minutes >= options.minutes:
            held = heldout_loss(model, windows)
            print(
                f"step {step}, {minutes:.1f} min: training loss {loss:.4f}, held-out {held:.4f} "
                f"(trigram {target:.4f}), balance {balance / LAYERS:.3f}",
                flush=True,
            )
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            partial = options.checkpoint.with_name(options.checkpoint.name + ".part")
            torch.save(state, partial)
            os.replace(partial, options.checkpoint)
    return step


def draw_prompts(files: list[bytes], requests: int, size: int, seed: int) -> Tensor:
    """Return prompts, int64 [requests, size] bytes, each from the start of a line of a file.

    The files are taken in turn, so that neighbouring requests come from different ones; short
    files are passed over, as their prompts would repeat.
    """
    random = np.random.default_rng(seed)
    long = [join([file]) for file in files if len(file) >= 16 * size]
    turns = random.permutation(len(long))
    prompts = []
    for request in range(requests):
        file = long[turns[request % len(long)]]
        starts = np.append(0, np.flatnonzero(file[: -size - 1] == ord("\n")) + 1)
        start = int(random.choice(starts))
        prompts.append(file[start : start + size])
    return torch.from_numpy(np.stack(prompts)).long()


@torch.no_grad()
def record(model: Model, prompts: Tensor, generate: int, seed: int) -> Ints:
    """Continue prompts [N, P] by `generate` bytes each, recording the routing of every token.

    Returns the chosen experts [N, P + generate, layers, k], highest gate first. Tokens pass as in
    serving: the prompt at once, then one at a time; nothing is padded or dropped.
    """
    generator = torch.Generator().manual_seed(seed)
    caches: list[list[Tensor]] = [[] for _ in range(LAYERS)]
    logits, chosen, _ = model(prompts, caches)
    parts = [chosen]
    for _ in range(generate):
        shares = (logits[:, -1] / TEMPERATURE).softmax(-1)
        logits, chosen, _ = model(torch.multinomial(shares, 1, generator=generator), caches)
        parts.append(chosen)
    return torch.cat(parts, 1).numpy()


def mutual_information(left: Ints, right: Ints) -> float:
    """Return the plug-in mutual information in bits of two sequences of experts [M]."""
    joint = np.bincount(left * EXPERTS + right, minlength=EXPERTS**2).reshape(EXPERTS, EXPERTS)
    share = joint / joint.sum()
    independent = share.sum(1, keepdims=True) * share.sum(0)
    used = share > 0
    return float((share[used] * np.log2(share[used] / independent[used])).sum())


def statistics(chosen: Ints, seed: int) -> dict[str, Any]:
    """Return what characterises the routing `chosen` [N, T, layers, k]; lists are per layer.

    max_over_mean: busiest expert's load over the mean load. overlap: share of a token's experts
    that the request's previous token chose too. next_layer_bits: mutual information of the top-1
    experts of layers l and l + 1, less next_layer_bits_bias, that of shuffled pairs. markov_ and
    popularity_recall_at_M: share of the experts of layer l + 1 among the M guessed from those of
    layer l by transition counts, or from loads alone; learnt on the first half of the requests,
    tested on the second.
    """
    random = np.random.default_rng(seed)
    requests, tokens, layers, k = chosen.shape
    flat = chosen.reshape(-1, layers, k)
    loads = np.stack([np.bincount(flat[:, i].ravel(), minlength=EXPERTS) for i in range(layers)])
    same = chosen[:, 1:, :, :, None] == chosen[:, :-1, :, None, :]
    columns: dict[str, list[float]] = {
        "max_over_mean": list(loads.max(1) / loads.mean(1)),
        "overlap": list(same.any(4).mean((0, 1, 3))),
    }
    learn = requests // 2 * tokens
    for left, right in ((flat[:, i], flat[:, i + 1]) for i in range(layers - 1)):
        bias = mutual_information(left[:, 0], random.permutation(right[:, 0]))
        bits = mutual_information(left[:, 0], right[:, 0]) - bias
        columns.setdefault("next_layer_bits", []).append(bits)
        columns.setdefault("next_layer_bits_bias", []).append(bias)
        pairs = (left[:learn, :, None] * EXPERTS + right[:learn, None, :]).ravel()
        table = np.bincount(pairs, minlength=EXPERTS**2).reshape(EXPERTS, EXPERTS)
        moves = table / np.maximum(table.sum(1, keepdims=True), 1)
        scores = {"markov": moves[left[learn:]].sum(1), "popularity": table.sum(0, keepdims=True)}
        for name, size in ((name, size) for name in scores for size in (4, 8)):
            best = np.argsort(-scores[name], axis=1, kind="stable")[:, :size]
            hit = (right[learn:, :, None] == best[:, None, :]).any(2).mean()
            columns.setdefault(f"{name}_recall_at_{size}", []).append(float(hit))
    result: dict[str, Any] = {"overlap_uniform": k / EXPERTS}
    for name, values in columns.items():
        result[name] = [round(float(value), 4) for value in values]
        result[f"{name}_average"] = round(float(np.mean(values)), 4)
    return result


def write_trace(path: Path, chosen: Ints, prompt: int, metadata: dict[str, Any]) -> None:
    """Write the routing `chosen` [N, T, layers, k] to `path`; of T tokens, `prompt` are given."""
    requests, tokens, layers, k = chosen.shape
    position = np.tile(np.arange(tokens, dtype=np.int32), requests)
    ids = pa.array(chosen.reshape(-1).astype(np.int16))
    columns = {
        "request": np.repeat(np.arange(requests, dtype=np.int32), tokens),
        "position": position,
        "phase": (position >= prompt).astype(np.int8),
        "experts": pa.FixedSizeListArray.from_arrays(ids, layers * k),
    }
    header = {"moe_routing_trace": json.dumps(metadata, sort_keys=True)}
    partial = path.with_name(path.name + ".part")
    table = pa.table(columns).replace_schema_metadata(header)
    # Splitting the bytes of the ids would save 6 %, but readers before Arrow 16 refuse it.
    pq.write_table(table, partial, row_group_size=8192, compression="zstd", compression_level=19)
    os.replace(partial, path)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="trace to write; must not exist")
    for name, default, text in (
        ("text", STDLIB, "folder of the *.py files to learn from (default: the standard library)"),
        ("minutes", 60.0, "time limit of the training"),
        ("steps", 3000, "training steps"),
        ("seed", 0, "seed of everything drawn"),
        ("requests", 200, "requests to record"),
        ("prompt", 64, "bytes of a prompt"),
        ("generate", 192, "bytes generated per request"),
        ("checkpoint", Path("routing-model.pt"), "file that keeps the training state"),
    ):
        parser.add_argument(f"--{name}", type=type(default), default=default, help=text)
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint")
    options = parser.parse_args(arguments)
    if options.out.exists() or not options.out.parent.is_dir():
        raise InputError(f"{options.out}: exists already, or its folder does not")
    if options.resume != options.checkpoint.exists():
        fault = "no such file" if options.resume else "exists already; continue it with --resume"
        raise InputError(f"{options.checkpoint}: {fault}")
    if options.requests < 2 or min(options.prompt, options.steps) < 1 or options.generate < 0:
        raise InputError("--requests must be at least 2, --prompt and --steps 1, --generate 0")
    if options.prompt + options.generate > CONTEXT:
        raise InputError(f"--prompt and --generate together exceed the context, {CONTEXT} bytes")
    return options


def run(options: argparse.Namespace) -> int:
    """Train, check that the model met its goal, record; return the exit code."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(options.seed)
    train_files, held_files = read_text(options.text)
    text, held = join(train_files), join(held_files)
    if text.size < 100 * CONTEXT or max(map(len, held_files), default=0) < 16 * CONTEXT:
        raise InputError(
            f"{options.text}: too little text: {text.size} + {held.size} bytes of *.py"
        )
    print(f"{len(train_files)} files to learn from, {len(held_files)} held out", flush=True)
    starts = np.arange((held.size - 1) // CONTEXT)[:, None] * CONTEXT
    windows = torch.from_numpy(held[starts + np.arange(CONTEXT + 1)]).long()
    # Of each window the bytes from the third on, as in heldout_loss.
    places = starts + np.arange(CONTEXT - 1)
    rivals = {name: loss[places] for name, loss in ngram_losses(text, held).items()}
    some = slice(None, None, EVALUATE_STRIDE)
    target = float(rivals["trigram"][some].mean())
    model = Model()
    steps = train(model, torch.from_numpy(text), windows[some], target, options)
    losses = {name: float(loss.mean()) for name, loss in rivals.items()}
    losses["heldout"] = heldout_loss(model, windows)
    print("nats per byte:", {name: round(loss, 4) for name, loss in losses.items()}, flush=True)
    if losses["heldout"] > GOAL * losses["trigram"]:
        fault = f"held-out loss after {steps} steps is not below {GOAL} of the trigram's"
        print(f"record_routing: goal missed: {fault}; nothing recorded", file=sys.stderr)
        return 1
    prompts = draw_prompts(held_files, options.requests, options.prompt, options.seed)
    chosen = record(model, prompts, options.generate, options.seed)
    parameters = sum(p.numel() for p in model.parameters())
    library = f"the CPython {platform.python_version()} standard library (PSF licence)"
    source = library if options.text == STDLIB else f"the folder {options.text.name}"
    metadata = {
        "version": 1,
        "model": f"python-bytes-{LAYERS}x{EXPERTS}-top{TOP_K}",
        "layers": LAYERS,
        "experts": EXPERTS,
        "k": TOP_K,
        "requests": options.requests,
        "tokens": chosen.shape[0] * chosen.shape[1],
        "origin": f"tools/record_routing.py trained a byte-level MoE transformer of "
        f"{parameters / 1e6:.1f} M parameters on the *.py files of {source}, without tests and "
        "generated tables, and recorded it on prompts from held-out files of the same and on its "
        "own continuations of them.",
        "statistics": statistics(chosen, options.seed),
        "training": {
            **{f"{name}_nats_per_byte": round(loss, 4) for name, loss in losses.items()},
            **{name: getattr(options, name) for name in ("seed", "prompt", "generate")},
            "temperature": TEMPERATURE,
            "parameters": parameters,
            "steps": steps,
            "tokens": steps * BATCH * CONTEXT,
            "train_bytes": text.size,
            "train_files": len(train_files),
            "heldout_bytes": held.size,
            "heldout_files": len(held_files),
            "torch": torch.__version__,
        },
    }
    write_trace(options.out, chosen, options.prompt, metadata)
    print(json.dumps(metadata, indent=1, sort_keys=True))
    print(f"{options.out}: {options.out.stat().st_size} bytes")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        return run(parse(arguments))
    except InputError as error:
        print(f"record_routing: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
