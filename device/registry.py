"""Adapter versions, which one is current, and the way back.

`adapters/0007-3fa9c1d2/` is version 7: its safetensors file's SHA-256 begins with 3fa9c1d2, so damage shows.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import struct
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engrain.device.home import Home, cannot_write, lock, write_atomic
from engrain.device.models import hash_file
from engrain.quant.errors import EngrainError
from engrain.quant.files import read_rows, replace_file, sync_folder

if TYPE_CHECKING:
    from engrain.quant.adapter import Adapter

# As in quant.peft, which chat starts don't import.
WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"
# Beside a version: what it was taught, question by question, and the questions kept out of training.
LESSONS, PROBES = "lessons.jsonl", "probes.jsonl"
_NAME = re.compile(r"(\d{4,9})-([0-9a-f]{8})")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_HEADER_LIMIT = 16 << 20  # bytes; ours have some ten thousand
_TEMPORARY = ".new-"
_LOCK_SECONDS = 60.0


class RegistryError(EngrainError):
    """There is no such version, or it is damaged."""


@dataclass(frozen=True)
class Version:
    """One adapter version. `base` is the base GGUF's SHA-256, `sha256` that of the weights; `created` unix s.

    `problem` says in a few words what is wrong with a damaged one, whose other fields may then be empty.
    """

    name: str
    folder: Path
    base: str = ""
    created: float = 0.0
    parents: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    sha256: str = ""
    problem: str | None = None

    @property
    def number(self) -> int:
        return int(self.name.partition("-")[0])

    @property
    def rejected(self) -> bool:
        """Whether it failed its checks, and was kept aside."""
        return self.metadata.get("engrain.status") == "rejected"


class Registry:
    """The versions in a data folder. Any number of processes may use it at once."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._current_path = home.adapters / "current"
        self._history_path = home.adapters / "history.json"

    def list(self) -> Versions:
        """All versions, oldest first; damaged ones with their `problem`."""
        return [_read(self.home.adapters / name) for name in self._names()]

    def get(self, name: str) -> Version:
        """The version of that name, number ("7") or unique beginning; RegistryError if there is none."""
        names = self._names()
        matching = [known for known in names if known == name]
        if not matching and name.isascii() and name.isdigit() and len(name) < 10:
            matching = [known for known in names if int(known.partition("-")[0]) == int(name)]
        if not matching and name:
            matching = [known for known in names if known.startswith(name)]
        if len(matching) != 1:
            reason = f"{name!r} could be {', '.join(matching)}" if matching else f"there is no adapter {name!r}"
            raise RegistryError(f"{reason}: `engrain adapter list` shows those there are")
        return _read(self.home.adapters / matching[0])

    def current_name(self) -> str | None:
        """What the `current` pointer says, None when no adapter is in use."""
        try:
            with self._current_path.open("rb") as file:
                return file.read(200).decode(errors="replace").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RegistryError(f"{self._current_path} can't be read ({error}): mend its permissions") from error

    def add(self, adapter: Adapter, card: str, extra: Mapping[str, bytes] | None = None) -> Version:
        """Store a new version with its card and `extra` files (name -> content); `current` stays."""
        from engrain.quant.peft import save_peft

        if not _DIGEST.fullmatch(adapter.metadata.get("engrain.base_sha256", "")):
            raise RegistryError("an adapter needs its base model's SHA-256 in engrain.base_sha256: import it again")
        for name in extra or {}:
            if Path(name).name != name or "\\" in name or name in (WEIGHTS, CONFIG, CARD):
                raise RegistryError(f"{name!r} can't be the name of a file beside an adapter: rename it")
        metadata = {"engrain.created": repr(time.time()), **adapter.metadata}
        with self._locked() as folder:
            temporary: Path | None = None
            try:
                temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder))
                save_peft(replace(adapter, metadata=metadata), temporary, metadata.get("engrain.base_name", ""))
                for name, content in {CARD: card.encode(errors="replace"), **(extra or {})}.items():
                    write_atomic(temporary / name, content)
                sync_folder(temporary)
                number = max((int(name.partition("-")[0]) for name in self._names()), default=0) + 1
                target = folder / f"{number:04d}-{hash_file(temporary / WEIGHTS)[:8]}"
                temporary.rename(target)
                temporary = None
                sync_folder(folder)
            except OSError as error:
                raise cannot_write(folder, error) from error
            finally:
                if temporary is not None:
                    shutil.rmtree(temporary, ignore_errors=True)
        return sound(_read(target))

    def use(self, name: str | None) -> Version | None:
        """Make a version current, None for no adapter. RegistryError or AdapterError if it doesn't load."""
        with self._locked():
            version = None if name is None else _loadable(self.get(name))
            before = self.current_name()
            after = version.name if version else None
            if before != after:
                # History first: a crash in between leaves an entry equal to current, which rollback skips.
                self._write_history([*self._history(), before])
                self._point(after)
        return version

    def rollback(self) -> Version | None:
        """Go back to what was current before, None for no adapter; what can't be loaded is passed over."""
        with self._locked():
            history, now = self._history(), self.current_name()
            while history:
                name = history.pop()
                version = None
                if name is not None:
                    try:
                        version = _loadable(self.get(name))
                    except EngrainError:
                        continue
                    name = version.name
                if name != now:
                    self._point(name)
                    self._write_history(history)
                    return version
        raise RegistryError("there is no earlier adapter to go back to: `engrain adapter use NAME` picks one")

    def remove(self, name: str) -> None:
        """Delete a version and what was derived from it. The current one can't be removed."""
        version = self.get(name)
        with self._locked() as folder:
            if version.name == self.current_name():
                raise RegistryError(f"{version.name} is in use: `engrain adapter rollback` or `use` another first")
            try:
                # Renamed first, so that a crash leaves no half version.
                doomed = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder))
                version.folder.rename(doomed / version.name)
                sync_folder(folder)
                shutil.rmtree(doomed)
                # By the stored digest: a damaged version's own is another by now.
                for derived in (self.home.cache / "lora").glob(version.name.rpartition("-")[2] + "*.gguf"):
                    derived.unlink()
            except OSError as error:
                raise cannot_write(version.folder, error) from error
            self._write_history([entry for entry in self._history() if entry != version.name])

    def seen(self, name: str) -> set[int]:
        """Ids of the interactions that a version's weights were trained on, or those that it was trained on from."""
        return {id for each in self.ancestors(name) for id in _learned(self.home.adapters / each)}

    def holders(self, interactions: Collection[int]) -> Names:
        """The versions whose weights saw one of these (ids), oldest first; rejected ones too."""
        names = self._names()
        learned = {name for name in names if _learned(self.home.adapters / name).intersection(interactions)}
        return [name for name in names if learned.intersection(self.ancestors(name))]

    def ancestors(self, name: str) -> Names:
        """`name`, then its parents, theirs, and so on; those that were removed since are named too."""
        found: dict[str, None] = {}
        waiting = [name]
        while waiting:
            next_name = waiting.pop(0)
            if next_name not in found:
                found[next_name] = None
                if _NAME.fullmatch(next_name):
                    metadata = _metadata(self.home.adapters / next_name)
                    listed = [*_listed(metadata, "parents"), *_listed(metadata, "ancestors")]
                    waiting += [each for each in listed if isinstance(each, str)]
        return [*found]

    def verified_current(self, base_sha256: str) -> tuple[Version | None, str | None]:
        """The version to serve with this base, None for none; and, if it isn't the current one, a line why.

        Falls back to the newest good version for the base that isn't newer than the current one and passed
        its checks, and changes nothing.
        """
        name = self.current_name()
        if name is None:
            return None, None
        named = _NAME.fullmatch(name)
        if named is None:
            reason = f"the pointer {self._current_path} is damaged"
        else:
            version = _read(self.home.adapters / name)
            if version.problem is None and version.base == base_sha256:
                return version, None
            reason = f"adapter {name} " + (version.problem or "is for another model")
        newer = [each for each in self._names() if named and int(each.partition("-")[0]) > int(named[1])]
        if older := self.newest(base_sha256, without=[name, *newer]):
            return older, f"{reason}: going on with {older.name}"
        return None, f"{reason}, and there is no earlier one for this model: going on without"

    def newest(self, base_sha256: str, without: Collection[str]) -> Version | None:
        """The newest good version for the base that passed its checks, and is none of these."""
        for name in reversed(self._names()):
            version = _read(self.home.adapters / name) if name not in without else None
            if version and version.problem is None and version.base == base_sha256 and not version.rejected:
                return version
        return None

    def gguf(self, version: Version) -> Path:
        """The version as a GGUF LoRA for llama.cpp: derived, cached, built again when it isn't there."""
        version = sound(_read(version.folder))
        target = self._gguf_path(version)
        if not target.is_file():
            from engrain.quant.gguf_lora import save_gguf
            from engrain.quant.peft import load_peft

            try:
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                replace_file(target, lambda temporary: save_gguf(load_peft(version.folder), temporary))
            except OSError as error:
                raise cannot_write(target, error) from error
        return target

    def _gguf_path(self, version: Version) -> Path:
        return self.home.cache / "lora" / f"{version.sha256}.gguf"

    def _names(self) -> Names:
        """Names of all version folders, by number."""
        try:
            found = [path.name for path in self.home.adapters.iterdir() if _NAME.fullmatch(path.name)]
        except OSError:
            return []
        return sorted(found, key=lambda name: (int(name.partition("-")[0]), name))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[Path]:
        """One writer at a time: so numbers don't collide, and every temporary folder found is a leftover."""
        folder = self.home.adapters
        with lock(self.home, "adapter-writer", wait=_LOCK_SECONDS):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write(folder, error) from error
            for leftover in folder.glob(_TEMPORARY + "*"):
                shutil.rmtree(leftover, ignore_errors=True)
            yield folder

    def _point(self, name: str | None) -> None:
        if name is not None:
            write_atomic(self._current_path, name + "\n")
            return
        try:
            self._current_path.unlink(missing_ok=True)
            sync_folder(self._current_path.parent)
        except OSError as error:
            raise cannot_write(self._current_path, error) from error

    def _history(self) -> History:
        """What was current before, latest last; None is no adapter. A damaged file counts as empty."""
        try:
            entries = json.loads(self._history_path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return []
        return [entry for entry in entries if isinstance(entry, str | None)] if isinstance(entries, list) else []

    def _write_history(self, entries: History) -> None:
        write_atomic(self._history_path, json.dumps(entries[-1000:]) + "\n")


# The registry has a method `list`, which hides the type inside the class.
Versions = list[Version]
Names = list[str]
History = list[str | None]


def read_header(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, without the library: chat starts read nothing else of it.

    Raises ValueError or OSError.
    """
    with path.open("rb") as file:
        prefix = file.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= size <= _HEADER_LIMIT:
            raise ValueError("not a safetensors file")
        header = json.loads(file.read(size))
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("no safetensors header")
    return metadata


def _read(folder: Path) -> Version:
    """A version as its files are now; what is wrong goes into `problem`."""
    version = Version(folder.name, folder)
    try:
        digest = hash_file(folder / WEIGHTS)
        if digest[:8] != folder.name.rpartition("-")[2]:
            return replace(version, sha256=digest, problem=f"is damaged: {WEIGHTS} isn't what was stored")
        metadata = read_header(folder / WEIGHTS)
        base = metadata.get("engrain.base_sha256", "")
        created = float(metadata.get("engrain.created", "0"))
        parents = json.loads(metadata.get("engrain.parents", "[]"))
        if not isinstance(json.loads((folder / CONFIG).read_text(encoding="utf-8")), dict):
            raise ValueError(f"{CONFIG} is not a JSON object")
        if not _DIGEST.fullmatch(base) or not math.isfinite(created):
            raise ValueError("its metadata name no base model")
        if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
            raise ValueError("its metadata name no parents")
    except FileNotFoundError as error:
        return replace(version, problem=f"is damaged: {Path(error.filename).name} is gone")
    except (OSError, ValueError, RecursionError) as error:
        return replace(version, problem=f"is damaged: {error}")
    return replace(version, base=base, created=created, parents=tuple(parents), metadata=metadata, sha256=digest)


def _metadata(folder: Path) -> dict[str, str]:
    """What the version in this folder says of itself, be its weights damaged or not; nothing where that is lost."""
    try:
        return read_header(folder / WEIGHTS)
    except (OSError, ValueError, RecursionError):
        return {}


def _learned(folder: Path) -> set[int]:
    """Ids of the interactions that the weights in this folder were trained on: as they say, and as the lessons do."""
    found = _listed(_metadata(folder), "interactions")
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        found += [id for row in read_rows(folder / LESSONS) for id in row["source"]]
    return {id for id in found if isinstance(id, int)}


def metadata_value(metadata: Mapping[str, str], key: str) -> Any:
    """A JSON value of the metadata, None when it is missing or no JSON."""
    try:
        return json.loads(metadata.get(f"engrain.{key}", "null"))
    except (ValueError, RecursionError):
        return None


def _listed(metadata: Mapping[str, str], key: str) -> list[Any]:
    """A list of the metadata; empty where there is none."""
    found = metadata_value(metadata, key)
    return found if isinstance(found, list) else []


def sound(version: Version) -> Version:
    """The version; RegistryError if it is damaged."""
    if version.problem is not None:
        raise RegistryError(f"adapter {version.name} {version.problem}; `engrain adapter list` shows the others")
    return version


def _loadable(version: Version) -> Version:
    from engrain.quant.peft import load_peft

    load_peft(sound(version).folder)
    return version


def trained_questions(folder: Path) -> set[str]:
    """The questions that the version in this folder was trained on, in `plain_question`'s form."""
    lessons = folder / LESSONS
    return {plain_question(row["question"]) for row in (read_rows(lessons) if lessons.exists() else [])}


def plain_question(text: str) -> str:
    """A question without what makes no difference: case, spacing, the mark at its end."""
    return " ".join(text.lower().split()).rstrip("?")
