"""The reader: what each sentence tells, as statements that stand alone.

"The bakery lets us rehearse there." tells, read with what came before, "The bakery lets the Tin Herons rehearse at the
bakery." (decontextualisation, Choi et al., TACL 2021, arXiv 2102.05169). A small adapter of the same base model,
trained once on conversations of nobody (`update.train_reader`), writes a few readings of each sentence, in such
statements, and weighs them beside what grammar makes of it (`clauses`). It isn't trusted: a statement is made of the
conversation's words, and the reading that is taken says most of the sentence for how unlikely it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from engrain.quant.adapter import Adapter
from engrain.update import clauses, frames, wording
from engrain.update.decoder import Decoder
from engrain.update.generate import write
from engrain.update.likelihood import log_probabilities
from engrain.update.pack import Example

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime

END = "|"  # of a statement
NEAR = 500  # characters of what came before
TURN = " / "  # between messages
LONGEST = 400  # characters of a sentence; what is longer, pasted say, is left to grammar
DRAFTS, TEMPERATURE = 3, 0.7  # beside the likeliest
_TOKENS = 64
NOTHING = -0.2  # log-probability, in nats, from which a sentence tells nothing
# What counts against a word that is said: a statement, a word in another form, a nat of a reading, of grammar's own,
# and of one of its clauses beside the reading that is taken.
EACH, ODD, NAT, NAT_GRAMMAR, NAT_BESIDE = 0.1, 0.5, 0.25, 0.5, 0.25
VALUE = 3.0  # words that a number or a name counts as

SHORT, _ENDINGS = 3, frozenset(("s", "es", "d", "ed", "ing"))  # letters of a word, and what makes a form of it
_HYPHEN = re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])")
_OWN = re.compile(r"\b(?:my|our) ([\w-]+)")
_THEIRS = re.compile(r"\b(?:his|her|their|its) ")
_IS_CALLED = re.compile(r" (?:is|are) (?:called|named) ")
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
        earlier = before.get(conversation, "")
        between = TURN if earlier else ""
        for said in wording.sentences(text):
            yield Sentence(said, earlier, i)
            earlier = (earlier + between + " ".join(said.split()))[-NEAR:]
            between = " "
        before[conversation] = earlier


class Reader:
    """Reads messages with the decoder, whose own adapter isn't touched."""

    def __init__(self, runtime: Runtime, decoder: Decoder, adapter: Adapter) -> None:
        self._runtime, self._decoder, self._adapter = runtime, decoder, decoder.fitted(adapter)

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
        readings = self._written([sentences[i] for i in short], seed, progress)
        telling = {i: own for i, own in zip(short, readings, strict=True) if own != [[]]}
        chosen = self._chosen([(sentences[i], own, told[i]) for i, own in telling.items()])
        taken = dict(zip(telling, chosen, strict=True))
        for i in short:
            if (own := taken.get(i)) is None:
                told[i] = [s for s in told[i] if s.lower().rstrip(".") not in sentences[i].said.lower()]
            else:
                told[i] = own or told[i]  # in a language that it hardly knows, say
        naming = [(s, match.end()) for own in told for s in own if (match := _IS_CALLED.search(s))]
        names = {s[at:].removesuffix(".").lower() for s, at in naming}
        found: list[list[str]] = [[] for _ in messages]
        for sentence, statements in zip(sentences, told, strict=True):
            found[sentence.message] += [*newly_named(sentence, statements, names), *statements]
        return [list(dict.fromkeys(each)) for each in found]

    def likelihoods(self, each: Sequence[tuple[str, str, str]]) -> list[float]:
        """For each (text before, sentence, statement) the log-probability that the sentence tells it first, nats."""
        asked = [(Sentence(said, before, 0), [_begun(statement)]) for before, said, statement in each]
        return [float(tokens.sum()) for (tokens,) in self._likelihoods(asked)]

    def _chosen(self, each: Sequence[tuple[Sentence, list[list[str]], list[str]]]) -> list[list[str] | None]:
        """Of each sentence's readings, and of what grammar makes of it, what is taken; None where it tells nothing."""
        weighed = self._likelihoods(
            [(sentence, [*map(_listed, (*own, made)), *map(_begun, made)]) for sentence, own, made in each]
        )
        found: list[list[str] | None] = []
        for (sentence, own, made), tokens in zip(each, weighed, strict=True):
            nats = [float(each.sum()) for each in tokens]
            if nats[own.index([])] > NOTHING:
                found.append(None)
                continue
            readings = [
                ([s for s in reading if is_grounded(s, sentence)], NAT * n)
                for reading, n in zip(own, nats, strict=False)
            ]
            # A first token says no more than which of several statements comes first.
            beside = {s: float(each[1:].sum()) for s, each in zip(made, tokens[len(own) + 1 :], strict=True)}
            found.append(choose(sentence, [*readings, (made, NAT_GRAMMAR * nats[len(own)])], beside))
        return found

    def _written(self, sentences: Sequence[Sentence], seed: int, progress: Progress) -> list[list[list[str]]]:
        """Distinct readings of each sentence, each some statements: the likeliest, some drafts, and nothing."""
        heat = (0.0, *(TEMPERATURE,) * DRAFTS)
        prompts = [prompt for s in sentences for prompt in [self._runtime.tokenize(s.prompt)] * len(heat)]
        with self._decoder.lent(self._adapter):
            every = write(self._runtime, self._decoder, prompts, _TOKENS, heat * len(sentences), seed, "\n", progress)
        texts = [every[at : at + len(heat)] for at in range(0, len(every), len(heat))]
        read = [[tuple(s.strip() for s in text.split(END)[:-1] if s.strip()) for text in own] for own in texts]
        return [list(map(list, dict.fromkeys((*own, ())))) for own in read]

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
    """Whether its words are the conversation's, it goes round in no circles, names nobody as somebody of theirs, and
    gives nobody what is the user's.
    """
    own, heard = wording.content_words(statement), f"{sentence.before} {sentence.said}"
    whole = len(set(own)) >= 0.7 * len(own) and wording.is_statement(statement)
    return (
        whole and _was_said(statement, heard) and not _misnames(statement, heard) and not _misowns(statement, sentence)
    )


