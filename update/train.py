"""The training loop: packs, AdamW, checkpoints that survive kill -9, a budget, and a stop before harm."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from engrain.update import checkpoint
from engrain.update.decoder import Decoder
from engrain.update.pack import Example, alike, pack_examples, plan_packs
from engrain.update.preference import Preference, log_likelihoods, preference_loss
from engrain.update.recorded import Gradient
from engrain.update.stem import Stem

_DEALT_OUT = ("contrast", "replay", "spare")  # kinds of examples of which every epoch has others


@dataclass(frozen=True)
class TrainOptions:
    """Settings of one run.

    lr: peak of a cosine schedule with a linear warm-up over the first tenth. pack_tokens: about one optimiser
    step's tokens. anchors_per_step: examples of `anchors` added to each step, weighted by anchor_weight; and
    preferences_per_step, by preference_weight.
    min_steps: epochs are doubled at most to reach them, for what is hardly trained is hardly sure.
    budget: seconds after which training ends early, with the schedule fitted to it; None means none.
    stop_loss: mean loss of an epoch below which nothing more is to be gained: driving it to zero harms.
    """

    lr: float = 4e-3
    epochs: int = 4
    min_steps: int = 60
    pack_tokens: int = 512
    anchors_per_step: int = 4
    anchor_weight: float = 1.0
    preferences_per_step: int = 2
    preference_weight: float = 1.0
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
    preferences: Sequence[Preference] = (),
    state: Path | None = None,
    on_step: Callable[[Step], None] | None = None,
    gradient: Gradient | None = None,
) -> TrainResult:
    """Train the decoder's adapters in place.

    Args:
        examples: what to learn; cross-entropy on their targets, or KL where they have a teacher.
        anchors: unrelated examples with a teacher, which hold the rest of the model in place.
        preferences: replies to move away from, and towards; a few in every step.
        state: folder for checkpoints; a matching one is resumed, and all are removed at the end.
        gradient: the decoder's, from an earlier run; None for a new one.

    The same seed, examples and machine give the same adapter. NaN or divergence ends the run at the last good
    step. KeyboardInterrupt writes a checkpoint and goes on upwards.
    """
    params = [p for g in decoder.groups() for p in g.parameters()]
    optimiser = torch.optim.AdamW(
        params, lr=options.lr, weight_decay=options.weight_decay, betas=(0.9, 0.99), fused=True
    )
    gradient = gradient or Gradient(decoder)
    plan = _plan(examples, anchors, len(preferences), options)
    # Where the base stays in its blocks, memory is what is short.
    stem = Stem(decoder, [e for step in plan for e in (*step.examples, *step.anchors)] if decoder.resident else [])
    key = _fingerprint(examples, anchors, preferences, options)
    reference = log_likelihoods(decoder, preferences)
    done, before = checkpoint.load_state(state, key, params, optimiser) if state else (0, 0.0)
    steps: list[Step] = []
    good = _snapshot(params)
    start = saved = time.monotonic()
    stopped = "done"
    epoch_losses: list[float] = []
    i = done
    try:
        while i < len(plan):
            planned = plan[i]
            _set_lr(optimiser, options, i, len(plan), before + time.monotonic() - start)
            pairs = [(preferences[k], reference[k]) for k in planned.preferences]
            loss, tokens = _step(gradient, stem, planned, pairs, params, optimiser, options)
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
            if planned.epoch_ends:
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


@dataclass(frozen=True)
class _Planned:
    """One step: examples and anchors, each of one pack, and places in the list of preferences."""

    examples: list[Example]
    anchors: list[Example]
    preferences: list[int]
    epoch_ends: bool


def _plan(
    examples: Sequence[Example], anchors: Sequence[Example], preferences: int, options: TrainOptions
) -> list[_Planned]:
    """All steps of all epochs.

    Contrast is dealt out over the epochs: not its wordings are to be learned, but the form of what wasn't told. So are
    replay and spare questions: a fact is held by many asked once rather than by few asked again and again.
    """
    generator = torch.Generator().manual_seed(options.seed)
    plan: list[_Planned] = []
    turn = _dealt(anchors, options.anchors_per_step, generator)
    rare = [e for e in examples if e.kind in _DEALT_OUT]
    always = [e for e in examples if e.kind not in _DEALT_OUT]
    one = len(plan_packs([*always, *rare[:: options.epochs]], options.pack_tokens))
    epochs = max(options.epochs, min(2 * options.epochs, math.ceil(options.min_steps / max(1, one))))
    for epoch in range(epochs):
        groups = plan_packs([*always, *rare[epoch::epochs]], options.pack_tokens, generator)
        if not groups:  # preferences alone
            groups = [[]] * math.ceil(preferences / options.preferences_per_step)
        for j, group in enumerate(groups):
            held = turn[len(plan) % len(turn)] if turn else []
            paired = _in_turn(range(preferences), options.preferences_per_step, len(plan))
            plan.append(_Planned(group, held, paired, j == len(groups) - 1))
    return plan


def _dealt(anchors: Sequence[Example], count: int, generator: torch.Generator) -> list[list[Example]]:
    """Anchors in an order drawn at random, so many for each step; plain texts by themselves, for they need a pack."""
    hands = []
    for part in alike(anchors) if count else []:
        order = torch.randperm(len(part), generator=generator).tolist()
        hands += [[part[k] for k in _in_turn(order, count, i)] for i in range(math.ceil(len(part) / count))]
    return [hands[i] for i in torch.randperm(len(hands), generator=generator).tolist()]


def _in_turn(order: Sequence[int], count: int, step: int) -> list[int]:
    """The next `count` of an order that is gone round again and again, each once at most."""
    return [order[(step * count + k) % len(order)] for k in range(min(count, len(order)))]


def _step(
    gradient: Gradient,
    stem: Stem,
    planned: _Planned,
    preferences: Sequence[tuple[Preference, Tensor]],
    params: Sequence[Tensor],
    optimiser: torch.optim.Optimizer,
    options: TrainOptions,
) -> tuple[float, int]:
    """One optimiser step -> mean loss of its examples' targets (nats; of its preferences without any), tokens."""
    mean, tokens = 0.0, 0
    if preferences:
        mean = _prefer(gradient.decoder, preferences, options.preference_weight)
        tokens += sum(len(e.tokens) for p, _ in preferences for e in p.examples)
    shares = ((planned.examples, 1.0), (planned.anchors, options.anchor_weight))
    group = [replace(e, weight=e.weight * unit) for part, share in shares for unit in _unit(part, share) for e in part]
    lessons = {id(e) for e in group[: len(planned.examples)]}
    if lessons:
        mean = 0.0
    for part in alike(group):
        pack = stem.under(pack_examples(part).to(gradient.decoder.embedding.device))
        nll = gradient(pack)
        tokens += len(pack.tokens)
        own = torch.tensor([id(e) in lessons for e in part], device=nll.device)[pack.owner]
        mean += float((nll * pack.weight)[own].sum())
    if math.isfinite(mean):
        norm = torch.nn.utils.clip_grad_norm_(params, options.clip, foreach=True)
        if torch.isfinite(norm):
            optimiser.step()
        else:
            mean = math.nan
    gradient.clear()
    return mean, tokens


