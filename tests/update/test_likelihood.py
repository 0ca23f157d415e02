"""Log-probabilities of many texts at once against llama.cpp's of each alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engrain.device.runtime import Runtime
from engrain.quant.gguf import open_gguf
from engrain.update import attention, likelihood
from engrain.update.decoder import Decoder
from engrain.update.likelihood import log_probabilities
from engrain.update.pack import Example, pack_examples

HEAD = tuple(range(40, 52))
EXAMPLES = [
    Example((*HEAD, 1, 2, 3, 4), 14),
    Example((*HEAD, 9, 8, 7), 13),
    Example((*HEAD, 1, 2, 3, 5, 6), 13),
    Example((*HEAD, 1, 2, 3, 4), 14),
    Example((*HEAD, 1, 2), 13),
]


@pytest.mark.parametrize("rows", [2048, 20])
@pytest.mark.parametrize("long_prefix", [1, 64])
def test_as_llama_cpp_scores_each(tiny: Path, monkeypatch: pytest.MonkeyPatch, rows: int, long_prefix: int) -> None:
    monkeypatch.setattr(likelihood, "PACK_ROWS", rows)
    monkeypatch.setattr(attention, "LONG_PREFIX", long_prefix)
    decoder = Decoder(open_gguf(tiny), dtype=torch.float32)
    with Runtime.load(tiny) as runtime:
        expected = [runtime.score(e.tokens[: e.start], e.tokens[e.start :]) for e in EXAMPLES]
    for ours, theirs in zip(log_probabilities(decoder, EXAMPLES), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-2)  # llama.cpp rounds activations
    assert log_probabilities(decoder, []) == []


def test_what_examples_begin_with_is_one_row() -> None:
    pack = pack_examples(EXAMPLES, tree=True)
    behind = {e.tokens[:n] for e in EXAMPLES for n in range(pack.prefix + 1, len(e.tokens))}
    filled = -(pack.prefix + len(behind)) % 64
    assert len(pack.tokens) == pack.prefix + len(behind) + filled
    assert len(pack.targets) == sum(len(e.tokens) - e.start for e in EXAMPLES)
