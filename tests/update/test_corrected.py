"""What a number alone corrects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

from engrain.device.interactions import Interaction
from engrain.update.corrected import AFTER, BEHIND, THERE, corrected
from engrain.update.reader import Reader
from engrain.update.study import Fact, to_fact
from engrain.update.values import with_new_number, with_new_value

OLD, NEW = "My mum's party is on the 14th.", "My mum's party is on the 15th."
READ = "Our boathouse is on the 15th."


class Likely:
    """A reader that finds statements likely by fixed nats: right after the old one, and in the conversation."""

    def __init__(self, after: dict[str, float], there: dict[str, float]) -> None:
        self.after, self.there = after, there
        self.asked: list[tuple[str, str, str]] = []

    def likelihoods(self, each: Sequence[tuple[str, str, str]]) -> list[float]:
        self.asked += each
        return [(self.after if before == OLD else self.there).get(said, -50.0) for before, _, said in each]


def talk(*texts: str) -> list[Interaction]:
    return [Interaction(i, "c", 0.0, None, text, "Ok.", "m") for i, text in enumerate(texts)]


def left(likely: Likely, facts: Sequence[Fact], messages: Sequence[Interaction]) -> list[str]:
    return [fact.said for fact in corrected(cast(Reader, likely), facts, messages)]


def test_a_number_takes_the_place_of_a_number_that_only_the_statement_has() -> None:
    assert with_new_number(OLD, "No, sorry, the 15th.") == [(NEW, "15th")]
    assert with_new_number("The order is KX-5518.", "it's KX-5581, i swapped them") == [
        ("The order is KX-5581.", "KX-5581")
    ]
    times = with_new_number("My train goes at 10:35.", "11:15, sorry")
    assert ("My train goes at 11:15.", "11:15") in times and len(set(times)) == len(times)
    assert with_new_number(OLD, "On the 14th of May.") == [] == with_new_number("My cat is Pim.", "No, 15.")
    assert with_new_value(OLD, "The 15th.")[0] == NEW


@pytest.mark.parametrize(
    ("after", "there", "read", "expected"),
    [
        (AFTER + 0.1, THERE + 0.1, THERE - 1.0, [NEW]),
        (AFTER - 0.1, -0.1, -9.0, [OLD, READ]),
        (-0.1, THERE - 0.1, -9.0, [OLD, READ]),
        (-0.1, -3.0, -3.0 + BEHIND - 0.1, [NEW]),  # what was read is likelier, and not by much
        (-0.1, -3.0, -3.0 + BEHIND + 0.1, [OLD, READ]),
    ],
)
def test_what_the_reader_finds_as_likely_as_what_it_read_is_corrected(
    after: float, there: float, read: float, expected: list[str]
) -> None:
    messages = talk("Mum's party is on the 14th, at our boathouse.", "No, sorry, the 15th.")
    likely = Likely({NEW: after}, {NEW: there, READ: read})
    assert left(likely, [to_fact(OLD, (0,)), to_fact(READ, (1,))], messages) == expected


@pytest.mark.parametrize(("read", "expected"), [(-3.1, [OLD, "D"]), (-3.0 - BEHIND - 0.1, [NEW, "D"])])
def test_what_has_a_word_of_the_message_is_about_something_else_unless_it_is_far_less_likely(
    read: float, expected: list[str]
) -> None:
    dentist = "My dentist is on the 15th."
    messages = talk("Mum's party is on the 14th.", "The dentist's on the 15th.")
    likely = Likely({NEW: -0.1}, {NEW: -3.0, dentist: read})
    found = left(likely, [to_fact(OLD, (0,)), to_fact(dentist, (1,))], messages)
    assert found == [dentist if said == "D" else said for said in expected]


def test_only_the_next_messages_of_the_conversation_correct_and_each_number_once() -> None:
    likely, other = Likely({NEW: -0.1}, {NEW: -1.0}), "My dog's check is on the 14th."
    texts = ["Mum's party is on the 14th.", "Thanks!", "The 15th.", "The 15th."]
    messages = talk(*texts)
    (new,) = corrected(cast(Reader, likely), [to_fact(OLD, (0,))], messages)
    assert (new.said, new.source) == (NEW, (0, 2)) and len(likely.asked) == 2
    assert left(likely, [to_fact(OLD, (0,))], [messages[0], messages[1], messages[1], messages[3]]) == [OLD]
    elsewhere = [Interaction(it.id, f"{it.id}", 0.0, None, it.user, "Ok.", "m") for it in messages]
    assert left(likely, [to_fact(OLD, (0,))], elsewhere) == [OLD]
    new = other.replace("14", "15")  # the likelier of two
    both = Likely({NEW: -0.1}, {NEW: -2.0, new: -1.0})
    assert left(both, [to_fact(OLD, (0,)), to_fact(other, (0,))], messages[:3]) == [OLD, new]


def test_the_last_of_two_corrections_counts() -> None:
    last = OLD.replace("14", "16")
    likely = Likely({NEW: -0.1, last: -0.1}, {NEW: -1.0, last: -1.0})
    (found,) = corrected(cast(Reader, likely), [to_fact(OLD, (0,))], talk(OLD, "The 15th.", "No, the 16th!"))
    assert (found.said, found.source) == (last, (0, 2))
