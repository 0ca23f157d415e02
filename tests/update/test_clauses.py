"""What a message tells, clause by clause: wordings that are not those of any benchmark."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engrain.update import clauses, frames


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("By the way, my goat is ill.", ["My goat is ill."]),
        ("Sorry for the delay, I was feeding our goat Pim.", ["I was feeding our goat Pim."]),
        ("Please remember that my PIN is 4471.", ["My PIN is 4471."]),
        ("The gate code is 90210, please remember it.", ["The gate code is 90210."]),
        ("Please call me Skipper.", ["I want to be called Skipper."]),
        ("Hi, I'm Tom.", ["I'm Tom."]),
        ("Can you help me? I want to visit Graz.", ["I want to visit Graz."]),
        ("My son is seven and my daughter Ida is three.", ["My son is seven.", "My daughter Ida is three."]),
        ("I'm Anna, I'm 34 and I live in Kiel.", ["I'm Anna.", "I'm 34.", "I live in Kiel."]),
        ("I live in Graz and work at a mill.", ["I live in Graz.", "I work at a mill."]),
        ("My aunt sold her house and moved to Spain.", ["My aunt sold her house.", "My aunt moved to Spain."]),
        ("I have a goat. His name is Pim.", ["I have a goat.", "My goat's name is Pim."]),
        ("We bought a boat. It's blue.", ["We bought a boat.", "My boat is blue."]),
        ("When I was ten, we moved to Chile.", ["When I was ten, we moved to Chile."]),
        ("My goat has eaten my hat, what should I do?", ["My goat has eaten my hat."]),
        ("Whats a good name for a boat? Ours is blue.", ["Ours is blue."]),
        ("Marzipan? I could live on it.", ["Marzipan? I could live on it."]),
        ("Petra rang today! She's my cousin.", ["Petra rang today!", "Petra rang today! She's my cousin."]),
        ("My bank is open again. They moved to Bern.", ["My bank is open again.", "They moved to Bern."]),
        ("Write to my aunt, Dr. Osei, because the tap drips.", ["My aunt is called Dr. Osei.", "The tap drips."]),
        ("What can I cook for our son Tom Ade?", ["Our son is called Tom Ade."]),
        ("Write to my son's teacher, Mr Osei.", ["My son's teacher is called Mr Osei."]),
        ("Can you plan a day when my mum's visiting Rome?", []),
        (
            "Notes for the trip: we leave at nine, and I drive our van.",
            ["Notes for the trip: we leave at nine.", "Notes for the trip: I drive our van."],
        ),
        (
            "News: my aunt Ida moved to Bern, she keeps goats.",
            ["News: my aunt Ida moved to Bern.", "My aunt keeps goats."],
        ),
        ("My desk moved: it is number 20 now.", ["My desk moved: it is number 20 now."]),
        ("Ugh, the train to Bern was late.", ["The train to Bern was late."]),
        ("My goat eats at night, she insists.", ["My goat eats at night, she insists."]),
    ],
)
def test_a_message_comes_apart_into_what_stands_alone(message: str, told: list[str]) -> None:
    assert clauses.told(message) == told


@pytest.mark.parametrize("text", ["?? is so and so", "My goat is , hm", "I want to , well", "I'm , here"])
def test_sentences_without_words_in_their_places_are_no_trouble(text: str) -> None:
    assert isinstance(frames.questions(text), list)


@pytest.mark.parametrize(
    "message",
    [
        "I like fish and chips with vinegar.",
        "My sister and my brother live in Rome.",
        "I love my goat and my dog.",
        "I hate coriander, it tastes of soap.",
        "My bike was stolen, but the police found it.",
        "Ich wohne in Kiel und mein Bruder ist Arzt.",
        "Je suis né à Lyon, et ma sœur aussi.",
    ],
)
def test_what_belongs_together_stays_together(message: str) -> None:
    assert clauses.told(message) == [message]


def test_what_asks_or_greets_tells_nothing() -> None:
    assert clauses.told("Hello there! Where is my goat? Write me a poem.") == []


def test_a_pronoun_may_mean_what_an_earlier_message_told_but_not_another_conversations() -> None:
    messages = [("a", "I have a goat."), ("b", "She is nine."), ("a", "Nice, isn't it?"), ("a", "She is nine.")]
    assert clauses.told_in(messages) == [["I have a goat."], ["She is nine."], [], ["My goat is nine."]]
    assert clauses.told("It is raining.", "I have a goat.") == ["It is raining."]


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("Can you word a card? It's for Ana.", ["It's for Ana."]),
        ("Can you name our boat? It's a small sloop.", ["Our boat is a small sloop."]),
        ("What should I do? He doesn't eat.", ["My dog doesn't eat."]),
    ],
)
def test_a_pronoun_after_a_request_means_what_the_request_named(message: str, told: list[str]) -> None:
    assert clauses.told(message, "My dog Rufus is ill.") == told


@pytest.mark.parametrize(
    ("said", "question"),
    [
        ("My aunt is afraid of spiders.", "What is my aunt afraid of?"),
        ("My uncle was born in Lima.", "Where was my uncle born?"),
        ("My son Per is seven.", "How old is my son?"),
        ("I'm 170 centimetres tall.", "How tall am I?"),
        ("My landlord, Mr. Osei, paints boats.", "What is my landlord's name?"),
        ("We're getting engaged on Sunday.", "When are we getting engaged?"),
        ("I've been learning Welsh since May.", "What am I learning?"),
        ("I want to visit Graz in spring.", "Where do I want to visit?"),
        ("Our neighbours feed the goat.", "What do our neighbours feed?"),
        ("I owe Tom ten francs.", "Who do I owe?"),
    ],
)
def test_grammar_asks_about_what_others_are_and_do(said: str, question: str) -> None:
    assert question in frames.questions(said)


WORDS = st.sampled_from(
    "I I'm we've my our the his it he's They and , ; but is was are being because when called 7 three tall cat Ida Dr. "
    "Mrs. bought a live in to want be please remember hi … ( ) \" ' ’ é 😀 ? ! . 's of".split()
)


SAID = st.one_of(
    st.text(max_size=60),
    st.lists(WORDS, max_size=14).map(" ".join),
    st.tuples(st.lists(WORDS, max_size=3), st.lists(WORDS, max_size=4)).map(
        lambda sides: " is ".join(map(" ".join, sides))
    ),
)


@settings(max_examples=400, deadline=None)
@given(text=SAID, before=SAID)
def test_any_text_can_be_said(text: str, before: str) -> None:
    assert all(question.strip() for question in frames.questions(text))
    for clause in clauses.told(text, before):
        assert clause.strip()
        assert all(question.strip() for question in frames.questions(clause))
