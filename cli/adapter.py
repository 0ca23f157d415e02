"""`engrain adapter`: the versions of what was learned."""

from __future__ import annotations

import json
import shutil
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engrain.cli import output
from engrain.cli.memory import refuse_existing
from engrain.cli.session import NO_ADAPTER, JsonOption
from engrain.device.home import cannot_write, open_home, write_atomic
from engrain.quant.errors import EngrainError

if TYPE_CHECKING:
    from engrain.device.registry import Registry, Version

app = typer.Typer(help="Adapter versions: what was learned, as files.", no_args_is_help=True, rich_markup_mode=None)
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="A version's name, its number, or how its name begins.")
]


class Format(str, Enum):
    peft = "peft"
    gguf = "gguf"


@app.command("list")
def list_(json_: JsonOption = False) -> None:
    """All versions, oldest first.

    \b
      engrain adapter list
    """
    registry = _registry()
    current = registry.current_name()
    versions = [_row(version, current) for version in registry.list()]
    if json_:
        output.as_json({"current": current, "adapters": versions})
    elif not versions:
        output.note("no adapter yet: `engrain chat`, then `engrain learn`")
    else:
        rows = [
            (
                "*" if row["current"] else "",
                row["name"],
                output.date(row["created"]) if row["created"] else "-",
                row["base_name"] or row["base"][:8] or "-",
                row["interactions"],
                output.size(row["size_bytes"]),
                row["problem"] or "",
            )
            for row in versions
        ]
        output.table(("", "name", "created", "base", "interactions", "size", "problem"), rows)


@app.command()
def show(name: NameArgument, json_: JsonOption = False) -> None:
    """One version: its base, what it learned from, how it was trained and checked.

    \b
      engrain adapter show 3
    """
    from engrain.device.registry import metadata_value
    from engrain.device.scope import read_scope

    registry = _registry()
    version = registry.get(name)
    values = _row(version, registry.current_name())
    values["path"] = str(version.folder)
    values["sha256"] = version.sha256
    values["scope"] = "its own" if read_scope(version.folder) else "always on"
    for key in ("interactions", "training", "gate"):
        values[key] = metadata_value(version.metadata, key)
    if json_:
        output.as_json(values)
        return
    values["created"] = output.date(version.created) if version.created else None
    values["size_bytes"] = output.size(values["size_bytes"])
    output.pairs({key: json.dumps(value) if isinstance(value, dict | list) else value for key, value in values.items()})


@app.command()
def use(name: NameArgument) -> None:
    """Serve with this version from now on, or with none.

    \b
      engrain adapter use 2
      engrain adapter use none
    """
    version = _registry().use(None if name == NO_ADAPTER else name)
    print(f"in use: {version.name if version else NO_ADAPTER}")


@app.command()
def rollback() -> None:
    """Go back to the version that was in use before.

    \b
      engrain adapter rollback
    """
    version = _registry().rollback()
    print(f"in use: {version.name if version else NO_ADAPTER}")


@app.command()
def export(
    name: NameArgument,
    path: Annotated[Path, typer.Option("--output", "-o", metavar="PATH", help="The file, or folder for peft.")],
    to: Annotated[Format, typer.Option("--to", help="peft: a folder; gguf: a file for llama.cpp.")] = Format.peft,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Copy a version out, for PEFT or for llama.cpp. Elsewhere it is always on, whatever is asked.

    \b
      engrain adapter export 3 --to peft -o my-adapter
      engrain adapter export 3 --to gguf -o my-adapter.gguf
    """
    from engrain.device.registry import CARD, LESSONS, PROBES, sound

    registry = _registry()
    version = sound(registry.get(name))
    target = path.expanduser().absolute()
    refuse_existing(target, overwrite)
    try:
        if to is Format.gguf:
            write_atomic(target, registry.gguf(version).read_bytes())
        else:
            # Not the lessons, probes and report: they hold what was said, word for word; so do cards of before 0.1.
            told = [LESSONS, PROBES, "report.html", *([] if "engrain.status" in version.metadata else [CARD])]
            others = shutil.ignore_patterns(*told)
            shutil.copytree(version.folder, target, dirs_exist_ok=True, ignore=others)
    except shutil.Error as error:
        raise EngrainError(f"{target} can't be written ({error}): choose another path") from error
    except OSError as error:
        raise cannot_write(target, error) from error
    print(target)


@app.command()
def remove(name: NameArgument) -> None:
    """Delete a version that isn't in use.

    \b
      engrain adapter remove 1
    """
    registry = _registry()
    version = registry.get(name)
    registry.remove(version.name)
    print(f"removed: {version.name}")


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One version; without: all of them.")] = None,
    json_: JsonOption = False,
) -> None:
    """Check that versions are as they were stored and load; exit status 1 if one isn't.

    \b
      engrain adapter verify
    """
    from engrain.device.scope import check_scope
    from engrain.quant.peft import load_peft

    registry = _registry()
    results = []
    for version in [registry.get(name)] if name is not None else registry.list():
        problem = version.problem
        if problem is None:
            try:
                load_peft(version.folder)
                check_scope(version.folder)
            except (EngrainError, ValueError) as error:
                problem = str(error)
        results.append({"name": version.name, "ok": problem is None, "problem": problem})
    if json_:
        output.as_json(results)
    else:
        for result in results:
            print(f"{result['name']}  {output.printable(str(result['problem'] or 'ok'))}")
    if not all(result["ok"] for result in results):
        raise typer.Exit(1)


def _registry() -> Registry:
    from engrain.device.registry import Registry

    return Registry(open_home())


def _row(version: Version, current: str | None) -> dict[str, Any]:
    from engrain.device.registry import metadata_value

    interactions = metadata_value(version.metadata, "interactions")
    return {
        "name": version.name,
        "created": version.created,
        "base": version.base,
        "base_name": version.metadata.get("engrain.base_name", ""),
        "interactions": len(interactions) if isinstance(interactions, list) else 0,
        "parents": list(version.parents),
        "size_bytes": sum(path.stat().st_size for path in version.folder.iterdir() if path.is_file()),
        "current": version.name == current,
        "problem": version.problem,
    }
