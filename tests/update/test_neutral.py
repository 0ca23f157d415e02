"""Messages that aren't about the user: the model's own, or for a model that writes none another's."""

from __future__ import annotations

import json
from pathlib import Path

from engrain.device.home import open_home
from engrain.device.runtime import Runtime
from engrain.quant.gguf import open_gguf
from engrain.update.decoder import Decoder
from engrain.update.neutral import neutral_messages
from engrain.update.once import BUNDLED

from ..tiny import build_tiny_gguf


def messages_of(path: Path, data: Path) -> list[str]:
    with Runtime.load(path, n_ctx=256) as runtime:
        return neutral_messages(open_home(data), runtime, Decoder(open_gguf(path)), path.stem * 16)


def test_a_model_without_a_template_takes_those_that_come_with_engrain(tmp_path: Path) -> None:
    chats, bare = (build_tiny_gguf(tmp_path / f"{t}.gguf", template=t) for t in (True, False))
    written = [json.loads(path.read_text(encoding="utf-8")) for path in BUNDLED.glob("*.neutral.json")]
    assert messages_of(bare, tmp_path / "bare") in written
    own = messages_of(chats, tmp_path / "chats")
    assert own and own not in written and own == messages_of(chats, tmp_path / "again")
