"""The corpus that a tutor learns from, that learning from it gets somewhere, and the tutor at study."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from engrain.device.runtime import Runtime
from engrain.device.tutor import NO, VERDICT, YES, asked_prompt, not_told_prompt
from engrain.quant.gguf import open_gguf
from engrain.update.corpus import Change, Row, questions_of_users, read_changes, read_corpus
from engrain.update.decoder import Decoder
from engrain.update.schooling import TUTOR, make, read_adapter
from engrain.update.train_tutor import VERDICT_WEIGHT, Teaching, train_tutor
from engrain.update.tutor import STANDS, Tutor, later_prompt
from engrain.update.wording import has_first_person

ROW = Row("I keep goats.", ("What do I keep?", "Which animals are mine?"), ("Where are the goats?",))


def test_corpus_is_whole() -> None:
    people = read_corpus()
    rows = [row for person in people for row in person]
    assert len(people) > 2300 and len({row.said for row in rows}) == len(rows)
    for person in people:
        for row in person:
            several = [(len(person[0].ask), len(person) + 1)]
            assert (len(row.ask), len(row.near)) in ([(7, 5), (6, 4)] if len(person) == 1 else several)
            assert len(person) == 1 or len(row.ask) in (3, 4)
            assert not set(row.ask) & set(row.near)


def test_changes_are_whole() -> None:
    changes = read_changes()
    assert len({change.said for change in changes}) == len(changes) > 300
    assert all(len({*change.ends, *change.stays}) == 6 == 2 * len(change.ends) for change in changes)


def test_questions_of_users_are_in_the_first_person() -> None:
    questions = questions_of_users(50)
    assert len(set(questions)) == 50 and all(map(has_first_person, questions))


def test_a_row_teaches_questions_and_verdicts(tiny: Path) -> None:
    with Runtime.load(tiny) as runtime:
        pack = Teaching(runtime).pack([(ROW, ["Who is my boss?"])] * 2, random.Random(0))
        texts = [runtime.detokenize(example.tokens) for example in pack.examples]
        yes, no = (runtime.detokenize(runtime.tokenize(word)[:1]) for word in (YES, NO))
        end = len(runtime.tokenize(VERDICT)) - 1  # of the verdict's line, behind the question's
    half = len(texts) // 2
    for i, text in enumerate(texts):
        said = next(s for s in ("I keep goats.", "You keep goats.") if s in texts[i - i % half])
        answered = [f"{asked_prompt(said)} {question}{VERDICT}{yes}" for question in ROW.ask]
        denied = [f"{asked_prompt(said)} {question}{VERDICT}{no}" for question in (*ROW.near, "Who is my boss?")]
        written = [f"{not_told_prompt(said)} {ROW.near[0]}\n"]
        assert text == [*answered, *denied, *written][i % half]
        weights = pack.weight[pack.owner == i].tolist()
        if text in answered:
            assert set(weights[: -end - 1]) == {1.0} and weights[-end - 1 :] == [0.0] * end + [VERDICT_WEIGHT]
        else:  # what isn't answered isn't written under "Asked"
            assert weights == [VERDICT_WEIGHT] if text in denied else set(weights) == {1.0}


def test_a_change_teaches_what_is_still_true(tiny: Path) -> None:
    change = Change("I keep goats.", ("Sold the goats.",), ("The goats are fine.",))
    with Runtime.load(tiny) as runtime:
        pack = Teaching(runtime).pack([(change, ["It rains."])], random.Random(0))
        texts = [runtime.detokenize(example.tokens) for example in pack.examples]
        yes, no = (runtime.detokenize(runtime.tokenize(word)[:1]) for word in (YES, NO))
    said = next(s for s in ("I keep goats.", "You keep goats.") if s in texts[0])
    after = {"The goats are fine.": yes, "It rains.": yes, "Sold the goats.": no}
    assert texts == [f"{later_prompt(message)} {said}{STANDS}{word}" for message, word in after.items()]
    assert set(pack.weight.tolist()) == {VERDICT_WEIGHT}


def test_it_learns_the_same_from_the_same_seed(tiny: Path) -> None:
    def trained() -> tuple[list[float], list[torch.Tensor]]:
        torch.manual_seed(0)
        decoder = Decoder(open_gguf(tiny), rank=4, dtype=torch.float32)
        with Runtime.load(tiny) as runtime:
            losses = train_tutor(runtime, decoder, [(ROW,)] * 120, seed=1)
        return losses, [p.detach() for group in decoder.groups() for p in group.parameters()]

    (losses, weights), (_, again) = trained(), trained()
    assert losses[-1] < losses[0] - 1
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))


def test_the_tutor_at_study_is_the_one_that_serves(tiny: Path, tmp_path: Path) -> None:
    gguf, pairs = open_gguf(tiny), [("I keep goats.", "What do I keep?"), ("The sea is far.", "Who?")]
    with Runtime.load(tiny) as runtime:
        path = make(TUTOR, runtime, gguf, tmp_path / "a" / "tutor.gguf", budget=2.0)
        decoder = Decoder(gguf, rank=2, dtype=torch.float32)
        torch.nn.init.normal_(decoder.groups()[0].lora_b[0])
        own = [p.detach().clone() for group in decoder.groups() for p in group.parameters()]
        tutor = Tutor(runtime, decoder, read_adapter(path, gguf))
        assert tutor.judged([]).shape == (0,)
        found = tutor.judged(pairs)
        drafts = tutor.asked([said for said, _ in pairs], 5), tutor.not_told([said for said, _ in pairs], 3)
        runtime.use_tutor(path)
        for (said, question), odds in zip(pairs, found, strict=True):
            asked = runtime.tokenize(f" {question}")
            choices = [runtime.tokenize(word)[0] for word in (YES, NO)]
            prompt, target = runtime.tokenize(asked_prompt(said)), [*asked, *runtime.tokenize(VERDICT)]
            _, ((yes, no),) = runtime.weigh([prompt], target, choices)
            assert odds == pytest.approx(yes - no, abs=0.05)
        prompts = [runtime.tokenize(asked_prompt(said)) for said, _ in pairs]
        served = runtime.weigh(prompts, target, choices)
        runtime.weigh_by(tutor.weigh)
        learned = runtime.weigh(prompts, target, choices)
        for a, b in zip(served, learned, strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, atol=0.05)
        runtime.weigh_by(lambda *_: (np.zeros((1, 1)), np.ones((1, 1))))
        assert runtime.weigh(prompts, target, choices)[1].sum() == 1
        runtime.weigh_by(None)
        assert runtime.weigh(prompts, target, choices)[1].shape == (2, 2)  # the tutor's own again
    for texts, most in zip(drafts, (5, 3), strict=True):
        assert len(texts) == 2 and all(0 < len(each) <= most and len(set(each)) == len(each) for each in texts)
    now = [p for group in decoder.groups() for p in group.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(own, now, strict=True))  # its own adapter is as it was
