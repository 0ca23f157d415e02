"""Fixtures for every test: a data folder of one's own, and a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from .tiny import build_tiny_gguf


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ENGRAIN_HOME in a temporary folder: no test touches the user's data."""
    home = tmp_path / "engrain-home"
    monkeypatch.setenv("ENGRAIN_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two layers with float32 weights, a chat template and a byte-level tokenizer."""
    return build_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
