"""`engrain chat` and `engrain ask`."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engrain.cli import output
from engrain.cli.session import AdapterOption, ModelOption, Session, open_session, piped_text
from engrain.device.home import Home, open_home
from engrain.quant.errors import EngrainError

if TYPE_CHECKING:
    from engrain.device.chat import Conversation
    from engrain.device.interactions import InteractionLog

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)
_COMMANDS_HELP = """\
/good, /bad        rate the last reply
/fix TEXT          what the last reply should have been
/forget TEXT       remove from the log all that mentions TEXT
/system TEXT       instructions for the model; without TEXT: none
/adapter NAME      serve with another adapter version, or none
/new               begin a new conversation
/quit              leave (also Ctrl-D)"""

SystemOption = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="Instructions for the model.")]
ContinueOption = Annotated[bool, typer.Option("--continue", "-c", help="Go on with the last conversation.")]
NoRecordOption = Annotated[bool, typer.Option("--no-record", help="Keep nothing of this in the log.")]
NoNotebookOption = Annotated[
    bool, typer.Option("--no-notebook", help="Don't look up what isn't learned yet (no effect so far).")
]
MaxTokensOption = Annotated[
    int | None, typer.Option("--max-tokens", min=1, metavar="N", help="The longest reply, in tokens.")
]
TemperatureOption = Annotated[
    float | None, typer.Option("--temperature", min=0.0, help="0: always the likeliest word.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Makes replies at a temperature repeatable.")]


def chat(
    system: SystemOption = None,
    continue_: ContinueOption = False,
    adapter: AdapterOption = None,
    model: ModelOption = None,
    no_record: NoRecordOption = False,
    no_notebook: NoNotebookOption = False,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
) -> None:
    """Talk with the model; `engrain learn` makes it remember.

    Piped input is one turn a line. /help lists what can be typed besides.

    \b
      engrain chat
      engrain chat --system "Answer in one sentence."
      printf 'My cat is called Tom.\\nI live in Rome.\\n' | engrain chat
    """
    home = open_home()
    with _opened(home, no_record, model, adapter) as (session, log):
        conversation = _conversation(session, log, system, max_tokens, temperature, seed)
        if continue_:
            conversation.resume()
        interactive = sys.stdin is not None and sys.stdin.isatty()
        if interactive:
            served = f" with adapter {session.runtime.adapter}" if session.runtime.adapter else ""
            output.note(f"{session.model.name}{served}; /help for commands, Ctrl-D to leave")
        if not _Loop(session, log, conversation, interactive).run():
            raise typer.Exit(1)


def ask(
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="The question.")] = None,
    batch: Annotated[
        str | None,
        typer.Option("--batch", metavar="FILE", help="JSON lines with a text each; - for stdin. Not recorded."),
    ] = None,
    continue_: ContinueOption = False,
    system: SystemOption = None,
    adapter: AdapterOption = None,
    model: ModelOption = None,
    no_record: NoRecordOption = False,
    no_notebook: NoNotebookOption = False,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
) -> None:
    """Ask one thing; piped text is appended.

    \b
      engrain ask "What is my cat's name?"
      engrain ask -c "And how old is she?"
      git diff | engrain ask "Write a commit message."
      engrain ask --batch questions.jsonl > answers.jsonl
    """
    home = open_home()
    if batch is not None:
        if text is not None or continue_:
            raise typer.BadParameter("takes neither TEXT nor --continue", param_hint="--batch")
        lines = read_batch(batch)
        with open_session(home, model, adapter) as session:
            _answer_batch(session, lines, system, max_tokens, temperature, seed)
        return
    whole = "\n\n".join(part for part in (text or "", piped_text().strip()) if part.strip())
    if not whole:
        raise typer.BadParameter('there is nothing to ask: engrain ask "…"', param_hint="TEXT")
    with _opened(home, no_record, model, adapter) as (session, log):
        conversation = _conversation(session, log, system, max_tokens, temperature, seed)
        if continue_:
            conversation.resume()
        say(conversation, whole)


@contextlib.contextmanager
def _opened(
    home: Home, no_record: bool, model: str | None, adapter: str | None
) -> Iterator[tuple[Session, InteractionLog | None]]:
    """The log first: a damaged one must be told before the model is loaded."""
    from engrain.device.interactions import InteractionLog

    with contextlib.ExitStack() as stack:
        log = None if no_record else stack.enter_context(InteractionLog(home.interactions))
        yield stack.enter_context(open_session(home, model, adapter)), log


def _conversation(
    session: Session,
    log: InteractionLog | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
) -> Conversation:
    from engrain.device.chat import Conversation

    settings = session.settings
    return Conversation(
        session.runtime,
        log,
        session.model_sha,
        system=settings.system if system is None else system,
        max_tokens=settings.max_tokens if max_tokens is None else max_tokens,
        temperature=settings.temperature if temperature is None else temperature,
        seed=seed,
    )


def say(conversation: Conversation, text: str) -> None:
    """Stream the reply to stdout as it comes."""
    dropped = conversation.dropped_turns
    stream = conversation.say(text)
    piece = ""
    try:
        for piece in stream:
            output.write(piece)
    finally:
        stream.close()  # records what was there, if it was broken off
        if not piece.endswith("\n"):
            output.write("\n")
    if conversation.dropped_turns > dropped:
        output.note(f"the context is full: the oldest {conversation.dropped_turns} turns are left out of it")


class _Loop:
    """Turns and slash commands, from a terminal or a pipe."""

    def __init__(
        self, session: Session, log: InteractionLog | None, conversation: Conversation, interactive: bool
    ) -> None:
        self._session = session
        self._log = log
        self._conversation = conversation
        self._interactive = interactive
        self._commands: dict[str, Callable[[str], None]] = {
            "good": self._good,
            "bad": self._bad,
            "fix": self._fix,
            "forget": self._forget,
            "system": self._system,
            "adapter": self._adapter,
            "new": self._new,
            "help": self._help,
        }

    def run(self) -> bool:
        """Until the input ends; False if something went wrong on the way."""
        well = True
        for line in self._lines():
            try:
                matched = _COMMAND.fullmatch(line)
                if matched is None:
                    self._say(line)
                elif matched[1] in ("quit", "exit"):
                    break
                else:
                    self._command(matched[1], (matched[2] or "").strip())
            except EngrainError as error:
                well = self._interactive
                output.note(f"error: {error}")
        return well

    def _lines(self) -> Iterator[str]:
        if not self._interactive:
            yield from (line.strip() for line in sys.stdin or () if line.strip())
            return
        with contextlib.suppress(ImportError):
            # Line editing and history while the chat lasts; never a file, which /forget would not reach.
            import readline  # noqa: F401
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                output.note("")
                return
            if line:
                yield line

    def _say(self, text: str) -> None:
        try:
            say(self._conversation, text)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            output.note("(broken off; Ctrl-C again at the prompt leaves)")

    def _command(self, name: str, text: str) -> None:
        command = self._commands.get(name)
        if command is None:
            raise EngrainError(f"there is no /{name}: /help lists the commands")
        command(text)

    def _good(self, _: str) -> None:
        output.note(f"rated good: {self._conversation.good()}")

    def _bad(self, _: str) -> None:
        output.note(f"rated bad: {self._conversation.bad()}; /fix TEXT says what it should have been")

    def _fix(self, text: str) -> None:
        output.note(f"corrected: {self._conversation.fix(text)}")

    def _system(self, text: str) -> None:
        self._conversation.system = text or None
        output.note("instructions set" if text else "no instructions")

    def _adapter(self, name: str) -> None:
        if not name:
            output.note(f"adapter: {self._session.runtime.adapter or 'none'}")
            return
        output.note(f"adapter: {self._session.switch(name) or 'none'}")

    def _new(self, _: str) -> None:
        self._conversation.new()
        output.note("a new conversation")

    def _help(self, _: str) -> None:
        output.note(_COMMANDS_HELP)

    def _forget(self, text: str) -> None:
        if self._log is None:
            raise EngrainError("nothing of this conversation is recorded: there is nothing to forget")
        if not text:
            raise EngrainError("say what to forget: /forget TEXT")
        found = self._log.search(text, limit=1000)
        if not found:
            raise EngrainError(f"the log has nothing about {text!r}")
        for interaction in found:
            output.note(f"{interaction.id}  {output.shorten(interaction.user)}")
        if self._interactive:
            answer = input(f"forget {'these ' + str(len(found)) if len(found) > 1 else 'this'}? [y/N] ")
            if answer.strip().lower() not in ("y", "yes"):
                output.note("kept")
                return
        self._conversation.forget(*(each.id for each in found))
        output.note(f"forgotten: {len(found)}")
        warn_learned(self._session.registry.holders([each.id for each in found]))


def warn_learned(adapters: list[str]) -> None:
    """Forgetting empties the log, not the weights: say which ones still hold it."""
    if adapters:
        output.note(
            f"warning: learned by adapter {', '.join(adapters)}, whose weights still hold it:"
            " the next `engrain learn` trains one that hasn't seen it"
        )


def read_batch(source: str) -> list[dict[str, Any]]:
    """The JSON objects of a batch file, each with a text; EngrainError names the line at fault."""
    name = "stdin" if source == "-" else source
    try:
        if source == "-":
            content = sys.stdin.read() if sys.stdin is not None else ""
        else:
            content = Path(source).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise EngrainError(f"{name} can't be read ({error}): give a UTF-8 file of JSON lines") from error
    lines = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise EngrainError(f'{name}, line {number} is not JSON ({error}): write {{"text": "…"}}') from error
        text = values.get("text") if isinstance(values, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise EngrainError(f'{name}, line {number} has no text: write {{"text": "…"}}')
        lines.append(values)
    return lines


def _answer_batch(
    session: Session,
    lines: list[dict[str, Any]],
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
) -> None:
    for values in lines:
        # A conversation of its own each, as if it were asked in a new process.
        conversation = _conversation(session, None, system, max_tokens, temperature, seed)
        for _ in conversation.say(values["text"]):
            pass
        reply = conversation.last_reply
        if reply is not None:
            output.as_json(
                {
                    **values,
                    "answer": reply.text,
                    "prompt_tokens": reply.prompt_tokens,
                    "completion_tokens": reply.completion_tokens,
                    "adapter": session.runtime.adapter,
                }
            )
