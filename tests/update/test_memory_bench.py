"""The memory benchmark: its sets, its scoring, what stands in the context, and the figures of many sessions."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engrain.device import models
from engrain.device.home import open_home
from engrain.device.interactions import InteractionLog
from engrain.device.runtime import Runtime
from engrain.device.scope import NOT_TOLD, Probe, Scope
from engrain.quant.errors import EngrainError
from engrain.quant.gguf import open_gguf
from engrain.update import memory_bench, memory_sessions, memory_set
from engrain.update.memory_drift import drift, leading_token, prompt_windows, text_windows

from ..device.test_runtime import random_adapter

FACTS = [
    {"said": "My goat is called Pim.", "ask": ["What is my goat's name?", "Who is Pim?"], "accept": ["Pim"]},
    {"said": "I was born on the 9th.", "ask": ["When was I born?"], "accept": ["9", "ninth"]},
    {"said": "My goat eats the hay in Graz.", "ask": ["Where is the hay?"], "accept": ["graz"]},
]
VALUES = {
    "about": "for people",
    "facts": FACTS,
    "updates": [{"said": "My goat is Otto now.", "ask": ["Which goat?"], "accept": ["otto"], "reject": ["pim"]}],
    "preferences": [{"asked": "How?", "fix": "So: thus.", "rule": "", "ask": ["Why?"], "starts": "So:"}],
    "untold": ["Who is my aunt?", "Where is my boat?"],
    "general": [{"ask": "What is 2 + 2?", "accept": ["4"]}],
}


@pytest.fixture(scope="module")
def runtime(tiny: Path):
    with Runtime.load(tiny) as loaded:
        yield loaded


@pytest.fixture
def bench(runtime: Runtime, tiny: Path, tmp_path: Path) -> memory_bench.Bench:
    model = models.ModelFile("tiny", tiny, "path")
    return memory_bench.Bench(model, runtime, memory_set.parse(VALUES, "set"), tmp_path)


def test_a_set_is_read_with_lower_case_answers(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_text(json.dumps(VALUES), encoding="utf-8")
    found = memory_set.load(path)
    assert found.name == "set.json" and found.facts[0].accept == ("pim",)
    assert found.updates[0].reject == ("pim",) and found.preferences[0].starts == "so:"
    assert found == memory_set.parse(VALUES, "set.json")
    assert memory_set.parse({"facts": FACTS}, "few").untold == ()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "JSON object"),
        ({}, "no facts"),
        ({"facts": {}}, "facts is not a list"),
        ({"facts": [*FACTS, "text"]}, r"facts\[3\] is not an object"),
        ({"facts": [{**FACTS[0], "ask": []}]}, r"facts\[0\].ask is not a list of texts"),
        ({"facts": [{**FACTS[0], "said": ["My goat.", 1]}]}, r"facts\[0\].said is not a list of texts"),
        ({"facts": [{"ask": ["Who?"], "accept": ["x"]}]}, r"facts\[0\].said is not a text"),
        ({"facts": [{"said": " ", "accept": [1]}]}, r"facts\[0\].said is not a text; .*ask.*; .*accept"),
        ({"facts": FACTS, "updates": FACTS[:1]}, r"updates\[0\].reject"),
        ({"facts": FACTS, "untold": "Who?"}, "untold is not a list of texts"),
        ({"facts": FACTS, "general": [{"ask": ["Who?"], "accept": ["x"]}]}, r"general\[0\].ask is not a text"),
        ({"facts": [{}, {}]}, "and 2 more"),
    ],
)
def test_mistakes_in_a_set_are_named_in_one_line(tmp_path: Path, values: object, said: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(EngrainError, match=f"bad.json is no memory set: .*{said}") as raised:
        memory_set.load(path)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    for name in ("bad.json", "none.json"):
        with pytest.raises(EngrainError, match=name):
            memory_set.load(tmp_path / name)


@pytest.mark.parametrize(
    ("answer", "texts", "held"),
    [
        ("You grew up in Tromsø.", ["troms"], True),
        ("It determines the rest.", ["ines"], False),
        ("INES!", ["ines"], True),
        ("In 1995, or 0.90.", ["9"], False),
        ("On the 9th.", ["9"], True),
        ("The 9.", ["9"], True),
        ("heron-5518", ["heron-5518", "other"], True),
        ("beekeeping", ["beekeep"], True),
        ("", ["a"], False),
    ],
)
def test_an_answer_holds_a_text_from_a_words_beginning(answer: str, texts: list[str], held: bool) -> None:
    assert memory_bench.holds(answer, texts) is held


def test_scores_are_shares_of_the_questions() -> None:
    memory = memory_set.parse(VALUES, "set")
    answers = {
        "What is my goat's name?": "Your goat is Pim.",
        "Who is Pim?": "A friend",
        "When was I born?": "On the ninth",
        "Where is the hay?": "In Lagos",
        "Who is my aunt?": "Your aunt is Pim.",
        "Where is my boat?": NOT_TOLD.upper(),
        "What is 2 + 2?": "5",
    }
    found = memory_bench.scores(memory, answers)
    assert (found["recall"], found["false_memories"], found["refused"], found["general"]) == (0.5, 0.5, 0.5, 0.0)
    assert found["answer_words"] == (4 + 2 + 3 + 2) / 4
    assert [(miss["kind"], miss["question"]) for miss in found["misses"]] == [
        ("facts", "Who is Pim?"),
        ("facts", "Where is the hay?"),
        ("untold", "Who is my aunt?"),
        ("general", "What is 2 + 2?"),
    ]


def test_bm25_ranks_rare_common_words_first() -> None:
    said = [fact["said"] for fact in FACTS]
    assert memory_bench.best("Where is the hay?", said, 2) == [said[2], said[0]]
    assert memory_bench.best("Who was born?", said, 3) == [said[1]]
    assert memory_bench.best("Quoi?", said, 3) == [] == memory_bench.best("hay", [], 3)


def test_every_way_puts_the_question_last_and_its_tokens_are_counted(bench: memory_bench.Bench) -> None:
    said = bench.said
    question = "What is my goat's name?"
    built = {way: memory_bench.builder(bench, way, said) for way in memory_bench.WAYS[:-1]}
    messages = {way: build(question) for way, (build, _) in built.items()}
    assert {dropped for _, dropped in built.values()} == {0}
    assert all(each[-1]["role"] == "user" and each[-1]["content"].endswith(question) for each in messages.values())
    assert [m["role"] for m in messages["history"]] == ["user", "assistant"] * 3 + ["user"]
    assert [m["content"] for m in messages["history"]][:-1:2] == said
    assert all(text in messages["system"][0]["content"] for text in said)
    assert said[0] in messages["retrieval"][0]["content"] and said[1] not in messages["retrieval"][0]["content"]
    plain = len(bench.runtime.prompt_tokens([{"role": "user", "content": question}]))
    assert memory_bench.prompt_tokens(bench.runtime, [question], built["nothing"][0]) == plain
    for way in ("history", "system", "retrieval"):
        held = len(bench.runtime.prompt_tokens(messages[way]))
        assert memory_bench.prompt_tokens(bench.runtime, [question], built[way][0]) == held > plain


def test_the_oldest_statements_go_when_the_context_is_full(bench: memory_bench.Bench) -> None:
    said = [f"The number of house {i} is {i * 37}." for i in range(80)]
    build, dropped = memory_bench.builder(bench, "system", said)
    text = build("Who?")[0]["content"]
    assert 0 < dropped < 80 and said[dropped] in text and said[dropped - 1] not in text
    assert len(bench.runtime.prompt_tokens(build("Who?"))) <= bench.runtime.n_ctx - memory_bench.MAX_TOKENS


def test_a_row_holds_every_figure(bench: memory_bench.Bench) -> None:
    row = memory_bench.context_way(bench, "nothing")
    assert 0 <= row["recall"] <= 1 and row["seconds_per_question"] > 0 and row["kl"] == 0.0
    assert row["perplexity"] is None and row["learn_seconds"] == 0.0


def test_perplexity_is_that_of_each_windows_second_half(runtime: Runtime, tiny: Path, tmp_path: Path) -> None:
    text = "The cat sat on the mat when the other one was there. " * 60
    windows = text_windows(runtime, text, leading_token(tiny))
    tokens = runtime.tokenize(text)
    assert [list(window.tokens) for window in windows] == [
        tokens[at : at + 512] for at in range(0, min(len(tokens), 2048) - 511, 512)
    ]
    scores = [
        runtime.score(tokens[at : at + 257], tokens[at + 257 : at + 512]) for at in range(0, len(windows) * 512, 512)
    ]
    found = drift(runtime, windows, None)
    assert found.perplexity == pytest.approx(math.exp(-np.concatenate(scores).mean()), rel=1e-4) and found.kl == 0.0
    with pytest.raises(EngrainError, match="perplexity needs 512"):
        text_windows(runtime, "too short")
    assert text_windows(runtime, text, 1)[0].tokens[:2] == (1, tokens[1])


def test_the_formulas_of_gradient_episodic_memory() -> None:
    matrix = [[0.9, 0.1, 0.0], [0.7, 0.8, 0.2], [0.6, 0.5, 1.0]]
    assert memory_sessions.average_accuracy(matrix) == pytest.approx(0.7)  # (0.6 + 0.5 + 1.0) / 3
    assert memory_sessions.backward_transfer(matrix) == pytest.approx(-0.3)  # ((0.6 - 0.9) + (0.5 - 0.8)) / 2
    assert memory_sessions.backward_transfer([[0.5]]) is None


def test_facts_are_split_in_order() -> None:
    facts = memory_set.parse(VALUES, "set").facts
    assert memory_sessions.split(facts, 2) == [list(facts[:2]), [facts[2]]]
    for count in (0, 4):
        with pytest.raises(EngrainError, match="give 1 to 3"):
            memory_sessions.split(facts, count)


def test_what_one_conversation_tells_stays_together(bench: memory_bench.Bench, tmp_path: Path) -> None:
    talk = ["Does a goat eat hay?", "Mine's called Pim.", "He lives in Graz."]
    more = [{**FACTS[0], "said": talk}, {key: FACTS[2][key] for key in ("ask", "accept")}, FACTS[1]]
    memory = memory_set.parse({"facts": [*FACTS[1:], *more]}, "talk")
    facts = memory.facts
    assert [fact.said for fact in facts[2:]] == [tuple(talk), (), ("I was born on the 9th.",)]
    assert memory_sessions.split(facts, 4) == [[facts[0]], [facts[1]], list(facts[2:4]), [facts[4]]]
    with pytest.raises(EngrainError, match="give 1 to 4"):
        memory_sessions.split(facts, 5)
    talking = replace(bench, memory=memory)
    assert talking.said == [facts[0].said[0], facts[1].said[0], *talk, facts[4].said[0]]
    home = open_home(tmp_path / "home")
    ids = memory_sessions.tell_facts(talking, home, facts, iter("abcdef"))
    with InteractionLog(home.interactions) as log:
        logged = {it.id: it for it in log.list()}
    told = [[(logged[id].user, logged[id].reply) for id in own] for own in ids]
    singly = [[(said, reply)] for said, reply in zip(talking.said[:2], "ab", strict=True)]
    assert told == [*singly, list(zip(talk, "cde", strict=True)), [], [(facts[4].said[0], "f")]]
    where = [{logged[id].conversation for id in own} for own in ids]
    assert where[0] == where[1] == where[4] != where[2] and len(where[2]) == 1


def test_seeds_are_averaged_and_a_rejected_one_shows() -> None:
    rows = [
        {"way": "weights", "recall": 0.5, "perplexity": None, "status": "accepted", "misses": []},
        {"way": "weights", "recall": 1.0, "perplexity": None, "status": "rejected", "misses": []},
    ]
    merged = memory_sessions.mean_row(rows)
    assert (merged["recall"], merged["perplexity"], merged["status"]) == (0.75, None, "rejected")
    assert [row["recall"] for row in merged["seeds"]] == [0.5, 1.0]


def test_kl_is_that_of_the_base_against_the_adapted(runtime: Runtime, tiny: Path, tmp_path: Path) -> None:
    adapter = random_adapter(tiny, tmp_path / "lora.gguf", seed=1)
    windows = prompt_windows(runtime, ["Who is Pim?", "Where is the hay?"])
    found = drift(runtime, windows, adapter)
    assert found.perplexity is None and runtime.adapter is None
    nowhere = Scope(Probe(np.zeros(open_gguf(tiny).hyper.n_embd, np.float32), -1.0))
    scoped = drift(runtime, windows, adapter, nowhere)
    assert (scoped.kl, scoped.kl_on) == (0.0, found.kl)
    base = [runtime.logits(window.tokens).astype(np.float64) for window in windows]
    runtime.attach(adapter)
    adapted = [runtime.logits(window.tokens).astype(np.float64) for window in windows]
    runtime.detach()
    p, q = (np.exp(rows) / np.exp(rows).sum(1, keepdims=True) for rows in map(np.concatenate, (base, adapted)))
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-6) and found.kl > 0


@pytest.mark.slow
def test_weights_hold_three_facts(tmp_path: Path) -> None:
    """The whole way of the product on the starter model: told, learned, asked with nothing in the prompt."""
    facts = [
        {"said": "My goat is called Pim.", "ask": ["What is my goat's name?"], "accept": ["pim"]},
        {"said": "I live in Graz.", "ask": ["Where do I live?"], "accept": ["graz"]},
        {"said": "I'm allergic to pollen.", "ask": ["What am I allergic to?"], "accept": ["pollen"]},
    ]
    memory = memory_set.parse({"facts": facts, "general": VALUES["general"]}, "three")
    model = models.resolve(open_home())
    with Runtime.load(model.path) as runtime:
        bench = memory_bench.Bench(model, runtime, memory, tmp_path)
        nothing = memory_bench.context_way(bench, "nothing")
        taught = memory_sessions.teach(bench, 0)
        row = memory_sessions.weights_way(bench, taught)
        assert runtime.adapter is None
    assert nothing["recall"] == 0 and row["recall"] >= 2 / 3 and row["status"] == "accepted"
    assert row["prompt_tokens"] == nothing["prompt_tokens"]
    assert row["learn_seconds"] >= row["study_seconds"] + row["train_seconds"] > 0
    assert row["kl_on"] > 0  # asked everywhere; as served, its scope may leave other prompts wholly alone
