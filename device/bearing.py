"""Does a statement bear on a question? A small model writes few good questions but judges them well.

With s the statement and q the question, log p(q | s) less its mean over statements about other things (pointwise
mutual information, as in contextual calibration, arXiv 2102.09690) is high for "What do I do for a living?" after
"I work as a beekeeper.", and so is log p(s | q) less that after a question free of content. Replies are checked by it
where a model has no tutor, as reranking by maximum mutual information does (Li et al., arXiv 1510.03055).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime

SHOTS = (
    ("I work as a nurse at Leeds General.", "What is my job?"),
    ("The code for the garden gate is 4471.", "How do I open the garden gate?"),
    ("I really don't like olives.", "Which food do I dislike?"),
    ("My aunt lives in Turin.", "Where does my aunt live?"),
)
HEAD = "\n\n".join(f"I said: {s}\nLater I asked: {q}" for s, q in SHOTS)
# Statements about all sorts of things: what a question's likelihood is measured against.
BACKGROUND = (
    "I bought a new lamp yesterday.",
    "My uncle's name is Peter.",
    "We are going to Greece in summer.",
    "I really hate mushrooms.",
    "The garage code is 3375.",
    "I work at a bakery.",
    "My bag is blue.",
    "I play chess on Sundays.",
)
_FEW = 2  # of the background, where an answer waits for it
ANSWERS = "\n\n".join(f"I asked: {q}\nThe answer was: {s}" for s, q in SHOTS)
_UNASKED = "What did I say?"  # a statement answers this whatever it says
# What each way of asking weighs, in nats of a reply's own likelihood.
FORTH, BACK = 0.4, 0.2


def prompt_of(statement: str) -> str:
    """The few shots up to where the question about a statement begins."""
    return f"{HEAD}\n\nI said: {statement}\nLater I asked:"


def answer_prompt_of(question: str) -> str:
    """The few shots up to where the statement that answers a question begins."""
    return f"{ANSWERS}\n\nI asked: {question}\nThe answer was:"


def bearings(runtime: Runtime, statements: Sequence[str], question: str) -> np.ndarray:
    """How much each statement has to do with the question for the base model, (statements,) nats, weighed.

    By how much it makes the question likelier than others do, and the question it than a question free of content
    does: the two ways of estimating one quantity err in other places.
    """
    asked = runtime.likelihoods(
        *_split(runtime, [prompt_of(s) for s in (*BACKGROUND[:_FEW], *statements)], f"{HEAD}\n\nI said:"),
        [runtime.tokenize(f" {question}")],
    )[:, 0]
    said = runtime.likelihoods(
        *_split(runtime, [answer_prompt_of(q) for q in (question, _UNASKED)], f"{ANSWERS}\n\nI asked:"),
        [runtime.tokenize(f" {s}") for s in statements],
    )
    return FORTH * (asked[_FEW:] - asked[:_FEW].mean()) + BACK * (said[0] - said[1])


def _split(runtime: Runtime, prompts: Sequence[str], head: str) -> tuple[list[int], list[list[int]]]:
    """The tokens of what all prompts begin with, and of the rest of each."""
    return runtime.tokenize(head), [runtime.tokenize(prompt[len(head) :]) for prompt in prompts]
