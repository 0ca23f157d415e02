"""What training takes of the memory, what is free, and which way of holding the base weights fits into it.

Resident: the base dequantised once. Quantised: it stays in its blocks, mapped from the file, and each layer is
dequantised when it is needed, forward and backward; activations are computed twice (gradient checkpointing, Chen et
al., arXiv 1604.06174). Half the speed and less, and a fraction of the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

from engrain.quant.errors import EngrainError
from engrain.quant.gguf import GGUFModel
from engrain.update.weights import BLOCK_BYTES

PROCESS_BYTES = 450 << 20  # Python, torch and llama.cpp with their libraries and small buffers; measured
LORA_BYTES = 28  # a trained weight with its gradient, AdamW's two moments and the last good ones, in float32
HELD_CELLS = 8192  # tokens whose keys and values llama.cpp holds while it writes questions
MARGIN = 0.9  # of what is free may be taken
_CGROUPS = Path("/sys/fs/cgroup")


class NotEnoughMemory(EngrainError):
    """Training would not fit; said before it starts."""


@dataclass(frozen=True)
class Footprint:
    """How the base is held, and bytes: `needed` at the peak, `free` before (None where the system doesn't say)."""

    resident: bool
    needed: int
    free: int | None
    dtype: str
    other: int = 0  # what being resident would need, where it doesn't fit

    def __str__(self) -> str:
        free = "" if self.free is None else f" of {_gb(self.free)} free"
        if self.resident:
            return f"base weights resident in {self.dtype}: about {_gb(self.needed)}{free}"
        return f"base weights left in their blocks: about {_gb(self.needed)}{free}; resident needs {_gb(self.other)}"


def choose(
    model: GGUFModel, rows: int, rank: int, dtype: torch.dtype, device: torch.device | str, resident: bool | None = None
) -> Footprint:
    """Resident where it fits, else quantised; `resident` asks for one of the two.

    Raises:
        NotEnoughMemory: neither fits, or not the one asked for; says what would.
    """
    free = free_bytes(torch.device(device))
    large, small = (needed_bytes(model, rows, rank, dtype, mode) for mode in (True, False))
    room = None if free is None else int(MARGIN * free)
    if resident is None:
        resident = room is None or large <= room
    needed = large if resident else small
    if room is not None and needed > room:
        share = model.path.stat().st_size / (small if not resident else large)
        what = "with the base resident" if resident else "even with the base left in its blocks"
        raise NotEnoughMemory(
            f"training {model.path.name} takes about {_gb(needed)} {what}, and {_gb(room)} can be had: "
            f"close other programs, or learn with a model file of at most about {_gb(max(0, int(room * share)))}"
        )
    return Footprint(resident, needed, free, str(dtype).removeprefix("torch."), large)


def needed_bytes(model: GGUFModel, rows: int, rank: int, dtype: torch.dtype, resident: bool) -> int:
    """Peak memory of study and training, estimated: `rows` tokens a pack, adapters of `rank` on every layer."""
    hyper, size = model.hyper, dtype.itemsize
    matrices = {n: t for n, t in model.tensors.items() if len(t.shape) == 2}
    blocks = [t for n, t in matrices.items() if n.startswith("blk.")]
    head = matrices.get("output.weight", matrices["token_embd.weight"])
    values = [t.shape[0] * t.shape[1] for t in blocks]
    lora = LORA_BYTES * rank * sum(sum(t.shape) for t in blocks)
    heads = (hyper.n_head + 2 * hyper.n_head_kv) * hyper.head_dim
    # Kept for backward, a row and layer: inputs of the norms and products, queries, keys, values, the gated halves.
    layer = rows * size * (4 * hyper.n_embd + 4 * heads + 5 * hyper.n_ff)
    held = 2 * HELD_CELLS * hyper.n_layer * 2 * hyper.n_head_kv * hyper.head_dim
    file = model.path.stat().st_size
    if resident:
        base = size * (sum(values) + head.shape[0] * head.shape[1])
        return PROCESS_BYTES + file + base + lora + max(held, hyper.n_layer * layer)
    base = size * (sum(values) // hyper.n_layer) + min(2 * BLOCK_BYTES, size * head.shape[0] * head.shape[1])
    return PROCESS_BYTES + file + base + lora + max(held, 2 * layer + hyper.n_layer * rows * size * hyper.n_embd)


def free_bytes(device: torch.device) -> int | None:
    """What a new program could take without anything being swapped out; on a GPU, of its own memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([int(psutil.virtual_memory().available), *_cgroup_room()])


def _cgroup_room() -> list[int]:
    """What the limits of a container leave (Linux control groups, version 2): file pages can be dropped."""
    rooms, group = [], _own_group()
    for each in () if group is None else (group, *group.parents):
        try:
            limit, used = (int((each / f"memory.{n}").read_text()) for n in ("max", "current"))
            stat = dict(line.split() for line in (each / "memory.stat").read_text().splitlines())
            rooms.append(limit - used + int(stat["inactive_file"]) + int(stat["active_file"]))
        except (OSError, ValueError, KeyError):  # "max" is no number: no limit
            continue
    return rooms


def _own_group() -> Path | None:
    try:
        own = Path("/proc/self/cgroup").read_text().split("::")[-1].strip()
    except OSError:
        return None
    return _CGROUPS / own.lstrip("/")


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
