"""The scope that is fitted: it tells taught from neutral messages, and always holds corrections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engrain.device.home import open_home
from engrain.device.runtime import Runtime
from engrain.device.scope import PERSONAL, Scope, fingerprints
from engrain.quant.gguf import open_gguf
from engrain.update.decoder import Decoder
from engrain.update.scope import fit_scope, hidden_states
from engrain.update.study import Lesson

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
