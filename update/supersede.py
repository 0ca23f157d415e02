"""What no longer holds: "I sold the Citroën. We drive a white Volvo now." ends "We drive a Dyane", and takes its place.

The tutor says whether a statement is still true after a later message. What ended is no longer taught; its questions
are answered by what the same message tells, by the statement that answers them best, read in the light of what ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from engrain.update import wording
from engrain.update.reader import Reader
from engrain.update.study import Fact, Lesson, questions_of, to_fact
from engrain.update.tutor import Tutor

if TYPE_CHECKING:
    from engrain.device.interactions import Interaction
    from engrain.device.runtime import Runtime

ENDED = -5.0  # nats, below which a statement has ended: its log-odds of standing, less what the new facts weigh
SHARE, WEIGHT = 0.5, 2.0  # of the log-odds that a new fact answers its questions; nats that these count at most
PIECE = 300  # characters of a message; a longer one is taken sentence by sentence
_ASKED = 8  # of an old fact's questions, spread evenly
_NEXT = 2  # messages in a conversation that may change a fact without naming it: "Sorry, Thursday!"
_UNRELATED = 512  # pairs without a common word, of the latest answers, weighed all the same: "Home is Skelby now."


def superseded(
    runtime: Runtime,
    tutor: Tutor,
    reader: Reader,
    facts: Sequence[Fact],
    fresh: Sequence[Interaction],
    old: Sequence[Lesson],
) -> dict[str, Fact | None]:
    """Old answers that no longer hold, each with the new fact that answers its questions best; None without any.

    That fact may be none of `facts`, but a sentence as it was said, or the message read once more as if the old
    statement stood right before it: "My locker is number 204 now." lacks where that is.
    """
    asked = _asked(old)
    for repeated in {f.answer for f in facts} & set(asked):
        del asked[repeated]
    told = {it.id: [f for f in facts if it.id in f.source] for it in fresh}
    pairs = _related([(answer, it.id, piece) for answer in asked for it in fresh for piece in _pieces(it.user)], told)
    judged = tutor.standing([(answer, piece) for answer, _, piece in pairs])
    doubtful = [(*pair, float(odds)) for pair, odds in zip(pairs, judged, strict=True) if odds < ENDED + WEIGHT]
    doubtful.sort(key=lambda each: each[1])  # what was said last counts
    read = _read_after(reader, [(wording.to_first_person(answer), piece) for answer, _, piece, _ in doubtful])
    found: dict[str, Fact | None] = {}
    for (answer, id, piece, odds), statements in zip(doubtful, read, strict=True):
        others = [*filter(wording.is_statement, wording.sentences(piece)), *statements]
        fuller = [to_fact(runtime, each, (id,)) for each in others if _is_news(each, piece, answer, asked[answer])]
        new, answers = _best(tutor, told[id], asked[answer])
        other, better = _best(tutor, fuller, asked[answer])
        if better > max(answers, 0.0):
            new, answers = other, better
        if odds - answers < ENDED:
            found[answer] = new or found.get(answer)
    return found


def restated(facts: Sequence[Fact], replaced: Mapping[str, Fact | None]) -> list[Fact]:
    """The facts, with those that take old ones' places instead of what they say more fully."""
    told = list(facts)
    for answer, new in replaced.items():
        if new and new not in told:
            said, before = wording.stems(new.said), wording.stems(answer)
            told = [f for f in told if f.source != new.source or wording.stems(f.said) - before - said] + [new]
    return told


def _is_news(statement: str, message: str, answer: str, questions: Sequence[str]) -> bool:
    """Whether it says more than an old answer does, without its value: what none of its questions gives away."""
    said, before = wording.stems(statement), wording.stems(answer)
    value = before.difference(*map(wording.stems, questions)) - wording.stems(message)
    return bool(said - before) and not said & value


def _read_after(reader: Reader, pairs: Sequence[tuple[str, str]]) -> list[list[str]]:
    """What the second text of each pair tells, read after the first."""
    turns = [(f"{i}", text) for i, pair in enumerate(pairs) for text in pair]
    return reader.told(turns)[1::2]


def _asked(old: Sequence[Lesson]) -> dict[str, list[str]]:
    """The questions of each fact, by its answer."""
    asked: dict[str, list[str]] = {}
    for lesson in old:
        if lesson.kind == "fact":
            asked.setdefault(lesson.answer, []).append(lesson.question)
    return asked


def _related(pairs: Sequence[tuple[str, int, str]], told: Mapping[int, Sequence[Fact]]) -> list[tuple[str, int, str]]:
    """Pairs of an old answer and a message's piece that share a word, and some that don't."""
    heard = {id: wording.stems(" ".join(f.said for f in own)) for id, own in told.items()}
    share = [bool(wording.stems(answer) & (wording.stems(piece) | heard[id])) for answer, id, piece in pairs]
    others = [pair for pair, shares in zip(pairs, share, strict=True) if not shares]
    return [pair for pair, shares in zip(pairs, share, strict=True) if shares] + others[-_UNRELATED:]


def _best(tutor: Tutor, facts: Sequence[Fact], questions: Sequence[str]) -> tuple[Fact | None, float]:
    """The fact that answers most of the questions, and what its middle log-odds weigh, at most WEIGHT either way."""
    if not (facts and questions):
        return None, -WEIGHT
    few = questions[:: max(1, len(questions) // _ASKED)][:_ASKED]
    odds = tutor.judged([(f.said, question) for f in facts for question in few])
    middle = np.median(odds.reshape(len(facts), len(few)), axis=1)
    best = int(middle.argmax())
    return facts[best], float(np.clip(SHARE * middle[best], -WEIGHT, WEIGHT))


def standing(tutor: Tutor, facts: Sequence[Fact], messages: Sequence[Interaction]) -> list[Fact]:
    """The facts that no later one of the messages ends."""
    pairs = [(f, id, piece) for f in facts for id, piece in _pieces_since(f, messages)]
    judged = tutor.standing([(f.said, piece) for f, _, piece in pairs])
    doubtful = [(f, id, odds) for (f, id, _), odds in zip(pairs, judged, strict=True) if odds < ENDED + WEIGHT]
    some = list(dict.fromkeys(f for f, _, _ in doubtful))
    asked = dict(zip(some, questions_of(tutor, some), strict=True))
    over = {
        f
        for f, id, odds in doubtful
        if odds - _best(tutor, [new for new in facts if id in new.source], asked[f])[1] < ENDED
    }
    return [f for f in facts if f not in over]


def _pieces_since(fact: Fact, messages: Sequence[Interaction]) -> Iterator[tuple[int, str]]:
    """Of what was said after a fact that which may be about it, each with its interaction's id."""
    at = next((i for i, it in enumerate(messages) if it.id in fact.source), len(messages))
    near = _NEXT
    for it in messages[at + 1 :]:
        same = it.conversation == messages[at].conversation
        near -= same
        for piece in _pieces(it.user):
            if (same and near >= 0) or wording.stems(piece) & wording.stems(fact.said):
                yield it.id, piece


def _pieces(message: str) -> Iterable[str]:
    return [message] if len(message) <= PIECE else wording.sentences(message)
