"""The data folder: where it is, its settings, atomic writes, and locks that die with their process."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import platformdirs

from engrain.quant.errors import EngrainError
from engrain.quant.files import replace_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment,unused-ignore]

_LOCK_BYTE = 1 << 20  # Windows locks are mandatory: lock a byte past the pid, so that others can read the pid


class HomeError(EngrainError):
    """The data folder, or a file in it, can't be read or written."""


class Locked(EngrainError):
    """Another process holds the lock."""


@dataclass(frozen=True)
class Home:
    """Paths inside one data folder."""

    root: Path

    @property
    def interactions(self) -> Path:
        return self.root / "interactions.db"

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def cache(self) -> Path:
        """Derived files only: may be deleted at any time."""
        return self.root / "cache"

    @property
    def work(self) -> Path:
        """Checkpoints of learning under way."""
        return self.root / "work"

    @property
    def settings_path(self) -> Path:
        return self.root / "settings.json"


def open_home(root: Path | None = None) -> Home:
    """The data folder, made if it isn't there (owner only): `root`, else $ENGRAIN_HOME, else the platform's.

    Raises HomeError when it can't be made or written.
    """
    chosen = root or os.environ.get("ENGRAIN_HOME") or platformdirs.user_data_dir("engrain", appauthor=False)
    home = Home(Path(chosen).expanduser().absolute())
    try:
        home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (home.adapters, home.models, home.cache, home.work):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise cannot_write(home.root, error) from error
    if not os.access(home.root, os.W_OK | os.X_OK):
        raise cannot_write(home.root, PermissionError(errno.EACCES, "permission denied"))
    return home


def cannot_write(path: Path, error: OSError) -> HomeError:
    """One line for a failed write: what is wrong, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return HomeError(f"no space left to write {path}: free some space, or set ENGRAIN_HOME to another disk")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return HomeError(f"{path} may not be written: mend its permissions, or set ENGRAIN_HOME to another folder")
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return HomeError(f"{path} is not a folder or lies in a file: set ENGRAIN_HOME to another folder")
    return HomeError(f"{path} can't be written ({error.strerror or error}): set ENGRAIN_HOME to another folder")


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace `path` by `data` (str as UTF-8), durably: afterwards it is either wholly old or wholly new.

    Raises HomeError when that fails; the old file is then whole and no temporary file is left.
    """
    raw = data.encode(errors="replace") if isinstance(data, str) else data
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, lambda temporary: temporary.write_bytes(raw))
    except OSError as error:
        raise cannot_write(path, error) from error


@dataclass(frozen=True)
class Settings:
    """What the user chose. `max_tokens` and `n_ctx` are in tokens; `model` is a name or a path."""

    model: str | None = None
    temperature: float = 0.0
    max_tokens: int = 256
    n_ctx: int = 2048
    system: str | None = None

    def __post_init__(self) -> None:
        wrong = [
            f"{name} must be text or null"
            for name in ("model", "system")
            if not isinstance(getattr(self, name), str | None)
        ]
        # bool is an int to Python, but `true` tokens is a mistake
        wrong += [
            f"{name} must be a whole number of at least 1"
            for name in ("max_tokens", "n_ctx")
            if type(getattr(self, name)) is not int or getattr(self, name) < 1
        ]
        if type(self.temperature) not in (int, float) or not math.isfinite(self.temperature) or self.temperature < 0:
            wrong.append("temperature must be a number of at least 0")
        if wrong:
            raise HomeError("; ".join(wrong))


def load_settings(home: Home) -> Settings:
    """Settings from disk, or the defaults. HomeError names the file when it is damaged."""
    path = home.settings_path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise HomeError("not a JSON object")
        if unknown := sorted(set(values) - {field.name for field in fields(Settings)}):
            raise HomeError(f"unknown setting {', '.join(unknown)}")
        return Settings(**values)
    except FileNotFoundError:
        return Settings()
    except (OSError, ValueError, RecursionError, HomeError) as error:
        raise HomeError(f"{path} is damaged ({error}): correct it, or delete it for the defaults") from error


def save_settings(home: Home, settings: Settings) -> None:
    """Write the settings atomically."""
    write_atomic(home.settings_path, json.dumps(asdict(settings), indent=2) + "\n")


@contextlib.contextmanager
def lock(home: Home, name: str, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock `name` (say "learner"); it goes when the process does, however that ends.

    Tries for `wait` seconds, then raises Locked with the holder's pid.
    """
    path = home.root / f"{name}.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        deadline = time.monotonic() + wait
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                os.lseek(descriptor, 0, os.SEEK_SET)
                pid = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
                raise Locked(f"another {name} (pid {pid}) is at work; wait for it or stop it")
            time.sleep(0.02)
        # The pid only informs: a full disk must not turn it into a failure.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)  # releases the lock; the file stays, since deleting it would race with others


def _try_lock(descriptor: int) -> bool:
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            os.lseek(descriptor, _LOCK_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return False
        raise HomeError(f"this disk can't lock files ({error}): set ENGRAIN_HOME to a local disk") from error
    return True
