"""A GGUF file read through the `gguf` package: hyper-parameters, tokenizer facts, memory-mapped tensors."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType

from engrain.quant.errors import EngrainError

MAGIC = b"GGUF"
LONG_ARRAY = 1024  # entries; longer ones (vocabulary, merges, scores) are llama.cpp's business


class GGUFError(EngrainError):
    """The file is no GGUF, is cut off, or lacks what a decoder needs."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: shape in torch's order (out, in); data (…, bytes of a row), uint8, memory-mapped."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    data: np.ndarray


@dataclass(frozen=True)
class Hyper:
    """The numbers that every decoder has."""

    architecture: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    n_ctx: int
    norm_eps: float
    rope_base: float
    rope_dim: int


class Metadata(Mapping[str, Any]):
    """The file's key-value pairs, decoded when asked for; arrays over LONG_ARRAY entries read as empty."""

    def __init__(self, reader: GGUFReader) -> None:
        self._fields = reader.fields

    def __getitem__(self, key: str) -> Any:
        return self._fields[key].contents()

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


class _Reader(GGUFReader):
    """Steps over long arrays instead of making an object of every entry: a vocabulary would take seconds."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if GGUFValueType(raw_type) != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind = GGUFValueType(int(self._get(orig_offs, np.uint32)[0]))
        count = int(self._get(orig_offs + 4, np.uint64)[0])
        if count <= LONG_ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        if kind == GGUFValueType.STRING:
            end, view = orig_offs + 12, memoryview(self.data)
            for _ in range(count):
                end += 8 + int.from_bytes(view[end : end + 8], "little")
                if end > len(view):
                    raise ValueError("string array runs past the end")
            size = end - orig_offs
        else:
            size = 12 + count * np.dtype(self.gguf_scalar_to_np[kind]).itemsize
        return size, [], [], [GGUFValueType.ARRAY, kind]


class GGUFModel:
    """An open GGUF: `metadata`, and `tensors` by name."""

    def __init__(self, path: Path, reader: GGUFReader) -> None:
        self.path = path
        self.metadata = Metadata(reader)
        self.tensors = {t.name: _tensor(t) for t in reader.tensors}

    @property
    def architecture(self) -> str:
        return str(self._require("general.architecture"))

    @property
    def template(self) -> str | None:
        """The chat template's source, if the model has one."""
        found = self.metadata.get("tokenizer.chat_template")
        return None if found is None else str(found)

    @functools.cached_property
    def hyper(self) -> Hyper:
        """Hyper-parameters; GGUFError names the first key that is missing."""
        a = self.architecture

        def number(key: str, default: Any = None) -> Any:
            value = self.metadata.get(f"{a}.{key}", default)
            if isinstance(value, list):  # per layer in some architectures
                value = value[0]
            return self._require(f"{a}.{key}") if value is None else value

        n_embd, n_head = int(number("embedding_length")), int(number("attention.head_count"))
        head_dim = int(number("attention.key_length", n_embd // max(1, n_head)))
        if "token_embd.weight" not in self.tensors:
            raise GGUFError(f"{self.path.name} has no tensor token_embd.weight; it is not a language model")
        return Hyper(
            architecture=a,
            n_layer=int(number("block_count")),
            n_embd=n_embd,
            n_ff=int(number("feed_forward_length")),
            n_head=n_head,
            n_head_kv=int(number("attention.head_count_kv", n_head)),
            head_dim=head_dim,
            n_vocab=self.tensors["token_embd.weight"].shape[0],
            n_ctx=int(number("context_length")),
            norm_eps=float(number("attention.layer_norm_rms_epsilon", 1e-5)),
            rope_base=float(number("rope.freq_base", 10_000.0)),
            rope_dim=int(number("rope.dimension_count", head_dim)),
        )

    def _require(self, key: str) -> Any:
        if key not in self.metadata:
            raise GGUFError(f"{self.path.name} lacks the metadata key {key}; get the model again")
        return self.metadata[key]


def open_gguf(path: str | Path) -> GGUFModel:
    """Open a GGUF without reading its tensors.

    Raises:
        GGUFError: missing, not a GGUF, truncated, or damaged.
    """
    path = Path(path)
    try:
        with path.open("rb") as f:
            magic = f.read(4)
    except OSError as e:
        raise GGUFError(f"cannot read {path}: {e.strerror or e}") from e
    if magic != MAGIC:
        raise GGUFError(f"{path} is not a GGUF file; give a model in GGUF format")
    try:
        return GGUFModel(path, _Reader(path))
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, TypeError, OSError) as e:
        raise GGUFError(f"{path} is damaged or cut off ({type(e).__name__}); get the model again") from e


def _tensor(tensor: Any) -> TensorInfo:
    shape = tuple(int(n) for n in reversed(tensor.shape))
    data = tensor.data.view(np.uint8).reshape(*shape[:-1], -1)
    return TensorInfo(tensor.name, tensor.tensor_type, shape, data)
