"""`engrain bench speed` on the tiny model: what it prints and writes, and that its work is counted right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from engrain.cli import bench_speed
from engrain.quant.errors import EngrainError

from ..tiny import build_tiny_gguf

FIGURES = {
    "load_s", "train_pairs_per_s", "train_tokens_per_s", "floor_share", "decode_tokens_per_s", "decode_cost_percent",
    "prefill_tokens_per_s", "prefill_cost_percent", "first_token_s", "growth",
}  # fmt: skip


def bench(*arguments: str) -> None:
    app = typer.Typer()
    app.command()(bench_speed.speed)
    typer.main.get_command(app).main(args=list(arguments), standalone_mode=False)


def test_figures_as_json_and_as_a_plot(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "speed.svg"
    larger = build_tiny_gguf(tmp_path / "larger.gguf", n_layer=4)
    bench("--model", str(tiny), "--quick", "--growth", "--beside", str(larger), "--json", "--out", str(plot))
    figures = json.loads(capsys.readouterr().out)
    assert figures.keys() >= FIGURES
    assert all(figures[name] > 0 for name in FIGURES - {"growth", "decode_cost_percent", "prefill_cost_percent"})
    assert [(row["examples"], row["rank"]) for row in figures["growth"]] == [(16, 8), (64, 8), (16, 4), (16, 8)]
    sizes = figures["sizes"]
    assert [row["model"] for row in sizes] == [tiny.name, larger.name]
    assert all(row["resident"] and row["seconds"] > 0 for row in sizes)
    assert sizes[0]["parameters"] < sizes[1]["parameters"]
    assert plot.read_bytes().lstrip().startswith(b"<?xml")


def test_an_unknown_form_is_refused_before_anything_is_measured(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(EngrainError, match="no known form"):
        bench("--model", str(tiny), "--out", str(tmp_path / "speed.pdf"))
