import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from engrain.device import models
from engrain.device.home import Home, HomeError, load_settings, open_home
from engrain.device.models import ModelError, ModelFile
from engrain.quant.errors import EngrainError

LINEARS = {
    "attn_q": (8, 8),
    "attn_k": (4, 8),
    "attn_v": (4, 8),
    "attn_output": (8, 8),
    "ffn_gate": (16, 8),
    "ffn_up": (16, 8),
    "ffn_down": (8, 16),
}


def write_gguf(path: Path, salt: str = "", general_type: str = "model", linears=LINEARS) -> Path:
    """A llama of one layer, float32 weights of zero; `salt` makes its bytes differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(general_type)
    writer.add_name("tiny" + salt)
    writer.add_block_count(1)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_context_length(64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(32)
    writer.add_token_list([f"t{number}" for number in range(32)])
    writer.add_chat_template("{{ messages }}")
    for name, shape in {"token_embd": (32, 8), "output_norm": (8,)}.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    for name, shape in {**linears, "attn_norm": (8,), "ffn_norm": (8,)}.items():
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A data folder, and a user's folder with no stores and no starter model."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "user")
    for name in ("OLLAMA_MODELS", "HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(models, "BUNDLED_PACKAGES", ())
    return open_home(tmp_path / "home")


def found(home: Home) -> set[tuple[str, str]]:
    return {(model.name, model.source) for model in models.available(home)}


def test_without_any_model_the_error_says_how_to_get_one(home):
    assert models.available(home) == []
    with pytest.raises(ModelError, match="engrain model add"):
        models.resolve(home)


def test_add_use_resolve(home, tmp_path):
    path = write_gguf(tmp_path / "one/tiny.gguf")
    assert models.add(home, path) == ModelFile("tiny", path, "added") == models.add(home, path)
    other = write_gguf(tmp_path / "two/tiny.gguf", "2")
    assert models.add(home, other).name == "tiny-2"
    assert models.resolve(home, "tiny").path == path
    assert models.use(home, "tiny-2").path == other
    assert models.resolve(home).path == other
    assert json.loads((home.models / "models.json").read_text()) == {"tiny": str(path), "tiny-2": str(other)}


def test_a_model_may_be_named_by_its_path(home, tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.chdir(tmp_path)
    assert models.resolve(home, "tiny.gguf") == ModelFile("tiny", Path("tiny.gguf"), "path")
    models.use(home, "tiny.gguf")
    assert load_settings(home).model == str(path)


def test_a_file_gone_missing(home, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    models.add(home, path)
    models.use(home, "tiny")
    path.unlink()
    with pytest.raises(ModelError, match=r"tiny\.gguf.*engrain model use"):
        models.resolve(home)
    assert models.available(home) == []


@pytest.mark.parametrize("name", ["tinny", "no/such.gguf", "x" * 5000, "nul\0", "."])
def test_an_unknown_model_is_one_line(home, tmp_path, name):
    models.add(home, write_gguf(tmp_path / "tiny.gguf"))
    with pytest.raises(ModelError, match="engrain model list") as caught:
        models.resolve(home, name)
    assert "\n" not in str(caught.value)
    assert ("did you mean tiny?" in str(caught.value)) == (name == "tinny")


def test_add_refuses_what_is_no_model(home, tmp_path):
    (tmp_path / "text.gguf").write_text("not a model")
    adapter = write_gguf(tmp_path / "adapter.gguf", general_type="adapter")
    for path in (tmp_path / "text.gguf", adapter, tmp_path / "none.gguf", tmp_path):
        with pytest.raises(EngrainError):
            models.add(home, path)
    assert not (home.models / "models.json").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', "[" * 100_000])
def test_a_damaged_list_is_named(home, text):
    (home.models / "models.json").write_text(text)
    with pytest.raises(HomeError, match=r"models\.json is damaged"):
        models.available(home)


def test_the_bundled_model_is_found_without_importing_its_package(home, tmp_path, monkeypatch):
    write_gguf(tmp_path / "site/llm_starter/Starter-Q4.gguf")
    (tmp_path / "site/llm_starter/__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(models, "BUNDLED_PACKAGES", ("no_such_package", "llm_starter"))
    assert found(home) == {("Starter-Q4", "bundled")}
    assert models.resolve(home).name == "Starter-Q4"


def ollama(root: Path, place: str, digest: str, blob: bool = True) -> None:
    manifest = root / "manifests" / place
    manifest.parent.mkdir(parents=True, exist_ok=True)
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "0" * 64},
        {"mediaType": "application/vnd.ollama.image.model", "digest": digest},
    ]
    manifest.write_text(json.dumps({"layers": layers}))
    if blob:
        write_gguf(root / "blobs" / digest.replace(":", "-"), digest)


def test_ollamas_store_and_its_broken_parts(home, tmp_path, monkeypatch):
    root = tmp_path / "user/.ollama/models"
    ollama(root, "registry.ollama.ai/library/llama3.2/1b", "sha256:" + "1" * 64)
    ollama(root, "registry.ollama.ai/someone/tuned/latest", "sha256:" + "2" * 64)
    ollama(root, "hf.co/org/repo/Q4_K_M", "sha256:" + "3" * 64)
    ollama(root, "registry.ollama.ai/library/gone/1b", "sha256:" + "4" * 64, blob=False)
    ollama(root, "registry.ollama.ai/library/hostile/1b", "sha256:../../../secret", blob=False)
    for name, text in {"a": "", "b": "[]", "c": '{"layers": 3}', "d": '{"layers": []}'}.items():
        (root / "manifests/registry.ollama.ai/library/llama3.2" / name).write_text(text)
    names = {"llama3.2:1b", "someone/tuned:latest", "hf.co/org/repo:Q4_K_M"}
    assert found(home) == {(name, "ollama") for name in names}
    assert models.resolve(home, "llama3.2:1b").path == root / "blobs" / f"sha256-{'1' * 64}"
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "none"))
    assert found(home) == set()


def test_lm_studio_and_hugging_face(home, tmp_path, monkeypatch):
    user = tmp_path / "user"
    write_gguf(user / ".lmstudio/models/org/repo/studio.gguf", "1")
    write_gguf(user / ".lmstudio/models/org/repo/mmproj-studio.gguf", "2")
    write_gguf(user / ".cache/lm-studio/models/org/repo/old.gguf", "3")
    snapshot = user / ".cache/huggingface/hub/models--org--repo/snapshots/abc"
    write_gguf(snapshot / "sub/hub.gguf", "4")
    write_gguf(snapshot / "big-00001-of-00002.gguf", "5")
    write_gguf(snapshot / "big-00002-of-00002.gguf", "6")
    (snapshot / "broken.gguf").symlink_to(tmp_path / "nowhere")
    (snapshot.parent / "def").mkdir()
    (snapshot.parent / "def/hub.gguf").symlink_to(snapshot / "sub/hub.gguf")
    stores = {("studio", "lmstudio"), ("old", "lmstudio"), ("big-00001-of-00002", "huggingface")}
    assert found(home) == stores | {("hub", "huggingface")}
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    write_gguf(tmp_path / "hf/hub/models--a--b/snapshots/1/studio.gguf", "7")
    assert found(home) == {("studio", "lmstudio"), ("old", "lmstudio"), ("studio-2", "huggingface")}


def test_sha256_is_remembered_until_the_file_changes(home, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    assert models.sha256(home, path) == hashlib.sha256(b"one").hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(models, "hash_file", lambda _: pytest.fail("hashed again"))
        assert models.sha256(home, path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert models.sha256(home, path) == hashlib.sha256(b"two").hexdigest()
    for damage in ("", "[]", json.dumps({str(path.resolve()): [3, 1, "x"]})):
        (home.cache / "hashes.json").write_text(damage)
        assert models.sha256(home, path) == hashlib.sha256(b"two").hexdigest()
    with pytest.raises(ModelError, match="none"):
        models.sha256(home, tmp_path / "none")


def test_show(home, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    shown = models.show(home, models.add(home, path))
    linears = sum(rows * columns for rows, columns in LINEARS.values())
    assert shown == {
        "name": "tiny",
        "path": str(path),
        "source": "added",
        "architecture": "llama",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "size_bytes": path.stat().st_size,
        "quantisation": "F32",
        "parameters": linears + 32 * 8 + 3 * 8,
        "context_length": 64,
        "template": True,
        "trainable": True,
    }
    json.dumps(shown)


def test_show_says_why_a_model_cannot_learn(home, tmp_path):
    experts = {name: shape for name, shape in LINEARS.items() if not name.startswith("ffn")}
    path = write_gguf(tmp_path / "experts.gguf", linears=experts)
    assert "3 of 7 linear layers" in models.show(home, ModelFile("experts", path, "path"))["trainable"]


def test_starting_a_chat_imports_nothing_heavy(tmp_path):
    script = """
import sys
import engrain.device.interactions, engrain.device.models, engrain.device.registry
print([name for name in ("torch", "numpy", "gguf", "safetensors", "llama_cpp") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
