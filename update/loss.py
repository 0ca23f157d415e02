"""The loss on targets only, in chunks of rows, so that a vocabulary's logits are never all in memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engrain.update.decoder import Decoder
from engrain.update.pack import Pack

CHUNK_BYTES = 64 << 20


class _ChunkedLoss(torch.autograd.Function):
    """Loss and its gradient to `hidden` computed together, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, decoder: Decoder, pack: Pack, nll: Tensor) -> Tensor:
        head = decoder.head()
        rows = max(1, CHUNK_BYTES // (4 * head.shape[0]))
        rows = max(1, rows // 32 * 32)
        grads, total = [], hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            leaf = hidden[part].detach().requires_grad_()
            fill = -leaf.shape[0] % 32 if rows >= 32 else 0
            with torch.enable_grad():
                raw = F.pad(leaf, (0, 0, 0, fill)) @ head.T
                log_p = decoder.finish(raw[: leaf.shape[0]]).log_softmax(-1)
                loss = _token_losses(log_p, pack, part)
                weighted = (loss * pack.weight[part]).sum()
            grads.append(torch.autograd.grad(weighted, leaf)[0])
            total += weighted.detach()
            nll[part] = loss.detach()
        ctx.save_for_backward(torch.cat(grads))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.saved_tensors[0] * grad.to(ctx.saved_tensors[0].dtype), None, None, None


def _token_losses(log_p: Tensor, pack: Pack, part: slice) -> Tensor:
    """log_p (rows, vocab) -> (rows,) nats: cross-entropy, or KL(teacher ‖ model) where a teacher is given."""
    losses = -log_p.gather(1, pack.target_ids[part, None])[:, 0]
    if pack.teacher_ids is None or pack.teacher_log_p is None:
        return losses
    taught = pack.teacher_ids[part, 0] >= 0
    if not taught.any():
        return losses
    kl = top_k_kl(log_p, pack.teacher_ids[part].clamp_min(0), pack.teacher_log_p[part])
    return torch.where(taught, kl, losses)


def top_k_kl(log_p: Tensor, ids: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ model) in nats over the teacher's top k tokens and one bucket for all the rest.

    log_p (rows, vocab), ids and teacher (rows, k) log-probabilities -> (rows,).
    """
    picked = log_p.gather(1, ids)
    rest_t = torch.log1p(-teacher.exp().sum(1).clamp(max=1 - 1e-6))
    rest_s = torch.log1p(-picked.exp().sum(1).clamp(max=1 - 1e-6))
    return (teacher.exp() * (teacher - picked)).sum(1) + rest_t.exp() * (rest_t - rest_s)


def pack_loss(decoder: Decoder, pack: Pack) -> tuple[Tensor, Tensor]:
    """Weighted sum of the pack's token losses (a scalar with gradient), and each token's loss (K,), in nats."""
    nll = torch.empty(len(pack.target_ids), device=pack.target_ids.device)
    loss = _ChunkedLoss.apply(decoder.hidden(pack), decoder, pack, nll)
    return loss, nll


@torch.no_grad()
def teach(decoder: Decoder, pack: Pack, k: int = 16) -> tuple[Tensor, Tensor]:
    """The bare base model's top-k ids and log-probabilities at every target row, each (K, k)."""
    with decoder.bare():
        hidden = decoder.hidden(pack)
    rows = max(1, CHUNK_BYTES // (4 * decoder.head().shape[0]))
    tops = [decoder.logits(h).log_softmax(-1).topk(k) for h in hidden.split(rows)]
    return torch.cat([t.indices for t in tops]), torch.cat([t.values for t in tops])
