"""What an update is made of: new facts in full, a little of every old one, what was never told, what is held back.

It is also what lies beside each adapter: `lessons.jsonl`, all that it was taught, with the interactions that each
lesson comes from, and `probes.jsonl`, the questions kept out of training, which later updates are checked with too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from engrain.device.home import Home
from engrain.device.registry import LESSONS
from engrain.update import questions, study
from engrain.update.contrast import untold_questions
from engrain.update.decoder import Decoder
from engrain.update.feedback import lessons_of_feedback
from engrain.update.study import Fact, Lesson

if TYPE_CHECKING:
    from engrain.device.interactions import Interaction
    from engrain.device.registry import Version
    from engrain.device.runtime import Runtime

PROBES = "probes.jsonl"
REPLAY, REPLAY_WEAK = 4, 10  # questions of an old fact; of one that the current adapter no longer answers
CONTRAST, CONTRAST_WEIGHT = 1 / 8, 2.0  # never-told questions for each lesson, and what each counts
CONTRAST_TIMES = 4  # that many of them: training deals them out over its epochs
MAX_PROBES, MAX_OLD_PROBES, UNTOLD_PROBES = 16, 24, 8
HELD_PLACE = 2  # of a fact's plain questions, the one kept for checking: good, and not the best


@dataclass(frozen=True)
class Probe:
    """A question that was kept out of training, the words of which a right answer holds one, and whence they come."""

    question: str
    expects: tuple[str, ...]
    source: tuple[int, ...] = ()
    answer: str = ""


Row = TypeVar("Row", Lesson, Probe)


@dataclass(frozen=True)
class Past:
    """What earlier updates taught: what still stands, the questions that check it, and what was forgotten since."""

    lessons: tuple[Lesson, ...] = ()
    probes: tuple[Probe, ...] = ()
    gone: tuple[Lesson, ...] = ()


@dataclass(frozen=True)
class Curriculum:
    """facts: new ones. lessons: to train on. probes: about the new facts. untold: nothing told answers these."""

    facts: list[Fact]
    lessons: list[Lesson]
    probes: list[Probe]
    untold: list[str]
    past: Past

    def in_scope(self) -> list[Lesson]:
        """All that the adapter is about, taught now or before; what is refused belongs to it."""
        return [*self.past.lessons, *self.lessons]

    def files(self) -> dict[str, bytes]:
        """What is kept beside the adapter, by name."""
        probes = dict.fromkeys((*self.past.probes, *self.probes))
        taught = (lesson for lesson in self.lessons if lesson.source)
        return {LESSONS: _rows(dict.fromkeys((*self.past.lessons, *taught))), PROBES: _rows(probes)}


def taught_before(parent: Version | None, known: Collection[int]) -> Past:
    """What the parent's files list. known: ids of the interactions that are still in the log."""
    lessons, probes = _read(parent, LESSONS, Lesson), _read(parent, PROBES, Probe)

    def stands(each: Lesson | Probe) -> bool:
        return set(each.source) <= set(known)

    return Past(
        tuple(filter(stands, lessons)),
        tuple(filter(stands, probes)),
        tuple(lesson for lesson in lessons if not stands(lesson)),
    )


def prepare(
    home: Home,
    runtime: Runtime,
    decoder: Decoder,
    model_sha: str,
    fresh: Sequence[Interaction],
    past: Past,
    weak: Collection[str],
    seed: int,
    report: Callable[[int, int, str], None],
) -> Curriculum:
    """Study new interactions, and put them together with the past.

    weak: old answers that the current adapter misses. Where something is gone, old facts are asked about in full
    again, since the weights then start anew.
    """
    facts = study.find_facts(runtime, fresh)
    said = [f.said for f in facts]
    report(0, len(said), "what was said")
    ground = questions.background(home, decoder, runtime, model_sha)
    information = questions.information(
        decoder, runtime, said, ground, lambda done, total: report(done, total, "what was said")
    )
    pooled = study.pooled_questions(facts, information)
    plain = [study.fluent_questions(runtime, decoder, s) for s in said]
    poor = [i for i, found in enumerate(plain) if len(found) < study.PLAIN // 2]
    written = study.write_questions(
        runtime, decoder, [facts[i] for i in poor], seed, lambda done, total: report(done, total, "writing questions")
    )
    for i, found in zip(poor, written, strict=True):
        plain[i] += found
    rich = [(f, p) for f, p in zip(facts, plain, strict=True) if len(p) > study.PLAIN // 2][:MAX_PROBES]
    probes = [Probe(p.pop(HELD_PLACE), f.surprising, f.source, f.answer) for f, p in rich]
    asked = [a + b for a, b in zip(plain, pooled, strict=True)]
    lessons = study.lessons_of(facts, asked) + lessons_of_feedback(runtime, fresh, seed)
    old = list(past.lessons) if past.gone else replay(past.lessons, weak, seed)
    untold = _untold(runtime, facts, asked, old, past, seed)
    lessons += old
    count = CONTRAST_TIMES * round(CONTRAST * len(lessons))
    never = untold[UNTOLD_PROBES : UNTOLD_PROBES + count]
    lessons += [Lesson(q, study.NOT_TOLD, "contrast", weight=CONTRAST_WEIGHT) for q in never]
    return Curriculum(facts, lessons, probes, untold[:UNTOLD_PROBES], past)


def replay(past: Sequence[Lesson], weak: Collection[str], seed: int) -> list[Lesson]:
    """A few questions for everything taught before, drawn anew for every update; more for what is weak."""
    order = np.random.default_rng(seed + len(past)).permutation(len(past))
    taken: Counter[str] = Counter()
    chosen = []
    for i in order:
        answer = past[i].answer
        if taken[answer] < (REPLAY_WEAK if answer in weak else REPLAY):
            taken[answer] += 1
            chosen.append(past[i])
    return chosen


def _untold(
    runtime: Runtime,
    facts: Sequence[Fact],
    asked: Sequence[list[str]],
    old: Sequence[Lesson],
    past: Past,
    seed: int,
) -> list[str]:
    """In the form of new and old questions alike."""
    before: dict[str, list[str]] = {}
    for lesson in old:
        if lesson.kind == "fact":
            before.setdefault(lesson.answer, []).append(lesson.question)
    everyone = [*facts, *(Fact(answer, answer, ()) for answer in before)]
    told = [*(f.said for f in facts), *(lesson.answer for lesson in past.lessons)]
    return untold_questions(runtime, everyone, [*asked, *before.values()], told, seed)


def _rows(records: Collection[Lesson] | Collection[Probe]) -> bytes:
    return "\n".join(json.dumps(asdict(each), ensure_ascii=False) for each in records).encode()


def _read(version: Version | None, name: str, kind: type[Row]) -> list[Row]:
    """The file's records; none where it is missing or damaged."""
    try:
        lines = (version.folder / name).read_text(encoding="utf-8").splitlines() if version else []
        return [kind(**_tuples(json.loads(line))) for line in lines]
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
