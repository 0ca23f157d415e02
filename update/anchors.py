"""What must not move: neutral messages and plain text, with the base model's own distributions."""

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
from engrain.update.neutral import TEXTS, neutral_texts, opening
from engrain.update.pack import Example, pack_examples

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime

ANSWER_TOKENS = 4


def anchors(
    home: Home, runtime: Runtime, decoder: Decoder, model_sha: str, messages: Sequence[str], k: int = 16
) -> list[Example]:
    """Messages with the base model's answers, then plain texts, taught by its top-k distributions; cached.

    The runtime must have no adapter attached. The message is part of the target where the model could have written
    it, so that the user's turn is held in place too. Answers are cut short: what moves first is how they begin, and
    more messages for the same work hold more in place.
    """
    key = hashlib.sha256("\n".join([str((k, ANSWER_TOKENS, TEXTS)), *messages]).encode()).hexdigest()
    path = home.cache / "anchors" / f"{model_sha[:16]}-{key[:16]}.safetensors"
    try:
        return _unpack(load(path.read_bytes()))
    except (OSError, ValueError, KeyError, SafetensorError):
        pass
    taught = []
    texts = [Example(tuple(text), 1, kind="anchor") for text in neutral_texts(runtime)]
    for anchor in [*_answered(runtime, messages), *texts]:
        ids, log_p = teach(decoder, pack_examples([anchor]), k)
        taught.append(replace(anchor, teacher=(ids.cpu(), log_p.cpu())))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save(_pack(taught)))
    return taught


def _answered(runtime: Runtime, messages: Sequence[str]) -> list[Example]:
    head = len(opening(runtime))
    prompts = [runtime.prompt_tokens([{"role": "user", "content": m}]) for m in messages]
    answers = runtime.generate_batch(prompts, max_tokens=ANSWER_TOKENS)
    return [
        Example(tuple(p + a), max(1, min(head, len(p) - 1)), kind="anchor")
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
