"""`engrain demo` on the starter model."""

import json
from itertools import pairwise

import pytest

from engrain.cli.demo import GOAL, STATEMENTS
from engrain.cli.main import run


def test_no_question_gives_its_answer_away():
    for statement in STATEMENTS:
        for question in statement.questions:
            assert not any(accepted in question.text.lower() for accepted in question.accept)
            assert any(accepted in statement.said.lower() for accepted in question.accept)
        assert all(first.text != second.text for first, second in pairwise(statement.questions))


def test_keep_wants_an_empty_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert run(["demo", "--keep", str(tmp_path)]) == 1
    assert "empty folder" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_remembers(tmp_path, capsys):
    assert run(["demo", "--json", "--keep", str(tmp_path / "demo")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["recall"] >= GOAL and result["right_before"] <= result["right"]
    assert result["prompt_tokens_after"] == result["prompt_tokens_before"]
