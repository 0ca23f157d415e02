"""`engrain bench speed`: how fast training is on this machine, and how near the least time it can take.

`floor_share` is how near training comes to the least time that its products need: needed floating-point work
over (measured matrix rate x seconds). What is needed for one pass over the packs (`needed_flop`), with rows = tokens
behind the shared prefix but for the last plus the prefix once a pack, fillers not counted:

    forward     2 x weights x rows          every matrix of the blocks from the lowest adapted one up
    backward    2 x weights x rows          to the activations, for matrices whose input depends on an adapter
    adapters    2 x 2 x r (in + out) x rows forward and weight gradients; backward 2 x r x out x rows, and
                2 x r x in x rows where the input depends on an adapter
    head        (2 + 2) x n_embd x n_vocab x target rows

What lies below the lowest adapter is computed once for all passes, and not counted. Base weights get no gradient.
Attention's own products, norms, softmax and AdamW are not counted, so that the share is a lower bound.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engrain.device.runtime import Runtime
from engrain.quant.gguf import GGUFModel, open_gguf
from engrain.update import footprint
from engrain.update.build import ALPHA, ATTENTION, RANK, bare_layers, build_decoder, pick_device
from engrain.update.decoder import Decoder, Layer, Linear, fast_dtype
from engrain.update.lora import LoraGroup
from engrain.update.pack import Example, Pack, pack_examples, plan_packs
from engrain.update.recorded import Gradient
from engrain.update.study import Lesson, to_examples
from engrain.update.train import TrainOptions, train

ROWS, WIDE = 512, 128  # of the product whose rate is measured: about a pack's, and how many of them on an accelerator
GROWTH_EXAMPLES, GROWTH_RANKS = (16, 64, 256), (4, 8, 16, 32)
_THINGS = "boat bakery street teacher garden village horse orchestra bridge choir school dentist".split()
_SYLLABLES = "ba be bo da di do ka ke ku la le li lo ma mi mo na ne no ra re ri ro sa se ta te ti va vi za".split()


@dataclass(frozen=True)
class SpeedOptions:
    """How much is measured.

    pairs: generated for training. seconds: of training at least, after a pass that warms up.
    growth_examples, growth_ranks: whose seconds a pass are measured; empty for none.
    """

    pairs: int = 64
    seconds: float = 15.0
    growth_examples: tuple[int, ...] = ()
    growth_ranks: tuple[int, ...] = ()
    device: str = "auto"
    seed: int = 0

    @staticmethod
    def of(quick: bool = False, growth: bool = False, device: str = "auto") -> SpeedOptions:
        """The command's: `quick` for a rough figure in a fraction of the time."""
        cut = 2 if quick else None
        return SpeedOptions(
            pairs=16 if quick else 64,
            seconds=0.0 if quick else 15.0,
            growth_examples=GROWTH_EXAMPLES[:cut] if growth else (),
            growth_ranks=GROWTH_RANKS[:cut] if growth else (),
            device=device,
        )


