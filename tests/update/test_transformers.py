"""Our reading of a GGUF and transformers' own, for the architectures that both know."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from engrain.quant.gguf import open_gguf
from engrain.update.decoder import Decoder
from engrain.update.pack import Example, pack_examples

from ..tiny import build_tiny_gguf

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

TOKENS = tuple(range(30, 72))  # longer than the tiny models' sliding window
LAYERS = 7  # one more than the longest pattern of windows

# What transformers doesn't take over from the file: (its configuration, the file's metadata).
READ: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": ({}, {}),
    "qwen2": ({}, {}),
    "qwen3": ({"head_dim": 16}, {}),
    "phi3": ({"pad_token_id": 0}, {}),
    "gemma2": ({"query_pre_attn_scalar": 16, "sliding_window": 24}, {}),
    "gemma3": ({"query_pre_attn_scalar": 16, "sliding_window": 24}, {"rope.freq_base": 1e6}),
}


@pytest.mark.parametrize("architecture", READ)
def test_logits_agree(architecture: str, tmp_path: Path) -> None:
    config, metadata = READ[architecture]
    path = build_tiny_gguf(tmp_path / "m.gguf", architecture, n_layer=LAYERS, metadata=metadata)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32, **config
    )
    decoder = Decoder(open_gguf(path), dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor([TOKENS])).logits[0][:-1]
        ours = decoder.logits(decoder.hidden(pack_examples([Example(TOKENS, 1)])))
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)
