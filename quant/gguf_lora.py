"""An adapter as a GGUF LoRA, which llama.cpp loads: derived from PEFT's folder, or from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, dequantize

from engrain.quant.adapter import Adapter, AdapterError, agreed_count, both_sides, shown, write_file
from engrain.quant.gguf import GGUFError, open_gguf
from engrain.quant.names import is_linear


def save_gguf(adapter: Adapter, path: str | Path, half: bool = False) -> None:
    """Write the GGUF LoRA that llama.cpp loads, atomically; half: as float16, half the size."""
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

    write_file(Path(path), fill)


def load_gguf(path: str | Path, n_head: int = 0, n_head_kv: int = 0) -> Adapter:
    """Read a GGUF LoRA, ours or llama.cpp's; head counts that it doesn't hold come from the arguments.

    Raises:
        AdapterError: damaged, no LoRA, or on other layers than linear ones.
    """
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
            raise AdapterError(f"{path} trains {shown(name)}; engrain takes adapters of linear layers only")
        sides.setdefault(stem, {})[side] = _dequantised(path, tensor)
    weights = {n: both_sides(path, n, s, "lora_a", "lora_b") for n, s in sides.items()}
    held = {f"engrain.{k}": str(meta.get(f"engrain.{k}", "")) for k in ("n_head", "n_head_kv")}
    return Adapter(
        rank=next(iter(weights.values()))[0].shape[0] if weights else 1,
        alpha=alpha,
        architecture=architecture,
        n_head=agreed_count(path, held, "n_head", n_head),
        n_head_kv=agreed_count(path, held, "n_head_kv", n_head_kv),
        weights=weights,
    )


def _dequantised(path: Path, tensor: Any) -> np.ndarray:
    try:
        with np.errstate(invalid="ignore", over="ignore"):
            return np.array(dequantize(tensor.data, tensor.kind), dtype=np.float32).reshape(tensor.shape)
    except (NotImplementedError, ValueError) as e:
        raise AdapterError(f"{path} holds {tensor.kind.name} weights, which no adapter has") from e
