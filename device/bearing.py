"""Does a statement bear on a question? A small model writes few good questions but judges them well.

With s the statement and q the question, log p(q | s) less its mean over statements about other things (pointwise
mutual information, as in contextual calibration, arXiv 2102.09690) is high for "What do I do for a living?" after
"I work as a beekeeper." Lessons are chosen by it (`update.questions`), and replies checked, as reranking by maximum
mutual information does (Li et al., arXiv 1510.03055).
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


def prompt_of(statement: str) -> str:
    """The few shots up to where the question about a statement begins."""
    return f"{HEAD}\n\nI said: {statement}\nLater I asked:"


def bearings(runtime: Runtime, statements: Sequence[str], question: str) -> np.ndarray:
    """By how many nats each statement makes the question likelier, for the base model, (statements,)."""
    prompts = [runtime.tokenize(prompt_of(s)) for s in (*BACKGROUND[:_FEW], *statements)]
    found = runtime.likelihoods(prompts, runtime.tokenize(f" {question}"))
    return found[_FEW:] - found[:_FEW].mean()
