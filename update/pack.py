"""Examples side by side in one sequence: the prompt prefix that they share is computed once.

Layout of a pack's T rows: the shared prefix (P tokens), then the examples one after another. Every example
sees the prefix and itself, so attention needs no T x T mask: the examples' queries are padded to (B, L) and
attend to P + L keys under one small causal mask that serves them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import filterfalse

import torch
from torch import Tensor

ROWS = 64  # packs are rounded up to a multiple: a matrix library prepares itself anew for every new shape
LONG_HEAD = 16  # tokens more that most examples begin with, from which on these are worth packs of their own


@dataclass(frozen=True)
class Example:
    """One thing to learn: `tokens[start:]` is the target, what stands before it the prompt.

    weight: the example's share of the loss. source: ids of the interactions it comes from.
    kind: "fact", "contrast", "replay", "spare", "anchor", …; by it training deals some out (`train`).
    teacher: (ids, log-probabilities), each (targets, k), to distil instead of the tokens themselves.
    """

    tokens: tuple[int, ...]
    start: int
    weight: float = 1.0
    kind: str = "fact"
    source: tuple[int, ...] = ()
    teacher: tuple[Tensor, Tensor] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.start < len(self.tokens):
            raise ValueError(f"target must start inside the example, got {self.start} of {len(self.tokens)}")


@dataclass(frozen=True)
class Pack:
    """Examples as one flat batch; all index tensors are int64.

    tokens, positions: (T,). prefix: P. pad: (B·L,) flat row of every padded slot. unpad: (T - P,) a padded slot
    of every flat row behind the prefix. targets: (K,) flat rows whose output predicts target_ids (K,) with
    weight (K,); owner: (K,) index of the example in the pack. teacher_ids, teacher_log_p: (K, k) the teacher's
    most likely tokens where an example has a teacher (ids are -1 where it has none), or None. tree: whether a row may
    stand in several slots. stem: (T, n_embd) what enters the lowest adapted layer, where it is known (`update.stem`).
    """

    tokens: Tensor
    positions: Tensor
    prefix: int
    batch: int
    longest: int
    pad: Tensor
    unpad: Tensor
    targets: Tensor
    target_ids: Tensor
    weight: Tensor
    owner: Tensor
    examples: tuple[Example, ...]
    teacher_ids: Tensor | None = None
    teacher_log_p: Tensor | None = None
    tree: bool = False
    stem: Tensor | None = None

    def to(self, device: torch.device) -> Pack:
        """The same pack with its tensors on a device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return Pack(**{**vars(self), **moved})


def shared_prefix(examples: Sequence[Example]) -> int:
    """Length of the longest common prefix of all prompts; at least one prompt token stays behind it."""
    low, high = min(e.tokens for e in examples), max(e.tokens for e in examples)
    common = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return max(0, min(common, min(e.start for e in examples) - 1))


