"""Text to a model's tokens and back, and the prompts that its chat template writes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from engrain.device.batching import common_prefix
from engrain.device.llama_model import LlamaModel
from engrain.device.sampling import TextAssembler
from engrain.device.template import ChatTemplate, Message


class Tokenizer:
    """The vocabulary of a loaded model, and its chat template."""

    def __init__(self, model: LlamaModel) -> None:
        self._model = model
        self._bos = model.bos
        self.template = ChatTemplate(model.chat_template, *map(self._token_text, (self._bos, model.eos)))
        self._pieces: dict[int, bytes] = {}

    def tokenize(self, text: str, special: bool = False, bos: bool = False) -> list[int]:
        """Token ids. special: read "<|im_end|>" and the like as control tokens; bos: put BOS first."""
        tokens = self._model.tokenize(text.encode("utf-8", "replace"), special)
        return [self._bos, *tokens] if bos and self._bos >= 0 else tokens

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens as it is streamed: control tokens are silent."""
        return b"".join(map(self.piece, tokens)).decode("utf-8", "replace")

    def reply_text(self, tokens: Sequence[int]) -> str:
        """The whole text that is streamed of a reply's tokens: no white space before it, up to a template's stop."""
        assembler = TextAssembler(self.template.stops)
        text = assembler.feed(b"".join(map(self.piece, tokens)))
        return text if assembler.stopped else text + assembler.rest()

    def piece(self, token: int) -> bytes:
        """The bytes of one token, which may be half a character; none for a control token."""
        if token not in self._pieces:
            self._pieces[token] = self._model.piece(token, special=False)
        return self._pieces[token]

    def _token_text(self, token: int) -> str:
        return self._model.piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    def is_end(self, token: int) -> bool:
        """Whether a reply ends with this token."""
        return self._model.is_end(token)

    @property
    def has_template(self) -> bool:
        """Whether the model brings a chat template; without one a plain "User: … Assistant: …" serves."""
        return self.template.source is not None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The messages as the model's chat template writes them."""
        return self.template.render(messages, add_generation_prompt)

    def rendered_tokens(self, text: str) -> list[int]:
        """The token ids of text that `render` wrote, with BOS first where the model wants it."""
        tokens = self.tokenize(text, special=True)
        wants_bos = self._bos >= 0 and self._model.wants_bos
        return [self._bos, *tokens] if wants_bos and tokens[:1] != [self._bos] else tokens

    def prompt_tokens(self, messages: Sequence[Message]) -> list[int]:
        """Exactly the token ids that are served for these messages, up to where the reply begins."""
        return self.rendered_tokens(self.render(messages))

    def target_tokens(self, messages: Sequence[Message], reply: str) -> list[int]:
        """The token ids of a reply as they stand after `prompt_tokens`, end of turn included.

        Where the reply begins inside a token of the whole text, it is tokenised by itself.
        """
        prompt = self.prompt_tokens(messages)
        lead = "" if self.has_template else " "
        whole = self.rendered_tokens(self.render(messages) + lead + reply)
        own = whole[len(prompt) :] if whole[: len(prompt)] == prompt else self.tokenize(lead + reply)
        return [*own, self.end_of_turn]

    @cached_property
    def end_of_turn(self) -> int:
        """The token that ends an assistant turn: the one that the template writes, else EOT, else EOS."""
        turn: list[Message] = [{"role": "user", "content": "a"}]
        if self.has_template:
            prompt = self.render(turn)
            whole = self.render([*turn, {"role": "assistant", "content": "b"}], add_generation_prompt=False)
            written = self.tokenize(whole[common_prefix(prompt, whole) :], special=True)
            for token in written:
                if self.is_end(token):
                    return token
        return self._model.eot if self._model.eot >= 0 else self._model.eos
