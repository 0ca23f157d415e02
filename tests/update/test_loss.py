"""The tiled loss and its hand-written gradient against PyTorch's own over all logits at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from gguf import GGMLQuantizationType as Kind

from engrain.quant.gguf import open_gguf
from engrain.update import loss, weights
from engrain.update.decoder import Decoder
from engrain.update.loss import pack_loss, teach
from engrain.update.pack import Example, Pack, pack_examples

from ..tiny import build_tiny_gguf

TOKENS = tuple(range(40, 72))
K = 5


def decoder_of(path: Path, resident: bool = True) -> Decoder:
    torch.manual_seed(1)
    decoder = Decoder(open_gguf(path), rank=4, alpha=8.0, dtype=torch.float32, resident=resident)
    for group in decoder.groups():
        for b in group.lora_b:
            torch.nn.init.normal_(b, std=0.3)
    return decoder


def mixed_pack(decoder: Decoder) -> Pack:
    """Two examples without a teacher, of which one weighs more, and one with."""
    untaught = [Example((*TOKENS[:12], 1, 2, 3), 13), Example((*TOKENS[:12], 9, 8, 7, 6, 5), 13, weight=2.0)]
    taught = Example(TOKENS, 13, weight=0.5, teacher=teach(decoder, pack_examples([Example(TOKENS, 13)]), K))
    return pack_examples([*untaught, taught])


def expected_losses(decoder: Decoder, pack: Pack) -> torch.Tensor:
    """Each token's loss by softmax over all words, with autograd's gradient."""
    assert pack.teacher_ids is not None and pack.teacher_log_p is not None
    log_p = decoder.logits(decoder.hidden(pack)).log_softmax(-1)
    losses = []
    for row, target, ids, teacher in zip(log_p, pack.target_ids, pack.teacher_ids, pack.teacher_log_p, strict=True):
        if ids[0] < 0:
            losses.append(F.nll_loss(row[None], target[None]))
            continue
        student = torch.cat((row[ids], (1 - row[ids].exp().sum())[None].log()))
        wanted = torch.cat((teacher, (1 - teacher.exp().sum())[None].log()))
        losses.append(F.kl_div(student, wanted, log_target=True, reduction="sum"))
    return torch.stack(losses)


@pytest.fixture(params=["whole", "pieces"])
def resident(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """The head as one block of words, or in blocks of a few dozen, with rows in several tiles."""
    if request.param == "pieces":
        monkeypatch.setattr(weights, "BLOCK_BYTES", 50 * 64 * 4)
        monkeypatch.setattr(loss, "TILE_BYTES", 32 * 50 * 4)
    return request.param == "whole"


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "granite"])
def test_losses_and_gradients_are_those_of_a_softmax_over_all_words(
    architecture: str, resident: bool, tmp_path: Path
) -> None:
    path = build_tiny_gguf(tmp_path / "m.gguf", architecture, Kind.Q8_0)
    reference, decoder = decoder_of(path), decoder_of(path, resident)
    assert (decoder.head.block_rows < sum(decoder.head.n_outs)) is not resident
    pack = mixed_pack(reference)
    theirs = expected_losses(reference, pack)
    (theirs * pack.weight).sum().backward()
    total, ours = pack_loss(decoder, pack)
    total.backward()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(total.detach(), (theirs * pack.weight).sum().detach(), rtol=1e-4, atol=1e-4)
    for a, b in zip(decoder.parameters(), reference.parameters(), strict=True):
        assert b.grad is not None and a.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def test_teacher_is_the_bares_likeliest_words(resident: bool, tmp_path: Path) -> None:
    path = build_tiny_gguf(tmp_path / "m.gguf", "llama", Kind.Q8_0)
    decoder = decoder_of(path, resident)
    pack = pack_examples([Example(TOKENS, 5)])
    ids, log_p = teach(decoder, pack, K)
    with decoder.bare(), torch.no_grad():
        base = decoder.logits(decoder.hidden(pack)).log_softmax(-1)
    torch.testing.assert_close(log_p, base.topk(K).values)
    torch.testing.assert_close(log_p, base.gather(1, ids))


def test_the_bare_model_is_at_no_distance_from_itself(tiny: Path) -> None:
    decoder = decoder_of(tiny)
    teacher = teach(decoder, pack_examples([Example(TOKENS, 5)]), K)
    pack = pack_examples([Example(TOKENS, 5, teacher=teacher)])
    assert float(pack_loss(decoder, pack)[0].detach()) > 0.01
    with decoder.bare(), torch.no_grad():
        assert pack_loss(decoder, pack)[1].abs().max() < 1e-5
