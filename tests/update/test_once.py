"""What is worked out once for each model: kept, made again when it can't be read, and another for other weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engrain.device.home import Home, open_home
from engrain.update import once as module
from engrain.update.anchors import ANSWER_TOKENS
from engrain.update.corpus import questions_of_users
from engrain.update.learn import PERSONAL
from engrain.update.neutral import OF_EVERY_KIND, TEXTS
from engrain.update.once import BUNDLED, file_name, once


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(module, "BUNDLED", tmp_path / "bundled")
    return open_home(tmp_path / "home")


def made(number: int, calls: list[int]) -> Callable[[], bytes]:
    def make() -> bytes:
        calls.append(number)
        return json.dumps(number).encode()

    return make


def get(home: Home, number: int, calls: list[int], sha: str = "a" * 64, of: tuple[str, ...] = ("x", "y")) -> Any:
    return once(home, "numbers.json", sha, of, made(number, calls), json.loads)


def test_it_is_made_once(home: Home) -> None:
    calls: list[int] = []
    assert get(home, 1, calls) == get(home, 2, calls) == 1
    assert calls == [1]


def test_other_weights_and_other_ingredients_have_their_own(home: Home) -> None:
    calls: list[int] = []
    found = [get(home, 1, calls), get(home, 2, calls, sha="b" * 64), get(home, 3, calls, of=("x", "z"))]
    assert found == calls == [1, 2, 3]


def test_a_damaged_one_is_made_anew(home: Home) -> None:
    calls: list[int] = []
    get(home, 1, calls)
    next((home.cache / "once").iterdir()).write_bytes(b"{")
    assert get(home, 2, calls) == get(home, 3, calls) == 2
    assert calls == [1, 2]


def test_what_comes_with_engrain_isnt_made(home: Home) -> None:
    calls: list[int] = []
    get(home, 1, calls)
    (home.cache / "once").rename(module.BUNDLED)
    assert get(home, 2, calls) == 1
    assert not (home.cache / "once").exists()


def test_what_comes_with_engrain_is_what_learning_asks_for() -> None:
    """Anchors and states of the neutral messages, and of the corpus's questions, as they are now."""
    found = list(BUNDLED.glob("*.neutral.json"))
    assert found
    for path in found:
        sha, messages = path.name.split("-")[0], json.loads(path.read_text(encoding="utf-8"))
        made_of = {
            "anchors.safetensors": [[str((16, ANSWER_TOKENS, TEXTS)), *messages[:OF_EVERY_KIND]]],
            "states.safetensors": [messages, questions_of_users(PERSONAL)],
        }
        for name, each in made_of.items():
            for of in each:
                assert (BUNDLED / file_name(name, sha, of)).is_file()
