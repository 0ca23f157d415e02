"""Every architecture of the table on a small random GGUF: our logits and llama.cpp's, bare and adapted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from engrain.device.runtime import Runtime
from engrain.quant.gguf import open_gguf
from engrain.quant.gguf_lora import save_gguf
from engrain.update.architectures import ARCHITECTURES, UnsupportedArchitecture, architecture_of
from engrain.update.build import extract
from engrain.update.decoder import Decoder
from engrain.update.pack import Example, pack_examples

from ..tiny import build_tiny_gguf

TOKENS = tuple(range(30, 72))  # longer than the tiny models' sliding window
LAYERS = 7  # one more than the longest pattern of windows


def logits_of(decoder: Decoder) -> torch.Tensor:
    pack = pack_examples([Example(TOKENS, 1)])
    with torch.no_grad():
        return decoder.logits(decoder.hidden(pack))


def rms(x: torch.Tensor) -> torch.Tensor:
    return x.pow(2).mean().sqrt()


def served(path: Path, adapter: Path | None = None) -> torch.Tensor:
    with Runtime.load(path) as runtime:
        if adapter:
            runtime.attach(adapter)
        return torch.from_numpy(runtime.logits(TOKENS))[:-1]


def adapted(path: Path) -> Decoder:
    torch.manual_seed(1)
    decoder = Decoder(open_gguf(path), rank=4, alpha=8.0, dtype=torch.float32)
    for group in decoder.groups():
        for b in group.lora_b:
            torch.nn.init.normal_(b, std=0.1)
    return decoder


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_logits_and_adapters_agree_with_llama_cpp(architecture: str, tmp_path: Path) -> None:
    path = build_tiny_gguf(tmp_path / "m.gguf", architecture, n_layer=LAYERS)
    decoder = adapted(path)
    with decoder.bare():
        base = logits_of(decoder)
    theirs = served(path)
    # llama.cpp keeps keys and values in float16; beyond that only the order of sums differs
    assert rms(base - theirs) < 0.01 * theirs.std()
    save_gguf(extract(decoder, open_gguf(path)), tmp_path / "a.gguf")
    moved, expected = served(path, tmp_path / "a.gguf") - theirs, logits_of(decoder) - base
    assert expected.std() > 0.02
    assert rms(moved - expected) < 0.01 * expected.std()


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_K, Kind.Q6_K, Kind.Q8_0, Kind.IQ4_XS])
def test_quantised_base_agrees_within_llama_cpps_rounding(kind: Kind, tmp_path: Path) -> None:
    path = build_tiny_gguf(tmp_path / "m.gguf", "llama", kind)
    ours, theirs = logits_of(Decoder(open_gguf(path), dtype=torch.float32)), served(path)
    # llama.cpp rounds activations to eight bits before it multiplies quantised weights
    assert rms(ours - theirs) < 0.1 * theirs.std()


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_quantised_mode_computes_what_resident_mode_does(architecture: str, tmp_path: Path) -> None:
    path = build_tiny_gguf(tmp_path / "m.gguf", architecture, Kind.Q8_0)
    resident = Decoder(open_gguf(path), dtype=torch.float32, resident=True)
    assert torch.equal(logits_of(resident), logits_of(Decoder(open_gguf(path), dtype=torch.float32, resident=False)))


def test_what_cannot_be_trained_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedArchitecture, match="mamba"):
        architecture_of("mamba")
    with pytest.raises(UnsupportedArchitecture, match="mixture of experts"):
        architecture_of("llama", {"llama.expert_count": 8})
