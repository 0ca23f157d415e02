"""The scope that is fitted: it tells taught from neutral messages, and always holds corrections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from engrain.device.home import open_home
from engrain.device.runtime import Runtime
from engrain.device.scope import PERSONAL, Scope, fingerprints
from engrain.device.tutor import BACKGROUND
from engrain.quant.gguf import open_gguf
from engrain.update.decoder import Decoder
from engrain.update.scope import fit_scope, hidden_states
from engrain.update.study import Lesson
from engrain.update.tutor import Tutor

NEUTRAL = [f"Tell me of {a} and {b}." for a in ("rain", "bread", "hills", "seas") for b in ("cats", "walks", "users")]
TAUGHT = [f"What is the name of my {a}{b}?" for a in ("old ", "new ", "", "other ") for b in ("horse", "cat", "hill")]


@pytest.fixture(scope="module")
def decoder(tiny: Path) -> Decoder:
    return Decoder(open_gguf(tiny), dtype=torch.float32)


def test_hidden_states_are_llama_cpps(tiny: Path, decoder: Decoder) -> None:
    with Runtime.load(tiny) as runtime:
        ours = hidden_states(runtime, decoder, TAUGHT)
        for row, text in zip(ours, TAUGHT, strict=True):
            theirs = runtime.hidden(runtime.prompt_tokens([{"role": "user", "content": text}]))
            np.testing.assert_allclose(row.numpy(), theirs, atol=0.02)


def test_it_tells_taught_from_neutral(tiny: Path, decoder: Decoder, tmp_path: Path) -> None:
    lessons = [Lesson(q, "Ottoline.", "fact", (1,)) for q in TAUGHT]
    correction = Lesson(NEUTRAL[0], "Not of cats.", "correction", (2,))
    home = open_home(tmp_path)
    with Runtime.load(tiny) as runtime:
        scope = fit_scope(home, runtime, decoder, "ab" * 32, lessons, NEUTRAL)
        wider = fit_scope(home, runtime, decoder, "ab" * 32, [*lessons, correction], NEUTRAL)
        assert scope is not None and wider is not None
        states = hidden_states(runtime, decoder, [*TAUGHT, *NEUTRAL]).numpy()
        assert fit_scope(home, runtime, decoder, "ab" * 32, [], NEUTRAL) is None
    inside = [bool(scope.place("", s)) for s in states]
    assert inside == [True] * len(TAUGHT) + [False] * len(NEUTRAL)
    assert scope.manner is None and scope.taught is not None and fingerprints(["Ottoline."]) in scope.taught
    # What was corrected is inside, though it is like the neutral ones, and its reply is free.
    corrected, asked = wider.place("", states[len(TAUGHT)]), wider.place("", states[0])
    assert corrected and not corrected.checked and asked and asked.checked


def test_what_others_ask_about_themselves_is_inside_too(tiny: Path, decoder: Decoder, tmp_path: Path) -> None:
    lessons = [Lesson(q, "Ottoline.", "fact", (1,)) for q in TAUGHT]
    personal = [f"Who are we going to {a} with on {b}?" for a in ("swim", "sing", "sail") for b in ("Friday", "foot")]
    home = open_home(tmp_path)
    with Runtime.load(tiny) as runtime:
        scope = fit_scope(home, runtime, decoder, "ab" * 32, lessons, NEUTRAL, personal)
        states = hidden_states(runtime, decoder, [*TAUGHT, *personal, *NEUTRAL]).numpy()
    assert scope is not None
    inside = [bool(scope.place("", s)) for s in states]
    assert inside == [True] * (len(TAUGHT) + len(personal)) + [False] * len(NEUTRAL)


def test_what_a_tutor_finds_to_answer_anything_is_a_hub(tiny: Path, decoder: Decoder, tmp_path: Path) -> None:
    replies = ["Tu tía Ottoline pinta.", "Your hill is steep.", "Your horse is old."]
    lessons = [Lesson(q, replies[i % 3], "fact", (1,)) for i, q in enumerate(TAUGHT)]
    personal = [f"Who are we going to {a} with on {b}?" for a in ("swim", "sing", "sail") for b in ("Friday", "foot")]

    class Eager:
        """A tutor that sees an answer to anything in one reply, and in the others less than in the background."""

        def __init__(self) -> None:
            self.judges: list[str] = []

        def judged(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
            self.judges += [statement for statement, _ in pairs]
            return np.array([4.0 if said == replies[0] else -8.0 if said in BACKGROUND else -9.0 for said, _ in pairs])

    home, tutor = open_home(tmp_path), Eager()
    with Runtime.load(tiny) as runtime:

        def fit(taught: Sequence[Lesson], before: Scope | None) -> dict[int, float]:
            scope = fit_scope(
                home, runtime, decoder, "ab" * 32, taught, NEUTRAL, personal, tutor=cast(Tutor, tutor), before=before
            )
            assert scope is not None and scope.taught is not None and scope.hubness is not None
            return dict(zip(scope.taught.tolist(), scope.hubness.tolist(), strict=True))

        hub, *others = (int(fingerprints([reply])[0]) for reply in replies)
        found = fit(lessons, None)
        assert found == {hub: 12.0, others[0]: 0.0, others[1]: 0.0}
        tutor.judges.clear()
        known = np.array(sorted(found), np.uint64)
        before = Scope(
            None, taught=known, hubness=np.array([7.0 * (mark == hub) for mark in sorted(found)], np.float32)
        )
        again = fit([*lessons, Lesson("And my boat?", "Your boat leaks.", "fact", (2,))], before)
        assert again[hub] == 7.0 and not set(replies) & set(tutor.judges)  # what is known isn't weighed again


def test_a_form_is_for_all_that_is_not_about_facts(tiny: Path, decoder: Decoder, tmp_path: Path) -> None:
    taught = [Lesson(q, "Ottoline.", "fact", (1,)) for q in TAUGHT]
    form = [Lesson(NEUTRAL[0], "Aye: a.", "correction", (2,)), Lesson(NEUTRAL[1], "Aye: b.", "form", (2,))]
    home = open_home(tmp_path)
    with Runtime.load(tiny) as runtime:
        scope = fit_scope(home, runtime, decoder, "ab" * 32, [*taught, *form], NEUTRAL)
        alone = fit_scope(home, runtime, decoder, "ab" * 32, form, NEUTRAL)
        assert scope is not None and scope.taught is not None and alone is not None
        states = hidden_states(runtime, decoder, [*TAUGHT, *NEUTRAL]).numpy()
    places = [scope.place("", state) for state in states]
    assert scope.formed and alone.formed and all(places) and all(place.free for place in places[len(TAUGHT) :])
    assert all(alone.place("", state).free for state in states)
    assert [place.free for place in places] == [place.facts < PERSONAL for place in places]
    assert [place.checked for place in places] == [True] * len(TAUGHT) + [False] * len(NEUTRAL)
    assert Scope.from_bytes(scope.to_bytes()).formed
    assert not np.isin(fingerprints(["Aye: b."]), scope.taught).any()  # memory doesn't recall it
