"""Interactions -> examples: the local model writes the questions that may come, the user's own words answer.

The model is its own teacher, and not trusted: a question that gives its answer away, or is about something
else, is dropped. Beside each fact stand near neighbours that were never told, answered by saying so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engrain.update import frames, wording
from engrain.update.pack import Example

if TYPE_CHECKING:
    from engrain.device.interactions import Interaction
    from engrain.device.runtime import Runtime

NOT_TOLD = "You haven't told me that yet."

_SHOTS = (
    ("My sister's dog is called Rufus.", "What is the name of my sister's dog?", "Whose dog is Rufus?"),
    ("I work as a nurse at Leeds General.", "What is my job?", "Which hospital do I work at?"),
    (
        "We are flying to Portugal on the 3rd of May.",
        "When do we leave for Portugal?",
        "Where are we going in May?",
    ),
    ("The code for the garden gate is 4471.", "How do I open the garden gate?", "What is the gate code?"),
    ("I really don't like olives.", "Which food do I dislike?", "Do I like olives?"),
    ("My car is a blue Skoda from 2015.", "What colour is my car?", "What do I drive?"),
)
_BATCH = 64
_STARTERS = ("", " What", " Which", " Who", " Where", " How", " Do you remember", " Tell me")
_NEIGHBOURS = (
    "What is my shoe size?",
    "Who is my dentist?",
    "Where did my parents meet?",
    "What is the name of my goldfish?",
    "How many cousins do I have?",
    "Which bus do I take?",
    "When is my sister's wedding?",
    "What did I study?",
)


@dataclass(frozen=True)
class Fact:
    """One statement of the user: as said, as the assistant repeats it, the words that are news to the model."""

    said: str
    answer: str
    surprising: tuple[str, ...]
    source: tuple[int, ...] = ()


@dataclass(frozen=True)
class Lesson:
    """One question and its answer, before tokenising."""

    question: str
    answer: str
    kind: str
    source: tuple[int, ...] = ()
    weight: float = 1.0


def lessons_of(
    facts: Sequence[Fact],
    written: Sequence[Sequence[str]],
    interactions: Sequence[Interaction],
    plain: int = 14,
) -> list[Lesson]:
    """Every fact under every question for it; corrections and liked replies under the question they answered."""
    lessons = []
    for fact, questions in zip(facts, written, strict=True):
        asked = dict.fromkeys([*frames.questions(fact.said)[:plain], *questions])
        lessons += [Lesson(q, fact.answer, "fact", fact.source) for q in asked]
    for it in interactions:
        if it.correction:
            lessons += [Lesson(it.user, it.correction, "correction", (it.id,))] * 4
        elif it.feedback == 1:
            lessons.append(Lesson(it.user, it.reply, "liked", (it.id,)))
    return lessons


def find_facts(runtime: Runtime, interactions: Sequence[Interaction]) -> list[Fact]:
    """The statements in what the user said."""
    facts = []
    for it in interactions:
        parts = [s for s in wording.sentences(it.user) if wording.is_statement(s)]
        for sentence in parts:
            facts.append(
                Fact(
                    sentence,
                    wording.to_second_person(sentence),
                    surprising_words(runtime, sentence),
                    (it.id,),
                )
            )
    return facts


def surprising_words(runtime: Runtime, sentence: str, keep: int = 2) -> tuple[str, ...]:
    """The content words whose tokens the model expects least, by its own surprisal in nats."""
    tokens = runtime.tokenize(sentence)
    if len(tokens) < 2:
        return ()
    surprisal = np.concatenate(([0.0], -runtime.score(tokens[:1], tokens[1:])))
    text, spans = "", []
    for token, nats in zip(tokens, surprisal, strict=True):
        piece = runtime.detokenize([token])
        spans.append((len(text), len(text) + len(piece), float(nats)))
        text += piece
    scored = []
    for word in dict.fromkeys(wording.content_words(sentence)):
        at = text.lower().find(word)
        if at >= 0:
            nats = sum(n for a, b, n in spans if a < at + len(word) and b > at)
            scored.append((nats, word))
    return tuple(w for _, w in sorted(scored, reverse=True)[:keep])


def write_questions(
    runtime: Runtime,
    facts: Sequence[Fact],
    per_fact: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[str]]:
    """For each fact, the questions that the model itself writes for it, checked and without doubles.

    All prompts begin with the same few shots, so that llama.cpp evaluates those once.
    """
    head = "\n\n".join(f"Statement: {s}\nQuestion: {q}" for s, *questions in _SHOTS[:4] for q in questions[:1])
    prompts, owners = [], []
    for i, fact in enumerate(facts):
        for starter in _STARTERS[:per_fact]:
            prompts.append((f"{head}\n\nStatement: {fact.said}\nQuestion:", starter))
            owners.append(i)
    kept: list[list[str]] = [[] for _ in facts]
    for start in range(0, len(prompts), _BATCH):
        part = range(start, min(start + _BATCH, len(prompts)))
        ids = [runtime.tokenize("".join(prompts[k])) for k in part]
        outs = runtime.generate_batch(ids, max_tokens=20, temperature=0.7, seed=seed + start, stop_at_newline=True)
        for k, out in zip(part, outs, strict=True):
            question = tidy_question(prompts[k][1] + runtime.detokenize(out))
            if question and is_usable(question, facts[owners[k]], kept[owners[k]]):
                kept[owners[k]].append(question)
        progress(part[-1] + 1, len(prompts))
    return kept


def tidy_question(text: str) -> str | None:
    """One question in the user's own person, or None."""
    text = text.strip().split("\n")[0].strip()
    end = text.find("?")
    if end < 0:
        if not text.lower().startswith("tell me"):
            return None
        text = text.rstrip(".") + "."
    else:
        text = text[: end + 1]
    if not wording.has_first_person(text.replace("Tell me", "")) and "you" in text.lower():
        text = wording.to_first_person(text)
    return text[:1].upper() + text[1:] if 2 <= len(wording.words(text)) <= 20 else None


