"""An adapter as a PEFT folder: safetensors and a config. That is the truth, and what others share."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save

from engrain.quant.adapter import MAX_RANK, Adapter, AdapterError, agreed, agreed_count, both_sides, shown, write_file
from engrain.quant.names import gguf_name, hf_name, is_linear, rope_to_gguf, rope_to_hf

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
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


def save_peft(adapter: Adapter, folder: str | Path, base_name: str = "") -> None:
    """Write the two files that `peft.PeftModel.from_pretrained` loads, each atomically."""
    tensors = {}
    for name, (a, b) in adapter.weights.items():
        stem = PREFIX + hf_name(name, adapter.architecture).removesuffix(".weight")
        heads = adapter.rope_heads(name)
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
    write_file(folder / WEIGHTS, lambda temporary: temporary.write_bytes(weights))
    text = json.dumps(config, indent=2)
    write_file(folder / CONFIG, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


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
    architecture = agreed(folder, metadata, "architecture", architecture)
    n_head = agreed_count(folder, metadata, "n_head", n_head)
    n_head_kv = agreed_count(folder, metadata, "n_head_kv", n_head_kv)
    pairs: dict[str, dict[str, np.ndarray]] = {}
    for key, value in tensors.items():
        stem, _, side = key.removesuffix(".weight").rpartition(".")
        try:
            name = gguf_name(stem.removeprefix(PREFIX) + ".weight", architecture)
        except KeyError:
            name = ""
        if not is_linear(name) or side not in ("lora_A", "lora_B"):
            raise AdapterError(f"{folder} trains {shown(key)}; engrain takes adapters of linear layers only")
        pairs.setdefault(name, {})[side] = value
    weights = {n: both_sides(folder, n, sides, "lora_A", "lora_B") for n, sides in pairs.items()}
    adapter = Adapter(config["r"], _alpha(config), architecture, n_head, n_head_kv, weights, metadata)
    for name, (a, b) in weights.items():
        if heads := adapter.rope_heads(name):
            weights[name] = (a, rope_to_gguf(b, heads))
    return adapter


def read_metadata(folder: str | Path) -> dict[str, str]:
    """The safetensors header's metadata, without reading the weights."""
    path = Path(folder) / WEIGHTS
    try:
        with safe_open(path, framework="numpy") as f:
            return dict(f.metadata() or {})
    except (SafetensorError, OSError, ValueError) as e:
        raise AdapterError(f"cannot read {path}: {shown(str(e))}; get the adapter again") from e


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


def _tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All tensors as float32, and the metadata."""
    metadata = read_metadata(path.parent)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise AdapterError(f"{path} is larger than an adapter can be")
        parts = deserialize(path.read_bytes())
        return {name: _float32(name, part) for name, part in parts}, metadata
    except (SafetensorError, OSError, ValueError, MemoryError) as e:
        raise AdapterError(f"cannot read {path}: {shown(str(e))}; get the adapter again") from e


def _float32(name: str, part: dict[str, Any]) -> np.ndarray:
    kind, shape, data = part["dtype"], part["shape"], part["data"]
    if kind == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if kind not in _FLOATS:
        raise AdapterError(f"the adapter's tensor {shown(name)} has type {kind}; only floats are taken")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is refused
        return np.frombuffer(data, _FLOATS[kind]).astype(np.float32).reshape(shape)
