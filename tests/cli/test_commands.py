"""Commands that need no model: exit statuses, errors as one line, JSON that scripts rely on."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer

from engrain.cli import doctor
from engrain.cli.learn import details, parse_budget, progress_display
from engrain.cli.main import app, run
from engrain.device.home import open_home
from engrain.device.interactions import InteractionLog
from engrain.device.registry import WEIGHTS, Registry
from engrain.quant.adapter import Adapter
from engrain.quant.gguf_lora import load_gguf
from engrain.quant.peft import load_peft


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ENGRAIN_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ENGRAIN_DEBUG", raising=False)
    return open_home()


@pytest.fixture
def versions(home):
    """Two adapter versions, the second in use."""
    registry = Registry(home)
    added = []
    for seed in (1, 2):
        random = np.random.default_rng(seed)
        pair = (random.standard_normal((2, 8), np.float32), random.standard_normal((8, 2), np.float32))
        metadata = {
            "engrain.base_sha256": "a" * 64,
            "engrain.base_name": "tiny",
            "engrain.interactions": "[1, 2, 3]",
            "engrain.gate": '{"recall": 0.9}',
        }
        adapter = Adapter(2, 4.0, "llama", 2, 1, {"blk.0.attn_q.weight": pair}, metadata)
        added.append(registry.add(adapter, "# Card"))
        registry.use(added[-1].name)
    return added


def printed_json(capsys, *arguments: str):
    assert run(arguments) == 0
    return json.loads(capsys.readouterr().out)


def one_line_error(capsys, *arguments: str) -> str:
    assert run(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def commands(group=None, path=()):
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", [*commands()], ids=" ".join)
def test_every_help_has_an_example(path, capsys):
    assert run([*path, "--help"]) == 0
    assert f"engrain {' '.join(path)}" in capsys.readouterr().out.split("\n", 1)[1]


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("ask", "--nonsense"), ("learn", "--budget", "soon"), ("memory", "show", "x")],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    assert run(arguments) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("memory", "show", "7"),
        ("memory", "forget", "7"),
        ("memory", "import", "nowhere.jsonl"),
        ("adapter", "show", "3"),
        ("adapter", "rollback"),
        ("model", "add", "nowhere.gguf"),
        ("ask", "--model", "nowhere", "--no-record", "hi"),
        ("ask", "--batch", "nowhere.jsonl"),
    ],
    ids=" ".join,
)
def test_errors_are_one_line(arguments, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert ": " in one_line_error(capsys, *arguments).removeprefix("error: ")


def test_an_unexpected_error_is_one_line_unless_debug(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda: 1 // 0)
    assert "ZeroDivisionError" in one_line_error(capsys, "doctor")
    for arguments in (("doctor", "--debug"), ("--debug", "doctor")):
        with pytest.raises(ZeroDivisionError):
            run(arguments)
    monkeypatch.setenv("ENGRAIN_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run(["doctor"])


def test_ctrl_c_exits_with_130(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    assert run(["doctor"]) == 130


@pytest.mark.skipif(os.name == "nt", reason="no SIGPIPE")
def test_a_reader_that_leaves_is_no_error(home):
    with InteractionLog(home.interactions) as log:
        for _ in range(300):
            log.record("c", "x" * 500, "y", model="m")
    child = subprocess.Popen(
        [sys.executable, "-m", "engrain.cli.main", "memory", "export"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout.read(1) == b"{"
    child.stdout.close()
    with child.stderr:
        assert child.stderr.read() == b""
    child.wait()


def test_starting_loads_nothing_heavy():
    code = (
        "import sys, engrain.cli.main as m; m.run(['--help']); m.run(['memory', 'list']);"
        "heavy = {'torch', 'rich', 'llama_cpp', 'numpy', 'engrain.update'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", ["bad", "[]", '{"text": 1}', '{"text": " "}'])
def test_a_bad_batch_line_is_named(line, capsys, tmp_path):
    batch = tmp_path / "batch.jsonl"
    batch.write_text(f'{{"text": "hi"}}\n\n{line}\n')
    assert "line 3" in one_line_error(capsys, "ask", "--batch", str(batch))


def test_memory(capsys, home, tmp_path):
    with InteractionLog(home.interactions) as log:
        for said in ("My cat is Tom.", "I live in \x1b[31mRome."):
            log.record("c", said, "I see.", model="m")
        log.mark_learned([1], "0001-aaaaaaaa", "m")
    listed = printed_json(capsys, "memory", "list", "--json")
    assert [each["user"] for each in listed] == ["My cat is Tom.", "I live in \x1b[31mRome."]
    assert listed[0]["learned_by"] == ["0001-aaaaaaaa"]
    assert [each["id"] for each in printed_json(capsys, "memory", "search", "rome", "--json")] == [2]
    assert printed_json(capsys, "memory", "show", "1", "--json") == listed[0]
    assert run(["memory", "list"]) == 0
    assert "\x1b" not in capsys.readouterr().out

    exported = tmp_path / "log.jsonl"
    assert run(["memory", "export", "-o", str(exported)]) == 0
    capsys.readouterr()
    assert "--overwrite" in one_line_error(capsys, "memory", "export", "-o", str(exported))
    assert run(["memory", "forget", "1"]) == 0
    assert "forgotten: 1" in capsys.readouterr().out
    assert len(printed_json(capsys, "memory", "list", "--json")) == 1
    assert run(["memory", "import", str(exported)]) == 0
    assert capsys.readouterr().out == "1 interactions added\n"


def test_adapter_list_without_any(capsys):
    assert printed_json(capsys, "adapter", "list", "--json") == {"current": None, "adapters": []}


def test_adapter_versions(capsys, versions):
    first, second = versions
    listed = printed_json(capsys, "adapter", "list", "--json")
    assert listed["current"] == second.name
    assert set(listed["adapters"][0]) == {
        "name", "created", "base", "base_name", "interactions", "parents", "size_bytes", "current", "problem"
    }  # fmt: skip
    assert [(each["name"], each["current"]) for each in listed["adapters"]] == [
        (first.name, False),
        (second.name, True),
    ]
    shown = printed_json(capsys, "adapter", "show", "2", "--json")
    assert (shown["interactions"], shown["gate"]) == ([1, 2, 3], {"recall": 0.9})
    assert run(["adapter", "rollback"]) == 0 and Registry(open_home()).current_name() == first.name
    assert run(["adapter", "use", "none"]) == 0 and Registry(open_home()).current_name() is None
    assert run(["adapter", "remove", "1"]) == 0
    assert [version.name for version in Registry(open_home()).list()] == [second.name]


def test_adapter_export(capsys, versions, tmp_path):
    folder, file = tmp_path / "out", tmp_path / "out.gguf"
    assert run(["adapter", "export", "1", "--to", "peft", "-o", str(folder)]) == 0
    assert run(["adapter", "export", "1", "--to", "gguf", "-o", str(file)]) == 0
    capsys.readouterr()
    original = load_peft(versions[0].folder).weights["blk.0.attn_q.weight"]
    for exported in (load_peft(folder), load_gguf(file)):
        for part, expected in zip(exported.weights["blk.0.attn_q.weight"], original, strict=True):
            np.testing.assert_array_equal(part, expected)
    for kind, path in (("peft", folder), ("gguf", file)):
        assert "--overwrite" in one_line_error(capsys, "adapter", "export", "2", "--to", kind, "-o", str(path))


def test_forgetting_names_what_holds_it_and_goes_back_to_what_does_not(capsys, versions):
    registry = Registry(open_home())
    weights = load_peft(versions[0].folder)
    others = {"engrain.interactions": "[9]", "engrain.status": "rejected"}
    aside = registry.add(replace(weights, metadata={**weights.metadata, **others}), "")
    with InteractionLog(open_home().interactions) as log:
        for i in range(9):
            log.record("c", f"Message {i}.", "Ok.", model="a" * 64)
    assert run(["memory", "forget", "8"]) == 0  # that nothing learned
    assert capsys.readouterr().out == "forgotten: 8  Message 7.\n"
    assert run(["memory", "forget", "9"]) == 0
    captured = capsys.readouterr()
    assert f"still holding it, on disk: {aside.name}:" in captured.err and registry.current_name() == versions[1].name
    assert run(["memory", "forget", "1", "--later"]) == 0
    captured = capsys.readouterr()
    assert f"still holding it, on disk: {versions[0].name}, {versions[1].name}:" in captured.err
    assert registry.current_name() is None  # what was rejected isn't one to go back to


def test_a_damaged_adapter_is_found(capsys, versions):
    assert run(["adapter", "verify"]) == 0
    weights = versions[0].folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert run(["adapter", "verify", "--json"]) == 1
    out = capsys.readouterr().out
    assert [each["ok"] for each in json.loads(out.splitlines()[-1])] == [False, True]


def test_doctor_without_a_model(capsys, monkeypatch):
    monkeypatch.setattr("engrain.device.models.BUNDLED_PACKAGES", ())
    assert run(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    status = {check["name"]: check["status"] for check in found["checks"]}
    assert not found["ok"] and status["model"] == "fail"
    assert all(status[name] == "ok" for name in ("python", "llama.cpp", "torch", "log", "settings"))


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("1h", 3600), ("1.5 min", 90), ("7", 7)])
def test_budget(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-5m", "5 days", "m", "nan"])
def test_budget_that_is_no_time(text):
    with pytest.raises(typer.BadParameter):
        parse_budget(text)


def test_progress_without_a_terminal(capsys):
    learn = pytest.importorskip("engrain.update.learn")
    with progress_display() as report:
        for done in range(1, 1001):
            report(learn.Progress("train", done, 1000, loss=0.5, tokens_per_second=812.0, seconds_left=65.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("training 1/1000") and lines[-1].startswith("training 1000/1000")
    assert len(lines) < 10
    assert details(learn.Progress("train", 1, 2, loss=0.5, seconds_left=65.0)) == "loss 0.500, 1 min 05 s left"
