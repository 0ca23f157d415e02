"""What the layers below the lowest adapter make of examples: training doesn't change it, so it is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from engrain.update.decoder import Decoder
from engrain.update.pack import Example, Pack, pack_examples, plan_packs, shared_prefix

MOST_BYTES = 256 << 20  # of rows kept; what would take more is computed in every pack
_PACK_TOKENS = 1024


class Stem:
    """The rows that enter the lowest adapted layer, for every example; of what all examples begin with, once."""

    @torch.no_grad()
    def __init__(self, decoder: Decoder, examples: Sequence[Example]) -> None:
        distinct = list({e.tokens: e for e in examples}.values())
        self._shared = shared_prefix(examples) if examples else 0
        self._head: Tensor | None = None
        self._tails: dict[tuple[int, ...], Tensor] = {}
        rows = self._shared + sum(len(e.tokens) - 1 - self._shared for e in distinct)
        fits = rows * decoder.model.hyper.n_embd * decoder.dtype.itemsize <= MOST_BYTES
        for group in plan_packs(distinct, _PACK_TOKENS) if fits and decoder.lowest else []:
            pack = pack_examples(group).to(decoder.embedding.device)
            known = decoder.stem(pack)
            self._head, at = known[: self._shared].clone(), pack.prefix
            for e in group:
                end = at + len(e.tokens) - 1 - pack.prefix
                self._tails[e.tokens] = torch.cat((known[self._shared : pack.prefix], known[at:end]))
                at = end

    def under(self, pack: Pack) -> Pack:
        """The pack with what was computed; as it is where nothing was."""
        if self._head is None:
            return pack
        tails = [self._tails[e.tokens] for e in pack.examples]
        behind = pack.prefix - self._shared  # the pack's examples begin alike for longer than all do
        rows = [self._head, tails[0][:behind], *(tail[behind:] for tail in tails)]
        fillers = self._head.new_zeros(len(pack.tokens) - sum(map(len, rows)), self._head.shape[1])
        return replace(pack, stem=torch.cat((*rows, fillers)))
