"""Keys, values and logits: one context of llama.cpp, and the batches that fill it."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp.llama_cpp as native
import numpy as np

from engrain.device.llama_model import LlamaModel, ModelError, log

_BATCH = 512  # tokens evaluated at once


class Context:
    """One llama_context: the keys and values of some sequences, and the batches that fill them."""

    def __init__(self, model: LlamaModel, n_ctx: int, n_sequences: int) -> None:
        params = native.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = min(_BATCH, n_ctx)
        params.n_seq_max = n_sequences
        params.n_outputs_max_per_seq = 0  # no limit: logits() asks for every position
        if not native.llama_supports_gpu_offload():
            # On CPU it decodes long contexts at half the speed, and makes logits depend on the batch's size.
            params.flash_attn_type = native.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.kv_unified = True  # sequences share cells, so a common prefix is held once
        params.n_threads = params.n_threads_batch = model.n_threads
        log.clear()
        self._pointer = native.llama_init_from_model(model.pointer, params)
        if not self._pointer:
            raise ModelError(f"llama.cpp can't make a context of {n_ctx} tokens: {log.reason()}; try a smaller one")
        self._memory = native.llama_get_memory(self._pointer)
        self.sequences = n_sequences
        self._n_vocab, self._n_embd = model.n_vocab, model.n_embd
        self._n_batch = int(native.llama_n_batch(self._pointer))
        # The batch's arrays live here and are filled in place; every token belongs to one sequence.
        size = self._n_batch
        self._tokens, self._positions, self._sequences = np.zeros((3, size), dtype=np.int32)
        self._flags = np.zeros(size, dtype=np.int8)
        self._ones = np.ones(size, dtype=np.int32)
        self._sequence_pointers = self._sequences.ctypes.data + 4 * np.arange(size, dtype=np.uintp)

    def decode(
        self, tokens: np.ndarray, positions: np.ndarray, sequences: np.ndarray, outputs: np.ndarray
    ) -> np.ndarray:
        """Evaluate tokens (n,) of the given sequences; logits (n_outputs, n_vocab) float32 where flagged."""
        rows = np.empty((int(outputs.sum()), self._n_vocab), dtype=np.float32)
        filled = 0
        for start in range(0, len(tokens), self._n_batch):
            part = slice(start, min(start + self._n_batch, len(tokens)))
            size = part.stop - start
            self._tokens[:size] = tokens[part]
            self._positions[:size] = positions[part]
            self._sequences[:size] = sequences[part]
            self._flags[:size] = outputs[part]
            code = native.llama_decode(self._pointer, self._batch(size))
            if code != 0:
                raise ModelError(f"llama.cpp failed on a batch of {size} tokens (code {code}): {log.reason()}")
            count = int(self._flags[:size].sum())
            if count:
                logits = native.llama_get_logits(self._pointer)
                rows[filled : filled + count] = np.ctypeslib.as_array(logits, (count, self._n_vocab))
                filled += count
        return rows

    def last_state(self, tokens: np.ndarray, keep: int) -> np.ndarray:
        """The normed last hidden state (n_embd,) float32 after tokens, of which sequence 0 holds the first `keep`."""
        size = len(tokens)
        places, zeros = np.arange(keep, size), np.zeros(size - keep, dtype=np.int32)
        # With hidden states llama.cpp gives logits of every token of the batch: so the last one gets its own.
        self.decode(tokens[keep:-1], places[:-1], zeros[:-1], np.zeros(size - keep - 1, dtype=bool))
        native.llama_set_embeddings(self._pointer, True)
        self.decode(tokens[-1:], places[-1:], zeros[-1:], np.ones(1, dtype=bool))
        native.llama_set_embeddings(self._pointer, False)
        state = native.llama_get_embeddings_ith(self._pointer, -1)
        return np.ctypeslib.as_array(state, (self._n_embd,)).copy()

    def _batch(self, size: int) -> Any:
        integers = ctypes.POINTER(ctypes.c_int32)
        return native.llama_batch(
            n_tokens=size,
            token=self._tokens.ctypes.data_as(integers),
            pos=self._positions.ctypes.data_as(integers),
            n_seq_id=self._ones.ctypes.data_as(integers),
            seq_id=self._sequence_pointers.ctypes.data_as(ctypes.POINTER(integers)),
            logits=self._flags.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def truncate(self, sequence: int, length: int) -> bool:
        """Keep the first `length` tokens of a sequence; False if the model's memory can't be cut there."""
        return bool(native.llama_memory_seq_rm(self._memory, sequence, length, -1))

    def copy(self, source: int, target: int) -> None:
        """Let `target` begin with all tokens of `source`."""
        native.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def clear(self) -> None:
        native.llama_memory_clear(self._memory, True)

    def set_adapter(self, adapter: Any | None, scale: float) -> bool:
        """Serve with this adapter alone, or with none."""
        count = 0 if adapter is None else 1
        adapters = (native.llama_adapter_lora_p_ctypes * count)()
        scales = (ctypes.c_float * count)()
        if adapter is not None:
            adapters[0], scales[0] = adapter, scale
        return native.llama_set_adapters_lora(self._pointer, adapters, count, scales) == 0

    def close(self) -> None:
        native.llama_free(self._pointer)
