"""What no longer holds: "I sold the Citroën. We drive a white Volvo now." ends "We drive a Dyane", and takes its place.

The tutor says whether a statement is still true after a later message. What ended is no longer taught; its questions
are answered by what the same message tells, by the statement that answers them best, read in the light of what ended.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

import numpy as np

from engrain.update import wording
from engrain.update.corrected import NEXT, corrected, place_of
from engrain.update.reader import Reader
from engrain.update.study import Fact, Lesson, questions_of, to_fact
from engrain.update.tutor import Tutor
from engrain.update.values import with_new_value

if TYPE_CHECKING:
    from engrain.device.interactions import Interaction

ENDED = -4.0  # nats, below which a statement has ended: its log-odds of standing, less what the new facts weigh
DOUBTED = -2.5  # nats, below which one has that is told once more with another value
HARDLY = -10.0  # nats, below which a message hardly tells a statement
GIVEN_AWAY = 0.25  # of a statement's questions, from which a word that they hold isn't its value
SHARE, WEIGHT = 0.5, 2.0  # of the log-odds that a new fact answers its questions; nats that these count at most
PIECE = 300  # characters of a message; a longer one is taken sentence by sentence
MOST_WAYS = 64  # to put a new value into a statement
MUCH = 2.0  # nats by which an earlier message's fact answers better that is kept
_ASKED = 8  # of an old fact's questions, spread over all
_UNRELATED = 512  # pairs without a common word, of the latest answers, weighed all the same: "Home is Skelby now."


@dataclass(frozen=True)
class _Doubt:
    """An old statement, in the user's own person, where it comes from, and its questions; and what was said later, with
    the log-odds (nats) that the statement is still true.
    """

    said: str
    source: tuple[int, ...]
    asked: Sequence[str]
    id: int
    piece: str
    odds: float


def superseded(
    tutor: Tutor,
    reader: Reader,
    facts: Sequence[Fact],
    fresh: Sequence[Interaction],
    old: Sequence[Lesson],
) -> dict[str, Fact | None]:
    """Old answers that no longer hold, each with the new fact that answers its questions best; None without any.

    That fact may be none of `facts` (`_decided`).
    """
    asked = _asked(old)
    for repeated in {f.answer for f in facts} & set(asked):
        del asked[repeated]
    told = {it.id: [f for f in facts if it.id in f.source] for it in fresh}
    source = {lesson.answer: lesson.source for lesson in old if lesson.kind == "fact"}
    later = [(answer, it) for answer in asked for it in fresh if it.id > max(source[answer], default=0)]
    pairs = _related([(answer, it.id, piece) for answer, it in later for piece in _pieces(it.user)], told)
    judged = tutor.standing([(answer, piece) for answer, _, piece in pairs])
    said = {answer: wording.to_first_person(answer) for answer in asked}
    doubts = [
        _Doubt(said[answer], source[answer], asked[answer], id, piece, float(odds))
        for (answer, id, piece), odds in zip(pairs, judged, strict=True)
        if odds < ENDED + WEIGHT
    ]
    over = _decided(tutor, reader, doubts, told)
    return {a: over[said[a], source[a]] for a in asked if (said[a], source[a]) in over}


def standing(tutor: Tutor, reader: Reader, facts: Sequence[Fact], messages: Sequence[Interaction]) -> list[Fact]:
    """The facts that no later one of the messages ends, with what takes the others' places.

    messages: all since the first that the facts come from.
    """
    facts = _uncorrected(tutor, corrected(reader, facts, messages), messages)
    pairs = [(f, id, piece) for f in facts for id, piece in _pieces_since(f, messages)]
    judged = tutor.standing([(f.said, piece) for f, _, piece in pairs])
    doubtful = [(*pair, float(odds)) for pair, odds in zip(pairs, judged, strict=True) if odds < ENDED + WEIGHT]
    some = list(dict.fromkeys(f for f, *_ in doubtful))
    asked = dict(zip(some, questions_of(tutor, some), strict=True))
    told = {it.id: [f for f in facts if it.id in f.source] for it in messages}
    doubts = [_Doubt(f.said, f.source, asked[f], id, piece, odds) for f, id, piece, odds in doubtful]
    over = _decided(tutor, reader, doubts, told)
    places = {said: new for (said, _), new in over.items() if new and (new.said, new.source) not in over}
    return restated([f for f in facts if (f.said, f.source) not in over], places)


def _uncorrected(tutor: Tutor, facts: Sequence[Fact], messages: Sequence[Interaction]) -> list[Fact]:
    """Less those that a later message of their conversation tells once more with another value, and names the old.

    "Professor is grey too, like Nougat." does so as well, so the tutor has to doubt them.
    """
    said = {it.id: it for it in messages}

    def corrects(new: Fact, old: Fact) -> bool:
        after, before = (said.get(each.source[-1]) for each in (new, old))
        if not (after and before and after.id > before.id and after.conversation == before.conversation):
            return False
        return bool(gone := _replaced(old.said, new.said)) and gone <= wording.stems(after.user)

    pairs = [(old, said[new.source[-1]].user) for new in facts for old in facts if corrects(new, old)]
    judged = tutor.standing([(old.said, message) for old, message in pairs])
    over = [old for (old, _), odds in zip(pairs, judged, strict=True) if odds < DOUBTED]
    return [fact for fact in facts if fact not in over]


def _replaced(old: str, new: str) -> set[str]:
    """The stems in whose place a statement says something else, if as many or more others are in both."""
    before, after = (list(map(wording.stem, wording.content_words(each))) for each in (old, new))
    opcodes = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    spans = [op for op in opcodes if op[0] not in ("equal", "delete")]  # it may be told in fewer words
    if len(spans) != 1 or spans[0][0] != "replace":
        return set()
    gone = set(before[spans[0][1] : spans[0][2]])
    return gone if 2 * len(gone) <= len(before) else set()


def _decided(
    tutor: Tutor,
    reader: Reader,
    doubts: Sequence[_Doubt],
    told: Mapping[int, Sequence[Fact]],
) -> dict[tuple[str, tuple[int, ...]], Fact | None]:
    """Old statements that are over, with where they come from; for each what answers its questions best, or None.

    That is a fact that the same message told, or a sentence as it was said, the message read once more as if the old
    statement stood right before it ("My locker is number 204 now." lacks where that is), or the old statement with the
    new value; these two come from both. Of several messages the last counts, unless an earlier one answers much better.
    """

    def better(
        doubt: _Doubt, statements: Iterable[str], source: tuple[int, ...], than: tuple[Fact | None, float]
    ) -> tuple[Fact | None, float]:
        news = [to_fact(each, source) for each in statements if _is_news(each, doubt)]
        other = _best(tutor, news, doubt.asked)
        return other if other[1] > max(than[1], 0.0) else than

    likely = []
    for doubt in sorted(doubts, key=lambda each: each.id):
        said = filter(wording.is_statement, wording.sentences(doubt.piece))
        new = better(doubt, said, (doubt.id,), _best(tutor, told[doubt.id], doubt.asked))
        if doubt.odds - max(0.0, _weight(new[1])) < ENDED:
            likely.append((doubt, new))
    # Only now: what borrows the old statement's words would answer its questions in any case. But where it is told,
    # what was misread speaks against nothing: "My locker moved to number 204." for "it is number 204 now".
    renewed = _renewed(reader, [doubt for doubt, _ in likely])
    over = [
        (doubt, new, same)
        for (doubt, new), same in zip(likely, renewed, strict=True)
        if same or doubt.odds - _weight(new[1]) < ENDED
    ]
    found: dict[tuple[str, tuple[int, ...]], tuple[Fact | None, float]] = {}
    for (doubt, new, same), read in zip(over, _read_after(reader, [doubt for doubt, *_ in over]), strict=True):
        # "It isn't on the 3rd." answers the old one's questions, and takes no place of its.
        if new[0] and _is_stale(new[0].said, doubt):
            new = None, -math.inf
        fact, sure = better(doubt, [*read, *same], (*doubt.source, doubt.id), new)
        old = (doubt.said, doubt.source)
        if old not in found or sure > found[old][1] - MUCH:
            found[old] = (fact, sure)
    return {old: fact for old, (fact, _) in found.items()}


def restated(facts: Sequence[Fact], replaced: Mapping[str, Fact | None]) -> list[Fact]:
    """The facts, with those that take old ones' places instead of what they say more fully."""
    told = list(facts)
    for answer, new in replaced.items():
        if new and new not in told:
            said, before = wording.stems(new.said), wording.stems(answer)
            told = [f for f in told if new.source[-1] not in f.source or wording.stems(f.said) - before - said]
            told.append(new)
    return told


