"""Who answers: the adapter where a message is its own and it is sure of its reply, the base model elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from engrain.device.bearing import bearing
from engrain.device.sampling import Sampler
from engrain.device.scope import Coverage

if TYPE_CHECKING:
    from engrain.device.runtime import Reply, Runtime
    from engrain.device.template import Message

_DRAFT = 64  # tokens after which a reply that must be sure of itself is long enough to be judged


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
    """The reply in pieces, as `Runtime.stream` gives them; one that is checked comes when it is whole.

    covered: of the last message, from `Runtime.covers`.
    """
    stream = partial(
        runtime.stream, messages, max_tokens=max_tokens, temperature=temperature, seed=seed, on_finish=on_finish
    )

    def settled(unchecked: Generator[str, None, None]) -> Generator[str, None, None]:
        size = min(max_tokens, _DRAFT)
        draft = runtime.complete(messages, max_tokens=size, temperature=temperature, seed=seed, watch=True)
        said = _settle(runtime, covered, draft.text, draft.certainty)
        if said is None:
            runtime.serve(False)
            yield from stream()
        elif said == draft.text and not draft.finished and size < max_tokens:
            yield from unchecked
        else:
            on_finish(replace(draft, text=said))
            yield said

    runtime.serve(bool(covered))
    whole = stream()  # even if it isn't used, a prompt that is too long is told here
    return settled(whole) if covered.checked else whole


def answers(runtime: Runtime, prompts: Sequence[Sequence[Message]], max_tokens: int) -> list[str]:
    """Greedy replies to conversations side by side, by whom `respond` would have them answered."""
    covered = [runtime.covers(messages[-1]["content"]) for messages in prompts]
    tokens = [runtime.prompt_tokens(messages) for messages in prompts]
    replies: list[str | None] = [None] * len(prompts)
    try:
        for adapted in (True, False):
            places = [i for i, each in enumerate(replies) if each is None and (covered[i] or not adapted)]
            samplers = [Sampler(watch=covered[i].checked) for i in places]
            runtime.serve(adapted)
            found = runtime.generate_batch([tokens[i] for i in places], max_tokens, samplers=samplers)
            for i, sampler, reply in zip(places, samplers, found, strict=True):
                text = runtime.detokenize(reply)
                replies[i] = _settle(runtime, covered[i], text, sampler.certainty) if adapted else text
    finally:
        runtime.serve(True)
    return [reply or "" for reply in replies]


def _settle(runtime: Runtime, covered: Coverage, reply: str, certainty: float) -> str | None:
    return covered.settle(reply, certainty, lambda: bearing(runtime, reply.strip(), covered.message))
