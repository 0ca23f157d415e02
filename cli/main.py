"""The `engrain` command: its subcommands, and errors as one line."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from engrain.cli import adapter, bench, chat, demo, doctor, learn, memory, model
from engrain.quant.errors import EngrainError

_HELP = """Your own quantised model learns from what you say to it, on this machine.

\b
  engrain chat               talk; everything is kept in the log
  engrain learn              compress what is new into a small adapter
  engrain ask "…"            ask in a new process: it remembers, with nothing in the prompt
"""

app = typer.Typer(
    name="engrain",
    help=_HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("chat")(chat.chat)
app.command("ask")(chat.ask)
app.command("learn")(learn.learn)
app.add_typer(memory.app, name="memory")
app.add_typer(adapter.app, name="adapter")
app.add_typer(model.app, name="model")
app.add_typer(bench.app, name="bench")
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"engrain {version('engrain')}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit status: 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C."""
    arguments, debug = _take_debug(arguments)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        # A terminal or a pipe in another encoding must not turn an answer into an error.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        typer.main.get_command(app).main(args=list(arguments), prog_name="engrain")
    except SystemExit as stopped:
        return _flushed(stopped.code if isinstance(stopped.code, int) else 0)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return _hushed()
    except Exception as error:
        if debug:
            raise
        known = isinstance(error, EngrainError)
        reason = str(error) if known else f"{type(error).__name__}: {error} (`--debug` shows where)"
        print("error: " + " ".join(reason.split()), file=sys.stderr)
        return 1
    return _flushed(0)


def _take_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """`--debug` may stand anywhere before a `--`."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    options = [argument for argument in arguments[:end] if argument != "--debug"]
    debug = len(options) < end or os.environ.get("ENGRAIN_DEBUG", "") not in ("", "0")
    return [*options, *arguments[end:]], debug


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _hushed()
    return code


def _hushed() -> int:
    """The reader of our output is gone: keep the interpreter from complaining as it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def main() -> None:
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
