"""How likely texts are after prompts, many at once; what prompts begin with is computed once, and held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from engrain.device.recall import MOST

if TYPE_CHECKING:
    from engrain.device.batching import SequenceContext

CELLS = 2048  # tokens of all that is weighed at once
_HEADS = 2  # held
SEQUENCES = _HEADS + 2 * (MOST + 2)  # heads, prompts, and texts after them


class Judge:
    """Weighs texts in a context of CELLS tokens and SEQUENCES sequences that nothing else uses."""

    def __init__(self, context: SequenceContext) -> None:
        self._context = context
        self._heads: list[list[int]] = []  # in sequences 0, 1

    def likelihoods(
        self, head: Sequence[int], prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """Log-probabilities of each target after the head and each prompt, (prompts, targets) nats.

        All are token ids, none empty. Zeros for more than there is room for: a few pages in all.
        """
        texts = [target for _ in prompts for target in targets]
        owner = [i for i in range(len(prompts)) for _ in targets]  # of each text, its prompt
        used = _HEADS + len(prompts) + len(texts)
        if _HEADS * len(head) + sum(map(len, (*prompts, *texts))) > CELLS or used > SEQUENCES:
            return np.zeros((len(prompts), len(targets)))
        source = self._hold(list(head))
        sequences = np.arange(_HEADS, used)
        asked, ends = sequences[: len(prompts)], sequences[len(prompts) :]
        try:
            for sequence in asked:
                self._context.copy(source, int(sequence))
            first = self._decode(asked, [len(head)] * len(prompts), prompts, last=True)
            for sequence, prompt in zip(ends, owner, strict=True):
                self._context.copy(int(asked[prompt]), int(sequence))
            starts = [len(head) + len(prompts[i]) for i in owner]
            rest = self._decode(ends, starts, [text[:-1] for text in texts], last=False)
        finally:
            for sequence in sequences:
                self._context.truncate(int(sequence), 0)
        logits = [np.concatenate((first[i], after)) for i, after in zip(owner, rest, strict=True)]
        found = [log_probabilities(own, text).sum() for own, text in zip(logits, texts, strict=True)]
        return np.array(found).reshape(len(prompts), len(targets))

    def _hold(self, head: list[int]) -> int:
        """The sequence that holds this head."""
        if head not in self._heads:
            if len(self._heads) == _HEADS:
                self._heads = []
            at = len(self._heads)
            self._context.truncate(at, 0)
            self._decode(np.array([at]), [0], [head], last=True)
            self._heads.append(head)
        return self._heads.index(head)

    def _decode(
        self, sequences: np.ndarray, starts: Sequence[int], texts: Sequence[Sequence[int]], *, last: bool
    ) -> list[np.ndarray]:
        """The logits (tokens, n_vocab) of each text, from its start on in its sequence; last: of its last token."""
        sizes = np.array([len(text) for text in texts])
        ends = np.cumsum(sizes)
        outputs = np.full(ends[-1], not last)
        if last:
            outputs[ends - 1] = True
        logits = self._context.decode(
            np.concatenate([np.array(text, np.int32) for text in texts]),
            np.concatenate([start + np.arange(size) for start, size in zip(starts, sizes, strict=True)]),
            np.repeat(sequences, sizes),
            outputs,
        )
        return np.split(logits, np.arange(1, len(texts)) if last else ends[:-1])


def weigh(
    context: SequenceContext, prompts: Sequence[Sequence[int]], target: Sequence[int], choices: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of the target's tokens after each prompt, (prompts, tokens), and of what may follow it,
    (prompts, choices), in nats.

    All are token ids, none empty. Zeros for more than there is room for in CELLS tokens and SEQUENCES sequences.
    """
    if len(prompts) > SEQUENCES or sum(len(prompt) + len(target) for prompt in prompts) > CELLS:
        return np.zeros((len(prompts), len(target))), np.zeros((len(prompts), len(choices)))
    sizes = [len(prompt) + len(target) for prompt in prompts]
    places = np.concatenate([np.arange(size) for size in sizes])
    starts = np.repeat([len(prompt) - 1 for prompt in prompts], sizes)  # what stands there predicts the target's first
    sequences = np.repeat(np.arange(len(prompts)), sizes)
    try:
        tokens = np.concatenate([np.array([*prompt, *target], np.int32) for prompt in prompts])
        logits = context.decode(tokens, places, sequences, places >= starts)
    finally:
        for sequence in range(len(prompts)):
            context.truncate(sequence, 0)
    rows = logits.reshape(len(prompts), len(target) + 1, -1)
    own = [log_probabilities(row[:-1], target) for row in rows]
    last = [log_probabilities(np.repeat(row[-1:], len(choices), 0), choices) for row in rows]
    return np.array(own), np.array(last)


def log_probabilities(logits: np.ndarray, target: Sequence[int]) -> np.ndarray:
    """logits (n, n_vocab), target (n,) -> the targets' log-probabilities (n,) float64, in nats."""
    top = logits.max(axis=-1, keepdims=True)
    total = top[:, 0] + np.log(np.exp(logits - top).sum(axis=-1, dtype=np.float64))
    picked: np.ndarray = logits[np.arange(len(target)), np.asarray(target)].astype(np.float64) - total
    return picked