def _is_news(statement: str, doubt: _Doubt) -> bool:
    """Whether it says more than an old statement does, without what the old one alone says: its value's numbers, and
    words that no question gives away.
    """
    said, before = wording.stems(statement), wording.stems(doubt.said)
    value = before.difference(*map(wording.stems, doubt.asked)) | _numbers(_value(doubt))
    return bool(said - before) and not said & (value - wording.stems(doubt.piece)) and not _is_stale(statement, doubt)


def _is_stale(statement: str, doubt: _Doubt) -> bool:
    """Whether it repeats an old statement's number without the message's new one."""
    said, before = wording.stems(statement), wording.stems(doubt.said)
    new = _numbers(wording.stems(doubt.piece)) - before
    return bool(new and _numbers(said) & before and not said & new)


def _numbers(stems: Iterable[str]) -> set[str]:
    return set(filter(wording.has_digit, stems))


def _value(doubt: _Doubt) -> set[str]:
    """The stems of an old statement that few of its questions give away."""
    held = Counter(stem for question in doubt.asked for stem in wording.stems(question))
    return {stem for stem in wording.stems(doubt.said) if held[stem] <= GIVEN_AWAY * len(doubt.asked)}


def _read_after(reader: Reader, doubts: Sequence[_Doubt]) -> list[list[str]]:
    """What each message tells, read after the old statement."""
    turns = [(f"{i}", text) for i, doubt in enumerate(doubts) for text in (doubt.said, doubt.piece)]
    return reader.told(turns)[1::2]


