"""The tutor's weighing, held to what llama.cpp says when the same adapter is attached to serve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from engrain.device import judge, models, tutor
from engrain.device.home import open_home
from engrain.device.llama_model import ModelError
from engrain.device.runtime import Runtime
from engrain.quant.gguf import open_gguf
from engrain.quant.gguf_lora import save_gguf
from engrain.update.build import extract
from engrain.update.decoder import Decoder

PROMPTS = [[5, 80, 81, 7], [6, 90], [30, 31, 32, 33, 34, 35]]
TARGET, CHOICES = [70, 71, 72], [3, 4]


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = open_gguf(tiny)
    decoder = Decoder(model, rank=4, dtype=torch.float32)
    for group in decoder.groups():
        for b in group.lora_b:
            torch.nn.init.normal_(b, std=0.1)
    save_gguf(extract(decoder, model), tmp_path / "tutor.gguf", half=True)
    return tmp_path / "tutor.gguf"


def test_weighs_as_the_attached_adapter_scores(tiny: Path, adapter: Path) -> None:
    with Runtime.load(tiny) as runtime:
        runtime.use_tutor(adapter)
        own, last = runtime.weigh(PROMPTS, TARGET, CHOICES)
        again, _ = runtime.weigh(PROMPTS, TARGET, CHOICES)
        bare = [runtime.score(prompt, TARGET) for prompt in PROMPTS]
        runtime.attach(adapter)
        np.testing.assert_allclose(own, [runtime.score(prompt, TARGET) for prompt in PROMPTS], atol=0.02)
        for prompt, odds in zip(PROMPTS, last, strict=True):
            expected = [runtime.score([*prompt, *TARGET], [choice])[0] for choice in CHOICES]
            np.testing.assert_allclose(odds, expected, atol=0.02)
    np.testing.assert_allclose(own, again, atol=1e-5)
    assert np.abs(own - np.array(bare)).max() > 0.1  # the base model alone says something else


def test_what_makes_room_is_weighed_the_same_again(tiny: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "_HEADS", 4)
    monkeypatch.setattr(judge, "_HELD", 9)
    rounds = [PROMPTS, [[9]], [[40, 41, 42], PROMPTS[0], [43, 44, 45, 46, 47, 48, 49]], PROMPTS[1:], [[9], PROMPTS[0]]]
    with Runtime.load(tiny) as runtime:
        runtime.use_tutor(adapter)
        found = [runtime.weigh(prompts, TARGET, CHOICES)[0] for prompts in (*rounds, *rounds)]
        runtime.attach(adapter)
        expected = [[runtime.score(prompt, TARGET) for prompt in prompts] for prompts in (*rounds, *rounds)]
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, other, atol=0.02)


def test_too_much_to_weigh_weighs_nothing(tiny: Path, adapter: Path) -> None:
    with Runtime.load(tiny) as runtime:
        runtime.use_tutor(adapter)
        own, last = runtime.weigh([[5] * judge.CELLS], TARGET, CHOICES)
        assert own.shape == (1, len(TARGET)) and last.shape == (1, len(CHOICES))
        assert not own.any() and not last.any()


def test_no_tutor_weighs_nothing(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    with Runtime.load(tiny) as runtime:
        assert not runtime.has_tutor
        runtime.use_tutor(adapter)
        runtime.use_tutor(None)
        with pytest.raises(ModelError, match="no tutor"):
            runtime.weigh(PROMPTS, TARGET, CHOICES)
        (tmp_path / "odd.gguf").write_bytes(b"GGUF" + bytes(40))
        with pytest.raises(ModelError, match="can't load the tutor"):
            runtime.use_tutor(tmp_path / "odd.gguf")
        assert not runtime.has_tutor


def test_ones_own_comes_before_what_is_bundled(tmp_path: Path) -> None:
    home, sha = open_home(tmp_path / "home"), "ab" * 32
    assert tutor.tutor_path(home, sha) is None
    own = tutor.user_tutor_path(home, sha)
    own.parent.mkdir(parents=True)
    own.write_bytes(b"")
    assert tutor.tutor_path(home, sha) == own


@pytest.mark.slow
def test_the_starter_models_tutor_tells_what_answers(tmp_path: Path) -> None:
    home = open_home(tmp_path / "home")
    model = models.resolve(home, None).path
    statements = ["Your plumber is called Oskar.", "You keep bees on the roof.", "Your flight leaves at 6:40."]
    questions = ["Who mends my pipes?", "Which animals do I look after?", "When does my plane go?"]
    near = ["Who is my electrician?", "What is on my balcony?", "Where does my flight land?"]
    with Runtime.load(model) as runtime:
        runtime.use_tutor(tutor.tutor_path(home, models.sha256(home, model)))
        found = np.array([tutor.Bearing(runtime, question)(statements) for question in questions])
        close = np.array([tutor.Bearing(runtime, question)(statements) for question in near])
    assert (found.argmax(1) == np.arange(3)).all()
    assert (found.max(1) > close.max(1)).all()


def test_a_name_in_the_question_counts_no_more_than_so_much(tiny: Path) -> None:
    """Nats of the question after the three statements of the background, and after two that name somebody."""
    odds = np.array([[1.0, -1.0], [3.0, 1.0]])

    def weigh(prompts: Sequence[Sequence[int]], target: Sequence[int], _: object) -> tuple[np.ndarray, np.ndarray]:
        usual = len(prompts) == len(tutor.BACKGROUND)
        return np.full((len(prompts), len(target)), -20.0 if usual else 0.0), odds[: len(prompts)]

    with Runtime.load(tiny) as runtime:
        runtime.weigh_by(weigh)
        found = tutor.Bearing(runtime, "Which nuts make my nephew Tadhg swell up?")(["a", "b"])
    assert found.tolist() == [2.0 + tutor.AT_MOST, 2.0 + tutor.AT_MOST]
