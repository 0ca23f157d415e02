"""The speed benchmark's arithmetic: the operations that training needs, counted against a plain count."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from engrain.device.runtime import Runtime
from engrain.quant.gguf import open_gguf
from engrain.quant.names import is_feed_forward, is_linear
from engrain.update import speed_bench
from engrain.update.decoder import Decoder
from engrain.update.pack import Example, pack_examples, plan_packs
from engrain.update.recorded import Gradient
from engrain.update.study import to_examples
from engrain.update.train import TrainOptions, TrainResult, train


def test_pairs_are_the_same_every_time_and_all_different() -> None:
    pairs = speed_bench.make_pairs(50, seed=3)
    assert pairs == speed_bench.make_pairs(50, seed=3) != speed_bench.make_pairs(50, seed=4)
    assert len({pair.question for pair in pairs}) == 50


def test_needed_operations_without_an_adapter_are_one_forward_and_the_head(tiny: Path) -> None:
    gguf = open_gguf(tiny)
    with Runtime.load(tiny) as runtime:
        pack = pack_examples(to_examples(runtime, speed_bench.make_pairs(4)))
    weights = sum(t.shape[0] * t.shape[1] for n, t in gguf.tensors.items() if is_linear(n))
    rows = pack.prefix + sum(len(e.tokens) - 1 - pack.prefix for e in pack.examples)
    head = gguf.hyper.n_embd * gguf.hyper.n_vocab * len(pack.target_ids)
    bare = speed_bench.build(gguf, 0, 0)
    assert speed_bench.needed_flop(bare, [pack]) == 2 * weights * rows + 2 * head


def test_an_adapter_on_top_needs_less_than_one_everywhere(tiny: Path) -> None:
    gguf = open_gguf(tiny)
    with Runtime.load(tiny) as runtime:
        packs = [pack_examples(to_examples(runtime, speed_bench.make_pairs(4)))]
    work = [speed_bench.needed_flop(Decoder(gguf, 4, first_layer=first), packs) for first in (0, 1)]
    bare = speed_bench.needed_flop(speed_bench.build(gguf, 0, 0), packs)
    assert bare < work[1] < work[0] < 3 * bare


def test_needed_operations_with_adapters_on_the_feed_forward(tiny: Path) -> None:
    gguf = open_gguf(tiny)
    with Runtime.load(tiny) as runtime:
        pack = pack_examples(to_examples(runtime, speed_bench.make_pairs(4)))
    rows = pack.prefix + sum(len(e.tokens) - 1 - pack.prefix for e in pack.examples)
    head = gguf.hyper.n_embd * gguf.hyper.n_vocab * len(pack.target_ids)
    for first in (0, 1):
        needed = 4 * head
        for name in (n for n in gguf.tensors if is_linear(n) and int(n.split(".")[1]) >= first):
            n_in, n_out = gguf.tensors[name].shape[::-1]
            # Behind an adapter: all above its layer, and the product that goes down from what it was added to.
            behind = int(name.split(".")[1]) > first or "ffn_down" in name
            needed += 2 * n_in * n_out * rows * (1 + behind)
            if is_feed_forward(name):  # there and back, the weights' own gradients, and on to the input
                needed += 2 * 4 * rows * (2 * (n_in + n_out) + n_out + n_in * behind)
        assert speed_bench.needed_flop(speed_bench.build(gguf, 4, first), [pack]) == needed


def test_a_pass_trains_on_every_pair_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Runtime.load(tiny) as runtime:
        examples = to_examples(runtime, speed_bench.make_pairs(6))
    trained: list[int] = []

    def watched(
        decoder: Decoder, examples: Sequence[Example], options: TrainOptions, gradient: Gradient
    ) -> TrainResult:
        done = train(decoder, examples, options, gradient=gradient)
        trained.append(sum(step.tokens for step in done.steps))
        return done

    monkeypatch.setattr(speed_bench, "train", watched)
    gradient = Gradient(speed_bench.build(open_gguf(tiny), 4, 0))
    passes, _ = speed_bench.train_passes(gradient, examples, 0.0)
    assert passes == 1
    assert trained == [sum(len(pack_examples(g).tokens) for g in plan_packs(examples, TrainOptions().pack_tokens))]
