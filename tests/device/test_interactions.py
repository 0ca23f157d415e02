import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engrain.device import interactions
from engrain.device.interactions import InteractionLog, LogError

MODEL, OTHER = "a" * 64, "b" * 64
anything = st.text(st.characters(exclude_categories=()))  # NULs and lone surrogates too
needs_posix = pytest.mark.skipif(os.name == "nt", reason="POSIX limits and signals")


@pytest.fixture
def log(tmp_path: Path):
    with InteractionLog(tmp_path / "interactions.db") as opened:
        yield opened


def told(log: InteractionLog, user: str, reply: str = "I see.", conversation: str = "c") -> int:
    return log.record(conversation, user, reply, model=MODEL)


def test_what_was_recorded_is_read_back_by_another(log):
    first = log.record("c1", "My cat is Ottoline.", "Noted.", system="Be brief.", model=MODEL, adapter="0001-00000000")
    second = log.record("c2", "And", "broken o", model=MODEL, complete=False)
    with InteractionLog(log.path) as again:
        kept = again.get(first)
        assert (kept.conversation, kept.user, kept.reply) == ("c1", "My cat is Ottoline.", "Noted.")
        assert (kept.system, kept.model, kept.adapter) == ("Be brief.", MODEL, "0001-00000000")
        assert (kept.complete, kept.feedback, kept.correction, kept.revision) == (True, None, None, 0)
        assert again.get(second).complete is False
        assert [i.id for i in again.list()] == [first, second]
        assert [i.id for i in again.list(limit=1)] == [second]
        assert [i.id for i in again.list(conversation="c1")] == [first]
        assert again.last("c1") == kept and again.last() == again.get(second) and again.last("none") is None
        assert again.conversations() == ["c2", "c1"]
    if os.name != "nt":
        assert log.path.stat().st_mode & 0o077 == 0


@settings(max_examples=60, deadline=None)
@given(anything, anything, st.none() | anything, anything)
def test_any_text_round_trips_but_for_lone_surrogates(tmp_path_factory, user, reply, system, correction):
    path = tmp_path_factory.getbasetemp() / "any-text.db"
    with InteractionLog(path) as log:
        id = log.record("c", user, reply, system=system, model=MODEL)
        log.correct(id, correction)
        log.search(user)
        log.search(user[:3])
        kept = log.get(id)
    for given_text, found in ((user, kept.user), (reply, kept.reply), (correction, kept.correction)):
        assert found == "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in joined(given_text))
    assert (kept.system is None) == (system is None)


