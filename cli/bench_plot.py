"""The figures of `engrain bench` as a file: JSON, or a plot where matplotlib is installed."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from engrain.device.home import write_atomic
from engrain.quant.errors import EngrainError

Row: TypeAlias = dict[str, Any]
_FORMS = (".png", ".svg", ".json")


def check_out(out: Path | None) -> None:
    """EngrainError before the work, rather than after it, for a file that can't be made."""
    if out is None:
        return
    if out.suffix.lower() not in _FORMS:
        raise EngrainError(f"{out} has no known form: let its name end in {', '.join(_FORMS)}")
    if not out.absolute().parent.is_dir():
        raise EngrainError(f"there is no folder {out.absolute().parent}: make it first")
    if out.suffix.lower() != ".json" and importlib.util.find_spec("matplotlib") is None:
        raise EngrainError("a plot needs matplotlib: `pip install matplotlib`, or give --out a .json")


def save_memory(result: Mapping[str, Any], path: Path) -> None:
    """What `bench memory` measured, as JSON or a plot by the file's ending."""
    matrix = (result["sessions"] or {}).get("matrix")

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, 3 if matrix else 2, squeeze=False)[0]
        _plot_shares(panels[0], result)
        _plot_cost(panels[1], result["ways"])
        if matrix:
            _plot_matrix(figure, panels[2], matrix)

    _save(result, path, 15 if matrix else 10, draw)


def save_speed(figures: Mapping[str, Any], path: Path) -> None:
    """What `bench speed` measured: seconds against examples and rank where they grew, and the rates."""
    growth = figures.get("growth")

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, 2 if growth else 1, squeeze=False)[0]
        names = [name for name in figures if name.endswith("tokens_per_s")]
        panels[0].barh([name.removesuffix("_tokens_per_s") for name in names], [figures[name] for name in names])
        panels[0].set_xlabel("tokens a second")
        panels[0].set_title(f"{figures['model']}, {figures['device']}", fontsize=10)
        if growth:
            _plot_growth(panels[1], growth)

    _save(figures, path, 10 if growth else 6, draw)


def _save(figures: Mapping[str, Any], path: Path, inches: float, draw: Callable[[Any], None]) -> None:
    form = path.suffix.lower().lstrip(".")
    if form == "json":
        write_atomic(path, json.dumps(figures, ensure_ascii=False, indent=2) + "\n")
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(inches, 4.2), layout="constrained")
    draw(figure)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=form, dpi=150)
    write_atomic(path, drawn.getvalue())


def _plot_growth(panel: Any, growth: Sequence[Row]) -> None:
    usual, most = growth[0]["rank"], growth[-1]["examples"]
    for key, rows in (
        ("examples", [row for row in growth if row["rank"] == usual]),
        ("rank", [row for row in growth if row["examples"] == most]),
    ):
        panel.plot([row[key] for row in rows], [row["seconds"] for row in rows], marker="o", label=f"against {key}")
    panel.set_xscale("log", base=2)
    panel.set_ylabel("seconds a pass")
    panel.legend(fontsize=8)


def _plot_shares(panel: Any, result: Mapping[str, Any]) -> None:
    rows = result["ways"]
    shown = {"recall": "recall", "false_memories": "false memories", "general": "general questions"}
    for place, (key, label) in enumerate(shown.items()):
        at = [i + (place - 1) * 0.27 for i in range(len(rows))]
        panel.bar(at, [row[key] or 0.0 for row in rows], 0.25, label=label)
    panel.set_xticks(range(len(rows)), [row["way"] for row in rows])
    panel.set_ylim(0, 1)
    panel.set_ylabel("share of questions")
    panel.set_title(f"{result['model']}, {result['set']}", fontsize=10)
    panel.legend(fontsize=8)


def _plot_cost(panel: Any, rows: Sequence[Row]) -> None:
    for row in rows:
        panel.scatter(row["prompt_tokens"], row["recall"])
        panel.annotate(row["way"], (row["prompt_tokens"], row["recall"]), (4, 4), textcoords="offset points")
    tokens = sorted({round(row["prompt_tokens"]) for row in rows})
    panel.set_xscale("log")
    panel.set_xlim(tokens[0] * 0.7, tokens[-1] * 2.5)  # room for the last one's name
    panel.set_xticks(tokens, [str(count) for count in tokens])
    panel.minorticks_off()
    panel.set_ylim(-0.05, 1.1)
    panel.set_xlabel("prompt tokens a question")
    panel.set_ylabel("recall")


def _plot_matrix(figure: Any, panel: Any, matrix: Sequence[Sequence[float]]) -> None:
    drawn = panel.imshow(matrix, vmin=0, vmax=1, cmap="viridis")
    ticks, names = range(len(matrix)), [str(i + 1) for i in range(len(matrix))]
    panel.set_xticks(ticks, names)
    panel.set_yticks(ticks, names)
    panel.set_xlabel("facts of session")
    panel.set_ylabel("after learning session")
    figure.colorbar(drawn, ax=panel, label="recall")
