"""Making a tutor: a small adapter that makes a model good at studying, trained once for each base model.

A model of 135 M parameters judges poorly whether a statement answers a question. So it learns that, from a corpus that
has nothing to do with any user (`update.corpus`). The tutor is one LoRA that writes questions which a text answers
(doc2query, Nogueira et al., arXiv 1904.08375) and close ones which it doesn't, and says which is which (as rerankers
do, Nogueira and Cho, arXiv 1901.04085). It also says whether a text is still true after a later message.
`update.tutor` studies with it, and `device.tutor` asks it which of an adapter's replies belongs to a question.

`update.schooling` keeps the adapter.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from engrain.device.runtime import Runtime
from engrain.device.tutor import NO, VERDICT, YES, asked_prompt, not_told_prompt
from engrain.update import wording
from engrain.update.corpus import Change, Person, Row
from engrain.update.decoder import Decoder
from engrain.update.loss import pack_loss
from engrain.update.pack import Example, Pack, pack_examples
from engrain.update.train import half_cosine
from engrain.update.tutor import STANDS, later_prompt

EPOCHS, LR, WARM_UP = 2, 2e-3, 10  # passes over the corpus's people, peak of a cosine schedule, steps
TEXTS = 2  # of a person, in an epoch
ROWS_PER_STEP, PACK = 4, 2  # of the corpus; side by side, about what a step of learning has (`footprint`)
WRITTEN_NEAR, FAR = 2, 2  # near questions of a row that an epoch writes; other rows' questions that it denies
FAR_MESSAGES = 4  # which end something else: not that something ends is to be heard, but what
VERDICT_WEIGHT = 6.0  # of the one token that says yes or no, beside one of a question's

Lesson = tuple[Example, list[float]]  # with what each token of its target weighs


class Teaching:
    """Rows of the corpus as token ids for one model."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def pack(self, rows: Sequence[tuple[Row | Change, Sequence[str]]], rng: random.Random) -> Pack:
        """What some rows teach, each with questions or messages far from it; each token with what it weighs."""
        lessons = [lesson for row, far in rows for lesson in self._of(row, far, rng)]
        examples, weights = zip(*lessons, strict=True)
        return replace(pack_examples(examples, tree=True), weight=torch.tensor([w for own in weights for w in own]))

    def _of(self, row: Row | Change, far: Sequence[str], rng: random.Random) -> list[Lesson]:
        said = wording.to_second_person(row.said) if rng.random() < 0.5 else row.said
        if isinstance(row, Change):
            after = dict.fromkeys((*row.stays, *far), YES) | dict.fromkeys(row.ends, NO)
            return [
                self._judged(self._tokens(later_prompt(message)), said, STANDS, word) for message, word in after.items()
            ]
        asked, not_told = self._tokens(asked_prompt(said)), self._tokens(not_told_prompt(said))
        lessons = [self._answered(asked, question) for question in row.ask]
        lessons += [self._judged(asked, question, VERDICT, NO) for question in (*row.near, *far)]
        return lessons + [self._written(not_told, q) for q in rng.sample(row.near, min(WRITTEN_NEAR, len(row.near)))]

    def _answered(self, head: tuple[int, ...], question: str) -> Lesson:
        """The question, and that it is answered."""
        asked, rest = self._tokens(f" {question}"), (*self._tokens(VERDICT), self._tokens(YES)[0])
        weights = [1.0] * (len(asked) + 1) + [0.0] * (len(rest) - 2) + [VERDICT_WEIGHT]  # the line's end counts
        return Example((*head, *asked, *rest), len(head)), weights

    def _judged(self, head: tuple[int, ...], text: str, verdict: str, word: str) -> Lesson:
        """Only the word after a head, a text and where the verdict begins."""
        prompt = (*head, *self._tokens(f" {text}"), *self._tokens(verdict))
        return Example((*prompt, self._tokens(word)[0]), len(prompt)), [VERDICT_WEIGHT]

    def _written(self, head: tuple[int, ...], question: str) -> Lesson:
        target = (*self._tokens(f" {question}"), self._tokens(VERDICT)[0])
        return Example((*head, *target), len(head)), [1.0] * len(target)

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self._runtime.tokenize(text))


def train_tutor(
    runtime: Runtime,
    decoder: Decoder,
    people: Sequence[Person],
    changes: Sequence[Change] = (),
    seed: int = 0,
    budget: float = math.inf,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[float]:
    """Train the decoder's adapters to study, for EPOCHS or `budget` seconds -> the loss of each step, nats a token."""
    rng, teaching = random.Random(seed), Teaching(runtime)
    params = [p for group in decoder.groups() for p in group.parameters()]
    optimiser = torch.optim.AdamW(params, lr=LR, weight_decay=0.0, betas=(0.9, 0.99), fused=True)
    plan = list(_steps(people, changes, rng))
    losses, start = [], time.monotonic()
    for i, step in enumerate(plan):
        share = max(i / len(plan), (time.monotonic() - start) / budget)
        if share >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = LR * min(1.0, (i + 1) / WARM_UP) * half_cosine(share)
        far = [
            [rng.choice(rng.choice(changes).ends) for _ in range(FAR_MESSAGES)]
            if isinstance(row, Change)
            else [rng.choice(rng.choice(rng.choice(people)).ask) for _ in range(FAR)]
            for row in step
        ]
        both = list(zip(step, far, strict=True))
        losses.append(_learn(decoder, [teaching.pack(both[at : at + PACK], rng) for at in range(0, len(both), PACK)]))
        torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        progress(i + 1, len(plan))
    progress(len(plan), len(plan))
    return losses


def _learn(decoder: Decoder, packs: Sequence[Pack]) -> float:
    """Gradients of the packs' mean loss -> that loss."""
    whole, mean = sum(float(pack.weight.sum()) for pack in packs), 0.0
    for pack in packs:
        loss, _ = pack_loss(decoder, replace(pack, weight=pack.weight / whole).to(decoder.embedding.device))
        loss.backward()
        mean += loss.item()
    return mean


def _steps(people: Sequence[Person], changes: Sequence[Change], rng: random.Random) -> Iterator[list[Row | Change]]:
    """The rows of every step, in another order in every epoch, and other ones where a person told more."""
    for _ in range(EPOCHS):
        drawn: list[Row | Change] = [*changes]
        drawn += [row for person in people for row in rng.sample(person, min(TEXTS, len(person)))]
        order = rng.sample(drawn, len(drawn))
        yield from (order[at : at + ROWS_PER_STEP] for at in range(0, len(order), ROWS_PER_STEP))
