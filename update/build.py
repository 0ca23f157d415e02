"""A decoder with adapters to train, built of a GGUF on the device there is; and the adapter that comes out of it."""

from __future__ import annotations

import torch

from engrain.quant.adapter import Adapter
from engrain.quant.errors import EngrainError
from engrain.quant.gguf import GGUFModel
from engrain.quant.names import is_feed_forward
from engrain.update.decoder import Decoder

RANK, ALPHA = 8, 16.0
ATTENTION = False  # whether its products have adapters: beside those of the feed-forward they bring nothing
BARE = 0.6  # of the layers, the lowest, get no adapters of what is learned: what a word means is found there
BARE_FOR_FORM = 0.2  # where replies to messages of any kind are to change: what is begun so high up is begun too late
BARE_AT_SCHOOL = 0.2  # of those that learn to study or to read


def bare_layers(gguf: GGUFModel, share: float = BARE) -> int:
    """How many of the lowest layers get no adapters."""
    return int(share * gguf.hyper.n_layer)


def build_decoder(
    gguf: GGUFModel,
    device: str = "auto",
    seed: int = 0,
    parent: Adapter | None = None,
    resident: bool = True,
    bare: float = BARE,
    attention: bool = ATTENTION,
) -> Decoder:
    """The decoder with new adapters above a share of bare layers, and in them the parent's to train on from.

    A parent that reaches further down, or into attention, goes on doing so.
    """
    torch.manual_seed(seed)
    rank, lowest = RANK, bare_layers(gguf, bare)
    if parent:
        rank, lowest = parent.rank, min(lowest, *(int(n.split(".")[1]) for n in parent.weights))
        attention = attention or not all(map(is_feed_forward, parent.weights))
    decoder = Decoder(
        gguf, rank, ALPHA, device=pick_device(device), resident=resident, first_layer=lowest, attention=attention
    )
    if parent:
        weights = {n: (torch.from_numpy(a), torch.from_numpy(b)) for n, (a, b) in parent.weights.items()}
        for group in decoder.groups():
            group.load(weights, parent.scale)
    return decoder


def pick_device(name: str) -> str:
    """ "auto" -> cuda, mps or cpu, whichever is there first; EngrainError for one that isn't there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(d for d, here in there.items() if here)
    if not there.get(name):
        raise EngrainError(f"there is no {name} device here; use --device auto")
    return name


def extract(decoder: Decoder, gguf: GGUFModel) -> Adapter:
    """The trained weights as an adapter, float32 on the CPU."""
    weights = {}
    for group in decoder.groups():
        for name, (a, b) in group.weights().items():
            weights[name] = (a.cpu().numpy().copy(), b.cpu().numpy().copy())
    hyper = gguf.hyper
    return Adapter(decoder.rank, decoder.alpha, gguf.architecture, hyper.n_head, hyper.n_head_kv, weights)
