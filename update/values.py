"""Statements with another value in the place of theirs."""

from __future__ import annotations

from collections.abc import Collection, Set
from typing import NamedTuple

from engrain.update import wording

MOST_WORDS = 4  # of a value


def with_new_value(statement: str, message: str, value: Collection[str] = ()) -> list[str]:
    """A statement with a few words that only a message has, in place of some that only it has, or that are its value.

    A number in a number's place and a name in a name's come first. value: stems, for a message may name what is over:
    "We sold the Saab, we have a Fiat now."
    """
    ways = _ways(statement, message, value)
    ways.sort(key=lambda way: _kind(way.old) != _kind(way.new))
    return list(dict.fromkeys(way.said for way in ways if wording.is_statement(way.said)))


def with_new_number(statement: str, message: str) -> list[tuple[str, str]]:
    """A statement with a number that only the message has in place of one that only it has, and that number."""
    ways = [way for way in _ways(statement, message) if _is_number(way.old) and _is_number(way.new)]
    return list(dict.fromkeys((way.said, way.new) for way in ways if wording.is_statement(way.said)))


class _Way(NamedTuple):
    """Some words of a statement, those of a message in their place, and what it says then."""

    old: str
    new: str
    said: str


def _ways(statement: str, message: str, value: Collection[str] = ()) -> list[_Way]:
    new = [message[start:end] for start, end in _own_words(message, wording.stems(statement))]
    old = _own_words(statement, wording.stems(message).difference(value))
    return [_Way(statement[s:e], way, statement[:s] + way + statement[e:]) for s, e in old for way in new]


def _kind(value: str) -> tuple[bool, bool]:
    """Whether it holds a number, a name."""
    return wording.has_digit(value), any(word[0][:1].isupper() for word in wording.word_spans(value))


def _own_words(text: str, others: Set[str]) -> list[tuple[int, int]]:
    """Where a few words of a text stand that begin and end with content words of other stems."""
    words = list(wording.word_spans(text))
    own = [bool(wording.stems(m[0]) - others) for m in words]
    return [
        (first.start(), words[j].end())
        for i, first in enumerate(words)
        for j in range(i, min(i + MOST_WORDS, len(words)))
        if own[i] and own[j]
    ]


def _is_number(value: str) -> bool:
    """Whether all that it says are digits: "8 by 5", "17:05"."""
    return all(map(wording.has_digit, wording.content_words(value)))
