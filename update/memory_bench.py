"""Ways of remembering side by side: nothing, chat history, system prompt, retrieval, and weights.

The weights way is the product itself in a throw-away data folder: the log, `learn`, the registry, llama.cpp.
Every question is asked in a fresh conversation and answered greedily.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engrain.device import answering, models
from engrain.device.home import open_home
from engrain.device.scope import NOT_TOLD, Scope
from engrain.quant.errors import EngrainError
from engrain.update import gate
from engrain.update.learn import Progress, Report
from engrain.update.memory_drift import Drift, Window, drift, prompt_windows
from engrain.update.memory_set import Fact, MemorySet

if TYPE_CHECKING:
    from engrain.device.models import ModelFile
    from engrain.device.runtime import Runtime
    from engrain.device.template import Message

WAYS = ("nothing", "history", "system", "retrieval", "weights")
MAX_TOKENS = 48  # of an answer
RETRIEVED = 3  # statements before a question
TIMED = 8  # questions whose time is taken, one by one; the others are answered side by side
_CHUNK = 64  # questions between two reports
_REPLY_TOKENS = 40  # of the model's replies to what it is told

Row = dict[str, Any]
Build = Callable[[str], "list[Message]"]


def silent(progress: Progress) -> None:
    """No report."""


@dataclass(frozen=True)
class Bench:
    """What all measurements share.

    folder: throw-away, for the data folders. text: windows of a text to measure drift on; without, the general
    questions' prompts.
    """

    model: ModelFile
    runtime: Runtime
    memory: MemorySet
    folder: Path
    text: tuple[Window, ...] = ()
    report: Report = silent

    @cached_property
    def sha(self) -> str:
        return models.sha256(open_home(self.folder / "hash"), self.model.path)

    @cached_property
    def replies(self) -> tuple[str, ...]:
        """What the base model replies to each message that tells the facts."""
        return tuple(reply_to(self, self.said))

    @property
    def said(self) -> list[str]:
        """The messages that tell the facts."""
        return [message for fact in self.memory.facts for message in fact.said]

    @cached_property
    def base_perplexity(self) -> float | None:
        """Without an adapter; None without a text."""
        return self.drift(None).perplexity if self.text else None

    def drift(self, adapter: Path | None, scope: Scope | None = None) -> Drift:
        """Perplexity on the text, None without one, and KL to the base in nats a token."""
        self.report(Progress("drift", 0, 1))
        windows = self.text or prompt_windows(self.runtime, [each.ask for each in self.memory.general])
        measured = drift(self.runtime, windows, adapter, scope)
        self.report(Progress("drift", 1, 1))
        return measured


def reply_to(bench: Bench, said: Sequence[str], max_tokens: int = _REPLY_TOKENS) -> list[str]:
    """What the model replies, each time in a fresh conversation."""
    bench.report(Progress("telling", 0, len(said)))
    replies = gate.answers(bench.runtime, said, max_tokens)
    bench.report(Progress("telling", len(said), len(said)))
    return replies


# Answers


def holds(answer: str, texts: Sequence[str]) -> bool:
    """Whether an answer holds one of some lower-case texts: from a word's beginning, and whole where it is a number.

    So "determines" doesn't name Ines, nor 1995 the 9th; "Tromsø" holds "troms". Only Latin letters bound words.
    """
    lower = answer.lower()
    return any(re.search(rf"(?<![0-9a-zà-ÿ]){re.escape(text)}(?!(?<=[0-9])[0-9])", lower) for text in texts)


def refuses(answer: str) -> bool:
    """Whether an answer says that this was never told, as the learner teaches it."""
    return NOT_TOLD.lower().rstrip(".") in answer.lower().replace("’", "'")


def share(hits: Sequence[bool]) -> float | None:
    """The share of true ones; None of nothing."""
    return sum(hits) / len(hits) if hits else None


def fact_hits(fact: Fact, answers: Mapping[str, str]) -> list[bool]:
    """For each question of a fact, whether it is answered."""
    return [holds(answers[question], fact.accept) for question in fact.ask]


def recall(facts: Sequence[Fact], answers: Mapping[str, str]) -> float | None:
    """The share of the facts' questions that are answered."""
    return share([hit for fact in facts for hit in fact_hits(fact, answers)])


def scores(memory: MemorySet, answers: Mapping[str, str]) -> Row:
    """Shares of 1 over a set's answers, mean words an answer to a fact's question, and what went wrong.

    A false memory is an answer to an untold question that names an accepted text of any fact.
    """
    told = sorted({text for fact in memory.facts for text in fact.accept})
    asked = [question for fact in memory.facts for question in fact.ask]
    false = [holds(answers[question], told) for question in memory.untold]
    right = [holds(answers[each.ask], each.accept) for each in memory.general]
    forgot = [q for f in memory.facts for q, hit in zip(f.ask, fact_hits(f, answers), strict=True) if not hit]
    wrong = {
        "facts": forgot,
        "untold": [q for q, hit in zip(memory.untold, false, strict=True) if hit],
        "general": [each.ask for each, hit in zip(memory.general, right, strict=True) if not hit],
    }
    return {
        "recall": recall(memory.facts, answers),
        "false_memories": share(false),
        "refused": share([refuses(answers[question]) for question in memory.untold]),
        "general": share(right),
        "answer_words": sum(len(answers[q].split()) for q in asked) / len(asked),
        "misses": [{"kind": k, "question": q, "answer": answers[q].strip()} for k, qs in wrong.items() for q in qs],
    }


def alone(question: str) -> list[Message]:
    """A question with nothing before it."""
    return [{"role": "user", "content": question}]


