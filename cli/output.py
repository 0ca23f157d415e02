"""What commands print: answers and tables to stdout, everything else to stderr."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engrain.device.home import write_atomic

if TYPE_CHECKING:
    from rich.table import Table

# A reply or an imported log may hold escape sequences, which a terminal would obey.
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def note(text: str) -> None:
    """A line for the person at the keyboard."""
    print(printable(text), file=sys.stderr, flush=True)


def write(text: str) -> None:
    """A piece of an answer, at once; on a terminal without control characters."""
    sys.stdout.write(printable(text) if is_terminal() else text)
    sys.stdout.flush()


def as_json(value: Any) -> None:
    """One line of JSON on stdout."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def is_terminal() -> bool:
    return sys.stdout.isatty()


def printable(text: str) -> str:
    return text.translate(_CONTROLS)


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Rows under headings: drawn by rich on a terminal, else plain aligned lines, one a row."""
    if is_terminal():
        from rich.console import Console

        Console().print(_drawn(headings, rows))
        return
    lines = [list(headings), *([_one_line(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in lines) for column in range(len(headings))]
    for row in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def picture(path: Path, title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """The table as it looks on a terminal, as an SVG that needs nothing from anywhere."""
    from rich.console import Console

    console = Console(record=True, width=168, file=io.StringIO())
    console.print(_drawn(headings, rows))
    drawing = console.export_svg(title=title)
    write_atomic(path, re.sub(r"@font-face\s*\{.*?\}", "", drawing, flags=re.DOTALL))


def _drawn(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        drawn.add_column(heading)
    for row in rows:
        drawn.add_row(*(Text(_one_line(cell)) for cell in row))  # Text: brackets in what users say are no markup
    return drawn


def pairs(values: dict[str, object]) -> None:
    """Name and value, a line each."""
    width = max(map(len, values), default=0)
    for name, value in values.items():
        shown = "-" if value is None else printable(str(value)).replace("\n", "\n" + " " * (width + 2))
        print(f"{name.ljust(width)}  {shown}")


def shorten(text: str, length: int = 60) -> str:
    """The text on one line, cut where it is longer."""
    text = _one_line(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def date(seconds: float) -> str:
    """Local time, to the minute, of unix seconds."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


def duration(seconds: float) -> str:
    """ "8 s", "2 min 05 s", "1 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _one_line(cell: object) -> str:
    return printable("-" if cell is None else " ".join(str(cell).split()))
