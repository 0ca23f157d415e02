"""The LoRA adapter that answers: at most one, with its scope, on a runtime's main context."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engrain.device.context import Context
from engrain.device.llama_model import LlamaModel, ModelError, free_adapter, log
from engrain.device.prefix_cache import PrefixCache
from engrain.device.scope import Scope


@dataclass(frozen=True)
class _Attached:
    """A LoRA adapter that llama.cpp has loaded, and what it is about."""

    pointer: Any
    scale: float
    name: str
    scope: Scope | None


class AdapterSlot:
    """Room for one adapter. The main context serves with it; other contexts get it by `apply`."""

    def __init__(self, model: LlamaModel, main: PrefixCache) -> None:
        self._model, self._main = model, main
        self._attached: _Attached | None = None
        self.serving = True  # whether the attached adapter answers, or for now the base model alone

    @property
    def name(self) -> str | None:
        return None if self._attached is None else self._attached.name

    @property
    def scope(self) -> Scope | None:
        return None if self._attached is None else self._attached.scope

    def attach(self, path: Path, scale: float, name: str, scope: Scope | None) -> None:
        """Serve with this GGUF LoRA in place of any before. If llama.cpp refuses: ModelError, no change."""
        self._model.check_open()
        if not path.is_file():
            raise ModelError(f"there is no adapter file {path}")
        pointer = self._model.load_adapter(path)
        if not pointer:
            raise ModelError(f"llama.cpp can't load the adapter {path}: {log.reason()}")
        if scope is not None and scope.width != self._model.n_embd:
            scope = None
        before, self._attached = self._attached, _Attached(pointer, scale, name, scope)
        served, self.serving = self.serving, True
        if not self.apply(self._main, self.serving):
            self._attached, self.serving = before, served
            self.apply(self._main, self.serving)
            free_adapter(pointer)
            raise ModelError(f"llama.cpp can't attach the adapter {path}: {log.reason()}")
        if before is not None:
            free_adapter(before.pointer)  # only now: no context refers to it any more

    def detach(self) -> None:
        """Serve the base model alone."""
        self._model.check_open()
        before, self._attached = self._attached, None
        self.serving = True
        if before is not None:
            self.apply(self._main, self.serving)
            free_adapter(before.pointer)

    def serve(self, adapted: bool) -> None:
        """Answer with the attached adapter, or for now without it; `attach` turns it on."""
        self._model.check_open()
        if adapted != self.serving:
            self.serving = adapted
            if self._attached is not None:
                self.apply(self._main, self.serving)

    def apply(self, context: Context | PrefixCache, adapted: bool) -> bool:
        """Let a context serve with the attached adapter, or without any; False if llama.cpp refuses."""
        if self._attached is None or not adapted:
            return context.set_adapter(None, 0.0)
        return context.set_adapter(self._attached.pointer, self._attached.scale)
