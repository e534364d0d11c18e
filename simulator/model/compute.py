"""How long a GPU computes: a roofline per kernel.

    seconds = launches * launch overhead + max(FLOPs / (peak * e_c), HBM bytes / (bandwidth * e_m))

(Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009), with the GPU's measured efficiencies
e_c and e_m (catalogue). Weights are streamed once per kernel, activations are read and written
once. Not modelled here: dependence of the efficiency on the shape, tile quantisation, L2 reuse.
"""

from __future__ import annotations

from typing import NamedTuple

from simulator.model import sizes
from simulator.spec.schema import Gpu, GqaAttention, Model


class Work(NamedTuple):
    """One kernel's time (s), FLOPs and HBM bytes."""

    seconds: float
    flops: float
    bytes: float


NOTHING = Work(0.0, 0.0, 0.0)
ACTIVATION_BYTES = 2.0  # BF16 between kernels


class ComputeModel:
    """Kernel times of one model on one GPU; results are kept per shape.

    `phase` is "decode" (every row is a sequence with its own `context` of KV) or "prefill" (the
    rows belong together and attend to `context` keys each on average).
    """

    def __init__(self, model: Model, gpu: Gpu, phase: str, context: int) -> None:
        self.model = model
        self.phase = phase
        self.context = context
        self.launch_s = gpu.launch_overhead_s
        rates = gpu.flops_per_s
        # A GPU without units for the weights' type computes in BF16 after conversion.
        self.weight_flops_per_s = rates.get(model.dtype, rates["bf16"]) * gpu.compute_efficiency
        self.dense_flops_per_s = rates["bf16"] * gpu.compute_efficiency
        self.bytes_per_s = gpu.hbm_bandwidth_bytes_per_s * gpu.memory_efficiency
        self._weight_bytes = sizes.BYTES_PER_ELEMENT[model.dtype]
        self._expert_parameters = sizes.ffn_parameters(model, model.moe.intermediate)
        self._attention: dict[int, Work] = {}
        self._experts: dict[tuple[int, int], Work] = {}

    def attention(self, rows: int, gate: bool) -> Work:
        """Projections, attention over the KV cache and, with `gate`, the router, of `rows`."""
        key = rows * 2 + gate
        work = self._attention.get(key)
        if work is None:
            work = self._attention[key] = self._attention_work(rows, gate)
        return work

    def experts(self, rows: int, active: int) -> Work:
        """A grouped GEMM over `active` experts with `rows` tokens together."""
        work = self._experts.get((rows, active))
        if work is None:
            parameters = self._expert_parameters
            model = self.model
            moved = active * parameters * self._weight_bytes + self._activations(
                rows, model.hidden, 3 * model.moe.intermediate, model.hidden
            )
            work = self._roofline(2.0 * parameters * rows, moved, 2, self.weight_flops_per_s)
            self._experts[rows, active] = work
        return work

    def dense_ffn(self, rows: int) -> Work:
        """The FFN of a dense layer."""
        return self._ffn(rows, self.model.dense_intermediate)

    def shared_experts(self, rows: int) -> Work:
        """The experts that every token takes (one GEMM pair over all of them)."""
        moe = self.model.moe
        return self._ffn(rows, moe.shared_experts * moe.shared_intermediate)

    def lm_head(self, rows: int) -> Work:
        """Logits of `rows` tokens, in BF16."""
        parameters = self.model.vocab * self.model.hidden
        moved = parameters * ACTIVATION_BYTES + self._activations(
            rows, self.model.hidden, self.model.vocab
        )
        return self._roofline(2.0 * parameters * rows, moved, 1, self.dense_flops_per_s)

    def _ffn(self, rows: int, intermediate: int) -> Work:
        if rows == 0 or intermediate == 0:
            return NOTHING
        parameters = sizes.ffn_parameters(self.model, intermediate)
        moved = parameters * self._weight_bytes + self._activations(
            rows, self.model.hidden, 3 * intermediate, self.model.hidden
        )
        return self._roofline(2.0 * parameters * rows, moved, 2, self.weight_flops_per_s)

    def _attention_work(self, rows: int, gate: bool) -> Work:
        if rows == 0:
            return NOTHING
        model = self.model
        projections = sizes.attention_parameters(model)
        inner = projections // model.hidden  # widths between the projections (exact for GQA)
        linear = self._roofline(
            2.0 * projections * rows,
            projections * self._weight_bytes + self._activations(rows, 2 * model.hidden, inner),
            2 if isinstance(model.attention, GqaAttention) else 5,
            self.weight_flops_per_s,
        )
        core = self._roofline(
            self._score_flops_per_key() * self.context * rows,
            sizes.kv_bytes_per_token_layer(model)
            * self.context
            * (rows if self.phase == "decode" else 1),
            1,
            self.dense_flops_per_s,
        )
        parts = [linear, core]
        if gate:
            parameters = sizes.gate_parameters(model)
            moved = parameters * ACTIVATION_BYTES + self._activations(rows, model.hidden)
            parts.append(self._roofline(2.0 * parameters * rows, moved, 1, self.dense_flops_per_s))
        return Work(
            sum(p.seconds for p in parts), sum(p.flops for p in parts), sum(p.bytes for p in parts)
        )

    def _score_flops_per_key(self) -> float:
        """FLOPs per query token and key: scores and weighted values, all heads.

        MLA in decode works on the latent (absorbed up-projections), in prefill on full heads.
        """
        a = self.model.attention
        if isinstance(a, GqaAttention):
            return 4.0 * a.heads * a.head_dim
        if self.phase == "decode":
            return 2.0 * a.heads * (2 * a.kv_lora_rank + a.qk_rope_head_dim)
        return 2.0 * a.heads * (a.qk_nope_head_dim + a.qk_rope_head_dim + a.v_head_dim)

    def _activations(self, rows: int, *widths: int) -> float:
        return rows * sum(widths) * ACTIVATION_BYTES

    def _roofline(self, flops: float, moved: float, launches: int, flops_per_s: float) -> Work:
        seconds = launches * self.launch_s + max(flops / flops_per_s, moved / self.bytes_per_s)
        return Work(seconds, flops, moved)
