"""`engrain bench speed`: what decoding, prefill and an attached adapter cost in llama.cpp on this machine."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engrain.device.runtime import Runtime
from engrain.quant.adapter import Adapter
from engrain.quant.gguf import GGUFModel
from engrain.quant.gguf_lora import save_gguf
from engrain.quant.names import is_feed_forward, is_linear

_START = """
import sys
from engrain.device.runtime import Runtime
with Runtime.load(sys.argv[1]) as runtime:
    runtime.complete_tokens(runtime.prompt_tokens([{"role": "user", "content": "Hello!"}]), 1)
"""


def serving(
    runtime: Runtime, adapter: Adapter, prompt: int = 256, reply: int = 48, rounds: int = 9
) -> dict[str, float]:
    """Tokens/s of prefill and decoding without and with an adapter, in turn; costs in percent of time.

    prompt, reply: tokens. The first round warms up and doesn't count.
    """
    text = runtime.tokenize("The quick brown fox jumps over the lazy dog, and then it sleeps. ")
    prompt = min(prompt, runtime.n_ctx // 2)
    text = (text * (1 + runtime.n_ctx // len(text)))[: min(prompt + reply, runtime.n_ctx - 1)]
    times: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "adapter.gguf"
        save_gguf(adapter, file)
        for turn in range(-1, rounds):
            for adapter_on in (False, True) if turn % 2 else (True, False):
                if adapter_on:
                    runtime.attach(file)
                else:
                    runtime.detach()
                    runtime.logits(text[:1])  # drops the keys and values, whatever was attached
                taken = _timed(runtime, text, prompt)
                if turn >= 0:
                    times[adapter_on].append(taken)
        runtime.detach()
    figures = {}
    for at, (what, count) in enumerate((("prefill", prompt), ("decode", len(text) - prompt))):
        bare, adapted = (statistics.median(t[at] for t in times[key]) for key in (False, True))
        figures[f"{what}_tokens_per_s"] = count / bare
        figures[f"{what}_adapted_tokens_per_s"] = count / adapted
        figures[f"{what}_cost_percent"] = 100 * (adapted / bare - 1)
    return figures


def _timed(runtime: Runtime, text: Sequence[int], prompt: int) -> tuple[float, float]:
    """Seconds to evaluate `text[:prompt]`, then the rest token by token: given ones, since a reply may end early."""
    start = time.perf_counter()
    runtime.complete_tokens(text[:prompt], 1)
    middle = time.perf_counter()
    for end in range(prompt + 1, len(text) + 1):
        runtime.complete_tokens(text[:end], 1)
    return middle - start, time.perf_counter() - middle


def random_adapter(gguf: GGUFModel, rank: int, first_layer: int, attention: bool = True, seed: int = 0) -> Adapter:
    """Small random weights on every linear layer from `first_layer` up, or on the feed-forward's alone."""
    random = np.random.default_rng(seed)

    def pair(n_out: int, n_in: int) -> tuple[np.ndarray, np.ndarray]:
        a, b = random.standard_normal((rank, n_in)), random.standard_normal((n_out, rank))
        return (a / n_in**0.5).astype(np.float32), (1e-3 * b).astype(np.float32)

    weights = {
        name: pair(*tensor.shape)
        for name, tensor in gguf.tensors.items()
        if (is_linear if attention else is_feed_forward)(name) and int(name.split(".")[1]) >= first_layer
    }
    hyper = gguf.hyper
    return Adapter(rank, 2.0 * rank, gguf.architecture, hyper.n_head, hyper.n_head_kv, weights)


def first_token_seconds(path: Path) -> float:
    """From starting a process, with imports and loading, to the first token of a reply."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", _START, str(path)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start
