"""Which of the old facts a new statement replaces: "We drive a Volvo now" answers what "We drive a Dyane" answered.

A new statement replaces an old one if it makes the old one's questions likelier nearly as much as the old one does, by
the model's own likelihoods of their content words (`questions.log_likelihoods`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from engrain.update import questions, wording
from engrain.update.decoder import Decoder
from engrain.update.study import Fact, Lesson

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime

SHARE = 0.6  # of the old statement's gain that the new one must reach
MIN_GAIN = 5.0  # nats; below it the old statement itself hardly bears on its questions
_ASKED = 6  # of an old fact's questions, spread evenly
_STEM = 5  # letters by which words are taken to be the same one


def superseded(runtime: Runtime, decoder: Decoder, facts: Sequence[Fact], old: Sequence[Lesson]) -> dict[str, Fact]:
    """Old answers that no longer hold, each with the new fact that replaces it."""
    asked: dict[str, list[str]] = {}
    for lesson in old:
        if lesson.kind == "fact":
            asked.setdefault(lesson.answer, []).append(lesson.question)
    found = {}
    for answer, own in asked.items():
        near = [f for f in facts if f.answer != answer and _stems(f.said) & _stems(answer)]
        if near:
            few = own[:: max(1, len(own) // _ASKED)][:_ASKED]
            old_gain, *new = content_gains(runtime, decoder, [answer, *(f.said for f in near)], few)
            best = int(np.argmax(new))
            if old_gain > MIN_GAIN and new[best] > SHARE * old_gain:
                found[answer] = near[best]
    return found


def content_gains(runtime: Runtime, decoder: Decoder, statements: Sequence[str], asked: Sequence[str]) -> np.ndarray:
    """By how many nats each statement makes the questions' content words likelier, (statements,), the median."""
    return np.median(questions.gains(decoder, runtime, statements, asked)[..., 1], axis=1)


def _stems(text: str) -> set[str]:
    return {word[:_STEM] for word in wording.content_words(text)}
