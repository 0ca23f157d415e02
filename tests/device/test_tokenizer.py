"""Text through tokens and back, and prompts as the model's chat template writes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from engrain.device.llama_model import LlamaModel, ModelError
from engrain.device.tokenizer import Tokenizer

from .messages import HELLO, LONGER


@pytest.fixture
def model(tiny: Path) -> Iterator[LlamaModel]:
    with closing(LlamaModel(tiny)) as loaded:
        yield loaded


@pytest.fixture
def tokenizer(model: LlamaModel) -> Tokenizer:
    return Tokenizer(model)


@pytest.mark.parametrize("text", ["", "Hello", "naïve 日本語 🙂", "a\0b", "  two  spaces\n\n", "x" * 5000])
def test_text_survives_tokens(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.detokenize(tokenizer.tokenize(text)).strip(" ") == text.strip(" ")


def test_lone_surrogates_do_no_harm(tokenizer: Tokenizer) -> None:
    assert tokenizer.detokenize(tokenizer.tokenize("a\udcffb")).strip() == "a?b"


def test_a_token_that_is_none(model: LlamaModel, tokenizer: Tokenizer) -> None:
    for token in (-1, model.n_vocab):
        with pytest.raises(ModelError, match="vocabulary"):
            tokenizer.detokenize([token])


def test_prompt_is_the_rendered_template(tokenizer: Tokenizer) -> None:
    text = tokenizer.render(LONGER)
    assert "Be brief." in text and text.index("I am here.") < text.index("And what")
    tokens = tokenizer.prompt_tokens(LONGER)
    rendered = tokenizer.tokenize(text, special=True)
    assert tokens[-len(rendered) :] == rendered
    assert len(tokens) - len(rendered) <= 1  # BOS, where the model wants one


def test_targets_go_on_from_the_prompt(tokenizer: Tokenizer) -> None:
    target = tokenizer.target_tokens(HELLO, "I am here, 🙂.")
    assert target[-1] == tokenizer.end_of_turn
    assert tokenizer.detokenize(target[:-1]).strip() == "I am here, 🙂."
    turn = [*HELLO, {"role": "assistant", "content": "I am here, 🙂."}]
    written = tokenizer.rendered_tokens(tokenizer.render(turn, add_generation_prompt=False))
    served = tokenizer.prompt_tokens(HELLO) + target
    assert written[: len(served)] == served  # as the template writes the turn


def test_end_of_turn_ends_a_stream(tokenizer: Tokenizer) -> None:
    assert tokenizer.is_end(tokenizer.end_of_turn)
