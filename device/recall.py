"""What a model might say: every reply whose probability comes near that of the likeliest.

Asked in words that it wasn't taught, an adapter often has the right reply second or fifth; the base model then tells
which of them bears on the question (`answering`). A breadth-first search over tokens, as generative retrieval decodes
what a model has memorised, constrained to what there is (De Cao et al., arXiv 2010.00904): only beginnings of replies
that were taught are followed, where these are known, as long as they can be believed.

There a token counts by its share of those that may come next, and what these have of the whole counts less. So a reply
that is long, or in words that are rare to the model, isn't behind for what nothing else that was taught goes on with.
Shares alone would favour what begins as many do, and then goes on in a way that the model finds absurd (label bias,
Lafferty et al., ICML 2001).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from engrain.device.batching import PREFIX, SequenceContext, shared_prefix, step
from engrain.device.sampling import NotANumber

MOST = 24  # beginnings of replies that are followed at once
FEW = 3  # those that are followed first: mostly one of them is the right one's
ROOM = 960  # tokens that a prompt's replies may take up together; what hasn't ended by then is given up
WITHIN = 5.0  # nats of the likeliest
FREE_WITHIN, FREE_LEAST = 3.0, -8.0  # where anything may be said, of which there is more: of the likeliest, and at all
FREE_SLACK = 3.0  # nats more that a beginning may lie behind the likeliest one, which grows less likely as it goes on
ALL_TAUGHT = 0.3  # what a nat of the probability of all that goes on a taught reply weighs beside one of a share
_AMONG_TAUGHT, _FREE = (WITHIN, 0.0, -math.inf), (FREE_WITHIN, FREE_SLACK, FREE_LEAST)
_LOOK, _LOOK_LEAST = 256, -15.0  # tokens that may come next, and their nats


@dataclass(frozen=True)
class Taught:
    """Which replies there are: whether tokens (ids) begin one, and whether they are one."""

    may_begin: Callable[[Sequence[int]], bool]
    is_whole: Callable[[Sequence[int]], bool]


@dataclass(frozen=True)
class Said:
    """One reply: its tokens without the one that ends it, its log-probability in nats with that.

    among: the same among what was taught, by shares (see above); as it is where anything may be said.
    """

    tokens: tuple[int, ...]
    log_probability: float
    among: float


@dataclass
class _Beam:
    """One beginning of a reply, of whose keys and values `sequence` holds all but the pending tokens'."""

    sequence: int
    length: int
    pending: list[int]
    said: Said


