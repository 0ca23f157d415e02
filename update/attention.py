"""Attention within a pack: every example sees the shared prefix and itself, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engrain.update import fused
from engrain.update.pack import Pack

LONGEST_EXPLICIT = 1024  # keys up to which attention weights are kept in memory
LONG_PREFIX = 64  # keys from which on a prefix is multiplied once for all examples


@dataclass(frozen=True)
class Mask:
    """Additive masks (0 or -inf): prefix (P, P), and (L, P + L), the same for every example of the pack."""

    prefix: Tensor | None
    examples: Tensor

    @staticmethod
    def of(pack: Pack, window: int, dtype: torch.dtype) -> Mask:
        """Causal masks; with a window > 0 a position sees only the last `window` positions, itself included."""
        device = pack.tokens.device

        def build(queries: Tensor, keys: Tensor) -> Tensor:
            distance = queries[:, None] - keys[None]
            hidden = (distance < 0) | (distance >= window) if window else distance < 0
            return torch.zeros(distance.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)

        head = torch.arange(pack.prefix, device=device)
        tail = torch.arange(pack.prefix, pack.prefix + pack.longest, device=device)
        return Mask(build(head, head) if pack.prefix else None, build(tail, torch.cat((head, tail))))


class _Pad(torch.autograd.Function):
    """Flat rows -> padded slots. Padded keys are masked for every real query, so their gradient is zero, and where
    every row has one slot backward is a gather too, instead of a slow scatter-add.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, pad: Tensor, unpad: Tensor, shared: bool) -> Tensor:
        ctx.save_for_backward(pad if shared else unpad)
        ctx.shared, ctx.rows = shared, len(x)
        return x.index_select(0, pad)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        if not ctx.shared:
            return dy.index_select(0, index), None, None, None
        dx = torch.zeros(ctx.rows, *dy.shape[1:], device=dy.device)
        return dx.index_add_(0, index, dy.float()).to(dy.dtype), None, None, None


class _Unpad(torch.autograd.Function):
    """Padded slots -> flat rows; what padding computed gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, unpad: Tensor) -> Tensor:
        ctx.save_for_backward(unpad)
        ctx.slots = x.shape[0]
        return x.index_select(0, unpad)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx = dy.new_zeros(ctx.slots, *dy.shape[1:])
        return dx.index_copy_(0, ctx.saved_tensors[0], dy), None


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float, *, pack: Pack, mask: Mask) -> Tensor:
    """q (T, n_head, d), k and v (T, n_head_kv, d) -> (T, n_head, d)."""
    p, pad = pack.prefix, (pack.pad - pack.prefix).clamp_min(0)

    def padded(x: Tensor) -> Tensor:
        return _Pad.apply(x[p:], pad, pack.unpad, pack.tree).unflatten(0, (pack.batch, pack.longest))

    out = _grouped(padded(q), padded(k), padded(v), k[:p], v[:p], mask.examples, scale, softcap)
    out = _Unpad.apply(out.flatten(0, 1), pack.unpad)
    if not p:
        return out
    assert mask.prefix is not None
    head = _grouped(q[None, :p], k[None, :p], v[None, :p], k[:0], v[:0], mask.prefix, scale, softcap)[0]
    return torch.cat((head, out))


def attend_all(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float, *, mask: Tensor) -> Tensor:
    """As `attend`, for rows that each see what a mask (T, T) of 0 and -inf says."""
    return _grouped(q[None], k[None], v[None], k[:0], v[:0], mask, scale, softcap)[0]


def _grouped(
    q: Tensor, k: Tensor, v: Tensor, first_k: Tensor, first_v: Tensor, mask: Tensor, scale: float, softcap: float
) -> Tensor:
    """q (B, L, n_head, d), k and v (B, L, G, d) after the same first_k and first_v (P, G, d) -> (B, L, n_head, d).

    Query heads that share a key head are laid along the query axis, so keys are never repeated; mask (L, P + L). A
    short prefix is repeated for every example all the same: its products cost less than joining them to the others.
    """
    batch, length, n_head, d = q.shape
    groups = k.shape[2]
    q = q.unflatten(2, (groups, -1)).permute(2, 0, 1, 3, 4).reshape(groups, batch, -1, d)
    mask = mask.repeat_interleave(n_head // groups, 0)
    k, v, first_k, first_v = (x.transpose(-2, -3).movedim(-3, 0) for x in (k, v, first_k, first_v))
    explicit = softcap or (q.device.type == "cpu" and mask.shape[1] <= LONGEST_EXPLICIT)
    if not explicit or first_k.shape[1] < LONG_PREFIX:
        k, v = (
            torch.cat((first[:, None].expand(-1, batch, -1, -1), own), 2) for first, own in ((first_k, k), (first_v, v))
        )
        first_k, first_v = first_k[:, :0], first_v[:, :0]
    if explicit:
        out = fused.softmax_attention(q, k, v, (first_k, first_v), mask, scale, softcap)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.unflatten(2, (length, -1)).permute(1, 2, 0, 3, 4).reshape(batch, length, n_head, d)
