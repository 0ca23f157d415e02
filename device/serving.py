"""Put an adapter version on a runtime: its derived GGUF, its scope, and the tutor that weighs its replies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from engrain.device.scope import read_scope
from engrain.device.tutor import tutor_path
from engrain.quant.errors import EngrainError

if TYPE_CHECKING:
    from engrain.device.registry import Registry, Version
    from engrain.device.runtime import Runtime


def attach(runtime: Runtime, registry: Registry, version: Version) -> None:
    """Attach a version's derived GGUF with its scope; a damaged one is built again from the safetensors."""
    path, scope = registry.gguf(version), read_scope(version.folder)
    try:
        runtime.use_tutor(tutor_path(registry.home, version.base))
    except EngrainError:
        runtime.use_tutor(None)  # the next learning makes it anew
    try:
        runtime.attach(path, name=version.name, scope=scope)
    except EngrainError:
        path.unlink(missing_ok=True)
        runtime.attach(registry.gguf(version), name=version.name, scope=scope)


@contextmanager
def attached(runtime: Runtime, registry: Registry, version: Version | None) -> Iterator[None]:
    """The runtime with this version, or bare, meanwhile; bare afterwards."""
    try:
        if version:
            attach(runtime, registry, version)
        yield
    finally:
        runtime.detach()
