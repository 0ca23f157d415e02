"""A GGUF loaded by llama.cpp: the model and the adapters for it, llama.cpp's log, and what can go wrong."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as native

from engrain.quant.errors import EngrainError

_GGML_LOG_LEVEL_ERROR = 4  # as in ggml.h; the binding's own comment has the numbers of an older one


class ModelError(EngrainError):
    """llama.cpp can't load or run this model or adapter."""


class PromptTooLong(ModelError):
    """The prompt leaves no room for a reply in the context."""

    def __init__(self, prompt_tokens: int, n_ctx: int) -> None:
        super().__init__(
            f"the prompt is {prompt_tokens} tokens long and the context holds {n_ctx}: "
            "shorten it, or raise the context size"
        )
        self.prompt_tokens = prompt_tokens
        self.n_ctx = n_ctx


class _NativeLog:
    """llama.cpp's log: nothing reaches the terminal, and the last errors are kept to be quoted."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=8)
        self._callback = native.llama_log_callback(self._receive)  # must outlive its use by llama.cpp
        native.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _receive(self, level: int, text: bytes | None, _: Any) -> None:
        if level == _GGML_LOG_LEVEL_ERROR and text:
            self._errors.append(text.decode("utf-8", "replace"))

    def clear(self) -> None:
        self._errors.clear()

    def reason(self) -> str:
        """The first error since `clear`, which names the cause, without the function that logged it."""
        for line in self._errors:
            return " ".join(line.split(": ", 1)[-1].split())[:300]
        return "llama.cpp gives no reason"


log = _NativeLog()


class LlamaModel:
    """One llama_model, memory-mapped. Contexts and adapters made for it are closed before it is."""

    def __init__(self, path: Path, n_threads: int | None = None) -> None:
        """ModelError when llama.cpp can't load it, or it isn't a decoder that chats."""
        if not path.is_file():
            raise ModelError(f"there is no model file {path}: `engrain model list` shows those there are")
        native.llama_backend_init()
        params = native.llama_model_default_params()
        params.load_mode = native.LLAMA_LOAD_MODE_MMAP
        params.use_extra_bufts = not _has_amx()
        log.clear()
        pointer = native.llama_model_load_from_file(os.fsencode(path), params)
        if not pointer:
            raise ModelError(f"llama.cpp can't load {path}: {log.reason()}; choose another model file")
        self.path = path
        self._pointer: int | None = pointer
        try:
            _check_decoder(path, pointer)
            self._vocab_pointer = native.llama_model_get_vocab(pointer)
            self.n_vocab = int(native.llama_vocab_n_tokens(self._vocab_pointer))
            self.n_embd = int(native.llama_model_n_embd(pointer))
            self.n_ctx_train = int(native.llama_model_n_ctx_train(pointer))
            self.n_threads = n_threads or physical_cores()
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        return self._pointer is None

    def close(self) -> None:
        """Free it. Closing twice is fine; anything else after it raises ModelError."""
        if self._pointer is not None:
            native.llama_model_free(self._pointer)
            self._pointer = None

    def check_open(self) -> None:
        if self.closed:
            raise ModelError(f"the model {self.path.name} is closed: load it again")

    @property
    def pointer(self) -> int:
        """The llama_model."""
        self.check_open()
        assert self._pointer is not None
        return self._pointer

    @property
    def _vocab(self) -> Any:
        """The llama_vocab."""
        self.check_open()
        return self._vocab_pointer

    @property
    def bos(self) -> int:
        """The token that begins a text; negative without one."""
        return int(native.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> int:
        """The token that ends a text; negative without one."""
        return int(native.llama_vocab_eos(self._vocab))

    @property
    def eot(self) -> int:
        """The token that ends a turn; negative without one."""
        return int(native.llama_vocab_eot(self._vocab))

    @property
    def wants_bos(self) -> bool:
        """Whether a text is to begin with BOS."""
        return bool(native.llama_vocab_get_add_bos(self._vocab))

    def is_end(self, token: int) -> bool:
        """Whether a reply ends with this token."""
        return bool(native.llama_vocab_is_eog(self._vocab, token))

    def tokenize(self, data: bytes, special: bool) -> list[int]:
        """The token ids of UTF-8 text, nothing put before it. special: read control tokens."""
        vocab, size = self._vocab, len(data) + 8  # a token is at least a byte, but a space may be put first
        while True:
            buffer = (native.llama_token * size)()
            count = native.llama_tokenize(vocab, data, len(data), buffer, size, False, special)
            if count >= 0:
                return list(buffer[:count])
            if -count <= size:
                raise ModelError("llama.cpp can't tokenise with this model: it has no usable vocabulary")
            size = -count

    def piece(self, token: int, special: bool) -> bytes:
        """The bytes of one token. special: those of a control token too."""
        vocab, size = self._vocab, 32
        if not 0 <= token < self.n_vocab:
            raise ModelError(f"token {token} is not in the model's vocabulary of {self.n_vocab}")
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = native.llama_token_to_piece(vocab, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    @property
    def chat_template(self) -> str | None:
        """The source of the template that the file brings."""
        source = native.llama_model_chat_template(self.pointer, None)
        return source.decode("utf-8", "replace") if source else None

    def load_adapter(self, path: Path) -> Any:
        """A GGUF LoRA for this model, to be freed by `free_adapter`; null if llama.cpp refuses, and `log` says why."""
        log.clear()
        return native.llama_adapter_lora_init(self.pointer, os.fsencode(path))


def free_adapter(adapter: Any) -> None:
    """Free what `LlamaModel.load_adapter` gave, once no context refers to it any more."""
    native.llama_adapter_lora_free(adapter)


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
