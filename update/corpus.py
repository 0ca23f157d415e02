"""What people tell about themselves, and ask: a corpus about nobody, from which a model learns what is a user's own.

Each row of `corpus.jsonl` is a text that someone told, seven questions that it answers, and five that are close and
that it doesn't.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from engrain.update import wording

CORPUS = Path(__file__).with_name("corpus.jsonl")


@dataclass(frozen=True)
class Row:
    """A text that someone told, questions that it answers, and close ones that it doesn't."""

    said: str
    ask: tuple[str, ...]
    near: tuple[str, ...]


def read_corpus(path: Path = CORPUS) -> list[Row]:
    """The rows of the corpus."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Row(row["said"], tuple(row["ask"]), tuple(row["near"])) for row in rows]


def questions_of_users(count: int) -> list[str]:
    """Questions that people ask about themselves, in the first person, from all over the corpus."""
    asked = [q for row in read_corpus() for q in (*row.ask, *row.near) if wording.has_first_person(q)]
    return list(dict.fromkeys(asked[:: max(1, len(asked) // count)]))[:count]
