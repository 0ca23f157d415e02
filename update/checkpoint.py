"""Training state on disk: one safetensors file, replaced atomically, so that kill -9 loses only what came after."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from engrain.device.home import write_atomic

FILE = "training.safetensors"


def digest(data: bytes) -> str:
    """A short fingerprint of a run's inputs."""
    return hashlib.sha256(data).hexdigest()[:16]


def save_state(
    folder: Path, key: str, params: Sequence[Tensor], optimiser: torch.optim.Optimizer, step: int, seconds: float
) -> None:
    """Write weights and AdamW moments after `step` steps of the run called `key`."""
    tensors = {}
    for i, p in enumerate(params):
        tensors[f"p{i}"] = p.detach().cpu()
        for name, value in optimiser.state.get(p, {}).items():
            tensors[f"{name}.{i}"] = torch.as_tensor(value).cpu()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FILE, save(tensors, {"key": key, "step": str(step), "seconds": repr(seconds)}))


def load_state(folder: Path, key: str, params: Sequence[Tensor], optimiser: torch.optim.Optimizer) -> tuple[int, float]:
    """Restore the run called `key` -> (steps done, seconds spent); (0, 0.0) if there is none, or a damaged one."""
    path = folder / FILE
    if not path.exists():
        return 0, 0.0
    try:
        with safe_open(path, framework="pt") as f:
            meta = f.metadata() or {}
            if meta.get("key") != key:
                return 0, 0.0
            with torch.no_grad():
                for i, p in enumerate(params):
                    p.copy_(f.get_tensor(f"p{i}"))
                    state = {n: f.get_tensor(f"{n}.{i}") for n in ("step", "exp_avg", "exp_avg_sq")}
                    optimiser.state[p] = {k: v.to(p.device) if k != "step" else v for k, v in state.items()}
            return int(meta["step"]), float(meta["seconds"])
    except (SafetensorError, KeyError, ValueError, RuntimeError):
        optimiser.state.clear()
        return 0, 0.0


def clear(folder: Path) -> None:
    """Forget the state of a finished run."""
    (folder / FILE).unlink(missing_ok=True)
