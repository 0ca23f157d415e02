"""What an update is made of: new facts in full, a little of every old one, what was never told, what is held back.

It is also what lies beside each adapter: `lessons.jsonl`, all that it was taught, with the interactions that each
lesson comes from, and `probes.jsonl`, the questions kept out of training, which later updates are checked with too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from engrain.device.registry import LESSONS, PROBES
from engrain.device.scope import NOT_TOLD
from engrain.quant.files import read_rows
from engrain.update import study, wording
from engrain.update.contrast import untold_questions
from engrain.update.decoder import Decoder
from engrain.update.feedback import lessons_of_feedback
from engrain.update.reader import Reader
from engrain.update.study import Fact, Lesson
from engrain.update.supersede import restated, standing, superseded
from engrain.update.tutor import Tutor

if TYPE_CHECKING:
    from engrain.device.interactions import Interaction
    from engrain.device.registry import Version
    from engrain.device.runtime import Runtime

REPLAY, REPLAY_WEAK = 3, 10  # questions an epoch of an old fact; of one that the current adapter no longer answers
REPLAY_FEEDBACK, REPLAY_FORM = 4, 8  # lessons of a correction or a rating; of a form
CONTRAST = 1 / 16  # never-told questions for each lesson
EPOCHS = 3  # over which training deals out contrast, replay and spare questions, other ones in each
MAX_PROBES, MAX_OLD_PROBES, UNTOLD_PROBES = 16, 12, 6
HELD_PLACE = 2  # of a fact's questions, the one kept for checking: neither the surest nor the oddest
FEW = 5  # questions of a fact, of which none is spared for checking
MAX_OLD_NEAR = 16  # old facts near which new never-told questions are looked for


@dataclass(frozen=True)
class Probe:
    """A question that was kept out of training, the words of which a right answer holds one, and whence they come.

    said: what the adapter that it lies beside answered; None where it wasn't asked.
    """

    question: str
    expects: tuple[str, ...]
    source: tuple[int, ...] = ()
    answer: str = ""
    said: str | None = field(default=None, compare=False)


Row = TypeVar("Row", Lesson, Probe)


@dataclass(frozen=True)
class Past:
    """What earlier updates taught: what still stands, the questions that check it, and what was forgotten since.

    anew: what was forgotten is in the weights, maybe of something that was replaced since, so they start anew.
    """

    lessons: tuple[Lesson, ...] = ()
    probes: tuple[Probe, ...] = ()
    gone: tuple[Lesson, ...] = ()
    anew: bool = False

    def without(self, answers: Collection[str]) -> Past:
        """Less all that was taught with these answers."""
        return replace(
            self,
            lessons=tuple(lesson for lesson in self.lessons if lesson.answer not in answers),
            probes=tuple(probe for probe in self.probes if probe.answer not in answers),
        )


@dataclass(frozen=True)
class Curriculum:
    """facts: new ones. lessons: to train on. probes: about the new facts. untold: nothing told answers these.

    past: without what the new facts replace; replaced: the answers that this was.
    """

    facts: list[Fact]
    lessons: list[Lesson]
    probes: list[Probe]
    untold: list[str]
    past: Past
    replaced: frozenset[str] = frozenset()

    def in_scope(self) -> list[Lesson]:
        """All that the adapter is about, taught now or before; what is refused belongs to it."""
        return [*self.lessons, *self.past.lessons]

    @property
    def sources(self) -> set[int]:
        """Ids of the interactions that the lessons come from."""
        return {id for lesson in self.lessons for id in lesson.source}

    @property
    def is_about_form(self) -> bool:
        """Whether replies to messages of any kind are to change."""
        return any(lesson.kind == "form" for lesson in self.in_scope())

    def files(self, answers: Mapping[str, str]) -> dict[str, bytes]:
        """What is kept beside the adapter, by name. answers: its own, by the question."""
        every = dict.fromkeys((*self.past.probes, *self.probes))
        probes = [replace(probe, said=answers.get(probe.question)) for probe in every]
        taught = (lesson for lesson in self.lessons if lesson.source and lesson.kind != "replay")
        return {LESSONS: _rows(dict.fromkeys((*self.past.lessons, *taught))), PROBES: _rows(probes)}


def taught_before(parent: Version | None, known: Collection[int], seen: Collection[int] = ()) -> Past:
    """What the parent's files list. known: ids of the interactions that are still in the log; seen: by its weights."""
    lessons, probes = _read(parent, LESSONS, Lesson), _read(parent, PROBES, Probe)

    def stands(each: Lesson | Probe) -> bool:
        return set(each.source) <= set(known)

    gone = tuple(lesson for lesson in lessons if not stands(lesson))
    anew = bool(gone) or not set(seen) <= set(known)
    return Past(tuple(filter(stands, lessons)), tuple(filter(stands, probes)), gone, anew)


