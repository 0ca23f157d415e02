"""GGUF and Hugging Face names of a decoder's tensors, and the row order of q and k that differs between them."""

from __future__ import annotations

import re

import numpy as np

LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "attn_qkv")

_HF = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FUSED_HF = {**_HF, "ffn_up": "mlp.gate_up_proj"}
FUSED = frozenset({"phi3"})

# llama.cpp's converter stores q and k of these so that RoPE turns neighbouring rows; Hugging Face turns
# row i with row i + d/2 (`LlamaModel.permute` in convert_hf_to_gguf.py).
ROPE_PERMUTED = frozenset({"llama", "smollm3", "granite"})

# Their GGUF norms hold weight + 1 (Gemma's forward pass adds the one at run time).
NORM_PLUS_ONE = frozenset({"gemma", "gemma2", "gemma3"})


def hf_name(gguf_name: str, architecture: str = "llama") -> str:
    """"blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"; KeyError for what is no linear."""
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", gguf_name)
    if match is None:
        raise KeyError(gguf_name)
    table = _FUSED_HF if architecture in FUSED else _HF
    return f"model.layers.{match[1]}.{table[match[2]]}.weight"


def gguf_name(hf: str, architecture: str = "llama") -> str:
    """The inverse of hf_name."""
    table = _FUSED_HF if architecture in FUSED else _HF
    match = re.fullmatch(r"model\.layers\.(\d+)\.(\w+\.\w+)\.weight", hf)
    names = {v: k for k, v in table.items()}
    if match is None or match[2] not in names:
        raise KeyError(hf)
    return f"blk.{match[1]}.{names[match[2]]}.weight"


def rope_to_hf(rows: np.ndarray, n_head: int) -> np.ndarray:
    """Rows (n_head · d, …) from GGUF's order (pairs side by side) to Hugging Face's (pairs half a head apart)."""
    shape = rows.shape
    return rows.reshape(n_head, shape[0] // n_head // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def rope_to_gguf(rows: np.ndarray, n_head: int) -> np.ndarray:
    """The inverse of rope_to_hf."""
    shape = rows.shape
    return rows.reshape(n_head, 2, shape[0] // n_head // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
