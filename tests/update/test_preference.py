"""DPO and KTO against their formulas with PyTorch's own gradients, and what training with them does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from engrain.quant.gguf import open_gguf
from engrain.update.decoder import Decoder
from engrain.update.pack import Example, pack_examples
from engrain.update.preference import BETA, Preference, log_likelihoods, preference_loss
from engrain.update.train import TrainOptions, train

PROMPT = tuple(range(40, 52))


def example(*reply: int) -> Example:
    return Example((*PROMPT, *reply), len(PROMPT))


PREFERENCES = [
    Preference(example(1, 2, 3), example(9, 8, 7, 6)),
    Preference(example(30, 31)),
    Preference(
        example(60, 61, 62),
        example(
            70,
        ),
    ),
]


def decoder_of(path: Path, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    decoder = Decoder(open_gguf(path), rank=4, alpha=8.0, dtype=torch.float32)
    for group in decoder.groups():
        for b in group.lora_b:
            torch.nn.init.normal_(b, std=0.3)
    return decoder


def log_p(decoder: Decoder, example: Example) -> torch.Tensor:
    pack = pack_examples([example])
    rows = decoder.logits(decoder.hidden(pack)).log_softmax(-1)
    return rows.gather(1, pack.target_ids[:, None]).sum()


def test_loss_and_gradient_are_the_papers(tiny: Path) -> None:
    before, decoder, plain = decoder_of(tiny, 1), decoder_of(tiny, 2), decoder_of(tiny, 2)
    reference = log_likelihoods(before, PREFERENCES)
    losses = []
    for preference, old in zip(PREFERENCES, reference, strict=True):
        moved = [BETA * (log_p(plain, e) - o) for e, o in zip(preference.examples, old, strict=True)]
        losses.append(-F.logsigmoid(moved[0] - moved[1]) if len(moved) == 2 else torch.sigmoid(moved[0]))
    expected = torch.stack(losses).mean()
    expected.backward()
    loss, value = preference_loss(decoder, PREFERENCES, reference)
    loss.backward()
    assert value == pytest.approx(float(expected.detach()), rel=1e-4)
    for ours, theirs in zip(decoder.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


def test_log_likelihoods_are_sums_over_the_reply(tiny: Path) -> None:
    decoder = decoder_of(tiny)
    found = log_likelihoods(decoder, PREFERENCES * 4)  # more than are scored at a time
    assert [len(each) for each in found] == [2, 1, 2] * 4
    for preference, each in zip(PREFERENCES * 4, found, strict=True):
        expected = torch.stack([log_p(decoder, e).detach() for e in preference.examples])
        torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("examples", [[], [Example((5, 6, 7, 8, 9), 3)]], ids=["alone", "with examples"])
def test_training_moves_away_from_the_rejected(examples: list[Example], tiny: Path) -> None:
    torch.manual_seed(0)
    decoder = Decoder(open_gguf(tiny), rank=4, dtype=torch.float32)
    before = log_likelihoods(decoder, PREFERENCES)
    options = TrainOptions(lr=3e-3, epochs=12, stop_loss=0.0)
    result = train(decoder, examples, options, preferences=PREFERENCES)
    assert len(result.steps) >= 12
    for preference, old, new in zip(PREFERENCES, before, log_likelihoods(decoder, PREFERENCES), strict=True):
        assert new[-1] < old[-1]
        if preference.chosen:
            assert new[0] - old[0] > new[1] - old[1]
