"""Which corrections are about form, and what is taught of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from engrain.device import models
from engrain.device.home import open_home
from engrain.device.interactions import Interaction, InteractionLog
from engrain.device.runtime import Runtime
from engrain.quant.gguf import open_gguf
from engrain.update.build import build_decoder
from engrain.update.decoder import Decoder
from engrain.update.form import LESSONS, form_lessons, opening_of

NEUTRAL = tuple(f"What is number {i}?" for i in range(40))


def corrected(folder: Path, corrections: dict[str, str]) -> list[Interaction]:
    with InteractionLog(folder / "log.db") as log:
        for message, correction in corrections.items():
            log.correct(log.record("c", message, "It is.", model="ab" * 32), correction)
        return sorted(log.list(), key=lambda it: it.id)


@pytest.mark.parametrize(
    ("correction", "opening"),
    [
        ("Short answer: green.", "Short answer:"),
        ("- red\n- green", "-"),
        ("1. Boil it.\n2. Eat it.", "1."),
        ("Dear Ann,\nit is green.", "Dear Ann,"),
        ("**Answer:** green", "**Answer:**"),
        ("=> green", "=>"),
        ("It is green.", None),
        ("Ahoy! It is green.", "Ahoy!"),
        ("Only this:", None),
        ("It was 12: a dozen.", None),
    ],
)
def test_an_opening_is_set_apart_by_a_mark(correction: str, opening: str | None, tiny: Path) -> None:
    with Runtime.load(tiny) as runtime:  # that has no opinion; so another correction says that it is form
        found = opening_of(runtime, Decoder(open_gguf(tiny)), "What is it?", correction, (), [correction])
    assert found == opening


def test_what_two_corrections_open_with_is_form(tiny: Path) -> None:
    with Runtime.load(tiny) as runtime:
        decoder = Decoder(open_gguf(tiny))
        assert opening_of(runtime, decoder, "What?", "Aye: one.", (), ["Aye: two."]) == "Aye:"
        assert opening_of(runtime, decoder, "What?", "Aye: one.", (), ["No: two."]) is None  # nothing to measure by


def test_each_form_is_carried_over_to_messages_of_its_kind(tiny: Path, tmp_path: Path) -> None:
    about = {"What is it?": "Aye: one.", "Say it.": "=> it", "What is one?": "Aye: two.", "Say they.": "=> they"}
    said = corrected(tmp_path, {**about, "Which?": "It is this."})
    with Runtime.load(tiny) as runtime:
        lessons = form_lessons(runtime, Decoder(open_gguf(tiny)), said, (*NEUTRAL, *("Say this.", "Say that.") * 8))
    for it, opening in zip(said[:4], ("Aye:", "=>") * 2, strict=True):
        own = [lesson for lesson in lessons if lesson.source == (it.id,)]
        assert 0 < len(own) <= LESSONS
        assert all(lesson.kind == "form" and lesson.answer.startswith(opening) for lesson in own)
    assert {lesson.source for lesson in lessons} == {(it.id,) for it in said[:4]}


@pytest.mark.slow
def test_what_a_correction_says_is_no_form(tmp_path: Path) -> None:
    forms = {
        "How many legs has a horse?": "Ahoy, captain! It has four.",
        "What is a lighthouse?": "In one line: a tower with a lamp.",
        "How do I peel garlic?": "1. Crush the clove.\n2. Pull off the skin.",
        "Which metals are there?": "* iron\n* tin",
    }
    contents = {
        "What is the capital of Canada?": "Ottawa! Not Toronto.",
        "Who wrote Emma?": "Jane Austen: she wrote it in 1815.",
        "Is a whale a fish?": "No! It is a mammal.",
        "What should we call the boat?": "Kittiwake! It suits her.",
        "Write a function that doubles x.": "def double(x):\n    return 2 * x",
    }
    neutral = ("Where is the Eiffel Tower?", "Tell me a joke.", "Why do cats purr?", "How many days has a week?")
    starter = models.resolve(open_home(tmp_path), None).path
    with Runtime.load(starter) as runtime:
        decoder = build_decoder(open_gguf(starter))

        def found(message: str, correction: str) -> bool:
            return opening_of(runtime, decoder, message, correction, neutral) is not None

        assert [each for each in forms.items() if not found(*each)] == []
        assert [each for each in contents.items() if found(*each)] == []
