"""What is worked out once for each model, from its weights alone: neutral messages, anchors, hidden states.

It is kept in the data folder; for SmolLM2 it comes with engrain, in `update/bundled`. To renew that: take its files
away, learn in an empty data folder, and copy what then lies in that folder's cache/once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from engrain.device.home import Home, write_atomic

BUNDLED = Path(__file__).with_name("bundled")

T = TypeVar("T")


def once(
    home: Home, name: str, model_sha: str, made_of: Sequence[str], make: Callable[[], bytes], read: Callable[[bytes], T]
) -> T:
    """What `read` makes of the file of that name for the model, made now if there is none that can be read.

    made_of: all that it depends on besides the model's weights. What can't be read makes `read` raise ValueError,
    KeyError or SafetensorError.
    """
    own = home.cache / "once" / file_name(name, model_sha, made_of)
    for path in (own, BUNDLED / own.name):
        try:
            return read(path.read_bytes())
        except (OSError, ValueError, KeyError, SafetensorError):
            continue
    content = make()
    own.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(own, content)
    return read(content)


def file_name(name: str, model_sha: str, made_of: Sequence[str]) -> str:
    """That of a file: other weights and other ingredients have another."""
    key = hashlib.sha256("\n".join(made_of).encode()).hexdigest()
    return f"{model_sha[:16]}-{key[:16]}.{name}"
