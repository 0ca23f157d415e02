"""The model's own chat template, run in a sandbox: it comes from a file that nobody vouches for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engrain.quant.errors import EngrainError

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

_LONGEST = 16_000_000  # characters; a loop in a hostile template stops here
_FALLBACK_STOPS = ("\nUser:", "\nAssistant:")


class TemplateError(EngrainError):
    """The model's chat template can't render these messages."""


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks targets for training elsewhere; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own type)

    def parse(self, parser: jinja2.parser.Parser) -> list[Any]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's, in which a product can't fill the memory either: "a" * 10**10, 9**(9**9)."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # two numbers, or what has no product
            text, times = (right, left) if isinstance(left, int) else (left, right)
            size = int(abs(left)).bit_length() * abs(right) if operator == "**" else len(text) * abs(times)
            if size > _LONGEST:
                raise TemplateError("the model's chat template writes without end: use another model file")
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """Messages to prompt text. Without a template: "User: …\\nAssistant: …", system text on top.

    Environment and variables are those of Hugging Face's `apply_chat_template`, as templates expect.
    """

    def __init__(self, source: str | None, bos: str = "", eos: str = "") -> None:
        self.source = source
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._compiled: jinja2.Template | None = None
        if source is None:
            return
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._compiled = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise TemplateError(
                f"the model's chat template can't be read: {_line(error)}; choose another model"
            ) from error

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end a reply where no token does: a model without a template goes on with the next turn."""
        return _FALLBACK_STOPS if self._compiled is None else ()

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The prompt text; TemplateError if the template refuses the messages.

        A template that knows no system role gets the system text at the head of the first user message.
        """
        if self._compiled is None:
            return _render_plain(messages, add_generation_prompt)
        try:
            return self._run(messages, add_generation_prompt)
        except TemplateError:
            folded = _fold_system(messages)
            if folded is None:
                raise
            return self._run(folded, add_generation_prompt)

    def _run(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        assert self._compiled is not None
        parts: list[str] = []
        length = 0
        try:
            for part in self._compiled.generate(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                **self._tokens,
            ):
                parts.append(part)
                length += len(part)
                if length > _LONGEST:
                    raise TemplateError("the model's chat template writes without end: use another model file")
        except TemplateError:
            raise
        except Exception as error:  # a template can raise what any Python expression can
            raise TemplateError(f"the model's chat template refuses this conversation: {_line(error)}") from error
        return "".join(parts)


def _render_plain(messages: Sequence[Message], add_generation_prompt: bool) -> str:
    roles = {"user": "User: ", "assistant": "Assistant: "}
    lines = [
        f"{message['content']}\n" if message["role"] == "system" else roles[message["role"]] + message["content"]
        for message in messages
    ]
    return "\n".join([*lines, "Assistant:"] if add_generation_prompt else lines)


def _fold_system(messages: Sequence[Message]) -> list[Message] | None:
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return None
    first = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return [first, *messages[2:]]


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)  # Jinja's own escapes HTML


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
