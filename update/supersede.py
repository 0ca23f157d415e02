"""What no longer holds: "I sold the Citroën. We drive a white Volvo now." ends "We drive a Dyane", and takes its place.

The tutor says whether a statement is still true after a later message. What ended is no longer taught; its questions
are answered by what the same message tells, by the statement that answers them best.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from engrain.update import wording
from engrain.update.study import Fact, Lesson
from engrain.update.tutor import Tutor

if TYPE_CHECKING:
    from engrain.device.interactions import Interaction

ENDED = -5.0  # nats, below which a statement has ended: its log-odds of standing, less what the new facts weigh
SHARE, WEIGHT = 0.5, 2.0  # of the log-odds that a new fact answers its questions; nats that these count at most
SURELY = -4.0  # log-odds of standing, below which what was told in the same update has ended
PIECE = 300  # characters of a message; a longer one is taken sentence by sentence
_ASKED = 8  # of an old fact's questions, spread evenly
_NEXT = 2  # messages in a conversation that may change a fact without naming it: "Sorry, Thursday!"
_UNRELATED = 512  # pairs without a common word, of the latest answers, weighed all the same: "Home is Skelby now."


def superseded(
    tutor: Tutor, facts: Sequence[Fact], fresh: Sequence[Interaction], old: Sequence[Lesson]
) -> dict[str, Fact | None]:
    """Old answers that no longer hold, each with the new fact that answers its questions best; None without any."""
    asked: dict[str, list[str]] = {}
    for lesson in old:
        if lesson.kind == "fact":
            asked.setdefault(lesson.answer, []).append(lesson.question)
    for repeated in {f.answer for f in facts} & set(asked):
        del asked[repeated]
    told = {it.id: [f for f in facts if it.id in f.source] for it in fresh}
    pairs = _related([(answer, it.id, piece) for answer in asked for it in fresh for piece in _pieces(it.user)], told)
    found: dict[str, tuple[float, Fact | None]] = {}
    for (answer, id, _), odds in zip(pairs, tutor.standing([(a, piece) for a, _, piece in pairs]), strict=True):
        if odds < ENDED + WEIGHT:
            new, answers = _best(tutor, told[id], asked[answer])
            found[answer] = min(found.get(answer, (0.0, None)), (float(odds) - answers, new), key=lambda each: each[0])
    return {answer: new for answer, (odds, new) in found.items() if odds < ENDED}


def _related(pairs: Sequence[tuple[str, int, str]], told: Mapping[int, Sequence[Fact]]) -> list[tuple[str, int, str]]:
    """Pairs of an old answer and a message's piece that share a word, and some that don't."""
    heard = {id: wording.stems(" ".join(f.said for f in own)) for id, own in told.items()}
    share = [bool(wording.stems(answer) & (wording.stems(piece) | heard[id])) for answer, id, piece in pairs]
    others = [pair for pair, shares in zip(pairs, share, strict=True) if not shares]
    return [pair for pair, shares in zip(pairs, share, strict=True) if shares] + others[-_UNRELATED:]


def _best(tutor: Tutor, facts: Sequence[Fact], questions: Sequence[str]) -> tuple[Fact | None, float]:
    """The fact that answers most of the questions, and what its middle log-odds weigh, at most WEIGHT either way."""
    if not facts:
        return None, -WEIGHT
    few = questions[:: max(1, len(questions) // _ASKED)][:_ASKED]
    odds = tutor.judged([(f.said, question) for f in facts for question in few])
    middle = np.median(odds.reshape(len(facts), len(few)), axis=1)
    best = int(middle.argmax())
    return facts[best], float(np.clip(SHARE * middle[best], -WEIGHT, WEIGHT))


def standing(tutor: Tutor, facts: Sequence[Fact], messages: Sequence[Interaction]) -> list[Fact]:
    """The facts that no later one of the messages ends."""
    pairs = [(f, piece) for f in facts for piece in _pieces_since(f, messages)]
    odds = tutor.standing([(f.said, piece) for f, piece in pairs])
    over = {id(f) for (f, _), each in zip(pairs, odds, strict=True) if each < SURELY}
    return [f for f in facts if id(f) not in over]


def _pieces_since(fact: Fact, messages: Sequence[Interaction]) -> Iterator[str]:
    """Of what was said after a fact that which may be about it."""
    at = next((i for i, it in enumerate(messages) if it.id in fact.source), len(messages))
    near = _NEXT
    for it in messages[at + 1 :]:
        same = it.conversation == messages[at].conversation
        near -= same
        for piece in _pieces(it.user):
            if (same and near >= 0) or wording.stems(piece) & wording.stems(fact.said):
                yield piece


def _pieces(message: str) -> Iterable[str]:
    return [message] if len(message) <= PIECE else wording.sentences(message)
