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
from engrain.cli.session import JsonOption
from engrain.device.home import Home, open_home, write_atomic
from engrain.quant.errors import EngrainError

if TYPE_CHECKING:
    from engrain.device.interactions import Interaction, InteractionLog
    from engrain.device.registry import Registry

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
    what: Annotated[
        list[str], typer.Argument(metavar="ID|TEXT…", help="Ids as `engrain memory list` shows them, or words said.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask before forgetting what a text finds.")] = False,
    later: Annotated[
        bool, typer.Option("--later", help="Leave the weights to the next `engrain learn`; serve an older version.")
    ] = False,
) -> None:
    """Remove interactions from the log and, if they were learned, from the weights.

    The log keeps no trace in its file. Where the adapter in use learned them, one is trained anew from all that is
    left, and has never seen them. Older versions that hold them are named, so that you can delete them.

    \b
      engrain memory forget 12 13
      engrain memory forget "my old address"
    """
    home = open_home()
    from engrain.device.registry import Registry

    with _log() as log:
        wanted = _find(log, what)
        for each in wanted:
            output.note(f"{each.id}  {output.shorten(each.user)}")
        if not yes and not all(w.isdigit() for w in what) and not _agreed(f"forget {len(wanted)}?"):
            output.note("kept")
            return
        log.forget(*(each.id for each in wanted))
    for each in wanted:
        print(f"forgotten: {each.id}  {output.shorten(each.user)}")
    registry = Registry(home)
    holders = registry.holders([each.id for each in wanted])
    if not holders:
        return
    if registry.current_name() in holders:
        _relearn(home, registry, holders, later)
    output.note(f"still holding it, on disk: {', '.join(holders)}: `engrain adapter remove NAME` deletes one")


def _find(log: InteractionLog, what: Iterable[str]) -> list[Interaction]:
    """The interactions that ids or texts name, each once."""
    found: dict[int, Interaction] = {}
    for each in what:
        hits = [log.get(int(each))] if each.isdigit() else log.search(each, limit=1000)
        if not hits:
            raise EngrainError(f"the log has nothing about {each!r}")
        found.update((hit.id, hit) for hit in hits)
    return list(found.values())


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise EngrainError("add --yes to forget what a text finds")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _relearn(home: Home, registry: Registry, holders: list[str], later: bool) -> None:
    """Take the holders out of use, and train a version that hasn't seen what was forgotten.

    The learner reads from the version in use what was taught, so that stays current until its successor is there;
    with `later` it goes out of use at once, and all that is left counts as not learned.
    """
    if later:
        clean = registry.newest(registry.get(registry.current_name() or "").base, without=holders)
        registry.use(clean.name if clean else None)
        output.note(f"in use: {registry.current_name() or 'no adapter'}; `engrain learn` learns again what is left")
        return
    from engrain.cli.learn import learn_once
    from engrain.device import models
    from engrain.update.learn import LearnOptions

    output.note("learning again without it")
    outcome = learn_once(home, models.resolve(home, None), LearnOptions(), json_=False)
    if outcome.status == "rejected":
        registry.use(None)
        output.note("the new adapter did not pass its checks: no adapter is in use; try `engrain learn --force`")


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
