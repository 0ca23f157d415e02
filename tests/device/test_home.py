import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engrain.device.home import (
    Home,
    HomeError,
    Locked,
    Settings,
    cannot_write,
    load_settings,
    lock,
    open_home,
    save_settings,
    write_atomic,
)

needs_posix = pytest.mark.skipif(os.name == "nt", reason="POSIX limits and signals")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return open_home(tmp_path / "home")


def test_open_home_makes_a_private_folder_where_engrain_home_says(tmp_path, monkeypatch):
    monkeypatch.setenv("ENGRAIN_HOME", str(tmp_path / "deep/er"))
    home = open_home()
    assert home.root == tmp_path / "deep/er"
    assert all(folder.is_dir() for folder in (home.adapters, home.models, home.cache, home.work))
    if os.name != "nt":
        assert home.root.stat().st_mode & 0o777 == 0o700
    assert open_home(tmp_path / "other").root == tmp_path / "other"


def test_open_home_in_a_file_is_one_line_with_a_way_out(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for root in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(HomeError, match="ENGRAIN_HOME") as caught:
            open_home(root)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_open_home_that_may_not_be_written(tmp_path):
    open_home(tmp_path / "home")
    (tmp_path / "home").chmod(0o500)
    with pytest.raises(HomeError, match="may not be written"):
        open_home(tmp_path / "home")


@given(st.binary(max_size=2000), st.binary(max_size=2000))
def test_write_atomic_replaces_all_of_it(tmp_path_factory, old, new):
    path = tmp_path_factory.mktemp("write") / "file"
    write_atomic(path, old)
    write_atomic(path, new)
    assert path.read_bytes() == new
    assert list(path.parent.iterdir()) == [path]


def test_write_atomic_writes_utf8_and_survives_a_lone_surrogate(tmp_path):
    write_atomic(tmp_path / "file", "žába \ud800")
    assert (tmp_path / "file").read_bytes() == "žába ?".encode()


@needs_posix
def test_failed_write_keeps_the_old_file_whole(tmp_path):
    """The kernel refuses the write, as it would on a full disk."""
    write_atomic(tmp_path / "file", "old")
    script = f"""
import resource, signal
from pathlib import Path
from engrain.device.home import HomeError, write_atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomic(Path({str(tmp_path / "file")!r}), b"n" * 5000)
except HomeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("no space left to write") and done.stdout.count("\n") == 1
    assert (tmp_path / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_write_errors_name_the_file_and_the_way_out(number):
    message = str(cannot_write(Path("/x/file"), OSError(number, os.strerror(number))))
    assert str(Path("/x/file")) in message and "ENGRAIN_HOME" in message and "\n" not in message


def test_settings_round_trip_and_default(home):
    assert load_settings(home) == Settings()
    chosen = Settings(model="smol", temperature=0.7, max_tokens=9, n_ctx=512, system="Buď stručný. \ud800")
    save_settings(home, chosen)
    assert load_settings(home) == chosen


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "[" * 100_000, "\ufeff{}"),
        *('{"temprature": 1}', '{"max_tokens": true}', '{"n_ctx": 0}', '{"model": 3}'),
        *('{"temperature": NaN}', '{"temperature": -1}', '{"temperature": "warm"}'),
    ],
)
def test_damaged_settings_are_one_line_that_names_the_file(home, text):
    home.settings_path.write_text(text, encoding="utf-8")
    with pytest.raises(HomeError, match=r"settings\.json is damaged") as caught:
        load_settings(home)
    assert "\n" not in str(caught.value)
    assert home.settings_path.read_text(encoding="utf-8") == text


def test_every_mismatch_of_the_settings_is_told_at_once():
    with pytest.raises(HomeError) as caught:
        Settings(model=3, max_tokens=0, n_ctx=1.5, temperature=-1)  # type: ignore[arg-type]
    assert all(name in str(caught.value) for name in ("model", "max_tokens", "n_ctx", "temperature"))


def test_lock_has_one_holder(home):
    with lock(home, "learner"):
        with pytest.raises(Locked, match=rf"another learner \(pid {os.getpid()}\)"), lock(home, "learner"):
            pass
        with lock(home, "other"):
            pass
    with lock(home, "learner"):
        pass


@needs_posix
def test_lock_dies_with_its_process(home):
    script = f"""
import time
from pathlib import Path
from engrain.device.home import Home, lock
with lock(Home(Path({str(home.root)!r})), "learner"):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(Locked, match=f"pid {holder.pid}"), lock(home, "learner"):
            pass
        holder.send_signal(signal.SIGKILL)
        with lock(home, "learner", wait=10):
            pass


def test_lock_waits_no_longer_than_told(home):
    with lock(home, "learner"):
        start = time.monotonic()
        with pytest.raises(Locked), lock(home, "learner", wait=0.1):
            pass
        assert 0.1 <= time.monotonic() - start < 5
