"""The tutor at work: whether a statement answers a question, told by a small adapter that learned just that.

The tutor (`update.train_tutor`) reads "Told: {statement}\\nAsked: {question}\\nAnswers it:" and says yes or no. With s
the statement and q the question, a bearing is its log-odds, and a share of log p(q | s) less its mean over statements
about other things (query likelihood, Ponte and Croft, SIGIR 1998): the two err in other places. It is measured on
another scale than the base model's own bearing (`device.bearing`), which serves where a model has no tutor.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engrain.device.home import Home
from engrain.device.scope import Scale

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime

TUTORS = "tutors"  # folder of a home
BUNDLED = Path(__file__).with_name(TUTORS)  # of the models that come with engrain
VERDICT = "\nAnswers it:"  # after a question
YES, NO = " yes", " no"
# Statements about all sorts of things: what a question's likelihood is measured against.
BACKGROUND = ("You bought a new lamp yesterday.", "Your uncle's name is Peter.", "The garage code is 3375.")
LIKELIHOOD = 0.3  # what a nat of a question's likelihood weighs beside one of the verdict
AT_MOST = 4.0  # nats that this comes to: any statement about Tadhg makes a question likely that names him
SCALE = Scale(enough=1.5, recalled=0.2, overruled=1.0, moved=-2.0)  # of a reply's nats among those that were taught


def adapter_paths(home: Home, folder: str, bundled: Path, model_sha: str) -> list[Path]:
    """Where a small adapter that a model learned once may lie: the user's own, which goes before, and engrain's."""
    name = f"{model_sha[:16]}.gguf"
    return [home.root / folder / name, bundled / name]


def tutor_path(home: Home, model_sha: str) -> Path | None:
    """The model's tutor, a GGUF LoRA: the user's own, or one that comes with engrain; None if there is none."""
    return next((path for path in adapter_paths(home, TUTORS, BUNDLED, model_sha) if path.is_file()), None)


def user_tutor_path(home: Home, model_sha: str) -> Path:
    """Where a tutor that was made on this machine lies."""
    return adapter_paths(home, TUTORS, BUNDLED, model_sha)[0]


def asked_prompt(statement: str) -> str:
    """Up to where a question that the statement answers begins."""
    return f"Told: {statement}\nAsked:"


def not_told_prompt(statement: str) -> str:
    """Up to where a question begins that is close to the statement, and that it doesn't answer."""
    return f"Told: {statement}\nNot told:"


class Bearing:
    """How well statements answer one question; the runtime has a tutor."""

    def __init__(self, runtime: Runtime, question: str) -> None:
        self._runtime = runtime
        self._asked, self._verdict = runtime.tokenize(f" {question}"), runtime.tokenize(VERDICT)
        self._choices = [runtime.tokenize(word)[0] for word in (YES, NO)]
        self._usual: float | None = None  # log p(q | s) over statements about other things

    def __call__(self, statements: Sequence[str]) -> np.ndarray:
        """(statements,) nats; zeros for a question longer than a page or two."""
        if self._usual is None:  # what the verdict on these would be isn't needed
            others, _ = self._runtime.weigh(self._prompts(BACKGROUND), self._asked, self._choices)
            self._usual = float(others.sum(1).mean())
        likelihoods, odds = self._runtime.weigh(
            self._prompts(statements), [*self._asked, *self._verdict], self._choices
        )
        own = likelihoods[:, : len(self._asked)].sum(1)
        found: np.ndarray = odds[:, 0] - odds[:, 1] + np.minimum(AT_MOST, LIKELIHOOD * (own - self._usual))
        return found

    def _prompts(self, statements: Sequence[str]) -> list[list[int]]:
        return [self._runtime.tokenize(asked_prompt(each)) for each in statements]
