"""Every block format against the `gguf` package's own dequantisation, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st

from engrain.quant import blocks
from engrain.quant.blocks import SUPPORTED, UnsupportedBlock, dequantize

EVERY = sorted(SUPPORTED, key=lambda kind: kind.value)


def row_blocks(kind: Kind, seed: int, *shape: int) -> np.ndarray:
    """Random bytes, (*shape[:-1], bytes of shape[-1] blocks), that `gguf` turns into finite values only."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, (int(np.prod(shape)), size), dtype=np.uint8)
    for _ in range(200):
        with np.errstate(all="ignore"):
            wrong = ~np.isfinite(gguf.dequantize(data, kind)).all(axis=1)
        if not wrong.any():
            break
        data[wrong] = random.integers(0, 256, (wrong.sum(), size), dtype=np.uint8)
    return data.reshape(*shape[:-1], shape[-1] * size)


def same_bits(ours: torch.Tensor, theirs: np.ndarray) -> bool:
    return ours.shape == theirs.shape and np.array_equal(ours.numpy().view(np.uint32), theirs.view(np.uint32))


def test_every_format_that_the_reference_knows_is_supported() -> None:
    def knows(kind: Kind) -> bool:
        try:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            return False
        return True

    assert {kind for kind in Kind if knows(kind)} == SUPPORTED


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.name)
def test_bit_for_bit(kind: Kind) -> None:
    data = row_blocks(kind, 1, 2, 64, 3)
    before = data.copy()
    assert same_bits(dequantize(torch.from_numpy(data), kind), gguf.dequantize(data, kind))
    np.testing.assert_array_equal(data, before)


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.name)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32), shape=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_any_shape(kind: Kind, seed: int, shape: list[int]) -> None:
    data = row_blocks(kind, seed, *shape)
    assert same_bits(dequantize(torch.from_numpy(data), kind), gguf.dequantize(data, kind))


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.name)
@pytest.mark.parametrize("byte", [0, 255])
def test_constant_bytes(kind: Kind, byte: int) -> None:
    """Zero scales (signed zeros included), and the not-a-numbers that a damaged file may hold."""
    data = np.full((2, gguf.GGML_QUANT_SIZES[kind][1]), byte, np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(data, kind)
    ours = dequantize(torch.from_numpy(data), kind).numpy()
    np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(np.signbit(ours[~np.isnan(ours)]), np.signbit(expected[~np.isnan(ours)]))


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.name)
def test_chunks_join_and_round_to_bfloat16(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    data = torch.from_numpy(row_blocks(kind, 2, 7, 3))
    whole = dequantize(data, kind)
    monkeypatch.setattr(blocks, "CHUNK_VALUES", 1000)
    assert torch.equal(dequantize(data, kind), whole)
    assert torch.equal(dequantize(data, kind, torch.bfloat16), whole.to(torch.bfloat16))


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.name)
def test_rows_of_a_larger_tensor(kind: Kind) -> None:
    """Slices and columns that are not contiguous, as an embedding look-up or a mapped file gives."""
    data = torch.from_numpy(row_blocks(kind, 3, 6, 4))
    size = gguf.GGML_QUANT_SIZES[kind][1]
    whole = dequantize(data, kind)
    assert torch.equal(dequantize(data[1:6:2], kind), whole[1:6:2])
    assert torch.equal(dequantize(data[:, : 2 * size], kind), whole[:, : whole.shape[1] // 2])
    assert dequantize(data[:0], kind).shape == (0, whole.shape[1])


def test_known_values() -> None:
    """Q4_0 by hand: scale 2, nibbles 0 to 15 in the low halves, all 15 in the high ones."""
    data = np.concatenate((np.array([2], np.float16).view(np.uint8), np.arange(16, dtype=np.uint8) | 0xF0))
    ours = dequantize(torch.from_numpy(data), Kind.Q4_0)
    assert ours.tolist() == [2.0 * (q - 8) for q in range(16)] + [14.0] * 16


def test_unknown_format_is_one_line() -> None:
    with pytest.raises(UnsupportedBlock, match="Q8_K") as caught:
        dequantize(torch.zeros(292, dtype=torch.uint8), Kind.Q8_K)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.name)
def test_gpu_gives_the_same_bits(kind: Kind) -> None:
    data = row_blocks(kind, 4, 64, 3)
    assert same_bits(dequantize(torch.from_numpy(data).cuda(), kind).cpu(), gguf.dequantize(data, kind))
