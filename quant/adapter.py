"""One adapter, two files: PEFT safetensors (the truth) and GGUF LoRA (what llama.cpp loads). No torch here.

In memory an adapter has GGUF tensor names and GGUF row order, as it is trained; PEFT's names and order
exist only in the file.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engrain.quant.errors import EngrainError
from engrain.quant.names import ROPE_PERMUTED, gguf_name, hf_name, rope_to_gguf, rope_to_hf

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
MAX_RANK = 1024
_FLOATS = {"F32": np.float32, "F16": np.float16, "F64": np.float64}


class AdapterError(EngrainError):
    """An adapter that is damaged, hostile, or of a kind that engrain doesn't take."""


@dataclass(frozen=True)
class Adapter:
    """LoRA weights: GGUF tensor name -> (lora_a (rank, in), lora_b (out, rank)), float32, GGUF row order.

    The update to a weight is alpha / rank · B A. Raises AdapterError with every mismatch found.
    """

    rank: int
    alpha: float
    architecture: str
    n_head: int
    n_head_kv: int
    weights: dict[str, tuple[np.ndarray, np.ndarray]]
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = []
        if not 0 < self.rank <= MAX_RANK:
            wrong.append(f"rank {self.rank} is not between 1 and {MAX_RANK}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            wrong.append(f"alpha {self.alpha} is not a positive number")
        if self.n_head < 1 or self.n_head_kv < 1 or self.n_head % self.n_head_kv:
            wrong.append(f"{self.n_head} heads do not share {self.n_head_kv} key heads")
        for name, (a, b) in self.weights.items():
            if a.ndim != 2 or b.ndim != 2 or a.shape[0] != self.rank or b.shape[1] != self.rank:
                wrong.append(f"{name} has shapes {a.shape} and {b.shape} at rank {self.rank}")
            elif not (np.isfinite(a).all() and np.isfinite(b).all()):
                wrong.append(f"{name} holds values that are not finite")
            try:
                hf_name(name, self.architecture)
            except KeyError:
                wrong.append(f"{name} is not a linear layer of a decoder block")
        if not self.weights:
            wrong.append("it has no weights")
        if wrong:
            more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
            raise AdapterError(f"not a usable adapter: {'; '.join(wrong[:3])}{more}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def _heads(self, name: str) -> int:
        """Heads whose rows are in RoPE order in this tensor; 0 for none."""
        if self.architecture not in ROPE_PERMUTED:
            return 0
        return self.n_head if ".attn_q." in name else self.n_head_kv if ".attn_k." in name else 0


# PEFT


def save_peft(adapter: Adapter, folder: str | Path, base_name: str = "") -> None:
    """Write the two files that `peft.PeftModel.from_pretrained` loads, each atomically."""
    from safetensors.numpy import save

    tensors = {}
    for name, (a, b) in adapter.weights.items():
        stem = PREFIX + hf_name(name, adapter.architecture).removesuffix(".weight")
        heads = adapter._heads(name)
        tensors[f"{stem}.lora_A.weight"] = np.ascontiguousarray(a, dtype=np.float32)
        tensors[f"{stem}.lora_B.weight"] = np.ascontiguousarray(
            rope_to_hf(b, heads) if heads else b, dtype=np.float32
        )
    modules = sorted({hf_name(n, adapter.architecture).split(".")[-2] for n in adapter.weights})
    config = {
        "base_model_name_or_path": base_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": adapter.rank,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    facts = {
        "format": "pt",
        "engrain.architecture": adapter.architecture,
        "engrain.n_head": str(adapter.n_head),
        "engrain.n_head_kv": str(adapter.n_head_kv),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / WEIGHTS, save(tensors, {**adapter.metadata, **facts}))
    _write(folder / CONFIG, json.dumps(config, indent=2).encode())


def load_peft(
    folder: str | Path, architecture: str = "", n_head: int = 0, n_head_kv: int = 0
) -> Adapter:
    """Read a PEFT LoRA folder, ours or another's; what the file doesn't say comes from the arguments.

    Raises:
        AdapterError: damaged, not LoRA, DoRA, trained embeddings or head, differing ranks.
    """
    folder = Path(folder)
    config = _config(folder)
    tensors, metadata = _tensors(folder / WEIGHTS)
    architecture = metadata.get("engrain.architecture", architecture) or "llama"
    n_head, n_head_kv = _heads_of(metadata, n_head, n_head_kv)
    rank = config["r"]
    alpha = float(config["lora_alpha"]) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)
    pairs: dict[str, dict[str, np.ndarray]] = {}
    for key, value in tensors.items():
        stem, _, side = key.removesuffix(".weight").rpartition(".")
        try:
            name = gguf_name(stem.removeprefix(PREFIX) + ".weight", architecture)
        except KeyError:
            name = ""
        if not name or side not in ("lora_A", "lora_B"):
            raise AdapterError(f"{folder.name} trains {key[:80]}, which engrain cannot take; only linear layers")
        pairs.setdefault(name, {})[side] = value
    lone = [n for n, sides in pairs.items() if len(sides) != 2]
    if lone:
        raise AdapterError(f"{folder.name} has only one half of the LoRA weights of {lone[0]}; get it again")
    weights = {n: (s["lora_A"], s["lora_B"]) for n, s in pairs.items()}
    adapter = Adapter(rank, alpha, architecture, n_head, n_head_kv, weights, metadata)
    for name, (a, b) in weights.items():
        if heads := adapter._heads(name):
            if b.shape[0] % (2 * heads):
                raise AdapterError(f"{folder.name}: rows of {name} do not fit {heads} heads")
            weights[name] = (a, rope_to_gguf(b, heads))
    return adapter


def read_metadata(folder: str | Path) -> dict[str, str]:
    """The safetensors header's metadata, without reading the weights."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(Path(folder) / WEIGHTS, framework="numpy") as f:
            return dict(f.metadata() or {})
    except (SafetensorError, OSError, ValueError) as e:
        raise AdapterError(f"{folder} holds no readable {WEIGHTS} ({e})") from e


def _config(folder: Path) -> dict[str, Any]:
    try:
        text = (folder / CONFIG).read_bytes()
        config = json.loads(text) if len(text) < 1 << 20 else None
    except (OSError, ValueError, RecursionError) as e:
        raise AdapterError(f"{folder} holds no readable {CONFIG}; an adapter is a folder with it") from e
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterError(f"{folder.name} is not a LoRA adapter; engrain takes no other kind")
    odd = [k for k in ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication",
                       "trainable_token_indices", "fan_in_fan_out") if config.get(k)]  # fmt: skip
    if odd:
        raise AdapterError(f"{folder.name} uses {', '.join(odd)}, which llama.cpp cannot serve as an adapter")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 0 < rank <= MAX_RANK:
        raise AdapterError(f"{folder.name}: r in {CONFIG} must be a whole number from 1 to {MAX_RANK}")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise AdapterError(f"{folder.name}: lora_alpha in {CONFIG} must be a number")
    return config


def _heads_of(metadata: dict[str, str], n_head: int, n_head_kv: int) -> tuple[int, int]:
    try:
        return int(metadata.get("engrain.n_head", n_head)), int(metadata.get("engrain.n_head_kv", n_head_kv))
    except ValueError as e:
        raise AdapterError("the adapter's head counts are not numbers; get it again") from e


def _tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All tensors as float32, and the metadata."""
    from safetensors import SafetensorError, deserialize, safe_open

    try:
        with safe_open(path, framework="numpy") as f:
            metadata = dict(f.metadata() or {})
        parts = deserialize(path.read_bytes())
    except (SafetensorError, OSError, ValueError) as e:
        raise AdapterError(f"{path} is damaged or no safetensors file ({e}); get the adapter again") from e
    return {name: _float32(name, part) for name, part in parts}, metadata


def _float32(name: str, part: dict[str, Any]) -> np.ndarray:
    kind, shape, data = part["dtype"], part["shape"], part["data"]
    if kind == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if kind not in _FLOATS:
        raise AdapterError(f"the adapter's tensor {name[:80]} has type {kind}; only floating point is taken")
    return np.frombuffer(data, _FLOATS[kind]).astype(np.float32).reshape(shape)


# GGUF


def save_gguf(adapter: Adapter, path: str | Path) -> None:
    """Write the GGUF LoRA that llama.cpp loads, atomically."""
    from gguf import GGUFWriter

    def fill(temporary: Path) -> None:
        writer = GGUFWriter(temporary, adapter.architecture)
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", adapter.alpha)
        for key, value in {"n_head": adapter.n_head, "n_head_kv": adapter.n_head_kv}.items():
            writer.add_uint32(f"engrain.{key}", value)
        for name, (a, b) in adapter.weights.items():
            writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(a, dtype=np.float32))
            writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(b, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    _replace(Path(path), fill)


def load_gguf(path: str | Path, n_head: int = 0, n_head_kv: int = 0) -> Adapter:
    """Read a GGUF LoRA, ours or llama.cpp's; head counts that it doesn't hold come from the arguments."""
    from gguf import GGMLQuantizationType

    from engrain.quant.gguf import open_gguf

    model = open_gguf(path)
    meta = model.metadata
    if meta.get("general.type") != "adapter" or meta.get("adapter.type") != "lora":
        raise AdapterError(f"{path} is not a LoRA adapter in GGUF format")
    kinds = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
    sides: dict[str, dict[str, np.ndarray]] = {}
    for name, t in model.tensors.items():
        stem, _, side = name.rpartition(".")
        if side not in ("lora_a", "lora_b") or t.kind not in kinds:
            raise AdapterError(f"{path} holds {name[:80]} as {t.kind.name}, which engrain cannot take")
        sides.setdefault(stem, {})[side] = t.data.view(kinds[t.kind]).astype(np.float32).reshape(t.shape)
    lone = [n for n, s in sides.items() if len(s) != 2]
    if lone or not sides:
        raise AdapterError(f"{path} has LoRA weights without their other half; get it again")
    weights = {n: (s["lora_a"], s["lora_b"]) for n, s in sides.items()}
    return Adapter(
        rank=next(iter(weights.values()))[0].shape[0],
        alpha=float(meta.get("adapter.lora.alpha", 0.0)),
        architecture=model.architecture,
        n_head=int(meta.get("engrain.n_head", n_head)),
        n_head_kv=int(meta.get("engrain.n_head_kv", n_head_kv)),
        weights=weights,
    )


def _write(path: Path, data: bytes) -> None:
    _replace(path, lambda temporary: temporary.write_bytes(data) and None)


def _replace(path: Path, fill: Callable[[Path], None]) -> None:
    """Fill a temporary file beside `path`, fsync it and move it into place."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as e:
        raise AdapterError(f"cannot write into {path.parent}: {e.strerror or e}") from e
    os.close(handle)
    temporary = Path(name)
    try:
        fill(temporary)
        with temporary.open("rb+") as f:
            os.fsync(f.fileno())
        temporary.replace(path)
    except OSError as e:
        raise AdapterError(f"cannot write {path}: {e.strerror or e}; free some space and try again") from e
    finally:
        temporary.unlink(missing_ok=True)