def measure(
    path: Path, runtime: Runtime, options: SpeedOptions, report: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Training's figures for a model file, which `runtime` has open; keys end in their unit."""
    gguf = open_gguf(path)
    examples = to_examples(runtime, make_pairs(max(options.pairs, *options.growth_examples, 1), options.seed))
    report("loading for training")
    torch.manual_seed(options.seed)
    start = time.perf_counter()
    decoder = build(gguf, RANK, bare_layers(gguf), options.device)
    load_s = time.perf_counter() - start
    report("training")
    figures: dict[str, Any] = {
        "model": path.name,
        "device": str(decoder.embedding.device),
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "load_s": load_s,
        **training(decoder, examples[: options.pairs], options.seconds),
    }
    if options.growth_examples or options.growth_ranks:
        figures["growth"] = growth(gguf, decoder, examples, options, report)
    figures["peak_gb"] = peak_gb(str(decoder.embedding.device))
    return figures


def make_pairs(count: int, seed: int = 0) -> list[Lesson]:
    """Short questions and answers about names that no model knows."""
    random = np.random.default_rng(seed)

    def name() -> str:
        return "".join(random.choice(_SYLLABLES, 3)).capitalize()

    lessons = []
    for _ in range(count):
        who, thing, called = name(), random.choice(_THINGS), name()
        lessons.append(Lesson(f"What is {who}'s {thing} called?", f"{who}'s {thing} is called {called}.", "fact"))
    return lessons


def build(gguf: GGUFModel, rank: int, first_layer: int, device: str = "auto") -> Decoder:
    """A decoder with its base weights already dequantised, as the second step of training finds it."""
    where = pick_device(device)
    decoder = Decoder(gguf, rank, ALPHA, device=where, first_layer=first_layer, attention=ATTENTION)
    for module in decoder.modules():
        if isinstance(module, Linear):
            module.base()
    decoder.head()
    return decoder


def training(
    decoder: Decoder, examples: Sequence[Example], seconds: float, pack_tokens: int = TrainOptions.pack_tokens
) -> dict[str, float]:
    """Rates of the real trainer, and its share of the floor; tokens count the shared prefix in every pair."""
    rate, gradient = matrix_rate(decoder), Gradient(decoder)
    train_passes(gradient, examples, 0.0, pack_tokens)
    passes, took = train_passes(gradient, examples, seconds, pack_tokens)
    rate = statistics.mean([rate, matrix_rate(decoder)])
    work = needed_flop(decoder, [pack_examples(g) for g in plan_packs(examples, pack_tokens)])
    return {
        "gflop_per_s": rate / 1e9,
        "train_pairs_per_s": passes * len(examples) / took,
        "train_tokens_per_s": passes * sum(len(e.tokens) for e in examples) / took,
        "floor_share": passes * work / (rate * took),
    }


def train_passes(
    gradient: Gradient, examples: Sequence[Example], seconds: float, pack_tokens: int = TrainOptions.pack_tokens
) -> tuple[int, float]:
    """Train its decoder in whole passes over the examples, one at least, until `seconds` are over -> passes, seconds.

    What the gradient records serves all of them.
    """
    # A low rate, because every pass warms up anew; it changes nothing about the speed.
    epochs = TrainOptions.epochs if seconds else 1
    options = TrainOptions(lr=1e-4, epochs=epochs, min_steps=0, pack_tokens=pack_tokens, stop_loss=0.0)
    start, passes = time.perf_counter(), 0
    while not passes or time.perf_counter() - start < seconds:
        train(gradient.decoder, examples, replace(options, seed=passes), gradient=gradient)
        passes += epochs
    return passes, time.perf_counter() - start


def needed_flop(decoder: Decoder, packs: Sequence[Pack]) -> int:
    """Floating-point operations that one pass over the packs cannot do without; the module says how counted."""
    rows = sum(p.prefix + sum(len(e.tokens) - 1 - p.prefix for e in p.examples) for p in packs)
    targets = sum(len(p.target_ids) for p in packs)
    per_row, trained = 0, False  # trained: the input depends on an adapter, so it needs a gradient
    for layer in decoder.layers[decoder.lowest if decoder.rank else 0 :]:
        assert isinstance(layer, Layer)
        for linear in (layer.qkv, layer.out, layer.gate_up, layer.down):
            n_in, n_out = linear.base.n_in, sum(linear.base.n_outs)
            per_row += 2 * n_in * n_out * (2 if trained else 1)
            if isinstance(linear.lora, LoraGroup):
                a, b = n_in * linear.lora.rank * len(linear.lora.names), n_out * linear.lora.rank
                per_row += 4 * (a + b) + 2 * b + (2 * a if trained else 0)
                trained = True
    head = decoder.head
    return per_row * rows + (4 if trained else 2) * head.n_in * sum(head.n_outs) * targets


def matrix_rate(decoder: Decoder, repeats: int = 30) -> float:
    """FLOP/s of (ROWS, n_embd) x (n_embd, n_ff) in the decoder's dtype on its device: median of the repeats.

    An accelerator gets WIDE times the rows, which fill it; a pack's would measure how fast it is started.
    """
    hyper, device = decoder.model.hyper, decoder.embedding.device
    rows = ROWS if device.type == "cpu" else WIDE * ROWS
    x = torch.randn(rows, hyper.n_embd).to(device, decoder.dtype)
    weight = torch.randn(hyper.n_ff, hyper.n_embd).to(device, decoder.dtype)
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        x @ weight.T
        if device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * rows * hyper.n_embd * hyper.n_ff / statistics.median(times[3:])


def growth(
    gguf: GGUFModel,
    decoder: Decoder,
    examples: Sequence[Example],
    options: SpeedOptions,
    report: Callable[[str], None],
) -> list[dict[str, float]]:
    """Seconds of one pass for each number of examples (at the default rank), then for each rank."""
    rows, gradient = [], Gradient(decoder)
    for count in options.growth_examples:
        report(f"training on {count} examples")
        _, seconds = train_passes(gradient, examples[:count], 0.0)
        rows.append({"examples": count, "rank": decoder.rank, "seconds": round(seconds, 4)})
    for rank in options.growth_ranks:
        report(f"training at rank {rank}")
        other = build(gguf, rank, bare_layers(gguf), options.device)
        gradient = Gradient(other)
        train_passes(gradient, examples[: min(16, options.pairs)], 0.0)
        _, seconds = train_passes(gradient, examples[: options.pairs], 0.0)
        rows.append({"examples": options.pairs, "rank": rank, "seconds": round(seconds, 4)})
    return rows


def size(path: Path, device: str = "auto", pairs: int = 16, seed: int = 0) -> dict[str, Any]:
    """Seconds of one pass over some pairs with another model, the base held as `learn` would hold it."""
    gguf = open_gguf(path)
    with Runtime.load(path) as runtime:
        examples = to_examples(runtime, make_pairs(pairs, seed))
    where, rows = pick_device(device), TrainOptions().pack_tokens
    plan = footprint.choose(gguf, rows, RANK, fast_dtype(where), where)
    decoder = build_decoder(gguf, where, seed, resident=plan.resident)
    gradient = Gradient(decoder)
    train_passes(gradient, examples[:4] if where == "cpu" else examples, 0.0)
    _, seconds = train_passes(gradient, examples, 0.0)
    return {
        "model": path.name,
        "parameters": sum(math.prod(t.shape) for t in gguf.tensors.values()),
        "resident": plan.resident,
        "examples": pairs,
        "seconds": round(seconds, 4),
    }


def peak_gb(device: str = "cpu") -> float | None:
    """The largest memory this process has had, of a CUDA device what tensors took, in GB; None where nothing says."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9
