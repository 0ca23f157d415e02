"""Making a tutor: a small adapter that makes a model good at studying, trained once for each base model.

A model of 135 M parameters judges poorly whether a statement answers a question. So it learns that, from a corpus that
has nothing to do with any user (`update.corpus`). The tutor is one LoRA that writes questions which a text answers
(doc2query, Nogueira et al., arXiv 1904.08375) and close ones which it doesn't, and says which is which (as rerankers
do, Nogueira and Cho, arXiv 1901.04085). `update.tutor` studies with it, and `device.tutor` asks it which of an
adapter's replies belongs to a question.

The starter model's comes with engrain; `python -m engrain.update.train_tutor` makes it, and any other model's.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from engrain.device import models
from engrain.device.home import Home, open_home
from engrain.device.runtime import Runtime
from engrain.device.tutor import NO, VERDICT, YES, asked_prompt, not_told_prompt, tutor_path, user_tutor_path
from engrain.quant.adapter import Adapter, load_gguf, save_gguf
from engrain.quant.errors import EngrainError
from engrain.quant.gguf import GGUFModel, open_gguf
from engrain.update import wording
from engrain.update.build import build_decoder, extract
from engrain.update.corpus import Row, read_corpus
from engrain.update.decoder import Decoder
from engrain.update.loss import pack_loss
from engrain.update.pack import Example, Pack, pack_examples

EPOCHS, LR, WARM_UP = 3, 2e-3, 10  # passes over the corpus, peak of a cosine schedule, steps
ROWS_PER_STEP, PACK = 4, 2  # of the corpus; side by side, about what a step of learning has (`footprint`)
WRITTEN_NEAR, FAR = 2, 2  # near questions of a row that an epoch writes; other rows' questions that it denies
VERDICT_WEIGHT = 6.0  # of the one token that says yes or no, beside one of a question's
BUDGET = 600.0  # seconds, in learning: larger models see less of the corpus, and need less of it


Lesson = tuple[Example, list[float]]  # with what each token of its target weighs


class Teaching:
    """Rows of the corpus as token ids for one model."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def pack(self, rows: Sequence[tuple[Row, Sequence[str]]], rng: random.Random) -> Pack:
        """What some rows teach, each with questions that are far from it; each token with what it weighs."""
        lessons = [lesson for row, far in rows for lesson in self._of(row, far, rng)]
        examples, weights = zip(*lessons, strict=True)
        return replace(pack_examples(examples, tree=True), weight=torch.tensor([w for own in weights for w in own]))

    def _of(self, row: Row, far: Sequence[str], rng: random.Random) -> list[Lesson]:
        said = wording.to_second_person(row.said) if rng.random() < 0.5 else row.said
        asked, not_told = self._tokens(asked_prompt(said)), self._tokens(not_told_prompt(said))
        lessons = [self._answered(asked, question) for question in row.ask]
        lessons += [self._denied(asked, question) for question in (*row.near, *far)]
        return lessons + [self._written(not_told, q) for q in rng.sample(row.near, min(WRITTEN_NEAR, len(row.near)))]

    def _answered(self, head: tuple[int, ...], question: str) -> Lesson:
        """The question, and that it is answered."""
        asked, rest = self._tokens(f" {question}"), (*self._tokens(VERDICT), self._tokens(YES)[0])
        weights = [1.0] * (len(asked) + 1) + [0.0] * (len(rest) - 2) + [VERDICT_WEIGHT]  # the line's end counts
        return Example((*head, *asked, *rest), len(head)), weights

    def _denied(self, head: tuple[int, ...], question: str) -> Lesson:
        """That the question isn't answered."""
        prompt = (*head, *self._tokens(f" {question}"), *self._tokens(VERDICT))
        return Example((*prompt, self._tokens(NO)[0]), len(prompt)), [VERDICT_WEIGHT]

    def _written(self, head: tuple[int, ...], question: str) -> Lesson:
        target = (*self._tokens(f" {question}"), self._tokens(VERDICT)[0])
        return Example((*head, *target), len(head)), [1.0] * len(target)

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
        far = [[rng.choice(rng.choice(rows).ask) for _ in range(FAR)] for _ in step]
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


def _steps(rows: Sequence[Row], rng: random.Random) -> Iterator[list[Row]]:
    """The rows of every step, in another order in every epoch."""
    for _ in range(EPOCHS):
        order = rng.sample(rows, len(rows))
        yield from (order[at : at + ROWS_PER_STEP] for at in range(0, len(order), ROWS_PER_STEP))


def ensure_tutor(
    home: Home,
    runtime: Runtime,
    gguf: GGUFModel,
    sha: str,
    device: str = "auto",
    resident: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """The model's tutor; trained now if there is none that can be read."""
    path = tutor_path(home, sha)
    try:
        if path and read_tutor(path, gguf):
            return path
    except EngrainError:
        pass
    return make_tutor(runtime, gguf, user_tutor_path(home, sha), device, resident, progress=progress)


def make_tutor(
    runtime: Runtime,
    gguf: GGUFModel,
    out: Path,
    device: str = "auto",
    resident: bool = True,
    budget: float = BUDGET,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Train a tutor for `budget` seconds at most, and write it as a GGUF LoRA."""
    decoder = build_decoder(gguf, device, resident=resident)
    train_tutor(runtime, decoder, read_corpus(), budget=budget, progress=progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_gguf(extract(decoder, gguf), out, half=True)
    return out


def read_tutor(path: Path, gguf: GGUFModel) -> Adapter:
    """A tutor for PyTorch."""
    return load_gguf(path, gguf.hyper.n_head, gguf.hyper.n_head_kv)


def main() -> None:
    """`python -m engrain.update.train_tutor MODEL.gguf`: train its tutor, and print where it lies."""
    parser = argparse.ArgumentParser(description="Train a model's tutor, once.")
    parser.add_argument("model", nargs="?", help="a GGUF, or the name of a known model; default: the one engrain uses")
    parser.add_argument("--out", "-o", type=Path, help="a GGUF LoRA to write; default: where engrain finds it")
    parser.add_argument("--minutes", type=float, default=60.0, help="at most; default: %(default)s")
    options = parser.parse_args()
    home = open_home()
    chosen = models.resolve(home, options.model)
    out = options.out or user_tutor_path(home, models.sha256(home, chosen.path))

    def progress(done: int, total: int) -> None:
        print(f"\rstep {done} of {total}", end="", file=sys.stderr, flush=True)

    with Runtime.load(chosen.path) as runtime:
        make_tutor(runtime, open_gguf(chosen.path), out, budget=60 * options.minutes, progress=progress)
    print(file=sys.stderr)
    print(out)


if __name__ == "__main__":
    main()
