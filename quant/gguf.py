"""A GGUF file read through the `gguf` package: hyper-parameters, tokenizer facts, memory-mapped tensors."""

from __future__ import annotations

import functools
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, ReaderField
from gguf.gguf_reader import ReaderTensor

from engrain.quant.errors import EngrainError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS, MAX_TENSORS = 1 << 16, 1 << 20  # real models have dozens and hundreds
LONG_ARRAY = 1024  # entries; longer ones (vocabulary, merges, scores) are decoded when asked for


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
    """The file's key-value pairs: scalars and short arrays decoded at once, long arrays when asked for."""

    def __init__(self, path: Path, fields: Mapping[str, ReaderField]) -> None:
        self._path, self._fields = path, fields
        self._values = {k: f.contents() for k, f in fields.items() if not _is_long(f)}

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            try:
                self._values[key] = _long_array(self._fields[key])
            except UnicodeDecodeError as e:
                raise GGUFError(f"{self._path}: {key} holds text that is no UTF-8; get the model again") from e
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


class _Reader(GGUFReader):
    """Checks every bound, and steps over long arrays: an object for each entry would take seconds."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        if offset + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise ValueError("the file ends before its contents do")
        return super()._get(offset, dtype, count, override_order)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if GGUFValueType(raw_type) != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind = GGUFValueType(int(self._get(orig_offs, np.uint32)[0]))
        count = int(self._get(orig_offs + 4, np.uint64)[0])
        if kind == GGUFValueType.ARRAY:
            raise ValueError("an array of arrays")  # llama.cpp refuses it too
        if count <= LONG_ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        start, view = orig_offs + 12, self.data.data
        if kind == GGUFValueType.STRING:
            end = start
            for _ in range(count):
                end += 8 + int.from_bytes(view[end : end + 8], "little")
                if end > len(view):
                    raise ValueError("an array of strings runs past the end")
        else:
            end = start + count * np.dtype(self.gguf_scalar_to_np[kind]).itemsize
        return end - orig_offs, [self._get(start, np.uint8, end - start)], [0], [GGUFValueType.ARRAY, kind]


def _is_long(field: ReaderField) -> bool:
    # Key length, key, type, and one part for all entries; other arrays have a part for their count at least.
    return bool(field.types) and field.types[0] == GGUFValueType.ARRAY and len(field.parts) == 4


def _long_array(field: ReaderField) -> list[Any]:
    content, kind = field.parts[3], field.types[1]
    if kind != GGUFValueType.STRING:
        return content.view(GGUFReader.gguf_scalar_to_np[kind]).tolist()
    data, at, strings = content.tobytes(), 0, []
    while at < len(data):
        end = at + 8 + int.from_bytes(data[at : at + 8], "little")
        strings.append(data[at + 8 : end].decode())
        at = end
    return strings


class GGUFModel:
    """An open GGUF: `metadata`, and `tensors` by name."""

    def __init__(self, path: Path, metadata: Metadata, tensors: dict[str, TensorInfo]) -> None:
        self.path, self.metadata, self.tensors = path, metadata, tensors

    @property
    def architecture(self) -> str:
        """As llama.cpp names it: "llama", "qwen3", …"""
        name = str(self._require("general.architecture"))
        if not re.fullmatch(r"[\w.-]{1,64}", name):  # it becomes part of keys and messages
            raise GGUFError(f"{self.path}: general.architecture is no name; get the model again")
        return name

    @property
    def template(self) -> str | None:
        """The chat template's source, if the model has one."""
        found = self.metadata.get("tokenizer.chat_template")
        return None if found is None else str(found)

    @functools.cached_property
    def hyper(self) -> Hyper:
        """Hyper-parameters; GGUFError names the first key that is missing or makes no sense."""
        a = self.architecture
        n_embd = self._count(f"{a}.embedding_length")
        n_head = self._count(f"{a}.attention.head_count")
        head_dim = self._count(f"{a}.attention.key_length", n_embd // n_head)
        embedding = self.tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise GGUFError(f"{self.path} has no matrix token_embd.weight; it is not a language model")
        return Hyper(
            architecture=a,
            n_layer=self._count(f"{a}.block_count"),
            n_embd=n_embd,
            n_ff=self._count(f"{a}.feed_forward_length"),
            n_head=n_head,
            n_head_kv=self._count(f"{a}.attention.head_count_kv", n_head),
            head_dim=head_dim,
            n_vocab=embedding.shape[0],
            n_ctx=self._count(f"{a}.context_length"),
            norm_eps=self._number(f"{a}.attention.layer_norm_rms_epsilon", 1e-5),
            rope_base=self._number(f"{a}.rope.freq_base", 10_000.0),
            rope_dim=self._count(f"{a}.rope.dimension_count", head_dim),
        )

    def _number(self, key: str, default: float | None = None) -> float:
        value = self.metadata[key] if key in self.metadata else self._require(key, default)
        if isinstance(value, list):  # a value for each layer
            if len(set(value)) > 1:
                raise GGUFError(f"{self.path}: {key} differs between layers, which engrain cannot train on")
            value = value[0] if value else None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise GGUFError(f"{self.path}: {key} must be a positive number, not {value!r}; get the model again")
        return value

    def _count(self, key: str, default: int | None = None) -> int:
        return int(self._number(key, default))

    def _require(self, key: str, default: Any = None) -> Any:
        if key in self.metadata:
            return self.metadata[key]
        if default is None:
            raise GGUFError(f"{self.path} lacks the metadata key {key}; get the model again")
        return default


def open_gguf(path: str | Path) -> GGUFModel:
    """Open a GGUF without reading its tensors; each is mapped, so that writing to one never reaches the file.

    Raises:
        GGUFError: missing, not a GGUF, of a version other than 2 and 3, truncated, or damaged.
    """
    path = Path(path)
    _check_head(path)
    try:
        with np.errstate(over="raise"):  # a sum of offsets that wraps around is an error, not a warning
            reader = _Reader(path, mode="c")
            tensors = {t.name: _tensor(t) for t in reader.tensors}
            return GGUFModel(path, Metadata(path, reader.fields), tensors)
    except (ValueError, LookupError, ArithmeticError, MemoryError, TypeError, OSError) as e:
        raise GGUFError(f"{path} is damaged or cut off ({_line(e)}); get the model again") from e


def _check_head(path: Path) -> None:
    """Refuse what is no GGUF, and counts that would keep the reader busy for nothing."""
    try:
        if path.exists() and not path.is_file():
            raise GGUFError(f"{path} is not a file; give a model in GGUF format")
        with path.open("rb") as f:
            head = f.read(24)
    except (OSError, ValueError) as e:  # ValueError: a null byte in the path
        raise GGUFError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}; give another file") from e
    if head[:4] != MAGIC:
        raise GGUFError(f"{path} is not a GGUF file; give a model in GGUF format")
    if len(head) < 24:
        raise GGUFError(f"{path} is cut off; get the model again")
    version, n_tensors, n_keys = struct.unpack("<IQQ", head[4:])
    if version not in VERSIONS:
        raise GGUFError(f"{path} has GGUF version {version}, engrain reads 2 and 3; get the model again")
    if n_tensors > MAX_TENSORS or n_keys > MAX_KEYS:
        raise GGUFError(f"{path} claims {n_tensors} tensors and {n_keys} keys; it is damaged, get the model again")


def _tensor(tensor: ReaderTensor) -> TensorInfo:
    shape = tuple(int(n) for n in reversed(tensor.shape))
    data = tensor.data.view(np.uint8).reshape(*shape[:-1], -1)
    return TensorInfo(tensor.name, tensor.tensor_type, shape, data)


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())[:120]
    return text if text and not isinstance(error, LookupError) else type(error).__name__