def alike(examples: Sequence[Example]) -> list[list[Example]]:
    """Those that begin alike for long, and the others, where most do: one plain text among them would have each
    example of a pack repeat the chat template's head. Their order is kept.
    """
    whole = list(examples)
    if not whole:
        return []
    head = shared_prefix(whole) + LONG_HEAD
    middle = sorted(e.tokens for e in whole)[len(whole) // 2][:head]

    def is_near(e: Example) -> bool:
        return e.tokens[:head] == middle and e.start > head

    near = list(filter(is_near, whole))
    return [near, list(filterfalse(is_near, whole))] if 2 * len(near) > len(whole) else [whole]


def pack_examples(examples: Sequence[Example], tree: bool = False) -> Pack:
    """Lay examples out as one pack; their order is kept. Last tokens predict nothing and get no row.

    tree: examples that begin alike share the rows of that beginning, for as long as it is (tree attention; SpecInfer,
    Miao et al., arXiv 2305.09781).
    """
    prefix = shared_prefix(examples)
    longest = max(len(e.tokens) - 1 for e in examples) - prefix
    tokens, positions = list(examples[0].tokens[:prefix]), list(range(prefix))
    slots: list[int] = []  # of every row behind the prefix
    pad: list[int] = []
    targets: list[int] = []
    followed: dict[tuple[int, int], int] = {}  # a row and the token after it -> that one's row

    def place(tail: Sequence[int], shared: bool) -> list[int]:
        """The rows of a prompt's tokens behind the prefix, new ones where there are none yet."""
        path, before = [], -1
        for depth, token in enumerate(tail):
            row = followed.get((before, token), len(tokens)) if shared else len(tokens)
            if row == len(tokens):
                slots.append(len(pad) + depth)
                tokens.append(token)
                positions.append(prefix + depth)
                followed[before, token] = row
            path.append(row)
            before = row
        pad.extend(path + [0] * (longest - len(path)))
        return path

    for e in examples:
        path = place(e.tokens[prefix:-1], tree)
        targets.extend(path[e.start - 1 - prefix :])
    fill = _fillers(len(tokens), longest)
    for n in fill:
        place(examples[0].tokens[:1] * n, False)
    lengths = [len(e.tokens) - e.start for e in examples]
    return Pack(
        tokens=torch.tensor(tokens),
        positions=torch.tensor(positions),
        prefix=prefix,
        batch=len(examples) + len(fill),
        longest=longest,
        pad=torch.tensor(pad),
        unpad=torch.tensor(slots),
        targets=torch.tensor(targets),
        target_ids=torch.tensor([t for e in examples for t in e.tokens[e.start :]]),
        weight=torch.tensor([e.weight for e in examples], dtype=torch.float32).repeat_interleave(torch.tensor(lengths)),
        owner=torch.arange(len(examples)).repeat_interleave(torch.tensor(lengths)),
        examples=tuple(examples),
        tree=tree,
        **_teachers(examples),
    )


def _fillers(tokens: int, longest: int) -> list[int]:
    """Lengths of prompts without targets that round a pack up to ROWS rows."""
    missing = -tokens % ROWS
    return [longest] * (missing // longest) + ([missing % longest] if missing % longest else [])


def _teachers(examples: Sequence[Example]) -> dict[str, Tensor]:
    taught = [e.teacher for e in examples if e.teacher is not None]
    if not taught:
        return {}
    k = taught[0][0].shape[1]
    none = [(torch.full((len(e.tokens) - e.start, k), -1), torch.zeros(len(e.tokens) - e.start, k)) for e in examples]
    parts = [e.teacher or n for e, n in zip(examples, none, strict=True)]
    return {
        "teacher_ids": torch.cat([p[0] for p in parts]),
        "teacher_log_p": torch.cat([p[1] for p in parts]),
    }


def plan_packs(
    examples: Sequence[Example], max_tokens: int, generator: torch.Generator | None = None
) -> list[list[Example]]:
    """Examples -> groups of about `max_tokens` tokens each (shared prefix and padding counted).

    Those that begin alike stay together, and among them neighbours in length, so that little is padded; with a
    generator the order among similar lengths, and the order of the groups, are drawn anew.
    """
    groups = [group for part in alike(examples) for group in _by_length(part, max_tokens, generator)]
    if generator is None:
        return groups
    return [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]


def _by_length(examples: Sequence[Example], max_tokens: int, generator: torch.Generator | None) -> list[list[Example]]:
    noise = torch.rand(len(examples), generator=generator) * 8 if generator else torch.zeros(len(examples))
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].tokens) + float(noise[i]))
    prefix = shared_prefix(examples)
    groups: list[list[Example]] = [[]]
    for i in order:
        longest = max(len(e.tokens) - 1 for e in [*groups[-1], examples[i]]) - prefix
        if groups[-1] and prefix + longest * (len(groups[-1]) + 1) > max_tokens:
            groups.append([])
        groups[-1].append(examples[i])
    return groups
