"""Is the candidate better, and did it forget? Asked of llama.cpp with the adapter attached, as it will be served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from engrain.update import wording
from engrain.update.pack import Example
from engrain.update.study import Curriculum, Fact, Lesson, Probe

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime

MIN_RECALL = 0.5
MAX_GONE = 40  # questions about what was forgotten
MAX_KL = 0.5  # nats a token on unrelated prompts


@dataclass(frozen=True)
class Checks:
    """The gate's figures. recall, invented, came_back: shares of probes; kl: nats a token against the base."""

    recall: float
    recall_before: float
    invented: float
    kl: float
    probes: int
    reason: str = ""
    came_back: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.reason

    def as_dict(self) -> dict[str, float | int | str]:
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


def answers(runtime: Runtime, questions: Sequence[str], max_tokens: int = 40) -> list[str]:
    """Greedy answers, each in a fresh conversation."""
    prompts = [runtime.prompt_tokens([{"role": "user", "content": q}]) for q in questions]
    return [runtime.detokenize(a) for a in runtime.generate_batch(prompts, max_tokens=max_tokens)]


def recall(runtime: Runtime, probes: Sequence[Probe]) -> float:
    """Share of probes whose answer holds at least one expected word."""
    if not probes:
        return 1.0
    found = answers(runtime, [p.question for p in probes])
    hits = [any(w in text.lower() for w in p.expects) for p, text in zip(probes, found, strict=True)]
    return sum(hits) / len(hits)


def invented(runtime: Runtime, questions: Sequence[str], facts: Sequence[Fact]) -> float:
    """Share of never-told questions answered with the news of something that was told."""
    if not questions:
        return 0.0
    news = {w for f in facts for w in f.surprising[:1]}
    found = answers(runtime, questions)
    return sum(any(w in text.lower() for w in news) for text in found) / len(questions)


def divergence(runtime: Runtime, anchors: Sequence[Example]) -> float:
    """Mean KL(base ‖ adapted) in nats a token over the anchors' top-k teachers, as llama.cpp computes it."""
    total, count = 0.0, 0
    for anchor in anchors:
        if anchor.teacher is None:
            continue
        ids, teacher = (t.numpy() for t in anchor.teacher)
        rows = runtime.logits(anchor.tokens)[anchor.start - 1 : len(anchor.tokens) - 1].astype(np.float64)
        log_p = rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)
        picked = np.take_along_axis(log_p, ids, axis=1)
        rest_t = np.log1p(-np.minimum(np.exp(teacher).sum(1), 1 - 1e-6))
        rest_p = np.log1p(-np.minimum(np.exp(picked).sum(1), 1 - 1e-6))
        kl = (np.exp(teacher) * (teacher - picked)).sum(1) + np.exp(rest_t) * (rest_t - rest_p)
        total, count = total + float(kl.sum()), count + len(kl)
    return total / max(1, count)


def came_back(runtime: Runtime, gone: Sequence[Lesson]) -> float:
    """Share of the questions for forgotten answers that are answered with all of an answer's new words."""
    if not gone:
        return 0.0
    found = answers(runtime, [lesson.question for lesson in gone])
    hits = 0
    for lesson, text in zip(gone, found, strict=True):
        news = set(wording.content_words(lesson.answer)) - set(wording.content_words(lesson.question))
        hits += bool(news) and news <= set(wording.words(text))
    return hits / len(gone)


def judge(runtime: Runtime, before: float, curriculum: Curriculum, anchors: Sequence[Example]) -> Checks:
    """Weigh the attached candidate; `reason` is empty when it may become current."""
    probes = curriculum.probes
    after = recall(runtime, probes)
    made_up = invented(runtime, curriculum.untold, curriculum.facts)
    kl = divergence(runtime, anchors)
    back = came_back(runtime, curriculum.gone[:MAX_GONE])
    reason = ""
    if probes and after < max(MIN_RECALL, before):
        reason = f"it answers {after:.0%} of the questions kept for checking, {before:.0%} before"
    elif kl > MAX_KL:
        reason = f"it moved {kl:.2f} nats a token away from the base model on unrelated prompts"
    elif back:
        reason = f"it still answers {back:.0%} of the questions about what was forgotten"
    return Checks(after, before, made_up, kl, len(probes), reason, back)
