"""What people tell about themselves, and ask: a corpus about nobody, from which a model learns what is a user's own.

Each row of `corpus.jsonl` is a person: a text that they told, questions that it answers, and close ones that it
doesn't; or several texts about the same things, each with questions that none of the others answers. Each row of
`changes.jsonl` is a text, messages that end its being true, and close ones that don't.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from engrain.quant.files import read_rows
from engrain.update import wording

CORPUS = Path(__file__).with_name("corpus.jsonl")
CHANGES = Path(__file__).with_name("changes.jsonl")
_NEAR = 2  # of the questions that no text of several answers, those put to each


@dataclass(frozen=True)
class Row:
    """A text that someone told, questions that it answers, and close ones that it doesn't."""

    said: str
    ask: tuple[str, ...]
    near: tuple[str, ...]


Person = tuple[Row, ...]


@dataclass(frozen=True)
class Change:
    """A text that someone told, later messages after which it is no longer true, and close ones after which it is."""

    said: str
    ends: tuple[str, ...]
    stays: tuple[str, ...]


def read_corpus(path: Path = CORPUS) -> list[Person]:
    """The people of the corpus, and what each told."""
    return [_person(row) for row in read_rows(path)]


def read_changes(path: Path = CHANGES) -> list[Change]:
    """What came to an end, and what didn't."""
    return [Change(row["said"], tuple(row["ends"]), tuple(row["stays"])) for row in read_rows(path)]


def _person(row: Mapping[str, Any]) -> Person:
    """Close to one of several texts are some questions that nothing answers, and one that each of the others does."""
    if "said" in row:
        return (Row(row["said"], tuple(row["ask"]), tuple(row["near"])),)
    told, ask, near = row["told"], row["ask"], row["near"]
    rows = []
    for i, (said, own) in enumerate(zip(told, ask, strict=True)):  # other questions for each: all get their turn
        unanswered = [near[(i + k) % len(near)] for k in range(_NEAR)]
        others = [questions[i % len(questions)] for questions in ask if questions is not own]
        rows.append(Row(said, tuple(own), (*unanswered, *others)))
    return tuple(rows)


def questions_of_users(count: int) -> list[str]:
    """Questions that people ask about themselves, in the first person, from all over the corpus."""
    rows = chain.from_iterable(read_corpus())
    asked = [q for row in rows for q in (*row.ask, *row.near) if wording.has_first_person(q)]
    return list(dict.fromkeys(asked[:: max(1, len(asked) // count)]))[:count]
