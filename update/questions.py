"""Which questions will come? What people ask about themselves, and how much likelier a statement makes each.

Judged as in `device.bearing`, summed over all of the question's tokens, and over those of its content words: "My boat
is called Ida" makes all of "What is my dog called?" likelier, but not "dog". Where both sums are high, and the question
makes the statement likelier in turn, it is asked of it: the two ways of estimating one quantity err in other places.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from engrain.device.bearing import BACKGROUND, HEAD, SHOTS, prompt_of
from engrain.device.home import Home, write_atomic
from engrain.update import wording
from engrain.update.decoder import Decoder
from engrain.update.loss import pack_loss
from engrain.update.pack import Example, pack_examples, plan_packs
from engrain.update.pool import POOL

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime

PACK_TOKENS = 2048
_OTHERS = 10  # of the pool, spread evenly: what a question's effect on a statement is measured against
_ANSWERS = "\n\n".join(f"I asked: {q}\nThe answer was: {s}" for s, q in SHOTS)


def log_likelihoods(decoder: Decoder, runtime: Runtime, statement: str, questions: Sequence[str]) -> np.ndarray:
    """log p(question | statement) under the bare base model, (questions, 2) nats: all tokens, content words' tokens."""
    found = np.zeros((len(questions), 2))
    if not questions:
        return found
    head = runtime.tokenize(prompt_of(statement))
    tails = [runtime.tokenize(f" {q}") for q in questions]
    examples = [Example(tuple(head + tail), len(head)) for tail in tails]
    place = {id(e): i for i, e in enumerate(examples)}
    with torch.no_grad(), decoder.bare():
        for group in plan_packs(examples, PACK_TOKENS):
            pack = pack_examples(group)
            _, nll = pack_loss(decoder, pack)
            at = [place[id(e)] for e in group]
            carries = torch.cat([_content(runtime, tuple(tails[i]), questions[i]) for i in at])
            both = torch.stack((nll.cpu(), nll.cpu() * carries), 1)
            found[at] = -torch.zeros(len(group), 2).index_add_(0, pack.owner.cpu(), both).numpy()
    return found


def answered(decoder: Decoder, runtime: Runtime, statement: str, asked: Sequence[str]) -> np.ndarray:
    """By how many nats each question makes the statement likelier as its answer than other questions do, (asked,)."""
    others = POOL[:: len(POOL) // _OTHERS][:_OTHERS]
    prompts = [runtime.tokenize(f"{_ANSWERS}\n\nI asked: {q}\nThe answer was:") for q in (*asked, *others)]
    target = runtime.tokenize(f" {statement}")
    examples = [Example((*prompt, *target), len(prompt)) for prompt in prompts]
    place = {id(e): i for i, e in enumerate(examples)}
    found = np.zeros(len(examples))
    with torch.no_grad(), decoder.bare():
        for group in plan_packs(examples, PACK_TOKENS):
            pack = pack_examples(group)
            _, nll = pack_loss(decoder, pack)
            found[[place[id(e)] for e in group]] = -torch.zeros(len(group)).index_add_(0, pack.owner, nll.cpu()).numpy()
    return found[: len(asked)] - found[len(asked) :].mean()


def _content(runtime: Runtime, tokens: tuple[int, ...], question: str) -> torch.Tensor:
    """Which tokens belong to content words, (tokens,) of 0 and 1."""
    text, spans = token_spans(runtime, tokens)
    places = [(at, at + len(w)) for w in wording.content_words(question) if (at := text.find(w)) >= 0]
    return torch.tensor([float(any(a < end and b > at for at, end in places)) for a, b in spans])


def token_spans(runtime: Runtime, tokens: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The tokens' text in lower case, and from where to where in it each stands."""
    text, spans = "", []
    for token in tokens:
        piece = runtime.detokenize([token]).lower()
        spans.append((len(text), len(text) + len(piece)))
        text += piece
    return text, spans


def background(home: Home, decoder: Decoder, runtime: Runtime, model_sha: str) -> np.ndarray:
    """`log_likelihoods` of the pool for each background statement, (background, pool, 2); cached by model and text."""
    key = hashlib.sha256("\n".join((*POOL, *BACKGROUND, HEAD)).encode()).hexdigest()
    path = home.cache / "questions" / f"{model_sha[:16]}-{key[:16]}.f32"
    try:
        return np.frombuffer(path.read_bytes(), np.float32).reshape(len(BACKGROUND), len(POOL), 2)
    except (OSError, ValueError):
        pass
    rows = np.stack([log_likelihoods(decoder, runtime, s, POOL) for s in BACKGROUND]).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, rows.tobytes())
    return rows


def information(
    decoder: Decoder,
    runtime: Runtime,
    statements: Sequence[str],
    ground: np.ndarray,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """How much likelier each statement makes each pool question than statements do on average.

    (statements, pool, 2) nats: by all tokens, by the content words' tokens.
    """
    rows = []
    for i, statement in enumerate(statements):
        rows.append(log_likelihoods(decoder, runtime, statement, POOL))
        progress(i + 1, len(statements))
    found = np.stack(rows) if rows else np.zeros((0, *ground.shape[1:]))
    return found - np.concatenate((found, ground)).mean(0)
