"""The interaction log: what was said, what the user thought of it, and which adapter learned it.

One SQLite file. A row is durable once `record` has returned; any number of processes may use the log at once.
Text is kept as it is, NUL characters too; lone surrogates, which no UTF-8 file can hold, become U+FFFD.
"""

from __future__ import annotations

import contextlib
import json
import time as clock
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

from engrain.device.database import LogError, explained, open_database, transaction

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE interactions (
        id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused: adapters name the ids they learned
        conversation TEXT NOT NULL,
        time REAL NOT NULL,
        system TEXT,
        user TEXT NOT NULL,
        reply TEXT NOT NULL,
        model TEXT NOT NULL,
        adapter TEXT,
        feedback INTEGER CHECK (feedback IN (-1, 1)),
        correction TEXT,
        complete INTEGER NOT NULL CHECK (complete IN (0, 1)),
        revision INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX interactions_conversation ON interactions (conversation, id);
    CREATE TABLE lineage (
        interaction INTEGER NOT NULL REFERENCES interactions (id) ON DELETE CASCADE,
        adapter TEXT NOT NULL,
        model TEXT NOT NULL,
        revision INTEGER NOT NULL,  -- the interaction's, as it was learned
        PRIMARY KEY (interaction, adapter)
    ) WITHOUT ROWID;
    CREATE INDEX lineage_adapter ON lineage (adapter);
    CREATE VIRTUAL TABLE interactions_fts USING fts5(
        user, reply, correction, content='interactions', content_rowid='id',
        tokenize='unicode61 remove_diacritics 2'
    );
    CREATE TRIGGER interactions_added AFTER INSERT ON interactions BEGIN
        INSERT INTO interactions_fts (rowid, user, reply, correction)
        VALUES (new.id, new.user, new.reply, new.correction);
    END;
    CREATE TRIGGER interactions_removed AFTER DELETE ON interactions BEGIN
        INSERT INTO interactions_fts (interactions_fts, rowid, user, reply, correction)
        VALUES ('delete', old.id, old.user, old.reply, old.correction);
    END;
    CREATE TRIGGER interactions_corrected AFTER UPDATE OF user, reply, correction ON interactions BEGIN
        INSERT INTO interactions_fts (interactions_fts, rowid, user, reply, correction)
        VALUES ('delete', old.id, old.user, old.reply, old.correction);
        INSERT INTO interactions_fts (rowid, user, reply, correction)
        VALUES (new.id, new.user, new.reply, new.correction);
    END;
    """,
)


@dataclass(frozen=True)
class Interaction:
    """One user turn and its reply. `time` in unix seconds; `model` is the GGUF's SHA-256.

    `complete` is False when the reply was broken off; `revision` counts ratings and corrections.
    """

    id: int
    conversation: str
    time: float
    system: str | None
    user: str
    reply: str
    model: str
    adapter: str | None = None
    feedback: int | None = None
    correction: str | None = None
    complete: bool = True
    revision: int = 0


_COLUMNS = tuple(field.name for field in fields(Interaction))
_COMPLETE = _COLUMNS.index("complete")  # SQLite has no booleans
_SELECT = "SELECT " + ", ".join(f"i.{name}" for name in _COLUMNS) + " FROM interactions AS i"
_KNOWN = "SELECT 1 FROM interactions WHERE conversation = ? AND time = ? AND user = ? AND reply = ?"
_EXPORTED = tuple(name for name in _COLUMNS if name not in ("id", "revision"))
_TEXTS = ("conversation", "user", "reply", "model")
_OPTIONAL_TEXTS = ("system", "adapter", "correction")

# The log has a method `list`, which hides the type inside the class.
Interactions = list[Interaction]
Ids = list[int]
Names = list[str]
Rows = list[tuple[Any, ...]]


class InteractionLog:
    """The log at `path`, made if it isn't there. Use it as a context manager, in one thread."""

    def __init__(self, path: Path) -> None:
        """Raises LogError for a damaged, foreign or newer file, which it leaves as it is."""
        self.path = path
        self._db = open_database(path, MIGRATIONS)

    def __enter__(self) -> InteractionLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def record(
        self,
        conversation: str,
        user: str,
        reply: str,
        *,
        system: str | None = None,
        model: str,
        adapter: str | None = None,
        complete: bool = True,
    ) -> int:
        """Write one interaction durably; its id."""
        new = Interaction(0, conversation, clock.time(), system, user, reply, model, adapter, complete=complete)
        with self._transaction():
            return self._insert(new)

    def rate(self, id: int, feedback: int) -> None:
        """+1 or -1, in place of any rating before."""
        if feedback not in (1, -1):
            raise LogError(f"feedback is +1 or -1, not {feedback}")
        self._change(id, "feedback", feedback)

    def correct(self, id: int, text: str) -> None:
        """What the reply should have been."""
        self._change(id, "correction", _storable(text))

    def get(self, id: int) -> Interaction:
        found = self._interactions(f"{_SELECT} WHERE i.id = ?", (_row_id(id),))
        if not found:
            raise _missing(id)
        return found[0]

    def list(self, limit: int | None = None, conversation: str | None = None) -> Interactions:
        """The newest `limit` (all without one), oldest of them first."""
        newest = self._interactions(
            f"{_SELECT} WHERE ?1 IS NULL OR i.conversation = ?1 ORDER BY i.id DESC LIMIT ?2",
            (_storable(conversation), -1 if limit is None else max(0, limit)),
        )
        return newest[::-1]

    def last(self, conversation: str | None = None) -> Interaction | None:
        """The newest, of one conversation or of all."""
        return next(iter(self.list(1, conversation)), None)

    def conversations(self) -> Names:
        """Every conversation, the one spoken in last first."""
        rows = self._rows("SELECT conversation FROM interactions GROUP BY conversation ORDER BY max(id) DESC")
        return [row[0] for row in rows]

    def search(self, text: str, limit: int = 20) -> Interactions:
        """Best first: those with, for each word of `text`, a word that begins so; else that contain it."""
        text = _storable(text).replace("\0", " ").strip()  # SQLite's patterns end at a NUL
        words = " ".join('"' + word.replace('"', '""') + '"*' for word in text.split())
        found: Interactions = []
        if words:
            found = self._interactions(
                f"{_SELECT} JOIN interactions_fts AS f ON f.rowid = i.id"
                " WHERE interactions_fts MATCH ? ORDER BY f.rank, i.id DESC LIMIT ?",
                (words, limit),
            )
        if found or not text:
            return found
        # Punctuation, parts of words, scripts without spaces: no words for the index, but there to be found.
        pattern = "%" + "".join(f"\\{c}" if c in "\\%_" else c for c in text) + "%"
        columns = " OR ".join(f"i.{name} LIKE ?1 ESCAPE '\\'" for name in ("user", "reply", "correction"))
        return self._interactions(f"{_SELECT} WHERE {columns} ORDER BY i.id DESC LIMIT ?2", (pattern, limit))

    def forget(self, *ids: int) -> None:
        """Remove interactions without a trace in the file: rows, index and lineage."""
        with self._transaction():
            for id in ids:
                if not self._db.execute("DELETE FROM interactions WHERE id = ?", (_row_id(id),)).rowcount:
                    raise _missing(id)
            # A deletion only masks the words in the index's older segments: write the index anew.
            self._db.execute("INSERT INTO interactions_fts (interactions_fts) VALUES ('rebuild')")
        with explained(self.path):  # the write-ahead log still holds the old pages
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def unlearned(self, model: str, adapters: Iterable[str] | None = None) -> Interactions:
        """What no adapter for `model` has learned, or not as it is now rated and corrected; oldest first.

        With `adapters`, only those count as learners (after a rollback: the current one and its parents).
        """
        names = None if adapters is None else json.dumps(sorted(adapters))
        return self._interactions(
            f"{_SELECT} WHERE NOT EXISTS (SELECT 1 FROM lineage AS l WHERE l.interaction = i.id"
            " AND l.model = ?1 AND l.revision >= i.revision"
            " AND (?2 IS NULL OR l.adapter IN (SELECT value FROM json_each(?2)))) ORDER BY i.id",
            (model, names),
        )

    def mark_learned(self, learned: Iterable[int | Interaction], adapter: str, model: str) -> Ids:
        """Note that `adapter`, for `model`, learned these; ids that were forgotten meanwhile are returned.

        An Interaction counts as learned as it was read: if it has been corrected since, it stays unlearned.
        """
        gone = []
        with self._transaction():
            for item in learned:
                id, revision = (item.id, item.revision) if isinstance(item, Interaction) else (item, None)
                written = self._db.execute(
                    "INSERT OR REPLACE INTO lineage (interaction, adapter, model, revision)"
                    " SELECT id, ?, ?, coalesce(?, revision) FROM interactions WHERE id = ?",
                    (adapter, model, revision, _row_id(id)),
                )
                if not written.rowcount:
                    gone.append(id)
        return gone

    def learned_by(self, adapter: str) -> Ids:
        """Ids that `adapter` learned."""
        rows = self._rows("SELECT interaction FROM lineage WHERE adapter = ? ORDER BY interaction", (adapter,))
        return [row[0] for row in rows]

    def adapters_of(self, id: int) -> Names:
        """Adapters that learned interaction `id`."""
        rows = self._rows("SELECT adapter FROM lineage WHERE interaction = ? ORDER BY adapter", (_row_id(id),))
        return [row[0] for row in rows]

    def export_jsonl(self, file: IO[str]) -> int:
        """One JSON object a line, oldest first; how many."""
        everything = self.list()
        for interaction in everything:
            values = asdict(interaction)
            file.write(json.dumps({name: values[name] for name in _EXPORTED}, ensure_ascii=False) + "\n")
        return len(everything)

    def import_jsonl(self, file: IO[str]) -> int:
        """Add all of an export or nothing, skipping what is here already; how many were added.

        Raises LogError that names the line at fault.
        """
        rows = [_parse(line, number) for number, line in enumerate(file, 1) if line.strip()]  # a pipe may take its time
        added = 0
        with self._transaction():
            for new in rows:
                same = (new.conversation, new.time, new.user, new.reply)  # floats survive JSON exactly
                if self._db.execute(_KNOWN, same).fetchone() is None:
                    self._insert(new)
                    added += 1
        return added

    def check(self) -> str | None:
        """What is wrong with the file, read as a whole; None when nothing is."""
        try:
            found = str(self._rows("PRAGMA integrity_check(1)")[0][0])
            if found == "ok":
                self._rows("INSERT INTO interactions_fts (interactions_fts, rank) VALUES ('integrity-check', 1)")
                return None
        except LogError as error:
            return str(error)
        return f"{self.path} is damaged ({found}): move it away, or restore a copy"

    def _insert(self, new: Interaction) -> int:
        names = [name for name in _COLUMNS if name != "id"]
        values = [_storable(getattr(new, name)) for name in names]
        statement = f"INSERT INTO interactions ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
        return int(self._db.execute(statement, values).lastrowid or 0)

    def _change(self, id: int, column: str, value: int | str) -> None:
        with self._transaction():
            statement = f"UPDATE interactions SET {column} = ?, revision = revision + 1 WHERE id = ?"
            if not self._db.execute(statement, (value, _row_id(id))).rowcount:
                raise _missing(id)

    def _rows(self, statement: str, values: tuple[Any, ...] = ()) -> Rows:
        with explained(self.path):
            return self._db.execute(statement, values).fetchall()

    def _interactions(self, statement: str, values: tuple[Any, ...]) -> Interactions:
        rows = self._rows(statement, values)
        return [
            Interaction(**dict(zip(_COLUMNS, row, strict=True)) | {"complete": bool(row[_COMPLETE])}) for row in rows
        ]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with explained(self.path), transaction(self._db):
            yield


def _missing(id: int) -> LogError:
    return LogError(f"there is no interaction {id}: `engrain memory list` shows those there are")


def _row_id(id: int) -> int:
    """`id`, or one that no row has where SQLite could not hold it."""
    return id if 0 < id < 2**63 else 0


def _storable(value: Any) -> Any:
    """Text that UTF-8 can hold: lone surrogates become U+FFFD. Anything else as it is."""
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(value, str) else value


def _parse(line: str, number: int) -> Interaction:
    """One line of an export. The file may come from anywhere, so every type is checked."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LogError(f"line {number} is not JSON ({error}): nothing was imported") from error
    if not isinstance(values, dict):
        raise LogError(f"line {number} is not a JSON object: nothing was imported")
    wrong = [f"no {name}" for name in (*_TEXTS, "time") if name not in values]
    wrong += [f"unknown {name!r:.40}" for name in values if name not in _EXPORTED]
    wrong += [f"{name} is not text" for name in _TEXTS if not isinstance(values.get(name, ""), str)]
    wrong += [f"{name} is not text" for name in _OPTIONAL_TEXTS if not isinstance(values.get(name), str | None)]
    time = values.get("time", 0.0)
    # The bound keeps dates printable, and refuses NaN.
    if type(time) not in (int, float) or not 0 <= time < 1e11:
        wrong.append("time is not in unix seconds")
    if values.get("feedback") is not None and (
        type(values["feedback"]) is not int or values["feedback"] not in (1, -1)
    ):
        wrong.append("feedback is not 1 or -1")
    if type(values.get("complete", True)) is not bool:
        wrong.append("complete is not true or false")
    if wrong:
        raise LogError(f"line {number}: {', '.join(wrong[:4])}: nothing was imported")
    texts = {name: _storable(value) for name, value in values.items()}
    return Interaction(**{"id": 0, "system": None} | texts | {"time": float(time)})
