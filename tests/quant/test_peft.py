"""PEFT's folder as it is written, and one line for every folder that can't be taken."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from engrain.quant.adapter import AdapterError
from engrain.quant.peft import CONFIG, PREFIX, WEIGHTS, load_peft, read_metadata, save_peft

from .adapters import Q, V, llama, pair

HF_Q = f"{PREFIX}model.layers.0.self_attn.q_proj"


def test_peft_files(tmp_path: Path) -> None:
    adapter = llama()
    save_peft(adapter, tmp_path, "some/base")
    config = json.loads((tmp_path / CONFIG).read_text())
    assert (config["peft_type"], config["task_type"], config["bias"]) == ("LORA", "CAUSAL_LM", "none")
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (2, 4.0, "some/base")
    tensors = load_file(tmp_path / WEIGHTS)
    assert {k for k in tensors if "layers.0.self_attn.q" in k} == {
        f"{HF_Q}.lora_A.weight",
        f"{HF_Q}.lora_B.weight",
    }
    # transformers' order from llama.cpp's: the inverse of permute in convert_hf_to_gguf.py
    b = tensors[f"{HF_Q}.lora_B.weight"]
    np.testing.assert_array_equal(b.reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(8, 2), adapter.weights[Q][1])
    assert not np.array_equal(b, adapter.weights[Q][1])
    np.testing.assert_array_equal(tensors[f"{HF_Q}.lora_A.weight"], adapter.weights[Q][0])
    v = tensors[f"{PREFIX}model.layers.1.self_attn.v_proj.lora_B.weight"]
    np.testing.assert_array_equal(v, adapter.weights[V][1])


def test_target_modules_name_layers_only_where_they_must(tmp_path: Path) -> None:
    def saved(*names: str) -> list[str]:
        weights = {name: pair(2, 8, 8) for name in names}
        save_peft(llama(weights=weights), tmp_path)
        return json.loads((tmp_path / CONFIG).read_text())["target_modules"]

    assert saved("blk.0.attn_q.weight", "blk.1.attn_q.weight") == ["q_proj"]
    assert saved("blk.1.attn_q.weight") == ["model.layers.1.self_attn.q_proj"]
    some = saved("blk.0.attn_q.weight", "blk.1.attn_q.weight", "blk.1.ffn_up.weight")
    assert some == [f"model.layers.{n}" for n in ("0.self_attn.q_proj", "1.mlp.up_proj", "1.self_attn.q_proj")]


def test_architectures_without_permutation(tmp_path: Path) -> None:
    adapter = llama(architecture="qwen2")
    save_peft(adapter, tmp_path)
    np.testing.assert_array_equal(load_file(tmp_path / WEIGHTS)[f"{HF_Q}.lora_B.weight"], adapter.weights[Q][1])


# Adapters from elsewhere


def foreign(folder: Path, tensors: dict[str, Any] | None = None, **config: object) -> Path:
    """A PEFT folder as other tools write it: no metadata of ours."""
    made = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"], **config}
    (folder / CONFIG).write_text(json.dumps(made))
    a, b = pair(2, 8, 8)
    whole = {f"{HF_Q}.lora_A.weight": a, f"{HF_Q}.lora_B.weight": b} if tensors is None else tensors
    save_file({name: np.ascontiguousarray(value) for name, value in whole.items()}, folder / WEIGHTS)
    return folder


def test_an_adapter_from_elsewhere_takes_the_given_base(tmp_path: Path) -> None:
    loaded = load_peft(foreign(tmp_path), "llama", 2, 1)
    assert (loaded.rank, loaded.alpha, loaded.scale, loaded.architecture) == (2, 8.0, 4.0, "llama")
    with pytest.raises(AdapterError, match="architecture"):
        load_peft(tmp_path)
    with pytest.raises(AdapterError, match="n_head"):
        load_peft(tmp_path, "llama")


def test_an_adapter_for_another_base_is_refused(tmp_path: Path) -> None:
    save_peft(llama(), tmp_path)
    load_peft(tmp_path, "llama", 2, 1)
    for other in (("qwen2", 2, 1), ("llama", 4, 1), ("llama", 2, 2)):
        with pytest.raises(AdapterError, match="is for a model with"):
            load_peft(tmp_path, *other)


def test_rslora_scale(tmp_path: Path) -> None:
    loaded = load_peft(foreign(tmp_path, use_rslora=True), "llama", 2, 1)
    assert loaded.scale == pytest.approx(8 / np.sqrt(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
def test_floating_point_types(dtype: torch.dtype, tmp_path: Path) -> None:
    foreign(tmp_path)
    a, b = (torch.from_numpy(side).to(dtype) for side in pair(2, 8, 8))
    save_torch({f"{HF_Q}.lora_A.weight": a, f"{HF_Q}.lora_B.weight": b}, tmp_path / WEIGHTS)
    loaded = load_peft(tmp_path, "qwen2", 2, 1).weights[Q]
    assert [side.dtype for side in loaded] == [np.float32, np.float32]
    np.testing.assert_array_equal(loaded[0], a.float().numpy())
    np.testing.assert_array_equal(loaded[1], b.float().numpy())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOHA"}, "not a LoRA"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"r": 0}, " r "),
        ({"r": 10**9}, " r "),
        ({"r": True}, " r "),
        ({"r": "2"}, " r "),
        ({"r": 3}, "rank 3"),
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_alpha": -8}, "lora_alpha"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_alpha": float("inf")}, "lora_alpha"),
    ],
)
def test_settings_that_are_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=message) as caught:
        load_peft(foreign(tmp_path, **config), "llama", 2, 1)
    assert "\n" not in str(caught.value)


A, B = pair(2, 8, 8)
NAN, INF = np.full((2, 8), np.nan, np.float32), np.full((2, 8), 1e300)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "no weights"),
        ({f"{HF_Q}.lora_A.weight": A}, "half"),
        ({f"{HF_Q}.lora_A.weight": A, f"{HF_Q}.lora_B.weight": B[:7]}, "7 rows"),
        ({f"{HF_Q}.lora_A.weight": A, f"{HF_Q}.lora_B.weight": B[:0]}, "empty"),
        ({f"{HF_Q}.lora_A.weight": A[:1], f"{HF_Q}.lora_B.weight": B[:, :1]}, "rank 2"),
        ({f"{HF_Q}.lora_A.weight": A[0], f"{HF_Q}.lora_B.weight": B}, "shapes"),
        ({f"{HF_Q}.lora_A.weight": A[None], f"{HF_Q}.lora_B.weight": B}, "shapes"),
        ({f"{HF_Q}.lora_A.weight": NAN, f"{HF_Q}.lora_B.weight": B}, "not finite"),
        ({f"{HF_Q}.lora_A.weight": INF, f"{HF_Q}.lora_B.weight": B}, "not finite"),
        ({f"{HF_Q}.lora_A.weight": A.astype(np.int8), f"{HF_Q}.lora_B.weight": B}, "I8"),
        ({f"{PREFIX}lm_head.lora_A.weight": A, f"{PREFIX}lm_head.lora_B.weight": B}, "lm_head"),
        ({f"{PREFIX}model.embed_tokens.lora_embedding_A": A}, "embed_tokens"),
        ({f"{PREFIX}model.norm.weight": A[0]}, "norm"),
        ({f"{HF_Q}.lora_magnitude_vector": A[0]}, "magnitude"),
        ({f"{HF_Q}.lora_B.bias": A[0]}, "bias"),
        ({"a\nb\x1b[2J": A}, "trains"),
        ({f"{PREFIX}model.layers.-1.self_attn.q_proj.lora_A.weight": A}, "trains"),
        ({f"{PREFIX}model.layers.0.block_sparse_moe.gate.lora_A.weight": A}, "trains"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_tensors_that_are_refused(tensors: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=message) as caught:
        load_peft(foreign(tmp_path, tensors), "llama", 2, 1)
    assert str(caught.value).isprintable()


def test_ranks_that_differ_are_refused(tmp_path: Path) -> None:
    a, b = pair(4, 8, 8)
    other = HF_Q.replace("layers.0", "layers.1")
    sides = {f"{HF_Q}.lora_A.weight": A, f"{HF_Q}.lora_B.weight": B}
    with pytest.raises(AdapterError, match=r"blk\.1\.attn_q.*rank 2"):
        load_peft(foreign(tmp_path, {**sides, f"{other}.lora_A.weight": a, f"{other}.lora_B.weight": b}), "llama", 2, 1)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"null", b"\xff\xfe", b"[" * 100_000, b"1" * 9999])
def test_damaged_settings(content: bytes, tmp_path: Path) -> None:
    (foreign(tmp_path) / CONFIG).write_bytes(content)
    with pytest.raises(AdapterError):
        load_peft(tmp_path, "llama", 2, 1)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 1 << 40) + b"{}",
        struct.pack("<Q", 2) + b"{}" + b"\0" * 9,
        struct.pack("<Q", 4) + b"\xff\xff\xff\xff",
        struct.pack("<Q", 64) + b'{"a":{"dtype":"F32","shape":[4294967296,4294967296]'.ljust(64),
    ],
)
def test_damaged_safetensors(content: bytes, tmp_path: Path) -> None:
    (foreign(tmp_path) / WEIGHTS).write_bytes(content)
    for read in (lambda folder: load_peft(folder, "llama", 2, 1), read_metadata):
        with pytest.raises(AdapterError) as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)


def test_cut_off_safetensors(tmp_path: Path) -> None:
    save_peft(llama(), tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    for end in range(0, len(whole), 29):
        (tmp_path / WEIGHTS).write_bytes(whole[:end])
        with pytest.raises(AdapterError):
            load_peft(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        for read in (load_peft, read_metadata):
            with pytest.raises(AdapterError):
                read(folder)
    foreign(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(AdapterError, match="safetensors"):
        load_peft(tmp_path, "llama", 2, 1)


@pytest.mark.parametrize("held", ["x", "-2", "0", "9" * 9999, "3"])
def test_metadata_that_lies(held: str, tmp_path: Path) -> None:
    save_peft(llama(), tmp_path)
    save_file(load_file(tmp_path / WEIGHTS), tmp_path / WEIGHTS, {"engrain.architecture": "llama",
              "engrain.n_head": held, "engrain.n_head_kv": "1"})  # fmt: skip
    with pytest.raises(AdapterError) as caught:
        load_peft(tmp_path)
    assert len(str(caught.value)) < 400
