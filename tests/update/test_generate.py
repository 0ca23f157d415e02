"""What PyTorch writes side by side, held to llama.cpp's logits of the same texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engrain.device.runtime import Runtime
from engrain.quant.gguf import open_gguf
from engrain.update import generate
from engrain.update.architectures import ARCHITECTURES
from engrain.update.decoder import Decoder
from engrain.update.generate import continued, write

from ..tiny import build_tiny_gguf

HEAD = list(range(30, 60))  # longer than the tiny models' sliding window
PROMPTS = [HEAD + tail for tail in ([1], [70, 71, 72], [5] * 9, [80, 81], [3, 4])]
LAYERS = 7  # one more than the longest pattern of windows


def ends(token: int) -> bool:
    return token % 4 == 0


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_greedy_texts_are_llama_cpps(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build_tiny_gguf(tmp_path / "m.gguf", architecture, n_layer=LAYERS)
    torch.manual_seed(0)
    decoder = Decoder(open_gguf(path), dtype=torch.float32)
    monkeypatch.setattr(generate, "_PIECE", 16)
    found = [continued(decoder, PROMPTS, 12, ends)]
    monkeypatch.setattr(generate, "_WIDTH", 2)
    found.append(continued(decoder, PROMPTS, 12, ends))
    with Runtime.load(path) as runtime:
        for texts in found:
            for prompt, text in zip(PROMPTS, texts, strict=True):
                assert 0 < len(text) <= 12 and not any(map(ends, text[:-1]))
                assert len(text) == 12 or ends(text[-1])
                rows = runtime.logits([*prompt, *text])[len(prompt) - 1 : -1]
                chosen = rows[np.arange(len(text)), text]
                # llama.cpp keeps keys and values in float16
                assert (chosen > rows.max(1) - 0.05 * rows.std()).all()


def test_a_seed_gives_the_same_texts(tiny: Path) -> None:
    decoder = Decoder(open_gguf(tiny), dtype=torch.float32)
    one, again, other = (continued(decoder, PROMPTS, 8, ends, 1.0, seed) for seed in (3, 3, 4))
    assert one == again != other


def test_each_text_has_its_own_temperature(tiny: Path) -> None:
    decoder = Decoder(open_gguf(tiny), dtype=torch.float32)
    greedy = continued(decoder, PROMPTS, 8, ends)
    mixed = continued(decoder, [p for p in PROMPTS for _ in range(2)], 8, ends, [0.0, 5.0] * len(PROMPTS))
    assert mixed[::2] == greedy
    assert mixed[1::2] != greedy


def test_likely_tokens_are_drawn_as_often_as_they_are_likely(tiny: Path) -> None:
    decoder = Decoder(open_gguf(tiny), dtype=torch.float32)
    drawn = [text[0] for text in continued(decoder, [HEAD] * 2000, 1, ends, 0.5)]
    with Runtime.load(tiny) as runtime:
        logits = torch.from_numpy(runtime.logits(HEAD))[-1].double() / 0.5
    top, ids = logits.topk(generate.TOP_K)
    p = top.softmax(0)
    kept = 1 + int((p.cumsum(0) <= generate.TOP_P).sum())
    expected = p[:kept] / p[:kept].sum()
    counts = torch.tensor([drawn.count(int(i)) for i in ids[:kept]])
    assert counts.sum() == 2000
    spread = (2000 * expected * (1 - expected)).sqrt() + 1
    assert ((counts - 2000 * expected).abs() < 5 * spread).all()


def test_texts_end_with_the_turn_or_a_stop(tiny: Path) -> None:
    decoder = Decoder(open_gguf(tiny), dtype=torch.float32)
    with Runtime.load(tiny) as runtime:
        prompts = [[*HEAD, i] for i in range(40)]
        plain = write(runtime, decoder, prompts, 20, 2.0, 0)
        letter = max("abcdefghijklmnopqrstuvwxyz ", key=lambda c: sum(c in text for text in plain))
        stopped = write(runtime, decoder, prompts, 20, 2.0, 0, stop=letter)
        longest = max(len(runtime.detokenize([token])) for token in range(runtime.n_vocab))
    assert any(letter in text for text in stopped)
    assert all(letter not in text[:-longest] for text in stopped)
    assert any(letter in text[:-longest] for text in plain)


def test_nothing_to_write(tiny: Path) -> None:
    decoder = Decoder(open_gguf(tiny), dtype=torch.float32)
    assert continued(decoder, [], 5, ends) == []
    assert continued(decoder, [[1]], 0, ends) == [[]]
    assert continued(decoder, [[1]], 4, lambda token: True) != [[]]
