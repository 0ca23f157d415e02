"""The same code on an accelerator as on the processor; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engrain.quant.gguf import open_gguf
from engrain.update.architectures import ARCHITECTURES
from engrain.update.build import pick_device
from engrain.update.decoder import Decoder
from engrain.update.generate import continued
from engrain.update.loss import pack_loss
from engrain.update.pack import Example, pack_examples
from engrain.update.recorded import Gradient
from engrain.update.train import TrainOptions, train

from ..tiny import build_tiny_gguf

DEVICE = pick_device("auto")
EXAMPLES = [Example((5, 6, 7, 8, *range(20 + i, 22 + i % 5 + i), 60 + i), 5) for i in range(24)]
OPTIONS = TrainOptions(lr=1e-2, epochs=4, pack_tokens=64, stop_loss=0.0)

pytestmark = pytest.mark.skipif(DEVICE == "cpu", reason="no accelerator here")


def decoder_on(path: Path, device: str, dtype: torch.dtype | None = torch.float32, resident: bool = True) -> Decoder:
    torch.manual_seed(0)
    return Decoder(open_gguf(path), rank=4, dtype=dtype, device=device, resident=resident)


def weights(decoder: Decoder, gradients: bool = False) -> torch.Tensor:
    params = [p for g in decoder.groups() for p in g.parameters()]
    return torch.cat([(p.grad if gradients else p.detach()).flatten().cpu() for p in params])


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_training_goes_as_on_the_processor(architecture: str, tmp_path: Path) -> None:
    path = build_tiny_gguf(tmp_path / "m.gguf", architecture)
    there, here = decoder_on(path, DEVICE), decoder_on(path, "cpu")
    pack = pack_examples(EXAMPLES)
    with torch.no_grad():
        ours, expected = there.logits(there.hidden(pack.to(torch.device(DEVICE)))).cpu(), here.logits(here.hidden(pack))
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))
    losses = [[step.loss for step in train(d, EXAMPLES, OPTIONS).steps] for d in (there, here)]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=2e-2, atol=1e-3)


def test_what_is_recorded_gives_the_gradient_that_is_computed(tiny: Path) -> None:
    decoder = decoder_on(tiny, DEVICE)
    for p in decoder.parameters():
        torch.nn.init.normal_(p, std=0.3)
    packs = [
        pack_examples(EXAMPLES[at:end]).to(torch.device(DEVICE)) for at, end in ((0, 9), (9, 18), (20, 22), (0, 8))
    ]
    expected = []
    for pack in packs:
        loss, nll = pack_loss(decoder, pack)
        loss.backward()
        del loss  # with it the nodes that add gradients up, on a stream that can't be recorded
        expected.append((nll.clone(), weights(decoder, gradients=True)))
        decoder.zero_grad(set_to_none=True)
    gradient = Gradient(decoder)
    for _ in range(2):  # recorded, then replayed
        for pack, (nll, whole) in zip(packs, expected, strict=True):
            torch.testing.assert_close(gradient(pack), nll, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(
                weights(decoder, gradients=True), whole, rtol=1e-2, atol=1e-3 * float(whole.std())
            )
            gradient.clear()


def test_the_seed_decides_the_adapter(tiny: Path) -> None:
    one, two = decoder_on(tiny, DEVICE), decoder_on(tiny, DEVICE)
    for decoder in (one, two):
        train(decoder, EXAMPLES, OPTIONS)
    assert torch.equal(weights(one), weights(two))


@pytest.mark.parametrize("resident", [True, False])
def test_it_learns_in_the_dtype_that_the_device_prefers(tiny: Path, resident: bool) -> None:
    decoder = decoder_on(tiny, DEVICE, None, resident)
    steps = train(decoder, EXAMPLES, OPTIONS).steps
    assert steps[-1].loss < 0.7 * steps[0].loss


def test_what_it_writes_is_what_the_processor_writes(tiny: Path) -> None:
    prompts = [[30, 31, 32, 1], [30, 31, 32, 70, 71], [30, 31, 32]]
    texts = [continued(decoder_on(tiny, d), prompts, 8, lambda token: token % 4 == 0) for d in (DEVICE, "cpu")]
    assert texts[0] == texts[1]
