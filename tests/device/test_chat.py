"""A conversation: what the model is shown, what is recorded, and when."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from engrain.device.chat import Conversation
from engrain.device.interactions import InteractionLog
from engrain.device.llama_model import PromptTooLong
from engrain.device.runtime import Runtime
from engrain.quant.errors import EngrainError

SHA = "ab" * 32


@pytest.fixture
def runtime(tiny: Path) -> Iterator[Runtime]:
    with Runtime.load(tiny, n_ctx=256) as loaded:
        yield loaded


@pytest.fixture
def log(tmp_path: Path) -> Iterator[InteractionLog]:
    with InteractionLog(tmp_path / "interactions.db") as opened:
        yield opened


@pytest.fixture
def talk(runtime: Runtime, log: InteractionLog) -> Conversation:
    return Conversation(runtime, log, SHA, max_tokens=6)


def test_an_exchange_is_recorded(talk: Conversation, log: InteractionLog) -> None:
    talk.system, talk.adapter = "Be brief.", "0001-abcdef01"
    text = "".join(talk.say("My horse is called Ottoline."))
    (recorded,) = log.list()
    assert (recorded.id, recorded.conversation) == (talk.last_id, talk.id)
    assert (recorded.user, recorded.reply) == ("My horse is called Ottoline.", text)
    assert (recorded.system, recorded.model) == ("Be brief.", SHA)
    assert (recorded.adapter, recorded.complete) == ("0001-abcdef01", True)
    assert talk.last_reply is not None and talk.last_reply.text == text
    assert talk.last_reply.completion_tokens <= 6 < talk.last_reply.prompt_tokens


def test_it_is_durable_before_the_iterator_ends(talk: Conversation, tmp_path: Path) -> None:
    seen = 0
    for _ in talk.say("Hello"):
        seen += 1
    with InteractionLog(tmp_path / "interactions.db") as other:  # as another process sees it
        assert len(other.list()) == 1
    assert seen


def test_the_model_is_shown_what_was_said(talk: Conversation, runtime: Runtime) -> None:
    talk.system = "Be brief."
    first = "".join(talk.say("One"))
    shown = runtime.render(talk._fitting("Two"))
    assert shown == runtime.render(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": first},
            {"role": "user", "content": "Two"},
        ]
    )
    before = talk.id
    talk.new()
    assert talk.id != before and talk.last_id is None and talk.last_reply is None
    assert "One" not in runtime.render(talk._fitting("Two"))


def test_breaking_off_records_what_was_there(talk: Conversation, log: InteractionLog) -> None:
    with closing(talk.say("Hello")) as stream:
        piece = next(stream)
    (recorded,) = log.list()
    assert (recorded.reply, recorded.complete) == (piece, False)
    assert talk._messages(talk._turns, "x")[1]["content"] == piece


def test_an_interrupt_inside_the_model_is_recorded(
    talk: Conversation, log: InteractionLog, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = runtime._main.next_logits
    calls = 0

    def interrupted(tokens: list[int]) -> object:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise KeyboardInterrupt
        return whole(tokens)

    monkeypatch.setattr(runtime._main, "next_logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(talk.say("Hello"))
    (recorded,) = log.list()
    assert not recorded.complete
    monkeypatch.undo()
    list(talk.say("Go on"))
    assert [each.complete for each in log.list()] == [False, True]


def test_an_interrupt_before_the_first_word(
    talk: Conversation, log: InteractionLog, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(tokens: list[int]) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime._main, "next_logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(talk.say("Hello"))
    monkeypatch.undo()
    assert [(each.user, each.reply, each.complete) for each in log.list()] == [("Hello", "", False)]
    assert len(talk._fitting("x")) == 1  # an empty turn isn't shown
    talk.fix("Good day")
    assert len(talk._fitting("x")) == 3


def test_an_interrupt_while_memory_is_asked(
    talk: Conversation, log: InteractionLog, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(text: str, follows: bool = False) -> object:
        raise KeyboardInterrupt

    list(talk.say("Hello"))
    monkeypatch.setattr(runtime, "covers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        talk.say("Where do I live?")
    monkeypatch.undo()
    talk.fix("In Graz.")  # of this, not of what was said before
    assert [(each.user, each.correction) for each in log.list()] == [("Hello", None), ("Where do I live?", "In Graz.")]


def test_beginning_anew_between_pieces_keeps_conversations_apart(talk: Conversation, log: InteractionLog) -> None:
    old = talk.id
    stream = talk.say("Hello")
    next(stream)
    talk.new()
    list(stream)
    assert log.list()[0].conversation == old
    assert talk._turns == []


def test_ratings(talk: Conversation, log: InteractionLog) -> None:
    list(talk.say("One"))
    list(talk.say("Two"))
    assert talk.good() == talk.last_id
    assert [each.feedback for each in log.list()] == [None, 1]
    talk.bad()
    assert [each.feedback for each in log.list()] == [None, -1]


def test_fix_corrects_log_and_context(talk: Conversation, log: InteractionLog, runtime: Runtime) -> None:
    reply = "".join(talk.say("One"))
    talk.fix("  Better  ")
    assert (log.list()[0].reply, log.list()[0].correction) == (reply, "Better")
    assert talk._fitting("Two")[1]["content"] == "Better"
    talk.fix("Best")
    assert [message["content"] for message in talk._fitting("Two")] == ["One", "Best", "Two"]


def test_nothing_to_act_on(talk: Conversation, runtime: Runtime, log: InteractionLog) -> None:
    log.record("other", "Hi", "Hello", model=SHA)  # someone else's conversation is left alone
    unrecorded = Conversation(runtime, None, SHA, max_tokens=2)
    list(unrecorded.say("Hi"))
    assert unrecorded.last_id is None and unrecorded.last_reply is not None
    for conversation in (talk, unrecorded):
        for act in (conversation.good, conversation.bad, lambda c=conversation: c.fix("x")):
            with pytest.raises(EngrainError):
                act()
    with pytest.raises(EngrainError):
        unrecorded.resume()
    with pytest.raises(EngrainError):
        talk.say("  \n")
    list(talk.say("Hi"))
    with pytest.raises(EngrainError):
        talk.fix("   ")


def test_resume(talk: Conversation, runtime: Runtime, log: InteractionLog) -> None:
    talk.system = "Be brief."
    list(talk.say("One"))
    talk.fix("First")
    second = "".join(talk.say("Two"))
    again = Conversation(runtime, log, SHA, max_tokens=6)
    again.resume()
    assert (again.id, again.system, again.last_id) == (talk.id, "Be brief.", talk.last_id)
    texts = [message["content"] for message in again._fitting("Three")]
    assert texts == ["Be brief.", "One", "First", "Two", second, "Three"]
    list(again.say("Three"))
    assert len(log.list(conversation=talk.id)) == 3
    with pytest.raises(EngrainError):
        again.resume("no such conversation")


def test_forgotten_is_not_shown(talk: Conversation, log: InteractionLog) -> None:
    list(talk.say("A secret"))
    secret = talk.last_id
    assert secret is not None
    list(talk.say("Two"))
    talk.forget(secret)
    assert [each.user for each in log.list()] == ["Two"]
    assert "A secret" not in [message["content"] for message in talk._fitting("x")]


def test_oldest_turns_are_dropped_when_the_context_is_full(
    talk: Conversation, runtime: Runtime, log: InteractionLog
) -> None:
    talk.system = "Be brief."
    kept = []
    for number in range(12):
        list(talk.say(f"Number {number}. " + "word " * 12))
        kept.append(talk.dropped_turns)
        shown = talk._fitting("x")
        assert shown[0]["content"] == "Be brief."
        assert [message["role"] for message in shown[1:3]] == ["user", "assistant"]
    assert kept[0] == 0 and kept == sorted(kept)
    assert 0 < kept[-1] < 12
    assert len(set(kept)) < 8  # room is made for several turns at once
    assert len(log.list()) == 12


def test_a_text_that_never_fits(talk: Conversation, log: InteractionLog) -> None:
    list(talk.say("Hello"))
    with pytest.raises(PromptTooLong, match="256") as caught:
        talk.say("word " * 2000)
    assert caught.value.n_ctx == 256 < caught.value.prompt_tokens
    assert len(log.list()) == 1 and talk.dropped_turns == 0
    list(talk.say("Hello"))
    assert len(log.list()) == 2


def test_chatting_imports_neither_torch_nor_llama_cpp() -> None:
    program = "import sys, engrain.device.chat; print({'torch', 'llama_cpp'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
