"""What thumbs and corrections teach: replies to give, replies not to give, and the form that a correction is about.

A correction can mean "this is the answer" or "answer in this form". Which, the model itself tells: it is shown the
correction and asked other messages that begin alike. Where it takes over how the correction begins, unasked, the
correction is about form, and those answers are lessons too: the model with the demonstration in context teaches itself
without (self-distillation, arXiv 2601.19897).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engrain.update import wording
from engrain.update.decoder import Decoder
from engrain.update.generate import write
from engrain.update.neutral import opening
from engrain.update.preference import Preference
from engrain.update.study import Lesson, to_examples

if TYPE_CHECKING:
    from engrain.device.interactions import Interaction
    from engrain.device.runtime import Runtime
    from engrain.device.template import Message

CORRECTED_TIMES = 4  # a correction among a dozen lessons a fact would hardly be heard
MAX_CORRECTIONS = 8  # whose form is looked for in one update
_ALIKE, _DRAFTS = 16, 3  # messages that begin like a corrected one, and drafts of a reply to each
_LEAST, _MOST = 3, 12  # lessons of one form
_OPENING = 2  # words of a correction that a reply must begin with
_REPLY_TOKENS = 48


def lessons_of_feedback(
    runtime: Runtime, decoder: Decoder, interactions: Sequence[Interaction], seed: int = 0
) -> list[Lesson]:
    """Corrected, liked and disliked replies under their messages, and lessons of form."""
    lessons = []
    corrected = [it for it in interactions if it.correction]
    for it in interactions:
        source = (it.id,)
        if it.correction:
            lessons += [Lesson(it.user, it.correction, "correction", source)] * CORRECTED_TIMES
        elif it.feedback == 1:
            lessons.append(Lesson(it.user, it.reply, "liked", source))
        if it.reply and (it.correction or it.feedback == -1):
            lessons.append(Lesson(it.user, it.reply, "disliked", source))
    for it in corrected[-MAX_CORRECTIONS:]:
        lessons += form_lessons(runtime, decoder, it, seed)
    return lessons


def form_lessons(runtime: Runtime, decoder: Decoder, it: Interaction, seed: int) -> list[Lesson]:
    """Replies in a correction's form to other messages, none if the model sees no form in it."""
    assert it.correction
    form = _begins(it.correction)
    shown: list[Message] = [{"role": "user", "content": it.user}, {"role": "assistant", "content": it.correction}]
    messages = _alike(runtime, decoder, it.user, seed)
    prompts = [runtime.prompt_tokens([*shown, {"role": "user", "content": m}]) for m in messages] * _DRAFTS
    drafts = write(runtime, decoder, prompts, max_tokens=_REPLY_TOKENS, temperature=0.7, seed=seed)
    found: dict[str, str] = {}
    for message, draft in zip(messages * _DRAFTS, drafts, strict=True):
        reply = wording.whole_sentences(draft)
        if reply and _begins(reply) == form and reply != it.correction:
            found.setdefault(message, reply)
    lessons = [Lesson(m, r, "form", (it.id,)) for m, r in list(found.items())[:_MOST]]
    return lessons if len(lessons) >= _LEAST else []


def _alike(runtime: Runtime, decoder: Decoder, message: str, seed: int) -> list[str]:
    """Other messages that begin with the message's first word or first few, as the model goes on from them."""
    words, head = message.split(), opening(runtime)
    starts = [" ".join(words[: 1 + i % min(3, len(words))]) for i in range(_ALIKE)]
    prompts = [head + runtime.tokenize(start) for start in starts]
    drafts = write(runtime, decoder, prompts, max_tokens=20, temperature=0.9, seed=seed, stop="\n?")
    texts = [(start + draft).strip() for start, draft in zip(starts, drafts, strict=True)]
    return [text for text in dict.fromkeys(texts) if text != message and len(text.split()) > 2]


def _begins(reply: str) -> list[str]:
    return reply.lower().split()[:_OPENING]


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
