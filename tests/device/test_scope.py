"""An adapter's scope: read from hostile files, and obeyed by whatever answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from engrain.device.chat import Conversation
from engrain.device.runtime import Runtime
from engrain.device.scope import FOLLOWS, SCOPE, Scope, check_scope, read_scope
from engrain.quant.adapter import save_gguf
from engrain.quant.gguf import open_gguf
from engrain.update.decoder import Decoder
from engrain.update.learn import extract
from engrain.update.pack import Example, pack_examples

from ..tiny import build_tiny_gguf

INSIDE, OUTSIDE = "What is the name of my horse?", "Tell me of rain, of bread"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_gguf(tmp_path_factory.mktemp("scope") / "m.gguf")


@pytest.fixture(scope="module")
def lora(model: Path) -> Path:
    import torch

    torch.manual_seed(0)
    decoder = Decoder(open_gguf(model), rank=2, alpha=8.0, dtype=torch.float32)
    for group in decoder.groups():
        for b in group.lora_b:
            torch.nn.init.normal_(b, std=0.5)
    save_gguf(extract(decoder, open_gguf(model)), model.with_name("lora.gguf"))
    return model.with_name("lora.gguf")


@pytest.fixture
def runtime(model: Path) -> Iterator[Runtime]:
    with Runtime.load(model, n_ctx=256) as loaded:
        yield loaded


def state_of(runtime: Runtime, text: str) -> np.ndarray:
    return runtime.hidden(runtime.prompt_tokens([{"role": "user", "content": text}]))


def between(runtime: Runtime) -> Scope:
    """A scope that holds INSIDE and not OUTSIDE, each by a score of 5."""
    inside, outside = state_of(runtime, INSIDE), state_of(runtime, OUTSIDE)
    weight = (inside - outside) * 10 / np.square(inside - outside).sum()
    return Scope(weight, float(5 - weight @ inside))


def reply(runtime: Runtime, text: str, adapted: bool) -> str:
    runtime.serve(adapted)
    return runtime.complete([{"role": "user", "content": text}], max_tokens=8).text


def test_hidden_states_are_the_decoders(runtime: Runtime, model: Path) -> None:
    import torch

    decoder = Decoder(open_gguf(model), dtype=torch.float32)
    for text in (INSIDE, OUTSIDE, INSIDE):  # the third finds the prefix of the second held
        tokens = runtime.prompt_tokens([{"role": "user", "content": text}])
        with torch.no_grad():
            ours = decoder.hidden(pack_examples([Example((*tokens, 1), len(tokens))]))[0].numpy()
        np.testing.assert_allclose(state_of(runtime, text), ours, atol=0.02)


def test_hidden_states_are_the_base_models_whatever_is_attached(runtime: Runtime, lora: Path) -> None:
    before = state_of(runtime, INSIDE)
    runtime.attach(lora)
    np.testing.assert_array_equal(state_of(runtime, INSIDE), before)


def test_messages_outside_are_the_base_models(runtime: Runtime, lora: Path) -> None:
    bare = {text: reply(runtime, text, True) for text in (INSIDE, OUTSIDE)}
    scope = between(runtime)
    runtime.attach(lora, scope=scope)
    adapted = {text: reply(runtime, text, True) for text in (INSIDE, OUTSIDE)}
    assert all(adapted[text] != bare[text] for text in bare)
    assert reply(runtime, OUTSIDE, False) == bare[OUTSIDE]
    assert runtime.covers(INSIDE) and not runtime.covers(OUTSIDE)
    found = runtime.answers([[{"role": "user", "content": text}] for text in (OUTSIDE, INSIDE)], 8)
    assert [text.strip() for text in found] == [bare[OUTSIDE].strip(), adapted[INSIDE].strip()]
    talk = Conversation(runtime, None, "ab" * 32, max_tokens=8)
    assert "".join(talk.say(OUTSIDE)) == bare[OUTSIDE]
    assert "".join(Conversation(runtime, None, "ab" * 32, max_tokens=8).say(INSIDE)) == adapted[INSIDE]
    runtime.attach(lora)
    assert reply(runtime, OUTSIDE, True) == adapted[OUTSIDE] and runtime.covers(OUTSIDE)


def test_what_follows_gets_the_benefit_of_the_doubt(runtime: Runtime, lora: Path) -> None:
    scope = between(runtime)
    runtime.attach(lora, scope=Scope(scope.weight, scope.bias + 5 - FOLLOWS / 2))
    assert not runtime.covers(OUTSIDE) and runtime.covers(OUTSIDE, follows=True)
    talk = Conversation(runtime, None, "ab" * 32, max_tokens=2)
    for text, covered in ((OUTSIDE, False), (INSIDE, True), (OUTSIDE, True)):
        list(talk.say(text))
        assert talk._covered is covered
    talk.new()
    assert not talk._covered


def test_a_scope_for_another_model_is_left_out(runtime: Runtime, lora: Path) -> None:
    runtime.attach(lora, scope=Scope(np.ones(3, np.float32), -100.0))
    assert runtime.covers(INSIDE)


def test_without_an_adapter_everything_is_covered(runtime: Runtime) -> None:
    assert runtime.covers(INSIDE) and runtime.covers(OUTSIDE)


@given(weight=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20), bias=st.floats(-9, 9))
def test_bytes_and_back(weight: list[float], bias: float) -> None:
    scope = Scope(np.array(weight, np.float32), bias)
    again = Scope.from_bytes(scope.to_bytes())
    np.testing.assert_array_equal(again.weight, scope.weight)
    assert again.bias == pytest.approx(bias, rel=1e-6)


@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_scope_or_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError):
        Scope.from_bytes(content)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"weight": np.ones(4, np.float32)},
        {"weight": np.ones((2, 2), np.float32), "bias": np.zeros(1, np.float32)},
        {"weight": np.ones(4, np.float64), "bias": np.zeros(1, np.float32)},
        {"weight": np.full(4, np.nan, np.float32), "bias": np.zeros(1, np.float32)},
        {"weight": np.ones(4, np.float32), "bias": np.full(1, np.inf, np.float32)},
    ],
)
def test_a_damaged_scope_is_none(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    (tmp_path / SCOPE).write_bytes(save(tensors))
    assert read_scope(tmp_path) is None
    with pytest.raises(ValueError, match=r"scope\.safetensors"):
        check_scope(tmp_path)


def test_a_missing_scope_is_none(tmp_path: Path) -> None:
    assert read_scope(tmp_path) is None and check_scope(tmp_path) is None
