"""Rotary position embedding as llama.cpp computes it (Su et al., arXiv 2104.09864; `ggml_rope_ext`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engrain.quant.blocks import dequantize
from engrain.quant.errors import EngrainError
from engrain.quant.gguf import GGUFModel
from engrain.update import fused


class Rope:
    """Cosines and sines for the positions of a pack.

    frequencies: (rope_dim / 2,) radians per position. magnitude scales cosine and sine (YaRN, LongRoPE).
    """

    def __init__(self, frequencies: Tensor, kind: str, magnitude: float = 1.0) -> None:
        self.frequencies, self.kind, self.magnitude = frequencies, kind, magnitude

    def table(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions (T,) -> cosine, sine, each (T, 1, rope_dim / 2)."""
        angles = positions[:, None].float() * self.frequencies.to(positions.device)
        return (
            (angles.cos() * self.magnitude).to(dtype)[:, None],
            (angles.sin() * self.magnitude).to(dtype)[:, None],
        )

    def rotate(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """x (T, heads, head_dim) rotated; dimensions behind rope_dim pass through."""
        return fused.rotate(x, *table, self.kind == "adjacent")


def rope_of(model: GGUFModel, kind: str, context: int) -> Rope:
    """The RoPE that llama.cpp would use for a context of `context` tokens."""
    h, arch, meta = model.hyper, model.architecture, model.metadata
    frequencies = h.rope_base ** (-torch.arange(0, h.rope_dim, 2, dtype=torch.float32) / h.rope_dim)
    scaling = meta.get(f"{arch}.rope.scaling.type", "none")
    magnitude = float(meta.get(f"{arch}.rope.scaling.attn_factor", 1.0) or 1.0)
    factors = model.tensors.get("rope_freqs.weight")
    if factors is None:
        original = meta.get(f"{arch}.rope.scaling.original_context_length", h.n_ctx)
        factors = model.tensors.get(f"rope_factors_{'long' if context > original else 'short'}.weight")
    if factors is not None:
        frequencies = frequencies / dequantize(torch.from_numpy(factors.data), factors.kind).flatten()
    if scaling == "linear":
        frequencies = frequencies / float(meta.get(f"{arch}.rope.scaling.factor", 1.0))
    elif scaling == "yarn":
        frequencies, extra = _yarn(frequencies, model)
        magnitude *= extra
    elif scaling not in ("none", "longrope", "", None):
        raise EngrainError(f"engrain cannot train RoPE scaling '{scaling}' yet (chatting works)")
    return Rope(frequencies, kind, magnitude)


def _yarn(frequencies: Tensor, model: GGUFModel) -> tuple[Tensor, float]:
    """YaRN (Peng et al., arXiv 2309.00071): slow dimensions are interpolated, fast ones kept."""
    h, arch, meta = model.hyper, model.architecture, model.metadata
    factor = float(meta.get(f"{arch}.rope.scaling.factor", 1.0))
    original = float(meta.get(f"{arch}.rope.scaling.original_context_length", h.n_ctx))
    beta_fast = float(meta.get(f"{arch}.rope.scaling.yarn_beta_fast", 32.0))
    beta_slow = float(meta.get(f"{arch}.rope.scaling.yarn_beta_slow", 1.0))

    def dimension(turns: float) -> float:
        return h.rope_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(h.rope_base))

    low = max(0.0, math.floor(dimension(beta_fast)))
    high = min(h.rope_dim - 1.0, math.ceil(dimension(beta_slow)))
    ramp = (torch.arange(len(frequencies), dtype=torch.float32) - low) / max(0.001, high - low)
    keep = 1 - ramp.clamp(0, 1)
    return frequencies / factor * (1 - keep) + frequencies * keep, 1.0 + 0.1 * math.log(factor)
