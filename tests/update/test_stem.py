"""What is computed once below the adapters, held to what is computed in every pack."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engrain.quant.gguf import open_gguf
from engrain.update.architectures import ARCHITECTURES
from engrain.update.decoder import Decoder
from engrain.update.loss import pack_loss
from engrain.update.pack import Example, pack_examples
from engrain.update.recorded import Buffers
from engrain.update.stem import Stem

from ..tiny import build_tiny_gguf

HEAD = (*range(40, 70),)  # longer than the tiny models' sliding window
EXAMPLES = [Example(HEAD + tail, 31) for tail in ((1, 2, 3), (1, 2, 7, 6, 5), (4, 4), (1, 9, 9, 9))]
LAYERS = 7  # one more than the longest pattern of windows


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_loss_and_gradient_are_the_whole_decoders(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    path = build_tiny_gguf(tmp_path / "m.gguf", architecture, n_layer=LAYERS)
    decoder = Decoder(open_gguf(path), rank=4, dtype=torch.float32, first_layer=4)
    params = [p for p in decoder.parameters() if p.requires_grad]
    for p in params:
        torch.nn.init.normal_(p, std=0.1)
    stem = Stem(decoder, EXAMPLES)
    for some in (EXAMPLES, EXAMPLES[:2], EXAMPLES[3:]):  # the second and the third begin alike for longer than all do
        pack = pack_examples(some)
        expected = pack_loss(decoder, pack)[0]
        gradients = torch.autograd.grad(expected, params)
        known = stem.under(pack)
        assert known.stem is not None and len(known.stem) == len(pack.tokens)
        for loss, _ in (pack_loss(decoder, known), Buffers.of(decoder, known, 128, 32).loss(decoder)):
            torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
            for ours, theirs in zip(torch.autograd.grad(loss, params), gradients, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.std() + 1e-9))


def test_nothing_is_kept_where_every_layer_is_adapted(tiny: Path) -> None:
    decoder, pack = Decoder(open_gguf(tiny), rank=4, dtype=torch.float32), pack_examples(EXAMPLES)
    assert Stem(decoder, EXAMPLES).under(pack) is pack and Stem(decoder, []).under(pack) is pack
