"""All that is likely enough is found: against every sequence there is, and against llama.cpp's own scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from engrain.device.recall import ALL_TAUGHT, FREE_LEAST, FREE_WITHIN, MOST, WITHIN, Taught, recall
from engrain.device.runtime import Runtime
from engrain.device.sampling import NotANumber
from engrain.device.scope import mark, marks

from ..tiny import build_tiny_gguf

END, WORDS, LONGEST = 0, 4, 6


class Toy:
    """A language model over WORDS tokens whose logits are fixed by the sequence so far; it checks what it is asked."""

    def __init__(self, seed: int, sharp: float = 3.0) -> None:
        self.seed, self.sharp = seed, sharp
        self.held: dict[int, tuple[int, ...]] = {}
        self.most = 0

    def row(self, tokens: tuple[int, ...]) -> np.ndarray:
        found = np.random.default_rng([self.seed, *tokens]).normal(0, self.sharp, WORDS)
        if len(tokens) > LONGEST:
            found[END] = 50.0
        return found - np.logaddexp.reduce(found)

    def decode(
        self, tokens: np.ndarray, positions: np.ndarray, sequences: np.ndarray, outputs: np.ndarray
    ) -> np.ndarray:
        rows = []
        for token, position, sequence, output in zip(tokens, positions, sequences, outputs, strict=True):
            held = self.held.get(int(sequence), ())
            assert len(held) == position
            self.held[int(sequence)] = (*held, int(token))
            if output:
                rows.append(self.row(self.held[int(sequence)]))
        self.most = max(self.most, sum(map(bool, self.held.values())))
        return np.array(rows)

    def copy(self, source: int, target: int) -> None:
        assert not self.held.get(target)
        self.held[target] = self.held[source]

    def truncate(self, sequence: int, length: int) -> bool:
        self.held[sequence] = self.held.get(sequence, ())[:length]
        return True


def every(toy: Toy, prompt: tuple[int, ...]) -> dict[tuple[int, ...], float]:
    """All replies there are, with their log-probabilities."""
    found = {}
    for size in range(LONGEST + 1):
        for tokens in product(range(1, WORDS), repeat=size):
            whole = (*tokens, END)
            found[tokens] = sum(float(toy.row((*prompt, *tokens[:i]))[token]) for i, token in enumerate(whole))
    return found


@pytest.mark.parametrize("width", [1, 2, 5])
def test_it_finds_every_reply_that_is_likely_enough(width: int) -> None:
    alone = 0
    for seed in range(20):
        toy, prompts = Toy(seed), [(1, 2, 1), (1, 2, 2), (1, 2, 1, 3), (1, 2, 3)]
        found = recall(toy, prompts, width=width, n_ctx=100, ends=lambda token: token == END)
        assert not any(held for sequence, held in toy.held.items() if sequence), "sequences are given back"
        assert toy.most <= MOST * width + 1
        for prompt, own in zip(prompts, found, strict=True):
            sums = every(toy, prompt)
            best = max(sums.values())
            likely = sorted((p for p in sums.values() if p >= max(best - FREE_WITHIN, FREE_LEAST)), reverse=True)
            assert [said.log_probability for said in own] == sorted((s.log_probability for s in own), reverse=True)
            assert all(math.isclose(sums[said.tokens], said.log_probability, abs_tol=1e-6) for said in own)
            if len(likely) < MOST // 2:  # a beam: where much is likely, not all of it is followed
                assert [s.log_probability for s in own] == pytest.approx(likely)
                alone += len(likely) == 1
    assert alone


def taught_of(replies: Sequence[tuple[int, ...]]) -> Taught:
    known = frozenset(marks(replies).tolist())
    return Taught(lambda tokens: mark(tokens) in known, lambda tokens: tuple(tokens) in replies)


def shares(toy: Toy, prompt: tuple[int, ...], taught: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], np.ndarray]:
    """Each taught reply's tokens, the end included, as log-probabilities among those that taught replies go on with."""
    whole = [(*tokens, END) for tokens in taught]
    found = {}
    for each in whole:
        rows = [toy.row((*prompt, *each[:i])) for i in range(len(each))]
        others = [sorted({other[i] for other in whole if other[:i] == each[:i]}) for i in range(len(each))]
        nats = [
            row[token] - np.logaddexp.reduce(row[next_]) for row, token, next_ in zip(rows, each, others, strict=True)
        ]
        found[each[:-1]] = np.array(nats)
    return found


