"""ggml's block formats -> torch, in the same operations and order as `gguf.dequantize`, hence bit for bit.

Every format is a function from blocks (n, bytes of a block), uint8, to values (n, block length), float32.
Layouts: ggml `ggml-common.h`. Codebooks come from the `gguf` package's own classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from torch import Tensor

from engrain.quant.errors import EngrainError

K = GGMLQuantizationType
CHUNK_VALUES = 1 << 20  # values dequantised at a time: temporaries stay in cache


class UnsupportedBlock(EngrainError):
    """A block format that engrain cannot dequantise."""


def _as(b: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, bytes) -> (n, values) of a wider type; a copy, because a view has to be aligned."""
    return b.clone(memory_format=torch.contiguous_format).view(dtype)


def _half(b: Tensor) -> Tensor:
    """(n, 2k) bytes -> (n, k) float32 from float16."""
    return _as(b, torch.float16).float()


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


# Ternary, four-bit floating point and codebook formats


@functools.cache
def _table(name: str, device: torch.device) -> Tensor:
    """A codebook (entries, values of an entry) or look-up table (entries,), float32."""
    table: np.ndarray
    if name == "signs":  # seven bits -> eight signs, an even number of them negative
        bits = np.frombuffer(quants.IQ2_XXS.ksigns, np.uint8)[:, None] >> np.arange(8, dtype=np.uint8) & 1
        table = 1.0 - 2.0 * bits
    elif name == "e8m0":
        table = quants.MXFP4.e8m0_to_fp32_half(np.arange(256, dtype=np.uint8))
    elif name == "ue4m3":
        table = quants.NVFP4.ue4m3_to_fp32(np.arange(256, dtype=np.uint8))
    elif name in ("IQ4_NL", "MXFP4"):
        table = np.array(getattr(quants, name).kvalues)
    else:
        codebook = getattr(quants, name)
        codebook.init_grid()
        table = codebook.grid.reshape(codebook.grid_shape)
    return torch.from_numpy(table.astype(np.float32)).to(device)


def _look_up(name: str, index: Tensor) -> Tensor:
    """index (…) of any integer type -> (…, values of an entry)."""
    return _table(name, index.device)[index.int()]


def _words(b: Tensor) -> Tensor:
    """(n, 2k) bytes -> (n, k) unsigned 16-bit values as int32."""
    return _as(b, torch.int16).int() & 0xFFFF


def _bits(x: Tensor, step: int, count: int, mask: int) -> Tensor:
    """(n, k) -> (n, k · count): each entry's fields of `step` bits, lowest first."""
    shift = torch.arange(0, step * count, step, dtype=x.dtype, device=x.device)
    return (x[:, :, None] >> shift & mask).flatten(1)


def _signs(b: Tensor) -> Tensor:
    """(n, k) bytes -> (n, 8k) of 1 and -1; a set bit is negative."""
    return 1.0 - 2.0 * _bits(b, 1, 8, 1).float()


def _coded(scale: Tensor, values: Tensor, signs: Tensor) -> Tensor:
    """scale (n, groups) times values (n, …) times signs (n, …) -> (n, 256)."""
    values = values.reshape(len(scale), scale.shape[1], -1)
    return (scale[:, :, None] * values * signs.reshape_as(values)).flatten(1)


def _tq1_0(b: Tensor) -> Tensor:
    def digits(part: Tensor, count: int) -> Tensor:
        power = torch.tensor([1, 3, 9, 27, 81][:count], dtype=torch.uint8, device=b.device)
        return (part[:, None, :] * power[:, None]).flatten(1)  # uint8 wraps, as it should

    q = torch.cat((digits(b[:, :32], 5), digits(b[:, 32:48], 5), digits(b[:, 48:52], 4)), 1)
    return _half(b[:, 52:54]) * ((q.short() * 3 >> 8) - 1).float()


def _tq2_0(b: Tensor) -> Tensor:
    q = _shifted(b[:, :64].unflatten(1, (2, 32)), (0, 2, 4, 6), 3).flatten(1)
    return _half(b[:, 64:66]) * (q.to(torch.int8) - 1).float()


def _mxfp4(b: Tensor) -> Tensor:
    return _look_up("e8m0", b[:, :1]) * _look_up("MXFP4", _nibbles(b[:, 1:]))


def _nvfp4(b: Tensor) -> Tensor:
    q = _shifted(b[:, 4:].unflatten(1, (4, 8)), (0, 4), 0xF).reshape(len(b), 4, 16)
    return (_look_up("ue4m3", b[:, :4])[:, :, None] * _look_up("MXFP4", q)).flatten(1)


