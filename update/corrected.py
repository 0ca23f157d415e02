"""What is corrected by a number alone: "No sorry, the 15th." after "We booked the boathouse for 14 June."

The tutor doesn't see it: to it the message says nothing of a boathouse. The reader, trained on conversations, does: it
finds the old statement with the new number likely after the old one, and where the message stands as likely as what it
had made of it, unless that has a word of the message which the old one lacks ("The bus leaves at 9:40."). Names aren't
taken so: "He's called Wes." is more often somebody else than another name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engrain.update import wording
from engrain.update.reader import LONGEST, Reader, Sentence, read
from engrain.update.study import Fact, to_fact
from engrain.update.values import with_new_number

if TYPE_CHECKING:
    from engrain.device.interactions import Interaction

NEXT = 2  # messages in a conversation that may change a fact without naming it
AFTER, THERE = -4.0, -8.0  # nats that the new statement needs, read right after the old one, and where it was said
BEHIND = 2.0  # nats by which it may be less likely than what was read, or has to be likelier where that has news


@dataclass(frozen=True)
class _Way:
    """An old fact as a later sentence would correct it, with the sentence's message, and the number there."""

    old: Fact
    sentence: Sentence
    id: int
    said: str
    number: str


def corrected(reader: Reader, facts: Sequence[Fact], messages: Sequence[Interaction]) -> list[Fact]:
    """The facts, those that one of the next messages corrects by a number as they are then.

    Gone is also what else was made of that number, unless it says more of its sentence.
    """
    ways = list(_ways(facts, messages))
    after = reader.likelihoods([(way.old.said, way.sentence.said, way.said) for way in ways])
    ways = [way for way, nats in zip(ways, after, strict=True) if nats > AFTER]
    there = reader.likelihoods([(way.sentence.before, way.sentence.said, way.said) for way in ways])
    # A sentence's number corrects one statement: the likeliest.
    best: dict[tuple[Sentence, str], tuple[float, _Way]] = {}
    for way, nats in zip(ways, there, strict=True):
        at = way.sentence, way.number
        if nats > max(THERE, best.get(at, (THERE, way))[0]):
            best[at] = nats, way
    rivals = [(nats, way, [f for f in facts if _tells(f, way)]) for nats, way in best.values()]
    likely = iter(
        reader.likelihoods([(w.sentence.before, w.sentence.said, f.said) for _, w, own in rivals for f in own])
    )
    found, now = list(facts), dict[Fact, Fact]()
    for nats, way, own in rivals:
        read_so = [(next(likely), f) for f in own]
        more = wording.stems(way.sentence.said) - wording.stems(way.said)
        news = [f for _, f in read_so if wording.stems(f.said) & more]
        outdone = any(n > (nats - BEHIND if f in news else nats + BEHIND) for n, f in read_so)
        old = now.get(way.old, way.old)  # "The 15th. No, the 16th!"
        if outdone or old not in found or old.source[-1] == way.id:
            continue
        now[way.old] = to_fact(way.said, (*way.old.source, way.id))
        found[found.index(old)] = now[way.old]
        found = [f for f in found if f not in own or f in news]
    return found


def _ways(facts: Sequence[Fact], messages: Sequence[Interaction]) -> Iterator[_Way]:
    """Each fact with each number of the next messages in its conversation in place of its own."""
    said: dict[int, list[Sentence]] = {}
    for sentence in read([(it.conversation, it.user) for it in messages]):
        said.setdefault(sentence.message, []).append(sentence)
    for fact in facts:
        at = place_of(fact, messages)
        later = [i for i in range(at + 1, len(messages)) if messages[i].conversation == messages[at].conversation]
        for i in later[:NEXT]:
            for sentence in said.get(i, ()):
                if len(sentence.said) <= LONGEST:
                    for new, number in with_new_number(fact.said, sentence.said):
                        yield _Way(fact, sentence, messages[i].id, new, number)


def place_of(fact: Fact, messages: Sequence[Interaction]) -> int:
    """Where the last message stands that tells a fact; their number if none does."""
    return next((i for i, it in enumerate(messages) if it.id == fact.source[-1]), len(messages))


def _tells(fact: Fact, way: _Way) -> bool:
    """Whether it is what was made of the way's number in its message."""
    return fact.source[-1] == way.id and wording.stems(way.number) <= wording.stems(fact.said)
