"""Is the candidate better, and did it forget? Asked of llama.cpp with the adapter attached, as it will be served.

Only the tutor weighs its replies where it trained, in PyTorch, within rounding of what it does when served.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from engrain.device import answering
from engrain.update import wording
from engrain.update.curriculum import Curriculum, Probe
from engrain.update.pack import Example
from engrain.update.study import Fact, Lesson

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime

PROBE_TOKENS = 24  # of a free answer; what is remembered comes whole
MIN_RECALL = 0.5
MAX_LOST = 0.2  # of the old questions answered before; one of them at least
MAX_GONE = 40  # questions about what was forgotten
MAX_KL = 0.5  # nats a token on unrelated prompts


@dataclass(frozen=True)
class Checks:
    """The gate's figures. Shares of probes: recall of the new, kept of the old, invented, came_back.

    kl: nats a token against the base on unrelated prompts. words: of an answer.
    """

    recall: float
    recall_before: float
    kept: float
    kept_before: float
    invented: float
    kl: float
    probes: int
    old_probes: int
    reason: str = ""
    came_back: float = 0.0
    words: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.reason

    def as_dict(self) -> dict[str, float | int | str]:
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


def answers(runtime: Runtime, questions: Sequence[str], max_tokens: int = 40) -> list[str]:
    """Greedy answers, each in a fresh conversation."""
    return answering.answers(runtime, [[{"role": "user", "content": q}] for q in questions], max_tokens)


def is_right(probe: Probe, answer: str) -> bool:
    return any(word in answer.lower() for word in probe.expects)


def ask(runtime: Runtime, probes: Sequence[Probe]) -> list[str]:
    return answers(runtime, [p.question for p in probes], PROBE_TOKENS)


def recall(probes: Sequence[Probe], found: Sequence[str]) -> float:
    """Share of probes whose answer holds at least one expected word; 1 without probes."""
    return sum(map(is_right, probes, found)) / len(probes) if probes else 1.0


def invented(runtime: Runtime, questions: Sequence[str], facts: Sequence[Fact]) -> float:
    """Share of never-told questions answered with the news of something that was told."""
    if not questions:
        return 0.0
    news = {w for f in facts for w in f.surprising[:1]}
    found = answers(runtime, questions, PROBE_TOKENS)
    return sum(any(w in text.lower() for w in news) for text in found) / len(questions)


def divergence(runtime: Runtime, anchors: Sequence[Example]) -> float:
    """Mean KL(base ‖ adapted) in nats a token over the anchors' top-k teachers, as llama.cpp computes it."""
    total, count = 0.0, 0
    for anchor in anchors:
        if anchor.teacher is None:
            continue
        ids, teacher = (t.numpy() for t in anchor.teacher)
        rows = runtime.logits(anchor.tokens[:-1], len(anchor.tokens) - anchor.start).astype(np.float64)
        log_p = rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)
        picked = np.take_along_axis(log_p, ids, axis=1)
        rest_t = np.log1p(-np.minimum(np.exp(teacher).sum(1), 1 - 1e-6))
        rest_p = np.log1p(-np.minimum(np.exp(picked).sum(1), 1 - 1e-6))
        kl = (np.exp(teacher) * (teacher - picked)).sum(1) + np.exp(rest_t) * (rest_t - rest_p)
        total, count = total + float(kl.sum()), count + len(kl)
    return total / max(1, count)


def came_back(runtime: Runtime, gone: Sequence[Lesson], standing: Sequence[Lesson] = ()) -> float:
    """Share of the questions for forgotten answers that are answered with all of an answer's new words.

    standing: lessons that are still taught; words of theirs betray nothing. Nor does a single letter, and a question
    too long to be asked isn't asked.
    """

    def betrays(words: Set[str]) -> bool:
        text = "".join(words)
        return len(text) > 1 or text.isdigit()

    def fits(question: str) -> bool:
        return len(runtime.prompt_tokens([{"role": "user", "content": question}])) < runtime.n_ctx

    known = {word for lesson in standing for word in wording.content_words(lesson.answer)}
    news = [set(wording.content_words(g.answer)) - set(wording.content_words(g.question)) - known for g in gone]
    pairs = zip((lesson.question for lesson in gone), news, strict=True)
    asked = [(question, words) for question, words in pairs if betrays(words) and fits(question)]
    found = answers(runtime, [question for question, _ in asked])
    hits = [words <= set(wording.words(text)) for (_, words), text in zip(asked, found, strict=True)]
    return sum(hits) / len(hits) if hits else 0.0


def judge(
    runtime: Runtime,
    curriculum: Curriculum,
    old: Sequence[Probe],
    before: Sequence[str],
    after: Sequence[str],
    anchors: Sequence[Example],
) -> Checks:
    """Weigh the attached candidate; `reason` is empty when it may become current.

    before, after: answers to the new facts' probes, then to `old` ones.
    """
    new, n = curriculum.probes, len(curriculum.probes)
    checks = Checks(
        recall=recall(new, after[:n]),
        recall_before=recall(new, before[:n]),
        kept=recall(old, after[n:]),
        kept_before=recall(old, before[n:]),
        invented=invented(runtime, curriculum.untold, curriculum.facts),
        kl=divergence(runtime, anchors),
        probes=n,
        old_probes=len(old),
        came_back=came_back(runtime, curriculum.past.gone[:MAX_GONE], curriculum.lessons),
        words=sum(len(text.split()) for text in after) / max(1, len(after)),
    )
    return replace(checks, reason=_reason(checks))


def recalls(checks: Checks) -> bool:
    """Whether it knows the new well enough, and no worse than before."""
    return not checks.probes or checks.recall >= max(MIN_RECALL, checks.recall_before)


def _reason(checks: Checks) -> str:
    """Why not; empty for a candidate that may become current."""
    if not recalls(checks):
        return f"it answers {checks.recall:.0%} of the questions kept for checking, {checks.recall_before:.0%} before"
    if checks.kept < checks.kept_before - max(MAX_LOST, 1 / max(1, checks.old_probes)):
        return f"it answers {checks.kept:.0%} of the questions about what was known, {checks.kept_before:.0%} before"
    if checks.kl > MAX_KL:
        return f"it moved {checks.kl:.2f} nats a token away from the base model on unrelated prompts"
    if checks.came_back:
        return f"it still answers {checks.came_back:.0%} of the questions about what was forgotten"
    return ""
