"""One adapter, two files: PEFT safetensors (the truth) and GGUF LoRA (what llama.cpp loads). No torch here.

In memory an adapter has GGUF tensor names and GGUF row order, as it is trained; PEFT's names and order
exist only in the file.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engrain.quant.errors import EngrainError
from engrain.quant.names import ROPE_PERMUTED, gguf_name, hf_name, is_linear, rope_to_gguf, rope_to_hf

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
MAX_RANK = 1024
MAX_BYTES = 4 << 30  # a rank of 1024 on a model of 8 billion weights fits; what is larger is no adapter
_FLOATS = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
# Settings that change what the weights mean in a way that a plain LoRA cannot express.
_ODD = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "fan_in_fan_out",
)
_PLAIN_STARTS = ("gaussian", "orthogonal", "eva")  # other named starts also change the base's weights


class AdapterError(EngrainError):
    """An adapter that is damaged, hostile, or of a kind that engrain doesn't take."""


@dataclass(frozen=True)
class Adapter:
    """LoRA weights: GGUF tensor name -> (lora_a (rank, in), lora_b (out, rank)), float32, GGUF row order.

    The update to a weight is alpha / rank · B A (Hu et al., arXiv 2106.09685). Raises AdapterError with
    every mismatch found.
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
        if not re.fullmatch(r"[\w.-]{1,64}", self.architecture):
            wrong.append("its architecture is no name")
        if self.n_head < 1 or self.n_head_kv < 1 or self.n_head % self.n_head_kv:
            wrong.append(f"{self.n_head} heads do not share {self.n_head_kv} key heads")
        for name, pair in self.weights.items():
            wrong.extend(self._problems(name, *pair))
        if not self.weights:
            wrong.append("it has no weights")
        if wrong:
            more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
            raise AdapterError(f"not a usable adapter: {'; '.join(wrong[:3])}{more}; get it again")

    def _problems(self, name: str, a: np.ndarray, b: np.ndarray) -> Iterable[str]:
        if not is_linear(name):
            yield f"{_shown(name)} is not a linear layer of a decoder block"
            return
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != self.rank or b.shape[1] != self.rank:
            yield f"{name} has shapes {a.shape} and {b.shape} at rank {self.rank}"
        elif not (a.size and b.size):
            yield f"{name} is empty"
        elif not (np.isfinite(a).all() and np.isfinite(b).all()):
            yield f"{name} holds values that are not finite"
        elif (heads := self._heads(name)) > 0 and b.shape[0] % (2 * heads):
            yield f"{name} has {b.shape[0]} rows for {heads} heads"

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
        b = rope_to_hf(b, heads) if heads else b
        tensors[f"{stem}.lora_A.weight"] = np.ascontiguousarray(a, dtype=np.float32)
        tensors[f"{stem}.lora_B.weight"] = np.ascontiguousarray(b, dtype=np.float32)
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
        "target_modules": _target_modules(adapter),
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise AdapterError(f"cannot write into {folder}: {e.strerror or e}; choose another folder") from e
    weights = save(tensors, {**adapter.metadata, **facts})
    _replace(folder / WEIGHTS, lambda temporary: temporary.write_bytes(weights))
    text = json.dumps(config, indent=2)
    _replace(folder / CONFIG, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def _target_modules(adapter: Adapter) -> list[str]:
    """Module names that stand for every layer, or full ones where an adapter is on some layers only.

    The first layers alone can't be told from all of them; PEFT then warns, and adds zeros to the others.
    """
    modules = [hf_name(name, adapter.architecture).removesuffix(".weight") for name in adapter.weights]
    layers: dict[str, set[int]] = {}
    for module in modules:
        layers.setdefault(module.rpartition(".")[2], set()).add(int(module.split(".")[2]))
    everywhere = set(range(1 + max(n for found in layers.values() for n in found)))
    return sorted(layers) if all(found == everywhere for found in layers.values()) else sorted(modules)


def load_peft(folder: str | Path, architecture: str = "", n_head: int = 0, n_head_kv: int = 0) -> Adapter:
    """Read a PEFT LoRA folder, ours or another's; what another's doesn't say comes from the arguments.

    Raises:
        AdapterError: damaged, for another model than the arguments say, or what a plain LoRA cannot hold:
            DoRA, trained embeddings or head, ranks that differ.
    """
    folder = Path(folder)
    config = _config(folder)
    tensors, metadata = _tensors(folder / WEIGHTS)
    architecture = _agreed(folder, metadata, "architecture", architecture)
    n_head = _agreed_count(folder, metadata, "n_head", n_head)
    n_head_kv = _agreed_count(folder, metadata, "n_head_kv", n_head_kv)
    pairs: dict[str, dict[str, np.ndarray]] = {}
    for key, value in tensors.items():
        stem, _, side = key.removesuffix(".weight").rpartition(".")
        try:
            name = gguf_name(stem.removeprefix(PREFIX) + ".weight", architecture)
        except KeyError:
            name = ""
        if not is_linear(name) or side not in ("lora_A", "lora_B"):
            raise AdapterError(f"{folder} trains {_shown(key)}; engrain takes adapters of linear layers only")
        pairs.setdefault(name, {})[side] = value
    weights = {n: _whole(folder, n, sides, "lora_A", "lora_B") for n, sides in pairs.items()}
    adapter = Adapter(config["r"], _alpha(config), architecture, n_head, n_head_kv, weights, metadata)
    for name, (a, b) in weights.items():
        if heads := adapter._heads(name):
            weights[name] = (a, rope_to_gguf(b, heads))
    return adapter


def read_metadata(folder: str | Path) -> dict[str, str]:
    """The safetensors header's metadata, without reading the weights."""
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / WEIGHTS
    try:
        with safe_open(path, framework="numpy") as f:
            return dict(f.metadata() or {})
    except (SafetensorError, OSError, ValueError) as e:
        raise AdapterError(f"cannot read {path}: {_shown(str(e))}; get the adapter again") from e


