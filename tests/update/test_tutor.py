"""The corpus that a tutor learns from, and that learning from it gets somewhere."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from engrain.device.runtime import Runtime
from engrain.device.tutor import NO, VERDICT, YES, asked_prompt, not_told_prompt
from engrain.quant.gguf import open_gguf
from engrain.update.decoder import Decoder
from engrain.update.tutor import VERDICT_WEIGHT, Row, Teaching, read_corpus, train_tutor

ROW = Row("I keep goats.", ("What do I keep?", "Which animals are mine?"), ("Where are the goats?",))


def test_corpus_is_whole() -> None:
    rows = read_corpus()
    assert len(rows) > 800 and len({row.said for row in rows}) == len(rows)
    for row in rows:
        assert len(row.ask) == 7 and len(row.near) == 5
        assert not set(row.ask) & set(row.near)


def test_a_row_teaches_questions_and_verdicts(tiny: Path) -> None:
    with Runtime.load(tiny) as runtime:
        pack = Teaching(runtime).pack(ROW, ["Who is my boss?"], random.Random(0))
        texts = [runtime.detokenize(example.tokens) for example in pack.examples]
        yes, no = (runtime.detokenize(runtime.tokenize(word)[:1]) for word in (YES, NO))
    said = next(text for text in ("I keep goats.", "You keep goats.") if text in texts[0])
    judged = [(q, yes) for q in ROW.ask] + [(q, no) for q in (*ROW.near, "Who is my boss?")]
    expected = [f"{asked_prompt(said)} {question}{VERDICT}{verdict}" for question, verdict in judged]
    assert sorted(texts) == sorted([*expected, f"{not_told_prompt(said)} {ROW.near[0]}\n"])
    for i, text in enumerate(texts):
        weights = pack.weight[pack.owner == i]
        assert (weights[-1] == VERDICT_WEIGHT) == (text in expected)
        assert (weights[0] > 0) == (text not in expected[2:])  # what isn't answered isn't written under "Asked"


def test_it_learns_the_same_from_the_same_seed(tiny: Path) -> None:
    def trained() -> tuple[list[float], list[torch.Tensor]]:
        torch.manual_seed(0)
        decoder = Decoder(open_gguf(tiny), rank=4, dtype=torch.float32)
        with Runtime.load(tiny) as runtime:
            losses = train_tutor(runtime, decoder, [ROW] * 120, seed=1)
        return losses, [p.detach() for group in decoder.groups() for p in group.parameters()]

    (losses, weights), (_, again) = trained(), trained()
    assert losses[-1] < losses[0] - 1
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
