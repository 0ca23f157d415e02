"""`ask` and `chat` with a model."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from engrain.cli.main import run
from engrain.device import models
from engrain.device.home import open_home
from engrain.device.interactions import InteractionLog


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path):
    monkeypatch.setenv("ENGRAIN_HOME", str(tmp_path / "home"))
    home = open_home()
    models.use(home, str(tiny))
    return home


@pytest.fixture
def piped(monkeypatch):
    """Sets what is piped in; nothing at first."""

    def pipe(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))

    pipe("")
    return pipe


def logged(home):
    with InteractionLog(home.interactions) as log:
        return log.list()


def test_ask_records_and_appends_what_is_piped(home, piped, capsys):
    piped("one two\n")
    assert run(["ask", "Repeat this:", "--max-tokens", "4"]) == 0
    (interaction,) = logged(home)
    assert interaction.user == "Repeat this:\n\none two"
    assert capsys.readouterr().out.rstrip("\n") == interaction.reply.rstrip("\n")
    assert (interaction.complete, interaction.adapter) == (True, None)


def test_ask_goes_on_with_the_last_conversation(home, piped):
    for arguments in (["Hello"], ["-c", "And you?"], ["Anew"]):
        assert run(["ask", *arguments, "--max-tokens", "2", "--system", "Be brief."]) == 0
    first, second, third = logged(home)
    assert first.conversation == second.conversation != third.conversation
    assert second.system == "Be brief."


def test_ask_without_a_record(home, piped):
    assert run(["ask", "Hello", "--no-record", "--no-notebook", "--adapter", "none", "--max-tokens", "2"]) == 0
    assert logged(home) == []


def test_ask_nothing_is_wrong_usage(piped, capsys):
    assert run(["ask"]) == 2


def test_too_long_a_question_is_one_line(piped, capsys):
    assert run(["ask", "word " * 9000]) == 1
    assert capsys.readouterr().err.startswith("error: the prompt is")


def test_batch(home, piped, capsys):
    piped('{"text": "Hello", "id": 1}\n{"text": "Hello"}\n')
    assert run(["ask", "--batch", "-", "--max-tokens", "4"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {**second, "id": 1}
    assert set(second) == {"text", "answer", "prompt_tokens", "completion_tokens", "adapter"}
    assert second["prompt_tokens"] > 0 and second["adapter"] is None
    assert logged(home) == []


def test_piped_chat_is_one_turn_a_line(home, piped, capsys):
    piped("My cat is Tom.\n\n/good\n/fix Hello, Tom!\n/etc/hosts is a file\n/new\n/system Be brief.\nBye\n")
    assert run(["chat", "--max-tokens", "2"]) == 0
    first, second, third = logged(home)
    assert (first.feedback, first.correction) == (1, "Hello, Tom!")
    assert second.user == "/etc/hosts is a file"
    assert first.conversation == second.conversation != third.conversation
    assert (second.system, third.system) == (None, "Be brief.")


def test_chat_forgets(home, piped, capsys):
    piped("My cat is Zebulon.\nHello\n/forget Zebulon\n")
    assert run(["chat", "--max-tokens", "2"]) == 0
    assert [each.user for each in logged(home)] == ["Hello"]
    assert b"Zebulon" not in home.interactions.read_bytes()


@pytest.mark.parametrize("line", ["/nonsense", "/good", "/fix", "/forget", "/forget nothing", "/adapter 3"])
def test_a_wrong_command_is_told_and_the_chat_goes_on(line, home, piped, capsys):
    piped(f"{line}\nHello\n/quit\nnever said\n")
    assert run(["chat", "--max-tokens", "2"]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert [each.user for each in logged(home)] == ["Hello"]


def test_ask_in_a_new_process_loads_no_torch(home):
    code = (
        "import sys, engrain.cli.main as m; code = m.run(['ask', 'Hello', '--max-tokens', '2']);"
        "sys.exit(code or ', '.join({'torch', 'rich', 'engrain.update'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert logged(home)[0].user == "Hello"


def test_model_show(home, capsys, tiny):
    assert run(["model", "show", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["path"], shown["architecture"]) == (str(tiny), "llama")
    assert shown["sha256"] == models.hash_file(tiny)


def test_doctor_is_well(capsys):
    assert run(["doctor"]) == 0
    assert "fail" not in capsys.readouterr().out
