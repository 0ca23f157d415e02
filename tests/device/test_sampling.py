"""Tokens from logits, text from bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engrain.device.sampling import NotANumber, Sampler, TextAssembler
from engrain.quant.errors import EngrainError


def test_greedy_takes_the_largest() -> None:
    assert Sampler().choose(np.array([0.5, 2.0, -1.0], dtype=np.float32)) == 1


def test_samples_follow_the_softmax() -> None:
    probabilities = np.array([0.5, 0.3, 0.2])
    sampler = Sampler(temperature=2.0, top_p=1.0, seed=7)
    logits = (2.0 * np.log(probabilities)).astype(np.float32)
    counts = np.bincount([sampler.choose(logits) for _ in range(20_000)], minlength=3)
    np.testing.assert_allclose(counts / counts.sum(), probabilities, atol=0.015)


@pytest.mark.parametrize("size", [5, 1000])  # shorter and longer than the head that is searched first
@pytest.mark.parametrize("flat", [False, True])
def test_nucleus_is_the_fewest_that_reach_top_p(size: int, flat: bool) -> None:
    random = np.random.default_rng(size)
    logits = random.normal(scale=0.01 if flat else 4.0, size=size)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-probabilities)
    enough = next(n for n in range(1, size + 1) if probabilities[order[:n]].sum() >= 0.9)
    assert Sampler(1.0, top_p=0.9)._nucleus(probabilities).tolist() == order[:enough].tolist()


def test_same_seed_same_choices() -> None:
    logits = np.random.default_rng(1).normal(size=500).astype(np.float32)
    one, two, other = (Sampler(1.0, seed=seed) for seed in (3, 3, 4))
    first = [one.choose(logits) for _ in range(50)]
    assert first == [two.choose(logits) for _ in range(50)]
    assert first != [other.choose(logits) for _ in range(50)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_barred_is_not_the_first(temperature: float) -> None:
    logits = np.array([3.0, 9.0, 8.0, -5.0], np.float32)
    for seed in range(20):
        sampler = Sampler(temperature, seed=seed, barred=lambda token: token in (1, 3))
        assert sampler.choose(logits) in ((2,) if not temperature else (0, 2))
        assert Sampler().choose(logits) == 1 and (temperature or sampler.choose(logits) == 1)


def test_nan_is_refused() -> None:
    with pytest.raises(NotANumber):
        Sampler().choose(np.array([1.0, np.nan], dtype=np.float32))


@pytest.mark.parametrize(
    "arguments", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"seed": -1}]
)
def test_out_of_range_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(EngrainError):
        Sampler(**arguments)  # type: ignore[arg-type]


@given(st.text(), st.lists(st.integers(1, 5), min_size=1))
def test_bytes_in_any_cuts_give_the_text(text: str, cuts: list[int]) -> None:
    data = text.encode()
    assembler = TextAssembler()
    pieces, at, turn = [], 0, 0
    while at < len(data):
        step = cuts[turn % len(cuts)]
        pieces.append(assembler.feed(data[at : at + step]))
        at, turn = at + step, turn + 1
    assert "".join(pieces) + assembler.rest() == text.lstrip()
    assert not any("\ufffd" in piece for piece in pieces if "\ufffd" not in text)


def fed(assembler: TextAssembler, text: str, cuts: list[int]) -> str:
    """What it shows of a text that comes in pieces of these sizes, in turn, until it stops."""
    shown, at, turn = "", 0, 0
    while at < len(text) and not assembler.stopped:
        step = cuts[turn % len(cuts)]
        shown += assembler.feed(text[at : at + step].encode())
        at, turn = at + step, turn + 1
    return shown + assembler.rest()


@given(st.text("ab\nUs"), st.lists(st.integers(1, 3), min_size=1))
def test_stop_string_ends_the_text_wherever_it_is_cut(text: str, cuts: list[int]) -> None:
    assembler = TextAssembler(["\nUs"])
    shown = fed(assembler, text, cuts)
    before, found, _ = text.lstrip().partition("\nUs")
    assert shown == before
    assert assembler.stopped == bool(found)


@given(st.text("abc"), st.lists(st.integers(1, 3), min_size=1))
def test_the_first_of_several_stop_strings_ends_it(text: str, cuts: list[int]) -> None:
    stops = ("ab", "cb", "bca")  # none is part of another
    assembler = TextAssembler(stops)
    shown = fed(assembler, text, cuts)
    ends = [i for i in range(len(text)) if text.startswith(stops, i)]
    assert assembler.stopped == bool(ends)
    assert shown == (text[: ends[0]] if ends else text)


def test_half_a_character_is_dropped_and_a_wrong_byte_replaced() -> None:
    assembler = TextAssembler()
    assert assembler.feed(b"a\xff") == "a\ufffd"
    assert assembler.feed("é".encode()[:1]) == ""
    assert assembler.rest() == ""
