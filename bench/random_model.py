"""A GGUF of any size with random weights in Q4_K_M's block formats, to measure memory and speed on.

    python bench/random_model.py build/random-1.1b.gguf --like starter.gguf

The tokenizer and template are another model's, so that every command works on it; what it says is noise. The default
shape is TinyLlama's (1.1 B parameters, arXiv 2401.02385). As llama.cpp's Q4_K_M has it, half of the layers keep
attn_v and ffn_down in Q6_K, as does the head; all else is Q4_K.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

Q4_K, Q6_K = GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q6_K


@dataclass(frozen=True)
class Shape:
    """A llama decoder's; widths must be multiples of 256, the length of a K-quant's block."""

    n_layer: int = 22
    n_embd: int = 2048
    n_ff: int = 5632
    n_head: int = 32
    n_head_kv: int = 4


def write_random_model(path: Path, like: Path, shape: Shape = Shape(), seed: int = 0) -> int:
    """Write the model -> its number of parameters."""
    random = np.random.default_rng(seed)
    writer = GGUFWriter(path, "llama")
    writer.add_name("random")
    for key, value in {
        "block_count": shape.n_layer,
        "context_length": 2048,
        "embedding_length": shape.n_embd,
        "feed_forward_length": shape.n_ff,
        "attention.head_count": shape.n_head,
        "attention.head_count_kv": shape.n_head_kv,
        "rope.dimension_count": shape.n_embd // shape.n_head,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    n_vocab = _copy_tokenizer(writer, like)
    count = 0

    def matrix(name: str, n_out: int, n_in: int, kind: GGMLQuantizationType = Q4_K) -> None:
        nonlocal count
        writer.add_tensor(name, random_blocks(kind, n_out, n_in, random), raw_dtype=kind)
        count += n_out * n_in

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(shape.n_embd, dtype=np.float32))

    matrix("token_embd.weight", n_vocab, shape.n_embd)
    matrix("output.weight", n_vocab, shape.n_embd, Q6_K)
    norm("output_norm.weight")
    n_kv = shape.n_embd // shape.n_head * shape.n_head_kv
    for i in range(shape.n_layer):
        more = Q6_K if i % 2 else Q4_K
        matrix(f"blk.{i}.attn_q.weight", shape.n_embd, shape.n_embd)
        matrix(f"blk.{i}.attn_k.weight", n_kv, shape.n_embd)
        matrix(f"blk.{i}.attn_v.weight", n_kv, shape.n_embd, more)
        matrix(f"blk.{i}.attn_output.weight", shape.n_embd, shape.n_embd)
        matrix(f"blk.{i}.ffn_gate.weight", shape.n_ff, shape.n_embd)
        matrix(f"blk.{i}.ffn_up.weight", shape.n_ff, shape.n_embd)
        matrix(f"blk.{i}.ffn_down.weight", shape.n_embd, shape.n_ff, more)
        norm(f"blk.{i}.attn_norm.weight")
        norm(f"blk.{i}.ffn_norm.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return count


def random_blocks(kind: GGMLQuantizationType, n_out: int, n_in: int, random: np.random.Generator) -> np.ndarray:
    """(n_out, bytes of a row), values of mean zero and a variance of about 1 / n_in."""
    length, size = GGML_QUANT_SIZES[kind]
    blocks = np.frombuffer(random.bytes(n_out * n_in // length * size), np.uint8).reshape(-1, size).copy()
    if kind == Q4_K:  # d · scale · q - dmin · min, with 6-bit scale and min, 4-bit q: dmin = 7.5 d centres it
        d = 1 / (170 * np.sqrt(n_in))
        blocks[:, :4] = np.array([d, 7.5 * d], np.float16).view(np.uint8)
    else:  # Q6_K: d · scale · (q - 32), with 8-bit scale, 6-bit q
        blocks[:, 208:210] = np.array([1 / (1365 * np.sqrt(n_in))], np.float16).view(np.uint8)
    return blocks.reshape(n_out, -1)


def _copy_tokenizer(writer: GGUFWriter, like: Path) -> int:
    """All tokenizer keys of another model -> the size of its vocabulary."""
    fields = {k: f for k, f in GGUFReader(like).fields.items() if k.startswith("tokenizer.")}
    for key, field in fields.items():
        kind, *item = field.types
        writer.add_key_value(key, field.contents(), kind, item[0] if kind == GGUFValueType.ARRAY else None)
    return len(fields["tokenizer.ggml.tokens"].data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="the GGUF to write")
    parser.add_argument("--like", type=Path, required=True, help="a GGUF whose tokenizer to use")
    for name, value in vars(Shape()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    options = parser.parse_args()
    shape = Shape(**{name: getattr(options, name) for name in vars(Shape())})
    options.path.parent.mkdir(parents=True, exist_ok=True)
    count = write_random_model(options.path, options.like, shape)
    print(f"{options.path}: {count / 1e9:.2f} B parameters, {options.path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
