"""The training loop: packs, AdamW, checkpoints that survive kill -9, a budget, and a stop before harm."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from engrain.update import checkpoint
from engrain.update.decoder import Decoder
from engrain.update.loss import pack_loss
from engrain.update.pack import Example, Pack, pack_examples, plan_packs


@dataclass(frozen=True)
class TrainOptions:
    """Settings of one run.

    lr: peak of a cosine schedule with a linear warm-up over the first tenth. pack_tokens: about one optimiser
    step's tokens. anchors_per_step: examples of `anchors` added to each step, weighted by anchor_weight.
    budget: seconds after which training ends early, with the schedule fitted to it; None means none.
    stop_loss: mean loss of an epoch below which nothing more is to be gained: driving it to zero harms.
    """

    lr: float = 4e-3
    epochs: int = 5
    pack_tokens: int = 512
    anchors_per_step: int = 8
    anchor_weight: float = 1.5
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0
    budget: float | None = None
    stop_loss: float = 0.02
    checkpoint_seconds: float = 15.0

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.epochs < 1 or self.pack_tokens < 8:
            raise ValueError(f"lr, epochs and pack_tokens must be positive: {self}")


@dataclass(frozen=True)
class Step:
    """What a step reports: of `total`, mean target loss in nats, tokens (padding not counted), seconds so far."""

    step: int
    total: int
    loss: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """steps: one entry a step. stopped: "done", "budget", "learned", or "diverged" (last good step kept)."""

    steps: tuple[Step, ...]
    stopped: str

    @property
    def seconds(self) -> float:
        return self.steps[-1].seconds if self.steps else 0.0


def train(
    decoder: Decoder,
    examples: Sequence[Example],
    options: TrainOptions,
    anchors: Sequence[Example] = (),
    state: Path | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> TrainResult:
    """Train the decoder's adapters in place.

    Args:
        examples: what to learn; cross-entropy on their targets, or KL where they have a teacher.
        anchors: unrelated examples with a teacher, which hold the rest of the model in place.
        state: folder for checkpoints; a matching one is resumed, and all are removed at the end.

    The same seed, examples and machine give the same adapter. NaN or divergence ends the run at the last good
    step. KeyboardInterrupt writes a checkpoint and goes on upwards.
    """
    params = [p for g in decoder.groups() for p in g.parameters()]
    optimiser = torch.optim.AdamW(
        params, lr=options.lr, weight_decay=options.weight_decay, betas=(0.9, 0.99), fused=True
    )
    plan = _plan(examples, anchors, options)
    key = _fingerprint(examples, anchors, options)
    done, before = checkpoint.load_state(state, key, params, optimiser) if state else (0, 0.0)
    steps: list[Step] = []
    good = _snapshot(params)
    start = saved = time.monotonic()
    stopped = "done"
    epoch_losses: list[float] = []
    i = done
    try:
        while i < len(plan):
            groups, epoch_ends = plan[i]
            _set_lr(optimiser, options, i, len(plan), before + time.monotonic() - start)
            loss, tokens = _step(decoder, [pack_examples(g) for g in groups], params, optimiser, options)
            if not math.isfinite(loss) or (epoch_losses and loss > 4 * max(epoch_losses[0], 1.0)):
                _restore(params, good)
                stopped = "diverged"
                break
            i += 1
            epoch_losses.append(loss)
            now = time.monotonic()
            steps.append(Step(i, len(plan), loss, tokens, before + now - start))
            if on_step:
                on_step(steps[-1])
            if i % 8 == 0:
                good = _snapshot(params)
            if state and now - saved > options.checkpoint_seconds:
                checkpoint.save_state(state, key, params, optimiser, i, steps[-1].seconds)
                saved = now
            if options.budget and steps[-1].seconds > options.budget:
                stopped = "budget"
                break
            if epoch_ends:
                if sum(epoch_losses) / len(epoch_losses) < options.stop_loss:
                    stopped = "learned"
                    break
                epoch_losses = []
    except KeyboardInterrupt:
        if state:
            checkpoint.save_state(state, key, params, optimiser, i, before + time.monotonic() - start)
        raise
    if state:
        checkpoint.clear(state)
    return TrainResult(tuple(steps), stopped)


def _plan(
    examples: Sequence[Example], anchors: Sequence[Example], options: TrainOptions
) -> list[tuple[list[list[Example]], bool]]:
    """All steps of all epochs: the groups to pack, and whether the step ends an epoch.

    Contrast is dealt out over the epochs: not its wordings are to be learned, but the form of what wasn't told.
    """
    generator = torch.Generator().manual_seed(options.seed)
    plan: list[tuple[list[list[Example]], bool]] = []
    turn = torch.randperm(len(anchors), generator=generator).tolist()
    rare = [e for e in examples if e.kind == "contrast"]
    always = [e for e in examples if e.kind != "contrast"]
    for epoch in range(options.epochs):
        groups = plan_packs([*always, *rare[epoch :: options.epochs]], options.pack_tokens, generator)
        for j, group in enumerate(groups):
            some = [anchors[turn[(len(plan) * options.anchors_per_step + k) % len(turn)]] for k in
                    range(min(options.anchors_per_step, len(turn)))]  # fmt: skip
            plan.append(([group, some] if some else [group], j == len(groups) - 1))
    return plan


def _step(
    decoder: Decoder,
    packs: list[Pack],
    params: Sequence[Tensor],
    optimiser: torch.optim.Optimizer,
    options: TrainOptions,
) -> tuple[float, int]:
    """One optimiser step -> mean loss of the first pack's targets (nats), tokens processed."""
    mean, tokens = 0.0, 0
    for j, pack in enumerate(packs):
        loss, nll = pack_loss(decoder, pack)
        share = 1.0 if j == 0 else options.anchor_weight
        (loss * (share / pack.weight.sum().clamp_min(1e-6))).backward()
        tokens += len(pack.tokens)
        if j == 0:
            mean = float((nll * pack.weight).sum() / pack.weight.sum())
    if math.isfinite(mean):
        norm = torch.nn.utils.clip_grad_norm_(params, options.clip, foreach=True)
        if torch.isfinite(norm):
            optimiser.step()
        else:
            mean = math.nan
    optimiser.zero_grad(set_to_none=True)
    return mean, tokens


def _set_lr(optimiser: torch.optim.Optimizer, options: TrainOptions, step: int, total: int, seconds: float) -> None:
    """Linear warm-up, then half a cosine, over steps or over the budget, whichever is further along."""
    share = step / total
    if options.budget:
        share = max(share, min(1.0, seconds / options.budget))
    warm = min(1.0, (step + 1) / max(1, min(10, total // 10)))
    for group in optimiser.param_groups:
        group["lr"] = options.lr * warm * max(0.02, 0.5 * (1 + math.cos(math.pi * share)))


def _fingerprint(examples: Sequence[Example], anchors: Sequence[Example], options: TrainOptions) -> str:
    """Which run a checkpoint belongs to: same examples, same settings."""
    rows = [[e.tokens, e.start, e.weight] for e in [*examples, *anchors]]
    return checkpoint.digest(json.dumps([rows, asdict(options)]).encode())


def _snapshot(params: Sequence[Tensor]) -> Sequence[Tensor]:
    return [p.detach().clone() for p in params]


@torch.no_grad()
def _restore(params: Sequence[Tensor], snapshot: Sequence[Tensor]) -> None:
    for p, s in zip(params, snapshot, strict=True):
        p.copy_(s)
