"""What a command that talks to the model needs: the data folder, the model, and the adapter on it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from engrain.cli import output
from engrain.device import home as homes
from engrain.quant.errors import EngrainError

if TYPE_CHECKING:  # imported when used: `--help` and the lists must not wait for llama.cpp
    from engrain.device.models import ModelFile
    from engrain.device.registry import Registry
    from engrain.device.runtime import Runtime

NO_ADAPTER = "none"

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", metavar="NAME", help="A model by name or path.")]
AdapterOption = Annotated[
    str | None,
    typer.Option("--adapter", metavar="NAME|none", help="An adapter version, or none for the base model."),
]


@dataclass
class Session:
    """An open model, with the adapter that serves."""

    home: homes.Home
    settings: homes.Settings
    model: ModelFile
    model_sha: str
    runtime: Runtime
    registry: Registry

    def switch(self, name: str) -> str | None:
        """Serve with another adapter version, or none; its full name."""
        if name == NO_ADAPTER:
            self.runtime.detach()
            return None
        from engrain.device.registry import sound

        version = sound(self.registry.get(name))
        if version.base != self.model_sha:
            raise EngrainError(
                f"adapter {version.name} is for another model than {self.model.name}: choose it with --model"
            )
        from engrain.device.serving import attach

        attach(self.runtime, self.registry, version)
        return version.name


@contextlib.contextmanager
def open_session(
    home: homes.Home, model: str | None = None, adapter: str | None = None, n_ctx: int | None = None
) -> Iterator[Session]:
    """Load the model with the adapter of that name; by default the current one, verified."""
    from engrain.device import models
    from engrain.device.registry import Registry

    settings = homes.load_settings(home)
    chosen = models.resolve(home, model)
    sha = models.sha256(home, chosen.path)
    from engrain.device.runtime import Runtime

    with Runtime.load(chosen.path, n_ctx=n_ctx or settings.n_ctx) as runtime:
        session = Session(home, settings, chosen, sha, runtime, Registry(home))
        if adapter is not None:
            session.switch(adapter)
        else:
            _attach_current(session)
        yield session


def _attach_current(session: Session) -> None:
    version, warning = session.registry.verified_current(session.model_sha)
    if warning:
        output.note(f"warning: {warning}")
    if version is not None:
        from engrain.device.serving import attach

        try:
            attach(session.runtime, session.registry, version)
        except EngrainError as error:
            output.note(f"warning: {error}: going on without an adapter")


def piped_text() -> str:
    """What was piped or redirected into this process, "" for a terminal or nothing."""
    stream = sys.stdin
    if stream is None or stream.closed or stream.isatty():
        return ""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # not a file of the system: a test's buffer, say
        return stream.read()
    if not _may_hold_text(descriptor):
        return ""
    try:
        return stream.read()
    except OSError:  # inherited, but not for reading
        return ""


def _may_hold_text(descriptor: int) -> bool:
    """Whether it is a pipe or a file: what services and CI hand down (null device, sockets) never ends."""
    import os
    import select
    import stat

    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode):
            return True
        if not stat.S_ISFIFO(mode):
            return False
        if os.name != "nt" and not select.select([descriptor], [], [], 2.0)[0]:
            output.note("waiting for the text that is piped in (without any: `< /dev/null`)")
    except (OSError, ValueError):
        return False
    return True
