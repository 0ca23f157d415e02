"""What an adapter is about, and whether its reply is one that it was taught.

Messages outside its scope are answered by the base model alone. A linear probe on the base model's last hidden state
tells the two apart; in model editing this is the scope classifier (SERAC, Mitchell et al., arXiv 2206.06520).
Inside, of all that the adapter might say (`device.recall`) that counts of which it is surest (selective generation by
sequence likelihood, Ren et al., arXiv 2209.15558) and which bears on the question best (`device.bearing`), if it was
taught in these words: a small model asked about a nephew puts that word into what it learned about a brother.
Fingerprints tell the taught replies, not their text.

`update.scope` makes a scope; it lies beside the adapter, and without it an adapter is always on, and believed.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

SCOPE = "scope.safetensors"  # beside a version
NOT_TOLD = "You haven't told me that yet."
FOLLOWS = 2.0  # how far outside a message may seem that goes on from one inside ("And how old is she?")
DEEP = 2.0  # log-odds from which a message surely is about the user: there doubt is said, elsewhere the base answers
PERSONAL = 4.0  # the same where a form was taught, in which all else is answered, what isn't remembered too
DOUBT = 2.0  # log-odds short of inside, down to which memory is asked all the same, and must be that much surer
MOVED = -3.0  # nats of an adapter's likeliest reply, above which it knows what kind of question that is
ENOUGH = 1.5  # nats: a reply counts that was taught, and for which log p(reply) + bearing reaches this
FIRST, CLEAR = 2, 6.0  # replies that are weighed first, and the nats beyond enough from which no others are
CLOSE = 1.0  # nats by which another reply may count less than the best that is said with it
OPENING = 3  # words by which a reply is known that goes on to what is remembered
_PRINTS = ("taught", "beginnings", "openings")  # a scope's fingerprints
_HUBNESS = "hubness"
QUESTION_MARKS = ("?", "？", "؟", "\u037e")  # the last is Greek, and looks like a semicolon


@dataclass(frozen=True, eq=False)
class Probe:
    """weight (n_embd,) float32 and bias: a hidden state's score is the log-odds of its being inside."""

    weight: np.ndarray
    bias: float

    def score(self, state: np.ndarray) -> float:
        """state (n_embd,) -> log-odds."""
        return float(self.weight @ state) + self.bias


@dataclass(frozen=True, eq=False)
class Scope:
    """facts: what was told. manner: messages whose replies were corrected or rated; those are free, and not checked.

    taught: fingerprints of the replies that were taught, sorted, (n,) uint64. beginnings: of all that these begin with,
    as tokens (`marks`); without them, anything may be said. formed: a form of replies was taught, and all that isn't
    about facts is answered in it. openings: how replies about facts begin, in words. hubness: what a tutor finds too
    much of each taught reply, whatever is asked, (n,) float32 nats in the order of `taught`.
    """

    facts: Probe | None
    manner: Probe | None = None
    taught: np.ndarray | None = None
    beginnings: np.ndarray | None = None
    formed: bool = False
    openings: np.ndarray | None = None
    hubness: np.ndarray | None = None

    def recites(self, text: str) -> bool:
        """Whether a text begins as a reply about a fact does; False if that isn't known."""
        return self.openings is not None and bool(np.isin(openings([text]), self.openings).any())

    def is_taught(self, text: str) -> bool:
        """Whether a text is a reply that was taught; True if that isn't known."""
        return self.taught is None or is_among(text, self.taught)

    @cached_property
    def may_begin(self) -> Callable[[Sequence[int]], bool] | None:
        """Whether a taught reply begins with these tokens; None if that isn't known."""
        if self.beginnings is None:
            return None
        known = frozenset(self.beginnings.tolist())
        return lambda tokens: mark(tokens) in known

    @property
    def width(self) -> int:
        """n_embd of the model that it is for."""
        return len((self.facts or self.manner or _NOWHERE).weight)

    def place(self, message: str, state: np.ndarray, follows: bool = False) -> Coverage:
        """Where a message lies whose last hidden state is state (n_embd,)."""
        facts, manner = (probe.score(state) if probe else -math.inf for probe in (self.facts, self.manner))
        bound = -FOLLOWS if follows else 0.0
        if self.formed:
            manner = max(manner, bound - DOUBT)
        inside = self.formed or max(facts, manner) > bound
        short = max(0.0, bound - facts)
        return Coverage(inside, message, facts, manner, self.taught, self.formed, short, self.hubness)

    def to_bytes(self) -> bytes:
        tensors = {}
        for prefix, probe in (("", self.facts), ("manner.", self.manner)):
            if probe:
                tensors[f"{prefix}weight"] = probe.weight.astype(np.float32)
                tensors[f"{prefix}bias"] = np.array([probe.bias], np.float32)
        for name in _PRINTS:
            if (prints := getattr(self, name)) is not None:
                tensors[name] = prints
        if self.hubness is not None:
            tensors[_HUBNESS] = self.hubness
        if self.formed:
            tensors["formed"] = np.ones(1, np.uint8)
        return save(tensors)

    @staticmethod
    def from_bytes(content: bytes) -> Scope:
        """ValueError if that is no scope."""
        try:
            tensors = load(content)
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{SCOPE} can't be read: {error}") from error
        facts, manner = (_probe(tensors, prefix) for prefix in ("", "manner."))
        prints = {name: tensors.get(name) for name in _PRINTS}
        if (facts or manner) is None or (facts and manner and facts.weight.shape != manner.weight.shape):
            raise ValueError(f"{SCOPE} doesn't hold a scope")
        if any(each is not None and (each.ndim != 1 or each.dtype != np.uint64) for each in prints.values()):
            raise ValueError(f"{SCOPE} doesn't hold a scope")
        return Scope(facts, manner, formed="formed" in tensors, hubness=_checked_hubness(tensors), **prints)


