"""What no longer holds: "I sold the Citroën. We drive a white Volvo now." ends "We drive a Dyane", and takes its place.

The tutor says whether a statement is still true after a later message. What ended is no longer taught; its questions
are answered by what the same message tells, by the statement that answers them best, read in the light of what ended.
"""

from __future__ import annotations

import math
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
CLEARLY = 1.0  # nats by which another reading answers the old questions better, to be taken instead of a new fact
SHARE, WEIGHT = 0.5, 2.0  # of the log-odds that a new fact answers its questions; nats that these count at most
PIECE = 300  # characters of a message; a longer one is taken sentence by sentence
MOST_WORDS = 5  # of a value
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

    That fact may be none of `facts`, but a sentence as it was said, the message read once more as if the old statement
    stood right before it ("My locker is number 204 now." lacks where that is), or the old statement with the new value.
    """
    asked = _asked(old)
    for repeated in {f.answer for f in facts} & set(asked):
        del asked[repeated]
    told = {it.id: [f for f in facts if it.id in f.source] for it in fresh}
    pairs = _related([(answer, it.id, piece) for answer in asked for it in fresh for piece in _pieces(it.user)], told)
    judged = tutor.standing([(answer, piece) for answer, _, piece in pairs])
    doubtful = [(*pair, float(odds)) for pair, odds in zip(pairs, judged, strict=True) if odds < ENDED + WEIGHT]
    doubtful.sort(key=lambda each: each[1])  # what was said last counts
    pairs_read = [(wording.to_first_person(answer), piece) for answer, _, piece, _ in doubtful]
    read = _read_after(reader, pairs_read)
    renewed = _renewed(reader, pairs_read, [asked[answer] for answer, *_ in doubtful])
    found: dict[str, Fact | None] = {}
    for (answer, id, piece, odds), statements, same in zip(doubtful, read, renewed, strict=True):
        others = [*filter(wording.is_statement, wording.sentences(piece)), *statements, *same]
        fuller = [to_fact(runtime, each, (id,)) for each in others if _is_news(each, piece, answer, asked[answer])]
        new, sure = _best(tutor, told[id], asked[answer])
        other, surer = _best(tutor, fuller, asked[answer])
        if surer > max(sure + CLEARLY, 0.0):
            new, sure = other, surer
        if odds - _weight(sure) < ENDED:
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
    return bool(said - before) and not said & (_value(answer, questions) - wording.stems(message))


def _value(answer: str, questions: Sequence[str]) -> set[str]:
    """The stems of an answer that none of its questions gives away."""
    return wording.stems(answer).difference(*map(wording.stems, questions))


def _read_after(reader: Reader, pairs: Sequence[tuple[str, str]]) -> list[list[str]]:
    """What the second text of each pair tells, read after the first."""
    turns = [(f"{i}", text) for i, pair in enumerate(pairs) for text in pair]
    return reader.told(turns)[1::2]


def _renewed(reader: Reader, pairs: Sequence[tuple[str, str]], questions: Sequence[Sequence[str]]) -> list[list[str]]:
    """Of each old statement, with its value replaced by words of a later message, what that tells most likely."""
    ways = [
        with_new_value(said, _value(said, asked), piece) for (said, piece), asked in zip(pairs, questions, strict=True)
    ]
    judged = reader.likelihoods(
        [(said, piece, statement) for (said, piece), own in zip(pairs, ways, strict=True) for statement in own]
    )
    at = iter(judged)
    weighed = [[(next(at), statement) for statement in own] for own in ways]
    return [[max(own)[1]] if own else [] for own in weighed]


def with_new_value(statement: str, value: set[str], message: str) -> list[str]:
    """A statement with a few words of a message, new to it, in place of its value, stems of its words."""
    spans = [m for m in wording.word_spans(statement) if wording.stems(m[0]) and wording.stems(m[0]) <= value]
    if not spans or len(wording.words(statement[spans[0].start() : spans[-1].end()])) > MOST_WORDS:
        return []
    known, heard = wording.stems(statement), list(wording.word_spans(message))
    new = [bool(own := wording.stems(m[0])) and not own & known for m in heard]
    ways = [
        message[heard[i].start() : heard[j].end()]
        for i in range(len(heard))
        for j in range(i, min(i + MOST_WORDS, len(heard)))
        if new[i] and new[j]
    ]
    head, tail = statement[: spans[0].start()], statement[spans[-1].end() :]
    return list(dict.fromkeys(filter(wording.is_statement, (head + way + tail for way in ways))))


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
    """The fact that answers most of the questions, and its middle log-odds."""
    if not (facts and questions):
        return None, -math.inf
    few = questions[:: max(1, len(questions) // _ASKED)][:_ASKED]
    odds = tutor.judged([(f.said, question) for f in facts for question in few])
    middle = np.median(odds.reshape(len(facts), len(few)), axis=1)
    best = int(middle.argmax())
    return facts[best], float(middle[best])


def _weight(sure: float) -> float:
    """What a new fact's log-odds of answering weigh, at most WEIGHT either way."""
    return float(np.clip(SHARE * sure, -WEIGHT, WEIGHT))


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
        if odds - _weight(_best(tutor, [new for new in facts if id in new.source], asked[f])[1]) < ENDED
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
