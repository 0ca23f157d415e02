"""The wheel holds the four folders, whole, under one package, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("quant", "device", "update", "cli")
# [tool.setuptools]: modules and package data
SHIPPED = {".py", ".html", ".json", ".jsonl", ".gguf", ".safetensors", ".txt", ".typed"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy: setuptools puts whatever an older build/ in the tree still holds into a wheel."""
    work = tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, work / "tree" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, work / "tree" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-index"]
    command = [
        *pip,
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(work / "out"),
        str(work / "tree"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (work / "out").glob("engrain-*.whl")
    return zipfile.ZipFile(path)


def test_contents_are_the_tree(wheel: zipfile.ZipFile) -> None:
    tree = {
        f"engrain/{path.relative_to(ROOT).as_posix()}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    unshipped = {name for name in tree if Path(name).suffix not in SHIPPED}
    assert not unshipped, f"no rule in pyproject.toml ships {sorted(unshipped)}"
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == tree


def test_metadata(wheel: zipfile.ZipFile) -> None:
    info = {Path(name).name: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name}
    assert "engrain = engrain.cli.main:main" in info["entry_points.txt"]
    assert "Apache License" in info["LICENSE"]
    assert "License-Expression: Apache-2.0" in info["METADATA"]
    assert "Requires-Dist: torch==" in info["METADATA"], "a looser torch brings gigabytes of CUDA"
