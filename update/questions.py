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

from engrain.device.bearing import BACKGROUND, HEAD, answer_prompt_of, prompt_of
from engrain.device.home import Home, write_atomic
from engrain.update import wording
from engrain.update.decoder import Decoder
from engrain.update.likelihood import log_probabilities
from engrain.update.pack import Example
from engrain.update.pool import POOL

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime

_OTHER_STATEMENTS = 3  # of the background: what a statement's effect on a few questions is measured against
_OTHERS = 10  # of the pool, spread evenly: what a question's effect on a statement is measured against


def log_likelihoods(decoder: Decoder, runtime: Runtime, statements: Sequence[str], asked: Sequence[str]) -> np.ndarray:
    """log p(question | statement) under the bare base model, in nats, of all tokens and of content words' tokens.

    (statements, asked, 2).
    """
    heads = [runtime.tokenize(prompt_of(s)) for s in statements]
    tails = [tuple(runtime.tokenize(f" {q}")) for q in asked]
    carries = [_content(runtime, tail, q) for tail, q in zip(tails, asked, strict=True)]
    examples = [Example((*head, *tail), len(head)) for head in heads for tail in tails]
    scored = log_probabilities(decoder, examples)
    rows = [(own.sum(), own @ carries[i % len(asked)]) for i, own in enumerate(scored)]
    return np.array(rows).reshape(len(statements), len(asked), 2)


def gains(decoder: Decoder, runtime: Runtime, statements: Sequence[str], asked: Sequence[str]) -> np.ndarray:
    """By how many nats each statement makes each question likelier than others do, (statements, asked, 2) as above."""
    found = log_likelihoods(decoder, runtime, [*statements, *BACKGROUND[:_OTHER_STATEMENTS]], asked)
    return found[: len(statements)] - found[len(statements) :].mean(0)


def answered(decoder: Decoder, runtime: Runtime, statement: str, asked: Sequence[str]) -> np.ndarray:
    """By how many nats each question makes the statement likelier as its answer than other questions do, (asked,)."""
    others = POOL[:: len(POOL) // _OTHERS][:_OTHERS]
    prompts = [runtime.tokenize(answer_prompt_of(q)) for q in (*asked, *others)]
    target = runtime.tokenize(f" {statement}")
    examples = [Example((*prompt, *target), len(prompt)) for prompt in prompts]
    found = np.array([own.sum() for own in log_probabilities(decoder, examples)])
    return found[: len(asked)] - found[len(asked) :].mean()


def _content(runtime: Runtime, tokens: Sequence[int], question: str) -> np.ndarray:
    """Which tokens belong to content words, (tokens,) of 0 and 1."""
    text, spans = token_spans(runtime, tokens)
    places = [(at, at + len(w)) for w in wording.content_words(question) if (at := text.find(w)) >= 0]
    return np.array([float(any(a < end and b > at for at, end in places)) for a, b in spans])


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
    rows = np.concatenate([log_likelihoods(decoder, runtime, [s], POOL) for s in BACKGROUND]).astype(np.float32)
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
        rows.append(log_likelihoods(decoder, runtime, [statement], POOL))
        progress(i + 1, len(statements))
    found = np.concatenate(rows) if rows else np.zeros((0, *ground.shape[1:]))
    return found - np.concatenate((found, ground)).mean(0)
