"""What a reader is taught, what of its statements is taken, and that its own adapter alone reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engrain.device.home import open_home
from engrain.device.runtime import Runtime
from engrain.quant.gguf import open_gguf
from engrain.update import schooling
from engrain.update.decoder import Decoder
from engrain.update.reader import NEAR, Reader, Sentence, choose, is_grounded, newly_named, read
from engrain.update.schooling import READER, TUTOR, Subject, read_adapter
from engrain.update.train_reader import read_conversations, to_lessons, train_reader

BAND = Sentence("The bakery lets us rehearse there.", "We're called the Tin Herons.", 1)


def test_sentences_come_with_what_was_said_before_in_their_conversation() -> None:
    found = list(read([("a", "I row. Why not?"), ("b", "I knit."), ("a", "It's a lake boat."), ("a", "Blue.")]))
    assert [(s.said, s.before, s.message) for s in found] == [
        ("I row.", "", 0), ("Why not?", "I row.", 0), ("I knit.", "", 1), ("It's a lake boat.", "I row. Why not?", 2),
        ("Blue.", "I row. Why not? / It's a lake boat.", 3),
    ]  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from("ab"), st.text()), max_size=5))
def test_what_came_before_is_short_and_one_line(messages: list[tuple[str, str]]) -> None:
    for sentence in read(messages):
        assert len(sentence.before) <= NEAR and "\n" not in sentence.before + sentence.said


def test_conversations_are_whole() -> None:
    rows = list(read_conversations())
    assert len(rows) > 14_000
    assert 0.2 < sum(not statements for _, statements in rows) / len(rows) < 0.6  # many sentences tell nothing
    assert all("|" not in s and "\n" not in s for _, statements in rows for s in statements)


@pytest.mark.parametrize(
    ("statement", "grounded"),
    [
        ("The bakery lets the Tin Herons rehearse at the bakery.", True),
        ("The bakery lets us rehearse on Sundays.", False),  # nobody said so
        ("The bakery rehearses with the bakery.", False),
        ("Does the bakery let us rehearse?", False),
    ],
)
def test_a_statement_is_made_of_what_was_said(statement: str, grounded: bool) -> None:
    assert is_grounded(statement, BAND) is grounded


def test_another_form_of_a_word_is_that_word() -> None:
    said = Sentence("I pay her 40 euros for the boat-trip.", "My aunt is well.", 1)
    assert is_grounded("My aunt gets paid 40 euros for a boat trip.", said) is False  # nobody said that she gets it
    assert is_grounded("I pays my aunt 40 euros for a boat trip.", said)
    assert not is_grounded("I pay my aunt 4 euros for a boat trip.", said)
    law = Sentence("My brother in law owes me six euros.", "Call 555-1234.", 1)
    assert is_grounded("My brother-in-law owes me six euros.", law)
    assert not is_grounded("My brother-in-law owes me sixty euros.", law)
    assert not is_grounded("My brother-in-law's number is 1234.", law)


def test_nobody_is_called_as_somebody_of_theirs() -> None:
    said = Sentence("Write to my son's teacher, Mr Osei, that he'll miss class.", "", 0)
    assert is_grounded("My son's teacher is called Mr Osei.", said)
    assert not is_grounded("My son is called Mr Osei.", said)
    assert not is_grounded("My son Mr Osei will miss class.", said)


def test_what_is_the_users_own_is_given_to_nobody() -> None:
    said = Sentence("We had our silver wedding in May, and she baked the cake.", "My sister is called Ottla.", 0)
    assert is_grounded("Our silver wedding was in May.", said)
    assert not is_grounded("My sister Ottla's silver wedding was in May.", said)
    hers = Sentence("I lent her my bicycle because her bicycle has no brakes.", "My niece Ama is here.", 0)
    assert is_grounded("My niece Ama's bicycle has no brakes.", hers)


def test_numbers_count_whole() -> None:
    assert not is_grounded("The code is 1187.", Sentence("The code is 11876.", "", 0))


GOAT = Sentence("My goat Pim is nine, and she hates rain.", "", 0)


def test_the_reading_that_says_most_for_its_cost_is_taken() -> None:
    whole, part, odd = ["My goat Pim is nine.", "Pim hates rain."], ["My goat Pim is nine."], ["Nine goats hate rain."]
    nothing: list[str] = []
    assert choose(GOAT, [(whole, -0.5), (part, -0.1), (nothing, -2.0)], {}) == whole
    assert choose(GOAT, [(whole, -9.0), (part, -0.1), (nothing, -2.0)], {}) == part
    assert choose(GOAT, [(whole, -9.0), (part, -8.0), (nothing, -0.2)], {}) == nothing
    assert choose(GOAT, [(odd, -0.5), (["Pim is nine, hates rain."], -0.5)], {}) == ["Pim is nine, hates rain."]


def test_clauses_are_added_for_what_is_left_out() -> None:
    readings = [(["My goat Pim is nine."], -0.1)]
    rain, both = "And she hates rain.", GOAT.said
    assert choose(GOAT, readings, {rain: -6.0}) == ["My goat Pim is nine.", rain]
    assert choose(GOAT, readings, {rain: -60.0}) == choose(GOAT, readings, {both: -0.1}) == ["My goat Pim is nine."]


def test_who_is_called_what_is_told_where_only_a_reading_says_so() -> None:
    late = Sentence("Tevita would eat rice every day", "One of us is my nephew.", 1)
    assert list(newly_named(late, ["My nephew Tevita would eat rice."])) == ["My nephew is called Tevita."]
    assert list(newly_named(late, ["My nephew Tevita would eat rice."], {"tevita"})) == []  # my brother, say
    assert list(newly_named(late, ["My nephew is called Tevita.", "My nephew Tevita's rice is hot."])) == [
        "My nephew is called Tevita."
    ]
    assert list(newly_named(late, ["My nephew is called Tevita.", "My order number is KX-4."])) == []
    said = Sentence("We sail my old Contessa.", "", 0)
    assert list(newly_named(said, ["We sail my old Contessa."])) == []


def test_of_a_message_each_sentence_tells_what_was_said_by_then(tmp_path: Path) -> None:
    rows = [
        {"turns": ["I row.", "Why?"], "tells": [["I row."], []]},
        {"turns": ["My brothers? Ivo. He's ten."], "tells": [["My brother Ivo is ten.", "My brother is called Ivo."]]},
    ]
    file = tmp_path / "talk.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    told = {sentence.said: statements for sentence, statements in read_conversations(file)}
    assert told["He's ten."] == ["My brother Ivo is ten."]
    assert told["Ivo."] == ["My brother is called Ivo."]


def test_people_change_the_subject(tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    file.write_text("\n".join(json.dumps({"turns": [f"{n}."], "tells": [[]]}) for n in "abcdefg"))
    before = {sentence.said: sentence.before for sentence, _ in read_conversations(file)}
    assert before == {"a.": "", "b.": "", "c.": "", "d.": "c.", "e.": "", "f.": "", "g.": "f."}


def test_a_reader_learns_its_corpus_and_reads_with_it(tiny: Path, tmp_path: Path) -> None:
    gguf, rows = open_gguf(tiny), [(BAND, ["The bakery lets the Tin Herons rehearse."]), (BAND, [])] * 20
    with Runtime.load(tiny) as runtime:
        taught = runtime.detokenize(to_lessons(runtime, rows)[0].tokens)
        assert taught == f"{BAND.prompt} The bakery lets the Tin Herons rehearse. |\n"
        torch.manual_seed(0)
        losses = train_reader(runtime, Decoder(gguf, rank=4, dtype=torch.float32), rows, budget=60.0)
        assert losses[-1] < losses[0]

        path = schooling.make(READER, runtime, gguf, tmp_path / "a" / "reader.gguf", budget=1.0)
        decoder = Decoder(gguf, rank=2, dtype=torch.float32)
        own = [p.detach().clone() for group in decoder.groups() for p in group.parameters()]
        messages = [("a", "My goat is called Pim."), ("a", "What do goats eat?"), ("b", "x " * 400 + "is my hat.")]
        found = Reader(runtime, decoder, read_adapter(path, gguf)).told(messages)
        assert len(found) == 3 and all(isinstance(s, str) for told in found for s in told)
        assert Reader(runtime, decoder, read_adapter(path, gguf)).told([]) == []
    now = [p for group in decoder.groups() for p in group.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(own, now, strict=True))  # its own adapter is as it was


def test_a_model_that_brings_a_tutor_brings_a_reader() -> None:
    names = [{path.name for path in subject.bundled.glob("*.gguf")} for subject in (TUTOR, READER)]
    assert names[0] and names[0] == names[1]


def test_a_damaged_one_is_made_anew_where_serving_looks_first(tiny: Path, tmp_path: Path) -> None:
    gguf, home = open_gguf(tiny), open_home(tmp_path / "home")
    taught: list[float] = []
    subject = Subject("odd", tmp_path / "bundled", lambda runtime, decoder, budget, progress: taught.append(budget))
    own, bundled = subject.paths(home, "0" * 64)
    with Runtime.load(tiny) as runtime:
        schooling.make(subject, runtime, gguf, bundled)
        assert schooling.ensure(subject, home, runtime, gguf, "0" * 64)[0] == bundled and len(taught) == 1
        own.parent.mkdir(parents=True)
        own.write_bytes(b"GGUF, but not much of it")
        assert schooling.ensure(subject, home, runtime, gguf, "0" * 64)[0] == own and len(taught) == 2
        assert schooling.ensure(subject, home, runtime, gguf, "0" * 64)[0] == own and len(taught) == 2
