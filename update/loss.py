"""The loss on targets only, a tile of rows and words at a time, so that a vocabulary's logits are never all in memory.

Every row has a teacher: probabilities t of some words S and the rest r in one bucket; plain cross-entropy is the
teacher that is sure of the target. With p = softmax(z) and p_r = 1 - sum of p over S, the loss is
KL(t ‖ p) = sum over S of t (log t - log p) + r (log r - log p_r), and its gradient

    dL / dz_j = p_j (1 - r / p_r) - [j in S] (t_j - p_j r / p_r).

The normaliser takes one pass over the words and the gradient a second, as in Cut Cross-Entropy (Wijmans et al.,
arXiv 2411.09009): a resident head is one block of words whose logits serve both, one left in its blocks is dequantised
piece by piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engrain.update.decoder import Decoder
from engrain.update.pack import Pack

TILE_BYTES = 64 << 20  # of logits held at once, counted as float32
STRIP_BYTES = 2 << 20  # of them worked on at a time: what stays in a processor's cache
ROWS = 32  # tiles are filled up to a multiple: a matrix library prepares itself anew for every new shape
_LEAST_REST = 1e-6  # of the probability outside the teacher's words


class _HeadLoss(torch.autograd.Function):
    """hidden (K, n_embd) -> weighted sum of token losses, and those; the gradient is made in forward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, decoder: Decoder, ids: Tensor, taught: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        count, wanted = len(hidden), ctx.needs_input_grad[0]
        hidden, ids, taught, weight = map(_filled, (hidden, ids, taught, weight))
        losses, grads = [], []
        for part in _tiles(len(hidden), decoder):
            x, t = hidden[part], taught[part]
            log_total, picked, kept = _normaliser(decoder, x, ids[part])
            log_p = picked - log_total[:, None]
            rest, rest_t = 1 - log_p.exp().sum(1), (1 - t.sum(1)).clamp_min(0)
            kl = (torch.xlogy(t, t) - t * log_p).sum(1)
            losses.append(kl + torch.xlogy(rest_t, rest_t) - rest_t * rest.clamp_min(_LEAST_REST).log())
            if wanted:
                share = rest_t / rest.clamp_min(_LEAST_REST) * (rest > _LEAST_REST)
                own = t - log_p.exp() * share[:, None]
                rows = weight[part, None]
                grads.append(_gradient(decoder, x, ids[part], rows * own, log_total, rows * (1 - share[:, None]), kept))
        nll = torch.cat(losses)
        ctx.save_for_backward(*grads)
        ctx.count = count
        ctx.mark_non_differentiable(nll)
        return (nll * weight).sum(), nll

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        whole = torch.cat(ctx.saved_tensors)[: ctx.count]
        return whole * grad.to(whole.dtype), None, None, None, None


