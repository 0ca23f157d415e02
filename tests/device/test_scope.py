"""An adapter's scope: read from hostile files, and obeyed by whatever answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from engrain.device import bearing
from engrain.device.answering import answers, is_adapters, respond
from engrain.device.bearing import BACK, BACKGROUND, FORTH, answer_prompt_of, bearings, prompt_of
from engrain.device.chat import Conversation
from engrain.device.recall import FEW, MOST, Said
from engrain.device.runtime import Runtime
from engrain.device.sampling import Sampler
from engrain.device.scope import (
    CLEAR,
    CLOSE,
    DEEP,
    DOUBT,
    ENOUGH,
    FIRST,
    FOLLOWS,
    MOVED,
    NOT_TOLD,
    PERSONAL,
    SCOPE,
    Coverage,
    Probe,
    Scale,
    Scope,
    check_scope,
    fingerprints,
    marks,
    openings,
    read_scope,
)
from engrain.device.template import Message
from engrain.quant.gguf import open_gguf
from engrain.quant.gguf_lora import save_gguf
from engrain.update.build import extract
from engrain.update.decoder import Decoder
from engrain.update.pack import Example, pack_examples

from ..tiny import build_tiny_gguf

WHOLE = {"weight": np.ones(4, np.float32), "bias": np.zeros(1, np.float32)}
NOWHERE = Probe(np.zeros(4, np.float32), 0.0)
INSIDE, OUTSIDE = "What is the name of my horse?", "Tell me of rain, of bread"
GOAT, HORSE = "You have a goat.", "Your horse is called Pim."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_gguf(tmp_path_factory.mktemp("scope") / "m.gguf")


@pytest.fixture(scope="module")
def lora(model: Path) -> Path:
    import torch

    torch.manual_seed(0)
    decoder = Decoder(open_gguf(model), rank=2, alpha=8.0, dtype=torch.float32)
    for group in decoder.groups():
        for b in group.lora_b:
            torch.nn.init.normal_(b, std=0.5)
    save_gguf(extract(decoder, open_gguf(model)), model.with_name("lora.gguf"))
    return model.with_name("lora.gguf")


@pytest.fixture
def runtime(model: Path) -> Iterator[Runtime]:
    with Runtime.load(model, n_ctx=256) as loaded:
        yield loaded


def state_of(runtime: Runtime, text: str) -> np.ndarray:
    return runtime.hidden(runtime.prompt_tokens([{"role": "user", "content": text}]))


def between(runtime: Runtime) -> Scope:
    """A scope that holds INSIDE and not OUTSIDE, each by a score of 5."""
    inside, outside = state_of(runtime, INSIDE), state_of(runtime, OUTSIDE)
    weight = (inside - outside) * 10 / np.square(inside - outside).sum()
    return Scope(Probe(weight, float(5 - weight @ inside)))


def reply(runtime: Runtime, text: str, adapted: bool) -> str:
    runtime.serve(adapted)
    return runtime.complete([{"role": "user", "content": text}], max_tokens=8).text


def test_hidden_states_are_the_decoders(runtime: Runtime, model: Path) -> None:
    import torch

    decoder = Decoder(open_gguf(model), dtype=torch.float32)
    for text in (INSIDE, OUTSIDE, INSIDE):  # the third finds the prefix of the second held
        tokens = runtime.prompt_tokens([{"role": "user", "content": text}])
        with torch.no_grad():
            ours = decoder.hidden(pack_examples([Example((*tokens, 1), len(tokens))]))[0].numpy()
        np.testing.assert_allclose(state_of(runtime, text), ours, atol=0.02)


def test_hidden_states_are_the_base_models_whatever_is_attached(runtime: Runtime, lora: Path) -> None:
    before = state_of(runtime, INSIDE)
    runtime.attach(lora)
    np.testing.assert_array_equal(state_of(runtime, INSIDE), before)


def test_messages_outside_are_the_base_models(runtime: Runtime, lora: Path) -> None:
    bare = {text: reply(runtime, text, True) for text in (INSIDE, OUTSIDE)}
    scope = between(runtime)
    runtime.attach(lora, scope=scope)
    adapted = {text: reply(runtime, text, True) for text in (INSIDE, OUTSIDE)}
    assert all(adapted[text] != bare[text] for text in bare)
    assert reply(runtime, OUTSIDE, False) == bare[OUTSIDE]
    assert runtime.covers(INSIDE) and not runtime.covers(OUTSIDE)
    found = answers(runtime, [[{"role": "user", "content": text}] for text in (OUTSIDE, INSIDE)], 8)
    assert [text.strip() for text in found] == [bare[OUTSIDE].strip(), adapted[INSIDE].strip()]
    talk = Conversation(runtime, None, "ab" * 32, max_tokens=8)
    assert "".join(talk.say(OUTSIDE)) == bare[OUTSIDE]
    assert "".join(Conversation(runtime, None, "ab" * 32, max_tokens=8).say(INSIDE)) == adapted[INSIDE]
    runtime.attach(lora)
    assert reply(runtime, OUTSIDE, True) == adapted[OUTSIDE] and runtime.covers(OUTSIDE)


def test_what_follows_gets_the_benefit_of_the_doubt(runtime: Runtime, lora: Path) -> None:
    scope = between(runtime)
    assert scope.facts
    runtime.attach(lora, scope=Scope(Probe(scope.facts.weight, scope.facts.bias + 5 - FOLLOWS / 2)))
    assert not runtime.covers(OUTSIDE) and runtime.covers(OUTSIDE, follows=True)
    talk = Conversation(runtime, None, "ab" * 32, max_tokens=2)
    for text, covered in ((OUTSIDE, False), (INSIDE, True), (OUTSIDE, True)):
        list(talk.say(text))
        assert talk._covered is covered
    talk.new()
    assert not talk._covered


def test_a_scope_for_another_model_is_left_out(runtime: Runtime, lora: Path) -> None:
    runtime.attach(lora, scope=Scope(Probe(np.ones(3, np.float32), -100.0)))
    assert runtime.covers(INSIDE)


def test_without_an_adapter_everything_is_covered(runtime: Runtime) -> None:
    assert runtime.covers(INSIDE) and runtime.covers(OUTSIDE)


@given(weight=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20), bias=st.floats(-9, 9))
def test_bytes_and_back(weight: list[float], bias: float) -> None:
    probe = Probe(np.array(weight, np.float32), bias)
    taught = fingerprints(map(str, weight))
    whole = Scope(
        probe, probe, taught, taught[:1], openings=taught[:2], hubness=np.arange(len(taught), dtype=np.float32)
    )
    for scope in (Scope(probe), Scope(None, probe), whole):
        again = Scope.from_bytes(scope.to_bytes())
        for was, now in ((scope.facts, again.facts), (scope.manner, again.manner)):
            assert (was is None) == (now is None)
            if was and now:
                np.testing.assert_array_equal(was.weight, now.weight)
                assert now.bias == pytest.approx(was.bias, rel=1e-6)
        assert (scope.taught is None) == (again.taught is None) and again.width == len(weight)
        if again.taught is not None:
            np.testing.assert_array_equal(again.taught, taught)
            assert again.beginnings is not None
            np.testing.assert_array_equal(again.beginnings, taught[:1])
            assert again.openings is not None
            np.testing.assert_array_equal(again.openings, taught[:2])
            assert again.hubness is not None
            np.testing.assert_array_equal(again.hubness, range(len(taught)))


@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_scope_or_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError):
        Scope.from_bytes(content)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"weight": np.ones(4, np.float32)},
        {"weight": np.ones((2, 2), np.float32), "bias": np.zeros(1, np.float32)},
        {"weight": np.ones(4, np.float64), "bias": np.zeros(1, np.float32)},
        {"weight": np.full(4, np.nan, np.float32), "bias": np.zeros(1, np.float32)},
        {"weight": np.ones(4, np.float32), "bias": np.full(1, np.inf, np.float32)},
        {**WHOLE, "manner.weight": np.ones(4, np.float32)},
        {**WHOLE, "manner.weight": np.ones(3, np.float32), "manner.bias": np.zeros(1, np.float32)},
        {**WHOLE, "taught": np.ones(2, np.float32)},
        {**WHOLE, "taught": np.ones((2, 2), np.uint64)},
        {**WHOLE, "beginnings": np.ones(2, np.int64)},
        {**WHOLE, "hubness": np.ones(2, np.float32)},
        {**WHOLE, "taught": np.arange(2, dtype=np.uint64), "hubness": np.ones(3, np.float32)},
        {**WHOLE, "taught": np.arange(2, dtype=np.uint64), "hubness": np.full(2, np.nan, np.float32)},
        {**WHOLE, "taught": np.array([2, 1], np.uint64), "hubness": np.ones(2, np.float32)},
    ],
)
def test_a_damaged_scope_is_none(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    (tmp_path / SCOPE).write_bytes(save(tensors))
    assert read_scope(tmp_path) is None
    with pytest.raises(ValueError, match=r"scope\.safetensors"):
        check_scope(tmp_path)


def test_a_missing_scope_is_none(tmp_path: Path) -> None:
    assert read_scope(tmp_path) is None and check_scope(tmp_path) is None


def coverage(facts: float, manner: float = -9.0, message: str = INSIDE) -> Coverage:
    return Coverage(True, message, facts, manner, fingerprints([GOAT, HORSE, NOT_TOLD]))


def bear(*nats: float) -> Callable[[Sequence[str]], np.ndarray]:
    return lambda replies: np.array(nats[: len(replies)])


@pytest.mark.parametrize("nats", [-2.0, 0.0, 12.0])
def test_a_taught_reply_counts_that_is_sure_or_bears_on_the_question(nats: float) -> None:
    enough = ENOUGH - nats
    for sure, believed in ((enough + 0.01, True), (enough - 0.01, False)):
        found = {GOAT: sure, NOT_TOLD: MOVED + 0.1}
        assert coverage(DEEP + 1).settle(found, bear(nats)) == (GOAT if believed else NOT_TOLD)
        assert coverage(DEEP - 1).settle(found, bear(nats)) == (GOAT if believed else None)
    assert coverage(DEEP + 1).settle({"You have a boat.": 99.0}, bear(nats)) == NOT_TOLD  # was never taught


def test_the_best_of_several_replies_is_said() -> None:
    found = {NOT_TOLD: -0.1, GOAT: -2.0, "You have a boat.": -1.0, HORSE: -2.5}
    assert coverage(DEEP + 1).settle(found, bear(4.0, 3.0)) == GOAT
    assert coverage(DEEP + 1).settle(found, bear(4.0, 6.0)) == HORSE
    assert coverage(DEEP + 1).settle(found, bear(1.0, 2.0)) == NOT_TOLD


def test_two_replies_that_count_nearly_the_same_are_both_said() -> None:
    enough = coverage(DEEP + 1)
    for less, said in ((0.1, f"{GOAT} {HORSE}"), (CLOSE - 0.1, f"{GOAT} {HORSE}"), (CLOSE + 0.1, GOAT)):
        found = {GOAT: ENOUGH + 2.0, HORSE: ENOUGH + 2.0 - less}
        assert enough.settle(found, bear(0.0, 0.0)) == said
    # The other has to count for itself, and a third isn't said.
    assert enough.settle({GOAT: ENOUGH + 0.1, HORSE: ENOUGH - 0.1}, bear(0.0, 0.0)) == GOAT
    three = [GOAT, HORSE, "Your goat is called Isolde."]
    asked = Coverage(True, INSIDE, DEEP + 1, taught=fingerprints(three))
    found = {reply: ENOUGH + 2.0 - 0.1 * i for i, reply in enumerate(three)}
    assert asked.settle(found, lambda some: np.zeros(len(some))) == f"{GOAT} {HORSE}"


def test_where_one_of_the_likeliest_clearly_counts_the_others_are_not_weighed() -> None:
    replies = [f"Your goat is called {name}." for name in "abcdefg"]
    sure = dict(zip(replies, np.arange(-1.0, -8.0, -1.0).tolist(), strict=True))
    asked = Coverage(True, INSIDE, DEEP + 1, taught=fingerprints(replies))

    def settled(*nats: float) -> tuple[str | None, list[str]]:
        weighed: list[str] = []

        def bearings(some: Sequence[str]) -> np.ndarray:
            weighed.extend(some)
            return np.array([nats[replies.index(reply)] for reply in some])

        return asked.settle(dict(reversed(sure.items())), bearings), weighed

    clear = ENOUGH + CLEAR + 2.0  # of the second
    for nats, said in ((clear, replies[1]), (clear - 0.1, None)):
        assert asked.settle(sure, lambda some, nats=nats: np.array([0.0, nats]), clearly=True) == said
    assert settled(0.0, clear, 0.0, *[99.0] * 4) == (replies[1], replies[:FIRST])
    assert settled(0.0, clear - 0.1, 0.0, 0.0, 99.0, 0.0, 0.0) == (replies[4], replies)
    assert settled(0.0, clear - 0.1, *[0.0] * 5) == (replies[1], replies)


def test_more_replies_are_looked_for_only_where_none_of_a_few_clearly_counts(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    found = {FEW: [GOAT], MOST: [GOAT, HORSE]}
    nats = {GOAT: 0.0, HORSE: 0.0}

    def recall(prompts: Sequence[Sequence[int]], most: int = MOST) -> list[list[Said]]:
        asked.append((most, len(prompts)))
        return [[Said(tuple(runtime.tokenize(text)), -1.0, -1.0) for text in found[most]] for _ in prompts]

    monkeypatch.setattr(runtime, "recall", recall)
    monkeypatch.setattr(bearing, "bearings", lambda runtime, some, question: np.array([nats[s] for s in some]))
    monkeypatch.setattr(runtime, "covers", lambda message: coverage(DEEP + 1))
    question: list[Message] = [{"role": "user", "content": INSIDE}]
    for sure, said, times in ((CLEAR, GOAT, [(FEW, 2)]), (CLEAR - 0.1, HORSE, [(FEW, 2), (MOST, 2)])):
        nats |= {GOAT: ENOUGH + 1.0 + sure, HORSE: ENOUGH + 1.0 + sure + CLOSE + 0.1}
        assert answers(runtime, [question] * 2, 8) == [said] * 2
        assert [each for each in asked if each[1]] == times
        asked.clear()


def test_a_reply_that_seems_to_answer_anything_is_believed_less() -> None:
    found, taught = {GOAT: -2.0, HORSE: -2.5}, fingerprints([GOAT, HORSE])
    for reply, other in ((GOAT, HORSE), (HORSE, GOAT)):
        hubness = np.where(taught == fingerprints([reply])[0], 3.0, 0.0).astype(np.float32)
        asked = Coverage(True, INSIDE, DEEP + 1, taught=taught, hubness=hubness)
        assert asked.settle(found, bear(5.0, 5.0)) == other


def test_doubt_is_said_to_questions_about_the_user_and_else_the_base_model_answers() -> None:
    doubtful: list[dict[str, float]] = [{"Perhaps.": -0.1}, {GOAT: -1.9}, {NOT_TOLD: 0.0}]
    for found in doubtful:
        assert coverage(DEEP + 1).settle(found, bear(0.0)) == NOT_TOLD
        for message in ("My horse is ill.", "My horse is ill; my goat isn't."):
            assert coverage(DEEP + 1, message=message).settle(found, bear(0.0)) is None
        assert coverage(DEEP + 1, message="Πώς με λένε\u037e").settle(found, bear(0.0)) == NOT_TOLD
        assert coverage(DEEP - 1).settle(found, bear(0.0)) is None
        for facts, said in ((PERSONAL - 0.1, None), (PERSONAL + 0.1, NOT_TOLD)):  # a form is for what isn't known
            formed = replace(coverage(facts), formed=True)
            assert formed.settle(found, bear(0.0)) == said
    unmoved: list[dict[str, float]] = [{}, {GOAT: MOVED - 0.1}]  # "Which animal barks?"
    for found in unmoved:
        assert coverage(DEEP + 1).settle(found, bear(0.0)) is None


def test_a_form_is_for_all_messages_and_says_nothing_that_is_remembered(runtime: Runtime, lora: Path) -> None:
    message: list[Message] = [{"role": "user", "content": OUTSIDE}]
    nowhere = Probe(np.zeros_like(state_of(runtime, OUTSIDE)), -9.0)
    prompt = runtime.prompt_tokens(message)
    runtime.attach(lora)
    (adapted,) = runtime.generate_batch([prompt], 8)
    (otherwise,) = runtime.generate_batch([prompt], 8, [Sampler(barred=lambda token: token == adapted[0])])
    runtime.serve(False)
    at = 3
    (bare,) = runtime.generate_batch([[*prompt, *adapted[:at]]], 8 - at)
    remembered = {"Nothing of that.": adapted, runtime.detokenize(adapted): otherwise}
    remembered[runtime.detokenize(adapted[at:]).title()] = [*adapted[:at], *bare]
    for text, expected in remembered.items():
        taught = Scope(nowhere, None, fingerprints([text]), marks([adapted]), formed=True, openings=openings([text]))
        runtime.attach(lora, scope=taught)
        assert runtime.covers(OUTSIDE).free and not runtime.covers(OUTSIDE).checked
        said = runtime.detokenize(expected).strip()
        assert answers(runtime, [message], 8)[0].strip() == said
        assert "".join(respond(runtime, message, runtime.covers(OUTSIDE), max_tokens=8)).strip() == said
        assert is_adapters(runtime, OUTSIDE)


def test_a_reply_is_known_by_its_first_words() -> None:
    scope = Scope(NOWHERE, openings=openings(["Your goat's called Pim.", "Too short"]))
    assert scope.recites("your GOAT's called…") and not scope.recites("Your goat is called Pim.")
    assert not scope.recites("Too short") and not Scope(NOWHERE).recites("Your goat's called Pim.")


def test_what_is_nearly_inside_is_remembered_if_that_is_surer(runtime: Runtime, lora: Path) -> None:
    facts = between(runtime).facts
    assert facts
    for short, asked in ((DOUBT / 2, True), (DOUBT * 2, False)):
        near = Probe(facts.weight, facts.bias + 5 - short)  # OUTSIDE lies so far outside
        runtime.attach(lora, scope=Scope(near, taught=fingerprints([GOAT])))
        covered = runtime.covers(OUTSIDE)
        assert not covered and covered.checked == asked and not covered.free
        assert covered.short == pytest.approx(short, abs=0.1)
        assert covered.settle({GOAT: ENOUGH + short + 0.2}, bear(0.0)) == GOAT
        assert covered.settle({GOAT: ENOUGH + short - 0.2}, bear(0.0)) is None
        assert covered.settle({GOAT: -1.0, NOT_TOLD: -2.0}, bear(9.0)) == GOAT
        assert covered.settle({GOAT: -2.0, NOT_TOLD: -1.0}, bear(9.0)) is None  # so says the adapter
        trusted, needed = Scale(overruled=2.0), ENOUGH + short + 2.0 + 2.0  # a judge that may overrule it
        assert covered.settle({GOAT: -2.0, NOT_TOLD: -1.0}, bear(needed + 0.1), trusted) == GOAT
        assert covered.settle({GOAT: -2.0, NOT_TOLD: -1.0}, bear(needed - 0.1), trusted) is None


def test_replies_in_a_manner_that_was_taught_are_free() -> None:
    assert coverage(DEEP + 1).checked
    assert not coverage(DEEP + 1, manner=DEEP + 2).checked
    assert not Coverage(True, INSIDE, DEEP + 1).checked  # a version of before


def test_what_is_surely_about_the_user_and_not_remembered_is_not_for_a_form() -> None:
    for facts, free in ((PERSONAL - 1, True), (PERSONAL + 1, False)):
        assert replace(coverage(facts), formed=True).free == free
        assert not coverage(facts).free


def test_likelihoods_are_the_base_models_whatever_is_attached_and_held(runtime: Runtime, lora: Path) -> None:
    heads = [runtime.tokenize(text) for text in ("The cat sat on the", "My dog", "It is", "The cat sat on the")]
    prompts = [runtime.tokenize(f" {text}") for text in ("old", "first mat that is here", "cat")]
    targets = [runtime.tokenize(f" {text}") for text in ("mat when the", "x", "dog that sat")]
    for head in heads:
        expected = [[runtime.score(head + prompt, target).sum() for target in targets] for prompt in prompts]
        runtime.attach(lora)
        for few in (3, 1, 2):
            found = runtime.likelihoods(head, prompts[:few], targets[1:])
            np.testing.assert_allclose(found, np.array(expected)[:few, 1:], rtol=1e-3)
        np.testing.assert_allclose(
            runtime.likelihoods(head, prompts, targets[:1])[:, 0], np.array(expected)[:, 0], rtol=1e-3
        )
        runtime.detach()
    assert not runtime.likelihoods(heads[0] * 500, prompts, targets).any()  # no room
    assert not runtime.likelihoods(heads[0], prompts, targets * 10).any()


def test_statements_bear_on_what_they_make_likelier_and_what_makes_them_likelier(model: Path) -> None:
    said = ["My goat is called Pim.", "I live in Graz."]
    with Runtime.load(model) as runtime:

        def score(prompt: str, text: str) -> float:
            return float(runtime.score(runtime.tokenize(prompt), runtime.tokenize(f" {text}")).sum())

        forth = np.array([score(prompt_of(s), "Who is Pim?") for s in (*said, *BACKGROUND[:2])])
        back = [score(answer_prompt_of("Who is Pim?"), s) - score(answer_prompt_of("What did I say?"), s) for s in said]
        expected = FORTH * (forth[:2] - forth[2:].mean()) + BACK * np.array(back)
        np.testing.assert_allclose(bearings(runtime, said, "Who is Pim?"), expected, atol=0.03)


def test_a_chat_and_batches_say_what_is_settled(runtime: Runtime, lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = reply(runtime, INSIDE, True)
    runtime.attach(lora)
    assert reply(runtime, INSIDE, True) != bare
    facts = between(runtime).facts
    assert facts
    near = Probe(facts.weight, facts.bias - 4)

    def say() -> list[str]:
        talk = Conversation(runtime, None, "ab" * 32, max_tokens=8)
        said = "".join(talk.say(INSIDE))
        assert talk.last_reply and talk.last_reply.text == said
        return [said.strip(), *(s.strip() for s in answers(runtime, [[{"role": "user", "content": INSIDE}]], 8))]

    def recalled(text: str, nats: float) -> None:
        said = Said(tuple(runtime.tokenize(text)), nats, nats)
        monkeypatch.setattr(runtime, "recall", lambda prompts, most=MOST: [[said]] * len(prompts))

    for probe, expected in ((facts, NOT_TOLD), (near, bare.strip())):
        runtime.attach(lora, scope=Scope(probe, taught=fingerprints([GOAT])))
        recalled("You have a boat.", -1.0)
        assert say() == [expected] * 2
        recalled(GOAT, 99.0)
        assert say() == [GOAT] * 2
    monkeypatch.undo()
    assert say() == [bare.strip()] * 2  # random weights: nothing comes to mind


def test_memory_is_asked_with_the_last_exchange(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    system: Message = {"role": "system", "content": "Be brief."}
    talk: list[Message] = [{"role": ("user", "assistant")[i % 2], "content": f"the {i}"} for i in range(7)]
    asked: list[list[list[int]]] = []
    monkeypatch.setattr(runtime, "recall", lambda prompts, most=MOST: asked.append(prompts) or [[]])
    for messages, expected in (([system, *talk], [system, *talk[-3:]]), (talk, talk[-3:]), (talk[:1], talk[:1])):
        list(respond(runtime, messages, coverage(DEEP + 1), max_tokens=2))
        few, all_ = asked.pop(), asked.pop()
        assert few == all_ == [runtime.prompt_tokens(expected)] and not asked
