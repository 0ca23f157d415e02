"""Opening GGUF files: the same facts as the reference reader, and one line for whatever is damaged."""

from __future__ import annotations

import struct
import time
import warnings
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engrain.quant.errors import EngrainError
from engrain.quant.gguf import GGUFError, Hyper, open_gguf
from tests.tiny import SHAPES, TEMPLATE, build_tiny_gguf


def write(path: Path, *, tensors: bool = True, **metadata: object) -> Path:
    """A small GGUF with the given metadata, dots written as two underscores."""
    writer = gguf.GGUFWriter(path, str(metadata.pop("architecture", "llama")))
    for key, value in metadata.items():
        name = key.replace("__", ".")
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_int32(name, int(str(value)))
    if tensors:
        writer.add_tensor("token_embd.weight", np.zeros((5, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def opened_or_refused(path: Path) -> bool:
    """Whether it opens, with everything in it readable; anything but GGUFError is a failure."""
    try:
        model = open_gguf(path)
        dict(model.metadata)
        [tensor.data.sum() for tensor in model.tensors.values()]
        _ = model.hyper
    except GGUFError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        return False
    return True


@pytest.mark.parametrize("architecture", SHAPES)
def test_everything_equals_the_reference_reader(architecture: str, tmp_path: Path) -> None:
    path = build_tiny_gguf(tmp_path / "a.gguf", architecture, Kind.Q8_0)
    model, reference = open_gguf(path), GGUFReader(path)
    assert list(model.metadata) == list(reference.fields)
    for key, field in reference.fields.items():
        assert model.metadata[key] == field.contents(), key
    assert list(model.tensors) == [tensor.name for tensor in reference.tensors]
    for theirs in reference.tensors:
        ours = model.tensors[theirs.name]
        assert (ours.name, ours.kind) == (theirs.name, theirs.tensor_type)
        assert ours.shape == tuple(int(n) for n in theirs.shape[::-1])
        assert ours.data.dtype == np.uint8 and ours.data.shape[:-1] == ours.shape[:-1]
        assert ours.data.tobytes() == theirs.data.tobytes()


@pytest.mark.parametrize("kind", ["string", "number", "truth"])
@pytest.mark.parametrize("count", [1, 1024, 1025, 3000])
def test_long_arrays(kind: str, count: int, tmp_path: Path) -> None:
    make = {"string": lambda i: "ž" * (i % 5), "number": float, "truth": lambda i: i % 3 == 0}[kind]
    values = [make(i) for i in range(count)]
    path = write(tmp_path / "a.gguf", some__array=values, after="yes")
    model = open_gguf(path)
    assert model.metadata["after"] == "yes"
    assert model.metadata["some.array"] == values == GGUFReader(path).fields["some.array"].contents()


def test_hyper_parameters(tiny: Path) -> None:
    assert open_gguf(tiny).hyper == Hyper(
        architecture="llama",
        n_layer=2,
        n_embd=64,
        n_ff=128,
        n_head=4,
        n_head_kv=2,
        head_dim=16,
        n_vocab=448,
        n_ctx=1024,
        norm_eps=float(np.float32(1e-5)),
        rope_base=10_000.0,
        rope_dim=16,
    )


def test_defaults_of_hyper_parameters(tmp_path: Path) -> None:
    needed = {"block_count": 1, "embedding_length": 8, "feed_forward_length": 16, "context_length": 32}
    keys = {f"llama__{key}": value for key, value in needed.items()}
    hyper = open_gguf(write(tmp_path / "a.gguf", llama__attention__head_count=2, **keys)).hyper
    assert (hyper.n_head_kv, hyper.head_dim, hyper.rope_dim, hyper.n_vocab) == (2, 4, 4, 5)
    assert (hyper.rope_base, hyper.norm_eps) == (10_000.0, 1e-5)


def test_missing_and_senseless_keys_are_named(tmp_path: Path) -> None:
    keys: dict[str, object] = {
        "llama__embedding_length": 8,
        "llama__attention__head_count": 2,
        "llama__block_count": 1,
        "llama__feed_forward_length": 16,
        "llama__context_length": 32,
    }
    for i, key in enumerate(keys):
        rest = {k: v for k, v in keys.items() if k != key}
        name = key.replace("__", ".")
        with pytest.raises(GGUFError, match=f"lacks the metadata key {name}"):
            _ = open_gguf(write(tmp_path / f"{i}.gguf", **rest)).hyper
        for j, bad in enumerate((0, -3, "many", float("nan"), float("inf"), [1, 2])):
            with pytest.raises(GGUFError, match=name):
                _ = open_gguf(write(tmp_path / f"{i}-{j}.gguf", **rest, **{key: bad})).hyper
    same = open_gguf(write(tmp_path / "list.gguf", **{**keys, "llama__feed_forward_length": [16, 16]}))
    assert same.hyper.n_ff == 16
    with pytest.raises(GGUFError, match=r"token_embd\.weight"):
        _ = open_gguf(write(tmp_path / "none.gguf", tensors=False, **keys)).hyper


def test_template_and_architecture(tiny: Path, tmp_path: Path) -> None:
    assert open_gguf(tiny).template == TEMPLATE
    assert open_gguf(build_tiny_gguf(tmp_path / "bare.gguf", template=False)).template is None
    with pytest.raises(GGUFError, match="architecture") as caught:
        _ = open_gguf(write(tmp_path / "odd.gguf", architecture="a\nb")).architecture
    assert "\n" not in str(caught.value)


def test_writing_to_a_tensor_leaves_the_file(tiny: Path) -> None:
    before = tiny.read_bytes()
    open_gguf(tiny).tensors["token_embd.weight"].data[:] = 0
    assert tiny.read_bytes() == before


def test_a_large_vocabulary_opens_at_once(tmp_path: Path) -> None:
    tokens = [f"token {i}" for i in range(150_000)]
    path = write(tmp_path / "a.gguf", tokenizer__tokens=tokens, tokenizer__merges=tokens)
    start = time.process_time()
    model = open_gguf(path)
    assert time.process_time() - start < 1.0  # 10 times what it takes; an object for each takes 5 s
    assert model.metadata["tokenizer.tokens"] == tokens


# Damage


@pytest.mark.parametrize("content", [b"", b"GG", b"no model at all", b"GGUF", b"GGUF\x03\0\0\0", b"\x89PNG" * 99])
def test_what_is_no_gguf(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(EngrainError, match=r"a\.gguf"):
        open_gguf(path)


def test_missing_folder_and_odd_paths(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path, tmp_path / "a\0b.gguf"):
        with pytest.raises(GGUFError):
            open_gguf(path)


@pytest.mark.parametrize("version", [0, 1, 4, 3 << 24, 2**32 - 1])
def test_versions(version: int, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", version) + tiny.read_bytes()[8:])
    with pytest.raises(GGUFError, match=f"version {version}"):
        open_gguf(path)


@pytest.mark.parametrize("at", [8, 16])
@pytest.mark.parametrize("count", [1 << 14, 1 << 20, 1 << 33, 2**64 - 1])
def test_absurd_counts(at: int, count: int, tiny: Path, tmp_path: Path) -> None:
    data = bytearray(tiny.read_bytes())
    data[at : at + 8] = struct.pack("<Q", count)
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    start = time.process_time()
    assert not opened_or_refused(path)
    assert time.process_time() - start < 5


def test_cut_off_anywhere(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.gguf", general__name="a", some__array=list(range(2000)), words=["a", "bc"])
    data, path = whole.read_bytes(), tmp_path / "cut.gguf"
    for end in {*range(0, 400), *range(400, len(data), 97), *range(len(data) - 200, len(data))}:
        path.write_bytes(data[:end])
        with pytest.raises(GGUFError):
            open_gguf(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_refused_or_harmless(data: st.DataObject, tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    if not whole.exists():
        write(whole, general__name="a", some__array=list(range(1100)), words=["a"] * 1100, few=["x", "y"])
    content, path = bytearray(whole.read_bytes()), tmp_path / "damaged.gguf"
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(8, len(content) - 8))
        content[at : at + 8] = data.draw(st.sampled_from([b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 2**63), b"\x09"]))
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened_or_refused(path)


def test_a_tensor_beyond_the_end_or_inside_the_header(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.gguf").read_bytes()
    at = whole.index(b"token_embd.weight") + 17 + 4 + 16 + 4  # behind name, dimensions and kind: the offset
    assert whole[at : at + 8] == bytes(8)
    path = tmp_path / "a.gguf"
    for offset in (32, 1 << 40, 2**64 - 64, 2**64 - 1):
        path.write_bytes(whole[:at] + struct.pack("<Q", offset) + whole[at + 8 :])
        with pytest.raises(GGUFError):
            open_gguf(path)