def _renewed(reader: Reader, doubts: Sequence[_Doubt]) -> list[list[str]]:
    """Each old statement with a new value, as the message most likely tells it; none where that is hardly told."""
    ways = [
        with_new_value(doubt.said, doubt.piece, _value(doubt))[:MOST_WAYS] if doubt.asked else [] for doubt in doubts
    ]
    pairs = [(doubt, statement) for doubt, own in zip(doubts, ways, strict=True) for statement in own]
    likely = iter(
        reader.likelihoods([(doubt.said, " ".join(doubt.piece.split()), statement) for doubt, statement in pairs])
    )
    best = [max(((next(likely), statement) for statement in own), default=(-math.inf, "")) for own in ways]
    return [[statement] if nats > HARDLY else [] for nats, statement in best]


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
    few = questions[:: -(-len(questions) // _ASKED)]
    odds = tutor.judged([(f.said, question) for f in facts for question in few])
    middle = np.median(odds.reshape(len(facts), len(few)), axis=1)
    best = int(middle.argmax())
    return facts[best], float(middle[best])


def _weight(sure: float) -> float:
    """What a new fact's log-odds of answering weigh, at most WEIGHT either way."""
    return float(np.clip(SHARE * sure, -WEIGHT, WEIGHT))


def _pieces_since(fact: Fact, messages: Sequence[Interaction]) -> Iterator[tuple[int, str]]:
    """Of what was said after a fact that which may be about it, each with its interaction's id."""
    at = place_of(fact, messages)
    near = NEXT
    for it in messages[at + 1 :]:
        same = it.conversation == messages[at].conversation
        near -= same
        for piece in _pieces(it.user):
            if (same and near >= 0) or wording.stems(piece) & wording.stems(fact.said):
                yield it.id, piece


def _pieces(message: str) -> Iterable[str]:
    return [message] if len(message) <= PIECE else wording.sentences(message)
