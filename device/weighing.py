"""What weighs texts for a runtime: the base model, and its tutor. Each has a context that nothing else uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engrain.device.context import Context
from engrain.device.judge import CELLS, SEQUENCES, Judge
from engrain.device.llama_model import LlamaModel, ModelError, free_adapter, log

# Prompts, a target after each, what may follow it (token ids): as `Judge.weigh`.
Weigh = Callable[[Sequence[Sequence[int]], Sequence[int], Sequence[int]], tuple[np.ndarray, np.ndarray]]


@dataclass
class _Tutor:
    """A loaded tutor (`device.tutor`), and the context that it alone serves, made when it is first asked."""

    path: Path
    pointer: Any
    context: Context | None = None
    judge: Judge | None = None


class Weighing:
    """The judge's context and the tutor's, made when they are first asked. The attached adapter is in neither."""

    def __init__(self, model: LlamaModel) -> None:
        self._model = model
        self._bare: Context | None = None  # never has an adapter
        self._judge: Judge | None = None
        self._tutor: _Tutor | None = None
        self._other: Weigh | None = None  # in the tutor's place

    def likelihoods(
        self, head: Sequence[int], prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """As `Judge.likelihoods`, under the base model: log-probabilities (prompts, targets) in nats."""
        self._model.check_open()
        if self._judge is None:
            self._bare = Context(self._model, CELLS, SEQUENCES)
            self._judge = Judge(self._bare)
        return self._judge.likelihoods(head, prompts, targets)

    @property
    def has_tutor(self) -> bool:
        return self._tutor is not None

    def use_tutor(self, path: Path | None) -> None:
        """Weigh with this GGUF LoRA from now on; None for none. ModelError, and none, if llama.cpp refuses it."""
        self._model.check_open()
        if self._tutor is not None:
            if path == self._tutor.path:
                return
            if self._tutor.context is not None:
                self._tutor.context.close()
            free_adapter(self._tutor.pointer)
            self._tutor = None
        if path is None:
            return
        pointer = self._model.load_adapter(path)
        if not pointer:
            raise ModelError(f"llama.cpp can't load the tutor {path}: {log.reason()}; delete it")
        self._tutor = _Tutor(path, pointer)

    def weigh(
        self, prompts: Sequence[Sequence[int]], target: Sequence[int], choices: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Judge.weigh`, by the tutor. ModelError without one."""
        self._model.check_open()
        if self._other:
            return self._other(prompts, target, choices)
        tutor = self._tutor
        if tutor is None:
            raise ModelError(f"{self._model.path.name} has no tutor to weigh with")
        if tutor.judge is None:
            context = Context(self._model, CELLS, SEQUENCES)
            if not context.set_adapter(tutor.pointer, 1.0):
                context.close()
                raise ModelError(f"llama.cpp can't attach the tutor {tutor.path}: {log.reason()}; delete it")
            tutor.context, tutor.judge = context, Judge(context)
        return tutor.judge.weigh(prompts, target, choices)

    def weigh_by(self, weigh: Weigh | None) -> None:
        """From now on with another in the tutor's place that weighs as it does; None: with the tutor itself."""
        self._other = weigh

    def close(self) -> None:
        self.use_tutor(None)
        if self._bare is not None:
            self._bare.close()
