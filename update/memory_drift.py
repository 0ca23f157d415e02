"""How far an adapter moves the served model: perplexity on a text, and KL to the base, as llama.cpp computes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engrain.device.answering import is_adapters
from engrain.device.scope import Scope
from engrain.quant.errors import EngrainError
from engrain.quant.gguf import open_gguf

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime

WINDOW, TEXT_TOKENS = 512, 2048
_CHARACTERS_A_TOKEN = 32  # more than any text has: only its beginning is tokenised


@dataclass(frozen=True)
class Window:
    """Tokens of one evaluation. first: the position from whose prediction on it counts; text: not a prompt.

    message: what a user would have sent, for the adapter's scope.
    """

    tokens: tuple[int, ...]
    first: int
    text: bool
    message: str


@dataclass(frozen=True)
class Drift:
    """Perplexity (None without text) and mean KL(base ‖ adapted) in nats a token, as the adapter is served: what it
    doesn't answer is the base's. And `_on`, with the adapter always on, as other programs serve it.
    """

    perplexity: float | None
    kl: float | None
    perplexity_on: float | None
    kl_on: float | None


def leading_token(path: Path) -> int | None:
    """The BOS that a model wants before a text; where its GGUF doesn't say, SentencePiece vocabularies want one."""
    facts = open_gguf(path).metadata
    wanted = facts.get("tokenizer.ggml.add_bos_token", facts.get("tokenizer.ggml.model") == "llama")
    bos = facts.get("tokenizer.ggml.bos_token_id")
    return int(bos) if wanted and bos is not None else None


def text_windows(runtime: Runtime, text: str, bos: int | None = None) -> tuple[Window, ...]:
    """The text's beginning in windows that don't overlap, each half of it counted, as llama.cpp's `perplexity` does.

    bos: the token that replaces each window's first, where the model wants one.
    """
    size = min(WINDOW, runtime.n_ctx)
    tokens = runtime.tokenize(text[: TEXT_TOKENS * _CHARACTERS_A_TOKEN])[:TEXT_TOKENS]
    if len(tokens) < size:
        raise EngrainError(f"the text has {len(tokens)} tokens: perplexity needs {size} or more")
    lead = [] if bos is None else [bos]
    starts = range(0, len(tokens) - size + 1, size)
    cut = [tokens[at + len(lead) : at + size] for at in starts]
    return tuple(Window((*lead, *part), size // 2, True, runtime.detokenize(part)) for part in cut)


def prompt_windows(runtime: Runtime, questions: Sequence[str]) -> tuple[Window, ...]:
    """Whole prompts, every position counted."""
    prompts = [runtime.prompt_tokens([{"role": "user", "content": question}]) for question in questions]
    return tuple(Window(tuple(p), 0, False, question) for p, question in zip(prompts, questions, strict=True))


def drift(runtime: Runtime, windows: Sequence[Window], adapter: Path | None, scope: Scope | None = None) -> Drift:
    """How far an adapter moves the model on windows, as it is served and always on; without one, the base alone.

    Window by window, so that no more than one window's logits are held. Leaves no adapter attached.
    """
    always, served = _Sums(), _Sums()
    try:
        for window in windows:
            runtime.detach()
            base = adapted = _log_probabilities(runtime, window)
            covered = True
            if adapter is not None:
                runtime.attach(adapter, scope=scope)
                covered = is_adapters(runtime, window.message)
                adapted = _log_probabilities(runtime, window)
            always.add(window, base, adapted)
            served.add(window, base, adapted if covered else base)
    finally:
        runtime.detach()
    return Drift(served.perplexity, served.mean_kl, always.perplexity, always.mean_kl)


@dataclass
class _Sums:
    """Nats of the text's tokens and KL of all counted positions, window by window."""

    nats: float = 0.0
    scored: int = 0
    kl: float = 0.0
    counted: int = 0

    def add(self, window: Window, base: np.ndarray, adapted: np.ndarray) -> None:
        self.kl += sum(float((np.exp(b) * (b - a)).sum()) for b, a in zip(base, adapted, strict=True))
        self.counted += len(base)
        if window.text:
            following = window.tokens[window.first + 1 :]
            self.nats -= sum(float(row[token]) for row, token in zip(adapted, following, strict=False))
            self.scored += len(following)

    @property
    def perplexity(self) -> float | None:
        return math.exp(self.nats / self.scored) if self.scored else None

    @property
    def mean_kl(self) -> float | None:
        return self.kl / self.counted if self.counted else None


def _log_probabilities(runtime: Runtime, window: Window) -> np.ndarray:
    """(n_counted, n_vocab) float64, nats."""
    rows = runtime.logits(window.tokens, len(window.tokens) - window.first).astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows
