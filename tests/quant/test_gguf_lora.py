"""The GGUF LoRA as it is written, and one line for every one that can't be taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from engrain.quant.adapter import AdapterError
from engrain.quant.gguf_lora import load_gguf, save_gguf

from .adapters import Q, llama, pair


def test_gguf_file(tmp_path: Path) -> None:
    adapter = llama(alpha=5.0)
    save_gguf(adapter, tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    facts = {key: field.contents() for key, field in reader.fields.items()}
    assert (facts["general.type"], facts["adapter.type"]) == ("adapter", "lora")
    assert (facts["general.architecture"], facts["adapter.lora.alpha"]) == ("llama", 5.0)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    np.testing.assert_array_equal(tensors[f"{Q}.lora_a"], adapter.weights[Q][0])
    np.testing.assert_array_equal(tensors[f"{Q}.lora_b"], adapter.weights[Q][1])


# GGUF LoRA from elsewhere


def foreign_gguf(path: Path, kind: gguf.GGMLQuantizationType, **changed: Any) -> Path:
    """As llama.cpp's converter writes it, without head counts."""
    facts = {"type": "adapter", "lora": "lora", "alpha": 8.0, "names": (f"{Q}.lora_a", f"{Q}.lora_b")} | changed
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(facts["type"])
    writer.add_string("adapter.type", facts["lora"])
    if facts["alpha"] is not None:
        writer.add_key_value("adapter.lora.alpha", facts["alpha"], gguf.GGUFValueType.FLOAT32
                             if isinstance(facts["alpha"], float) else gguf.GGUFValueType.STRING)  # fmt: skip
    for name, side in zip(facts["names"], pair(32, 64, 64), strict=False):
        data = gguf.quantize(side, kind)
        writer.add_tensor(name, data, raw_dtype=kind if data.dtype == np.uint8 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_gguf_types(kind: str, tmp_path: Path) -> None:
    made = gguf.GGMLQuantizationType[kind]
    loaded = load_gguf(foreign_gguf(tmp_path / "a.gguf", made), 4, 2)
    assert (loaded.rank, loaded.alpha, loaded.n_head, loaded.n_head_kv) == (32, 8.0, 4, 2)
    for ours, theirs in zip(loaded.weights[Q], pair(32, 64, 64), strict=True):
        np.testing.assert_array_equal(ours, gguf.dequantize(gguf.quantize(theirs, made), made))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"type": "model"}, "not a LoRA"),
        ({"lora": "alora"}, "not a LoRA"),
        ({"alpha": None}, "alpha"),
        ({"alpha": "much"}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"alpha": 0.0}, "alpha"),
        ({"names": ()}, "no weights"),
        ({"names": (f"{Q}.lora_a",)}, "half"),
        ({"names": ("token_embd.weight.lora_a",)}, "token_embd"),
        ({"names": (f"{Q}.lora_c",)}, "lora_c"),
    ],
)
def test_gguf_that_is_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = foreign_gguf(tmp_path / "a.gguf", gguf.GGMLQuantizationType.F32, **changed)
    with pytest.raises(AdapterError, match=message):
        load_gguf(path, 4, 2)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(AdapterError):
        load_gguf(path, 4, 2)


def test_gguf_heads_are_asked_for(tmp_path: Path) -> None:
    path = foreign_gguf(tmp_path / "a.gguf", gguf.GGMLQuantizationType.F32)
    with pytest.raises(AdapterError, match="n_head"):
        load_gguf(path)


def test_missing_gguf(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(AdapterError):
            load_gguf(path)
