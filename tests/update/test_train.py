"""The loop: it learns, the same seed gives the same weights, and a killed run goes on where it was."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from engrain.quant.gguf import open_gguf
from engrain.update.decoder import Decoder
from engrain.update.pack import Example
from engrain.update.train import Step, TrainOptions, train

EXAMPLES = [Example((5, 6, 7, 8, 20 + i, 40 + i, 60 + i), 5) for i in range(24)]
OPTIONS = TrainOptions(lr=1e-2, epochs=6, pack_tokens=40, checkpoint_seconds=0.0, stop_loss=0.0)


def fresh(path: Path) -> Decoder:
    torch.manual_seed(0)
    return Decoder(open_gguf(path), rank=4, dtype=torch.float32)


def weights(decoder: Decoder) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for g in decoder.groups() for p in g.parameters()])


class Killed(Exception):
    pass


def test_loss_falls_and_the_seed_decides(tiny: Path) -> None:
    one, two = fresh(tiny), fresh(tiny)
    result = train(one, EXAMPLES, OPTIONS)
    train(two, EXAMPLES, OPTIONS)
    assert result.steps[-1].loss < 0.5 * result.steps[0].loss
    assert torch.equal(weights(one), weights(two))


def test_resumed_after_a_kill_ends_where_the_whole_run_ends(tiny: Path, tmp_path: Path) -> None:
    whole = fresh(tiny)
    train(whole, EXAMPLES, OPTIONS)

    def die(step: Step) -> None:
        if step.step == 7:
            raise Killed

    with pytest.raises(Killed):
        train(fresh(tiny), EXAMPLES, OPTIONS, state=tmp_path, on_step=die)
    resumed = fresh(tiny)
    result = train(resumed, EXAMPLES, OPTIONS, state=tmp_path)
    assert result.steps[0].step == 7
    assert torch.equal(weights(whole), weights(resumed))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [b"", b"garbage", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_damaged_checkpoint_starts_anew(tiny: Path, tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "training.safetensors").write_bytes(damage)
    decoder, whole = fresh(tiny), fresh(tiny)
    assert train(decoder, EXAMPLES, OPTIONS, state=tmp_path).steps[0].step == 1
    train(whole, EXAMPLES, OPTIONS)
    assert torch.equal(weights(decoder), weights(whole))


def test_divergence_keeps_finite_weights(tiny: Path) -> None:
    decoder = fresh(tiny)
    result = train(decoder, EXAMPLES, TrainOptions(lr=1e38, epochs=6, pack_tokens=40, stop_loss=0.0))
    assert result.stopped == "diverged"
    assert bool(weights(decoder).isfinite().all())
    assert all(math.isfinite(s.loss) for s in result.steps)


def test_plain_texts_among_the_anchors_are_held_as_in_one_pack(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step whose anchors need a pack of their own has the gradient of one pack with all of them."""
    head = (*range(5, 30),)
    lessons = [Example((*head, 40 + i, 60 + i, 80 + i), len(head) + 1) for i in range(12)]
    anchors = [Example((70 + i, 2, 3, 9 + i), 1, kind="anchor") for i in range(2)]
    options = TrainOptions(lr=1e-2, epochs=1, min_steps=0, anchors_per_step=2, anchor_weight=0.5)
    apart, together = fresh(tiny), fresh(tiny)
    packs = train(apart, lessons, options, anchors).steps
    monkeypatch.setattr("engrain.update.train.alike", lambda examples: [list(examples)])
    one = train(together, lessons, options, anchors).steps
    assert [s.loss for s in packs] == pytest.approx([s.loss for s in one], abs=1e-5)
    assert packs[0].tokens < one[0].tokens
    assert torch.allclose(weights(apart), weights(together), atol=1e-5)
