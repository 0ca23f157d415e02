"""Messages that have nothing to do with the user, as the model itself writes them.

Given the chat template up to the user's turn, a chat model writes a user's message (Magpie, arXiv 2406.08464), so they
fit any model and need no list. A model without a template continues plain text instead.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING

from engrain.device.home import Home, write_atomic
from engrain.update.decoder import Decoder
from engrain.update.generate import continued, write

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime

# How messages begin: first some of every kind (the empty one leaves all to the model), then short questions alone.
_STARTS = (
    "What is the", "", "Who", "Write", "How many", "", "Which", "Tell me", "How do you", "I am", "Where is", "Say",
    "Explain", "Thank", "When", "Give me", "Can you", "", "Why", "Translate", "Good", "List", "What can", "Hello",
)  # fmt: skip
_QUESTIONS = ("What is the", "Who", "How many", "Which", "Where", "When", "Why", "How do you", "What", "Does")
OF_EVERY_KIND, QUESTIONS, TEXTS = 264, 200, 48
_TOKENS, _TEXT_TOKENS = 24, 32
_MARK = "\u2603"


def neutral_messages(
    home: Home,
    runtime: Runtime,
    decoder: Decoder,
    model_sha: str,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """OF_EVERY_KIND messages less those that came to nothing, then QUESTIONS; cached by model hash."""
    key = hashlib.sha256(f"{_STARTS} {_QUESTIONS} {OF_EVERY_KIND} {QUESTIONS} {_TOKENS} {seed}".encode()).hexdigest()
    path = home.cache / "neutral" / f"{model_sha[:16]}-{key[:16]}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, list) and all(isinstance(each, str) for each in found):
            return found
    except (OSError, ValueError):
        pass
    starts = [*islice(cycle(_STARTS), OF_EVERY_KIND), *islice(cycle(_QUESTIONS), QUESTIONS)]
    found = messages_from(runtime, decoder, starts, _TOKENS, seed, progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(found, ensure_ascii=False))
    return found


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
    drafts = write(runtime, decoder, prompts, max_tokens, temperature=0.9, seed=seed, stop="\n?", progress=progress)
    texts = dict.fromkeys((start + draft).strip() for start, draft in zip(starts, drafts, strict=True))
    return [text for text in texts if len(text.split()) > 2]


def neutral_texts(runtime: Runtime, decoder: Decoder, seed: int = 0) -> list[list[int]]:
    """TEXTS beginnings of plain text (token ids), as the model writes them when nothing stands before."""
    start = runtime.tokenize("", bos=True) or runtime.tokenize("\n")
    texts = continued(decoder, [start] * TEXTS, _TEXT_TOKENS, runtime.is_end, temperature=1.0, seed=seed)
    return [start + text for text in texts if len(text) > 2]


def opening(runtime: Runtime) -> list[int]:
    """The template's tokens up to where a user's message begins."""
    text = runtime.render([{"role": "user", "content": _MARK}], add_generation_prompt=False)
    return runtime.tokenize(text.split(_MARK)[0], special=True) or runtime.tokenize("Question:")
