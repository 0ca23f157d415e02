"""Our decoder against llama.cpp on the same file, packs against single examples, gradients against differences."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engrain.device.runtime import Runtime
from engrain.quant.adapter import Adapter
from engrain.quant.gguf import open_gguf
from engrain.quant.gguf_lora import save_gguf
from engrain.update.decoder import Decoder
from engrain.update.loss import pack_loss
from engrain.update.pack import Example, pack_examples

TOKENS = tuple(range(40, 72))


def logits_of(decoder: Decoder, tokens: tuple[int, ...]) -> torch.Tensor:
    pack = pack_examples([Example(tokens, 1)])
    with torch.no_grad():
        return decoder.logits(decoder.hidden(pack))


def adapted(path: Path, seed: int = 1, resident: bool = True) -> Decoder:
    torch.manual_seed(seed)
    decoder = Decoder(open_gguf(path), rank=4, alpha=8.0, dtype=torch.float32, resident=resident)
    for group in decoder.groups():
        for b in group.lora_b:
            torch.nn.init.normal_(b, std=0.3)
    return decoder


def test_logits_agree_with_llama_cpp(tiny: Path) -> None:
    ours = logits_of(Decoder(open_gguf(tiny), dtype=torch.float32), TOKENS)
    with Runtime.load(tiny) as runtime:
        theirs = torch.from_numpy(runtime.logits(TOKENS))[:-1]
    # float32 weights: only the order of sums and llama.cpp's float16 KV cache differ
    assert (ours - theirs).abs().max() < 0.02 * theirs.std()


def test_gguf_export_moves_llama_cpp_as_it_moves_ours(tiny: Path, tmp_path: Path) -> None:
    decoder = adapted(tiny)
    with decoder.bare():
        base = logits_of(decoder, TOKENS)
    ours = logits_of(decoder, TOKENS) - base
    weights = {n: (a.numpy(), b.numpy()) for g in decoder.groups() for n, (a, b) in g.weights().items()}
    hyper = open_gguf(tiny).hyper
    save_gguf(Adapter(4, 8.0, "llama", hyper.n_head, hyper.n_head_kv, weights), tmp_path / "a.gguf")
    with Runtime.load(tiny) as runtime:
        before = runtime.logits(TOKENS)[:-1]
        runtime.attach(tmp_path / "a.gguf")
        theirs = torch.from_numpy(runtime.logits(TOKENS)[:-1] - before)
    assert ours.std() > 0.05
    assert (ours - theirs).abs().max() < 0.03 * ours.std()


def test_a_pack_computes_what_each_example_computes_alone(tiny: Path) -> None:
    decoder = adapted(tiny)
    examples = [Example(TOKENS[:12] + extra, 13) for extra in ((1, 2, 3), (9, 8, 7, 6, 5), (4, 4))]
    pack = pack_examples(examples)
    assert pack.prefix == 12 and len(pack.tokens) % 64 == 0
    with torch.no_grad():
        together = decoder.hidden(pack)
        alone = torch.cat([decoder.hidden(pack_examples([e])) for e in examples])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("resident", [True, False])
def test_gradient_equals_finite_differences(tiny: Path, resident: bool) -> None:
    decoder = adapted(tiny, resident=resident)
    pack = pack_examples([Example(TOKENS[:12] + extra, 13) for extra in ((1, 2, 3), (9, 8, 7, 6, 5))])
    pack_loss(decoder, pack)[0].backward()
    for parameter in (decoder.layers[0].qkv.lora.lora_b[1], decoder.layers[0].gate_up.lora.lora_a):
        direction = torch.randn_like(parameter)
        step, values = 1e-3, []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step * direction
                values.append(float(pack_loss(decoder, pack)[0]))
                parameter -= sign * step * direction
        difference = (values[0] - values[1]) / (2 * step)
        assert difference == pytest.approx(float((parameter.grad * direction).sum()), rel=0.02, abs=1e-3)
