"""Interactions -> examples: the questions that may come, answered by the user's own words.

The model is its own teacher, and not trusted: a question that gives its answer away, or that the tutor finds not
answered, is dropped. Beside the facts stand questions that were never told, answered by saying so (`contrast`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from engrain.device.scope import QUESTION_MARKS
from engrain.update import frames, wording
from engrain.update.decoder import Decoder
from engrain.update.likelihood import log_probabilities
from engrain.update.pack import Example
from engrain.update.reader import Reader
from engrain.update.tutor import Tutor

if TYPE_CHECKING:
    from engrain.device.interactions import Interaction
    from engrain.device.runtime import Runtime

DRAFTS, LIKELY, ASKED = 16, 14, 13  # questions that the tutor writes for a fact, that are weighed, that are kept
OFTEN = 6  # of those kept, asked in every epoch; the others are dealt out
ANSWERED = 0.0  # nats of log-odds from which a question is answered
SURE, ALIKE = 6.0, 4.0  # nats above which one isn't surer, that a question in the words of another is worth less
_PART = "\ufffd"  # of a character, as it is decoded


@dataclass(frozen=True)
class Fact:
    """One statement of the user: as said, as the assistant repeats it, the words that are news to the model."""

    said: str
    answer: str
    surprising: tuple[str, ...] = field(compare=False)
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


def find_facts(
    runtime: Runtime,
    decoder: Decoder,
    reader: Reader,
    interactions: Sequence[Interaction],
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Fact]:
    """The statements in what the user said."""
    told = reader.told([(it.conversation, it.user) for it in interactions], seed, progress)
    facts = [to_fact(said, (it.id,)) for it, parts in zip(interactions, told, strict=True) for said in parts]
    return with_surprising(runtime, decoder, facts)


def to_fact(said: str, source: tuple[int, ...]) -> Fact:
    """A statement of the user's, from the interactions of these ids; `with_surprising` tells what is news in it."""
    return Fact(said, wording.to_second_person(said), (), source)


def with_surprising(runtime: Runtime, decoder: Decoder, facts: Sequence[Fact]) -> list[Fact]:
    """The facts, each with the words that are news to the decoder as it is."""
    new = [fact for fact in facts if not fact.surprising]
    found = dict(zip(new, surprising_words(runtime, decoder, [fact.said for fact in new]), strict=True))
    return [replace(fact, surprising=found.get(fact, fact.surprising)) for fact in facts]


def surprising_words(
    runtime: Runtime, decoder: Decoder, sentences: Sequence[str], keep: int = 2
) -> list[tuple[str, ...]]:
    """Of each sentence the content words whose tokens the decoder expects least, by its own surprisal in nats."""
    tokens = [runtime.tokenize(sentence) for sentence in sentences]
    whole = [i for i, own in enumerate(tokens) if len(own) > 1]
    scored = log_probabilities(decoder, [Example(tuple(tokens[i]), 1) for i in whole])
    found: list[tuple[str, ...]] = [()] * len(sentences)
    for i, likely in zip(whole, scored, strict=True):
        text, spans = _token_spans(runtime, tokens[i])
        surprisal = (0.0, *(-likely))
        nats = {}
        for word in wording.content_words(sentences[i]):
            if (at := text.find(word)) >= 0:
                own = [n for (a, b), n in zip(spans, surprisal, strict=True) if a < at + len(word) and b > at]
                nats[word] = float(sum(own))
        found[i] = tuple(sorted(nats, key=lambda word: (nats[word], word), reverse=True)[:keep])
    return found


