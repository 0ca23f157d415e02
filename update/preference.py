"""Preference losses: DPO for replies that were corrected, KTO for those only disliked.

With l = log p(reply) - log p_ref(reply), both sums over the reply's tokens, p_ref the model before training, and b:

    corrected   -log sigmoid(b (l_chosen - l_rejected))    Rafailov et al., arXiv 2305.18290
    disliked    sigmoid(b l)                               Ethayarajh et al., arXiv 2402.01306, its reference point at 0

The gradient of each is that of a sum of token losses with weights that depend on l alone. So a pass without gradient
gives the weights, and the ordinary loss does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engrain.update.decoder import Decoder
from engrain.update.loss import pack_loss
from engrain.update.pack import Example, Pack, pack_examples

BETA = 0.1
_GROUP = 8  # preferences scored at a time


@dataclass(frozen=True)
class Preference:
    """A reply that was rejected, and the one that should have stood there, where it is known."""

    rejected: Example
    chosen: Example | None = None

    @property
    def examples(self) -> list[Example]:
        return [self.rejected] if self.chosen is None else [self.chosen, self.rejected]


def log_likelihoods(decoder: Decoder, preferences: Sequence[Preference]) -> list[Tensor]:
    """For each preference log p of its `examples`, (1 or 2,) nats, with the adapters as they are now."""
    found: list[Tensor] = []
    for start in range(0, len(preferences), _GROUP):
        group = preferences[start : start + _GROUP]
        pack = _packed(decoder, group)
        with torch.no_grad():
            _, nll = pack_loss(decoder, pack)
        sums = torch.zeros(len(pack.examples), device=nll.device).index_add_(0, pack.owner, -nll)
        found += sums.split([len(p.examples) for p in group])
    return found


def preference_loss(
    decoder: Decoder, preferences: Sequence[Preference], reference: Sequence[Tensor]
) -> tuple[Tensor, float]:
    """A scalar whose gradient is that of the mean preference loss, and that loss.

    reference: `log_likelihoods` of the same preferences before training.
    """
    weights, total = [], 0.0
    for now, before in zip(log_likelihoods(decoder, preferences), reference, strict=True):
        moved = BETA * (now - before)
        if len(moved) == 2:
            away = torch.sigmoid(moved[1] - moved[0])
            weights += [away, -away]
            total -= float(torch.log(1 - away))
        else:
            left = torch.sigmoid(moved[0])
            weights.append(-left * (1 - left))
            total += float(left)
    pack = _packed(decoder, preferences)
    weight = BETA * torch.stack(weights)[pack.owner] / len(preferences)
    loss, _ = pack_loss(decoder, replace(pack, weight=weight))
    return loss, total / len(preferences)


def _packed(decoder: Decoder, preferences: Sequence[Preference]) -> Pack:
    examples = [e for p in preferences for e in p.examples]
    return pack_examples(examples, tree=True).to(decoder.embedding.device)
