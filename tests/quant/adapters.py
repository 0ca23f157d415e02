"""Adapters with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from engrain.quant.adapter import Adapter

Q, V = "blk.0.attn_q.weight", "blk.1.attn_v.weight"


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
