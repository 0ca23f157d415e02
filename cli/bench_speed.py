"""`engrain bench speed`: training, decoding and an attached adapter, timed on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from engrain.cli import bench_plot, output
from engrain.cli.learn import Device
from engrain.cli.session import JsonOption, ModelOption
from engrain.device.home import open_home

_UNITS = {
    "load_s": "s to dequantise the model for training",
    "train_pairs_per_s": "examples a second in training",
    "train_tokens_per_s": "tokens a second in training, the shared prompt counted in each",
    "gflop_per_s": "thousand million operations a second in one matrix product",
    "floor_share": "of the speed that the matrix products alone would allow",
    "decode_tokens_per_s": "tokens a second in a reply",
    "decode_cost_percent": "% more time a token with an adapter",
    "prefill_tokens_per_s": "tokens a second in a prompt",
    "prefill_cost_percent": "% more time with an adapter",
    "first_token_s": "s from starting a process to the first token",
    "peak_gb": "GB of memory at most",
}


def speed(
    quick: Annotated[bool, typer.Option("--quick", help="A rough figure in a fraction of the time.")] = False,
    growth: Annotated[bool, typer.Option("--growth", help="How seconds grow with examples and rank, too.")] = False,
    beside: Annotated[
        list[Path] | None, typer.Option("--beside", metavar="FILE", help="Train on this GGUF too, for its size.")
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="Where to train.")] = Device.auto,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Also a .json, or a plot as .svg or .png.")
    ] = None,
    model: ModelOption = None,
    json_: JsonOption = False,
) -> None:
    """Time training, replies, prompts, an attached adapter, and the start of a process.

    Nothing else should run meanwhile. Your data are not touched.

    \b
      engrain bench speed --quick
      engrain bench speed --growth --out speed.svg
      engrain bench speed --beside larger.gguf --beside largest.gguf
    """
    from engrain.device import models

    bench_plot.check_out(out)
    path = models.resolve(open_home(), model).path
    figures = _measure(path, quick, growth, device.value)
    if beside:
        figures["sizes"] = _sizes([path, *beside], device.value)
    if out:
        bench_plot.save_speed(figures, out)
    if json_:
        output.as_json(figures)
        return
    rows = [(name, figures[name], unit) for name, unit in _UNITS.items()]
    output.table(("", "measured", ""), rows)
    for row in figures.get("growth", []):
        print(f"{row['examples']} examples at rank {row['rank']}: {row['seconds']:.2f} s a pass")
    for row in figures.get("sizes", []):
        held = "resident" if row["resident"] else "quantised"
        millions = f"{row['parameters'] / 1e6:.0f} M parameters, {held}"
        print(f"{row['model']}, {millions}: {row['seconds']:.2f} s a pass over {row['examples']} examples")


def _sizes(paths: Sequence[Path], device: str) -> list[dict[str, Any]]:
    from engrain.update import speed_bench

    rows = []
    for path in paths:
        output.note(f"training {path.name}")
        rows.append(speed_bench.size(path, device))
    return rows


def _measure(path: Path, quick: bool, growth: bool, device: str) -> dict[str, Any]:
    from engrain.device import serve_bench
    from engrain.device.runtime import Runtime
    from engrain.quant.gguf import open_gguf
    from engrain.update import speed_bench
    from engrain.update.build import ATTENTION, RANK, bare_layers

    output.note("starting new processes")
    first_token = median(serve_bench.first_token_seconds(path) for _ in range(1 if quick else 3))
    with Runtime.load(path) as runtime:
        output.note("decoding without and with an adapter")
        few = {"prompt": 64, "reply": 16, "rounds": 2} if quick else {}
        gguf = open_gguf(path)
        adapter = serve_bench.random_adapter(gguf, RANK, bare_layers(gguf), ATTENTION)
        served = serve_bench.serving(runtime, adapter, **few)
        options = speed_bench.SpeedOptions.of(quick, growth, device)
        trained = speed_bench.measure(path, runtime, options, output.note)
    figures = {**trained, **served, "first_token_s": first_token}
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
