"""Our SQLite files: made whole or not at all, migrated by number, durable, with errors a user can act on."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from engrain.device.home import cannot_write
from engrain.quant.errors import EngrainError
from engrain.quant.files import sync_folder

_APPLICATION_ID = 0x656E6772  # "engr": tells our files from another program's
_MAGIC = b"SQLite format 3\0"
_BUSY_SECONDS = 30.0


class LogError(EngrainError):
    """The log can't be read or written, or was asked for something it doesn't have."""


def open_database(path: Path, migrations: Sequence[str]) -> sqlite3.Connection:
    """A connection in autocommit mode, its schema up to date; the file is made if it isn't there.

    Raises LogError for a file that is damaged, foreign or newer than `migrations`, and leaves it as it is.
    """
    with explained(path):
        if not path.exists():
            _create(path, migrations)
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise LogError(f"{path} is not an interaction log, or is damaged: move it away or restore a copy")
        database = _connect(path)
        try:
            if _pragma(database, "application_id") != _APPLICATION_ID:
                raise LogError(f"{path} is another program's database: move it away, or set ENGRAIN_HOME")
            if (version := _pragma(database, "user_version")) > len(migrations):
                raise LogError(f"{path} was written by a newer engrain (version {version} of it): update engrain")
            migrate(database, migrations)
        except BaseException:
            database.close()
            raise
    return database


def migrate(database: sqlite3.Connection, migrations: Sequence[str]) -> None:
    """Apply each script that the file hasn't seen, each in a transaction of its own."""
    while _pragma(database, "user_version") < len(migrations):
        with transaction(database):
            # Read again: another process may have done it while this one waited for the write lock.
            version = _pragma(database, "user_version")
            if version < len(migrations):
                for statement in _statements(migrations[version]):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {version + 1}")


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; holds the write lock from the start, so it can't fail half-way for another writer."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # SQLite rolls back by itself when the disk is full
            database.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system raise into one line that says what to do."""
    try:
        yield
    except (sqlite3.DatabaseError, OverflowError) as error:
        raise LogError(_explanation(path, error)) from error
    except OSError as error:
        raise LogError(f"{path} can't be opened ({error.strerror or error}): mend that, or set ENGRAIN_HOME") from error


def _explanation(path: Path, error: Exception) -> str:
    text = str(error)
    if "full" in text or "disk I/O" in text:
        return f"{path} can't be written ({text}): free some space; what was recorded before is safe"
    if "readonly" in text or "unable to open" in text:
        return f"{path} can't be written ({text}): mend the folder's permissions, or set ENGRAIN_HOME"
    if "locked" in text:
        return f"{path} has been busy for {_BUSY_SECONDS:.0f} s: wait for the other engrain, or stop it"
    if "malformed" in text or "not a database" in text:
        return f"{path} is damaged ({text}): move it away, or restore a copy"
    return f"{path} could not do that ({text}): run `engrain doctor`"


def _create(path: Path, migrations: Sequence[str]) -> None:
    """Build the file beside and link it into place: no crash leaves an empty file, no rival's is replaced."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            fresh = Path(folder) / path.name
            fresh.touch(mode=0o600)
            database = _connect(fresh)
            try:
                database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                migrate(database, migrations)
                database.execute("PRAGMA journal_mode = WAL").fetchall()  # kept in the file
            finally:
                database.close()
            with contextlib.suppress(FileExistsError):
                _move_new(fresh, path)
            sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def _move_new(source: Path, target: Path) -> None:
    """Rename that never replaces; FileExistsError where `target` is there."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # no hard links on this file system (FAT)
        if target.exists():
            raise FileExistsError(str(target)) from None
        source.rename(target)


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
    database.execute("PRAGMA foreign_keys = ON")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA secure_delete = ON").fetchall()
    return database


def _pragma(database: sqlite3.Connection, name: str) -> int:
    return int(database.execute(f"PRAGMA {name}").fetchone()[0])


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, triggers whole. (`executescript` would commit what came before.)"""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        raise ValueError(f"a statement without its end: {statement.strip()[:60]}")
