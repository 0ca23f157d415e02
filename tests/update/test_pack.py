"""Which examples share a pack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engrain.update.pack import LONG_HEAD, Example, alike, pack_examples, plan_packs, shared_prefix

HEAD = (*range(100, 100 + LONG_HEAD + 8),)  # as of a chat template


def chat(tail: tuple[int, ...]) -> Example:
    return Example(HEAD + tail, len(HEAD) + 1)


tails = st.lists(st.integers(0, 50), min_size=2, max_size=9).map(tuple)


@given(st.lists(tails, max_size=12), st.lists(tails, max_size=6))
def test_each_example_is_in_one_part_in_its_order(chats: list[tuple[int, ...]], plain: list[tuple[int, ...]]) -> None:
    examples = [*map(chat, chats), *(Example(tokens, 1) for tokens in plain)]
    parts = alike(examples)
    assert sorted(id(e) for part in parts for e in part) == sorted(map(id, examples))
    place = {id(e): i for i, e in enumerate(examples)}
    assert all([place[id(e)] for e in part] == sorted(place[id(e)] for e in part) for part in parts)


@given(st.lists(tails, min_size=4, max_size=12), st.lists(tails, min_size=1, max_size=3))
def test_plain_texts_dont_cost_the_others_their_head(
    chats: list[tuple[int, ...]], plain: list[tuple[int, ...]]
) -> None:
    near, rest = alike([*map(chat, chats), *(Example(tokens, 1) for tokens in plain)])
    assert (len(near), len(rest)) == (len(chats), len(plain))
    assert shared_prefix(near) >= len(HEAD)
    groups = plan_packs([*near, *rest], 200)
    assert all(pack_examples(g).prefix >= len(HEAD) for g in groups if g[0].tokens[0] == HEAD[0])


@pytest.mark.parametrize("count", [1, 5])
def test_what_begins_alike_stays_together(count: int) -> None:
    assert len(alike([chat((i, 1)) for i in range(count)])) == 1
    assert len(alike([Example((i, 2, 3), 1) for i in range(count)])) == 1


def test_plan_keeps_every_example_once() -> None:
    rng = np.random.default_rng(0)
    examples = [Example(tuple(range(5)) + tuple(rng.integers(0, 50, n)), 5) for n in rng.integers(2, 30, 60)]
    groups = plan_packs(examples, 200, torch.Generator().manual_seed(3))
    assert sorted(map(id, examples)) == sorted(id(e) for g in groups for e in g)