def ask(bench: Bench, questions: Sequence[str], build: Build = alone, label: str = "") -> dict[str, str]:
    """Greedy answers by question, each in a fresh conversation, many side by side."""
    unique = list(dict.fromkeys(questions))
    prompts = [build(question) for question in unique]
    answers: list[str] = []
    bench.report(Progress("asking", 0, len(unique), label))
    for start in range(0, len(unique), _CHUNK):
        answers += answering.answers(bench.runtime, prompts[start : start + _CHUNK], MAX_TOKENS)
        bench.report(Progress("asking", len(answers), len(unique), label))
    return dict(zip(unique, answers, strict=True))


def seconds_per_question(bench: Bench, questions: Sequence[str], build: Build) -> float:
    """Mean seconds until an answer is whole, nothing held from before: of at most TIMED questions, spread evenly."""
    timed = questions[:: max(1, len(questions) // TIMED)][:TIMED]
    spent = 0.0
    for question in timed:
        messages = build(question)
        bench.runtime.logits(bench.runtime.prompt_tokens(messages)[:1])  # drops all that was held but one token
        start = time.monotonic()
        for _ in answering.respond(bench.runtime, messages, bench.runtime.covers(question), max_tokens=MAX_TOKENS):
            pass
        spent += time.monotonic() - start
    bench.runtime.serve(True)
    return spent / len(timed)


def prompt_tokens(runtime: Runtime, questions: Sequence[str], build: Build) -> float:
    """Mean tokens of a question's whole prompt."""
    return sum(len(runtime.prompt_tokens(build(question))) for question in questions) / len(questions)


def measure(bench: Bench, way: str, build: Build = alone) -> Row:
    """One row of figures, with whatever adapter is attached."""
    memory = bench.memory
    asked = [question for fact in memory.facts for question in fact.ask]
    answers = ask(bench, [*asked, *memory.untold, *(each.ask for each in memory.general)], build, way)
    found = scores(memory, answers)
    misses = found.pop("misses")
    return {
        "way": way,
        **found,
        "prompt_tokens": prompt_tokens(bench.runtime, asked, build),
        "seconds_per_question": seconds_per_question(bench, asked, build),
        "learn_seconds": 0.0,
        "study_seconds": 0.0,
        "train_seconds": 0.0,
        "perplexity": None,
        "kl": 0.0,
        "perplexity_on": None,
        "kl_on": 0.0,
        "status": None,
        "reason": None,
        "dropped": 0,
        "trained_questions": 0,
        "misses": misses,
    }


# What stands in the context


def context_way(bench: Bench, way: str) -> Row:
    """The row of a way that leaves the weights alone; `dropped`: statements that found no room in the context."""
    build, dropped = builder(bench, way, bench.said)
    row = measure(bench, way, build)
    return {**row, "perplexity": bench.base_perplexity, "perplexity_on": bench.base_perplexity, "dropped": dropped}


def builder(bench: Bench, way: str, said: Sequence[str]) -> tuple[Build, int]:
    """How a way puts a question, and how many of the oldest statements it leaves out for want of room."""
    if way == "nothing":
        return alone, 0
    if way == "retrieval":
        return lambda question: _with_notes(question, best(question, said, RETRIEVED)), 0
    makers: dict[str, Callable[[int], Build]] = {
        "history": lambda first: _after_turns(list(zip(said, bench.replies, strict=True))[first:]),
        "system": lambda first: _under_system(said[first:]),
    }
    if way not in makers:
        raise EngrainError(f"there is no way of remembering {way!r}: choose from {', '.join(WAYS)}")
    memory = bench.memory
    questions = [q for f in memory.facts for q in f.ask] + [*memory.untold, *(each.ask for each in memory.general)]
    longest = max(questions, key=lambda question: len(bench.runtime.tokenize(question)))
    room = bench.runtime.n_ctx - MAX_TOKENS
    for first in range(len(said) + 1):
        build = makers[way](first)
        if len(bench.runtime.prompt_tokens(build(longest))) <= room:
            break
    return build, first


def _after_turns(turns: Sequence[tuple[str, str]]) -> Build:
    roles = [(("user", said), ("assistant", reply)) for said, reply in turns]
    before: list[Message] = [{"role": role, "content": text} for turn in roles for role, text in turn]
    return lambda question: [*before, *alone(question)]


def _under_system(said: Sequence[str]) -> Build:
    text = "You are a helpful assistant. The user has told you:\n" + "\n".join(f"- {each}" for each in said)
    return lambda question: [{"role": "system", "content": text}, *alone(question)] if said else alone(question)


def _with_notes(question: str, notes: Sequence[str]) -> list[Message]:
    lines = "\n".join(f"- {note}" for note in notes)
    return alone(f"I told you before:\n{lines}\n\n{question}" if notes else question)


def best(question: str, texts: Sequence[str], count: int) -> list[str]:
    """The texts that match a question best by BM25, best first; none without a common word.

    Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond (2009), with k1 = 1.2,
    b = 0.75 and the inverse document frequency that is never negative, ln(1 + (N - n + 0.5) / (n + 0.5)).
    """
    documents = [Counter(re.findall(r"\w+", text.lower())) for text in texts]
    lengths = [document.total() for document in documents]
    mean = sum(lengths) / len(lengths) if lengths else 1.0
    totals = [0.0] * len(texts)
    for word in set(re.findall(r"\w+", question.lower())):
        holders = sum(word in document for document in documents)
        rarity = math.log(1 + (len(texts) - holders + 0.5) / (holders + 0.5))
        for i, (document, length) in enumerate(zip(documents, lengths, strict=True)):
            often = document[word]
            totals[i] += rarity * often * 2.2 / (often + 1.2 * (0.25 + 0.75 * length / mean))
    order = sorted(range(len(texts)), key=lambda i: (-totals[i], i))
    return [texts[i] for i in order[:count] if totals[i] > 0]
