"""What must not move: neutral messages and plain text, with the base model's own distributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load, save

from engrain.device.home import Home
from engrain.update.decoder import Decoder
from engrain.update.generate import continued
from engrain.update.loss import teach
from engrain.update.neutral import TEXTS, neutral_texts, opening
from engrain.update.once import once
from engrain.update.pack import Example, pack_examples, plan_packs

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime

ANSWER_TOKENS = 4
_PACK_TOKENS = 1024


def anchors(
    home: Home,
    runtime: Runtime,
    decoder: Decoder,
    model_sha: str,
    messages: Sequence[str],
    answer_tokens: int = ANSWER_TOKENS,
    k: int = 16,
) -> list[Example]:
    """Messages with the base model's answers, then plain texts, taught by its top-k distributions; once for each model.

    The message is part of the target where the model could have written
    it, so that the user's turn is held in place too. Answers are cut short: what moves first is how they begin, and
    more messages for the same work hold more in place; answer_tokens: 0 where answers are to begin otherwise.
    """

    def make() -> bytes:
        texts = [Example(tuple(text), 1, kind="anchor") for text in neutral_texts(runtime, decoder)]
        return save(_pack(_taught(decoder, [*_answered(runtime, decoder, messages, answer_tokens), *texts], k)))

    made_of = [str((k, answer_tokens, TEXTS)), *messages]
    return once(home, "anchors.safetensors", model_sha, made_of, make, lambda content: _unpack(load(content)))


def _answered(runtime: Runtime, decoder: Decoder, messages: Sequence[str], answer_tokens: int) -> list[Example]:
    """The messages with their likeliest answers' beginnings, up to the token that ends one."""
    head = len(opening(runtime))
    prompts = [tuple(runtime.prompt_tokens([{"role": "user", "content": m}])) for m in messages]
    answers = continued(decoder, prompts, answer_tokens, runtime.is_end) if answer_tokens else [[]] * len(prompts)
    texts = [(*prompt, *answer) for prompt, answer in zip(prompts, answers, strict=True)]
    starts = [max(1, min(head, len(prompt) - 1)) for prompt in prompts]
    return [Example(text, start, kind="anchor") for text, start in zip(texts, starts, strict=True)]


def _taught(decoder: Decoder, examples: Sequence[Example], k: int) -> list[Example]:
    """The same examples with the bare base model's top k for teacher."""
    found = dict(enumerate(examples))
    place = {id(e): i for i, e in enumerate(examples)}
    for group in plan_packs(examples, _PACK_TOKENS):
        sizes = [len(e.tokens) - e.start for e in group]
        rows = (part.cpu().split(sizes) for part in teach(decoder, pack_examples(group, tree=True), k))
        for e, ids, log_p in zip(group, *rows, strict=True):
            found[place[id(e)]] = replace(e, teacher=(ids.clone(), log_p.clone()))
    return list(found.values())


def _pack(taught: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Examples -> flat tensors: tokens, their lengths, target starts, and the teachers' rows."""

    def whole(numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32)

    return {
        "tokens": whole([t for e in taught for t in e.tokens]),
        "lengths": whole([len(e.tokens) for e in taught]),
        "starts": whole([e.start for e in taught]),
        "ids": torch.cat([e.teacher[0] for e in taught if e.teacher]).int(),
        "log_p": torch.cat([e.teacher[1] for e in taught if e.teacher]).half(),
    }


def _unpack(tensors: dict[str, torch.Tensor]) -> list[Example]:
    lengths, starts = tensors["lengths"].tolist(), tensors["starts"].tolist()
    tokens = tensors["tokens"].split(lengths)
    rows = [n - s for n, s in zip(lengths, starts, strict=True)]
    teachers = zip(tensors["ids"].long().split(rows), tensors["log_p"].float().split(rows), strict=True)
    return [
        Example(tuple(t.tolist()), s, kind="anchor", teacher=teacher)
        for t, s, teacher in zip(tokens, starts, teachers, strict=True)
    ]
