"""What a model might say: every reply whose probability comes near that of the likeliest.

Asked in words that it wasn't taught, an adapter often has the right reply second or fifth; the base model then tells
which of them bears on the question (`answering`). A breadth-first search over tokens, as generative retrieval decodes
what a model has memorised, constrained to what there is (De Cao et al., arXiv 2010.00904): only beginnings of replies
that were taught are followed, where these are known, and as long as they can be believed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from engrain.device.batching import PREFIX, SequenceContext, shared_prefix, step
from engrain.device.sampling import NotANumber

MayBegin = Callable[[Sequence[int]], bool]

MOST = 24  # beginnings of replies that are followed at once
FEW = 3  # those that are followed first: mostly one of them is the right one's
ROOM = 960  # tokens that a prompt's replies may take up together; what hasn't ended by then is given up
WITHIN, LEAST = 7.0, -13.0  # nats of the likeliest, and at all
FREE_WITHIN, FREE_LEAST = 3.0, -8.0  # where anything may be said, of which there is more
SLACK = 3.0  # nats more that a beginning may lie behind the likeliest one, which grows less likely as it goes on
_LOOK = 256  # tokens that may come next


@dataclass(frozen=True)
class Said:
    """One reply: its tokens without the one that ends it, its log-probability in nats with that."""

    tokens: tuple[int, ...]
    log_probability: float


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
    may_begin: MayBegin | None
    most: int  # beginnings that are followed at once
    ended: list[Said] = field(default_factory=list)

    def advance(self, logits: Sequence[np.ndarray], ends: Callable[[int], bool]) -> list[list[Said]]:
        """How each live beam goes on, given the logits (n_vocab,) after it; what ends is kept."""
        ways = [(p, token, i) for i, row in enumerate(logits) for p, token in self._next(self.live[i].said, row, ends)]
        ended = [said.log_probability for said in self.ended] + [p for p, token, _ in ways if ends(token)]
        best, likeliest = max([p for p, _, _ in ways] + ended, default=0.0), max(ended, default=-math.inf)
        within, least = (FREE_WITHIN, FREE_LEAST) if self.may_begin is None else (WITHIN, LEAST)
        bound = max(best - within - SLACK, likeliest - within, least)
        onward: list[list[Said]] = [[] for _ in self.live]
        for p, token, i in sorted(ways, reverse=True)[: self.most]:
            tokens = self.live[i].said.tokens
            if p < bound:
                break
            if ends(token):
                self.ended.append(Said(tokens, p))
            elif self.room:
                self.room -= 1
                onward[i].append(Said((*tokens, token), p))
        kept = [said for said in self.ended if said.log_probability >= likeliest - within]
        self.ended = sorted(kept, key=lambda said: -said.log_probability)
        return onward

    def _next(self, said: Said, logits: np.ndarray, ends: Callable[[int], bool]) -> list[tuple[float, int]]:
        """(log-probability of the whole, token) of the likeliest next tokens."""
        top = logits.max()
        if np.isnan(top):
            raise NotANumber
        own = logits - (top + np.log(np.exp(logits - top).sum(dtype=np.float64)))
        if self.may_begin is None:
            return [(said.log_probability + float(own[t]), int(t)) for t in np.argsort(-own)[: self.most]]
        look = np.flatnonzero(own > LEAST - said.log_probability)
        if len(look) > _LOOK:
            look = look[np.argpartition(-own[look], _LOOK)[:_LOOK]]
        return [
            (said.log_probability + float(own[t]), int(t))
            for t in look
            if self.may_begin((*said.tokens, int(t))) or ends(int(t))
        ]


def recall(
    context: SequenceContext,
    prompts: Sequence[Sequence[int]],
    *,
    width: int,
    n_ctx: int,
    ends: Callable[[int], bool],
    may_begin: MayBegin | None = None,
    most: int = MOST,
) -> list[list[Said]]:
    """For each prompt (token ids, none empty) the replies that end, likeliest first.

    `width` prompts at a time. The context is empty at the start, has most · width + 1 sequences and, for each, room for
    a prompt and ROOM more tokens. n_ctx: tokens after which any reply is given up, prompt included. may_begin: whether
    a reply may begin with some tokens; any may without it. most: beginnings that are followed at once.
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
            root = _Beam(sequence, shared, list(prompts[index][shared:]), Said((), 0.0))
            searches.append(_Search(index, [root], min(ROOM, n_ctx - len(prompts[index])), may_begin, most))
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
