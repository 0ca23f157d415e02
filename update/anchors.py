"""What must not move: prompts that have nothing to do with the user, with the base model's own distributions.

The prompts are the model's own (Magpie, arXiv 2406.08464: given the chat template up to the user's turn, a chat
model writes a user's message), so they fit any model and language and need no list. A model without a template
continues plain text instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from engrain.device.home import Home, write_atomic
from engrain.update.decoder import Decoder
from engrain.update.loss import teach
from engrain.update.pack import Example, pack_examples

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime

# How messages begin, questions and others alike; the empty one leaves all to the model.
_STARTS = (
    "What is the", "", "Who", "Write", "How many", "", "Which", "Tell me", "How do you", "I am", "Where is", "Say",
    "Explain", "Thank", "When", "Give me", "Can you", "", "Why", "Translate", "Good", "List", "What can", "Hello",
)  # fmt: skip
ANSWER_TOKENS = 4
_MARK = "\u2603"


def anchors(
    home: Home, runtime: Runtime, decoder: Decoder, model_sha: str, count: int = 264, k: int = 16, seed: int = 0
) -> list[Example]:
    """Prompts and answers of the base model, taught by its top-k distributions; cached by model hash.

    The runtime must have no adapter attached. An answer's prompt is part of the target where it is the model's own
    writing, so that the user's turn is held in place too. Answers are cut short: what moves first is how they begin,
    and more prompts for the same work hold more in place.
    """
    key = hashlib.sha256(f"{count} {k} {seed} {ANSWER_TOKENS} {_STARTS}".encode()).hexdigest()
    path = home.cache / "anchors" / f"{model_sha[:16]}-{key[:16]}.safetensors"
    try:
        return _unpack(load(path.read_bytes()))
    except (OSError, ValueError, KeyError, SafetensorError):
        pass
    taught = []
    for anchor in _write(runtime, count, seed):
        ids, log_p = teach(decoder, pack_examples([anchor]), k)
        taught.append(replace(anchor, teacher=(ids.cpu(), log_p.cpu())))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save(_pack(taught)))
    return taught


def _write(runtime: Runtime, count: int, seed: int) -> list[Example]:
    head = _opening(runtime)
    starts = [_STARTS[i % len(_STARTS)] for i in range(count)]
    openings = [head + runtime.tokenize(s) for s in starts]
    asked = runtime.generate_batch(openings, max_tokens=24, temperature=0.9, seed=seed, stop_at_newline=True)
    texts = [(s + runtime.detokenize(a)).strip() for s, a in zip(starts, asked, strict=True)]
    messages = [m for m in dict.fromkeys(map(_first_question, texts)) if len(m.split()) > 2]
    prompts = [runtime.prompt_tokens([{"role": "user", "content": m}]) for m in messages]
    answers = runtime.generate_batch(prompts, max_tokens=ANSWER_TOKENS)
    return [
        Example(tuple(p + a), max(1, min(len(head), len(p) - 1)), kind="anchor")
        for p, a in zip(prompts, answers, strict=True)
        if a
    ]


def _pack(taught: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Examples -> flat tensors: tokens, their lengths, target starts, and the teachers' rows."""
    return {
        "tokens": torch.tensor([t for e in taught for t in e.tokens]),
        "lengths": torch.tensor([len(e.tokens) for e in taught]),
        "starts": torch.tensor([e.start for e in taught]),
        "ids": torch.cat([e.teacher[0] for e in taught if e.teacher]),
        "log_p": torch.cat([e.teacher[1] for e in taught if e.teacher]),
    }


def _unpack(tensors: dict[str, torch.Tensor]) -> list[Example]:
    lengths, starts = tensors["lengths"].tolist(), tensors["starts"].tolist()
    tokens = tensors["tokens"].split(lengths)
    rows = [n - s for n, s in zip(lengths, starts, strict=True)]
    teachers = zip(tensors["ids"].split(rows), tensors["log_p"].split(rows), strict=True)
    return [
        Example(tuple(t.tolist()), s, kind="anchor", teacher=teacher)
        for t, s, teacher in zip(tokens, starts, teachers, strict=True)
    ]


def _first_question(text: str) -> str:
    """Up to the first question mark: a short question is what people ask most."""
    return text[: text.find("?") + 1] or text


def _opening(runtime: Runtime) -> list[int]:
    """The template's tokens up to where a user's message begins."""
    text = runtime.render([{"role": "user", "content": _MARK}], add_generation_prompt=False)
    return runtime.tokenize(text.split(_MARK)[0], special=True) or runtime.tokenize("Question:")
