"""What an adapter is about: messages outside its scope are answered by the base model alone.

A linear probe on the base model's last hidden state tells the two apart; in model editing this is the scope classifier
(SERAC, Mitchell et al., arXiv 2206.06520). It is fitted by `update.scope`, lies beside the adapter, and without it an
adapter is always on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

SCOPE = "scope.safetensors"  # beside a version
FOLLOWS = 2.0  # how far outside a message may seem that goes on from one inside ("And how old is she?")


@dataclass(frozen=True, eq=False)
class Scope:
    """weight (n_embd,) float32 and bias: a hidden state's score is the log-odds of its being inside."""

    weight: np.ndarray
    bias: float

    def score(self, state: np.ndarray) -> float:
        """state (n_embd,) -> log-odds."""
        return float(self.weight @ state) + self.bias

    def to_bytes(self) -> bytes:
        return save({"weight": self.weight.astype(np.float32), "bias": np.array([self.bias], np.float32)})

    @staticmethod
    def from_bytes(content: bytes) -> Scope:
        """ValueError if that is no scope."""
        try:
            tensors = load(content)
            weight, bias = tensors["weight"], tensors["bias"]
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{SCOPE} can't be read: {error}") from error
        if weight.ndim != 1 or weight.dtype != np.float32 or bias.shape != (1,) or bias.dtype != np.float32:
            raise ValueError(f"{SCOPE} doesn't hold a scope")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError(f"{SCOPE} holds numbers that aren't finite")
        return Scope(weight, float(bias[0]))


def read_scope(folder: Path) -> Scope | None:
    """The scope of the version in this folder, None if it has none or it can't be read: then it is always on."""
    try:
        return check_scope(folder)
    except ValueError:
        return None


def check_scope(folder: Path) -> Scope | None:
    """As `read_scope`, but ValueError for one that can't be read."""
    try:
        return Scope.from_bytes((folder / SCOPE).read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{SCOPE} can't be read: {error}") from error
