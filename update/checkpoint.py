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
            step, seconds = int(meta["step"]), float(meta["seconds"])
            names = ("step", "exp_avg", "exp_avg_sq")
            weights = [f.get_tensor(f"p{i}") for i in range(len(params))]
            moments = [{n: f.get_tensor(f"{n}.{i}") for n in names} for i in range(len(params))]
    except (SafetensorError, KeyError, ValueError, RuntimeError):
        return 0, 0.0
    if any(w.shape != p.shape for w, p in zip(weights, params, strict=True)):
        return 0, 0.0
    with torch.no_grad():
        for p, weight, state in zip(params, weights, moments, strict=True):
            p.copy_(weight)
            optimiser.state[p] = {k: v.to(p.device) for k, v in state.items()}
    return step, seconds


def clear(folder: Path) -> None:
    """Forget the state of a finished run."""
    (folder / FILE).unlink(missing_ok=True)
