"""Sentences, persons and plain questions: wordings that are not those of any benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engrain.device.runtime import Runtime
from engrain.quant.gguf import open_gguf
from engrain.update import frames, wording
from engrain.update.decoder import Decoder
from engrain.update.study import surprising_words, tidy_question, to_fact, with_surprising


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("My goat is called Pim.", "Your goat is called Pim."),
        ("I was born in Lagos and I'm left-handed.", "You were born in Lagos and you're left-handed."),
        ("Our neighbours gave us their old piano.", "Your neighbours gave you their old piano."),
        ("The alarm code is 9-1-7.", "The alarm code is 9-1-7."),
        ("Ich wohne in Kiel.", "Ich wohne in Kiel."),
        ("Meine Tante heiratet am Freitag im Rathaus.", "Meine Tante heiratet am Freitag im Rathaus."),
        ("I miei nonni sono di Trapani.", "I miei nonni sono di Trapani."),
        ("Mi vecina me cuida el perro.", "Mi vecina me cuida el perro."),
        ("My aunt's boat in La Paz is called El Sol.", "Your aunt's boat in La Paz is called El Sol."),
    ],
)
def test_the_users_words_become_the_assistants(said: str, answer: str) -> None:
    assert wording.to_second_person(said) == answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Your goat is called Pim.", "My goat is called Pim."),
        ("You are left-handed and you were born in Lagos.", "I am left-handed and I was born in Lagos."),
        ("Choir is every Monday for you.", "Choir is every Monday for me."),
        ("Your aunt gave you a clock, the one you broke.", "My aunt gave me a clock, the one I broke."),
        ("Your boss wants you to call.", "My boss wants me to call."),
        ("What are you afraid of?", "What am I afraid of?"),
        ("Were you there? Who are you?", "Was I there? Who am I?"),
    ],
)
def test_what_is_said_to_the_user_becomes_their_own(answer: str, said: str) -> None:
    assert wording.to_first_person(answer) == said


def test_statements_are_told_from_questions_and_requests() -> None:
    told = ["My knee hurts when it rains.", "We moved to Graz.", "The shed key hangs behind the door."]
    asked = ["What is the capital of Peru?", "Write me a poem about rain.", "Hello there!", "Thanks a lot for that."]
    assert [wording.is_statement(s) for s in told + asked] == [True] * 3 + [False] * 4


def test_where_no_spaces_part_words_each_character_is_one() -> None:
    assert wording.words("我的猫叫小白 and Tom") == [*"我的猫叫小白", "and", "tom"]
    parted = ["我的猫叫小白。", "它三岁。", "Its vet is Dr. Lee."]
    assert wording.sentences("".join(parted)) == parted
    told = ["我的猫叫小白。", "うちの犬はポチです。", "แมวของฉันชื่อส้ม"]
    asked = ["我的猫叫什么？", "ما هو اسم قطتي؟"]
    assert [wording.is_statement(s) for s in told + asked] == [True] * 3 + [False] * 2
    assert [tidy_question(s) for s in asked] == asked


def test_sentences_keep_abbreviations_whole() -> None:
    assert wording.sentences("I saw Dr. Osei today. He was kind! Was he?") == [
        "I saw Dr. Osei today.",
        "He was kind!",
        "Was he?",
    ]


@pytest.mark.parametrize(
    ("said", "question"),
    [
        ("My goat is called Pim.", "What is my goat's name?"),
        ("I'm allergic to pollen.", "What am I allergic to?"),
        ("We parked the van behind the mill.", "Where did we park the van?"),
        ("The alarm code is 9-1-7.", "What is the alarm code?"),
        ("I have a tortoise named Otto.", "What is the name of my tortoise?"),
    ],
)
def test_grammar_asks_what_a_person_would(said: str, question: str) -> None:
    assert question in frames.questions(said)


def test_the_words_that_are_news_are_those_that_llama_cpp_expects_least(tiny: Path) -> None:
    said = ["My goat Pimlico eats thistles.", "We parked the yellow van behind the old mill.", "Oh."]
    said += ["My dog is Bořek."]
    decoder = Decoder(open_gguf(tiny), dtype=torch.float32)
    with Runtime.load(tiny) as runtime:
        found = surprising_words(runtime, decoder, said, keep=99)
        for sentence, own in zip(said, found, strict=True):
            tokens = runtime.tokenize(sentence)
            nats = [0.0, *(-runtime.score(tokens[:1], tokens[1:]))]
            ends = [len(runtime.detokenize(tokens[: i + 1])) for i in range(len(tokens))]
            surprisal = dict.fromkeys(own, 0.0)
            for word in own:
                at = sentence.lower().index(word)
                for begin, end, each in zip([0, *ends], ends, nats, strict=False):
                    surprisal[word] += float(each) * (begin < at + len(word) and end > at)
            assert list(own) == sorted(own, key=lambda word: -surprisal[word])
            assert set(own) == set(wording.content_words(sentence))
        facts = with_surprising(runtime, decoder, [to_fact(each, (1,)) for each in said[:2]])
    assert [fact.surprising for fact in facts] == [own[:2] for own in found[:2]]
