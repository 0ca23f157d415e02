"""What was never told: questions put as those that were, about something else.

Without them a small model answers "What is my lawyer's name?" with the name that it learned for a parrot. The model
writes them itself: it goes on from how the facts' own questions begin ("What is the name of my"), with nothing told
in its prompt. So they fit any model and whatever language the questions are in.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from engrain.update import wording
from engrain.update.decoder import Decoder
from engrain.update.generate import write
from engrain.update.study import Fact, tidy_question

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime

_ASKED = 6  # of a fact's questions, whose beginnings are used
_STEM = 5  # letters by which words are taken to be the same one
_SHOTS = (
    "What is my job?", "How do I open the garden gate?", "Which food do I dislike?", "Where does my aunt live?",
    "What is my dentist's name?", "When is the meeting?",
)  # fmt: skip
_HEAD = "".join(f"I asked: {q}\n" for q in _SHOTS) + "I asked: "


def untold_questions(
    runtime: Runtime,
    decoder: Decoder,
    facts: Sequence[Fact],
    asked: Sequence[Sequence[str]],
    told: Sequence[str],
    seed: int = 0,
) -> list[str]:
    """Questions that nothing told answers; one for each fact, then a second for each, and so on.

    asked: the questions for each fact, best first. told: all that was ever said, whose words no question may hold.
    """
    stems = {w[:_STEM] for text in told for w in wording.content_words(text)}
    begun = [(i, start) for i, (f, own) in enumerate(zip(facts, asked, strict=True)) for start in _starts(f, own)]
    prompts = [runtime.tokenize(_HEAD + start) for _, start in begun]
    drafts = write(runtime, decoder, prompts, max_tokens=14, temperature=0.9, seed=seed, stop="\n?")
    found: list[list[str]] = [[] for _ in facts]
    for (i, start), draft in zip(begun, drafts, strict=True):
        question = tidy_question(start + draft)
        words = wording.content_words(question or "")
        if question and words and not any(w[:_STEM] in stems for w in words) and _personal(question, asked[i]):
            found[i].append(question)
    return list(dict.fromkeys(q for row in zip_longest(*found) for q in row if q and q not in _SHOTS))


def _starts(fact: Fact, asked: Sequence[str]) -> list[str]:
    """How questions about the fact begin, before they name anything that it does; one for each question."""
    told, starts = wording.content_words(fact.said), []
    for question in asked[:_ASKED]:
        places = [at for w in told if (at := question.lower().find(w)) > 0]
        start = question[: min(places, default=0)].rstrip()
        if len(start.split()) > 1:
            starts.append(start)
    starts = list(dict.fromkeys(starts)) or [" ".join(q.split()[:2]) for q in asked[:1]]
    return [starts[k % len(starts)] for k in range(len(asked))] if starts else []


def _personal(question: str, asked: Sequence[str]) -> bool:
    """Whether it is about the user, as far as that can be told from the words: what isn't has an answer."""
    return wording.has_first_person(question) or not any(map(wording.has_first_person, asked))
