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
    """Flat rows -> padded slots. Padded keys are masked for every real query, so their gradient is zero and
    backward is a gather too, instead of a slow scatter-add.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, pad: Tensor, unpad: Tensor) -> Tensor:
        ctx.save_for_backward(unpad)
        return x.index_select(0, pad)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return dy.index_select(0, ctx.saved_tensors[0]), None, None


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


def attend(q: Tensor, k: Tensor, v: Tensor, pack: Pack, mask: Mask, scale: float, softcap: float) -> Tensor:
    """q (T, n_head, d), k and v (T, n_head_kv, d) -> (T, n_head, d).

    Query heads that share a key head are laid along the query axis, so keys are never repeated.
    """
    p, batch, length = pack.prefix, pack.batch, pack.longest
    pad, unpad = (pack.pad - p).clamp_min(0), pack.unpad

    def examples(x: Tensor) -> Tensor:
        return _Pad.apply(x[p:], pad, unpad).unflatten(0, (batch, length))

    keys, values = examples(k), examples(v)
    if p:
        keys = torch.cat((k[:p].expand(batch, -1, -1, -1), keys), 1)
        values = torch.cat((v[:p].expand(batch, -1, -1, -1), values), 1)
    out = _grouped(examples(q), keys, values, mask.examples, scale, softcap)
    out = _Unpad.apply(out.flatten(0, 1), unpad)
    if not p:
        return out
    assert mask.prefix is not None
    first = _grouped(q[None, :p], k[None, :p], v[None, :p], mask.prefix, scale, softcap)[0]
    return torch.cat((first, out))


def _grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float) -> Tensor:
    """q (B, L, n_head, d), k and v (B, S, n_head_kv, d), mask (L, S) -> (B, L, n_head, d)."""
    batch, length, n_head, d = q.shape
    shared = n_head // k.shape[2]
    q = q.unflatten(2, (-1, shared)).permute(0, 2, 3, 1, 4).reshape(batch, -1, shared * length, d)
    mask = mask.repeat(shared, 1)
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    if softcap:
        scores = softcap * torch.tanh((q @ k.transpose(-1, -2)).float() * (scale / softcap)) + mask
        out = scores.softmax(-1).to(q.dtype) @ v
    elif q.device.type == "cpu" and k.shape[2] <= LONGEST_EXPLICIT:
        out = fused.softmax_attention(q, k, v, mask, scale)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.unflatten(2, (shared, length)).permute(0, 3, 1, 2, 4).reshape(batch, length, n_head, d)
