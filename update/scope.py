"""Fit an adapter's scope: which messages it answers, and which are left to the base model (`device.scope`).

Logistic regression with an L2 penalty on the base model's last hidden states: inside is what was taught, with the
never-told questions that are to be refused, and what others ask about themselves, for the same facts will be asked for
in other words; outside are neutral messages. Both sides count the same in all, and so do both halves of the inside.
Messages whose replies were corrected or rated have a probe of their own, which tells them from questions about facts.

A tutor finds some replies to answer anything, in a language that it hardly knows say. Such hubs (Radovanović et al.,
JMLR 11, 2010) are known by what it makes of them under questions that somebody else asked, and it is believed that
much less (as in CSLS, Conneau et al., arXiv 1710.04087).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from engrain.device.home import Home
from engrain.device.scope import Probe, Scope, fingerprints, marks, openings
from engrain.device.tutor import BACKGROUND
from engrain.update.decoder import Decoder
from engrain.update.once import once
from engrain.update.pack import Example, pack_examples, plan_packs

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime
    from engrain.update.study import Lesson
    from engrain.update.tutor import Tutor

L2 = 0.01
MAX_INSIDE = 300  # lessons, drawn at random
_FEEDBACK = ("correction", "liked", "disliked")
ASKED = 12  # of other people's questions, put to each reply
_MARGIN = 0.5  # log-odds by which every such message is inside
_PACK_TOKENS = 1024


def fit_scope(
    home: Home,
    runtime: Runtime,
    decoder: Decoder,
    model_sha: str,
    lessons: Sequence[Lesson],
    neutral: Sequence[str],
    personal: Sequence[str] = (),
    seed: int = 0,
    tutor: Tutor | None = None,
    before: Scope | None = None,
) -> Scope | None:
    """The scope of what the lessons teach; None without lessons or neutral messages.

    neutral, personal: messages that have nothing to do with a user; questions that some user asks about themselves.
    tutor, before: who tells the replies' hubness, and the scope of what was taught before, of which it is known.
    Corrected and rated replies are inside in any case, however like neutral messages theirs are: then more of those
    fall inside too.
    """
    distinct = list({lesson.question: lesson for lesson in lessons}.values())
    rated = [lesson.question for lesson in distinct if lesson.kind in _FEEDBACK]
    told = [lesson for lesson in distinct if lesson.kind not in (*_FEEDBACK, "form")]
    order = np.random.default_rng(seed).permutation(len(told))[:MAX_INSIDE]
    if not distinct or not neutral:
        return None
    outside = _states_once(home, runtime, decoder, model_sha, neutral)
    inside = hidden_states(runtime, decoder, [told[i].question for i in order])
    facts = manner = None
    if told:
        alike = [_states_once(home, runtime, decoder, model_sha, personal)] if personal else []
        facts = Probe(*_separate([inside, *alike], outside))
    if rated:
        states = hidden_states(runtime, decoder, rated)
        direction, bias = _separate([states], torch.cat((outside, inside)))
        lowest = float((states @ torch.from_numpy(direction)).min())
        manner = Probe(direction, bias + max(0.0, _MARGIN - lowest - bias))
    forms = {lesson.source for lesson in distinct if lesson.kind == "form"}
    remembered = [lesson for lesson in distinct if lesson.kind != "disliked" and lesson.source not in forms]
    replies = {lesson.answer: lesson.question for lesson in remembered}
    said = openings(lesson.answer for lesson in remembered if lesson.kind not in _FEEDBACK)
    beginnings = marks(_tokens(runtime, *each) for each in replies.items())
    hubness = _hubness(tutor, list(replies), personal, before) if tutor and personal else None
    return Scope(facts, manner, fingerprints(replies), beginnings, bool(forms), said, hubness)


def _hubness(tutor: Tutor, replies: Sequence[str], asked: Sequence[str], before: Scope | None) -> np.ndarray:
    """What the tutor finds too much of each reply, (replies,) float32 nats, in the order of their fingerprints.

    That is its mean log-odds of answering what somebody else asked, beyond those of statements about nobody.
    """
    known: dict[int, float] = {}
    if before and before.hubness is not None and before.taught is not None:
        known = dict(zip(before.taught.tolist(), before.hubness.tolist(), strict=True))
    prints = {int(fingerprints([reply])[0]): reply for reply in replies}
    new = [mark for mark in prints if mark not in known]
    if new:
        few = asked[:: max(1, len(asked) // ASKED)][:ASKED]
        statements = [*(prints[mark] for mark in new), *BACKGROUND]
        odds = tutor.judged([(statement, question) for statement in statements for question in few])
        mean = odds.reshape(len(statements), len(few)).mean(1)
        excess = mean[: len(new)] - mean[len(new) :].mean()
        known |= dict(zip(new, np.maximum(0.0, excess), strict=True))
    return np.array([known[mark] for mark in sorted(prints)], np.float32)


def _tokens(runtime: Runtime, reply: str, question: str) -> list[int]:
    """Of a reply as it is taught, without what ends it."""
    return runtime.target_tokens([{"role": "user", "content": question}], reply)[:-1]


@torch.no_grad()
def hidden_states(runtime: Runtime, decoder: Decoder, messages: Sequence[str]) -> Tensor:
    """The bare base model's normed last hidden state after each message, (messages, n_embd) float32 on the CPU."""
    prompts = [runtime.prompt_tokens([{"role": "user", "content": m}]) for m in messages]
    examples = [Example((*p, p[-1]), len(p)) for p in prompts]  # the target's token doesn't matter
    place = {id(e): i for i, e in enumerate(examples)}
    states = torch.zeros(len(messages), decoder.model.hyper.n_embd)
    with decoder.bare():
        for group in plan_packs(examples, _PACK_TOKENS):
            pack = pack_examples(group).to(decoder.embedding.device)
            states[[place[id(e)] for e in group]] = decoder.hidden(pack).float().cpu()
    return states


def _states_once(home: Home, runtime: Runtime, decoder: Decoder, model_sha: str, messages: Sequence[str]) -> Tensor:
    """`hidden_states` in half precision, once for each model."""

    def make() -> bytes:
        return save({"states": hidden_states(runtime, decoder, messages).half()})

    return once(
        home, "states.safetensors", model_sha, messages, make, lambda content: load(content)["states"].float()
    )  # fmt: skip


def _separate(inside: Sequence[Tensor], outside: Tensor) -> tuple[np.ndarray, float]:
    """Direction (n_embd,) and bias whose sign tells inside from outside, fitted with L-BFGS on standardised states.

    All groups of the inside count the same.
    """
    x = torch.cat((*inside, outside))
    mean, scale = x.mean(0), x.std(0) + 1e-4
    x = (x - mean) / scale
    y = torch.cat([torch.ones(len(x) - len(outside)), torch.zeros(len(outside))])
    sides = [*((group, 0.5 / len(inside)) for group in inside), (outside, 0.5)]
    share = torch.cat([torch.full((len(group),), part / len(group)) for group, part in sides])
    w, b = torch.zeros(x.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([w, b], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        odds = torch.nn.functional.binary_cross_entropy_with_logits(x @ w + b, y, share, reduction="sum")
        value = odds + L2 * w.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    direction = w.detach() / scale
    return direction.numpy(), float(b.detach()) - float(mean @ direction)