@dataclass
class _Search:
    """What is found for one prompt."""

    index: int
    live: list[_Beam]
    room: int  # tokens
    taught: Taught | None
    most: int  # beginnings that are followed at once
    ended: list[Said] = field(default_factory=list)

    def advance(self, logits: Sequence[np.ndarray], ends: Callable[[int], bool]) -> list[list[Said]]:
        """How each live beam goes on, given the logits (n_vocab,) after it; what ends is kept."""
        ways = [(i, *way) for i, row in enumerate(logits) for way in self._next(self.live[i].said, row, ends)]
        whole = [said.among for said in self.ended] + [said.among for _, said, ended in ways if ended]
        likeliest = max(whole, default=-math.inf)
        best = max([said.among for _, said, _ in ways], default=likeliest)
        within, slack, least = _FREE if self.taught is None else _AMONG_TAUGHT
        bound = max(best - within - slack, likeliest - within, least)
        onward: list[list[Said]] = [[] for _ in self.live]
        for i, said, ended in sorted(ways, key=lambda way: -way[1].among)[: self.most]:
            if said.among < bound:
                break
            if ended:
                self.ended.append(said)
            elif self.room:
                self.room -= 1
                onward[i].append(said)
        kept = [said for said in self.ended if said.among >= likeliest - within]
        self.ended = sorted(kept, key=lambda said: -said.among)
        return onward

    def _next(self, said: Said, logits: np.ndarray, ends: Callable[[int], bool]) -> list[tuple[Said, bool]]:
        """How a reply may go on by one token, and whether it ends so."""
        top = logits.max()
        if np.isnan(top):
            raise NotANumber
        own = logits - (top + np.log(np.exp(logits - top).sum(dtype=np.float64)))
        if self.taught is None:
            tokens, whole = np.argsort(-own)[: self.most].tolist(), 0.0
        else:
            tokens = self._taught_next(said, own, ends)
            whole = (1 - ALL_TAUGHT) * float(np.logaddexp.reduce(own[tokens])) if tokens else 0.0
        found = []
        for token in tokens:
            nats, ended = float(own[token]), ends(token)
            on = said.tokens if ended else (*said.tokens, token)
            found.append((Said(on, said.log_probability + nats, said.among + nats - whole), ended))
        return found

    def _taught_next(self, said: Said, own: np.ndarray, ends: Callable[[int], bool]) -> list[int]:
        """The tokens that go on or end a taught reply, of the likeliest by their log-probabilities (n_vocab,)."""
        assert self.taught is not None
        look = np.flatnonzero(own > _LOOK_LEAST)
        if len(look) > _LOOK:
            look = look[np.argpartition(-own[look], _LOOK)[:_LOOK]]
        whole, begins = self.taught.is_whole, self.taught.may_begin
        return [t for t in look.tolist() if (whole(said.tokens) if ends(t) else begins((*said.tokens, t)))]


def recall(
    context: SequenceContext,
    prompts: Sequence[Sequence[int]],
    *,
    width: int,
    n_ctx: int,
    ends: Callable[[int], bool],
    taught: Taught | None = None,
    most: int = MOST,
) -> list[list[Said]]:
    """For each prompt (token ids, none empty) the replies that end, likeliest first.

    `width` prompts at a time. The context is empty at the start, has most · width + 1 sequences and, for each, room for
    a prompt and ROOM more tokens. n_ctx: tokens after which any reply is given up, prompt included. taught: which
    replies there are; without it anything may be said. most: beginnings that are followed at once.
    """
    found: list[list[Said]] = [[] for _ in prompts]
    shared = shared_prefix(prompts)
    if shared:
        step(context, [(PREFIX, 0, list(prompts[0][:shared]))])
    waiting = deque(range(len(prompts)))
    free = list(range(most * width, 0, -1))
    searches: list[_Search] = []
    while waiting or searches:
        while waiting and len(searches) < width:
            index, sequence = waiting.popleft(), free.pop()
            if shared:
                context.copy(PREFIX, sequence)
            root = _Beam(sequence, shared, list(prompts[index][shared:]), Said((), 0.0, 0.0))
            searches.append(_Search(index, [root], min(ROOM, n_ctx - len(prompts[index])), taught, most))
        beams = [beam for search in searches for beam in search.live]
        logits = iter(step(context, [(beam.sequence, beam.length, beam.pending) for beam in beams]))
        for search in searches:
            onward = search.advance([next(logits) for _ in search.live], ends)
            search.live = _follow(context, search.live, onward, free)
            if not search.live:
                found[search.index] = search.ended
        searches = [search for search in searches if search.live]
    return found


def _follow(
    context: SequenceContext, live: Sequence[_Beam], onward: Sequence[Sequence[Said]], free: list[int]
) -> list[_Beam]:
    """The beams that go on from the live ones, each in as many ways as `onward` has for it."""
    for beam, ways in zip(live, onward, strict=True):
        if not ways:
            context.truncate(beam.sequence, 0)
            free.append(beam.sequence)
    found = []
    for beam, ways in zip(live, onward, strict=True):
        held = beam.length + len(beam.pending)
        for i, said in enumerate(ways):
            sequence = free.pop() if i else beam.sequence
            if i:
                context.copy(beam.sequence, sequence)
            found.append(_Beam(sequence, held, [said.tokens[-1]], said))
    return found
