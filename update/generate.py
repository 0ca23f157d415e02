"""Texts that a decoder writes with the adapter it has, many side by side: one product serves a token of each.

llama.cpp writes what the user reads. What is written to be learned from (questions, messages, answers for anchors) is
many short texts at once, and those PyTorch's wide products write several times faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engrain.device.batching import shared_prefix
from engrain.update.decoder import Decoder
from engrain.update.loss import likeliest

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime

TOP_K, TOP_P = 64, 0.95  # a nucleus (Holtzman et al., arXiv 1904.09751) of the likeliest few
_WIDTH = 256  # texts side by side
_BYTES = 128 << 20  # of keys and values, or of attention weights, at once
_SHRINK = 0.75  # of a batch: once fewer are left, only those go on
_COLD = 1e-6  # a temperature at which the likeliest is as good as certain
_PIECE = 512  # tokens of a common beginning that are evaluated at once


def write(
    runtime: Runtime,
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    temperature: float | Sequence[float],
    seed: int,
    stop: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """What follows each prompt (token ids), up to the end of a turn or with the first of `stop`'s characters.

    temperature: of all, or of each; greedy at 0.
    """
    ending: dict[int, bool] = {}

    def ends(token: int) -> bool:
        if token not in ending:
            ending[token] = runtime.is_end(token) or any(c in stop for c in runtime.detokenize([token]))
        return ending[token]

    found = continued(decoder, prompts, max_tokens, ends, temperature, seed, progress)
    return [runtime.detokenize([t for t in text if not runtime.is_end(t)]) for text in found]


@torch.no_grad()
def continued(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    ends: Callable[[int], bool],
    temperature: float | Sequence[float] = 0.0,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[int]]:
    """New tokens of each prompt, the one that `ends` it included; greedy at temperature 0 (of all, or of each)."""
    generator = torch.Generator().manual_seed(seed)
    found: list[list[int]] = [[] for _ in prompts]
    order, shared = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), *prompts[i])), shared_prefix(prompts)
    tails = [tuple(prompt[shared:]) for prompt in prompts]
    heat = torch.tensor(temperature).expand(len(prompts))
    first = _Held(decoder, 1, shared)
    for at in range(0, shared, _PIECE):
        _advance(decoder, first, [prompts[0][at : min(at + _PIECE, shared)]])
    while order:
        room = len(tails[order[-1]]) + max_tokens
        width = _width(decoder, room, room - max_tokens, shared)
        # None for one that has ended, and is carried on until enough have
        going: list[int | None] = list(order[:width])
        warm = heat[order[:width]]
        held, hidden = _begin(decoder, [tails[i] for i in order[:width]], room, first)
        order = order[width:]
        for n in range(1, max_tokens + 1):
            chosen = _choose(decoder, hidden, warm, generator)
            for row, (i, token) in enumerate(zip(going, chosen, strict=True)):
                if i is not None:
                    found[i].append(token)
                    going[row] = None if ends(token) else i
            left = [row for row, i in enumerate(going) if i is not None]
            progress(len(prompts) - len(order) - len(left), len(prompts))
            if not left or n == max_tokens:
                break
            if len(left) < _SHRINK * len(going):
                held.keep(left)
                going, chosen, warm = [going[row] for row in left], [chosen[row] for row in left], warm[left]
            hidden = _advance(decoder, held, [[token] for token in chosen])
    progress(len(prompts), len(prompts))
    return found


def _begin(decoder: Decoder, prompts: Sequence[tuple[int, ...]], room: int, first: _Held) -> tuple[_Held, Tensor]:
    """What is held of the prompts, equal ones evaluated once, and the normed output at their ends, (B, n_embd)."""
    distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    held, rows = _Held(decoder, len(distinct), room, first), [distinct[prompt] for prompt in prompts]
    hidden = _advance(decoder, held, list(distinct))[rows]
    held.keep(rows)
    return held, hidden


def _width(decoder: Decoder, room: int, tail: int, shared: int) -> int:
    """How many texts of at most `tail` tokens behind the shared ones are written side by side."""
    hyper, size = decoder.model.hyper, torch.finfo(decoder.dtype).bits // 8
    keys_values = 2 * hyper.n_layer * hyper.n_head_kv * hyper.head_dim * room * size
    weights = 4 * hyper.n_head * tail * (shared + room)
    return max(1, min(_WIDTH, _BYTES // max(keys_values, weights)))


def _choose(decoder: Decoder, hidden: Tensor, temperature: Tensor, generator: torch.Generator) -> list[int]:
    """A token for each row of hidden (B, n_embd), each at its own temperature (B,)."""
    warm = bool(temperature.any())
    ids, log_p = (t.cpu() for t in likeliest(decoder, hidden, TOP_K if warm else 1))
    if not warm:
        return [int(i) for i in ids[:, 0]]
    p = (log_p / temperature[:, None].clamp_min(_COLD)).softmax(1)
    p[:, 1:][p.cumsum(1)[:, :-1] > TOP_P] = 0  # what comes after enough of the probability
    return [int(i) for i in ids.gather(1, torch.multinomial(p, 1, generator=generator))[:, 0]]


class _Held:
    """Keys and values of texts side by side, in each layer: (B, room, n_head_kv, d), after those of `first` for all."""

    def __init__(self, decoder: Decoder, batch: int, room: int, first: _Held | None = None) -> None:
        hyper, device = decoder.model.hyper, decoder.embedding.device
        shape = (batch, room, hyper.n_head_kv, hyper.head_dim)
        self.keys, self.values = (
            [torch.zeros(shape, dtype=decoder.dtype, device=device) for _ in decoder.layers] for _ in range(2)
        )
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)
        self.first = first

    def keep(self, rows: Sequence[int]) -> None:
        """Hold these texts, and no others; one may be there several times."""
        at = torch.tensor(rows, device=self.lengths.device)
        self.lengths = self.lengths[at]
        for each in (self.keys, self.values):
            each[:] = [x[at] for x in each]

    def attend(
        self, layer: int, places: Tensor, mask: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float
    ) -> Tensor:
        """q (B·n, n_head, d), k and v (B·n, n_head_kv, d), put at `places` (B, n) -> (B·n, n_head, d).

        mask: (B, n, first + room), true where a token sees a key.
        """
        batch, n = places.shape
        keys, values = self.keys[layer], self.values[layer]
        for all_, new in ((keys, k), (values, v)):
            all_[torch.arange(batch, device=places.device)[:, None], places] = new.unflatten(0, (batch, n)).to(all_)
        q = q.unflatten(0, (batch, n)).unflatten(2, (keys.shape[2], -1)).permute(0, 2, 1, 3, 4)  # (B, G, n, h, d)
        parts = [(keys, values)]
        if self.first is not None:
            parts.insert(0, (self.first.keys[layer], self.first.values[layer]))
        scores = torch.cat([q.flatten(2, 3) @ each.permute(0, 2, 3, 1) for each, _ in parts], 3).float() * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        hidden = ~mask[:, None].repeat_interleave(q.shape[3], 2)
        p = scores.masked_fill_(hidden, -torch.inf).softmax(3).to(values.dtype).split([x.shape[1] for x, _ in parts], 3)
        out = sum(share @ each.transpose(1, 2) for share, (_, each) in zip(p, parts, strict=True))
        assert isinstance(out, Tensor)
        return out.unflatten(2, (n, -1)).permute(0, 2, 1, 3, 4).reshape(batch * n, -1, q.shape[-1])


def _advance(decoder: Decoder, held: _Held, tokens: Sequence[Sequence[int]]) -> Tensor:
    """Evaluate each text's next tokens -> the normed output at the last of each, (B, n_embd)."""
    counts = torch.tensor([len(each) for each in tokens], device=held.lengths.device)
    n = int(counts.max())
    # What fills a row up lies behind its last token: nothing sees it, and what comes next is put in its place.
    ids = torch.tensor([[*each, *[0] * (n - len(each))] for each in tokens], device=held.lengths.device)
    places = held.lengths[:, None] + torch.arange(n, device=ids.device)
    before = int(held.first.lengths[0]) if held.first else 0
    room = torch.arange(before + held.keys[0].shape[1], device=ids.device)
    distance = (before + places)[:, :, None] - room
    masks = {w: (distance >= 0) & (distance < w) if w else distance >= 0 for w in {0, decoder.window}}
    rows = decoder.run(
        ids.flatten(), (before + places).flatten(), lambda i, window: partial(held.attend, i, places, masks[window])
    ).unflatten(0, ids.shape)
    held.lengths = held.lengths + counts
    return decoder.norm(rows[torch.arange(len(counts), device=ids.device), counts - 1])
