"""The frozen base weights of a decoder, resident in one dtype or left in their GGUF blocks until needed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from engrain.quant.blocks import SUPPORTED, dequantize
from engrain.quant.errors import EngrainError
from engrain.quant.gguf import GGUFModel, TensorInfo

BLOCK_BYTES = 16 << 20  # of a vocabulary's rows dequantised at a time


class Matrix:
    """Stacked rows of one or more GGUF tensors, called for the (out, in) weight.

    Resident: dequantised at the first call and kept. Otherwise dequantised at every call, so that only one
    layer's weights are in memory at a time.
    """

    def __init__(self, parts: list[TensorInfo], dtype: torch.dtype, device: torch.device, resident: bool) -> None:
        self.parts, self.dtype, self.device, self.resident = parts, dtype, device, resident
        self.n_outs = [p.shape[0] for p in parts]
        self.n_in = parts[0].shape[-1]
        self._kept: Tensor | None = None

    def __call__(self) -> Tensor:
        if self._kept is not None:
            return self._kept
        weight = torch.empty(sum(self.n_outs), self.n_in, dtype=self.dtype, device=self.device)
        for part, rows in zip(self.parts, weight.split(self.n_outs), strict=True):
            self._dequantize(part, out=rows)
        if self.resident:
            self._kept = weight
        return weight

    def rows(self, index: Tensor) -> Tensor:
        """Chosen rows only, (len(index), in): an embedding look-up never dequantises the vocabulary."""
        if self._kept is not None:
            return self._kept[index]
        data = torch.from_numpy(self.parts[0].data[index.cpu().numpy()])
        return dequantize(data.to(self.device), self.parts[0].kind, self.dtype)

    @property
    def block_rows(self) -> int:
        """Rows of one of `blocks`."""
        rows = sum(self.n_outs)
        return rows if self.resident else min(rows, max(1, BLOCK_BYTES // (self.n_in * self.dtype.itemsize)))

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows) one after another: all at once where they are kept, else as many as BLOCK_BYTES hold."""
        if self.resident:
            yield 0, self()
            return
        (part,) = self.parts
        for start in range(0, part.shape[0], self.block_rows):
            yield start, self._dequantize(part, slice(start, start + self.block_rows))

    def _dequantize(self, part: TensorInfo, rows: slice = slice(None), out: Tensor | None = None) -> Tensor:
        return dequantize(torch.from_numpy(part.data[rows]).to(self.device), part.kind, self.dtype, out)


class Weights:
    """Named access to a GGUF's tensors for the decoder."""

    def __init__(
        self, model: GGUFModel, dtype: torch.dtype, device: torch.device | str = "cpu", resident: bool = True
    ) -> None:
        self.model, self.dtype, self.device, self.resident = model, dtype, torch.device(device), resident
        odd = sorted({t.kind.name for t in model.tensors.values() if t.kind not in SUPPORTED})
        if odd:
            raise EngrainError(
                f"{model.path.name} has blocks of type {', '.join(odd)}, which engrain cannot train on (chatting works)"
            )

    def matrix(self, *names: str) -> Matrix:
        """The named weights stacked; missing ones raise EngrainError."""
        missing = [n for n in names if n not in self.model.tensors]
        if missing:
            raise EngrainError(f"{self.model.path.name} lacks the tensor {missing[0]}; get the model again")
        return Matrix([self.model.tensors[n] for n in names], self.dtype, self.device, self.resident)

    def vector(self, *names: str, dtype: torch.dtype | None = None) -> Tensor | None:
        """A norm or bias (several are joined), or None when the file has none."""
        if any(n not in self.model.tensors for n in names):
            return None
        parts = [self.model.tensors[n] for n in names]
        joined = torch.cat([dequantize(torch.from_numpy(p.data), p.kind).flatten() for p in parts])
        return joined.to(self.device, dtype or self.dtype)
