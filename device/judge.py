"""How likely texts are after prompts, many at once; what prompts begin with is computed once, and held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from engrain.device.recall import MOST

if TYPE_CHECKING:
    from engrain.device.batching import SequenceContext

CELLS = 2048  # tokens of all that is weighed at once
_HEADS, _HELD = 40, 512  # beginnings that are held, and their tokens, of which each costs every later one a little
SEQUENCES = _HEADS + 2 * (MOST + 2)  # heads, prompts, and texts after them


class Held:
    """Beginnings of texts whose keys and values a context keeps, each in a sequence of its own, from 0 on."""

    def __init__(self, context: SequenceContext) -> None:
        self._context = context
        self._at: dict[tuple[int, ...], int] = {}  # the one that was used last at the end
        self._free = list(range(_HEADS))[::-1]

    def hold(self, heads: Sequence[Sequence[int]]) -> list[int]:
        """The sequences that hold these (token ids, at most _HEADS). What was used longest ago makes room for new ones.

        _HELD tokens are held, or as many as these have.
        """
        wanted = list(dict.fromkeys(map(tuple, heads)))
        new = [head for head in wanted if head not in self._at]
        for head in wanted:
            if head in self._at:
                self._at[head] = self._at.pop(head)
        for old in list(self._at):
            full = sum(map(len, (*self._at, *new))) > _HELD or len(new) > len(self._free)
            if not full or old in wanted:
                break
            self._free.append(self._at.pop(old))
            self._context.truncate(self._free[-1], 0)
        if new:
            sequences = [self._free.pop() for _ in new]
            tokens, places, owners = _side_by_side(sequences, [0] * len(new), new)
            self._context.decode(tokens, places, owners, np.zeros(len(tokens), bool))
            self._at.update(zip(new, sequences, strict=True))
        return [self._at[tuple(head)] for head in heads]


class Judge:
    """Weighs texts in a context of CELLS tokens and SEQUENCES sequences that nothing else uses."""

    def __init__(self, context: SequenceContext) -> None:
        self._context = context
        self._held = Held(context)

    def likelihoods(
        self, head: Sequence[int], prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """Log-probabilities of each target after the head and each prompt, (prompts, targets) nats.

        All are token ids, none empty. Zeros for more than there is room for: a few pages in all.
        """
        texts = [target for _ in prompts for target in targets]
        owner = [i for i in range(len(prompts)) for _ in targets]  # of each text, its prompt
        used = _HEADS + len(prompts) + len(texts)
        if max(len(head), _HELD) + sum(map(len, (*prompts, *texts))) > CELLS or used > SEQUENCES:
            return np.zeros((len(prompts), len(targets)))
        (source,) = self._held.hold([head])
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

    def weigh(
        self, prompts: Sequence[Sequence[int]], target: Sequence[int], choices: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities of the target's tokens after each prompt, (prompts, tokens), and of what may follow it,
        (prompts, choices), in nats.

        All are token ids, none empty. Zeros for more than there is room for in CELLS tokens and SEQUENCES sequences.
        """
        n, size = len(prompts), len(target) + 1
        if n > SEQUENCES - _HEADS or max(_HELD, sum(map(len, prompts))) + n * size > CELLS:
            return np.zeros((n, len(target))), np.zeros((n, len(choices)))
        sequences = np.arange(_HEADS, _HEADS + n)
        # What stands last in a prompt predicts the target's first token.
        for source, sequence in zip(self._held.hold([prompt[:-1] for prompt in prompts]), sequences, strict=True):
            self._context.copy(source, int(sequence))
        try:
            starts = [len(prompt) - 1 for prompt in prompts]
            rows = self._decode(sequences, starts, [[prompt[-1], *target] for prompt in prompts], last=False)
        finally:
            for sequence in sequences:
                self._context.truncate(int(sequence), 0)
        own = [log_probabilities(row[:-1], target) for row in rows]
        after = [log_probabilities(np.repeat(row[-1:], len(choices), 0), choices) for row in rows]
        return np.array(own), np.array(after)

    def _decode(
        self, sequences: np.ndarray, starts: Sequence[int], texts: Sequence[Sequence[int]], *, last: bool
    ) -> list[np.ndarray]:
        """The logits (tokens, n_vocab) of each text, from its start on in its sequence; last: of its last token."""
        ends = np.cumsum([len(text) for text in texts])
        outputs = np.full(ends[-1], not last)
        if last:
            outputs[ends - 1] = True
        logits = self._context.decode(*_side_by_side(sequences, starts, texts), outputs)
        return np.split(logits, np.arange(1, len(texts)) if last else ends[:-1])


def _side_by_side(
    sequences: Sequence[int] | np.ndarray, starts: Sequence[int], texts: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texts (token ids), each in a sequence from a place on, as tokens, their places and their sequences, (T,) each."""
    sizes = [len(text) for text in texts]
    places = np.concatenate([start + np.arange(size) for start, size in zip(starts, sizes, strict=True)])
    return np.array([token for text in texts for token in text], np.int32), places, np.repeat(sequences, sizes)


def log_probabilities(logits: np.ndarray, target: Sequence[int]) -> np.ndarray:
    """logits (n, n_vocab), target (n,) -> the targets' log-probabilities (n,) float64, in nats."""
    top = logits.max(axis=-1, keepdims=True)
    total = top[:, 0] + np.log(np.exp(logits - top).sum(axis=-1, dtype=np.float64))
    picked: np.ndarray = logits[np.arange(len(target)), np.asarray(target)].astype(np.float64) - total
    return picked