def is_usable(question: str, fact: Fact, others: Sequence[str]) -> bool:
    """New, about the fact, and not giving all of its news away."""
    asked = set(wording.words(question))
    if any(asked == set(wording.words(o)) for o in others):
        return False
    told = {w[:5] for w in wording.content_words(fact.said)}
    about = any(w[:5] in told for w in wording.content_words(question))
    gives_away = bool(fact.surprising) and all(w in question.lower() for w in fact.surprising)
    return about and not gives_away


def write_neighbours(runtime: Runtime, facts: Sequence[Fact], count: int, seed: int = 0) -> list[str]:
    """Questions about the user that nothing told answers, in the model's own words and in the frames' wording."""
    prompt = runtime.tokenize("Questions about myself:\n" + "\n".join(f"- {s}" for s in _NEIGHBOURS) + "\n-")
    outs = runtime.generate_batch([prompt] * count, max_tokens=16, temperature=1.0, seed=seed, stop_at_newline=True)
    told = {w[:5] for f in facts for w in wording.content_words(f.said)}
    found: list[str] = []
    for out in [list(_NEIGHBOURS), *([runtime.detokenize(o)] for o in outs)]:
        for text in out:
            question = tidy_question(text)
            if question and wording.has_first_person(question):
                found += [question, *frames.neighbours(question)[:3]]
    fresh = [q for q in dict.fromkeys(found) if not any(w[:5] in told for w in wording.content_words(q))]
    return fresh[:count]


def to_examples(runtime: Runtime, lessons: Sequence[Lesson], system: str | None = None) -> list[Example]:
    """Lessons -> token ids exactly as served: prompt by the chat template, answer, end of turn."""
    examples = []
    for lesson in lessons:
        turns = [{"role": "user", "content": lesson.question}]
        if system:
            turns.insert(0, {"role": "system", "content": system})
        prompt = runtime.prompt_tokens(turns)
        target = [*runtime.tokenize(lesson.answer), runtime.end_of_turn]
        examples.append(Example(tuple(prompt + target), len(prompt), lesson.weight, lesson.kind, lesson.source))
    return examples
