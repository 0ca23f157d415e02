"""Which layers get adapters, and what a decoder is lent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from engrain.quant.gguf import open_gguf
from engrain.update.build import build_decoder, extract
from engrain.update.decoder import Decoder
from engrain.update.pack import Example, pack_examples

from ..tiny import build_tiny_gguf


def test_one_trained_on_from_reaches_further_down_and_never_less(tmp_path: Path) -> None:
    gguf = open_gguf(build_tiny_gguf(tmp_path / "m.gguf", "llama", n_layer=5))
    high = build_decoder(gguf, "cpu", bare=0.6)
    for group in high.groups():
        for p in group.parameters():
            torch.nn.init.normal_(p, std=0.1)
    parent = extract(high, gguf)
    deep = build_decoder(gguf, "cpu", seed=1, parent=parent, bare=0.2)
    assert (high.lowest, deep.lowest) == (3, 1)
    pack = pack_examples([Example((5, 6, 7, 8), 2)])
    with torch.no_grad():
        torch.testing.assert_close(deep.hidden(pack), high.hidden(pack))  # the new ones change nothing yet
    own = extract(deep, gguf)
    for name, parts in parent.weights.items():
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(own.weights[name], parts, strict=True))
    assert build_decoder(gguf, "cpu", parent=own, bare=0.6).lowest == 1


def test_attention_has_adapters_only_where_a_parent_has_them(tmp_path: Path) -> None:
    for architecture in ("llama", "phi3"):  # phi3: gate and up in one
        gguf = open_gguf(build_tiny_gguf(tmp_path / f"{architecture}.gguf", architecture, n_layer=5))
        own = extract(build_decoder(gguf, "cpu"), gguf)
        assert {int(name.split(".")[1]) for name in own.weights} == {3, 4}
        parts = {name.split(".")[2] for name in own.weights}
        assert parts == {"ffn_up", "ffn_down"} | ({"ffn_gate"} if architecture == "llama" else set())
        whole = extract(build_decoder(gguf, "cpu", attention=True), gguf)
        attention = {name.split(".")[2] for name in whole.weights} - parts
        inputs = {"attn_q", "attn_k", "attn_v"} if architecture == "llama" else {"attn_qkv"}
        assert attention == {*inputs, "attn_output"}
        assert extract(build_decoder(gguf, "cpu", parent=own), gguf).weights.keys() == own.weights.keys()
        assert extract(build_decoder(gguf, "cpu", parent=whole), gguf).weights.keys() == whole.weights.keys()


def test_a_lent_adapter_takes_the_place_of_its_own(tmp_path: Path) -> None:
    gguf = open_gguf(build_tiny_gguf(tmp_path / "m.gguf", "llama", n_layer=5))
    pack = pack_examples([Example((5, 6, 7, 8), 2)])

    def shaken(seed: int, bare: float) -> Decoder:
        decoder = build_decoder(gguf, "cpu", seed=seed, bare=bare)
        for group in decoder.groups():
            for p in group.parameters():
                torch.nn.init.normal_(p, std=0.1)
        return decoder

    with torch.no_grad():
        own, other = shaken(1, 0.0), shaken(2, 0.4)
        before, wanted = own.hidden(pack), other.hidden(pack)
        with own.lent(own.fitted(extract(other, gguf))):
            lent = own.hidden(pack)
        assert not torch.allclose(before, wanted, atol=0.1)
        torch.testing.assert_close(lent, wanted, atol=2e-2, rtol=2e-2)  # bfloat16, where the processor has it
        assert torch.equal(own.hidden(pack), before)
