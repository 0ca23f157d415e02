"""Our folder in the hands of PEFT: it loads as it is, and changes the model as llama.cpp's does."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import dequantize

from engrain.device.runtime import Runtime
from engrain.quant.adapter import Adapter
from engrain.quant.gguf import GGUFModel, open_gguf
from engrain.quant.gguf_lora import save_gguf
from engrain.quant.names import ROPE_PERMUTED, hf_name, is_linear, rope_to_hf
from engrain.quant.peft import load_peft, save_peft
from tests.tiny import build_tiny_gguf

os.environ.setdefault("HF_HUB_OFFLINE", "1")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
CONFIGS = {"llama": "LlamaConfig", "qwen2": "Qwen2Config", "qwen3": "Qwen3Config", "phi3": "Phi3Config"}

SOME = {"blk.1.attn_q.weight", "blk.1.attn_qkv.weight", "blk.0.ffn_down.weight"}


def hugging_face(model: GGUFModel) -> Any:
    """The same model in transformers, in float32."""
    h = model.hyper
    config = getattr(transformers, CONFIGS[h.architecture])(
        vocab_size=h.n_vocab,
        hidden_size=h.n_embd,
        intermediate_size=h.n_ff,
        num_hidden_layers=h.n_layer,
        num_attention_heads=h.n_head,
        num_key_value_heads=h.n_head_kv,
        head_dim=h.head_dim,
        rms_norm_eps=h.norm_eps,
        tie_word_embeddings="output.weight" not in model.tensors,
        pad_token_id=0,
    )
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    state = {}
    for name, tensor in model.tensors.items():
        value = np.array(dequantize(tensor.data, tensor.kind)).reshape(tensor.shape)
        if h.architecture in ROPE_PERMUTED and ".attn_q." in name:
            value = rope_to_hf(value, h.n_head)
        if h.architecture in ROPE_PERMUTED and ".attn_k." in name:
            value = rope_to_hf(value, h.n_head_kv)
        state[hf_name(name, h.architecture)] = torch.from_numpy(value)
    missing, unexpected = made.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    made.tie_weights()
    return made


def on_some_layers(model: GGUFModel, linears: set[str] | None) -> Adapter:
    random = np.random.default_rng(0)
    weights = {
        name: (
            random.normal(scale=0.2, size=(4, tensor.shape[1])).astype(np.float32),
            random.normal(scale=0.2, size=(tensor.shape[0], 4)).astype(np.float32),
        )
        for name, tensor in model.tensors.items()
        if is_linear(name) and (linears is None or name in linears)
    }
    return Adapter(4, 8.0, model.architecture, model.hyper.n_head, model.hyper.n_head_kv, weights)


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("some", [None, SOME], ids=["all", "some"])
def test_logits_equal_llama_cpps(architecture: str, some: set[str] | None, tmp_path: Path) -> None:
    path = build_tiny_gguf(tmp_path / "base.gguf", architecture)
    model = open_gguf(path)
    adapter = on_some_layers(model, some)
    save_peft(adapter, tmp_path / "peft")
    save_gguf(adapter, tmp_path / "lora.gguf")
    tokens = list(range(30, 50))
    with Runtime.load(path, n_ctx=64) as runtime:
        base = runtime.logits(tokens)
        runtime.attach(tmp_path / "lora.gguf")
        served = runtime.logits(tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns of keys that it misses or doesn't know
        adapted = peft.PeftModel.from_pretrained(hugging_face(model), tmp_path / "peft")
    with torch.no_grad():
        logits = adapted(torch.tensor([tokens])).logits[0].numpy()
    assert np.abs(served - base).max() > 0.5
    np.testing.assert_allclose(logits, served, atol=0.1)


def test_an_adapter_that_peft_wrote(tmp_path: Path) -> None:
    model = open_gguf(build_tiny_gguf(tmp_path / "base.gguf"))
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", use_rslora=True, task_type="CAUSAL_LM")
    made = peft.get_peft_model(hugging_face(model), config)
    random = torch.Generator().manual_seed(0)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=random)
    made.save_pretrained(tmp_path / "theirs")
    adapter = load_peft(tmp_path / "theirs", "llama", 4, 2)
    assert adapter.scale == pytest.approx(4.0)
    merged = made.merge_and_unload().state_dict()
    name = "blk.1.attn_k.weight"
    tensor = model.tensors[name]
    a, b = adapter.weights[name]
    ours = np.array(dequantize(tensor.data, tensor.kind)).reshape(tensor.shape) + adapter.scale * b @ a
    np.testing.assert_allclose(rope_to_hf(ours, 2), merged[hf_name(name)].numpy(), atol=1e-5)
