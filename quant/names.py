"""GGUF and Hugging Face names of a decoder's tensors, and the row order of q and k that differs there."""

from __future__ import annotations

import re

import numpy as np

LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "attn_qkv")

_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
# With norms behind attention and feed-forward, Hugging Face's post_attention_layernorm is another one.
_POST_NORMS = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
FUSED = frozenset({"phi3"})  # q, k and v in attn_qkv, gate and up in ffn_up
_BLOCKS = {
    **{name: {**_BLOCK, "ffn_up": "mlp.gate_up_proj"} for name in FUSED},
    **{name: {**_BLOCK, **_POST_NORMS} for name in ("gemma2", "gemma3", "olmo2")},
}

# llama.cpp's converter stores q and k of these so that RoPE turns neighbouring rows; Hugging Face turns
# row i with row i + d/2 (`LlamaModel.permute` in convert_hf_to_gguf.py).
ROPE_PERMUTED = frozenset({"llama", "smollm3", "granite"})

# Their GGUF norms hold weight + 1 (Gemma's forward pass adds the one at run time).
NORM_PLUS_ONE = frozenset({"gemma", "gemma2", "gemma3"})


def hf_name(gguf_name: str, architecture: str = "llama") -> str:
    """ "blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"; KeyError for an unknown name."""
    if gguf_name in _WHOLE:
        return _WHOLE[gguf_name]
    match = re.fullmatch(r"blk\.(0|[1-9][0-9]{0,5})\.(\w+)\.(weight|bias)", gguf_name)
    if match is None:
        raise KeyError(gguf_name)
    layer, part, kind = match.groups()
    return f"model.layers.{layer}.{_BLOCKS.get(architecture, _BLOCK)[part]}.{kind}"


def gguf_name(hf_name: str, architecture: str = "llama") -> str:
    """The inverse of hf_name."""
    whole = {hf: name for name, hf in _WHOLE.items()}
    if hf_name in whole:
        return whole[hf_name]
    match = re.fullmatch(r"model\.layers\.(0|[1-9][0-9]{0,5})\.([\w.]+)\.(weight|bias)", hf_name)
    if match is None:
        raise KeyError(hf_name)
    layer, part, kind = match.groups()
    parts = {hf: name for name, hf in _BLOCKS.get(architecture, _BLOCK).items()}
    return f"blk.{layer}.{parts[part]}.{kind}"


def is_linear(gguf_name: str) -> bool:
    """Whether the name is of a weight that adapters are put on."""
    match = re.fullmatch(r"blk\.(?:0|[1-9][0-9]{0,5})\.(\w+)\.weight", gguf_name)
    return match is not None and match[1] in LINEARS


def is_feed_forward(gguf_name: str) -> bool:
    """Whether the name is of a feed-forward's linear layer."""
    return is_linear(gguf_name) and ".ffn_" in gguf_name


def rope_to_hf(rows: np.ndarray, n_head: int) -> np.ndarray:
    """Rows (n_head · d, …) from GGUF's order, pairs side by side, to Hugging Face's, half a head apart."""
    shape = rows.shape
    return rows.reshape(n_head, shape[0] // n_head // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def rope_to_gguf(rows: np.ndarray, n_head: int) -> np.ndarray:
    """The inverse of rope_to_hf."""
    shape = rows.shape
    return rows.reshape(n_head, 2, shape[0] // n_head // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
