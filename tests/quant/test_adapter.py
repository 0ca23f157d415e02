"""Adapters that make no sense, and sound ones through both kinds of file and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engrain.quant.adapter import Adapter, AdapterError
from engrain.quant.gguf_lora import load_gguf, save_gguf
from engrain.quant.peft import CONFIG, WEIGHTS, load_peft, read_metadata, save_peft

from .adapters import llama, pair


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