def joined(text: str) -> str:
    """Surrogate pairs as the one character they stand for."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def test_feedback_and_correction(log):
    id = told(log, "What's my cat's name?", "Tom")
    log.rate(id, -1)
    log.correct(id, "Ottoline")
    log.rate(id, 1)
    kept = log.get(id)
    assert (kept.feedback, kept.correction, kept.revision) == (1, "Ottoline", 3)
    with pytest.raises(LogError, match=r"\+1 or -1"):
        log.rate(id, 5)


@pytest.mark.parametrize("id", [0, -1, 7, 2**63, 10**40])
def test_an_interaction_that_is_not_there(log, id):
    told(log, "one")
    calls = (log.get, log.forget, lambda i: log.rate(i, 1), lambda i: log.correct(i, "x"))
    for call in calls:
        with pytest.raises(LogError, match=f"no interaction {id}"):
            call(id)
    assert log.mark_learned([id], "0001-00000000", MODEL) == [id]
    assert len(log.list()) == 1


def test_search_finds_words_beginnings_and_pieces(log):
    cat = told(log, "My cat's name is Ottoline.")
    percent = told(log, "I got 100% of it, 'really' \"quoted\"", "Well done (AND how)")
    chinese = told(log, "我的猫叫小白")
    fixed = told(log, "Where do I live?", "In Rome")
    log.correct(fixed, "In Žilina")
    assert [i.id for i in log.search("name cat")] == [cat]
    assert [i.id for i in log.search("otto")] == [cat]
    assert [i.id for i in log.search("toline")] == [cat]
    assert [i.id for i in log.search("100%")] == [percent]
    assert [i.id for i in log.search("(AND")] == [percent]
    assert [i.id for i in log.search('"')] == [percent]
    assert [i.id for i in log.search("小白")] == [chinese]
    assert [i.id for i in log.search("zilina")] == [fixed]
    for nothing in ("", "  ", "\0", "%", "_x", "dog", "NEAR(", "user:cat", "*"):
        assert log.search(nothing) == ([log.get(percent)] if nothing == "%" else [])
    assert len(log.search("i", limit=2)) == 2


def test_forgetting_leaves_no_trace_in_the_files(log):
    keep = told(log, "My horse is Bucephalus.")
    secrets = ["Zanzibarquux", "Wolframite", "Xylophonist"]
    gone = told(log, f"The {secrets[0]} is hidden.", f"In the {secrets[1]}?")
    log.correct(gone, f"By the {secrets[2]}")
    log.mark_learned([keep, gone], "0001-00000000", MODEL)
    log.forget(gone)
    assert log.search(secrets[0]) == [] and log.adapters_of(gone) == []
    assert log.learned_by("0001-00000000") == [keep]
    log.close()
    content = b"".join(path.read_bytes() for path in log.path.parent.glob("interactions.db*"))
    # The index folds case and shares beginnings: look for pieces.
    assert b"ucephalus" in content
    for piece in (piece.encode() for secret in secrets for piece in (secret, secret.lower()[3:])):
        assert piece not in content


def test_forgetting_several_is_all_or_nothing_and_ids_are_not_reused(log):
    ids = [told(log, str(number)) for number in range(3)]
    with pytest.raises(LogError):
        log.forget(ids[0], 99)
    assert len(log.list()) == 3
    log.forget(*ids)
    assert log.list() == [] and told(log, "new") > max(ids)


def test_lineage_decides_what_is_unlearned(log):
    first, second, third = (told(log, str(number)) for number in range(3))
    assert log.mark_learned([first, second], "0001-aaaaaaaa", MODEL) == []
    assert [i.id for i in log.unlearned(MODEL)] == [third]
    assert [i.id for i in log.unlearned(OTHER)] == [first, second, third]
    log.rate(second, -1)
    assert [i.id for i in log.unlearned(MODEL)] == [second, third]
    log.mark_learned([second, third], "0002-bbbbbbbb", MODEL)
    assert log.unlearned(MODEL) == []
    assert log.adapters_of(second) == ["0001-aaaaaaaa", "0002-bbbbbbbb"]
    # After a rollback to 0001, what 0002 learned is to be learned again.
    assert [i.id for i in log.unlearned(MODEL, ["0001-aaaaaaaa"])] == [second, third]
    assert len(log.unlearned(MODEL, [])) == 3


def test_a_correction_during_learning_is_not_lost(log):
    id = told(log, "one")
    studied = log.unlearned(MODEL)
    log.correct(id, "two")
    log.mark_learned(studied, "0001-aaaaaaaa", MODEL)
    assert [i.correction for i in log.unlearned(MODEL)] == ["two"]


def test_export_and_import(log, tmp_path):
    told(log, "žába\0\n", "ok")
    log.rate(told(log, "second"), -1)
    exported = io.StringIO()
    assert log.export_jsonl(exported) == 2
    with InteractionLog(tmp_path / "other.db") as other:
        assert other.import_jsonl(io.StringIO(exported.getvalue() + "\n")) == 2
        assert other.import_jsonl(io.StringIO(exported.getvalue())) == 0
        again = io.StringIO()
        other.export_jsonl(again)
        assert again.getvalue() == exported.getvalue()
        assert [i.user for i in other.search("second")] == ["second"]


GOOD = {"conversation": "c", "user": "u", "reply": "r", "model": MODEL, "time": 1.5}


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "null", "[" * 100_000, '{"user": "x"}']
    + [
        json.dumps({**GOOD, **change})
        for change in (
            {"time": float("nan")},
            {"time": "now"},
            {"time": 10**400},
            {"time": True},
            {"user": None},
            {"feedback": 2},
            {"feedback": True},
            {"complete": 1},
            {"correction": []},
            {"revision": 1},
            {"id": 1},
        )
    ],
)
def test_a_bad_line_imports_nothing(log, line):
    with pytest.raises(LogError, match="line 2") as caught:
        log.import_jsonl(io.StringIO(json.dumps(GOOD) + "\n" + line + "\n"))
    assert "\n" not in str(caught.value)
    assert log.list() == []


@needs_posix
def test_kill_nine_loses_nothing_that_was_returned(tmp_path):
    path = tmp_path / "interactions.db"
    script = f"""
