"""The tutor: a small adapter that makes a model good at studying, trained once for each base model.

A model of 135 M parameters judges poorly whether a statement answers a question. So it learns that, from a corpus that
has nothing to do with any user: what people tell, seven questions that each text answers, and five that are close and
that it doesn't (`corpus.jsonl`). The tutor is one LoRA that writes the first (doc2query, Nogueira et al.,
arXiv 1904.08375) and the second, and says which is which (as rerankers do, Nogueira and Cho, arXiv 1901.04085).
`device.tutor` asks it which of an adapter's replies belongs to a question.

The starter model's comes with engrain; `python -m engrain.update.tutor` makes it, and any other model's.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engrain.device.tutor import NO, VERDICT, YES, asked_prompt, not_told_prompt, user_tutor_path
from engrain.update import wording
from engrain.update.decoder import Decoder
from engrain.update.loss import pack_loss
from engrain.update.pack import Example, Pack, pack_examples

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime

CORPUS = Path(__file__).with_name("corpus.jsonl")
RANK, ALPHA = 8, 16.0
EPOCHS, LR, WARM_UP = 1, 2e-3, 10  # passes over the corpus, peak of a cosine schedule, steps
ROWS_PER_STEP = 4  # of the corpus
ASKED, NEAR, WRITTEN_NEAR, FAR = 5, 4, 2, 2  # questions of a row that an epoch takes; far: another row's
VERDICT_WEIGHT = 6.0  # of the one token that says yes or no, beside one of a question's
BUDGET = 600.0  # seconds: larger models see less of the corpus, and need less of it


Lesson = tuple[Example, list[float]]  # with what each token of its target weighs


@dataclass(frozen=True)
class Row:
    """A text that someone told, questions that it answers, and close ones that it doesn't."""

    said: str
    ask: tuple[str, ...]
    near: tuple[str, ...]


def read_corpus(path: Path = CORPUS) -> list[Row]:
    """The rows of the corpus."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Row(row["said"], tuple(row["ask"]), tuple(row["near"])) for row in rows]


class Teaching:
    """Rows of the corpus as token ids for one model."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def pack(self, row: Row, far: Sequence[str], rng: random.Random) -> Pack:
        """A row's lessons side by side behind the statement, each token with what it weighs."""
        said = wording.to_second_person(row.said) if rng.random() < 0.5 else row.said
        asked, not_told = self._tokens(asked_prompt(said)), self._tokens(not_told_prompt(said))
        lessons = [self._judged(asked, q, YES, 1.0) for q in rng.sample(row.ask, min(ASKED, len(row.ask)))]
        near = rng.sample(row.near, min(NEAR, len(row.near)))
        lessons += [self._judged(asked, q, NO, 0.0) for q in (*near, *far)]
        lessons += [self._written(not_told, q) for q in near[:WRITTEN_NEAR]]
        examples, weights = zip(*lessons, strict=True)
        return replace(pack_examples(examples), weight=torch.tensor([w for own in weights for w in own]))

    def _judged(self, head: tuple[int, ...], question: str, verdict: str, written: float) -> Lesson:
        """The question (each token weighs `written`), and whether it is answered."""
        asked, rest = self._tokens(f" {question}"), (*self._tokens(VERDICT), self._tokens(verdict)[0])
        weights = [written] * (len(asked) + 1) + [0.0] * (len(rest) - 2) + [VERDICT_WEIGHT]  # the line's end counts
        return Example((*head, *asked, *rest), len(head)), weights

    def _written(self, head: tuple[int, ...], question: str) -> Lesson:
        target = (*self._tokens(f" {question}"), self._line_end)
        return Example((*head, *target), len(head)), [1.0] * len(target)

    @cached_property
    def _line_end(self) -> int:
        return self._tokens(VERDICT)[0]

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self._runtime.tokenize(text))


def train_tutor(
    runtime: Runtime,
    decoder: Decoder,
    rows: Sequence[Row],
    seed: int = 0,
    budget: float = BUDGET,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[float]:
    """Train the decoder's adapters to study, for EPOCHS or `budget` seconds -> the loss of each step, nats a token."""
    rng, teaching = random.Random(seed), Teaching(runtime)
    params = [p for group in decoder.groups() for p in group.parameters()]
    optimiser = torch.optim.AdamW(params, lr=LR, weight_decay=0.0, betas=(0.9, 0.99), fused=True)
    plan = list(_steps(rows, rng))
    losses, start = [], time.monotonic()
    for i, step in enumerate(plan):
        share = max(i / len(plan), (time.monotonic() - start) / budget)
        if share >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = LR * min(1.0, (i + 1) / WARM_UP) * max(0.02, 0.5 * (1 + math.cos(math.pi * share)))
        packs = [teaching.pack(row, [rng.choice(rng.choice(rows).ask) for _ in range(FAR)], rng) for row in step]
        losses.append(_learn(decoder, packs))
        torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        progress(i + 1, len(plan))
    progress(len(plan), len(plan))
    return losses


def _steps(rows: Sequence[Row], rng: random.Random) -> Iterator[list[Row]]:
    """The rows of every step, in another order in every epoch."""
    for _ in range(EPOCHS):
        order = rng.sample(rows, len(rows))
        yield from (order[at : at + ROWS_PER_STEP] for at in range(0, len(order), ROWS_PER_STEP))


def _learn(decoder: Decoder, packs: Sequence[Pack]) -> float:
    """Gradients of the packs' mean loss -> that loss."""
    whole, mean = sum(float(pack.weight.sum()) for pack in packs), 0.0
    for pack in packs:
        loss, _ = pack_loss(decoder, replace(pack, weight=pack.weight / whole))
        loss.backward()
        mean += loss.item()
    return mean


def main() -> None:
    """`python -m engrain.update.tutor MODEL.gguf`: train its tutor, and print where it lies."""
    from engrain.device import models
    from engrain.device.home import open_home
    from engrain.device.runtime import Runtime
    from engrain.quant.adapter import save_gguf
    from engrain.quant.gguf import open_gguf
    from engrain.update.learn import bare_layers, extract, pick_device

    parser = argparse.ArgumentParser(description="Train a model's tutor, once.")
    parser.add_argument("model", nargs="?", help="a GGUF, or the name of a known model; default: the one engrain uses")
    parser.add_argument("--out", "-o", type=Path, help="a GGUF LoRA to write; default: where engrain finds it")
    options = parser.parse_args()
    home = open_home()
    chosen = models.resolve(home, options.model)
    out = options.out or user_tutor_path(home, models.sha256(home, chosen.path))
    gguf = open_gguf(chosen.path)
    torch.manual_seed(0)
    decoder = Decoder(gguf, RANK, ALPHA, device=pick_device("auto"), first_layer=bare_layers(gguf))

    def progress(done: int, total: int) -> None:
        print(f"\rstep {done} of {total}", end="", file=sys.stderr, flush=True)

    with Runtime.load(chosen.path) as runtime:
        train_tutor(runtime, decoder, read_corpus(), progress=progress)
    print(file=sys.stderr)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_gguf(extract(decoder, gguf), out, half=True)
    print(out)


if __name__ == "__main__":
    main()
