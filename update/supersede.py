"""Which of the old facts a new statement replaces: "We drive a Volvo now" answers what "We drive a Dyane" answered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engrain.update import wording
from engrain.update.study import ANSWERED, Fact, Lesson
from engrain.update.tutor import Tutor

_ASKED = 8  # of an old fact's questions, spread evenly


def superseded(tutor: Tutor, facts: Sequence[Fact], old: Sequence[Lesson]) -> dict[str, Fact]:
    """Old answers that no longer hold, each with the new fact that replaces it: that answers most of its questions."""
    asked: dict[str, list[str]] = {}
    for lesson in old:
        if lesson.kind == "fact":
            asked.setdefault(lesson.answer, []).append(lesson.question)
    found = {}
    for answer, own in asked.items():
        near = [f for f in facts if f.answer != answer and wording.stems(f.said) & wording.stems(answer)]
        if near:
            few = own[:: max(1, len(own) // _ASKED)][:_ASKED]
            odds = tutor.judged([(f.said, question) for f in near for question in few])
            middle = np.median(odds.reshape(len(near), len(few)), axis=1)
            if middle.max() > ANSWERED:
                found[answer] = near[int(middle.argmax())]
    return found
