"""What a memory benchmark asks: a JSON file of things told, and questions with the texts that answer them.

`facts` [{said, ask[], accept[]}]; optional: `updates` [{said, ask[], accept[], reject[]}], `preferences`
[{asked, fix, ask[], starts}], `untold` [question], `general` [{ask, accept[]}]. Other keys are for people.

`said` is one message, or those of a conversation of its own; a fact without it is told in that of the one before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engrain.quant.errors import EngrainError

MAX_NAMED = 3  # mistakes that the error names


@dataclass(frozen=True)
class Fact:
    """What is said, questions for it, and lower-case texts of which a right answer holds one.

    said: messages; none where those of the fact before tell this one too. reject: texts of what was true before, for an
    update.
    """

    said: tuple[str, ...]
    ask: tuple[str, ...]
    accept: tuple[str, ...]
    reject: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preference:
    """A reply to `asked` is corrected to `fix`; answers to `ask` should then start with `starts` (lower case)."""

    asked: str
    fix: str
    ask: tuple[str, ...]
    starts: str


@dataclass(frozen=True)
class General:
    """A question about the world, and lower-case texts of which a right answer holds one."""

    ask: str
    accept: tuple[str, ...]


@dataclass(frozen=True)
class MemorySet:
    """One whole set; `name` is its file's."""

    name: str
    facts: tuple[Fact, ...]
    updates: tuple[Fact, ...] = ()
    preferences: tuple[Preference, ...] = ()
    untold: tuple[str, ...] = ()
    general: tuple[General, ...] = ()


def load(path: Path) -> MemorySet:
    """Read a set; EngrainError names the file and what is wrong in it."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EngrainError(f"{path} can't be read as JSON ({error}): give a memory set") from error
    return parse(values, path.name, str(path))


def parse(values: Any, name: str, source: str = "the set") -> MemorySet:
    """A set from plain values; every mistake is collected, then raised once with `source` as the place."""
    if not isinstance(values, dict):
        raise EngrainError(f"{source} is no memory set: it must be a JSON object with `facts`")
    reader = _Reader()
    found = MemorySet(
        name,
        facts=tuple(reader.fact(item, at) for item, at in reader.items(values, "facts")),
        updates=tuple(reader.fact(item, at, update=True) for item, at in reader.items(values, "updates")),
        preferences=tuple(reader.preference(item, at) for item, at in reader.items(values, "preferences")),
        untold=reader.texts(values, "untold", "", may_lack=True),
        general=tuple(reader.general(item, at) for item, at in reader.items(values, "general")),
    )
    if not found.facts and not reader.wrong:
        reader.wrong.append("no facts")
    if reader.wrong:
        more = len(reader.wrong) - MAX_NAMED
        shown = "; ".join(reader.wrong[:MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")
        raise EngrainError(f"{source} is no memory set: {shown}")
    return found


def told_together(facts: Sequence[Fact]) -> list[list[Fact]]:
    """The facts by what tells them: each with those after it that are told in the same messages."""
    found: list[list[Fact]] = []
    for fact in facts:
        if fact.said or not found:
            found.append([])
        found[-1].append(fact)
    return found


class _Reader:
    """Takes values apart and notes what is wrong; placeholders stand in until the mistakes are raised."""

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def items(self, values: Mapping[str, Any], key: str) -> list[tuple[Mapping[str, Any], str]]:
        """The objects in a list, each with its place."""
        found = values.get(key, [])
        if not isinstance(found, list):
            self.wrong.append(f"{key} is not a list")
            return []
        for i, item in enumerate(found):
            if not isinstance(item, dict):
                self.wrong.append(f"{key}[{i}] is not an object")
        return [(item, f"{key}[{i}].") for i, item in enumerate(found) if isinstance(item, dict)]

    def text(self, item: Mapping[str, Any], key: str, at: str) -> str:
        found = item.get(key)
        if isinstance(found, str) and found.strip():
            return found.strip()
        self.wrong.append(f"{at}{key} is not a text")
        return ""

    def texts(self, item: Mapping[str, Any], key: str, at: str, may_lack: bool = False) -> tuple[str, ...]:
        found = item.get(key, [] if may_lack else None)
        good = isinstance(found, list) and all(isinstance(text, str) and text.strip() for text in found)
        if not good or not (found or may_lack):
            self.wrong.append(f"{at}{key} is not a list of texts")
            return ()
        return tuple(found)

    def messages(self, item: Mapping[str, Any], key: str, at: str, may_lack: bool) -> tuple[str, ...]:
        """One text, or several."""
        if isinstance(item.get(key), list) or (may_lack and key not in item):
            return self.texts(item, key, at, may_lack)
        return (self.text(item, key, at),)

    def answers(self, item: Mapping[str, Any], key: str, at: str) -> tuple[str, ...]:
        return tuple(text.lower() for text in self.texts(item, key, at))

    def fact(self, item: Mapping[str, Any], at: str, update: bool = False) -> Fact:
        return Fact(
            self.messages(item, "said", at, may_lack=not at.endswith("[0].")),
            self.texts(item, "ask", at),
            self.answers(item, "accept", at),
            self.answers(item, "reject", at) if update else (),
        )

    def preference(self, item: Mapping[str, Any], at: str) -> Preference:
        return Preference(
            self.text(item, "asked", at),
            self.text(item, "fix", at),
            self.texts(item, "ask", at),
            self.text(item, "starts", at).lower(),
        )

    def general(self, item: Mapping[str, Any], at: str) -> General:
        return General(self.text(item, "ask", at), self.answers(item, "accept", at))