def _config(folder: Path) -> dict[str, Any]:
    try:
        with (folder / CONFIG).open("rb") as f:
            config = json.loads(f.read(1 << 20))
    except (OSError, ValueError, RecursionError) as e:
        raise AdapterError(f"{folder} has no readable {CONFIG}; give the folder of a PEFT adapter") from e
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterError(f"{folder} is not a LoRA adapter; engrain takes no other kind")
    odd = [key for key in _ODD if config.get(key)]
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        odd.append("init_lora_weights")
    if odd:
        raise AdapterError(f"{folder} uses {', '.join(odd)}; engrain takes plain LoRA only")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 0 < rank <= MAX_RANK:
        raise AdapterError(f"{folder}: r in {CONFIG} must be a whole number from 1 to {MAX_RANK}")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < 1e9:
        raise AdapterError(f"{folder}: lora_alpha in {CONFIG} must be a positive number")
    return config


def _alpha(config: dict[str, Any]) -> float:
    """The alpha of a plain LoRA; rsLoRA's scale is alpha / √rank (Kalajdzievski, arXiv 2312.03732)."""
    return float(config["lora_alpha"]) * (math.sqrt(config["r"]) if config.get("use_rslora") else 1.0)


def _agreed(folder: Path, metadata: dict[str, str], key: str, given: str) -> str:
    """What the file says of its base model, or else what the caller says."""
    held = metadata.get(f"engrain.{key}", "")
    if not (held or given):
        raise AdapterError(f"{folder} does not say its model's {key}; import it for a given base model")
    if held and given and held != given:
        raise AdapterError(f"{folder} is for a model with {key} {_shown(held)}, not {given}")
    return held or given


def _agreed_count(folder: Path, metadata: dict[str, str], key: str, given: int) -> int:
    held = _agreed(folder, metadata, key, str(given) if given else "")
    if not re.fullmatch(r"[0-9]{1,6}", held):
        raise AdapterError(f"{folder}: {key} is no number of heads; get the adapter again")
    return int(held)


def _whole(path: Path, name: str, sides: dict[str, np.ndarray], a: str, b: str) -> tuple[np.ndarray, np.ndarray]:
    if len(sides) != 2:
        raise AdapterError(f"{path} has only half of the LoRA weights of {_shown(name)}; get it again")
    return sides[a], sides[b]


