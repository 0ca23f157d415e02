"""What thumbs and corrections become."""

from __future__ import annotations

from pathlib import Path

import pytest

from engrain.device.interactions import Interaction, InteractionLog
from engrain.device.runtime import Runtime
from engrain.quant.gguf import open_gguf
from engrain.update.decoder import Decoder
from engrain.update.feedback import lessons_of_feedback, preferences_of


@pytest.fixture
def said(tmp_path: Path) -> list[Interaction]:
    """A correction, a liked reply, a disliked one, and one without feedback."""
    with InteractionLog(tmp_path / "log.db") as log:
        ids = [log.record("c", f"What is it? {i}", f"It is {i}.", model="ab" * 32) for i in range(4)]
        log.correct(ids[0], "It is another.")
        log.rate(ids[1], 1)
        log.rate(ids[2], -1)
        return sorted(log.list(), key=lambda it: it.id)


def test_every_feedback_teaches_its_way(said: list[Interaction], tiny: Path) -> None:
    corrected, liked, disliked, _ = said
    with Runtime.load(tiny) as runtime:
        lessons = lessons_of_feedback(runtime, Decoder(open_gguf(tiny)), said)
        preferences = preferences_of(runtime, lessons)
        found = {(lesson.kind, lesson.question, lesson.answer, lesson.source) for lesson in lessons}
        assert found == {
            ("correction", corrected.user, "It is another.", (corrected.id,)),
            ("disliked", corrected.user, corrected.reply, (corrected.id,)),
            ("liked", liked.user, liked.reply, (liked.id,)),
            ("disliked", disliked.user, disliked.reply, (disliked.id,)),
        }
        replies = [[runtime.detokenize(e.tokens[e.start :]).strip() for e in p.examples] for p in preferences]
    assert replies == [["It is another.", corrected.reply], [disliked.reply]]
