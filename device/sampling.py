"""From logits to a token, and from the bytes of tokens to text."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from engrain.quant.errors import EngrainError

_HEAD = 256  # a nucleus of 0.95 rarely holds more tokens, and a full sort of the vocabulary is slow


class NotANumber(EngrainError):
    """The model's output holds NaN."""

    def __init__(self) -> None:
        super().__init__("the model's output is not a number: try without the adapter, or another model file")


class Sampler:
    """Greedy at temperature 0, else nucleus sampling (Holtzman et al., arXiv 1904.09751).

    The same seed gives the same choices; without one they come from the operating system's entropy.
    barred: whether a token may not be the first.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_p: float = 0.95,
        seed: int | tuple[int, ...] | None = None,
        barred: Callable[[int], bool] | None = None,
    ) -> None:
        if not 0.0 <= temperature < float("inf"):
            raise EngrainError(f"temperature {temperature} is out of range: give 0 (greedy) or more")
        if not 0.0 < top_p <= 1.0:
            raise EngrainError(f"top_p {top_p} is out of range: give more than 0, at most 1")
        if seed is not None and np.any(np.asarray(seed) < 0):
            raise EngrainError(f"seed {seed} is negative: give 0 or more")
        self.temperature = temperature
        self.top_p = top_p
        self._barred = barred
        self._random = np.random.default_rng(seed)

    def choose(self, logits: np.ndarray) -> int:
        """One token id from logits (n_vocab,)."""
        best = int(np.argmax(logits))  # argmax finds a NaN first
        if np.isnan(logits[best]):
            raise NotANumber
        if self._barred:
            likely = np.argpartition(-logits, min(_HEAD, len(logits) - 1))[:_HEAD]
            out = [token for token in likely if self._barred(int(token))]
            logits, self._barred = logits.copy(), None
            logits[out] = -np.inf
            best = int(np.argmax(logits))
        if self.temperature == 0.0:
            return best
        weights = np.exp((logits.astype(np.float64) - float(logits[best])) / self.temperature)
        nucleus = self._nucleus(weights / weights.sum())
        share = weights[nucleus]
        return int(self._random.choice(nucleus, p=share / share.sum()))

    def _nucleus(self, probabilities: np.ndarray) -> np.ndarray:
        """The fewest most probable tokens whose probabilities sum to top_p."""
        head = np.arange(len(probabilities))
        if len(head) > _HEAD:
            top = np.argpartition(probabilities, -_HEAD)[-_HEAD:]
            if probabilities[top].sum() >= self.top_p:
                head = top
        order = head[np.argsort(-probabilities[head], kind="stable")]
        enough = int(np.searchsorted(np.cumsum(probabilities[order]), self.top_p)) + 1
        return order[:enough]


@dataclass(frozen=True)
class Reply:
    """What the model said. `finished`: it ended by itself, not by max_tokens or the context's end."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finished: bool


class TextAssembler:
    """Joins the bytes of tokens to text: whole characters only, leading white space dropped.

    The text ends where one of `stops` begins; what may be the beginning of one is held back.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stopped = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(stops)
        self._held = ""
        self._started = False

    def feed(self, piece: bytes) -> str:
        """The text that is certain once these bytes have come; often empty."""
        text = self._held + self._decoder.decode(piece)
        self._held = ""
        if not self._started:
            text = text.lstrip()
            self._started = bool(text)
        if found := [at for at in map(text.find, self._stops) if at >= 0]:
            self.stopped = True
            return text[: min(found)]
        for size in range(min(max(map(len, self._stops), default=1) - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                self._held = text[-size:]
                return text[:-size]
        return text

    def rest(self) -> str:
        """What was held back for a stop string that never came; half a character is dropped."""
        held, self._held = self._held, ""
        return held
