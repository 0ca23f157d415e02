"""What a recorded step computes, held to what packs compute; the recording itself is `test_accelerator`'s."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engrain.quant.gguf import open_gguf
from engrain.update.architectures import ARCHITECTURES
from engrain.update.decoder import Decoder
from engrain.update.loss import pack_loss, teach
from engrain.update.pack import Example, pack_examples
from engrain.update.recorded import Buffers, Gradient

from ..tiny import build_tiny_gguf

HEAD = (*range(40, 70),)  # longer than the tiny models' sliding window
EXAMPLES = [
    Example(HEAD + tail, 31, weight) for tail, weight in (((1, 2, 3), 1.0), ((9, 8, 7, 6, 5), 0.5), ((4, 4), 2.0))
]
LAYERS = 7  # one more than the longest pattern of windows


def adapted(path: Path) -> Decoder:
    torch.manual_seed(1)
    decoder = Decoder(open_gguf(path), rank=4, dtype=torch.float32)
    for group in decoder.groups():
        for b in group.lora_b:
            torch.nn.init.normal_(b, std=0.1)
    return decoder


def gradients(decoder: Decoder, loss: torch.Tensor) -> torch.Tensor:
    params = [p for g in decoder.groups() for p in g.parameters()]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, params)])


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_filled_up_buffers_compute_what_the_pack_does(architecture: str, tmp_path: Path) -> None:
    decoder = adapted(build_tiny_gguf(tmp_path / "m.gguf", architecture, n_layer=LAYERS))
    taught = pack_examples(EXAMPLES[:2])
    ids, log_p = teach(decoder, taught, k=4)
    counts = [len(e.tokens) - e.start for e in EXAMPLES[:2]]
    teachers = zip(ids.split(counts), log_p.split(counts), strict=True)
    examples = [*(replace(e, teacher=t) for e, t in zip(EXAMPLES, teachers, strict=False)), EXAMPLES[2]]
    for pack in (pack_examples(EXAMPLES), pack_examples(examples)):
        expected, each = pack_loss(decoder, pack)
        loss, nll = Buffers.of(decoder, pack, 160, 32).loss(decoder)
        torch.testing.assert_close(nll[: len(each)], each, rtol=1e-4, atol=1e-5)
        ours, theirs = gradients(decoder, loss), gradients(decoder, expected)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.std()))


def test_gradients_add_up_until_they_are_cleared(tiny: Path) -> None:
    decoder, pack = adapted(tiny), pack_examples(EXAMPLES)
    gradient, params = Gradient(decoder), list(decoder.parameters())
    gradient(pack)
    once = params[0].grad.clone()
    gradient(pack)
    torch.testing.assert_close(params[0].grad, 2 * once)
    gradient.clear()
    gradient(pack)
    torch.testing.assert_close(params[0].grad, once)
