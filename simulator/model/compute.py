"""How long a GPU computes: the kernels of a layer, each by `simulator.model.kernels`.

Kernels of one span run one after the other. In a CUDA graph they cost what was measured in one;
launched from the host, a span takes at least the time in which the host launches its kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

from simulator.errors import InputError
from simulator.model import attention, kernels, sizes
from simulator.model.attention import Asked, Parts
from simulator.model.kernels import HOST_LAUNCH_S, NOTHING, Rates, Work
from simulator.spec.schema import Gpu, Model

__all__ = ["NOTHING", "ComputeModel", "Work"]

ACTIVATION_BYTES = 2.0  # BF16 between kernels
# A norm reads the residual and what is added to it, and writes the sum and the normed row.
NORM_PASSES = 4
MOST_KEPT = 100_000  # shapes; loads of a long run would fill the memory


def beside(gpu: Gpu, sms: int) -> Gpu:
    """What is left of a GPU to compute with while a communication kernel holds `sms` of its SMs.

    Arithmetic and reads of L2 slow down with the SMs; HBM does not, a part of them can saturate it.
    Raises InputError if the kernel holds them all.
    """
    if sms >= gpu.sms:
        raise InputError(
            f"transport.sms: {sms}, but {gpu.name} has {gpu.sms} SMs; write less, or overlap=none"
        )
    share = (gpu.sms - sms) / gpu.sms
    rates = {dtype: rate * share for dtype, rate in gpu.flops_per_s.items()}
    l2 = gpu.l2_bandwidth_bytes_per_s
    left = {"flops_per_s": rates, "l2_bandwidth_bytes_per_s": l2 and l2 * share}
    return gpu.model_copy(update=left)


class ComputeModel:
    """Kernel times of one model on one GPU; results are kept per shape.

    `phase` is "decode" (every row is a token of a sequence with its own `context` of KV) or
    "prefill" (the rows belong together and attend to `context` keys each on average). `queries`:
    rows per sequence in decode, above 1 with speculative decoding. `windowed`: the layers that
    attend to the sliding window only.
    """

    def __init__(
        self,
        model: Model,
        gpu: Gpu,
        phase: str,
        context: int,
        cuda_graphs: bool = True,
        queries: int = 1,
    ) -> None:
        self.model = model
        self.phase = phase
        self.context = context
        self.queries = queries
        self.windowed = [at for at, is_ in enumerate(sizes.windowed_layers(model)) if is_]
        self.host_launch_s = 0.0 if cuda_graphs else HOST_LAUNCH_S
        self.plain = gemm_rates(gpu, "bf16")
        self._attention_rates = gemm_rates(gpu, sizes.dtype_of(model, "attention"))
        self._dense = gemm_rates(gpu, sizes.dtype_of(model, "dense"))
        self._single = gemm_rates(gpu, sizes.dtype_of(model, "experts"))
        self.grouped = moe_rates(gpu, sizes.dtype_of(model, "experts"))
        self._head = gemm_rates(gpu, sizes.dtype_of(model, "lm_head"))
        self._gate = gemm_rates(gpu, sizes.dtype_of(model, "gate"))
        self._kept: dict[tuple[str | float, ...], Work] = {}
        self._alone: dict[int, Work] = {}
        given = model.moe.expert_sizes
        self.sizes = None if given is None or set(given) == {1.0} else given

    def attention(self, rows: int, gate: bool, windowed: bool = False) -> Work:
        """Norms, projections, attention over the KV cache and, with `gate`, the router, of `rows`.

        windowed: the layer attends to the sliding window only.
        """
        key = ("attention", rows, gate, windowed)
        if key not in self._kept:
            self._kept[key] = self._attention(rows, gate, windowed)
        return self._kept[key]

    def experts(self, rows: int, active: int) -> Work:
        """A fused MoE of `active` experts with `rows` tokens together, evenly spread over them."""
        key = ("experts", rows, active)
        if key not in self._kept:
            each = -(-rows // max(active, 1))
            tile = self.tile_of(rows, active)
            self._kept[key] = self._moe(rows, tile, active * -(-each // tile), active, rows)
        return self._kept[key]

    def experts_by_rows(
        self,
        rows: Sequence[int],
        tokens: int | None = None,
        experts: Sequence[int] | None = None,
    ) -> Work:
        """A fused MoE with the real rows of each expert, [experts] (those without rows cost
        nothing). tokens: that came here, each for one or more experts; one per row if None;
        experts: which they are, all of the layer in order if None.
        """
        busy = [count for count in rows if count]
        total, active = sum(busy), len(busy)
        tile = self.tile_of(total, active)
        tiles = sum([-(-count // tile) for count in busy])
        came = total if tokens is None else tokens
        weights: float = active
        if self.sizes is not None:
            numbers = range(len(rows)) if experts is None else experts
            pairs = zip(numbers, rows, strict=True)
            weights = sum(self.sizes[expert] for expert, count in pairs if count)
        return self.experts_in_all(total, weights, tile, tiles, came)

    def experts_in_all(self, rows: int, active: float, tile: int, tiles: int, tokens: int) -> Work:
        """A fused MoE of `active` experts (their sizes summed), which take `tiles` tiles of `tile`
        rows together; tokens: that came.
        """
        key = ("rows", rows, active, tile, tiles, tokens)
        if key not in self._kept:
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            self._kept[key] = self._moe(rows, tile, tiles, active, tokens)
        return self._kept[key]

    def expert(self, rows: int, expert: int = 0) -> Work:
        """One expert by itself, as when its weights have just been fetched: two plain GEMMs."""
        intermediate = self.model.moe.intermediate
        if self.sizes is None:
            found = self._alone.get(rows)
            if found is None:
                found = self._alone[rows] = self._ffn("expert", self._single, rows, intermediate)
            return found
        size = self.sizes[expert]
        of = self._single._replace(weight_bytes=self._single.weight_bytes * size)
        return self._ffn(f"expert of size {size!r}", of, rows, intermediate)

    def dense_ffn(self, rows: int) -> Work:
        """The FFN of a dense layer."""
        return self._ffn("dense", self._dense, rows, self.model.dense_intermediate)

    def shared_experts(self, rows: int) -> Work:
        """The experts that every token takes (one GEMM pair over all of them)."""
        moe = self.model.moe
        intermediate = moe.shared_experts * moe.shared_intermediate
        return self._ffn("shared", self._dense, rows, intermediate)

    def lm_head(self, rows: int) -> Work:
        """The last norm and the logits of `rows` tokens."""
        if rows == 0:
            return NOTHING
        key = ("head", rows)
        if key not in self._kept:
            logits = kernels.gemm(self._head, rows, self.model.vocab, self.model.hidden)
            self._kept[key] = self._span([self._norm(rows), logits], 1 + self._head.kernels)
        return self._kept[key]

    def tile_of(self, rows: int, active: int) -> int:
        """Rows of a tile of a grouped GEMM of so many experts."""
        return kernels.tile_of(self.grouped, rows / max(active, 1))

    def _moe(self, rows: int, tile: int, tiles: int, active: float, tokens: int) -> Work:
        if rows == 0:
            return NOTHING
        of, model = self.grouped, self.model
        shape = (model.hidden, model.moe.intermediate)
        work = kernels.fused_moe(of, tokens, rows, tile, tiles, active, *shape)
        return self._span([work], of.kernels)

    def _ffn(self, name: str, of: Rates, rows: int, intermediate: int) -> Work:
        if rows == 0 or intermediate == 0:
            return NOTHING
        key = (name, rows)
        if key not in self._kept:
            hidden = self.model.hidden
            parts = [
                kernels.gemm(of, rows, 2 * intermediate, hidden),
                kernels.moved(self.plain, 3 * rows * intermediate * ACTIVATION_BYTES),
                kernels.gemm(of, rows, hidden, intermediate),
            ]
            self._kept[key] = self._span(parts, 1 + 2 * of.kernels)
        return self._kept[key]

    def _attention(self, rows: int, gate: bool, windowed: bool) -> Work:
        if rows == 0:
            return NOTHING
        model = self.model
        window = model.sliding_window
        keys = min(self.context, window.tokens) if windowed and window else self.context
        sequences = rows / self.queries if self.phase == "decode" else 1.0
        asked = attention.uniform(rows, keys, sequences, self.phase == "decode")
        of = self._attention_parts(asked)
        around, count = self._around(rows, gate)
        return self._span([*of.before, *of.inside, *of.after, *around], sum(of.launches) + count)

    def mixed_attention(self, decode: Asked, prefill: Asked, gate: bool) -> Work:
        """As `attention`, of rows in both phases at once: the projections run over all of them,
        what is inside over each phase by itself (continuous batching).
        """
        rows = decode.rows + prefill.rows
        if rows == 0:
            return NOTHING
        parts, count = self.around_scores(rows, gate)
        for asked in (decode, prefill):
            if asked.rows:
                of = self._attention_parts(asked)
                parts = parts + of.inside
                count += of.launches[1]
        return self._span(parts, count)

    def around_scores(self, rows: int, gate: bool) -> tuple[list[Work], int]:
        """The kernels of an attention layer that all rows share; how many the host launches."""
        of = self._attention_parts(Asked(rows, 0.0, 0.0, True))
        around, count = self._around(rows, gate)
        return [*of.before, *of.after, *around], of.launches[0] + count

    def before_scores(self, rows: int, decode: bool) -> tuple[list[Work], int]:
        """The kernels that a phase adds before its scores; how many are launched with those."""
        of = self._attention_parts(Asked(rows, 0.0, 0.0, decode))
        return of.inside[:-1], of.launches[1]

    def _attention_parts(self, asked: Asked) -> Parts:
        return attention.kernels_of(self.model, self._attention_rates, self.plain, asked)

    def _around(self, rows: int, gate: bool) -> tuple[list[Work], int]:
        """Both norms and, with `gate`, the router."""
        parts = [self._norm(rows), self._norm(rows)]
        if not gate:
            return parts, 2
        parts.append(kernels.gemm(self._gate, rows, self.model.moe.experts, self.model.hidden))
        return parts, 2 + self._gate.kernels

    def _norm(self, rows: int) -> Work:
        return kernels.moved(self.plain, NORM_PASSES * rows * self.model.hidden * ACTIVATION_BYTES)

    def _span(self, parts: list[Work], count: int) -> Work:
        work = kernels.together(*parts)
        return work._replace(seconds=max(work.seconds, count * self.host_launch_s))


def gemm_rates(gpu: Gpu, dtype: str) -> Rates:
    """The GEMM family for weights of a type on a GPU.

    INT8 takes the figures of FP8, FP4 those of block-scaled FP8, each at its own peak; types that
    the GPU has no units for are converted on the way and run as BF16 (weight-only).
    """
    unit = sizes.compute_dtype(dtype, gpu)
    family = "bf16"
    if unit in ("fp8", "int8"):
        family = "fp8_block" if dtype == "fp8_block" else "fp8"
    elif unit == "fp4":
        family = "fp8_block"
    return _on(gpu, family, dtype, unit)


def moe_rates(gpu: Gpu, dtype: str) -> Rates:
    """The fused-MoE family for experts of a type: 4-bit weights that are converted to BF16 on the
    way have their own, other converted ones that of BF16.
    """
    unit = sizes.compute_dtype(dtype, gpu)
    if unit in ("fp8", "int8", "fp4"):
        family = "moe_fp8"
    else:
        family = "moe_mxfp4" if sizes.BYTES_PER_ELEMENT[dtype] < 1.0 else "moe_bf16"
    return _on(gpu, family, dtype, unit)


def _on(gpu: Gpu, family: str, dtype: str, unit: str) -> Rates:
    element, given = sizes.BYTES_PER_ELEMENT[dtype], sizes.BYTES_PER_ELEMENT[unit]
    return kernels.rates(gpu, gpu.kernels[family], gpu.flops_per_s[unit], element, given)
