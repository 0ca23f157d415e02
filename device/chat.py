"""One conversation: prompt, stream, record."""

from __future__ import annotations

import uuid
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engrain.device.answering import respond
from engrain.device.interactions import Interaction, InteractionLog
from engrain.device.template import Message
from engrain.quant.errors import EngrainError

if TYPE_CHECKING:  # llama.cpp is loaded by whoever brings a runtime
    from engrain.device.runtime import Runtime
    from engrain.device.sampling import Reply


@dataclass
class _Turn:
    """What the model is shown of one exchange."""

    user: str
    reply: str
    id: int | None  # in the log


class Conversation:
    """Turns with one model, recorded as they happen.

    `log=None` records nothing. `adapter` is the name to record; without one, that of the runtime's adapter.
    `system`, `adapter`, `max_tokens`, `temperature` and `seed` may be changed between turns.
    """

    def __init__(
        self,
        runtime: Runtime,
        log: InteractionLog | None,
        model_sha: str,
        adapter: str | None = None,
        system: str | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> None:
        self.adapter = adapter
        self.system = system
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.seed = seed
        self._runtime = runtime
        self._log = log
        self._model_sha = model_sha
        self.new()

    def new(self) -> None:
        """Begin afresh: nothing said so far is shown to the model."""
        self.id = uuid.uuid4().hex
        self.last_reply: Reply | None = None  # the last whole one, with its token counts
        self.dropped_turns = 0  # oldest turns that no longer fit the context
        self._covered = False  # whether the adapter answered last
        self._turns: list[_Turn] = []

    def resume(self, conversation: str | None = None) -> None:
        """Go on with a recorded conversation, by default the one spoken in last.

        Corrections stand in for the replies that they correct; the system text is taken over if none is set.
        """
        log = self._recorded()
        if conversation is None:
            last = log.last()
            conversation = last.conversation if last else ""
        exchanges = log.list(conversation=conversation)
        if not exchanges:
            raise EngrainError("there is no such conversation to go on with: `engrain memory list` shows all")
        self.new()
        self.id = conversation
        self._turns = [
            _Turn(each.user, reply, each.id) for each in exchanges if (reply := each.correction or each.reply)
        ]
        if self.system is None:
            self.system = exchanges[-1].system
        self._covered = bool(self._runtime.covers(exchanges[-1].user))

    @property
    def _served(self) -> str | None:
        """The adapter's name for the log."""
        return self.adapter if self.adapter is not None else self._runtime.adapter

    @property
    def last_id(self) -> int | None:
        """The id of this conversation's last interaction in the log."""
        last = self._log.last(self.id) if self._log is not None else None
        return last.id if last is not None else None

    def say(self, text: str) -> Generator[str, None, None]:
        """The reply in pieces. The exchange is durable in the log before the iterator ends.

        If it is broken off, by Ctrl-C or by closing the iterator, what was there is recorded as incomplete.
        Raises PromptTooLong, before the first piece, if the text doesn't fit the context even alone.
        """
        if not text.strip():
            raise EngrainError("there is nothing to answer: say something")
        replies: list[Reply] = []
        dropped = self.dropped_turns
        try:
            covered = self._runtime.covers(text, follows=self._covered)
            stream = respond(
                self._runtime,
                self._fitting(text),
                covered,
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                seed=self.seed,
                on_finish=replies.append,
            )
        except BaseException as error:
            self.dropped_turns = dropped  # a text that doesn't fit at all takes no turns with it
            if isinstance(error, KeyboardInterrupt):  # while memory was asked
                self._record(self.id, text, "", self.system, self._served, complete=False)
            raise
        self._covered = bool(covered)
        return self._record_stream(text, stream, replies)

    def _record_stream(self, text: str, stream: Iterator[str], replies: list[Reply]) -> Generator[str, None, None]:
        pieces: list[str] = []
        # What belongs to the exchange is fixed now: the caller may begin anew between two pieces.
        conversation, turns, system, adapter = self.id, self._turns, self.system, self._served
        try:
            for piece in stream:
                pieces.append(piece)
                yield piece
            self.last_reply = replies[0]
        finally:
            reply = "".join(pieces)
            id = self._record(conversation, text, reply, system, adapter, complete=bool(replies))
            if reply:  # templates don't expect an empty turn
                turns.append(_Turn(text, reply, id))

    def _record(
        self, conversation: str, text: str, reply: str, system: str | None, adapter: str | None, complete: bool
    ) -> int | None:
        """The exchange's id in the log; None where nothing is recorded."""
        if self._log is None:
            return None
        return self._log.record(
            conversation, text, reply, system=system, model=self._model_sha, adapter=adapter, complete=complete
        )

    def _fitting(self, text: str) -> list[Message]:
        """Messages for the next reply, without the oldest turns where the context can't hold all.

        Dropping leaves a quarter free, so that the prompt's beginning, whose keys and values are held
        already, stays the same for several turns.
        """
        n_ctx = self._runtime.n_ctx
        room = n_ctx - min(self.max_tokens, n_ctx // 4)
        messages = self._messages(self._turns[self.dropped_turns :], text)
        limit = room
        while self.dropped_turns < len(self._turns) and len(self._runtime.prompt_tokens(messages)) > limit:
            limit = room * 3 // 4
            self.dropped_turns += 1
            messages = self._messages(self._turns[self.dropped_turns :], text)
        return messages

    def _messages(self, turns: Sequence[_Turn], text: str) -> list[Message]:
        messages: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in turns:
            messages.append({"role": "user", "content": turn.user})
            messages.append({"role": "assistant", "content": turn.reply})
        return [*messages, {"role": "user", "content": text}]

    def good(self) -> int:
        """Rate the last reply +1; its id."""
        return self._rate(1)

    def bad(self) -> int:
        """Rate the last reply -1; its id."""
        return self._rate(-1)

    def _rate(self, feedback: int) -> int:
        id = self._last().id
        self._recorded().rate(id, feedback)
        return id

    def fix(self, text: str) -> int:
        """Correct the last reply, in the log and for the rest of this conversation; its id."""
        text = text.strip()
        if not text:
            raise EngrainError("the correction is empty: give the reply as it should have been")
        last = self._last()
        self._recorded().correct(last.id, text)
        for turn in self._turns:
            if turn.id == last.id:
                turn.reply = text
                break
        else:  # broken off before the first word
            self._turns.append(_Turn(last.user, text, last.id))
        return last.id

    def forget(self, *ids: int) -> None:
        """Remove interactions from the log, and from what the model is shown."""
        self._recorded().forget(*ids)
        kept = [turn.id not in ids for turn in self._turns]
        self.dropped_turns = sum(kept[: self.dropped_turns])
        self._turns[:] = [turn for turn, keep in zip(self._turns, kept, strict=True) if keep]

    def _recorded(self) -> InteractionLog:
        if self._log is None:
            raise EngrainError("this conversation isn't recorded: start it without --no-record")
        return self._log

    def _last(self) -> Interaction:
        last = self._recorded().last(self.id)
        if last is None:
            raise EngrainError("nothing has been said in this conversation yet: say something first")
        return last