def _iq4_nl(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _look_up("IQ4_NL", _nibbles(b[:, 2:]))


def _iq4_xs(b: Tensor) -> Tensor:
    scale = _bits(b[:, 4:8], 4, 2, 0xF).int() | _bits(_words(b[:, 2:4]), 2, 8, 3) << 4
    d = _half(b[:, :2]) * (scale - 32).float()
    q = _shifted(b[:, 8:].unflatten(1, (8, 16)), (0, 4), 0xF).reshape(len(b), 8, 32)
    return (d[:, :, None] * _look_up("IQ4_NL", q)).flatten(1)


def _packed_signs(b: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 4k) bytes, words of four 7-bit sign indices and a 4-bit scale -> scale (n, k), signs (n, 4k, 8)."""
    words = _as(b, torch.int32)
    return (words >> 28 & 0xF).float(), _look_up("signs", _bits(words, 7, 4, 0x7F))


def _iq2_xxs(b: Tensor) -> Tensor:
    parts = b[:, 2:].unflatten(1, (8, 8))
    scale, signs = _packed_signs(parts[:, :, 4:].flatten(1))
    d = _half(b[:, :2]) * (0.5 + scale) * 0.25
    return _coded(d, _look_up("IQ2_XXS", parts[:, :, :4].flatten(1)), signs)


def _iq2_xs(b: Tensor) -> Tensor:
    q = _words(b[:, 2:66])
    d = _half(b[:, :2]) * (0.5 + _bits(b[:, 66:], 4, 2, 0xF).float()) * 0.25
    return _coded(d, _look_up("IQ2_XS", q & 511), _look_up("signs", q >> 9))


def _iq2_s(b: Tensor) -> Tensor:
    d = _half(b[:, :2]) * (0.5 + _bits(b[:, 74:], 4, 2, 0xF).float()) * 0.25
    q = b[:, 2:34].int() | _bits(b[:, 66:74], 2, 4, 3).int() << 8
    return _coded(d, _look_up("IQ2_S", q), _signs(b[:, 34:66]))


def _iq3_xxs(b: Tensor) -> Tensor:
    scale, signs = _packed_signs(b[:, 66:])
    d = _half(b[:, :2]) * (0.5 + scale) * 0.5
    return _coded(d, _look_up("IQ3_XXS", b[:, 2:66]), signs)


def _iq3_s(b: Tensor) -> Tensor:
    d = _half(b[:, :2]) * (1 + 2 * _bits(b[:, 106:], 4, 2, 0xF)).float()
    q = b[:, 2:66].int() | _bits(b[:, 66:74], 1, 8, 1).int() << 8
    return _coded(d, _look_up("IQ3_S", q), _signs(b[:, 74:106]))


def _iq1_s(b: Tensor) -> Tensor:
    high = _words(b[:, 34:])
    d = _half(b[:, :2]) * (2 * (high >> 12 & 7) + 1).float()
    q = b[:, 2:34].int() | _bits(high, 3, 4, 7) << 8
    delta = 0.125 - 0.25 * (high >> 15).float()
    values = _look_up("IQ1_S", q).reshape(len(b), 8, 32) + delta[:, :, None]
    return (d[:, :, None] * values).flatten(1)


def _iq1_m(b: Tensor) -> Tensor:
    words = _words(b[:, 48:])
    shift = torch.tensor([12, 8, 4, 0], dtype=torch.int32, device=b.device)
    d = ((words & 0xF000) >> shift).sum(1, keepdim=True).short().view(torch.float16).float()
    d = d * (2 * _bits(words, 3, 4, 7) + 1).float()
    high = _bits(b[:, 32:48], 4, 2, 0xF).int()
    delta = 0.125 - 0.25 * (high >> 3).float()
    values = _look_up("IQ1_M", b[:, :32].int() | (high & 7) << 8) + delta[:, :, None]
    return (d[:, :, None] * values.reshape(len(b), 16, 16)).flatten(1)


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
    K.TQ1_0: _tq1_0,
    K.TQ2_0: _tq2_0,
    K.MXFP4: _mxfp4,
    K.NVFP4: _nvfp4,
    K.IQ4_NL: _iq4_nl,
    K.IQ4_XS: _iq4_xs,
    K.IQ2_XXS: _iq2_xxs,
    K.IQ2_XS: _iq2_xs,
    K.IQ2_S: _iq2_s,
    K.IQ3_XXS: _iq3_xxs,
    K.IQ3_S: _iq3_s,
    K.IQ1_S: _iq1_s,
    K.IQ1_M: _iq1_m,
}
_PLAIN = {K.F32: torch.float32, K.F16: torch.float16, K.BF16: torch.bfloat16}
SUPPORTED = frozenset(_BLOCKS) | frozenset(_PLAIN)


def dequantize(
    data: Tensor, kind: GGMLQuantizationType, dtype: torch.dtype = torch.float32, out: Tensor | None = None
) -> Tensor:
    """data (…, bytes of a row), uint8, on any device -> (…, values of a row), in `out` (contiguous) if given.

    Computed in float32 as `gguf.dequantize` does, then rounded to dtype (or out's) chunk by chunk.

    Raises:
        UnsupportedBlock: a format not in SUPPORTED.
    """
    if kind in _PLAIN:
        plain = data.contiguous().view(_PLAIN[kind])
        return plain.to(dtype) if out is None else out.copy_(plain)
    if kind not in _BLOCKS:
        raise UnsupportedBlock(f"engrain cannot dequantise {kind.name} blocks; chatting with the model still works")
    length, size = GGML_QUANT_SIZES[kind]
    blocks = data.reshape(-1, size)
    if out is None:
        out = torch.empty(*data.shape[:-1], data.shape[-1] // size * length, dtype=dtype, device=data.device)
    values = out.view(-1, length)
    step = max(1, CHUNK_VALUES // length)
    for start in range(0, len(blocks), step):
        values[start : start + step] = _BLOCKS[kind](blocks[start : start + step])
    return out