def _prefer(decoder: Decoder, preferences: Sequence[tuple[Preference, Tensor]], weight: float) -> float:
    """Add the gradient of the preferences' mean loss -> that loss; nothing of it is kept, as `Gradient` wants it."""
    pairs, reference = zip(*preferences, strict=True)
    loss, mean = preference_loss(decoder, pairs, reference)
    (loss * weight).backward()
    return mean


def _unit(examples: Sequence[Example], share: float) -> list[float]:
    """What the weights of examples are multiplied by so that all their targets' make `share`; nothing without any."""
    whole = sum(e.weight * (len(e.tokens) - e.start) for e in examples)
    return [share / max(whole, 1e-6)] if examples else []


def _set_lr(optimiser: torch.optim.Optimizer, options: TrainOptions, step: int, total: int, seconds: float) -> None:
    """Linear warm-up, then half a cosine, over steps or over the budget, whichever is further along."""
    share = step / total
    if options.budget:
        share = max(share, min(1.0, seconds / options.budget))
    warm = min(1.0, (step + 1) / max(1, min(10, total // 10)))
    for group in optimiser.param_groups:
        group["lr"] = options.lr * warm * half_cosine(share)


def half_cosine(share: float) -> float:
    """What is left of a learning rate after a share of training (Loshchilov and Hutter, arXiv 1608.03983)."""
    return max(0.02, 0.5 * (1 + math.cos(math.pi * share)))


def _fingerprint(
    examples: Sequence[Example], anchors: Sequence[Example], preferences: Sequence[Preference], options: TrainOptions
) -> str:
    """Which run a checkpoint belongs to: same examples, same settings."""
    replies = [e for p in preferences for e in p.examples]
    rows = [[e.tokens, e.start, e.weight] for e in [*examples, *anchors, *replies]]
    return checkpoint.digest(json.dumps([rows, asdict(options)]).encode())


def _snapshot(params: Sequence[Tensor]) -> Sequence[Tensor]:
    return [p.detach().clone() for p in params]


@torch.no_grad()
def _restore(params: Sequence[Tensor], snapshot: Sequence[Tensor]) -> None:
    for p, s in zip(params, snapshot, strict=True):
        p.copy_(s)