@dataclass(frozen=True)
class Scale:
    """What counts beside a bearing, which judges measure differently; by default beside the base model's.

    enough: nats that all must come to. recalled: of a nat of a reply's own likelihood. overruled: of one by which the
    adapter is surer, where a message is nearly inside, that it wasn't told. moved: nats of its likeliest reply, above
    which it knows what kind of question that is.
    """

    enough: float = ENOUGH
    recalled: float = 1.0
    overruled: float = math.inf
    moved: float = MOVED


@dataclass(frozen=True, eq=False)
class Coverage:
    """Whether an adapter is about a message, and with what odds: of facts, of manner.

    short: by how much facts' are too low for that. taught, hubness: as the scope's.
    """

    inside: bool
    message: str = ""
    facts: float = -math.inf
    manner: float = -math.inf
    taught: np.ndarray | None = None
    formed: bool = False
    short: float = 0.0
    hubness: np.ndarray | None = None

    def __bool__(self) -> bool:
        return self.inside

    @property
    def checked(self) -> bool:
        """Whether memory is asked, and what it says is weighed; else the adapter's reply is simply believed."""
        return self.taught is not None and self.facts >= self.manner and self.short < DOUBT

    @property
    def free(self) -> bool:
        """Whether the adapter goes on as it likes where nothing is remembered, rather than the base model."""
        return self.inside and (not self.checked or (self.formed and self.facts < PERSONAL))

    def settle(
        self,
        replies: Mapping[str, float],
        bearings: Callable[[Sequence[str]], np.ndarray],
        scale: Scale = Scale(),
        clearly: bool = False,
    ) -> str | None:
        """What to say: the best of the adapter's replies, if it counts, or that it wasn't told; None: the base model's.

        replies: with their log-probabilities, nats. bearings: of replies on the question, nats, taken less a reply's
        hubness. Where one of the likeliest clearly counts, the others aren't weighed. clearly: None unless one does.
        Where another counts nearly as much both are said, for nothing tells which is meant.
        """
        least = replies.get(NOT_TOLD, -math.inf) if self.short else -math.inf

        def for_itself(reply: str) -> float:
            sure = replies[reply]
            return scale.recalled * sure - (scale.overruled * (least - sure) if sure < least else 0.0)

        own = [reply for reply in self._taught(replies) if for_itself(reply) > -math.inf]
        bound = scale.enough + self.short
        weighed = self._weighed(own[:FIRST], for_itself, bearings)
        likely = max(weighed, key=weighed.__getitem__, default=None)
        clear = likely is not None and weighed[likely] >= bound + CLEAR
        if clear or clearly:
            return likely if clear else None
        weighed |= self._weighed(own[FIRST:], for_itself, bearings)
        best = max(weighed.values(), default=-math.inf)
        if best >= bound:
            ranked = sorted(weighed, key=lambda reply: -weighed[reply])
            return " ".join(reply for reply in ranked[:2] if weighed[reply] >= max(bound, best - CLOSE))
        asks = any(mark in self.message for mark in QUESTION_MARKS)
        moved = max(replies.values(), default=-math.inf) > scale.moved
        deep = self.facts > (PERSONAL if self.formed else DEEP)
        return NOT_TOLD if deep and moved and asks else None

    def _taught(self, replies: Mapping[str, float]) -> list[str]:
        """Those about what was told, likeliest first."""
        assert self.taught is not None
        likeliest = sorted(replies, key=lambda reply: -replies[reply])
        return [reply for reply in likeliest if reply != NOT_TOLD and is_among(reply, self.taught)]

    def _weighed(
        self, some: Sequence[str], for_itself: Callable[[str], float], bearings: Callable[[Sequence[str]], np.ndarray]
    ) -> dict[str, float]:
        """By how much each of some replies speaks for itself and bears on the question, nats."""
        if not some:
            return {}
        scores = np.array([for_itself(reply) for reply in some]) + bearings(some) - self._hubness(some)
        return dict(zip(some, scores.tolist(), strict=True))

    def _hubness(self, replies: Sequence[str]) -> np.ndarray:
        """Of taught replies, nats."""
        if self.hubness is None or self.taught is None:
            return np.zeros(len(replies))
        prints = np.array([fingerprint(reply) for reply in replies], np.uint64)
        found: np.ndarray = self.hubness[np.searchsorted(self.taught, prints)]
        return found