def _token_spans(runtime: Runtime, tokens: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The tokens' text in lower case, and from where to where in it each stands; two may share a character."""
    text, spans, whole = "", [], 0
    for end in range(1, len(tokens) + 1):
        text = runtime.detokenize(tokens[:end]).lower()
        before, whole = whole, len(text.rstrip(_PART))
        spans.append((before, whole + text.endswith(_PART)))
    return text, spans


def questions_of(
    tutor: Tutor, facts: Sequence[Fact], seed: int = 0, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[list[str]]:
    """For each fact the questions that it answers, and better than any other fact does: sure ones in various words.

    The tutor writes them, grammar adds some, and the tutor says which are any good.
    """
    written = tutor.asked([fact.said for fact in facts], DRAFTS, seed, progress)
    drafts = []
    for fact, own in zip(facts, written, strict=True):
        asked = [*filter(None, map(tidy_question, own)), *frames.questions(wording.sentences(fact.said)[-1])]
        drafts.append([q for q in dict.fromkeys(asked) if is_about(q, fact) and not gives_away(q, fact)])
    return [spread(own)[:ASKED] for own in answered(tutor, [fact.said for fact in facts], drafts)]


def spread(odds: Mapping[str, float]) -> list[str]:
    """Questions by their log-odds, in nats, and by how little each shares with one before it.

    "Tell me about my aunt.", "Who is my aunt?" and "What's my aunt?" are nearly one; what the user will ask may be "Who
    gave us the pot?". Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).
    """
    left = dict(sorted(odds.items(), key=lambda each: -each[1]))
    words = {question: {wording.words(question)[0], *wording.stems(question)} for question in left}
    alike = dict.fromkeys(left, 0.0)
    found: list[str] = []
    while left:
        found.append(max(left, key=lambda question: min(left[question], SURE) - ALIKE * alike[question]))
        del left[found[-1]]
        for question in left:
            own, other = words[question], words[found[-1]]
            alike[question] = max(alike[question], len(own & other) / len(own | other))
    return found


def might_answer(question: str, near: int, stems: Sequence[set[str]]) -> list[int]:
    """Which statements to ask the tutor about: the one that it is near, and those that share a word (their stems)."""
    own = wording.stems(question)
    return list(dict.fromkeys((near, *(i for i, each in enumerate(stems) if each & own))))


def answered(tutor: Tutor, said: Sequence[str], drafts: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    """Of each statement's drafts those that it answers, and no other statement better; with the log-odds in nats.

    Others are asked only about the LIKELY, and if they share a word with the question.
    """
    own = iter(tutor.judged([(s, question) for s, each in zip(said, drafts, strict=True) for question in each]))
    odds = [{q: float(next(own)) for q in each} for each in drafts]
    likely = [spread({q: nats for q, nats in each.items() if nats >= ANSWERED})[:LIKELY] for each in odds]
    stems = [wording.stems(each) for each in said]
    pairs = [(i, q, j) for i, each in enumerate(likely) for q in each for j in might_answer(q, i, stems) if j != i]
    better: set[tuple[int, str]] = set()
    for (i, q, _), verdict in zip(pairs, tutor.judged([(said[j], q) for _, q, j in pairs]), strict=True):
        if verdict > odds[i][q]:
            better.add((i, q))
    return [{q: odds[i][q] for q in each if (i, q) not in better} for i, each in enumerate(likely)]


def is_about(question: str, fact: Fact) -> bool:
    """Whether it asks for the fact: what names neither the user nor the fact's news, anyone might ask."""
    named = any(word in question.lower() for word in fact.surprising)
    shared = not wording.has_first_person(fact.said) and bool(wording.stems(question) & wording.stems(fact.said))
    return wording.has_first_person(question) or named or shared


def gives_away(question: str, fact: Fact) -> bool:
    """Whether all of the fact's news stands in the question."""
    return bool(fact.surprising) and all(w in question.lower() for w in fact.surprising)


def tidy_question(text: str) -> str | None:
    """One question in the user's own person, or None."""
    text = text.strip().split("\n")[0].strip()
    end = min((at for mark in QUESTION_MARKS if (at := text.find(mark)) >= 0), default=-1)
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
    """Lessons -> token ids exactly as served: prompt by the chat template, answer, end of turn.

    What is asked of a fact beyond OFTEN, up to ASKED, is of kind "spare"; what comes after that was an old fact's.
    """
    examples, asked = [], Counter[str]()
    for lesson in lessons:
        asked[lesson.answer] += 1
        kind = "spare" if lesson.kind == "fact" and OFTEN < asked[lesson.answer] <= ASKED else lesson.kind
        turns = [{"role": "user", "content": lesson.question}]
        if system:
            turns.insert(0, {"role": "system", "content": system})
        prompt, target = runtime.prompt_tokens(turns), runtime.target_tokens(turns, lesson.answer)
        examples.append(Example(tuple(prompt + target), len(prompt), lesson.weight, kind, lesson.source))
    return examples
