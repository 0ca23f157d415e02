"""A model served by llama.cpp, which only this file and `context` call: load, stream, score, attach adapters."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import llama_cpp.llama_cpp as native
import numpy as np

from engrain.device import batching
from engrain.device.context import Context, ModelError, PromptTooLong, log
from engrain.device.judge import CELLS, SEQUENCES, Judge, log_probabilities, weigh
from engrain.device.recall import MOST, ROOM, MayBegin, Said, recall
from engrain.device.sampling import Reply, Sampler, TextAssembler
from engrain.device.scope import ALWAYS, Coverage, Scope
from engrain.device.template import ChatTemplate, Message

_SCOPE_CONTEXT = 1024  # tokens of a message that is looked at whole, to tell whether an adapter is about it
_WIDTH = 16  # prompts continued side by side by generate_batch
_BATCH_CELLS = 8192  # tokens whose keys and values generate_batch may hold
_PROBE = "The first thing that I would like to say about it is that"


@dataclass(frozen=True)
class _Attached:
    """A LoRA adapter that llama.cpp has loaded, and what it is about."""

    pointer: Any
    scale: float
    name: str
    scope: Scope | None


@dataclass
class _Tutor:
    """A loaded tutor (`device.tutor`), and the context that it alone serves, made when it is first asked."""

    path: Path
    pointer: Any
    context: Context | None = None


class Runtime:
    """A GGUF model served by llama.cpp, with at most one LoRA adapter. One caller at a time: no locks."""

    def __init__(self, path: Path, model: int, n_ctx: int, n_threads: int) -> None:
        """Takes over a loaded llama_model; use `Runtime.load`."""
        self.path = path
        self._model: int | None = model
        self._vocab = native.llama_model_get_vocab(model)
        self.n_vocab = int(native.llama_vocab_n_tokens(self._vocab))
        self.n_ctx = n_ctx
        self._n_threads = n_threads
        self._bos = int(native.llama_vocab_bos(self._vocab))
        self._template = ChatTemplate(self._template_source(), *map(self._token_text, (self._bos, self._eos())))
        self._pieces: dict[int, bytes] = {}
        self._attached: _Attached | None = None
        self._serving = True  # whether the attached adapter answers, or for now the base model alone
        self._held: list[int] = []  # tokens whose keys and values the main context holds
        self._main = Context(model, self.n_vocab, n_ctx, 1, n_threads)
        self._bare: Context | None = None  # never has an adapter
        self._bare_held: list[int] = []
        self._weighing: Context | None = None  # nor has this one
        self._judge: Judge | None = None
        self._tutor: _Tutor | None = None

    @classmethod
    def load(cls, path: str | Path, n_ctx: int = 2048, n_threads: int | None = None) -> Runtime:
        """Load a GGUF, memory-mapped. n_ctx in tokens, capped to what the model was trained on.

        ModelError when llama.cpp can't load it, or it isn't a decoder that chats.
        """
        path = Path(path)
        if n_ctx < 1:
            raise ModelError(f"a context of {n_ctx} tokens is too small: give 1 or more")
        if not path.is_file():
            raise ModelError(f"there is no model file {path}: `engrain model list` shows those there are")
        native.llama_backend_init()
        params = native.llama_model_default_params()
        params.load_mode = native.LLAMA_LOAD_MODE_MMAP
        params.use_extra_bufts = not _has_amx()
        log.clear()
        model = native.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise ModelError(f"llama.cpp can't load {path}: {log.reason()}; choose another model file")
        try:
            _check_decoder(path, model)
            capped = min(n_ctx, int(native.llama_model_n_ctx_train(model)))
            return cls(path, model, capped, n_threads or physical_cores())
        except BaseException:
            native.llama_model_free(model)
            raise

    def close(self) -> None:
        """Free everything. Closing twice is fine; anything else after it raises ModelError."""
        if self._model is None:
            return
        self.detach()
        self.use_tutor(None)
        self._main.close()
        for context in (self._bare, self._weighing):
            if context is not None:
                context.close()
        native.llama_model_free(self._model)
        self._model = None

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> int:
        if self._model is None:
            raise ModelError(f"the model {self.path.name} is closed: load it again")
        return self._model

    # Text and tokens

    def tokenize(self, text: str, special: bool = False, bos: bool = False) -> list[int]:
        """Token ids. special: read "<|im_end|>" and the like as control tokens; bos: put BOS first."""
        self._check_open()
        data = text.encode("utf-8", "replace")
        size = len(data) + 8  # a token is at least a byte, but a space may be put first
        while True:
            buffer = (native.llama_token * size)()
            count = native.llama_tokenize(self._vocab, data, len(data), buffer, size, False, special)
            if count >= 0:
                tokens = list(buffer[:count])
                return [self._bos, *tokens] if bos and self._bos >= 0 else tokens
            if -count <= size:
                raise ModelError("llama.cpp can't tokenise with this model: it has no usable vocabulary")
            size = -count

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens as it is streamed: control tokens are silent."""
        return b"".join(map(self._piece, tokens)).decode("utf-8", "replace")

    def _piece(self, token: int) -> bytes:
        if token not in self._pieces:
            self._pieces[token] = self._token_bytes(token, special=False)
        return self._pieces[token]

    def _token_bytes(self, token: int, special: bool) -> bytes:
        self._check_open()
        if not 0 <= token < self.n_vocab:
            raise ModelError(f"token {token} is not in the model's vocabulary of {self.n_vocab}")
        size = 32
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = native.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def _token_text(self, token: int) -> str:
        return self._token_bytes(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    def _eos(self) -> int:
        return int(native.llama_vocab_eos(self._vocab))

    def is_end(self, token: int) -> bool:
        self._check_open()
        return bool(native.llama_vocab_is_eog(self._vocab, token))

    @property
    def has_template(self) -> bool:
        """Whether the model brings a chat template; without one a plain "User: … Assistant: …" serves."""
        return self._template.source is not None

    def _template_source(self) -> str | None:
        source = native.llama_model_chat_template(self._model, None)
        return source.decode("utf-8", "replace") if source else None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The messages as the model's chat template writes them."""
        return self._template.render(messages, add_generation_prompt)

    def prompt_tokens(self, messages: Sequence[Message]) -> list[int]:
        """Exactly the token ids that are served for these messages, up to where the reply begins."""
        return self._rendered_tokens(self.render(messages))

    def _rendered_tokens(self, text: str) -> list[int]:
        tokens = self.tokenize(text, special=True)
        wants_bos = self._bos >= 0 and native.llama_vocab_get_add_bos(self._vocab)
        return [self._bos, *tokens] if wants_bos and tokens[:1] != [self._bos] else tokens

    def target_tokens(self, messages: Sequence[Message], reply: str) -> list[int]:
        """The token ids of a reply as they stand after `prompt_tokens`, end of turn included.

        Where the reply begins inside a token of the whole text, it is tokenised by itself.
        """
        prompt = self.prompt_tokens(messages)
        lead = "" if self.has_template else " "
        whole = self._rendered_tokens(self.render(messages) + lead + reply)
        own = whole[len(prompt) :] if whole[: len(prompt)] == prompt else self.tokenize(lead + reply)
        return [*own, self.end_of_turn]

    @cached_property
    def end_of_turn(self) -> int:
        """The token that ends an assistant turn: the one that the template writes, else EOT, else EOS."""
        turn: list[Message] = [{"role": "user", "content": "a"}]
        if self.has_template:
            prompt = self.render(turn)
            whole = self.render([*turn, {"role": "assistant", "content": "b"}], add_generation_prompt=False)
            written = self.tokenize(whole[batching.common_prefix(prompt, whole) :], special=True)
            for token in written:
                if self.is_end(token):
                    return token
        eot = int(native.llama_vocab_eot(self._vocab))
        return eot if eot >= 0 else self._eos()

    # Generation

    def stream(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
        top_p: float = 0.95,
        on_finish: Callable[[Reply], None] | None = None,
    ) -> Generator[str, None, None]:
        """The reply in pieces of whole characters; PromptTooLong before the first.

        What the context already holds of the prompt isn't evaluated again. `on_finish` gets the whole reply
        before the iterator ends, and nothing if the caller stops early.
        """
        prompt = self.prompt_tokens(messages)
        self._check_fits(prompt)
        return self._stream(prompt, max_tokens, Sampler(temperature, top_p, seed), on_finish)

    def _stream(
        self, prompt: list[int], max_tokens: int, sampler: Sampler, on_finish: Callable[[Reply], None] | None
    ) -> Generator[str, None, None]:
        assembler = TextAssembler(self._template.stop)
        text, count, finished = [], 0, False
        for token in self._generate(prompt, max_tokens, sampler):
            count += 1
            finished = self.is_end(token)
            piece = "" if finished else assembler.feed(self._piece(token))
            if piece:
                text.append(piece)
                yield piece
            if assembler.stopped:
                finished = True
                break
        if rest := "" if assembler.stopped else assembler.rest():
            text.append(rest)
            yield rest
        if on_finish is not None:
            on_finish(Reply("".join(text), len(prompt), count, finished))

    def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
        top_p: float = 0.95,
    ) -> Reply:
        """The whole reply."""
        replies: list[Reply] = []
        for _ in self.stream(
            messages,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            top_p=top_p,
            on_finish=replies.append,
        ):
            pass
        return replies[0]

    def complete_tokens(
        self, prompt: Sequence[int], max_tokens: int, temperature: float = 0.0, seed: int | None = None
    ) -> list[int]:
        """Continue raw token ids; the new ones, without the token that ended them."""
        self._check_fits(prompt)
        tokens = self._generate(list(prompt), max_tokens, Sampler(temperature, seed=seed))
        return [token for token in tokens if not self.is_end(token)]

    def generate_batch(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, samplers: Sequence[Sampler] = ()
    ) -> list[list[int]]:
        """Continue many prompts (token ids) side by side: about twice the tokens a second on two cores.

        Returns the new tokens of each, without the end of turn. Sums run in another order than in `complete_tokens`:
        near ties may fall otherwise. samplers: one for each prompt; greedy without.
        """
        if not prompts or max_tokens < 1:
            return [[] for _ in prompts]
        for prompt in prompts:
            self._check_fits(prompt)
        shared = batching.shared_prefix(prompts)
        room = min(max(map(len, prompts)) + max_tokens, self.n_ctx) - shared
        width = max(1, min(_WIDTH, len(prompts), (_BATCH_CELLS - shared) // room))
        with self._context(shared + width * room, width + 1, self._serving) as context:
            return batching.generate(
                context,
                prompts,
                samplers or [Sampler() for _ in prompts],
                width=width,
                max_tokens=max_tokens,
                n_ctx=self.n_ctx,
                ends=self.is_end,
            )

    def recall(self, prompts: Sequence[Sequence[int]]) -> list[list[Said]]:
        """All replies of the attached adapter to each prompt (token ids) that are likely enough, likeliest first."""
        for prompt in prompts:
            self._check_fits(prompt)
        if not prompts:
            return []
        shared = batching.shared_prefix(prompts)
        room = max(map(len, prompts)) - shared + ROOM
        width = max(1, min(_WIDTH, len(prompts), (_BATCH_CELLS - shared) // room))
        with self._context(shared + width * room, MOST * width + 1, adapted=True) as context:
            return recall(
                context, prompts, width=width, n_ctx=self.n_ctx, ends=self.is_end, may_begin=self._may_begin
            )  # fmt: skip

    def may_begin(self, tokens: Sequence[int]) -> bool:
        """Whether a reply that the attached adapter remembers begins with these tokens; False if that isn't known."""
        return self._may_begin is not None and self._may_begin(tokens)

    @property
    def _may_begin(self) -> MayBegin | None:
        scope = self._attached.scope if self._attached else None
        return scope.may_begin if scope else None

    @contextmanager
    def _context(self, cells: int, sequences: int, adapted: bool) -> Iterator[Context]:
        """One for a while, beside the main one."""
        context = Context(self._check_open(), self.n_vocab, cells, sequences, self._n_threads)
        try:
            if not self._apply(context, adapted):
                raise ModelError(f"llama.cpp can't attach the adapter {self.adapter} for batches")
            yield context
        finally:
            context.close()

    def _check_fits(self, prompt: Sequence[int]) -> None:
        if not prompt:
            raise ModelError("the prompt has no tokens: give some text")
        if len(prompt) >= self.n_ctx:
            raise PromptTooLong(len(prompt), self.n_ctx)

    def _generate(self, prompt: list[int], max_tokens: int, sampler: Sampler) -> Iterator[int]:
        """New tokens, the ending one included."""
        tokens = list(prompt)
        for _ in range(min(max_tokens, self.n_ctx - len(prompt))):
            token = sampler.choose(self._next_logits(tokens))
            yield token
            if self.is_end(token):
                return
            tokens.append(token)

    def _next_logits(self, tokens: list[int]) -> np.ndarray:
        """Logits (n_vocab,) after `tokens`, evaluating only what the context doesn't hold yet.

        Looking at what is held each time keeps a stream right when another runs, or the adapter changes,
        between two of its pieces.
        """
        self._check_open()
        keep = len(tokens) - 1
        if self._held != tokens[:-1]:
            keep = min(batching.common_prefix(self._held, tokens), keep)
        if not self._main.truncate(0, keep):  # a recurrent state can't be cut
            self._main.clear()
            keep = 0
        return self._extend(keep, tokens[keep:], outputs=1)[0]

    def _extend(self, keep: int, tokens: Sequence[int], outputs: int) -> np.ndarray:
        """Evaluate tokens after the `keep` that are held; logits (outputs, n_vocab) of the last ones."""
        held, self._held = self._held[:keep], []  # if interrupted, nothing counts as held
        size = len(tokens)
        rows = self._main.decode(
            np.asarray(tokens, dtype=np.int32),
            np.arange(keep, keep + size),
            np.zeros(size, dtype=np.int32),
            np.arange(size) >= size - outputs,
        )
        self._held = [*held, *tokens]
        return rows

    # Scoring

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits (n_tokens, n_vocab) float32 at every position, from an empty context."""
        return self._evaluate(tokens, outputs=len(tokens))

    def score(self, prompt: Sequence[int], target: Sequence[int]) -> np.ndarray:
        """Log-probabilities (n_target,) float64, in nats, of target tokens that follow the prompt."""
        if not target:
            return np.zeros(0)
        if not prompt:
            raise ModelError("the prompt has no tokens: give at least one")
        rows = self._evaluate([*prompt, *target[:-1]], outputs=len(target))
        return log_probabilities(rows, target)

    def _evaluate(self, tokens: Sequence[int], outputs: int) -> np.ndarray:
        self._check_open()
        if not tokens:
            return np.zeros((0, self.n_vocab), dtype=np.float32)
        if len(tokens) > self.n_ctx:
            raise PromptTooLong(len(tokens), self.n_ctx)
        self._forget()
        return self._extend(0, tokens, outputs)

    def _forget(self) -> None:
        """Drop keys and values: they were made by one adapter and one text."""
        self._held = []
        self._main.clear()

    # Adapters

    @property
    def adapter(self) -> str | None:
        """The name of the attached adapter."""
        return None if self._attached is None else self._attached.name

    def attach(self, path: str | Path, scale: float = 1.0, name: str | None = None, scope: Scope | None = None) -> None:
        """Serve with this GGUF LoRA in place of any before. If llama.cpp refuses: ModelError, no change.

        A scope for another width of model is left out of account.
        """
        model = self._check_open()
        path = Path(path)
        if not path.is_file():
            raise ModelError(f"there is no adapter file {path}")
        log.clear()
        pointer = native.llama_adapter_lora_init(model, os.fsencode(path))
        if not pointer:
            raise ModelError(f"llama.cpp can't load the adapter {path}: {log.reason()}")
        if scope is not None and scope.width != native.llama_model_n_embd(model):
            scope = None
        before, self._attached = self._attached, _Attached(pointer, scale, name or path.stem, scope)
        served, self._serving = self._serving, True
        if not self._apply(self._main, self._serving):
            self._attached, self._serving = before, served
            self._apply(self._main, self._serving)
            native.llama_adapter_lora_free(pointer)
            raise ModelError(f"llama.cpp can't attach the adapter {path}: {log.reason()}")
        self._forget()
        if before is not None:
            native.llama_adapter_lora_free(before.pointer)  # only now: no context refers to it any more

    def detach(self) -> None:
        """Serve the base model alone."""
        self._check_open()
        before, self._attached = self._attached, None
        self._serving = True
        if before is not None:
            self._apply(self._main, self._serving)
            self._forget()
            native.llama_adapter_lora_free(before.pointer)

    def _apply(self, context: Context, adapted: bool) -> bool:
        if self._attached is None or not adapted:
            return context.set_adapter(None, 0.0)
        return context.set_adapter(self._attached.pointer, self._attached.scale)

    def covers(self, text: str, follows: bool = False) -> Coverage:
        """Whether the attached adapter is about a message, told by the base model's hidden state after it.

        follows: it goes on from one that was, which is taken into account. Always for an adapter without a scope, and
        for messages longer than a page or two.
        """
        if self._attached is None or self._attached.scope is None:
            return ALWAYS
        prompt = self.prompt_tokens([{"role": "user", "content": text}])
        if len(prompt) > min(_SCOPE_CONTEXT, self.n_ctx):
            return ALWAYS
        return self._attached.scope.place(text, self.hidden(prompt), follows)

    def hidden(self, tokens: Sequence[int]) -> np.ndarray:
        """The base model's normed last hidden state (n_embd,) float32 after at most a page or two of tokens."""
        model = self._check_open()
        if self._bare is None:
            size = min(_SCOPE_CONTEXT, self.n_ctx)
            self._bare = Context(model, self.n_vocab, size, 1, self._n_threads)
        keep = min(batching.common_prefix(self._bare_held, tokens), len(tokens) - 1)
        self._bare_held = []
        if not self._bare.truncate(0, keep):
            self._bare.clear()
            keep = 0
        state = self._bare.last_state(np.asarray(tokens, dtype=np.int32), keep)
        self._bare_held = list(tokens)
        return state

    def likelihoods(
        self, head: Sequence[int], prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """As `Judge.likelihoods`, under the base model: log-probabilities (prompts, targets) in nats."""
        model = self._check_open()
        if self._weighing is None:
            self._weighing = Context(model, self.n_vocab, CELLS, SEQUENCES, self._n_threads)
            self._judge = Judge(self._weighing)
        assert self._judge is not None
        return self._judge.likelihoods(head, prompts, targets)

    @property
    def has_tutor(self) -> bool:
        return self._tutor is not None

    def use_tutor(self, path: Path | None) -> None:
        """Weigh with this GGUF LoRA from now on; None for none. ModelError, and none, if llama.cpp refuses it."""
        model = self._check_open()
        if self._tutor is not None:
            if path == self._tutor.path:
                return
            if self._tutor.context is not None:
                self._tutor.context.close()
            native.llama_adapter_lora_free(self._tutor.pointer)
            self._tutor = None
        if path is None:
            return
        log.clear()
        pointer = native.llama_adapter_lora_init(model, os.fsencode(path))
        if not pointer:
            raise ModelError(f"llama.cpp can't load the tutor {path}: {log.reason()}; delete it")
        self._tutor = _Tutor(path, pointer)

    def weigh(
        self, prompts: Sequence[Sequence[int]], target: Sequence[int], choices: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `judge.weigh`, by the tutor. ModelError without one."""
        model, tutor = self._check_open(), self._tutor
        if tutor is None:
            raise ModelError(f"{self.path.name} has no tutor to weigh with")
        if tutor.context is None:
            tutor.context = Context(model, self.n_vocab, CELLS, SEQUENCES, self._n_threads)
            if not tutor.context.set_adapter(tutor.pointer, 1.0):
                raise ModelError(f"llama.cpp can't attach the tutor {tutor.path}: {log.reason()}; delete it")
        return weigh(tutor.context, prompts, target, choices)

    def serve(self, adapted: bool) -> None:
        """Answer with the attached adapter, or for now without it; `attach` turns it on."""
        self._check_open()
        if adapted != self._serving:
            self._serving = adapted
            if self._attached is not None:
                self._apply(self._main, self._serving)
                self._forget()

    def prove_adapter(self, text: str = _PROBE) -> float:
        """The largest change of a logit that the attached adapter makes on a short text; 0.0: no effect."""
        if self._attached is None:
            return 0.0
        tokens = self.tokenize(text, bos=True)[: self.n_ctx]
        self.serve(True)
        served = self.logits(tokens)
        try:
            self._main.set_adapter(None, 0.0)
            base = self.logits(tokens)
        finally:
            self._apply(self._main, self._serving)
            self._forget()
        return float(np.abs(served - base).max())


def _check_decoder(path: Path, model: int) -> None:
    if native.llama_model_has_encoder(model) or not native.llama_model_has_decoder(model):
        raise ModelError(f"{path} doesn't hold a decoder that chats: choose another model")
    if native.llama_vocab_type(native.llama_model_get_vocab(model)) == native.LLAMA_VOCAB_TYPE_NONE:
        raise ModelError(f"{path} has no vocabulary: choose another model")


def _has_amx() -> bool:
    """Whether llama.cpp would multiply with Intel's AMX tiles: built with some GCC versions it crashes there.

    GCC drops stores that fill the tile configuration (https://github.com/ggml-org/llama.cpp/pull/26954).
    """
    return b"AMX_INT8 = 1" in native.llama_print_system_info()


def physical_cores() -> int:
    """Cores for arithmetic: hyper-threads share an arithmetic unit, efficiency cores hold the others up."""
    if sys.platform == "darwin":
        for key in ("hw.perflevel0.physicalcpu", "hw.physicalcpu"):
            answer = subprocess.run(["/usr/sbin/sysctl", "-n", key], capture_output=True, text=True, check=False)
            if answer.stdout.strip().isdigit():
                return max(1, int(answer.stdout))
    if sys.platform == "linux":
        usable = os.sched_getaffinity(0)
        siblings = set()
        for cpu in usable:
            try:
                siblings.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list").read_text())
            except OSError:
                return max(1, len(usable))
        return max(1, len(siblings))
    return max(1, (os.cpu_count() or 2) // 2)