@pytest.mark.parametrize("width", [1, 3])
def test_only_what_was_taught_is_said_if_it_never_falls_far_behind(width: int) -> None:
    taught, left = [(1, 2, 3), (1, 2), (3, 3, 3, 1), (2,), (3, 1)], 0
    for seed in range(20):
        toy, prompts = Toy(seed, sharp=2.0), [(1, 2), (2, 2), (3, 1, 2)]
        found = recall(toy, prompts, width=width, n_ctx=100, ends=lambda token: token == END, taught=taught_of(taught))
        for prompt, own in zip(prompts, found, strict=True):
            share, among = shares(toy, prompt, taught), {}
            assert math.isclose(sum(math.exp(nats.sum()) for nats in share.values()), 1.0)
            for reply, nats in share.items():
                raw = np.array([toy.row((*prompt, *reply[:i]))[token] for i, token in enumerate((*reply, END))])
                rising = np.cumsum((1 - ALL_TAUGHT) * nats + ALL_TAUGHT * raw)
                among[reply] = np.pad(rising, (0, LONGEST - len(rising)), mode="edge")  # after each step
            best = np.max(list(among.values()), axis=0)
            likely = {reply: nats[-1] for reply, nats in among.items() if (nats >= best - WITHIN).all()}
            assert {said.tokens: said.among for said in own} == pytest.approx(likely)
            sums = every(toy, prompt)
            assert all(math.isclose(said.log_probability, sums[said.tokens], abs_tol=1e-6) for said in own)
            left += len(taught) - len(likely)
    assert left


def test_a_reply_is_hardly_behind_for_what_nothing_else_goes_on_with() -> None:
    toy, short, long = Toy(0), (1,), (2, *[3, 1, 2] * 4)
    toy.row = lambda tokens: np.full(WORDS, -math.log(WORDS))  # type: ignore[method-assign]
    (own,) = recall(toy, [(1,)], width=1, n_ctx=100, ends=lambda token: token == END, taught=taught_of([short, long]))
    found = {said.tokens: said for said in own}
    rare = (len(long) - len(short)) * math.log(WORDS)
    assert found[short].log_probability - found[long].log_probability == pytest.approx(rare)
    assert found[short].among - found[long].among == pytest.approx(ALL_TAUGHT * rare)


def test_a_few_are_the_likeliest_of_all_that_a_wider_search_finds_or_less() -> None:
    toy = Toy(3)
    for prompt in ((1,), (2, 3), (4,)):
        wide, few = (
            recall(toy, [prompt], width=1, n_ctx=100, ends=lambda token: token == END, most=most)[0] for most in (16, 4)
        )
        known = {said.tokens: said.log_probability for said in wide}
        assert few and few[0].log_probability == pytest.approx(wide[0].log_probability)
        assert all(known.get(said.tokens, -np.inf) == pytest.approx(said.log_probability) for said in few)


def test_what_does_not_end_in_time_is_given_up() -> None:
    toy = Toy(1)
    found = recall(toy, [(1, 2)], width=1, n_ctx=4, ends=lambda token: token == END)[0]
    assert all(len(said.tokens) <= 2 for said in found)
    assert recall(toy, [(1, 2), (1, 3)], width=2, n_ctx=100, ends=lambda token: False) == [[], []]


def test_nan_is_told() -> None:
    toy = Toy(1)
    toy.row = lambda tokens: np.full(WORDS, np.nan)  # type: ignore[method-assign]
    with pytest.raises(NotANumber, match="not a number"):
        recall(toy, [(1,)], width=1, n_ctx=9, ends=lambda token: False)


def test_log_probabilities_are_llama_cpps(tmp_path: Path) -> None:
    with Runtime.load(build_tiny_gguf(tmp_path / "m.gguf"), n_ctx=64) as runtime:
        prompts = [runtime.tokenize(text) for text in ("The cat sat on", "The cat sat under a", "Rain")]
        stops = set(range(0, runtime.n_vocab, 2))
        runtime.is_end = lambda token: token in stops  # type: ignore[method-assign]
        found = runtime.recall(prompts)
        assert runtime.recall([]) == [] and all(found)
        for prompt, own in zip(prompts, found, strict=True):
            for said in own:
                rows = runtime.logits([*prompt, *said.tokens])[len(prompt) - 1 :].astype(np.float64)
                rows -= np.logaddexp.reduce(rows, axis=1, keepdims=True)
                spoken = sum(rows[i, token] for i, token in enumerate(said.tokens))
                assert np.abs(rows[-1, list(stops)] - (said.log_probability - spoken)).min() < 0.02