def _tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All tensors as float32, and the metadata."""
    from safetensors import SafetensorError, deserialize

    metadata = read_metadata(path.parent)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise AdapterError(f"{path} is larger than an adapter can be")
        parts = deserialize(path.read_bytes())
        return {name: _float32(name, part) for name, part in parts}, metadata
    except (SafetensorError, OSError, ValueError, MemoryError) as e:
        raise AdapterError(f"cannot read {path}: {_shown(str(e))}; get the adapter again") from e


def _float32(name: str, part: dict[str, Any]) -> np.ndarray:
    kind, shape, data = part["dtype"], part["shape"], part["data"]
    if kind == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if kind not in _FLOATS:
        raise AdapterError(f"the adapter's tensor {_shown(name)} has type {kind}; only floats are taken")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is refused
        return np.frombuffer(data, _FLOATS[kind]).astype(np.float32).reshape(shape)


# GGUF


def save_gguf(adapter: Adapter, path: str | Path, half: bool = False) -> None:
    """Write the GGUF LoRA that llama.cpp loads, atomically; half: as float16, half the size."""
    from gguf import GGUFWriter

    dtype = np.float16 if half else np.float32

    def fill(temporary: Path) -> None:
        writer = GGUFWriter(temporary, adapter.architecture)
        try:
            writer.add_type("adapter")
            writer.add_string("adapter.type", "lora")
            writer.add_float32("adapter.lora.alpha", adapter.alpha)
            writer.add_uint32("engrain.n_head", adapter.n_head)
            writer.add_uint32("engrain.n_head_kv", adapter.n_head_kv)
            for name, (a, b) in adapter.weights.items():
                writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(a, dtype=dtype))
                writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(b, dtype=dtype))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()

    _replace(Path(path), fill)


def load_gguf(path: str | Path, n_head: int = 0, n_head_kv: int = 0) -> Adapter:
    """Read a GGUF LoRA, ours or llama.cpp's; head counts that it doesn't hold come from the arguments.

    Raises:
        AdapterError: damaged, no LoRA, or on other layers than linear ones.
    """
    from engrain.quant.gguf import GGUFError, open_gguf

    path = Path(path)
    try:
        model = open_gguf(path)
        architecture = model.architecture
    except GGUFError as e:
        raise AdapterError(str(e)) from e
    meta = model.metadata
    if meta.get("general.type") != "adapter" or meta.get("adapter.type") != "lora":
        raise AdapterError(f"{path} is not a LoRA adapter; give a GGUF of an adapter")
    if "adapter.alora.invocation_tokens" in meta:
        raise AdapterError(f"{path} is an activated LoRA; engrain takes plain LoRA only")
    alpha = meta.get("adapter.lora.alpha")
    if not isinstance(alpha, float):
        raise AdapterError(f"{path} has no number adapter.lora.alpha; get it again")
    sides: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in model.tensors.items():
        stem, _, side = name.rpartition(".")
        if side not in ("lora_a", "lora_b") or not is_linear(stem):
            raise AdapterError(f"{path} trains {_shown(name)}; engrain takes adapters of linear layers only")
        sides.setdefault(stem, {})[side] = _dequantised(path, tensor)
    weights = {n: _whole(path, n, s, "lora_a", "lora_b") for n, s in sides.items()}
    held = {f"engrain.{k}": str(meta.get(f"engrain.{k}", "")) for k in ("n_head", "n_head_kv")}
    return Adapter(
        rank=next(iter(weights.values()))[0].shape[0] if weights else 1,
        alpha=alpha,
        architecture=architecture,
        n_head=_agreed_count(path, held, "n_head", n_head),
        n_head_kv=_agreed_count(path, held, "n_head_kv", n_head_kv),
        weights=weights,
    )


def _dequantised(path: Path, tensor: Any) -> np.ndarray:
    from gguf import dequantize

    try:
        with np.errstate(invalid="ignore", over="ignore"):
            return np.array(dequantize(tensor.data, tensor.kind), dtype=np.float32).reshape(tensor.shape)
    except (NotImplementedError, ValueError) as e:
        raise AdapterError(f"{path} holds {tensor.kind.name} weights, which no adapter has") from e


def _replace(path: Path, fill: Callable[[Path], object]) -> None:
    """Fill a temporary file beside `path`, fsync it and move it into place."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as e:
        raise AdapterError(f"cannot write into {path.parent}: {e.strerror or e}; choose another folder") from e
    os.close(handle)
    temporary = Path(name)
    try:
        fill(temporary)
        with temporary.open("rb+") as f:
            os.fsync(f.fileno())
        temporary.replace(path)
        if os.name == "posix":  # the new name is on the disk only when its folder is
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as e:
        raise AdapterError(f"cannot write {path}: {e.strerror or e}; free some space and try again") from e
    finally:
        temporary.unlink(missing_ok=True)


def _shown(text: str) -> str:
    """A name from a file, on one line and without control characters."""
    return ascii(text[:80])[1:-1]
