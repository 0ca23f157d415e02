"""Many prompts decoded together: one pass over the weights serves a token of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from engrain.device.sampling import Sampler

PREFIX = 0  # the sequence that holds what all prompts begin with; slots are 1, 2, …


class SequenceContext(Protocol):
    """What the scheduler asks of a context with several sequences."""

    def decode(
        self, tokens: np.ndarray, positions: np.ndarray, sequences: np.ndarray, outputs: np.ndarray
    ) -> np.ndarray: ...
    def copy(self, source: int, target: int) -> None: ...
    def truncate(self, sequence: int, length: int) -> bool: ...


@dataclass
class _Slot:
    """One prompt being continued."""

    index: int
    length: int  # tokens whose keys and values are held
    pending: list[int]  # tokens to evaluate next
    sampler: Sampler
    tokens: list[int] = field(default_factory=list)


def common_prefix(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many leading items are the same."""
    for at, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return at
    return min(len(first), len(second))


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Leading tokens that all prompts have in common, leaving each at least one of its own."""
    if len(prompts) < 2:
        return 0
    # the common prefix of all is that of the smallest and the largest in dictionary order
    ordered = sorted(map(tuple, prompts))
    return min(common_prefix(ordered[0], ordered[-1]), min(map(len, prompts)) - 1)


def generate(
    context: SequenceContext,
    prompts: Sequence[Sequence[int]],
    samplers: Sequence[Sampler],
    *,
    width: int,
    max_tokens: int,
    n_ctx: int,
    ends: Callable[[int], bool],
) -> list[list[int]]:
    """Continue prompts (token ids, none empty), `width` at a time; a finished one makes room for the next.

    Returns the new tokens of each prompt, without the one that `ends` it.
    The context is empty at the start, has width + 1 sequences and room for them.
    """
    replies: list[list[int]] = [[] for _ in prompts]
    shared = shared_prefix(prompts)
    if shared:
        step(context, [(PREFIX, 0, list(prompts[0][:shared]))])
    waiting = deque(range(len(prompts)))
    free = list(range(width, 0, -1))
    slots: dict[int, _Slot] = {}
    while waiting or slots:
        while waiting and free:
            index, sequence = waiting.popleft(), free.pop()
            if shared:
                context.copy(PREFIX, sequence)
            slots[sequence] = _Slot(index, shared, list(prompts[index][shared:]), samplers[index])
        logits = step(context, [(sequence, slot.length, slot.pending) for sequence, slot in slots.items()])
        for row, (sequence, slot) in enumerate(list(slots.items())):
            slot.length += len(slot.pending)
            token = slot.sampler.choose(logits[row])
            ended = ends(token)
            if not ended:
                slot.tokens.append(token)
                slot.pending = [token]
            if ended or len(slot.tokens) == max_tokens or slot.length + 1 >= n_ctx:
                replies[slot.index] = slot.tokens
                context.truncate(sequence, 0)
                free.append(sequence)
                del slots[sequence]
    return replies


def step(context: SequenceContext, pending: list[tuple[int, int, list[int]]]) -> np.ndarray:
    """Evaluate (sequence, position, tokens) together; logits (len(pending), n_vocab) of the last tokens."""
    sizes = [len(tokens) for _, _, tokens in pending]
    outputs = np.zeros(sum(sizes), dtype=bool)
    outputs[np.cumsum(sizes) - 1] = True
    return context.decode(
        np.concatenate([np.asarray(tokens) for _, _, tokens in pending]),
        np.concatenate([np.arange(start, start + len(tokens)) for _, start, tokens in pending]),
        np.repeat([sequence for sequence, _, _ in pending], sizes),
        outputs,
    )
