"""The reader: what each sentence tells, as statements that stand alone.

"The bakery lets us rehearse there." tells, read with what came before, "The bakery lets the Tin Herons rehearse at the
bakery." (decontextualisation, Choi et al., TACL 2021, arXiv 2102.05169). A small adapter of the same base model,
trained once on conversations of nobody (`update.train_reader`), writes such statements, and weighs them beside those
that grammar makes (`clauses`). It isn't trusted: a statement is made of the conversation's words, and it is taken for
what it says of the sentence that none taken before says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from engrain.quant.adapter import Adapter
from engrain.update import clauses, wording
from engrain.update.decoder import Decoder
from engrain.update.generate import write
from engrain.update.likelihood import log_probabilities
from engrain.update.pack import Example

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime

END = "|"  # of a statement
NEAR = 300  # characters of what came before
LONGEST = 400  # characters of a sentence; what is longer, pasted say, is left to grammar
DRAFTS, TEMPERATURE = 3, 0.7  # beside the likeliest
_TOKENS = 64
NOTHING = -0.3  # log-probability, in nats, from which a sentence tells nothing
EACH = 0.5  # words that a statement must say beyond those that make up for how unlikely it is
NAT, NAT_GRAMMAR = 0.5, 0.15  # what a nat weighs beside a word

_NAMING = frozenset(("called", "named", "name"))  # "Our dog Pim is deaf." doesn't say that it is called so

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sentence:
    """One sentence of a message, and what the user said before it in the conversation."""

    said: str
    before: str
    message: int

    @property
    def prompt(self) -> str:
        """Up to where what it tells begins."""
        return f"Before: {self.before}\nSaid: {self.said}\nTells:"


def read(messages: Sequence[tuple[str, str]]) -> Iterator[Sentence]:
    """The sentences of (conversation, text) messages, in order."""
    before: dict[str, str] = {}
    for i, (conversation, text) in enumerate(messages):
        for said in wording.sentences(text):
            earlier = before.get(conversation, "")
            yield Sentence(said, earlier, i)
            before[conversation] = " ".join(f"{earlier} {said}".split())[-NEAR:]


class Reader:
    """Reads messages with the decoder, whose own adapter isn't touched."""

    def __init__(self, runtime: Runtime, decoder: Decoder, adapter: Adapter) -> None:
        self._runtime, self._decoder, self._adapter = runtime, decoder, adapter

    def told(
        self, messages: Sequence[tuple[str, str]], seed: int = 0, progress: Progress = lambda done, total: None
    ) -> list[list[str]]:
        """For each (conversation, text) message the statements that it tells.

        A sentence that tells nothing, as the reader sees it, tells at most what grammar finds by a rule of its own:
        "Write to my sister Lena." -> "My sister is called Lena."
        """
        sentences = list(read(messages))
        by_grammar = clauses.told_in((messages[s.message][0], s.said) for s in sentences)
        told = [list(map(_tidy, own)) for own in by_grammar]
        short = [i for i, s in enumerate(sentences) if len(s.said) <= LONGEST]
        telling = []
        for i, (end,) in zip(short, self._likelihoods([(sentences[i], ["\n"]) for i in short]), strict=True):
            if end.sum() > NOTHING:
                told[i] = [s for s in told[i] if s.lower().rstrip(".") not in sentences[i].said.lower()]
            else:
                telling.append(i)
        drafts = self._written([sentences[i] for i in telling], seed, progress)
        every = [
            list(dict.fromkeys([*told[i], *(d for d in written if is_grounded(d, sentences[i]))]))
            for i, written in zip(telling, drafts, strict=True)
        ]
        weighed = self._likelihoods(
            [(sentences[i], [f" {s} {END}" for s in own]) for i, own in zip(telling, every, strict=True)]
        )
        for i, own, each in zip(telling, every, weighed, strict=True):
            # A first token says no more than which of several statements comes first.
            nats = {s: float(tokens[1:].sum()) for s, tokens in zip(own, each, strict=True)}
            told[i] = choose(sentences[i].said, nats, told[i]) or told[i]  # in a language that it hardly knows, say
        found: list[list[str]] = [[] for _ in messages]
        for sentence, statements in zip(sentences, told, strict=True):
            found[sentence.message] += statements
        return [list(dict.fromkeys(each)) for each in found]

    def _written(self, sentences: Sequence[Sentence], seed: int, progress: Progress) -> list[list[str]]:
        """What each sentence may tell: the likeliest reading, and some drafts."""
        prompts = [self._runtime.tokenize(s.prompt) for s in sentences]
        several = [p for p in prompts for _ in range(DRAFTS)]
        total = len(prompts) + len(several)
        with self._decoder.lent(self._adapter):
            likeliest = write(
                self._runtime, self._decoder, prompts, _TOKENS, 0.0, seed, "\n",
                lambda done, _: progress(done, total),
            )  # fmt: skip
            others = write(
                self._runtime, self._decoder, several, _TOKENS, TEMPERATURE, seed, "\n",
                lambda done, _: progress(len(prompts) + done, total),
            )  # fmt: skip
        texts = [[first, *others[i * DRAFTS : (i + 1) * DRAFTS]] for i, first in enumerate(likeliest)]
        return [[s.strip() for text in own for s in text.split(END)[:-1] if s.strip()] for own in texts]

    def _likelihoods(self, each: Sequence[tuple[Sentence, Sequence[str]]]) -> list[list[np.ndarray]]:
        """Log-probabilities of each text's tokens after its sentence, nats."""
        examples = []
        for sentence, texts in each:
            prompt = self._runtime.tokenize(sentence.prompt)
            examples += [Example((*prompt, *self._runtime.tokenize(text)), len(prompt)) for text in texts]
        with self._decoder.lent(self._adapter):
            found = iter(log_probabilities(self._decoder, examples))
        return [list(islice(found, len(texts))) for _, texts in each]


def is_grounded(statement: str, sentence: Sentence) -> bool:
    """Whether its words are the conversation's, and it doesn't go round in circles."""
    own, heard = wording.content_words(statement), f"{sentence.before} {sentence.said}"
    varied = len(set(own)) >= 0.7 * len(own)
    return varied and wording.is_statement(statement) and _news(statement) <= _news(heard)


def choose(said: str, nats: dict[str, float], by_grammar: Collection[str] = ()) -> list[str]:
    """Of statements and how likely each is, nats, those that between them say what was said, at the least cost.

    What those leave out is left to the ones of them made by grammar, which invent nothing, however odd they sound.
    """
    says = {s: _news(s) | _NAMING.intersection(wording.words(s)) for s in nats}
    left, taken = _news(said) | _NAMING.intersection(wording.words(said)), list[str]()
    for of, nat in ((nats, NAT), (by_grammar, NAT_GRAMMAR)):
        while open_ := {s: len(says[s] & left) - EACH + nat * nats[s] for s in of if s not in taken}:
            best = max(open_, key=lambda statement: open_[statement])
            if open_[best] <= 0:
                break
            taken.append(best)
            left = left - says[best]
    return [s for s in taken if not any(o != s and o.startswith(s.rstrip(".")) for o in taken)]


def _news(text: str) -> set[str]:
    """What its content words begin with, and its numbers whole."""
    plain = (word.removesuffix("'s") for word in wording.content_words(text))
    return {w if any(map(str.isdigit, w)) else w[: wording.STEM] for w in plain}


def _tidy(clause: str) -> str:
    """With a capital and a full stop, as the reader writes."""
    return clause[:1].upper() + clause[1:].rstrip("!.,…") + "."
