"""Which way of holding the base weights is chosen, and what is said when none fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engrain.quant.gguf import GGUFModel, open_gguf
from engrain.update import footprint
from engrain.update.footprint import NotEnoughMemory, choose, needed_bytes

from ..tiny import build_tiny_gguf

ROWS, RANK, DTYPE = 512, 8, torch.bfloat16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GGUFModel:
    return open_gguf(build_tiny_gguf(tmp_path_factory.mktemp("footprint") / "m.gguf", n_layer=4, n_embd=256, n_ff=512))


def chosen(model: GGUFModel, monkeypatch: pytest.MonkeyPatch, free: float, resident: bool | None = None) -> bool:
    monkeypatch.setattr(footprint, "free_bytes", lambda device: int(free))
    return choose(model, ROWS, RANK, DTYPE, "cpu", resident).resident


def test_resident_where_it_fits_and_quantised_where_it_does_not(
    model: GGUFModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = (needed_bytes(model, ROWS, RANK, DTYPE, mode) for mode in (True, False))
    assert small < large
    assert chosen(model, monkeypatch, large * 1.2)
    assert not chosen(model, monkeypatch, small * 1.12)
    assert not chosen(model, monkeypatch, large * 1.2, resident=False)


def test_what_does_not_fit_is_told_with_what_would(model: GGUFModel, monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = (needed_bytes(model, ROWS, RANK, DTYPE, mode) for mode in (True, False))
    with pytest.raises(NotEnoughMemory, match=r"takes about .* GB .* close other programs, or learn with a model file"):
        chosen(model, monkeypatch, small * 0.9)
    with pytest.raises(NotEnoughMemory, match="with the base resident"):
        chosen(model, monkeypatch, (small + large) / 2, resident=True)


def test_without_a_figure_of_free_memory_it_is_resident(model: GGUFModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "free_bytes", lambda device: None)
    plan = choose(model, ROWS, RANK, DTYPE, "cpu")
    assert plan.resident and "free" not in str(plan)


def test_the_line_says_what_was_chosen(model: GGUFModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "free_bytes", lambda device: 10**10)
    assert str(choose(model, ROWS, RANK, DTYPE, "cpu")).startswith("base weights resident in bfloat16: about 0.")
    line = str(choose(model, ROWS, RANK, DTYPE, "cpu", resident=False))
    assert line.startswith("base weights left in their blocks") and "of 10.0 GB free" in line


def test_free_memory_is_what_a_container_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path
    (group / "memory.max").write_text("3000000000\n")
    (group / "memory.current").write_text("2500000000\n")
    (group / "memory.stat").write_text("inactive_file 200000000\nactive_file 100000000\nanon 7\n")
    monkeypatch.setattr(footprint, "_CGROUPS", tmp_path)
    monkeypatch.setattr(footprint, "_own_group", lambda: tmp_path)
    assert footprint.free_bytes(torch.device("cpu")) == 800_000_000
    (group / "memory.max").write_text("max\n")
    assert footprint.free_bytes(torch.device("cpu")) != 800_000_000
