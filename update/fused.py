"""Elementwise steps with hand-written gradients: fewer passes over memory than autograd records, same numbers.

On a processor that multiplies bfloat16 matrices in hardware these steps, not the products, take most of the time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        scale = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        normed = x.float() * scale
        grad = dy.float() * weight
        along = (grad * normed).mean(-1, keepdim=True)
        return grad.addcmul_(normed, along, value=-1).mul_(scale).to(x.dtype), None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (…, n) over the root mean square of its last dimension, times a frozen weight (n,), in float32.

    Zhang and Sennrich, arXiv 1910.07467.
    """
    return _RmsNorm.apply(x, weight, eps)


class _SoftmaxAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, first_k: Tensor, first_v: Tensor, mask: Tensor, scale: float,
        softcap: float,
    ) -> Tensor:  # fmt: skip
        scores = _joined(q, k, first_k).mul_(scale)
        slope = None
        if softcap:
            scores.div_(softcap).tanh_()
            slope = 1 - scores.square()
            scores.mul_(softcap)
        share = scores.add_(mask).softmax(-1).to(q.dtype)
        ctx.save_for_backward(q, k, v, first_k, first_v, share, slope)
        ctx.scale = scale
        return _product(share, v, first_v)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, first_k, first_v, share, slope = ctx.saved_tensors
        wide, d_share = share.float(), _joined(dy, v, first_v)
        d_scores = d_share.sub_((d_share * wide).sum(-1, keepdim=True)).mul_(wide).mul_(ctx.scale)
        d_scores = (d_scores if slope is None else d_scores.mul_(slope)).to(q.dtype)
        d_first_k, d_k = _turned_product(d_scores, q, len(first_k[0]))
        d_first_v, d_v = _turned_product(share, dy, len(first_v[0]))
        return _product(d_scores, k, first_k), d_k, d_v, d_first_k, d_first_v, None, None, None


def _joined(x: Tensor, own: Tensor, first: Tensor) -> Tensor:
    """x (G, B, n, d) times the transposes of first (G, P, d) and own (G, B, L, d) -> (G, B, n, P + L), float32."""
    p = first.shape[1]
    last = x @ own.transpose(-1, -2)
    if not p:
        return last.float()
    out = torch.empty(*x.shape[:3], p + own.shape[2], device=x.device)
    out[..., p:] = last
    out[..., :p] = (x.flatten(1, 2) @ first.transpose(-1, -2)).unflatten(1, x.shape[1:3])
    return out


def _product(share: Tensor, own: Tensor, first: Tensor) -> Tensor:
    """share (G, B, n, P + L) times first (G, P, d) and own (G, B, L, d), added up -> (G, B, n, d)."""
    p = first.shape[1]
    out = share[..., p:] @ own
    return out.add_((share[..., :p].flatten(1, 2) @ first).view_as(out)) if p else out


def _turned_product(share: Tensor, x: Tensor, p: int) -> tuple[Tensor, Tensor]:
    """The transpose of share (G, B, n, P + L) times x (G, B, n, d) -> (G, P, d) summed over B, and (G, B, L, d)."""
    own = share[..., p:].transpose(-1, -2) @ x
    if not p:
        return x.new_zeros(x.shape[0], 0, x.shape[-1]), own
    return share[..., :p].flatten(1, 2).transpose(-1, -2) @ x.flatten(1, 2), own


def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, first: tuple[Tensor, Tensor], mask: Tensor, scale: float, softcap: float = 0.0
) -> Tensor:
    """softmax(cap(scale · q [k₀; k]ᵀ) + mask) [v₀; v] for q (G, B, n, d), k and v (G, B, L, d), mask (n, P + L).

    first: k₀ and v₀ (G, P, d), the same for all B, which are multiplied once and not repeated. cap(x) = c · tanh(x / c)
    for a softcap c > 0.

    Keeps the (G, B, n, P + L) weights for backward: right for the short rows of chat packs, where the flash kernel's
    backward on a CPU is six times slower (bfloat16, 32 examples of 20 tokens, one thread: 14 ms against 1.8 ms).
    """
    return _SoftmaxAttention.apply(q, k, v, *first, mask, scale, softcap)


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, dim=-1)
        grad = torch.empty_like(both)
        d_gate, d_up = grad.chunk(2, dim=-1)
        torch.mul(dy, F.silu(gate), out=d_up)
        torch.ops.aten.silu_backward.grad_input(dy * up, gate, grad_input=d_gate)
        return grad


def gated_silu(both: Tensor) -> Tensor:
    """silu(gate) · up for both (T, 2n) = (gate, up), (T, n) (SwiGLU; Shazeer, arXiv 2002.05202).

    Keeps only its input for backward.
    """
    return _GatedSilu.apply(both)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, adjacent: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.adjacent = adjacent
        return _turn(x, cos, sin, adjacent, 1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turn(dy, cos, sin, ctx.adjacent, -1), None, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, adjacent: bool, sign: int) -> Tensor:
    n = 2 * cos.shape[-1]
    if adjacent and n == x.shape[-1] and x.device.type != "mps":
        # As complex numbers: a quarter of the time that steps of two through memory take.
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * torch.complex(cos.float(), sign * sin.float())).flatten(-2).to(x.dtype)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if n < x.shape[-1]:
        out[..., n:] = x[..., n:]
    first, second = (slice(0, n, 2), slice(1, n, 2)) if adjacent else (slice(0, n // 2), slice(n // 2, n))
    a, b = x[..., first], x[..., second]
    torch.mul(a, cos, out=out[..., first]).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=out[..., second]).addcmul_(a, sin, value=sign)
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor, adjacent: bool) -> Tensor:
    """Pairs of x (T, heads, d) turned by an angle, cos and sin (T, 1, n / 2); dimensions behind n pass through.

    Pairs are neighbours, or n / 2 apart. The gradient is the turn back.
    """
    return _Rotate.apply(x, cos, sin, adjacent)
