"""Files replaced whole: whoever reads one, also after a crash, finds the old one or the new one. Rows of JSON lines."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def replace_file(path: Path, fill: Callable[[Path], object]) -> None:
    """Fill a temporary file beside `path`, fsync it and move it into place.

    OSError when that fails; the old file is then whole and no temporary file is left.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        fill(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)  # the new name is on the disk only when its folder is
    finally:
        temporary.unlink(missing_ok=True)


def read_rows(path: Path) -> list[Any]:
    """The rows of a file of JSON lines, blank lines left out. OSError, or ValueError for what is none.

    Only what JSON escapes in a text ends a row: U+2028, at which `splitlines` cuts, may stand in one.
    """
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable. Windows has no such call, and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
