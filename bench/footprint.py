"""Peak memory and speed of training with the base resident and with it left in its blocks, beside the estimate.

    python bench/footprint.py --like starter.gguf [--model FILE] [--steps 3] [--json]

Without --model a random Q4_K_M-like model of 1.1 B parameters is written to a temporary file. Each mode runs in a
process of its own: packs of 512 tokens, rank 8 on every layer, forward, backward and AdamW. `bound_gb` is what a
quantised run may take: 1.3 x the file + 0.6 GB. Peaks count the file's mapped pages.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RANK = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF; default: a random one of 1.1 B parameters")
    parser.add_argument("--like", type=Path, help="a GGUF whose tokenizer the random model gets")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--one", choices=("resident", "quantised"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.model, options.one == "resident", options.steps)))
        return
    if options.model:
        rows = compare(options.model, options.steps)
    elif options.like:
        from random_model import write_random_model

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "random-1.1b.gguf"
            write_random_model(path, options.like)
            rows = compare(path, options.steps)
    else:
        parser.error("give --model, or --like for the random model's tokenizer")
    for row in rows:
        print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    if options.json:
        print(json.dumps(rows))


def compare(path: Path, steps: int) -> list[dict[str, Any]]:
    rows = []
    for mode in ("quantised", "resident"):
        command = [sys.executable, __file__, "--model", str(path), "--steps", str(steps), "--one", mode]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{mode}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


def one(path: Path, resident: bool, steps: int) -> dict[str, Any]:
    """Train `steps` packs -> the figures of this process."""
    import torch

    from engrain.device.runtime import Runtime
    from engrain.quant.gguf import open_gguf
    from engrain.update import footprint
    from engrain.update.decoder import Decoder
    from engrain.update.pack import plan_packs
    from engrain.update.speed_bench import make_pairs, peak_gb
    from engrain.update.study import to_examples
    from engrain.update.train import Step, TrainOptions, train

    with Runtime.load(path) as runtime:
        settings = TrainOptions(epochs=1, min_steps=0, lr=1e-4, pack_tokens=512)
        examples = to_examples(runtime, make_pairs(64 * steps))
        groups = plan_packs(examples, settings.pack_tokens)[:steps]
        examples = [e for g in groups for e in g]
    gguf = open_gguf(path)
    torch.manual_seed(0)
    decoder = Decoder(gguf, RANK, resident=resident)
    seen: list[Step] = []
    began = time.perf_counter()
    train(decoder, examples, settings, on_step=seen.append)
    took = time.perf_counter() - began
    size = path.stat().st_size / 1e9
    return {
        "mode": "resident" if resident else "quantised",
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "file_gb": size,
        "peak_gb": peak_gb(),
        "bound_gb": 1.3 * size + 0.6,
        "estimate_gb": footprint.needed_bytes(gguf, settings.pack_tokens, RANK, decoder.dtype, resident) / 1e9,
        "steps": len(seen),
        "tokens_a_step": max(s.tokens for s in seen),
        "seconds_a_step": took / len(seen),
        "pairs_per_s": len(examples) / took,
    }


if __name__ == "__main__":
    main()
