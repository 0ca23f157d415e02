"""ggml's block formats -> torch, in the same operations and order as `gguf.dequantize`, hence bit for bit.

Every format is a function from blocks (n, bytes of a block), uint8, to values (n, block length), float32.
Layouts: ggml `ggml-common.h`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from engrain.quant.errors import EngrainError

K = GGMLQuantizationType
CHUNK_VALUES = 1 << 20  # values dequantised at a time: temporaries stay in cache


class UnsupportedBlock(EngrainError):
    """A block format that engrain cannot dequantise."""


def _half(b: Tensor) -> Tensor:
    """(n, 2k) bytes -> (n, k) float32 from float16."""
    return b.contiguous().view(torch.float16).float()


def _nibbles(b: Tensor) -> Tensor:
    """(n, k) bytes -> (n, 2k) values 0 to 15: all low halves, then all high halves."""
    return torch.cat((b & 0xF, b >> 4), 1)


def _q4_0(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * (_nibbles(b[:, 2:]).to(torch.int8) - 8).float()


def _q4_1(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _nibbles(b[:, 4:]).float() + _half(b[:, 2:4])


def _fifth_bits(b: Tensor) -> Tensor:
    """(n, 4) bytes -> (n, 32) values 0 or 16."""
    shift = torch.arange(8, dtype=torch.uint8, device=b.device)
    return ((b[:, :, None] >> shift & 1) << 4).flatten(1)


def _q5_0(b: Tensor) -> Tensor:
    q = (_nibbles(b[:, 6:]) | _fifth_bits(b[:, 2:6])).to(torch.int8) - 16
    return _half(b[:, :2]) * q.float()


def _q5_1(b: Tensor) -> Tensor:
    q = _nibbles(b[:, 8:]) | _fifth_bits(b[:, 4:8])
    return _half(b[:, :2]) * q.float() + _half(b[:, 2:4])


def _q8_0(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * b[:, 2:].contiguous().view(torch.int8).float()


def _shifted(b: Tensor, shifts: tuple[int, ...], mask: int) -> Tensor:
    """(n, g, k) bytes -> (n, g, len(shifts), k): each byte shifted and masked."""
    by = torch.tensor(shifts, dtype=torch.uint8, device=b.device)[:, None]
    return b[:, :, None] >> by & mask


def _q2_k(b: Tensor) -> Tensor:
    scales, q = b[:, :16], b[:, 16:80].unflatten(1, (2, 32))
    d, dmin = _half(b[:, 80:82]), _half(b[:, 82:84])
    dl = (d * (scales & 0xF).float())[:, :, None]
    ml = (dmin * (scales >> 4).float())[:, :, None]
    q = _shifted(q, (0, 2, 4, 6), 3).reshape(len(b), 16, 16)
    return (dl * q.float() - ml).flatten(1)


def _q3_k(b: Tensor) -> Tensor:
    hmask, q, packed, d = b[:, :32], b[:, 32:96], b[:, 96:108], _half(b[:, 108:110])
    low = torch.cat((packed[:, :8] & 0xF, packed[:, :8] >> 4), 1)
    high = _shifted(packed[:, None, 8:], (0, 2, 4, 6), 3).reshape(len(b), 16)
    scales = (low | high << 4).to(torch.int8) - 32
    dl = (d * scales.float())[:, :, None]
    low_q = _shifted(q.unflatten(1, (2, 32)), (0, 2, 4, 6), 3).reshape(len(b), 16, 16)
    high_q = _shifted(hmask[:, None], tuple(range(8)), 1).reshape(len(b), 16, 16) ^ 1
    return (dl * (low_q.to(torch.int8) - (high_q << 2).to(torch.int8)).float()).flatten(1)


def _k_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 12) bytes -> scales and minima, each (n, 8), six bits a value."""
    low, mid, high = packed.unflatten(1, (3, 4)).unbind(1)
    scale = torch.cat((low & 0x3F, (high & 0xF) | (low >> 2 & 0x30)), 1)
    minimum = torch.cat((mid & 0x3F, (high >> 4) | (mid >> 2 & 0x30)), 1)
    return scale, minimum


def _q4_k(b: Tensor) -> Tensor:
    scale, minimum = _k_scales(b[:, 4:16])
    d = (_half(b[:, :2]) * scale.float())[:, :, None]
    m = (_half(b[:, 2:4]) * minimum.float())[:, :, None]
    q = _shifted(b[:, 16:].unflatten(1, (4, 32)), (0, 4), 0xF).reshape(len(b), 8, 32)
    return (d * q.float() - m).flatten(1)


def _q5_k(b: Tensor) -> Tensor:
    scale, minimum = _k_scales(b[:, 4:16])
    d = (_half(b[:, :2]) * scale.float())[:, :, None]
    m = (_half(b[:, 2:4]) * minimum.float())[:, :, None]
    low = _shifted(b[:, 48:].unflatten(1, (4, 32)), (0, 4), 0xF).reshape(len(b), 8, 32)
    high = _shifted(b[:, None, 16:48], tuple(range(8)), 1).reshape(len(b), 8, 32)
    return (d * (low | high << 4).float() - m).flatten(1)


def _q6_k(b: Tensor) -> Tensor:
    scales = b[:, 192:208].contiguous().view(torch.int8).float()
    d = (_half(b[:, 208:210]) * scales)[:, :, None]
    low = _shifted(b[:, :128].unflatten(1, (2, 64)), (0, 4), 0xF).reshape(len(b), 8, 32)
    high = _shifted(b[:, 128:192].unflatten(1, (2, 32)), (0, 2, 4, 6), 3).reshape(len(b), 8, 32)
    q = (low | high << 4).to(torch.int8) - 32
    return (d * q.reshape(len(b), 16, 16).float()).flatten(1)


_BLOCKS: dict[GGMLQuantizationType, Callable[[Tensor], Tensor]] = {
    K.Q4_0: _q4_0,
    K.Q4_1: _q4_1,
    K.Q5_0: _q5_0,
    K.Q5_1: _q5_1,
    K.Q8_0: _q8_0,
    K.Q2_K: _q2_k,
    K.Q3_K: _q3_k,
    K.Q4_K: _q4_k,
    K.Q5_K: _q5_k,
    K.Q6_K: _q6_k,
}
_PLAIN = {K.F32: torch.float32, K.F16: torch.float16, K.BF16: torch.bfloat16}
SUPPORTED = frozenset(_BLOCKS) | frozenset(_PLAIN)


def dequantize(data: Tensor, kind: GGMLQuantizationType, dtype: torch.dtype = torch.float32) -> Tensor:
    """data (…, bytes of a row), uint8, on any device -> (…, values of a row).

    Computed in float32 as `gguf.dequantize` does, then rounded to dtype chunk by chunk.

    Raises:
        UnsupportedBlock: a format not in SUPPORTED.
    """
    if kind in _PLAIN:
        return data.contiguous().view(_PLAIN[kind]).to(dtype)
    if kind not in _BLOCKS:
        raise UnsupportedBlock(f"engrain cannot dequantise {kind.name} blocks; chatting with the model still works")
    length, size = GGML_QUANT_SIZES[kind]
    blocks = data.reshape(-1, size)
    out = torch.empty(len(blocks), length, dtype=dtype, device=data.device)
    step = max(1, CHUNK_VALUES // length)
    for start in range(0, len(blocks), step):
        out[start : start + step] = _BLOCKS[kind](blocks[start : start + step])
    return out.reshape(*data.shape[:-1], data.shape[-1] // size * length)
