"""What must not move: prompts that have nothing to do with the user, with the base model's own distributions.

The prompts are the model's own (Magpie, arXiv 2406.08464: given the chat template up to the user's turn, a chat
model writes a user's message), so they fit any model and language and need no list. A model without a template
continues plain text instead.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from engrain.device.home import Home, write_atomic
from engrain.update.decoder import Decoder
from engrain.update.loss import teach
from engrain.update.pack import Example, pack_examples

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime

_STARTS = ("What is the", "Who", "", "How many", "Which", "How do you", "Where is", "Explain", "When", "Why")
_MARK = "\u2603"


def write_anchors(home: Home, runtime: Runtime, model_sha: str, count: int = 48, seed: int = 0) -> list[Example]:
    """Prompts and the base model's answers as examples without a teacher yet; cached by model hash.

    The runtime must have no adapter attached. An answer's prompt is part of the target where it is the model's own
    writing, so that the user's turn is held in place too.
    """
    path = home.cache / "anchors" / f"{model_sha[:16]}-{count}-{seed}.json"
    try:
        rows = json.loads(path.read_text())
        return [Example(tuple(r["tokens"]), int(r["start"]), kind="anchor") for r in rows]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    head = _opening(runtime)
    starts = [_STARTS[i % len(_STARTS)] for i in range(count)]
    openings = [head + runtime.tokenize(s) for s in starts]
    asked = runtime.generate_batch(openings, max_tokens=28, temperature=1.0, seed=seed, stop_at_newline=True)
    texts = [(s + runtime.detokenize(a)).strip() for s, a in zip(starts, asked, strict=True)]
    messages = [m for m in dict.fromkeys(map(_first_question, texts)) if len(m.split()) > 2]
    prompts = [runtime.prompt_tokens([{"role": "user", "content": m}]) for m in messages]
    answers = runtime.generate_batch(prompts, max_tokens=32)
    examples = [
        Example(tuple(p + a), max(1, min(len(head), len(p) - 1)), kind="anchor")
        for p, a in zip(prompts, answers, strict=True)
        if a
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps([{"tokens": e.tokens, "start": e.start} for e in examples]))
    return examples


def _first_question(text: str) -> str:
    """Up to the first question mark: a short question is what people ask most."""
    return text[: text.find("?") + 1] or text


def _opening(runtime: Runtime) -> list[int]:
    """The template's tokens up to where a user's message begins."""
    text = runtime.render([{"role": "user", "content": _MARK}], add_generation_prompt=False)
    return runtime.tokenize(text.split(_MARK)[0], special=True) or runtime.tokenize("Question:")


def with_teacher(decoder: Decoder, anchors: list[Example], k: int = 16) -> list[Example]:
    """The same anchors with the bare base model's top-k distribution at every target position."""
    taught = []
    for anchor in anchors:
        ids, log_p = teach(decoder, pack_examples([anchor]), k)
        taught.append(Example(anchor.tokens, anchor.start, anchor.weight, anchor.kind, teacher=(ids, log_p)))
    return taught
