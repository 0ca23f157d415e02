"""`engrain memory`: what was said, and which adapter learned it."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engrain.cli import output
from engrain.cli.chat import warn_learned
from engrain.cli.session import JsonOption
from engrain.device.home import open_home, write_atomic
from engrain.quant.errors import EngrainError

if TYPE_CHECKING:
    from engrain.device.interactions import Interaction, InteractionLog

app = typer.Typer(
    help="The interaction log: what you said, and which adapter learned it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
IdArgument = Annotated[int, typer.Argument(metavar="ID", min=1, help="As `engrain memory list` shows it.")]
_MARKS = {None: "", 1: "good", -1: "bad"}


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, metavar="N", help="The newest N; 0: all.")] = 20,
    json_: JsonOption = False,
) -> None:
    """The newest interactions.

    \b
      engrain memory list -n 50
    """
    with _log() as log:
        _show_many(log, log.list(limit or None), json_)


@app.command()
def search(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Words, or beginnings of words.")],
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="At most N.")] = 20,
    json_: JsonOption = False,
) -> None:
    """Interactions that mention a text, best first.

    \b
      engrain memory search "my cat"
    """
    with _log() as log:
        _show_many(log, log.search(text, limit), json_)


@app.command()
def show(id: IdArgument, json_: JsonOption = False) -> None:
    """One interaction, whole.

    \b
      engrain memory show 12
    """
    with _log() as log:
        values = _values(log, log.get(id))
    if json_:
        output.as_json(values)
        return
    values["time"] = output.date(values["time"])
    values["feedback"] = _MARKS[values["feedback"]] or None
    values["learned_by"] = ", ".join(values["learned_by"]) or None
    output.pairs(values)


@app.command()
def forget(
    ids: Annotated[list[int], typer.Argument(metavar="ID…", help="As `engrain memory list` shows them.")],
) -> None:
    """Remove interactions from the log, without a trace in the file.

    Weights that learned them are not changed; adapters that did are named.

    \b
      engrain memory forget 12 13
    """
    with _log() as log:
        wanted = [log.get(id) for id in dict.fromkeys(ids)]
        learned = {name for each in wanted for name in log.adapters_of(each.id)}
        log.forget(*(each.id for each in wanted))
    for each in wanted:
        print(f"forgotten: {each.id}  {output.shorten(each.user)}")
    warn_learned(sorted(learned))


@app.command()
def export(
    path: Annotated[str, typer.Option("--output", "-o", metavar="PATH", help="- for stdout.")] = "-",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """The whole log as JSON lines.

    \b
      engrain memory export -o memory.jsonl
    """
    with _log() as log:
        if path == "-":
            log.export_jsonl(sys.stdout)
            return
        target = Path(path).expanduser().absolute()
        refuse_existing(target, overwrite)
        text = io.StringIO()
        count = log.export_jsonl(text)
        write_atomic(target, text.getvalue())
    output.note(f"{count} interactions in {target}")


@app.command("import")
def import_(
    path: Annotated[str, typer.Argument(metavar="FILE", help="What export wrote; - for stdin.")],
) -> None:
    """Add an export to the log; what is there already is skipped.

    \b
      engrain memory import memory.jsonl
    """
    with _log() as log:
        try:
            if path == "-":
                count = log.import_jsonl(sys.stdin)
            else:
                with Path(path).open(encoding="utf-8") as file:
                    count = log.import_jsonl(file)
        except (OSError, UnicodeDecodeError) as error:
            raise EngrainError(f"{path} can't be read ({error}): give what export wrote") from error
    print(f"{count} interactions added")


def refuse_existing(path: Path, overwrite: bool) -> None:
    """EngrainError when something is there that may not be replaced."""
    taken = any(path.iterdir()) if path.is_dir() else path.exists()
    if taken and not overwrite:
        raise EngrainError(f"{path} is there already: choose another path, or --overwrite")


def _log() -> InteractionLog:
    from engrain.device.interactions import InteractionLog

    return InteractionLog(open_home().interactions)


def _values(log: InteractionLog, interaction: Interaction) -> dict[str, Any]:
    return {**asdict(interaction), "learned_by": log.adapters_of(interaction.id)}


def _show_many(log: InteractionLog, interactions: Iterable[Interaction], json_: bool) -> None:
    found = [_values(log, interaction) for interaction in interactions]
    if json_:
        output.as_json(found)
    elif not found:
        output.note("nothing: `engrain chat` fills the log")
    else:
        rows = [
            (
                each["id"],
                output.date(each["time"]),
                output.shorten(each["user"], 48),
                output.shorten(each["correction"] or each["reply"], 32),
                "corrected" if each["correction"] else _MARKS[each["feedback"]],
                ", ".join(each["learned_by"][-1:]),
            )
            for each in found
        ]
        output.table(("id", "time", "you said", "reply", "rating", "learned by"), rows)
