"""Who answers: the adapter where a message is its own and it is sure of its reply, the base model elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

from engrain.device.bearing import bearing
from engrain.device.sampling import Reply, Sampler
from engrain.device.scope import Coverage

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime
    from engrain.device.template import Message

_DRAFT = 64  # tokens after which a reply is long enough to be judged


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
    """The reply in pieces, as `Runtime.stream` gives them; the first piece of one that is checked is long.

    covered: of the last message, from `Runtime.covers`.
    """
    sampler = Sampler(temperature, seed=seed, watch=covered.checked)
    runtime.serve(bool(covered))
    if not covered.checked:
        return runtime.stream(messages, max_tokens=max_tokens, sampler=sampler, on_finish=on_finish)
    finished: list[Reply] = []
    adapted = runtime.stream(messages, max_tokens=max_tokens, sampler=sampler, on_finish=finished.append)

    def settled() -> Generator[str, None, None]:
        draft = ""
        for piece in adapted:
            draft += piece
            if sampler.chosen >= _DRAFT:
                break
        said = _settle(runtime, covered, draft, sampler.certainty)
        if said is None:
            runtime.serve(False)
            yield from runtime.stream(
                messages, max_tokens=max_tokens, temperature=temperature, seed=seed, on_finish=on_finish
            )
            return
        yield said
        if said == draft:
            yield from adapted  # nothing, if it has ended
            on_finish(finished[0])
        else:
            on_finish(Reply(said, len(runtime.prompt_tokens(messages)), sampler.chosen, finished=True))

    return settled()


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
