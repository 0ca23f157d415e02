"""Training pairs a second beside transformers + PEFT: same GGUF, rank, modules, layers, examples; in one run.

    python bench/peers.py [--model FILE] [--device auto] [--seconds 15] [--rounds 3] [--json]

Each contestant runs in a process of its own, in turn for some rounds, and the median counts: machines are noisy.
PEFT gets AdamW, answers-only loss, padding to the longest, and the best of several batch sizes, which a first
round finds. No KL anchors on either side. `pairs_per_s` is engrain as it ships (the lower layers bare, computed once
for all passes); `pairs_per_s_all_layers` adapts every layer, and is what PEFT's figures are for, so the ratios
to PEFT's default are for the way each is used, and `ratio_*_all_layers` for the same work.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BATCHES, WIDE_BATCHES = (4, 16, 32), (32, 128, 512)  # on a processor, on an accelerator
PACKS = (512, 2048, 8192)  # tokens of ours, of which an accelerator gets the best, as PEFT does
PAIRS, MANY_PAIRS = 48, 512
MODULES = ["gate_proj", "up_proj", "down_proj"]  # those that engrain adapts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a GGUF, or the name of a known model; default: the one engrain uses")
    parser.add_argument("--device", default="auto", help="cuda, mps or cpu; default: whichever is there first")
    parser.add_argument("--seconds", type=float, default=15.0, help="of training at least, for each figure")
    parser.add_argument("--rounds", type=int, default=3, help="of all contestants in turn")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--one", nargs=2, metavar=("WHO", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    from engrain.device import models
    from engrain.device.home import open_home
    from engrain.update.build import pick_device

    path, device = models.resolve(open_home(), options.model).path, pick_device(options.device)
    if options.one:
        who, batch = options.one
        measure = engrain if who.startswith("engrain") else peft
        print(json.dumps(measure(path, device, who, int(batch), options.seconds)))
        return
    for name in ("transformers", "peft"):
        if find_spec(name) is None:
            sys.exit(f"{name} is not installed: pip install -e '.[bench]'")
    result = compare(path, device, options.seconds, options.rounds)
    for key, value in result.items():
        print(f"{key:28} {value}")
    if options.json:
        print(json.dumps(result))


def compare(path: Path, device: str, seconds: float, rounds: int) -> dict[str, Any]:
    """All figures, medians over the rounds."""

    def best(who: str, sizes: Sequence[int]) -> int:
        tried = {size: run(path, device, who, size, seconds / 3)["pairs_per_s"] for size in sizes}
        note(f"{who}: " + ", ".join(f"{size} {rate:.2f}/s" for size, rate in tried.items()))
        return max(tried, key=lambda size: tried[size])

    here = device == "cpu"
    batches = {dtype: best(dtype, BATCHES if here else WIDE_BATCHES) for dtype in ("float32", "bfloat16")}
    packs = PACKS[0] if here else best("engrain", PACKS)
    contestants = {"engrain": packs, "engrain-all": packs, **batches}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, batch in contestants.items():
            found[name].append(run(path, device, name, batch, seconds))
            note(f"{name}: {found[name][-1]}")
    middle = {n: {k: statistics.median(r[k] for r in rows) for k in rows[0]} for n, rows in found.items()}
    ours, whole, full, half = (middle[name] for name in contestants)
    result = {
        "pairs_per_s": ours["pairs_per_s"],
        "pairs_per_s_all_layers": whole["pairs_per_s"],
        "peft_fp32_pairs_per_s": full["pairs_per_s"],
        "peft_bf16_pairs_per_s": half["pairs_per_s"],
        "ratio_fp32": ours["pairs_per_s"] / full["pairs_per_s"],
        "ratio_bf16": ours["pairs_per_s"] / half["pairs_per_s"],
        "ratio_fp32_all_layers": whole["pairs_per_s"] / full["pairs_per_s"],
        "ratio_bf16_all_layers": whole["pairs_per_s"] / half["pairs_per_s"],
        "pack_tokens": packs,
        "peft_fp32_batch": batches["float32"],
        "peft_bf16_batch": batches["bfloat16"],
        "floor_share": ours["floor_share"],
        "load_s": ours["load_s"],
        "peft_load_s": half["load_s"],
        "peak_gb": ours["peak_gb"],
        "peft_fp32_peak_gb": full["peak_gb"],
        "peft_bf16_peak_gb": half["peak_gb"],
    }
    return {"device": device, **{k: round(v, 4) for k, v in result.items()}}


def run(path: Path, device: str, who: str, batch: int, seconds: float) -> dict[str, float]:
    """One contestant in a process of its own."""
    where = ["--model", str(path), "--device", device, "--seconds", str(seconds)]
    command = [sys.executable, __file__, *where, "--one", who, str(batch)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, encoding="utf-8")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def engrain(path: Path, device: str, who: str, batch: int, seconds: float) -> dict[str, float]:
    """The product's own loop with packs of `batch` tokens; "engrain-all" adapts every layer."""
    import torch

    from engrain.quant.gguf import open_gguf
    from engrain.update import speed_bench
    from engrain.update.build import RANK, bare_layers

    torch.manual_seed(0)
    gguf = open_gguf(path)
    examples = pairs(path, device)
    start = time.perf_counter()
    decoder = speed_bench.build(gguf, RANK, 0 if who == "engrain-all" else bare_layers(gguf), device)
    load_s = time.perf_counter() - start
    figures = speed_bench.training(decoder, examples, seconds, batch)
    return {
        "pairs_per_s": figures["train_pairs_per_s"],
        "floor_share": figures["floor_share"],
        "load_s": load_s,
        "peak_gb": speed_bench.peak_gb(device) or 0.0,
    }


