"""What an update is made of when something was taught before."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from engrain.device.runtime import Runtime
from engrain.quant.gguf import open_gguf
from engrain.update import gate, supersede
from engrain.update.curriculum import EPOCHS, REPLAY, REPLAY_WEAK, Past, Probe, replay
from engrain.update.decoder import Decoder
from engrain.update.gate import came_back
from engrain.update.study import Fact, Lesson
from engrain.update.supersede import superseded

CAR, TEA = "You drive a yellow Dyane.", "Your tea is green."
PAST = [
    *(Lesson(f"Which car {i}?", CAR, "fact", (1,)) for i in range(30)),
    *(Lesson(f"Which tea {i}?", TEA, "fact", (2,)) for i in range(50)),
    *[Lesson("Say hi.", "Hi.", "correction", (3,))] * 4,
]


def test_replay_has_other_questions_for_every_epoch() -> None:
    chosen = replay(PAST, {TEA}, seed=0)
    kinds = Counter((lesson.answer, lesson.kind) for lesson in chosen)
    assert kinds == {(CAR, "replay"): EPOCHS * REPLAY, (TEA, "replay"): EPOCHS * REPLAY_WEAK, ("Hi.", "correction"): 4}
    assert len({lesson.question for lesson in chosen}) == EPOCHS * (REPLAY + REPLAY_WEAK) + 1
    assert replay(PAST, {TEA}, seed=1) != chosen


def test_what_is_replaced_leaves_the_past() -> None:
    past = Past(tuple(PAST), (Probe("Which car?", ("dyane",), (1,), CAR), Probe("Tea?", ("green",), (2,), TEA)))
    left = past.without({CAR})
    assert {lesson.answer for lesson in left.lessons} == {TEA, "Hi."}
    assert [probe.answer for probe in left.probes] == [TEA]


@pytest.mark.parametrize(("gain", "expected"), [(9.0, {CAR}), (5.0, set()), (-1.0, set())])
def test_a_fact_is_replaced_by_one_that_answers_its_questions(
    gain: float, expected: set[str], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def gains(runtime: Runtime, decoder: Decoder, statements: list[str], questions: list[str]) -> np.ndarray:
        asked.append(statements)
        return np.array([10.0, gain])

    monkeypatch.setattr(supersede, "content_gains", gains)
    decoder = Decoder(open_gguf(tiny), dtype=torch.float32)
    new = Fact("We drive a white Volvo now.", "You drive a white Volvo now.", ("volvo",))
    with Runtime.load(tiny) as runtime:
        found = superseded(runtime, decoder, [new], PAST)
    assert set(found) == expected
    assert asked == [[CAR, new.said]]  # what shares no word isn't even compared


def test_a_statement_does_not_replace_itself(tiny: Path) -> None:
    decoder = Decoder(open_gguf(tiny), dtype=torch.float32)
    with Runtime.load(tiny) as runtime:
        assert superseded(runtime, decoder, [Fact("I drive a yellow Dyane.", CAR, ())], PAST) == {}


def test_forgotten_words_that_still_stand_elsewhere_betray_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = [Lesson("Which locker is mine?", "Your locker is number 317.", "fact", (1,))]
    other = [Lesson("Which window?", "Your window has the number 317.", "fact", (2,))]
    with Runtime.load(tiny) as runtime:
        monkeypatch.setattr(gate, "answers", lambda runtime, asked: ["It is number 317."] * len(asked))
        assert came_back(runtime, gone) == 1.0
        assert came_back(runtime, gone, other) == 0.0
