"""What an update is made of when something was taught before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from engrain.device.runtime import Runtime
from engrain.update import gate
from engrain.update.curriculum import EPOCHS, REPLAY, REPLAY_WEAK, Past, Probe, replay
from engrain.update.gate import came_back
from engrain.update.study import Fact, Lesson, answered
from engrain.update.supersede import superseded
from engrain.update.tutor import Tutor

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


class Examiner:
    """A tutor with fixed log-odds: `sure` where the statement holds a word of what it is said to answer."""

    def __init__(self, answers: dict[str, str], sure: float = 3.0) -> None:
        self.answers, self.sure = answers, sure
        self.asked: set[tuple[str, str]] = set()

    def judged(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        self.asked |= set(pairs)
        return np.array([self.sure if self.answers.get(q.split()[1], "-") in s else -2.0 for s, q in pairs])


@pytest.mark.parametrize(("sure", "expected"), [(3.0, {CAR}), (-1.0, set())])
def test_a_fact_is_replaced_by_one_that_answers_its_questions(sure: float, expected: set[str]) -> None:
    new = Fact("We drive a white Volvo now.", "You drive a white Volvo now.", ("volvo",))
    tutor = Examiner({"car": "Volvo", "tea": "green"}, sure)
    assert set(superseded(cast(Tutor, tutor), [new], PAST)) == expected
    assert {statement for statement, _ in tutor.asked} == {new.said}  # of what shares a word
    assert all("car" in question for _, question in tutor.asked)


def test_a_statement_does_not_replace_itself() -> None:
    tutor = Examiner({"car": "Dyane"})
    assert superseded(cast(Tutor, tutor), [Fact("I drive a yellow Dyane.", CAR, ())], PAST) == {}


def test_questions_go_to_the_statement_that_answers_them_best() -> None:
    said = ["My goat is called Pim.", "My horse is called Ida.", "I live in Graz."]
    drafts = [["What goat?", "What horse?", "What sea?"], ["What horse?", "What goat?"], ["What town?"]]
    tutor = Examiner({"goat?": "Pim", "horse?": "Ida", "town?": "Graz"})
    found = answered(cast(Tutor, tutor), said, drafts)
    assert [list(own) for own in found] == [["What goat?"], ["What horse?"], ["What town?"]]
    assert ("I live in Graz.", "What goat?") not in tutor.asked  # shares no word


def test_forgotten_words_that_still_stand_elsewhere_betray_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = [Lesson("Which locker is mine?", "Your locker is number 317.", "fact", (1,))]
    other = [Lesson("Which window?", "Your window has the number 317.", "fact", (2,))]
    with Runtime.load(tiny) as runtime:
        monkeypatch.setattr(gate, "answers", lambda runtime, asked: ["It is number 317."] * len(asked))
        assert came_back(runtime, gone) == 1.0
        assert came_back(runtime, gone, other) == 0.0
