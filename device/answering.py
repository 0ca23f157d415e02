"""Who answers: the adapter where a message is its own and one of its replies counts, the base model elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from engrain.device import bearing, tutor
from engrain.device.recall import FEW, Said
from engrain.device.sampling import Reply, Sampler
from engrain.device.scope import Coverage, Scale

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime
    from engrain.device.template import Message

Bearings = Callable[[Sequence[str]], np.ndarray]

_RECENT = 3  # messages: the last exchange, and what is asked now
_BEGUN = 12  # tokens of a free reply, in which memory would show
_BARE: tuple[bool, list[int]] = (False, [])  # the base model answers, from the first token on


def respond(
    runtime: Runtime,
    messages: Sequence[Message],
    covered: Coverage,
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    seed: int | None = None,
    on_finish: Callable[[Reply], None] = lambda reply: None,
) -> Generator[str, None, None]:
    """The reply in pieces, as `Runtime.stream` gives them; one that is remembered comes as a whole, as it was taught.

    covered: of the last message, from `Runtime.covers`.
    """

    def free() -> Generator[str, None, None]:
        adapted, begun = _begun(runtime, [runtime.prompt_tokens(messages)], [covered])[0]
        runtime.serve(adapted)
        return runtime.stream(
            messages, max_tokens=max_tokens, temperature=temperature, seed=seed, begun=begun, on_finish=on_finish
        )

    if not covered.checked:
        return free()
    said = _remembered(runtime, [messages], [covered])[0]

    def remembered(said: str) -> Generator[str, None, None]:
        yield said
        prompt = runtime.prompt_tokens(_recent(messages))
        on_finish(Reply(said, len(prompt), len(runtime.tokenize(said)), finished=True))

    return free() if said is None else remembered(said)


def answers(runtime: Runtime, prompts: Sequence[Sequence[Message]], max_tokens: int) -> list[str]:
    """Greedy replies to conversations side by side, by whom `respond` would have them answered."""
    covered = [runtime.covers(messages[-1]["content"]) for messages in prompts]
    tokens = [runtime.prompt_tokens(messages) for messages in prompts]
    checked = [i for i, each in enumerate(covered) if each.checked]
    said = _remembered(runtime, [prompts[i] for i in checked], [covered[i] for i in checked])
    replies = dict(zip(checked, said, strict=True))
    left = [i for i in range(len(prompts)) if replies.get(i) is None]
    try:
        own = dict(zip(left, _begun(runtime, [tokens[i] for i in left], [covered[i] for i in left]), strict=True))
        for adapted in (True, False):
            free = [i for i in left if own[i][0] == adapted]
            runtime.serve(adapted)
            found = runtime.generate_batch([[*tokens[i], *own[i][1]] for i in free], max_tokens)
            whole = {i: [*own[i][1], *more][:max_tokens] for i, more in zip(free, found, strict=True)}
            replies |= {i: runtime.reply_text(tokens) for i, tokens in whole.items()}
    finally:
        runtime.serve(True)
    return [replies[i] or "" for i in range(len(prompts))]


def is_adapters(runtime: Runtime, message: str) -> bool:
    """Whether the adapter answers a conversation's first message, from memory or freely, and not the base model."""
    covered, messages = runtime.covers(message), [{"role": "user", "content": message}]
    if covered.checked and _remembered(runtime, [messages], [covered])[0] is not None:
        return True
    return _begun(runtime, [runtime.prompt_tokens(messages)], [covered])[0] != _BARE


def _begun(
    runtime: Runtime, prompts: Sequence[Sequence[int]], covered: Sequence[Coverage]
) -> list[tuple[bool, list[int]]]:
    """Who goes on from each prompt (token ids), the adapter or the base model, and after which tokens of the reply.

    A form of replies is for messages about anything, and to those the adapter might say a fact that it was taught.
    Then it tries to begin otherwise, and where it comes to a fact still, the base model goes on from before that.
    """
    found: list[tuple[bool, list[int]]] = [(each.free, []) for each in covered]
    formed = [i for i, each in enumerate(covered) if each.free and each.formed]
    if not formed:
        return found
    runtime.serve(True)
    begun = runtime.generate_batch([prompts[i] for i in formed], _BEGUN)
    again = [k for k, tokens in enumerate(begun) if _recited(runtime, tokens) == 0]
    others = [Sampler(barred=lambda token: runtime.may_begin([token])) for _ in again]
    for k, tokens in zip(
        again, runtime.generate_batch([prompts[formed[k]] for k in again], _BEGUN, others), strict=True
    ):
        begun[k] = tokens
    for i, tokens in zip(formed, begun, strict=True):
        at = _recited(runtime, tokens) if tokens else 0
        # One that has ended goes on from its first token alone, and may end once more.
        found[i] = (True, tokens if len(tokens) == _BEGUN else tokens[:1]) if at is None else (False, tokens[:at])
    return found


def _recited(runtime: Runtime, tokens: Sequence[int]) -> int | None:
    """Where in a reply's beginning memory begins."""
    return next((at for at in range(len(tokens)) if runtime.recites(tokens[at:])), None)


def _remembered(
    runtime: Runtime, prompts: Sequence[Sequence[Message]], covered: Sequence[Coverage]
) -> list[str | None]:
    """What the adapter says to messages that it is about, None where that doesn't count.

    Mostly it is one of the few likeliest, which are found in half the time.
    """
    asked = [runtime.prompt_tokens(_recent(messages)) for messages in prompts]
    if runtime.has_tutor:
        scale, sure = tutor.SCALE, attrgetter("among")
        weighed = [_once(tutor.Bearing(runtime, each.message)) for each in covered]
    else:
        scale, sure = Scale(), attrgetter("log_probability")
        weighed = [_once(partial(bearing.bearings, runtime, question=each.message)) for each in covered]

    def found(replies: Sequence[Said]) -> dict[str, float]:
        """Two that are one text but for their tokens count as the likelier."""
        return {runtime.detokenize(each.tokens).strip(): sure(each) for each in reversed(replies)}

    said = [
        each.settle(found(few), bearings, scale, clearly=True)
        for each, few, bearings in zip(covered, runtime.recall(asked, FEW), weighed, strict=True)
    ]
    left = [i for i, reply in enumerate(said) if reply is None]
    for i, replies in zip(left, runtime.recall([asked[i] for i in left]), strict=True):
        said[i] = covered[i].settle(found(replies), weighed[i], scale)
    return said


def _once(bearings: Bearings) -> Bearings:
    """Each statement weighed once: those of the first few replies come again among all."""
    known: dict[str, float] = {}

    def weigh(statements: Sequence[str]) -> np.ndarray:
        if new := [each for each in dict.fromkeys(statements) if each not in known]:
            known.update(zip(new, bearings(new).tolist(), strict=True))
        return np.array([known[each] for each in statements])

    return weigh


def _recent(messages: Sequence[Message]) -> list[Message]:
    """What memory is asked with: it was trained on questions alone, and a long history would be read once more."""
    head = [each for each in messages[:1] if each["role"] == "system"]
    return [*head, *messages[len(head) :][-_RECENT:]]
