"""The tutor at study: the questions that a statement answers, near ones that it doesn't, which is which, what ended.

A small adapter of the same base model, trained once on a corpus about nobody (`update.train_tutor`), takes the place
of the one that learns. It writes questions (doc2query, Nogueira et al., arXiv 1904.08375), and says whether a statement
answers a question, as `device.tutor` does when it is served, and whether it is still true after a later message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from engrain.device.tutor import NO, VERDICT, YES, asked_prompt, not_told_prompt
from engrain.quant.adapter import Adapter
from engrain.update.decoder import Decoder
from engrain.update.generate import write
from engrain.update.likelihood import log_probabilities
from engrain.update.pack import Example

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime

STANDS = "\nStill true:"  # after a statement
_TOKENS = 24  # of a question

Progress = Callable[[int, int], None]


class Tutor:
    """Writes and judges questions with the decoder, whose own adapter isn't touched."""

    def __init__(self, runtime: Runtime, decoder: Decoder, adapter: Adapter) -> None:
        self._runtime, self._decoder, self._adapter = runtime, decoder, decoder.fitted(adapter)

    def asked(
        self, statements: Sequence[str], count: int, seed: int = 0, progress: Progress = lambda done, total: None
    ) -> list[list[str]]:
        """For each statement, distinct ones of `count` drafts of questions that it might answer."""
        return self._write(map(asked_prompt, statements), count, seed, progress)

    def not_told(self, statements: Sequence[str], count: int, seed: int = 0) -> list[list[str]]:
        """For each statement, distinct ones of `count` drafts of questions that are near it, and not answered."""
        return self._write(map(not_told_prompt, statements), count, seed, lambda done, total: None)

    def _write(self, heads: Iterable[str], count: int, seed: int, progress: Progress) -> list[list[str]]:
        prompts = [self._runtime.tokenize(head) for head in heads]
        every = [prompt for prompt in prompts for _ in range(count)]
        with self._decoder.lent(self._adapter):
            texts = write(self._runtime, self._decoder, every, _TOKENS, 0.8, seed, stop="\n?", progress=progress)
        own = [texts[at : at + count] for at in range(0, len(texts), count)]
        return [list(dict.fromkeys(text.strip() for text in drafts)) for drafts in own]

    def judged(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """For each statement and question the log-odds that it answers it, (pairs,) nats."""
        return self._odds([asked_prompt(statement) for statement, _ in pairs], [f" {q}" for _, q in pairs], VERDICT)

    def standing(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """For each statement and later message the log-odds that the statement is still true, (pairs,) nats."""
        return self._odds([later_prompt(message) for _, message in pairs], [f" {s}" for s, _ in pairs], STANDS)

    def weigh(
        self, prompts: Sequence[Sequence[int]], target: Sequence[int], choices: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `device.judge.Judge.weigh`, in nats, in a fraction of the time that llama.cpp takes: log-probabilities of
        the target's tokens after each prompt, (prompts, tokens), and of what may follow it, (prompts, choices).
        """
        examples = []
        for prompt in prompts:
            whole = (*prompt, *target)
            examples.append(Example(whole, len(prompt)))
            examples += [Example((*whole, word), len(whole)) for word in choices]
        with self._decoder.lent(self._adapter):
            found = log_probabilities(self._decoder, examples)
        rows = [found[at : at + 1 + len(choices)] for at in range(0, len(found), 1 + len(choices))]
        return np.array([own for own, *_ in rows]), np.array([np.concatenate(after) for _, *after in rows])

    def _odds(self, heads: Sequence[str], texts: Sequence[str], verdict: str) -> np.ndarray:
        """Log-odds of yes after each head and text."""
        end, choices = self._runtime.tokenize(verdict), [self._runtime.tokenize(word)[0] for word in (YES, NO)]
        examples = []
        for head, text in zip(heads, texts, strict=True):
            tokens = (*self._runtime.tokenize(head), *self._runtime.tokenize(text), *end)
            examples += [Example((*tokens, word), len(tokens)) for word in choices]
        with self._decoder.lent(self._adapter):
            found = np.array(log_probabilities(self._decoder, examples)).reshape(-1, 2)
        odds: np.ndarray = found[:, 0] - found[:, 1]
        return odds


def later_prompt(message: str) -> str:
    """Up to where a statement begins, told before the message, that is still true or isn't."""
    return f"Later: {message}\nTold:"
