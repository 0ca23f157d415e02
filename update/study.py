"""Interactions -> examples: the questions that may come, answered by the user's own words.

The model is its own teacher, and not trusted: a question that gives its answer away, or that the statement
doesn't make likelier, is dropped. Beside the facts stand questions that were never told, answered by saying so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engrain.device.bearing import prompt_of
from engrain.update import clauses, frames, questions, wording
from engrain.update.decoder import Decoder
from engrain.update.generate import write
from engrain.update.pack import Example
from engrain.update.pool import POOL

if TYPE_CHECKING:
    from engrain.device.interactions import Interaction
    from engrain.device.runtime import Runtime

PLAIN, POOLED, WRITTEN = 10, 8, 6  # questions for a fact: by grammar, from the pool, in the model's own words
_MIN_FIT, _SHARE = 7.0, 0.6  # nats, and of the best one's
_CANDIDATES = 24  # of the pool for each fact, for which both directions are computed
_MIN_INFORMATION = 4.5  # nats by which a statement makes a question that the model wrote likelier
_ODD = 0.75  # nats a character
_FEW = 2  # of the least odd questions, where all are
_STARTERS = (" What", " Which", " Where", " Who", " How", "", " Do", " When")


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


def lessons_of(facts: Sequence[Fact], asked: Sequence[Sequence[str]]) -> list[Lesson]:
    """Every fact under every question for it."""
    pairs = zip(facts, asked, strict=True)
    return [Lesson(q, f.answer, "fact", f.source) for f, questions in pairs for q in dict.fromkeys(questions)]


def find_facts(runtime: Runtime, interactions: Sequence[Interaction]) -> list[Fact]:
    """The statements in what the user said."""
    told = clauses.told_in((it.conversation, it.user) for it in interactions)
    return [
        Fact(said, wording.to_second_person(said), surprising_words(runtime, said), (it.id,))
        for it, parts in zip(interactions, told, strict=True)
        for said in parts
    ]


def surprising_words(runtime: Runtime, sentence: str, keep: int = 2) -> tuple[str, ...]:
    """The content words whose tokens the model expects least, by its own surprisal in nats."""
    tokens = runtime.tokenize(sentence)
    if len(tokens) < 2:
        return ()
    surprisal = np.concatenate(([0.0], -runtime.score(tokens[:1], tokens[1:])))
    text, spans = questions.token_spans(runtime, tokens)
    scored = []
    for word in dict.fromkeys(wording.content_words(sentence)):
        at = text.find(word)
        if at >= 0:
            nats = sum(float(n) for (a, b), n in zip(spans, surprisal, strict=True) if a < at + len(word) and b > at)
            scored.append((nats, word))
    return tuple(w for _, w in sorted(scored, reverse=True)[:keep])


def fluent_questions(runtime: Runtime, decoder: Decoder, statement: str, count: int = PLAIN) -> list[str]:
    """The questions that grammar makes of a statement, those first that the model finds most natural (nats a token).

    What no one would ask, which grammar makes of sentences that it misunderstands, is left out (nats a character).
    """
    drafts = frames.questions(wording.sentences(statement)[-1])
    likelihood = questions.log_likelihoods(decoder, runtime, [statement], drafts)[0, :, 0]
    lengths = [len(runtime.tokenize(f" {q}")) for q in drafts]
    order = np.argsort(-likelihood / np.maximum(lengths, 1))
    natural = [j for j in order if likelihood[j] > -_ODD * len(drafts[j])]
    return [drafts[j] for j in natural or order[:_FEW]][:count]


def pooled_questions(
    runtime: Runtime, decoder: Decoder, facts: Sequence[Fact], information: np.ndarray, count: int = POOLED
) -> list[list[str]]:
    """For each fact the pool's questions that go with it best, and better with it than with any other fact.

    How well is the sum of how much likelier it makes the question's content words, half of that for all words, and
    half of how much likelier the question makes it. information: (facts, pool, 2) nats, from `questions.information`.
    """
    whole, content = information[..., 0], information[..., 1]
    first, fits = content + whole / 2, np.full(content.shape, -np.inf)
    for i, fact in enumerate(facts):
        own = [j for j in np.argsort(-first[i]) if not gives_away(POOL[j], fact)][:_CANDIDATES]
        fits[i, own] = first[i, own] + questions.answered(decoder, runtime, fact.said, [POOL[j] for j in own]) / 2
    least = np.maximum(fits.max(0, initial=_MIN_FIT), _SHARE * fits.max(1, keepdims=True))
    return [
        [POOL[j] for j in np.argsort(-row) if row[j] >= bound[j]][:count]
        for row, bound in zip(fits, least, strict=True)
    ]


def write_questions(
    runtime: Runtime,
    decoder: Decoder,
    facts: Sequence[Fact],
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[str]]:
    """For each fact, the questions that the model itself writes for it, checked by what it tells about them."""
    begun = [(i, starter) for i in range(len(facts)) for starter in _STARTERS]
    prompts = [runtime.tokenize(prompt_of(facts[i].said) + starter) for i, starter in begun]
    texts = write(runtime, decoder, prompts, 20, temperature=0.7, seed=seed, stop="\n?", progress=progress)
    drafts: list[list[str]] = [[] for _ in facts]
    for (i, starter), text in zip(begun, texts, strict=True):
        question = tidy_question(starter + text)
        if question and question not in drafts[i] and _is_about(question, facts[i]):
            drafts[i].append(question)
    return [_informed(runtime, decoder, f, d) for f, d in zip(facts, drafts, strict=True)]


def _informed(runtime: Runtime, decoder: Decoder, fact: Fact, drafts: Sequence[str]) -> list[str]:
    """The drafts that the fact makes likelier, best first."""
    gain = questions.gains(decoder, runtime, [fact.said], drafts)[0, :, 0]
    return [drafts[j] for j in np.argsort(-gain) if gain[j] > _MIN_INFORMATION][:WRITTEN]


def _is_about(question: str, fact: Fact) -> bool:
    """Whether it asks for the fact: what names neither the user nor what was said, anyone might ask."""
    personal = wording.has_first_person(question)
    named = set(wording.content_words(fact.said)) & set(wording.content_words(question))
    return (personal or (bool(named) and not wording.has_first_person(fact.said))) and not gives_away(question, fact)


def gives_away(question: str, fact: Fact) -> bool:
    """Whether all of the fact's news stands in the question."""
    return bool(fact.surprising) and all(w in question.lower() for w in fact.surprising)


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


def to_examples(runtime: Runtime, lessons: Sequence[Lesson], system: str | None = None) -> list[Example]:
    """Lessons -> token ids exactly as served: prompt by the chat template, answer, end of turn."""
    examples = []
    for lesson in lessons:
        turns = [{"role": "user", "content": lesson.question}]
        if system:
            turns.insert(0, {"role": "system", "content": system})
        prompt, target = runtime.prompt_tokens(turns), runtime.target_tokens(turns, lesson.answer)
        examples.append(Example(tuple(prompt + target), len(prompt), lesson.weight, lesson.kind, lesson.source))
    return examples
