"""`engrain bench`: measured figures of this machine and model, with plots."""

from __future__ import annotations

import typer

from engrain.cli import bench_memory, bench_speed

app = typer.Typer(no_args_is_help=True, help="Measure: how well it remembers, how fast it learns.")
app.command("memory")(bench_memory.memory)
app.command("speed")(bench_speed.speed)
