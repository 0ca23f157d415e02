"""The form that a correction is about: how it opens, whatever was asked, and replies to other messages that open so.

A correction can mean "this is the answer" or "answer like this". Which, the model tells itself: an opening set apart by
a mark ("Short answer:", "=>", "1.", "Dear Ann," on a line of its own) is form where the model wouldn't have begun so
by itself, and would do it for any message as readily as for the one that was corrected. Replies to other messages then
begin with it and go on as the model does that has the correction in context: it teaches itself without
(self-distillation, arXiv 2601.19897).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from engrain.update import wording
from engrain.update.decoder import Decoder
from engrain.update.generate import write
from engrain.update.likelihood import log_probabilities
from engrain.update.neutral import messages_from
from engrain.update.pack import Example
from engrain.update.scope import hidden_states
from engrain.update.study import Lesson

if TYPE_CHECKING:
    from engrain.device.interactions import Interaction
    from engrain.device.runtime import Runtime
    from engrain.device.template import Message

MAX_CORRECTIONS = 8  # whose form is looked for in one update
LESSONS = 40  # of one form, half of them messages like the corrected one
ODD, OWN = 6.0, 4.0  # nats: how unlike the model an opening is at least; how much likelier its own message makes it
_OTHERS = 8  # messages that an opening is measured against
_MESSAGE_TOKENS, _REPLY_TOKENS = 20, 40
_MARKS = re.compile(r"(?:[^\w\s]+|\d{1,2}[.)])(?=\s)")  # a list's, an arrow
_WORDS = re.compile(r"[^\s\d]+(?:[ \t]+[^\s\d]+){0,5}?(?:(?<=[:!*_])(?=\s)|(?=\n))")  # up to a mark, or the line's end


def form_lessons(
    runtime: Runtime, decoder: Decoder, corrected: Sequence[Interaction], neutral: Sequence[str], seed: int = 0
) -> list[Lesson]:
    """Replies in the forms of corrections to other messages; none for corrections that are about what was said.

    neutral: messages of all kinds, for a form is for all of them; several forms share them out.
    """
    texts = [it.correction or "" for it in corrected]
    formed = []
    for i, it in enumerate(corrected):
        begin = opening_of(runtime, decoder, it.user, texts[i], neutral[:_OTHERS], texts[:i] + texts[i + 1 :])
        if begin:
            formed.append((it, begin, messages_like(runtime, decoder, it.user, LESSONS // 2, seed)))
    pools = _shared_out(runtime, decoder, [(it.user, own) for it, _, own in formed], neutral[_OTHERS:])
    lessons = []
    for (it, begin, _), messages in zip(formed, pools, strict=True):
        lessons += [Lesson(m, r, "form", (it.id,)) for m, r in replies_like(runtime, decoder, it, begin, messages)]
    return lessons


def opening_of(
    runtime: Runtime,
    decoder: Decoder,
    message: str,
    correction: str,
    neutral: Sequence[str],
    corrections: Sequence[str] = (),
) -> str | None:
    """How a corrected reply opens, if that is its form and not what it says.

    neutral: messages of any kind, which an opening that says nothing goes with as well. corrections: other ones; what
    two open with is form. One word that is called out ("No!", "Ottawa!") says something, unless two do.
    """
    found = _MARKS.match(correction.strip()) or _WORDS.match(correction.strip())
    if not found or not correction.strip()[found.end() :].strip():
        return None
    begin = found[0]
    if any(other.strip().startswith(begin) for other in corrections):
        return begin
    if not neutral or (begin.endswith("!") and len(begin.split()) < 2):
        return None
    prompts = [runtime.prompt_tokens([{"role": "user", "content": m}]) for m in (message, *neutral)]
    tokens = runtime.tokenize(begin)
    scored = log_probabilities(decoder, [Example((*prompt, *tokens), len(prompt)) for prompt in prompts])
    own, *others = (float(each.sum()) for each in scored)
    expected = sum(others) / len(others)
    odd = found.re is _MARKS or expected < -ODD
    return begin if odd and own - expected < OWN else None


def messages_like(runtime: Runtime, decoder: Decoder, message: str, count: int, seed: int) -> list[str]:
    """Other messages that begin with the message's first word or first few, as the model goes on from them."""
    words = message.split()
    starts = [" ".join(words[: 1 + i % min(3, len(words))]) for i in range(2 * count)]
    texts = messages_from(runtime, decoder, starts, _MESSAGE_TOKENS, seed)
    return [m for m in texts if ("?" in m) == ("?" in message) and m != message][:count]


def replies_like(
    runtime: Runtime, decoder: Decoder, it: Interaction, begin: str, messages: Sequence[str]
) -> list[tuple[str, str]]:
    """Messages with replies that open with `begin`, and go on as after the correction; none that repeats it."""
    assert it.correction
    shown: list[Message] = [{"role": "user", "content": it.user}, {"role": "assistant", "content": it.correction}]
    tokens = runtime.tokenize(begin)
    prompts = [[*runtime.prompt_tokens([*shown, {"role": "user", "content": m}]), *tokens] for m in messages]
    drafts = write(runtime, decoder, prompts, max_tokens=_REPLY_TOKENS, temperature=0.0, seed=0)
    known = set(wording.content_words(it.correction[len(begin) :]))
    found = []
    for message, draft in zip(messages, drafts, strict=True):
        said = set(wording.content_words(draft))
        reply = wording.whole_sentences(begin + draft.rstrip())
        if len(reply) > len(begin) and 2 * len(said & known - set(wording.content_words(message))) < max(1, len(said)):
            found.append((message, reply))
    return found


def _shared_out(
    runtime: Runtime, decoder: Decoder, formed: Sequence[tuple[str, Sequence[str]]], neutral: Sequence[str]
) -> list[list[str]]:
    """For each form (its corrected message, some like it) up to LESSONS messages: of those like it and of neutral ones.

    Several forms share out all of them: each takes those that its message is nearest to, by the cosine of the base's
    last hidden states, standardised.
    """
    if len(formed) < 2:
        return [_mixed(own, neutral) for _, own in formed]
    like = [m for _, own in formed for m in own]
    corrected = [message for message, _ in formed]
    states = hidden_states(runtime, decoder, [*corrected, *like, *neutral])
    states = torch.nn.functional.normalize((states - states.mean(0)) / (states.std(0) + 1e-4), dim=1)
    best = (states[len(corrected) :] @ states[: len(corrected)].T).argmax(1).tolist()

    def own(form: int, messages: Sequence[str], nearest: Sequence[int]) -> list[str]:
        return [m for m, b in zip(messages, nearest, strict=True) if b == form]

    return [_mixed(own(i, like, best[: len(like)]), own(i, neutral, best[len(like) :])) for i in range(len(corrected))]


def _mixed(like: Sequence[str], neutral: Sequence[str]) -> list[str]:
    """LESSONS messages: half of them like the corrected one, if there are as many; neutral ones from all over."""
    chosen = like[: LESSONS // 2]
    spread = neutral[:: max(1, len(neutral) // (LESSONS - len(chosen)))]
    return list(dict.fromkeys((*chosen, *spread)))[:LESSONS]
