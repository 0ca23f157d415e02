"""A model served by llama.cpp: load, stream, score, attach adapters."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import TracebackType

import numpy as np

from engrain.device import batching
from engrain.device.adapter_slot import AdapterSlot
from engrain.device.context import Context
from engrain.device.judge import log_probabilities
from engrain.device.llama_model import LlamaModel, ModelError, PromptTooLong
from engrain.device.prefix_cache import PrefixCache
from engrain.device.recall import MOST, ROOM, Said, Taught, recall
from engrain.device.sampling import Reply, Sampler, TextAssembler
from engrain.device.scope import ALWAYS, Coverage, Scope
from engrain.device.template import Message
from engrain.device.tokenizer import Tokenizer
from engrain.device.weighing import Weigh, Weighing

_SCOPE_CONTEXT = 1024  # tokens of a message that is looked at whole, to tell whether an adapter is about it
_WIDTH = 16  # prompts continued side by side by generate_batch
_BATCH_CELLS = 8192  # tokens whose keys and values generate_batch may hold
_RECITED = 4  # tokens by which a taught reply is known
_PROBE = "The first thing that I would like to say about it is that"


class Runtime:
    """A GGUF model served by llama.cpp, with at most one LoRA adapter. One caller at a time: no locks."""

    def __init__(self, model: LlamaModel, n_ctx: int) -> None:
        """Takes over a loaded model; use `Runtime.load`."""
        self._model = model
        self.path = model.path
        self.n_vocab = model.n_vocab
        self.n_ctx = n_ctx
        self._tokenizer = Tokenizer(model)
        self._weighing = Weighing(model)
        self._main = PrefixCache(model, n_ctx)
        self._adapter = AdapterSlot(model, self._main)
        self._bare: PrefixCache | None = None  # never has an adapter

    @classmethod
    def load(cls, path: str | Path, n_ctx: int = 2048, n_threads: int | None = None) -> Runtime:
        """Load a GGUF, memory-mapped. n_ctx in tokens, capped to what the model was trained on.

        ModelError when llama.cpp can't load it, or it isn't a decoder that chats.
        """
        if n_ctx < 1:
            raise ModelError(f"a context of {n_ctx} tokens is too small: give 1 or more")
        model = LlamaModel(Path(path), n_threads)
        try:
            return cls(model, min(n_ctx, model.n_ctx_train))
        except BaseException:
            model.close()
            raise

    def close(self) -> None:
        """Free everything. Closing twice is fine; anything else after it raises ModelError."""
        if self._model.closed:
            return
        self._adapter.detach()
        self._weighing.close()
        self._main.close()
        if self._bare is not None:
            self._bare.close()
        self._model.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Text and tokens: as the tokenizer has them

    def tokenize(self, text: str, special: bool = False, bos: bool = False) -> list[int]:
        """Token ids. special: read "<|im_end|>" and the like as control tokens; bos: put BOS first."""
        return self._tokenizer.tokenize(text, special, bos)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens as it is streamed: control tokens are silent."""
        return self._tokenizer.detokenize(tokens)

    def reply_text(self, tokens: Sequence[int]) -> str:
        """The whole text that is streamed of a reply's tokens: a template's stop ends it."""
        return self._tokenizer.reply_text(tokens)

    def is_end(self, token: int) -> bool:
        """Whether a reply ends with this token."""
        return self._tokenizer.is_end(token)

    @property
    def has_template(self) -> bool:
        """Whether the model brings a chat template; without one a plain "User: … Assistant: …" serves."""
        return self._tokenizer.has_template

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The messages as the model's chat template writes them."""
        return self._tokenizer.render(messages, add_generation_prompt)

    def prompt_tokens(self, messages: Sequence[Message]) -> list[int]:
        """Exactly the token ids that are served for these messages, up to where the reply begins."""
        return self._tokenizer.prompt_tokens(messages)

    def target_tokens(self, messages: Sequence[Message], reply: str) -> list[int]:
        """The token ids of a reply as they stand after `prompt_tokens`, end of turn included."""
        return self._tokenizer.target_tokens(messages, reply)

    @property
    def end_of_turn(self) -> int:
        """The token that ends an assistant turn: the one that the template writes, else EOT, else EOS."""
        return self._tokenizer.end_of_turn

    # Generation

    def stream(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
        top_p: float = 0.95,
        begun: Sequence[int] = (),
        on_finish: Callable[[Reply], None] | None = None,
    ) -> Generator[str, None, None]:
        """The reply in pieces of whole characters; PromptTooLong before the first.

        What the context already holds of the prompt isn't evaluated again. begun: tokens that the reply goes on from.
        `on_finish` gets the whole reply before the iterator ends, and nothing if the caller stops early.
        """
        prompt = self.prompt_tokens(messages)
        self._check_fits([*prompt, *begun])
        return self._stream(prompt, begun, max_tokens, Sampler(temperature, top_p, seed), on_finish)

    def _stream(
        self,
        prompt: list[int],
        begun: Sequence[int],
        max_tokens: int,
        sampler: Sampler,
        on_finish: Callable[[Reply], None] | None,
    ) -> Generator[str, None, None]:
        assembler = TextAssembler(self._tokenizer.template.stops)
        text, count, finished = [], 0, False
        for token in chain(begun[:max_tokens], self._generate([*prompt, *begun], max_tokens - len(begun), sampler)):
            count += 1
            finished = self.is_end(token)
            piece = "" if finished else assembler.feed(self._tokenizer.piece(token))
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
        with self._context(shared + width * room, width + 1, self._adapter.serving) as context:
            return batching.generate(
                context,
                prompts,
                samplers or [Sampler() for _ in prompts],
                width=width,
                max_tokens=max_tokens,
                n_ctx=self.n_ctx,
                ends=self.is_end,
            )

    def recall(self, prompts: Sequence[Sequence[int]], most: int = MOST) -> list[list[Said]]:
        """Replies of the attached adapter to each prompt (token ids) that are likely enough, likeliest first.

        most: beginnings of replies that are followed at once.
        """
        for prompt in prompts:
            self._check_fits(prompt)
        if not prompts:
            return []
        shared = batching.shared_prefix(prompts)
        room = max(map(len, prompts)) - shared + ROOM
        width = max(1, min(_WIDTH, len(prompts), (_BATCH_CELLS - shared) // room))
        with self._context(shared + width * room, most * width + 1, adapted=True) as context:
            return recall(
                context,
                prompts,
                width=width,
                n_ctx=self.n_ctx,
                ends=self.is_end,
                taught=self._taught,
                most=most,
            )

    def may_begin(self, tokens: Sequence[int]) -> bool:
        """Whether a reply that the attached adapter remembers begins with these tokens; False if that isn't known."""
        return self._taught is not None and self._taught.may_begin(tokens)

    def recites(self, tokens: Sequence[int]) -> bool:
        """Whether tokens begin as a reply about a fact does that the attached adapter remembers, in some words."""
        scope = self._adapter.scope
        if scope is None or scope.openings is None:  # of an earlier engrain
            return self.may_begin(tokens[:_RECITED])
        return scope.recites(self.detokenize(tokens))

    @property
    def _taught(self) -> Taught | None:
        scope = self._adapter.scope
        if scope is None or scope.may_begin is None:
            return None
        return Taught(scope.may_begin, lambda tokens: scope.is_taught(self.detokenize(tokens)))

    @contextmanager
    def _context(self, cells: int, sequences: int, adapted: bool) -> Iterator[Context]:
        """One for a while, beside the main one."""
        context = Context(self._model, cells, sequences)
        try:
            if not self._adapter.apply(context, adapted):
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
            token = sampler.choose(self._main.next_logits(tokens))
            yield token
            if self.is_end(token):
                return
            tokens.append(token)

    # Scoring

    def logits(self, tokens: Sequence[int], last: int | None = None) -> np.ndarray:
        """Logits (n_tokens, n_vocab) float32 at every position, or at the last few, from an empty context."""
        return self._evaluate(tokens, outputs=len(tokens) if last is None else last)

    def score(self, prompt: Sequence[int], target: Sequence[int]) -> np.ndarray:
        """Log-probabilities (n_target,) float64, in nats, of target tokens that follow the prompt."""
        if not target:
            return np.zeros(0)
        if not prompt:
            raise ModelError("the prompt has no tokens: give at least one")
        rows = self._evaluate([*prompt, *target[:-1]], outputs=len(target))
        return log_probabilities(rows, target)

    def _evaluate(self, tokens: Sequence[int], outputs: int) -> np.ndarray:
        self._model.check_open()
        if not tokens:
            return np.zeros((0, self.n_vocab), dtype=np.float32)
        if len(tokens) > self.n_ctx:
            raise PromptTooLong(len(tokens), self.n_ctx)
        return self._main.logits(tokens, outputs)

    def likelihoods(
        self, head: Sequence[int], prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """As `Judge.likelihoods`, under the base model: log-probabilities (prompts, targets) in nats."""
        return self._weighing.likelihoods(head, prompts, targets)

    @property
    def has_tutor(self) -> bool:
        return self._weighing.has_tutor

    def use_tutor(self, path: Path | None) -> None:
        """Weigh with this GGUF LoRA from now on; None for none. ModelError, and none, if llama.cpp refuses it."""
        self._weighing.use_tutor(path)

    def weigh(
        self, prompts: Sequence[Sequence[int]], target: Sequence[int], choices: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Judge.weigh`, by the tutor. ModelError without one."""
        return self._weighing.weigh(prompts, target, choices)

    def weigh_by(self, weigh: Weigh | None) -> None:
        """From now on by another that weighs as the tutor does, as a learner can, faster; None: by the tutor itself."""
        self._weighing.weigh_by(weigh)

    # The adapter

    @property
    def adapter(self) -> str | None:
        """The name of the attached adapter."""
        return self._adapter.name

    def attach(self, path: str | Path, scale: float = 1.0, name: str | None = None, scope: Scope | None = None) -> None:
        """Serve with this GGUF LoRA in place of any before. If llama.cpp refuses: ModelError, no change.

        A scope for another width of model is left out of account.
        """
        path = Path(path)
        self._adapter.attach(path, scale, name or path.stem, scope)

    def detach(self) -> None:
        """Serve the base model alone."""
        self._adapter.detach()

    def serve(self, adapted: bool) -> None:
        """Answer with the attached adapter, or for now without it; `attach` turns it on."""
        self._adapter.serve(adapted)

    def covers(self, text: str, follows: bool = False) -> Coverage:
        """Whether the attached adapter is about a message, told by the base model's hidden state after it.

        follows: it goes on from one that was, which is taken into account. Always for an adapter without a scope, and
        for messages longer than a page or two.
        """
        scope = self._adapter.scope
        if scope is None:
            return ALWAYS
        prompt = self.prompt_tokens([{"role": "user", "content": text}])
        if len(prompt) > min(_SCOPE_CONTEXT, self.n_ctx):
            return ALWAYS
        return scope.place(text, self.hidden(prompt), follows)

    def hidden(self, tokens: Sequence[int]) -> np.ndarray:
        """The base model's normed last hidden state (n_embd,) float32 after at most a page or two of tokens."""
        self._model.check_open()
        if self._bare is None:
            self._bare = PrefixCache(self._model, min(_SCOPE_CONTEXT, self.n_ctx))
        return self._bare.last_state(tokens)

    def prove_adapter(self, text: str = _PROBE) -> float:
        """The largest change of a logit that the attached adapter makes on a short text; 0.0: no effect."""
        if self.adapter is None:
            return 0.0
        tokens = self.tokenize(text, bos=True)[: self.n_ctx]
        self.serve(True)
        served = self.logits(tokens)
        try:
            self.serve(False)
            base = self.logits(tokens)
        finally:
            self.serve(True)
        return float(np.abs(served - base).max())
