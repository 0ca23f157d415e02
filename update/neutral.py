"""Messages that have nothing to do with the user, as the model itself writes them.

Given the chat template up to the user's turn, a chat model writes a user's message (Magpie, arXiv 2406.08464), so they
fit any model and need no list. A model without a template takes those of another: it only continues plain text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING

from engrain.device.home import Home
from engrain.update.decoder import Decoder
from engrain.update.generate import continued, write
from engrain.update.once import BUNDLED, once

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime

# How messages begin (the empty one leaves all to the model), and lines that short questions follow.
_STARTS = (
    "What is the", "", "Who", "Write", "How many", "", "Which", "Tell me", "How do you", "I am", "Where is", "Say",
    "Explain", "Thank", "When", "Give me", "Can you", "", "Why", "Translate", "Good", "List", "What can", "Hello",
)  # fmt: skip
_QUESTIONS = ("What", "Which", "How many", "Who", "What colour", "Where", "What is the", "When", "Does", "Why", "Is")
_QUIZ = (
    "Which animal has a trunk?", "How many legs does a spider have?", "What is ice made of?",
    "Who painted the Mona Lisa?", "Is the sun a star?", "Where do penguins live?",
)  # fmt: skip
OF_EVERY_KIND, QUESTIONS, TEXTS = 264, 240, 48
_TOKENS, _QUESTION_TOKENS, _TEXT_TOKENS = 24, 20, 32
_MARK = "\u2603"


def neutral_messages(
    home: Home,
    runtime: Runtime,
    decoder: Decoder,
    model_sha: str,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """OF_EVERY_KIND messages and QUESTIONS as short as people ask, less what came to nothing; once for each model.

    A model without a template takes those that come with engrain: it hasn't learned to write a user's message.
    """
    if not runtime.has_template and (others := min(BUNDLED.glob("*.neutral.json"), default=None)):
        return _read(others.read_bytes())

    def make() -> bytes:
        found = messages_from(runtime, decoder, [*islice(cycle(_STARTS), OF_EVERY_KIND)], _TOKENS, seed, progress)
        found = list(dict.fromkeys((*found, *_short_questions(runtime, decoder, seed))))
        return json.dumps(found, ensure_ascii=False).encode()

    made_of = repr((_STARTS, OF_EVERY_KIND, _TOKENS, _QUIZ, _QUESTIONS, QUESTIONS, _QUESTION_TOKENS, seed))
    return once(home, "neutral.json", model_sha, [made_of], make, _read)


def _read(content: bytes) -> list[str]:
    found = json.loads(content)
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError
    return found


def _short_questions(runtime: Runtime, decoder: Decoder, seed: int) -> list[str]:
    """Distinct ones that go on from a quiz: alone, a model writes longer questions than people ask."""
    quiz = "".join(f"- {question}\n" for question in _QUIZ)
    starts = [*islice(cycle(_QUESTIONS), QUESTIONS)]
    prompts = [runtime.tokenize(f"Short questions of a quiz for children:\n{quiz}- {start}") for start in starts]
    texts = _gone_on_from(runtime, decoder, starts, prompts, _QUESTION_TOKENS, 1.0, seed)
    return [text for text in texts if text.endswith("?")]


def messages_from(
    runtime: Runtime,
    decoder: Decoder,
    starts: Sequence[str],
    max_tokens: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Distinct messages of more than two words, as the model goes on from each beginning of one."""
    prompts = [opening(runtime) + runtime.tokenize(start) for start in starts]
    texts = _gone_on_from(runtime, decoder, starts, prompts, max_tokens, 0.9, seed, progress)
    return [text for text in texts if len(text.split()) > 2]


def _gone_on_from(
    runtime: Runtime,
    decoder: Decoder,
    starts: Sequence[str],
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    temperature: float,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Distinct lines: each start, in which its prompt (token ids) ends, with what the model writes after it."""
    drafts = write(runtime, decoder, prompts, max_tokens, temperature, seed, stop="\n?", progress=progress)
    return list(dict.fromkeys((start + draft).strip() for start, draft in zip(starts, drafts, strict=True)))


def neutral_texts(runtime: Runtime, decoder: Decoder, seed: int = 0) -> list[list[int]]:
    """TEXTS beginnings of plain text (token ids), as the model writes them when nothing stands before."""
    start = runtime.tokenize("", bos=True) or runtime.tokenize("\n")
    texts = continued(decoder, [start] * TEXTS, _TEXT_TOKENS, runtime.is_end, temperature=1.0, seed=seed)
    return [start + text for text in texts if len(text) > 2]


def opening(runtime: Runtime) -> list[int]:
    """The template's tokens up to where a user's message begins."""
    text = runtime.render([{"role": "user", "content": _MARK}], add_generation_prompt=False)
    return runtime.tokenize(text.split(_MARK)[0], special=True) or runtime.tokenize("Question:")