def _normaliser(decoder: Decoder, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """log of the sum of exp(logits) (rows,), the logits of ids (rows, k), and x @ head.T where one block holds it."""
    log_total = torch.full((len(x),), -torch.inf, device=x.device)
    picked = torch.empty(ids.shape, device=x.device)
    raw = None
    for start, words in decoder.head.blocks():
        raw = x @ words.T
        for strip in _strips(raw):
            z = decoder.finish(raw[strip])
            log_total[strip] = torch.logaddexp(log_total[strip], z.logsumexp(1))
            inside, place = _within(ids[strip], start, len(words))
            picked[strip] = torch.where(inside, z.gather(1, place), picked[strip])
    return log_total, picked, raw if decoder.head.resident else None


def _gradient(
    decoder: Decoder, x: Tensor, ids: Tensor, own: Tensor, log_total: Tensor, share: Tensor, kept: Tensor | None
) -> Tensor:
    """Gradient to x: every word's probability times `share` (rows, 1), less `own` (rows, k) for the teacher's words.

    `kept`, the products that `_normaliser` gave, is overwritten.
    """
    grad = torch.zeros(x.shape, device=x.device)
    for start, words in decoder.head.blocks():
        raw = kept if kept is not None else x @ words.T
        for strip in _strips(raw):
            z = decoder.finish(raw[strip])
            slope = decoder.slope(z)
            d = z.sub_(log_total[strip, None]).exp_().mul_(share[strip])
            inside, place = _within(ids[strip], start, len(words))
            d.scatter_add_(1, place, -own[strip] * inside)
            if slope is not None:
                d.mul_(slope)
            raw[strip] = d
        grad += raw @ words
    return grad.to(x.dtype)


def _strips(raw: Tensor) -> Iterator[slice]:
    """A few rows at a time on a processor, all at once elsewhere."""
    count, words = raw.shape
    rows = max(1, STRIP_BYTES // (4 * words)) if raw.device.type == "cpu" else count
    return (slice(start, start + rows) for start in range(0, count, rows))


def _within(ids: Tensor, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Which ids a block of words holds, and their places in it (any place for the others)."""
    place = ids - start
    return (place >= 0) & (place < count), place.clamp(0, count - 1)


def _filled(t: Tensor) -> Tensor:
    """Rows of zeros up to a multiple of ROWS; they weigh nothing."""
    return F.pad(t, (0, 0) * (t.dim() - 1) + (0, -len(t) % ROWS))


def _tiles(count: int, decoder: Decoder) -> Iterator[slice]:
    """As many rows at a time as a block of words leaves room for."""
    rows = TILE_BYTES // (4 * decoder.head.block_rows)
    rows = max(1, rows // ROWS) * ROWS
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))


def teacher_of(pack: Pack) -> tuple[Tensor, Tensor]:
    """Ids and probabilities (K, k) of each target's teacher; a target without one is sure of itself."""
    sure = torch.ones_like(pack.target_ids[:, None], dtype=torch.float32)
    if pack.teacher_ids is None or pack.teacher_log_p is None:
        return pack.target_ids[:, None], sure
    taught = pack.teacher_ids[:, :1] >= 0
    # Where there is none the target stands k times, and counts once.
    once = (torch.arange(pack.teacher_ids.shape[1], device=sure.device) == 0).float()
    ids = torch.where(taught, pack.teacher_ids, pack.target_ids[:, None])
    return ids, torch.where(taught, pack.teacher_log_p.exp(), once)


def pack_loss(decoder: Decoder, pack: Pack) -> tuple[Tensor, Tensor]:
    """Weighted sum of the pack's token losses (a scalar with gradient), and each token's loss (K,), in nats.

    A token's loss is its cross-entropy, or KL(teacher ‖ model) over the teacher's words and one bucket for the rest.
    """
    pack = pack.to(decoder.embedding.device)
    return head_loss(decoder, decoder.hidden(pack), *teacher_of(pack), pack.weight)


def head_loss(decoder: Decoder, hidden: Tensor, ids: Tensor, taught: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """As `pack_loss`, for hidden (K, n_embd) and teachers' ids and probabilities (K, k), each token weighing (K,)."""
    loss, nll = _HeadLoss.apply(hidden, decoder, ids, taught, weight)
    return loss, nll[: len(hidden)]


@torch.no_grad()
def log_normaliser(decoder: Decoder, hidden: Tensor) -> Tensor:
    """hidden (rows, n_embd) -> log of the sum of exp(logits), (rows,), in nats."""
    none = torch.empty((len(hidden), 0), dtype=torch.long, device=hidden.device)
    return torch.cat([_normaliser(decoder, hidden[part], none[part])[0] for part in _tiles(len(hidden), decoder)])


@torch.no_grad()
def teach(decoder: Decoder, pack: Pack, k: int = 16) -> tuple[Tensor, Tensor]:
    """The bare base model's top-k ids and log-probabilities at every target row, each (K, k)."""
    with decoder.bare():
        hidden = decoder.hidden(pack.to(decoder.embedding.device))
    return likeliest(decoder, hidden, k)


@torch.no_grad()
def likeliest(decoder: Decoder, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """hidden (rows, n_embd) -> the k likeliest words' ids and log-probabilities, each (rows, k), best first."""
    tops = [_top(decoder, hidden[part], k) for part in _tiles(len(hidden), decoder)]
    return torch.cat([ids for ids, _ in tops]), torch.cat([log_p for _, log_p in tops])


def _top(decoder: Decoder, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k likeliest words of each row and their log-probabilities, each (rows, k)."""
    log_total = torch.full((len(x),), -torch.inf, device=x.device)
    best, ids = torch.empty((len(x), 0), device=x.device), torch.empty((len(x), 0), dtype=torch.long, device=x.device)
    for start, words in decoder.head.blocks():
        z = decoder.finish(x @ words.T)
        log_total = torch.logaddexp(log_total, z.logsumexp(1))
        values, places = z.topk(min(k, len(words)))
        best, ids = torch.cat((best, values), 1), torch.cat((ids, places + start), 1)
        best, order = best.topk(min(k, best.shape[1]))
        ids = ids.gather(1, order)
    return ids, best - log_total[:, None]