def peft(path: Path, device: str, dtype: str, batch: int, seconds: float) -> dict[str, float]:
    """transformers reads the GGUF, PEFT adapts it, AdamW trains; whole passes over the same examples."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from engrain.update.build import ALPHA, RANK
    from engrain.update.speed_bench import peak_gb

    torch.manual_seed(0)
    examples = pairs(path, device)
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=getattr(torch, dtype))
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=MODULES)).to(device)
    load_s = time.perf_counter() - start
    model.train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ordered = sorted(examples, key=lambda e: len(e.tokens))  # as little padding as can be
    passes, begun = -1, time.perf_counter()  # the first pass warms up
    while passes < 1 or time.perf_counter() - begun < seconds:
        for at in range(0, len(ordered), batch):
            some = ordered[at : at + batch]
            longest = max(len(e.tokens) for e in some)
            ids = torch.zeros(len(some), longest, dtype=torch.long)
            labels = torch.full_like(ids, -100)
            for row, e in enumerate(some):
                ids[row, : len(e.tokens)] = torch.tensor(e.tokens)
                labels[row, e.start : len(e.tokens)] = ids[row, e.start : len(e.tokens)]
            mask = torch.arange(longest) < torch.tensor([[len(e.tokens)] for e in some])
            batched = {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}
            model(**{name: each.to(device) for name, each in batched.items()}).loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        passes += 1
        if device != "cpu":
            torch.accelerator.synchronize()
        if not passes:
            begun = time.perf_counter()
    rate = passes * len(examples) / (time.perf_counter() - begun)
    return {"pairs_per_s": rate, "load_s": load_s, "peak_gb": peak_gb(device) or 0.0}


def pairs(path: Path, device: str) -> list[Any]:
    """The same chat examples for everyone."""
    from engrain.device.runtime import Runtime
    from engrain.update import speed_bench
    from engrain.update.study import to_examples

    with Runtime.load(path) as runtime:
        return to_examples(runtime, speed_bench.make_pairs(PAIRS if device == "cpu" else MANY_PAIRS))


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
