"""What thumbs and corrections teach: replies to give, replies not to give, and the form of corrections (`form`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engrain.update.decoder import Decoder
from engrain.update.form import MAX_CORRECTIONS, form_lessons
from engrain.update.preference import Preference
from engrain.update.study import Lesson, to_examples

if TYPE_CHECKING:
    from engrain.device.interactions import Interaction
    from engrain.device.runtime import Runtime

CORRECTED_TIMES = 4  # a correction among a dozen lessons a fact would hardly be heard; of its form there are many


def lessons_of_feedback(
    runtime: Runtime, decoder: Decoder, interactions: Sequence[Interaction], neutral: Sequence[str] = (), seed: int = 0
) -> list[Lesson]:
    """Corrected, liked and disliked replies under their messages, and lessons of form.

    neutral: messages of all kinds, to some of which the form of a correction is carried over.
    """
    corrected = [it for it in interactions if it.correction]
    lessons = form_lessons(runtime, decoder, corrected[-MAX_CORRECTIONS:], neutral, seed)
    formed = {lesson.source for lesson in lessons}
    for it in interactions:
        source = (it.id,)
        if it.correction:
            times = 1 if source in formed else CORRECTED_TIMES
            lessons += [Lesson(it.user, it.correction, "correction", source)] * times
        elif it.feedback == 1:
            lessons.append(Lesson(it.user, it.reply, "liked", source))
        if it.reply and (it.correction or it.feedback == -1):
            lessons.append(Lesson(it.user, it.reply, "disliked", source))
    return lessons


def preferences_of(runtime: Runtime, lessons: Sequence[Lesson]) -> list[Preference]:
    """Each disliked reply, with the correction of the same interaction where there is one."""
    chosen = {lesson.source: lesson for lesson in lessons if lesson.kind == "correction"}
    found = []
    for lesson in lessons:
        if lesson.kind == "disliked":
            better = chosen.get(lesson.source)
            (rejected,) = to_examples(runtime, [lesson])
            found.append(Preference(rejected, to_examples(runtime, [better])[0] if better else None))
    return found