def prepare(
    runtime: Runtime,
    decoder: Decoder,
    tutor: Tutor,
    reader: Reader,
    fresh: Sequence[Interaction],
    since: Sequence[Interaction],
    past: Past,
    weak: Collection[str],
    neutral: Sequence[str],
    seed: int,
    report: Callable[[int, int, str], None],
) -> Curriculum:
    """Study new interactions, and put them together with the past.

    since: all from the first of the new ones on; what is learned anew isn't the last that was said.
    weak: old answers that the current adapter misses. neutral: messages of all kinds. Where the weights start anew,
    old facts are asked about in full again.
    """
    facts = study.find_facts(
        runtime, decoder, reader, fresh, seed, lambda done, total: report(done, total, "what was said")
    )
    facts = standing(tutor, reader, facts, since)
    replaced = superseded(tutor, reader, facts, fresh, past.lessons)
    facts = study.with_surprising(runtime, decoder, restated(facts, replaced))
    asked = study.questions_of(tutor, facts, seed, lambda done, total: report(done, total, "writing questions"))
    known = {word for lesson in past.lessons for word in wording.content_words(lesson.answer)}
    rich = [(f, own) for f, own in zip(facts, asked, strict=True) if len(own) > FEW][:MAX_PROBES]
    probes = [_probe(f, own.pop(HELD_PLACE), known) for f, own in rich]
    lessons = study.lessons_of(facts, asked) + lessons_of_feedback(runtime, decoder, fresh, neutral, seed)
    for lesson in past.lessons:
        if new := replaced.get(lesson.answer):
            lessons.append(replace(lesson, answer=new.answer, source=new.source))
    past = past.without(replaced)
    old = list(past.lessons) if past.anew else replay(past.lessons, weak, seed)
    before = list(dict.fromkeys(lesson.answer for lesson in old if lesson.kind in ("fact", "replay")))
    told = [*(f.said for f in facts), *(lesson.answer for lesson in past.lessons if lesson.kind == "fact")]
    lessons += old
    # Measured against the new alone: what was refused before goes on being refused, and more of it costs recall.
    count = EPOCHS * round(CONTRAST * sum(lesson.kind != "replay" for lesson in lessons))
    near = max(0, UNTOLD_PROBES + count - len(facts))  # old facts: one question near each does
    report(0, 1, "what wasn't told")
    untold = untold_questions(tutor, [*(f.said for f in facts), *before[: min(near, MAX_OLD_NEAR)]], told, seed)
    never = untold[UNTOLD_PROBES : UNTOLD_PROBES + count]
    lessons += [Lesson(q, NOT_TOLD, "contrast") for q in never]
    return Curriculum(facts, lessons, probes, untold[:UNTOLD_PROBES], past, frozenset(replaced))


def _probe(fact: Fact, question: str, known: Collection[str]) -> Probe:
    """A right answer holds words that stand neither in the question nor in what was taught before, if there are any."""
    news = tuple(w for w in fact.surprising if w not in known and w not in question.lower())
    return Probe(question, news or fact.surprising, fact.source, fact.answer)


def replay(past: Sequence[Lesson], weak: Collection[str], seed: int) -> list[Lesson]:
    """Some of all that was taught before, drawn anew for every update, more of what is weak.

    A fact's questions are of kind "replay", enough for every epoch to have others; feedback is the same in all.
    """
    order = np.random.default_rng(seed + len(past)).permutation(len(past))
    taken: dict[object, list[Lesson]] = {}
    for i in order:
        lesson = past[i]
        own = taken.setdefault(lesson.source if lesson.kind == "form" else lesson.answer, [])
        each = REPLAY_WEAK if lesson.answer in weak else REPLAY
        if len(own) < {"fact": EPOCHS * each, "form": REPLAY_FORM}.get(lesson.kind, REPLAY_FEEDBACK):
            own.append(lesson)
    return [
        replace(lesson, kind="replay") if lesson.kind == "fact" else lesson for own in taken.values() for lesson in own
    ]


def _rows(records: Collection[Lesson] | Collection[Probe]) -> bytes:
    return "\n".join(json.dumps(asdict(each), ensure_ascii=False) for each in records).encode()


def _read(version: Version | None, name: str, kind: type[Row]) -> list[Row]:
    """The file's records; none where it is missing or damaged."""
    try:
        rows = read_rows(version.folder / name) if version else []
        return [kind(**_tuples(row)) for row in rows]
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
