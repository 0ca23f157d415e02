"""Tensor names both ways, and the row order of q and k."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engrain.quant.gguf import open_gguf
from engrain.quant.names import LINEARS, gguf_name, hf_name, is_linear, rope_to_gguf, rope_to_hf
from tests.tiny import SHAPES, build_tiny_gguf

# As in Hugging Face's own checkpoints.
KNOWN = {
    "llama": {
        "blk.3.attn_q.weight": "model.layers.3.self_attn.q_proj.weight",
        "blk.0.attn_output.weight": "model.layers.0.self_attn.o_proj.weight",
        "blk.11.ffn_down.weight": "model.layers.11.mlp.down_proj.weight",
        "blk.1.attn_norm.weight": "model.layers.1.input_layernorm.weight",
        "blk.1.ffn_norm.weight": "model.layers.1.post_attention_layernorm.weight",
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    },
    "qwen2": {"blk.0.attn_k.bias": "model.layers.0.self_attn.k_proj.bias"},
    "qwen3": {"blk.0.attn_q_norm.weight": "model.layers.0.self_attn.q_norm.weight"},
    "phi3": {
        "blk.2.attn_qkv.weight": "model.layers.2.self_attn.qkv_proj.weight",
        "blk.2.ffn_up.weight": "model.layers.2.mlp.gate_up_proj.weight",
    },
    "gemma3": {
        "blk.0.post_attention_norm.weight": "model.layers.0.post_attention_layernorm.weight",
        "blk.0.ffn_norm.weight": "model.layers.0.pre_feedforward_layernorm.weight",
        "blk.0.post_ffw_norm.weight": "model.layers.0.post_feedforward_layernorm.weight",
    },
}


@pytest.mark.parametrize(
    ("architecture", "name", "expected"), [(a, *pair) for a, names in KNOWN.items() for pair in names.items()]
)
def test_known_names(architecture: str, name: str, expected: str) -> None:
    assert hf_name(name, architecture) == expected
    assert gguf_name(expected, architecture) == name


@pytest.mark.parametrize("architecture", SHAPES)
def test_every_tensor_of_a_model_there_and_back(architecture: str, tmp_path) -> None:
    names = open_gguf(build_tiny_gguf(tmp_path / "a.gguf", architecture)).tensors
    assert [gguf_name(hf_name(name, architecture), architecture) for name in names] == list(names)
    assert len({hf_name(name, architecture) for name in names}) == len(names)
    linear = [name for name in names if is_linear(name)]
    assert {name.split(".")[2] for name in linear} <= set(LINEARS)
    assert len(linear) == 2 * (4 if architecture == "phi3" else 7)


@pytest.mark.parametrize(
    "name",
    ["", "blk.0", "blk.x.attn_q.weight", "blk.-1.attn_q.weight", "blk.00.attn_q.weight", "blk.0.attn_q.weight\n",
     "blk.0.other.weight", "blk.٣.attn_q.weight", "blk.1e9.attn_q.weight", "xblk.0.attn_q.weight"],
)  # fmt: skip
def test_unknown_names(name: str) -> None:
    for convert in (hf_name, gguf_name):
        with pytest.raises(KeyError):
            convert(name)
    assert not is_linear(name)


def test_only_linear_layers_are_linear() -> None:
    for name in ("token_embd.weight", "output.weight", "blk.0.attn_norm.weight", "blk.0.attn_q.bias"):
        assert not is_linear(name)


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 3))
def test_rows_follow_the_converters_permutation(n_head: int, half: int, width: int) -> None:
    rows = np.random.default_rng(0).standard_normal((n_head * 2 * half, *[width] * (width > 0)))
    # LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py, from Hugging Face to GGUF
    d = rows.shape[0] // n_head
    converter = rows.reshape(n_head, 2, d // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
    np.testing.assert_array_equal(rope_to_gguf(rows, n_head), converter)
    np.testing.assert_array_equal(rope_to_hf(converter, n_head), rows)


def test_a_head_of_four_rows() -> None:
    assert rope_to_gguf(np.arange(8), 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert rope_to_hf(np.array([0, 2, 1, 3, 4, 6, 5, 7]), 2).tolist() == list(range(8))
