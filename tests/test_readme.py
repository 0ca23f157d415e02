"""The README's layout names every module once, each with a line on what it is for.

The section `## Layout` holds one fenced block. A line that starts at column 0 opens a folder, a line indented
by two spaces is a file in it; two or more spaces (or none, for a folder) stand before the description:

    quant/    weights as files and blocks
      gguf.py      a GGUF, memory-mapped
      blocks.py    ggml block formats -> torch

A folder's name ends with `/`. `__init__.py` may be left out. Other lines (`docs/`, a file at the root) may
stand there too; of quant, device, update, cli and bench every .py file must, and nothing that does not exist.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("quant", "device", "update", "cli", "bench")
ENTRY = re.compile(r"(?P<indent>(?:  )?)(?P<name>\S+)(?:\s{2,}(?P<what>\S.*))?")


def layout(readme: str) -> list[tuple[str, str]]:
    """(path, description) for each line of the layout block; a folder's path ends with `/`."""
    section = re.search(r"^## Layout\n(.*?)(?=^## |\Z)", readme, re.M | re.S)
    assert section, "README.md has no section '## Layout'"
    block = re.search(r"^```\w*\n(.*?)^```", section[1], re.M | re.S)
    assert block, "the section '## Layout' has no fenced block"
    entries, folder = [], ""
    for line in filter(str.strip, block[1].splitlines()):
        entry = ENTRY.fullmatch(line.rstrip())
        assert entry, f"not `name/    what` or `  name.py    what`: {line!r}"
        if not entry["indent"]:
            folder = entry["name"] if entry["name"].endswith("/") else ""
            entries.append((entry["name"], entry["what"] or ""))
        else:
            assert folder, f"indented, but under no folder: {line!r}"
            entries.append((folder + entry["name"], entry["what"] or ""))
    return entries


def test_layout_matches_the_tree() -> None:
    entries = layout((ROOT / "README.md").read_text(encoding="utf-8"))
    listed = [path for path, _ in entries]
    assert len(listed) == len(set(listed)), f"listed twice: {sorted({p for p in listed if listed.count(p) > 1})}"
    absent = [path for path in listed if not (ROOT / path).exists()]
    assert not absent, f"listed, but not in the tree: {absent}"
    tree = {
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert not tree - set(listed), f"missing in README.md: {sorted(tree - set(listed))}"
    bare = [path for path, what in entries if path.endswith(".py") and not what]
    assert not bare, f"no description: {bare}"
