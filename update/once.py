"""What is worked out once for each model, from its weights alone: neutral messages, anchors, hidden states.

It is kept in the data folder; for the models that come as packages it comes with engrain, in `update/once`. To renew
that: take its files away, learn in an empty data folder, and copy what then lies in that folder's cache/once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from engrain.device.home import Home, write_atomic

BUNDLED = Path(__file__).with_name("once")

T = TypeVar("T")


def once(
    home: Home, name: str, model_sha: str, made_of: Sequence[str], make: Callable[[], bytes], read: Callable[[bytes], T]
) -> T:
    """What `read` makes of the file of that name for the model, made now if there is none that can be read.

    made_of: all that it depends on besides the model's weights. What can't be read makes `read` raise ValueError,
    KeyError or SafetensorError.
    """
    key = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]
    folders = home.cache / "once", BUNDLED
    for folder in folders:
        try:
            return read((folder / f"{model_sha[:16]}-{key}.{name}").read_bytes())
        except (OSError, ValueError, KeyError, SafetensorError):
            continue
    content = make()
    folders[0].mkdir(parents=True, exist_ok=True)
    write_atomic(folders[0] / f"{model_sha[:16]}-{key}.{name}", content)
    return read(content)
