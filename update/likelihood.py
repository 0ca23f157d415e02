"""How likely many texts are to follow their prompts, by a decoder as it is: common beginnings are computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from engrain.update.decoder import Decoder
from engrain.update.loss import log_normaliser
from engrain.update.pack import Example, Pack, pack_examples

PACK_ROWS = 1024


@torch.no_grad()
def log_probabilities(decoder: Decoder, examples: Sequence[Example]) -> list[np.ndarray]:
    """Of each example's target tokens, (targets,) nats."""
    found: list[np.ndarray] = [np.zeros(0)] * len(examples)
    for group in _groups(examples):
        pack = pack_examples([examples[i] for i in group], tree=True).to(decoder.embedding.device)
        sizes = [len(examples[i].tokens) - examples[i].start for i in group]
        for i, own in zip(group, _scored(decoder, pack).split(sizes), strict=True):
            found[i] = own.cpu().numpy()
    return found


def _scored(decoder: Decoder, pack: Pack) -> Tensor:
    """Log-probabilities of the pack's targets, (K,)."""
    rows, at = pack.targets.unique(return_inverse=True)
    hidden = decoder.hidden(replace(pack, targets=rows))
    own = decoder.finish((hidden[at].float() * decoder.head.rows(pack.target_ids).float()).sum(1))
    return own - log_normaliser(decoder, hidden)[at]


def _groups(examples: Sequence[Example]) -> Iterator[list[int]]:
    """Places of examples in the order of their tokens, as many as make about PACK_ROWS rows."""
    order = sorted(range(len(examples)), key=lambda i: examples[i].tokens)
    group: list[int] = []
    rows = 0
    for i in order:
        new = len(examples[i].tokens) - (_common(examples[group[-1]], examples[i]) if group else 0)
        if group and rows + new > PACK_ROWS:
            yield group
            group, rows, new = [], 0, len(examples[i].tokens)
        group.append(i)
        rows += new
    if group:
        yield group


def _common(a: Example, b: Example) -> int:
    both = zip(a.tokens, b.tokens, strict=False)
    return next((n for n, (x, y) in enumerate(both) if x != y), min(len(a.tokens), len(b.tokens)))