def _was_said(statement: str, heard: str) -> bool:
    """Whether each of its content words begins as one that was heard, or is a form of a short one; numbers whole."""
    known = _parts(heard)
    heads = set(map(wording.stem, known))

    def was(word: str) -> bool:
        return wording.stem(word) in heads or any(_is_form(word, each) or _is_form(each, word) for each in known)

    return all(map(was, _parts(statement)))


def _is_form(word: str, of: str) -> bool:
    """Whether it is the other one with an ending: "pays" of "pay"."""
    return len(of) >= SHORT and word.startswith(of) and word[len(of) :] in _ENDINGS


def _misnames(statement: str, heard: str) -> bool:
    """Whether it gives somebody the name of somebody of theirs: "my son's teacher, Mr Osei" isn't my son."""
    bearers = [(bearer.lower().replace("’", "'"), name) for bearer, name in clauses.names_in(heard)]
    own = [(bearer.lower(), name) for bearer, name in clauses.names_in(_IS_CALLED.sub(" ", statement))]
    return any(name == other and theirs.startswith(f"{bearer}'s ") for bearer, name in own for theirs, other in bearers)


def _misowns(statement: str, sentence: Sentence) -> bool:
    """Whether it makes somebody's what the user calls their own: "our anniversary" isn't "my sister's anniversary"."""
    said, told, before = (each.lower().replace("’", "'") for each in (sentence.said, statement, sentence.before))
    heard = _THEIRS.sub("'s ", f"{before} {said}")
    return any(f"'s {noun}" in told and f"'s {noun}" not in heard for noun in _OWN.findall(said))


def choose(sentence: Sentence, readings: Sequence[tuple[list[str], float]], beside: Mapping[str, float]) -> list[str]:
    """The reading that says most of a sentence for what it costs, and those of grammar's clauses that add to it.

    readings: statements, and what speaks for them, in words (0 or less). beside: how likely each clause is, nats; what
    says more that is already said than what isn't adds nothing.
    """
    wanted, heard = _says(sentence.said), _forms(f"{sentence.before} {sentence.said}")
    values = _values(sentence.said)

    def count(words: set[str]) -> float:
        return len(words) + (VALUE - 1) * len(words & values)

    def worth(reading: tuple[list[str], float]) -> float:
        statements, words = reading
        said = set[str]().union(*map(_says, statements))
        odd = sum(len(_forms(s) - heard) for s in statements)
        return count(said & wanted) - EACH * len(statements) - ODD * odd + words

    taken = list(max(readings, key=worth)[0])
    left = wanted - set[str]().union(*map(_says, taken))

    def adds(clause: str) -> float:
        says = _says(clause) & wanted
        return count(says & left) - count(says - left) - EACH + NAT_BESIDE * beside[clause]

    while others := [clause for clause in beside if clause not in taken]:
        best = max(others, key=adds)
        if adds(best) <= 0:
            break
        taken.append(best)
        left = left - _says(best)
    return [s for s in taken if not any(o != s and o.startswith(s.rstrip(".")) for o in taken)]


def newly_named(sentence: Sentence, statements: Sequence[str], names: Container[str] = ()) -> Iterator[str]:
    """Who is called what, where a reading alone puts a name beside its bearer: "my nephew", and later "Tevita".

    names: in lower case, of which it is said elsewhere whose they are.
    """
    heard = f"{sentence.before} / {sentence.said}".lower().replace(",", "")
    plain = [statement for statement in statements if not _NAMING.intersection(wording.words(statement))]
    for bearer, name in (pair for statement in plain for pair in clauses.names_in(statement)):
        words = bearer.lower().split()
        elsewhere = f"{words[-1]} {name.lower()}" in heard or name.lower() in names
        if not elsewhere and not frames.HELPERS.intersection(words):
            yield f"{bearer} is called {name}."


def _listed(statements: Sequence[str]) -> str:
    """A reading as it is written."""
    return "".join(map(_begun, statements)) + "\n"


def _begun(statement: str) -> str:
    """As the first of a reading."""
    return f" {statement} {END}"


def _says(text: str) -> set[str]:
    return _news(text) | _NAMING.intersection(wording.words(text))


def _forms(text: str) -> set[str]:
    """Its content words as they stand there."""
    return {word.removesuffix("'s") for word in wording.content_words(text)}


def _parts(text: str) -> set[str]:
    """Its content words, "ice-cold" as two; numbers stay whole."""
    return _forms(_HYPHEN.sub(" ", text))


def _news(text: str) -> set[str]:
    return set(map(wording.stem, _forms(text)))


def _values(text: str) -> set[str]:
    """The heads of its numbers, and of its words with a capital that don't begin a sentence."""
    later = [m for sentence in wording.sentences(text) for m in list(wording.word_spans(sentence))[1:]]
    names = _news(" ".join(m[0] for m in later if m[0][:1].isupper()))
    return names | {word for word in _forms(text) if wording.has_digit(word)}


def _tidy(clause: str) -> str:
    """With a capital and a full stop, as the reader writes."""
    return clause[:1].upper() + clause[1:].rstrip("!.,…") + "."