from pathlib import Path
from engrain.device.interactions import InteractionLog
log = InteractionLog(Path({str(path)!r}))
while True:
    print(log.record("c", "word " * 300, "reply " * 300, model="m"), flush=True)
"""
    seen: set[int] = set()
    for lines in (40, 90, 150):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            seen.update(int(writer.stdout.readline()) for _ in range(lines))
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read().split("\n")
            seen.update(int(line) for line in rest[:-1])
        with InteractionLog(path) as log:
            assert log.check() is None
            assert seen <= {i.id for i in log.list()}
    assert len(seen) >= 280


@needs_posix
def test_full_disk_is_one_line_and_what_was_there_stays(log):
    told(log, "before")
    script = f"""
import resource, signal
from pathlib import Path
from engrain.device.interactions import InteractionLog, LogError
log = InteractionLog(Path({str(log.path)!r}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    for number in range(1000):
        log.record("c", "x" * 5000, "y", model="m")
except LogError as error:
    print(error, number)
print(len(log.list()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    message, count = done.stdout.splitlines()
    assert "free some space" in message and int(count) >= int(message.split()[-1]) > 1
    assert log.check() is None and log.get(1).user == "before"
    assert told(log, "after") > 1


def test_many_processes_make_and_write_one_log(tmp_path):
    path = tmp_path / "interactions.db"
    script = f"""
from pathlib import Path
from engrain.device.interactions import InteractionLog
log = InteractionLog(Path({str(path)!r}))
for number in range(20):
    log.record("c", str(number), "", model="m")
"""
    writers = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(4)]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    with InteractionLog(path) as log:
        assert len(log.list()) == 80 and log.check() is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["interactions.db"]


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"not a database" * 400, b"SQLite format 3\0" + b"\1" * 5000])
def test_a_file_that_is_no_log_is_named_and_left_alone(tmp_path, content):
    path = tmp_path / "interactions.db"
    path.write_bytes(content)
    with pytest.raises(LogError, match=r"interactions\.db") as caught:
        InteractionLog(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "interactions.db").mkdir()
    with pytest.raises(LogError, match=r"interactions\.db"):
        InteractionLog(tmp_path / "interactions.db")


def test_a_damaged_page_is_found(log):
    for number in range(200):
        told(log, f"word{number} " * 50)
    log.close()
    content = bytearray(log.path.read_bytes())
    content[8192:-4096] = b"\xa5" * len(content[8192:-4096])
    log.path.write_bytes(content)
    with InteractionLog(log.path) as damaged:
        assert "damaged" in (damaged.check() or "")
        with pytest.raises(LogError, match="damaged"):
            damaged.list()


def test_a_cut_file_is_found(log):
    told(log, "x" * 50_000)
    log.close()
    log.path.write_bytes(log.path.read_bytes()[:8192])
    with pytest.raises(LogError, match="damaged"), InteractionLog(log.path) as damaged:
        damaged.list()


def test_another_programs_or_a_newer_file_is_left_alone(tmp_path, log):
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE theirs (x)")
    database.close()
    log.close()
    with sqlite3.connect(log.path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    for path, reason in ((foreign, "another program"), (log.path, "newer")):
        before = path.read_bytes()
        with pytest.raises(LogError, match=reason):
            InteractionLog(path)
        assert path.read_bytes() == before


def test_migrations_are_applied_in_order_and_whole(log, monkeypatch):
    id = told(log, "old")
    log.close()
    bad = (*interactions.MIGRATIONS, "CREATE TABLE extra (x);\nCREATE TABLE interactions (x);")
    monkeypatch.setattr(interactions, "MIGRATIONS", bad)
    with pytest.raises(LogError):
        InteractionLog(log.path)
    good = (*interactions.MIGRATIONS[:1], "CREATE TABLE extra (x);", "INSERT INTO extra VALUES (3);")
    monkeypatch.setattr(interactions, "MIGRATIONS", good)
    with InteractionLog(log.path) as again:
        assert again.get(id).user == "old"
    database = sqlite3.connect(log.path)
    assert database.execute("SELECT x FROM extra").fetchall() == [(3,)]
    database.close()
