"""A candidate adapter asked the questions kept out of training, at falling strengths until it passes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engrain.device.home import Home
from engrain.device.scope import Scope
from engrain.quant.adapter import Adapter
from engrain.quant.gguf_lora import save_gguf
from engrain.update import gate, page
from engrain.update.curriculum import MAX_OLD_PROBES, Curriculum, Probe
from engrain.update.pack import Example

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime

STRENGTHS = (1.0, 0.85, 0.7)  # of a trained adapter: weaker ones drift less, and know a little less


class Exam:
    """The questions kept out of training: those of this update, and some from earlier ones."""

    def __init__(self, runtime: Runtime, old: Sequence[Probe], seed: int) -> None:
        order = np.random.default_rng(seed + len(old)).permutation(len(old))[:MAX_OLD_PROBES]
        self.old = [old[i] for i in order]
        self._runtime = runtime

    def ask_old(self, anew: bool) -> list[str]:
        """The attached adapter's answers to questions from earlier updates.

        anew: not those that are kept beside it from when it was checked, which it would give again.
        """
        said = [None if anew or not isinstance(probe.said, str) else probe.said for probe in self.old]
        asked = iter(gate.ask(self._runtime, [p for p, text in zip(self.old, said, strict=True) if text is None]))
        return [next(asked) if text is None else text for text in said]

    def without(self, answers: Collection[str], known: Sequence[str]) -> tuple[Exam, list[str]]:
        """The exam without old probes of these answers, and the given answers to what is left."""
        left = [(p, k) for p, k in zip(self.old, known, strict=True) if p.answer not in answers]
        other = Exam(self._runtime, (), 0)
        other.old = [p for p, _ in left]
        return other, [k for _, k in left]

    def missed(self, known: Sequence[str]) -> set[str]:
        """The old answers that are not among those given."""
        return {p.answer for p, text in zip(self.old, known, strict=True) if not gate.is_right(p, text)}

    def sit(self, new: Sequence[Probe], before: Sequence[str]) -> list[str]:
        """Answers to the new probes, then to old ones: to half of them, and the others if one of these is lost.

        before: the answers of before to all of them.
        """
        half = -(-len(self.old) // 2)
        after = gate.ask(self._runtime, [*new, *self.old[:half]])
        rows = zip(self.old[:half], before[len(new) : len(after)], after[len(new) :], strict=True)
        lost = any(gate.is_right(p, was) and not gate.is_right(p, now) for p, was, now in rows)
        return after + gate.ask(self._runtime, self.old[half:]) if lost else after

    def sheet(self, new: Sequence[Probe], before: Sequence[str], after: Sequence[str]) -> tuple[page.Asked, ...]:
        """Question by question, as far as they were asked after."""
        probes = [*new, *self.old][: len(after)]
        rows = zip(probes, before[: len(after)], after, strict=True)
        return tuple(
            page.Asked(p.question, was, now, gate.is_right(p, now), i >= len(new))
            for i, (p, was, now) in enumerate(rows)
        )


@dataclass(frozen=True)
class Candidate:
    """A trained adapter that isn't registered yet."""

    home: Home
    adapter: Adapter
    scope: Scope | None

    @contextmanager
    def attached(self, runtime: Runtime) -> Iterator[Callable[[float], None]]:
        """Attach it at a strength, as often as one likes; the runtime is bare afterwards."""
        file = self.home.work / "candidate.gguf"
        file.parent.mkdir(parents=True, exist_ok=True)
        save_gguf(self.adapter, file)
        try:
            yield lambda strength: runtime.attach(file, strength, name="candidate", scope=self.scope)
        finally:
            runtime.detach()
            file.unlink(missing_ok=True)


def weigh(
    runtime: Runtime,
    candidate: Candidate,
    exam: Exam,
    curriculum: Curriculum,
    before: Sequence[str],
    anchors: Sequence[Example],
    report: Callable[[int, str], None],
) -> tuple[float, list[str], gate.Checks]:
    """The first strength at which it passes, or the full one; its answers and checks.

    A candidate that doesn't know the new isn't tried at less strength: it would know less.
    """
    found: list[tuple[float, list[str], gate.Checks]] = []
    with candidate.attached(runtime) as attach:
        for i, strength in enumerate(STRENGTHS):
            report(i, f"at {strength:.0%} of its strength")
            attach(strength)
            after = exam.sit(curriculum.probes, before)
            old = exam.old[: len(after) - len(curriculum.probes)]
            checks = gate.judge(runtime, curriculum, old, before[: len(after)], after, anchors)
            found.append((strength, after, checks))
            if checks.passed or not gate.recalls(checks):
                break
    report(len(STRENGTHS), "")
    return found[-1] if checks.passed else found[0]
