"""A page about one update, beside its adapter: what was learned, before and after, the loss. It loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from engrain.update.gate import Checks
from engrain.update.train import Step

REPORT = "report.html"
_WIDTH, _HEIGHT = 640, 160
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222;background:#fff}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3em .6em;border-bottom:1px solid #ddd;
vertical-align:top}.yes{color:#187a2f}.no{color:#b3261e}svg{width:100%;height:auto}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}td,th{border-color:#333}}
"""


@dataclass(frozen=True)
class Asked:
    """A question that was kept out of training, as it was answered before and after the update."""

    question: str
    before: str
    after: str
    right: bool
    old: bool = False


def render(title: str, learned: Sequence[str], asked: Sequence[Asked], checks: Checks, losses: Sequence[Step]) -> bytes:
    """The update as HTML, UTF-8."""
    verdict = "Kept." if checks.passed else f"Not kept: {checks.reason}."
    figures = "".join(
        f"<tr><td>{escape(k.replace('_', ' '))}</td><td>{escape(str(v))}</td></tr>"
        for k, v in checks.as_dict().items()
        if k != "reason"
    )
    return "\n".join(
        [
            "<!doctype html><html lang=en><meta charset=utf-8>",
            f"<title>{escape(title)}</title><style>{_STYLE}</style>",
            f"<h1>{escape(title)}</h1><p>{escape(verdict)}</p>",
            "<h2>Learned</h2><ul>", *(f"<li>{escape(each)}</li>" for each in learned), "</ul>",
            "<h2>Asked in words that were not trained</h2>",
            "<table><tr><th><th>question<th>before<th>after</tr>", *map(_row, asked), "</table>",
            f"<h2>Checks</h2><table>{figures}</table>",
            "<h2>Loss</h2>", _curve(losses), "</html>",
        ]
    ).encode(errors="replace")  # fmt: skip


def _row(each: Asked) -> str:
    mark = "<td class=yes>✓" if each.right else "<td class=no>✗"
    earlier = " <small>(learned earlier)</small>" if each.old else ""
    return f"<tr>{mark}<td>{escape(each.question)}{earlier}<td>{escape(each.before)}<td>{escape(each.after)}</tr>"


def _curve(steps: Sequence[Step]) -> str:
    """Nats a target token against steps, as an SVG line."""
    if len(steps) < 2:
        return "<p>No training was needed.</p>"
    top = max(s.loss for s in steps)
    points = " ".join(
        f"{_WIDTH * i / (len(steps) - 1):.1f},{_HEIGHT - _HEIGHT * s.loss / max(top, 1e-9):.1f}"
        for i, s in enumerate(steps)
    )
    seconds = steps[-1].seconds
    return (
        f'<svg viewBox="0 -4 {_WIDTH} {_HEIGHT + 8}" role=img><polyline fill=none stroke="#3a6ea5" stroke-width=2 '
        f'points="{points}"/></svg><p>From {steps[0].loss:.2f} to {steps[-1].loss:.3f} nats a token in '
        f"{len(steps)} steps, {seconds:.0f} s.</p>"
    )
