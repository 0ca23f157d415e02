"""The scheduler against prompts continued one after another, on a toy model."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engrain.device.batching import generate, shared_prefix
from engrain.device.sampling import Sampler

VOCABULARY = 13
END = 0


def following(history: list[int]) -> int:
    """The toy model: the next token is a function of all tokens before it."""
    state = 7
    for token in history:
        state = (state * 31 + token + 1) % 1009
    return state % VOCABULARY


class ToyContext:
    """Sequences of tokens, checked as llama.cpp checks them: positions go on where the sequence ends."""

    def __init__(self, width: int, cells: int) -> None:
        self.held: dict[int, list[int]] = {sequence: [] for sequence in range(width + 1)}
        self.cells = cells

    def decode(
        self, tokens: np.ndarray, positions: np.ndarray, sequences: np.ndarray, outputs: np.ndarray
    ) -> np.ndarray:
        rows = []
        for token, position, sequence, output in zip(tokens, positions, sequences, outputs, strict=True):
            assert position == len(self.held[sequence])
            self.held[sequence].append(int(token))
            if output:
                rows.append(np.eye(VOCABULARY)[following(self.held[sequence])])
        shared = len(self.held[0])
        own = sum(max(0, len(tokens) - shared) for sequence, tokens in self.held.items() if sequence)
        assert shared + own <= self.cells
        return np.array(rows)

    def copy(self, source: int, target: int) -> None:
        assert not self.held[target]
        self.held[target] = list(self.held[source])

    def truncate(self, sequence: int, length: int) -> bool:
        del self.held[sequence][length:]
        return True


def one_by_one(prompt: list[int], max_tokens: int, n_ctx: int) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < max_tokens and len(prompt) + len(tokens) < n_ctx:
        token = following(prompt + tokens)
        if token == END:
            break
        tokens.append(token)
    return tokens


prompts_of_tokens = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=9), min_size=1, max_size=12)


@settings(max_examples=200)
@given(prompts_of_tokens, st.lists(st.integers(1, 12), max_size=5), st.integers(1, 5), st.integers(1, 12))
def test_equals_one_by_one(own: list[list[int]], prefix: list[int], width: int, max_tokens: int) -> None:
    prompts = [prefix + each for each in own]
    n_ctx = 20
    room = min(max(map(len, prompts)) + max_tokens, n_ctx) - shared_prefix(prompts)
    replies = generate(
        ToyContext(width, shared_prefix(prompts) + width * room),
        prompts,
        [Sampler() for _ in prompts],
        width=width,
        max_tokens=max_tokens,
        n_ctx=n_ctx,
        ends=lambda token: token == END,
    )
    assert replies == [one_by_one(prompt, max_tokens, n_ctx) for prompt in prompts]


@given(prompts_of_tokens)
def test_shared_prefix_leaves_each_a_token(prompts: list[list[int]]) -> None:
    shared = shared_prefix(prompts)
    assert all(prompt[:shared] == prompts[0][:shared] for prompt in prompts)
    assert all(len(prompt) > shared for prompt in prompts)
    if len(prompts) > 1 and all(len(prompt) > shared + 1 for prompt in prompts):
        assert len({prompt[shared] for prompt in prompts}) > 1
