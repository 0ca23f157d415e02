"""One adapter in memory, and what its two kinds of file share: PEFT's, the truth (`peft`), and GGUF LoRA (`gguf_lora`).

In memory an adapter has GGUF tensor names and GGUF row order, as it is trained; PEFT's names and order
exist only in the file. No torch here.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engrain.quant.errors import EngrainError
from engrain.quant.files import replace_file
from engrain.quant.names import ROPE_PERMUTED, is_linear

MAX_RANK = 1024


class AdapterError(EngrainError):
    """An adapter that is damaged, hostile, or of a kind that engrain doesn't take."""


@dataclass(frozen=True)
class Adapter:
    """LoRA weights: GGUF tensor name -> (lora_a (rank, in), lora_b (out, rank)), float32, GGUF row order.

    The update to a weight is alpha / rank · B A (Hu et al., arXiv 2106.09685). Raises AdapterError with
    every mismatch found.
    """

    rank: int
    alpha: float
    architecture: str
    n_head: int
    n_head_kv: int
    weights: dict[str, tuple[np.ndarray, np.ndarray]]
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = []
        if not 0 < self.rank <= MAX_RANK:
            wrong.append(f"rank {self.rank} is not between 1 and {MAX_RANK}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            wrong.append(f"alpha {self.alpha} is not a positive number")
        if not re.fullmatch(r"[\w.-]{1,64}", self.architecture):
            wrong.append("its architecture is no name")
        if self.n_head < 1 or self.n_head_kv < 1 or self.n_head % self.n_head_kv:
            wrong.append(f"{self.n_head} heads do not share {self.n_head_kv} key heads")
        for name, pair in self.weights.items():
            wrong.extend(self._problems(name, *pair))
        if not self.weights:
            wrong.append("it has no weights")
        if wrong:
            more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
            raise AdapterError(f"not a usable adapter: {'; '.join(wrong[:3])}{more}; get it again")

    def _problems(self, name: str, a: np.ndarray, b: np.ndarray) -> Iterable[str]:
        if not is_linear(name):
            yield f"{shown(name)} is not a linear layer of a decoder block"
            return
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != self.rank or b.shape[1] != self.rank:
            yield f"{name} has shapes {a.shape} and {b.shape} at rank {self.rank}"
        elif not (a.size and b.size):
            yield f"{name} is empty"
        elif not (np.isfinite(a).all() and np.isfinite(b).all()):
            yield f"{name} holds values that are not finite"
        elif (heads := self.rope_heads(name)) > 0 and b.shape[0] % (2 * heads):
            yield f"{name} has {b.shape[0]} rows for {heads} heads"

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def rope_heads(self, name: str) -> int:
        """Heads whose rows are in RoPE order in this tensor; 0 for none."""
        if self.architecture not in ROPE_PERMUTED:
            return 0
        return self.n_head if ".attn_q." in name else self.n_head_kv if ".attn_k." in name else 0


# What both kinds of file share


def agreed(folder: Path, metadata: dict[str, str], key: str, given: str) -> str:
    """What the file says of its base model, or else what the caller says."""
    held = metadata.get(f"engrain.{key}", "")
    if not (held or given):
        raise AdapterError(f"{folder} does not say its model's {key}; import it for a given base model")
    if held and given and held != given:
        raise AdapterError(f"{folder} is for a model with {key} {shown(held)}, not {given}")
    return held or given


def agreed_count(folder: Path, metadata: dict[str, str], key: str, given: int) -> int:
    """As `agreed`, for a number of heads."""
    held = agreed(folder, metadata, key, str(given) if given else "")
    if not re.fullmatch(r"[0-9]{1,6}", held):
        raise AdapterError(f"{folder}: {key} is no number of heads; get the adapter again")
    return int(held)


def both_sides(path: Path, name: str, sides: dict[str, np.ndarray], a: str, b: str) -> tuple[np.ndarray, np.ndarray]:
    """The LoRA weights (A, B) of one tensor, named `a` and `b` in the file."""
    if len(sides) != 2:
        raise AdapterError(f"{path} has only half of the LoRA weights of {shown(name)}; get it again")
    return sides[a], sides[b]


def write_file(path: Path, fill: Callable[[Path], object]) -> None:
    """As `replace_file`, but AdapterError when that fails."""
    try:
        replace_file(path, fill)
    except OSError as e:
        reason = e.strerror or e
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise AdapterError(f"cannot write into {path.parent}: {reason}; choose another folder") from e
        raise AdapterError(f"cannot write {path}: {reason}; free some space and try again") from e


def shown(text: str) -> str:
    """A name from a file, on one line and without control characters."""
    return ascii(text[:80])[1:-1]
