"""One text at a time in a context of llama.cpp: what it holds of the one before isn't evaluated again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engrain.device.batching import common_prefix
from engrain.device.context import Context
from engrain.device.llama_model import LlamaModel


class PrefixCache:
    """A context of one sequence, and in `held` the tokens whose keys and values it holds."""

    def __init__(self, model: LlamaModel, n_ctx: int) -> None:
        self._model = model
        self._context = Context(model, n_ctx, 1)
        self.held: list[int] = []

    def next_logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits (n_vocab,) after `tokens`, evaluating only what the context doesn't hold yet.

        Looking at what is held each time keeps a stream right when another runs, or the adapter changes,
        between two of its pieces.
        """
        self._model.check_open()
        return self._extend(self._cut(tokens), tokens, outputs=1)[0]

    def logits(self, tokens: Sequence[int], outputs: int) -> np.ndarray:
        """Logits (outputs, n_vocab) of the last ones of `tokens`, from an empty context."""
        self._model.check_open()
        self.clear()
        return self._extend(0, tokens, outputs)

    def last_state(self, tokens: Sequence[int]) -> np.ndarray:
        """The normed last hidden state (n_embd,) float32 after `tokens`."""
        self._model.check_open()
        state = self._context.last_state(np.asarray(tokens, dtype=np.int32), self._cut(tokens))
        self.held = list(tokens)
        return state

    def _cut(self, tokens: Sequence[int]) -> int:
        """Keep what the context holds of `tokens` without their last; how many that is."""
        held, self.held = self.held, []  # if interrupted, nothing counts as held
        keep = len(tokens) - 1
        if held != tokens[:-1]:
            keep = min(common_prefix(held, tokens), keep)
        if not self._context.truncate(0, keep):  # a recurrent state can't be cut
            self._context.clear()
            keep = 0
        return keep

    def _extend(self, keep: int, tokens: Sequence[int], outputs: int) -> np.ndarray:
        """Evaluate `tokens` after the `keep` that are held; logits (outputs, n_vocab) of the last ones."""
        size = len(tokens) - keep
        rows = self._context.decode(
            np.asarray(tokens[keep:], dtype=np.int32),
            np.arange(keep, keep + size),
            np.zeros(size, dtype=np.int32),
            np.arange(size) >= size - outputs,
        )
        self.held = list(tokens)
        return rows

    def clear(self) -> None:
        """Drop keys and values: they were made by one adapter and one text."""
        self.held = []
        self._context.clear()

    def set_adapter(self, adapter: Any | None, scale: float) -> bool:
        """As `Context.set_adapter`; what another adapter made is dropped."""
        done = self._context.set_adapter(adapter, scale)
        if done:
            self.clear()
        return done

    def close(self) -> None:
        self._context.close()
