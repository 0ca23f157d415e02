"""The LoRA layer: y = x Wᵀ + (alpha / rank) · (x Aᵀ) Bᵀ over a frozen base weight (Hu et al., arXiv 2106.09685).

One layer serves a group of weights that read the same input (q, k, v; gate and up): their base rows are
stacked, so that one product does the work of three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_LONG_SUM, _FEW_COLUMNS = 2048, 768


class _LoraProduct(torch.autograd.Function):
    """x (T, in), lora_a (k·r, in), lora_b k × (out_i, r) -> (T, sum of out_i); no gradient for the base.

    The B of a group stand in one block-diagonal matrix (sum of out_i, k·r): its zeros cost less than more products.
    `base` is called for the weight in forward and again in backward, so that a quantised base need not stay
    dequantised between the two.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, base: Callable[[], Tensor], scale: float, lora_a: Tensor, *lora_b: Tensor
    ) -> Tensor:
        low_a, low_b = lora_a.to(x.dtype), _block_diagonal(lora_b, x.dtype)
        inner = x @ low_a.T
        y = (x @ base().T).addmm_(inner, low_b.T, alpha=scale)
        ctx.base, ctx.scale, ctx.dtype, ctx.outs = base, scale, lora_a.dtype, [len(b) for b in lora_b]
        ctx.save_for_backward(x, inner, low_a, low_b)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, low_a, low_b = ctx.saved_tensors
        d_inner = (dy @ low_b).mul_(ctx.scale)
        grad_b = (dy.T @ inner).to(ctx.dtype).mul_(ctx.scale)
        grad_a = (d_inner.T @ x).to(ctx.dtype)
        dx = _halved(dy, ctx.base()).addmm_(d_inner, low_a) if ctx.needs_input_grad[0] else None
        return (dx, None, None, grad_a, *_blocks(grad_b, ctx.outs))


def _halved(dy: Tensor, base: Tensor) -> Tensor:
    """dy (T, out) @ base (out, in); a long sum over few columns in two halves.

    oneDNN's blocking is slow there (bfloat16, 512 x 3072 x 576, two cores: 1.8 ms whole, 1.0 ms in halves).
    """
    half = len(base) // 2
    if dy.device.type != "cpu" or base.shape[1] >= _FEW_COLUMNS or len(base) < _LONG_SUM:
        return dy @ base
    return (dy[:, :half] @ base[:half]).addmm_(dy[:, half:], base[half:])


def _block_diagonal(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """k matrices (out_i, r) -> (sum of out_i, k·r)."""
    if len(parts) == 1:
        return parts[0].to(dtype)
    rank = parts[0].shape[1]
    whole = torch.zeros(sum(map(len, parts)), len(parts) * rank, dtype=dtype, device=parts[0].device)
    for block, part in zip(_blocks(whole, [len(p) for p in parts]), parts, strict=True):
        block.copy_(part)
    return whole


def _blocks(whole: Tensor, outs: Sequence[int]) -> list[Tensor]:
    """Views of the diagonal blocks (out_i, r) of (sum of out_i, k·r)."""
    columns = whole.shape[1] // len(outs)
    rows = whole.split(list(outs))
    return [part[:, i * columns : (i + 1) * columns] for i, part in enumerate(rows)]


class LoraGroup(nn.Module):
    """Adapters of the weights that share one input.

    Args:
        names: GGUF tensor names, in the order in which their base rows are stacked.
        n_in: width of the input.
        n_outs: rows of each weight.
        rank: r; `lora_a` is (r, in) and `lora_b` (out, r) for each weight.
        alpha: the update is scaled by alpha / rank.

    A starts uniform as in PEFT (Kaiming, a = √5), B at zero, so that a new adapter changes nothing.
    """

    def __init__(self, names: list[str], n_in: int, n_outs: list[int], rank: int, alpha: float) -> None:
        super().__init__()
        self.names, self.rank, self.scale = names, rank, alpha / rank
        self.enabled = True
        self.lora_a = nn.Parameter(torch.empty(len(names) * rank, n_in))
        self.lora_b = nn.ParameterList(torch.zeros(n_out, rank) for n_out in n_outs)
        bound = math.sqrt(1.0 / n_in)
        nn.init.uniform_(self.lora_a, -bound, bound)

    def forward(self, x: Tensor, base: Callable[[], Tensor]) -> Tensor:
        """x (T, in) -> (T, sum of out)."""
        if not self.enabled:
            return x @ base().T
        return _LoraProduct.apply(x, base, self.scale, self.lora_a, *self.lora_b)

    def frozen(self, dtype: torch.dtype) -> FrozenLora:
        """As it is now, for forward passes alone."""
        low_b = _block_diagonal([self.scale * b.detach() for b in self.lora_b], dtype)
        return FrozenLora(self.lora_a.detach().to(dtype), low_b)

    def weights(self) -> dict[str, tuple[Tensor, Tensor]]:
        """GGUF tensor name -> (lora_a (r, in), lora_b (out, r)), float32, detached views."""
        parts = self.lora_a.detach().split(self.rank)
        return {n: (a, b.detach()) for n, a, b in zip(self.names, parts, self.lora_b, strict=True)}

    @torch.no_grad()
    def load(self, weights: dict[str, tuple[Tensor, Tensor]], scale: float) -> None:
        """Take over another adapter's weights of the same rank; its own scale alpha / rank is folded into B."""
        for name, a, b in zip(self.names, self.lora_a.split(self.rank), self.lora_b, strict=True):
            if name in weights:
                a.copy_(weights[name][0])
                b.copy_(weights[name][1] * (scale / self.scale))


class FrozenLora(nn.Module):
    """Adapters that aren't trained: low_a (k·r, in) and block-diagonal, scaled low_b (sum of out, k·r), laid out once.

    Both in the type of what they multiply: converted at every product, they cost as much as the base at 64 rows.
    """

    def __init__(self, low_a: Tensor, low_b: Tensor) -> None:
        super().__init__()
        self.low_a, self.low_b = low_a, low_b

    def forward(self, x: Tensor, base: Callable[[], Tensor]) -> Tensor:
        """x (T, in) -> (T, sum of out); without a gradient."""
        return (x @ base().T).addmm_(x @ self.low_a.T, self.low_b.T)


def fuse(base: Tensor, lora_a: Tensor, lora_b: Tensor, scale: float) -> Tensor:
    """The merged weight W + scale · B A, (out, in), in float32."""
    return base.float() + scale * (lora_b.float() @ lora_a.float())