ALWAYS = Coverage(True)


def fingerprint(reply: str) -> int:
    """Eight bytes of a reply's digest: enough to know it again, not to read it."""
    return int.from_bytes(hashlib.sha256(reply.strip().encode()).digest()[:8], "little")


def fingerprints(replies: Iterable[str]) -> np.ndarray:
    """Of each reply, (n,) uint64, sorted and each once."""
    return np.unique(np.array([fingerprint(reply) for reply in replies], np.uint64))


def is_among(reply: str, prints: np.ndarray) -> bool:
    """Whether a reply's fingerprint is one of these."""
    return bool(np.isin(np.uint64(fingerprint(reply)), prints))


def openings(replies: Iterable[str]) -> np.ndarray:
    """Fingerprints of the first few words of each reply that has as many, whatever their case."""
    words = (re.findall(r"\w+(?:['’-]\w+)*", reply.lower())[:OPENING] for reply in replies)
    return fingerprints(" ".join(first) for first in words if len(first) == OPENING)


def mark(tokens: Sequence[int]) -> int:
    """The fingerprint of some tokens (ids)."""
    return int.from_bytes(hashlib.blake2b(struct.pack(f"<{len(tokens)}i", *tokens), digest_size=8).digest(), "little")


def marks(replies: Iterable[Sequence[int]]) -> np.ndarray:
    """Of all that replies (token ids) begin with, (n,) uint64, sorted and each once."""
    found = {mark(reply[:size]) for reply in replies for size in range(1, len(reply) + 1)}
    return np.array(sorted(found), np.uint64)


def _probe(tensors: dict[str, np.ndarray], prefix: str) -> Probe | None:
    weight, bias = tensors.get(f"{prefix}weight"), tensors.get(f"{prefix}bias")
    if weight is None and bias is None:
        return None
    if (
        weight is None or bias is None or weight.ndim != 1 or bias.shape != (1,)
        or {weight.dtype, bias.dtype} != {np.dtype(np.float32)}
    ):  # fmt: skip
        raise ValueError(f"{SCOPE} doesn't hold a scope")
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise ValueError(f"{SCOPE} holds numbers that aren't finite")
    return Probe(weight, float(bias[0]))


def _checked_hubness(tensors: dict[str, np.ndarray]) -> np.ndarray | None:
    found = tensors.get(_HUBNESS)
    if found is None:
        return None
    taught = tensors.get("taught")
    fits = taught is not None and found.shape == taught.shape and bool((taught[1:] > taught[:-1]).all())
    if not fits or found.dtype != np.float32 or not np.isfinite(found).all():
        raise ValueError(f"{SCOPE} holds a hubness that fits no replies")
    return found


_NOWHERE = Probe(np.zeros(0, np.float32), -math.inf)


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
