"""Adapters through both file formats and back, and one line for every adapter that can't be taken."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from engrain.quant.adapter import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    Adapter,
    AdapterError,
    load_gguf,
    load_peft,
    read_metadata,
    save_gguf,
    save_peft,
)

Q, V = "blk.0.attn_q.weight", "blk.1.attn_v.weight"
HF_Q = f"{PREFIX}model.layers.0.self_attn.q_proj"


def pair(rank: int, n_in: int, n_out: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.standard_normal((rank, n_in), np.float32), random.standard_normal((n_out, rank), np.float32)


def llama(rank: int = 2, alpha: float = 4.0, **changed: Any) -> Adapter:
    """Two heads of four dimensions, one key head."""
    weights = {
        Q: pair(rank, 8, 8, 1),
        "blk.0.attn_k.weight": pair(rank, 8, 4, 2),
        V: pair(rank, 8, 4, 3),
        "blk.1.ffn_down.weight": pair(rank, 12, 8, 4),
    }
    made = {"architecture": "llama", "n_head": 2, "n_head_kv": 1, "weights": weights, **changed}
    return Adapter(rank, alpha, **made)


def assert_same(one: Adapter, two: Adapter) -> None:
    for name in ("rank", "alpha", "architecture", "n_head", "n_head_kv"):
        assert getattr(one, name) == getattr(two, name), name
    assert one.weights.keys() == two.weights.keys()
    for key, sides in one.weights.items():
        for ours, theirs in zip(sides, two.weights[key], strict=True):
            assert theirs.dtype == np.float32
            np.testing.assert_array_equal(ours, theirs)


@st.composite
def adapters(draw: st.DrawFn) -> Adapter:
    architecture = draw(st.sampled_from(["llama", "qwen2", "qwen3", "gemma3", "phi3", "granite"]))
    rank, d = draw(st.integers(1, 5)), 2 * draw(st.integers(1, 4))
    n_head_kv = draw(st.integers(1, 3))
    n_head = n_head_kv * draw(st.integers(1, 3))
    rows = {"attn_q": n_head * d, "attn_k": n_head_kv * d, "attn_v": n_head_kv * d}
    fused = {"attn_qkv", "attn_output", "ffn_up", "ffn_down"}
    split = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}
    parts = draw(st.sets(st.sampled_from(sorted(fused if architecture == "phi3" else split)), min_size=1))
    layers = draw(st.sets(st.integers(0, 40), min_size=1, max_size=3))
    weights = {
        f"blk.{layer}.{part}.weight": pair(rank, draw(st.integers(1, 9)), rows.get(part, 7), layer)
        for layer in sorted(layers)
        for part in sorted(parts)
    }
    alpha = draw(st.floats(0.5, 1000.0, width=32))
    metadata = draw(st.dictionaries(st.text(min_size=1, max_size=9).map("x.".__add__), st.text(max_size=9)))
    return Adapter(rank, alpha, architecture, n_head, n_head_kv, weights, metadata)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(adapter=adapters())
def test_both_formats_there_and_back(adapter: Adapter, tmp_path: Path) -> None:
    save_peft(adapter, tmp_path / "peft", "base")
    loaded = load_peft(tmp_path / "peft")
    assert_same(adapter, loaded)
    assert adapter.metadata.items() <= loaded.metadata.items()
    assert read_metadata(tmp_path / "peft") == loaded.metadata
    save_gguf(adapter, tmp_path / "lora.gguf")
    assert_same(adapter, load_gguf(tmp_path / "lora.gguf"))
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [CONFIG, WEIGHTS, "lora.gguf"]


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
        for read in (load_peft, read_metadata, load_gguf):
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


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rank": 0}, "rank"),
        ({"alpha": float("nan")}, "alpha"),
        ({"alpha": -1.0}, "alpha"),
        ({"n_head": 3, "n_head_kv": 2}, "heads"),
        ({"n_head": 0}, "heads"),
        ({"architecture": "a b\n"}, "architecture"),
        ({"weights": {}}, "no weights"),
        ({"weights": {"output.weight": pair(2, 8, 8)}}, "output.weight is not"),
        ({"weights": {"blk.0.ffn_norm.weight": pair(2, 8, 8)}}, "not a linear"),
    ],
)
def test_adapters_that_make_no_sense(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        llama(**changed)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(AdapterError, match=r"rank 5000 .*; alpha -1.0 .*; 0 heads .* \(and 4 more\)"):
        Adapter(5000, -1.0, "llama", 0, 1, llama().weights)


def test_saving_where_one_cannot(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for save, place in ((save_peft, tmp_path / "file"), (save_gguf, tmp_path / "none" / "a.gguf")):
        with pytest.raises(AdapterError, match="cannot write"):
            save(llama(), place)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_peft(llama(), tmp_path)
    save_gguf(llama(), tmp_path / "a.gguf")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for save, place in ((save_peft, tmp_path), (save_gguf, tmp_path / "a.gguf")):
        with pytest.raises(AdapterError, match="No space left"):
            save(llama(alpha=9.0), place)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


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
