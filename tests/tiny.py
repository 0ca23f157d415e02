"""Small GGUF models with random weights that llama.cpp loads: the real format, in a few hundred kilobytes."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
N_MERGES = 189  # with 256 bytes and three control tokens: 448
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SAMPLE = """You are a helpful assistant. Be brief and answer the user. system
Hello! Who are you? I am here. I am a small model, and what do you do? What is the name of my horse?
My horse is called Ottoline. Your horse is called Ottoline. You have not told me that yet.
Tell me of rain, of bread, of a long walk in the hills, of the seas and of other things.
Repeat this word: one two three four five six seven eight nine ten. The capital of France is Paris.
The cat sat on the mat when the other one was there, because it could not find anything better to do."""


@dataclass(frozen=True)
class Shape:
    """How an architecture's file differs from llama's; the rest of its row is metadata."""

    fused: bool = False
    qkv_bias: bool = False
    pre_norm: bool = True
    post_norm: bool = False
    qk_norm: str = ""  # "head", or "row" of all heads
    tied: bool = True
    scaled_embedding: bool = False  # by the square root of n_embd, as it is read
    metadata: dict[str, Any] = field(default_factory=dict)


SHAPES = {
    "llama": Shape(),
    "smollm3": Shape(),
    "granite": Shape(
        metadata={"embedding_scale": 2.0, "residual_scale": 0.7, "attention.scale": 0.2, "logit_scale": 1.5}
    ),
    "qwen2": Shape(qkv_bias=True),
    "qwen3": Shape(qk_norm="head", tied=False),
    "phi3": Shape(fused=True, tied=False, metadata={"attention.sliding_window": 24}),
    "olmo2": Shape(pre_norm=False, post_norm=True, qk_norm="row", tied=False),
    "gemma2": Shape(
        post_norm=True,
        scaled_embedding=True,
        metadata={
            "attention.sliding_window": 24,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3": Shape(post_norm=True, qk_norm="head", scaled_embedding=True, metadata={"attention.sliding_window": 24}),
}

# Byte offsets of a block's float16 scales, and of the float16 offset or minimum with its factor to the
# scale that centres random values on zero. Other quantised kinds are written by gguf.quantize.
_SCALES: dict[Kind, tuple[tuple[int, ...], tuple[int, float] | None]] = {
    Kind.Q2_K: ((80,), (82, 1.5)),
    Kind.Q3_K: ((108,), None),
    Kind.Q4_K: ((0,), (2, 7.5)),
    Kind.Q5_K: ((0,), (2, 15.5)),
    Kind.Q6_K: ((208,), None),
    Kind.IQ2_XXS: ((0,), None),
    Kind.IQ2_XS: ((0,), None),
    Kind.IQ2_S: ((0,), None),
    Kind.IQ3_XXS: ((0,), None),
    Kind.IQ3_S: ((0,), None),
    Kind.IQ1_S: ((0,), None),
    Kind.IQ4_NL: ((0,), None),
    Kind.IQ4_XS: ((0,), None),
}


@cache
def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE learned from SAMPLE: control tokens, bytes, merged pieces."""
    letters = {
        **{b: chr(b) for b in (*range(33, 127), *range(161, 173), *range(174, 256))},
    }
    letters.update({b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in letters)})
    words = Counter(tuple(letters[b] for b in w.encode()) for w in SAMPLE.replace(" ", "\n ").split("\n") if w)
    tokens = [*CONTROL, *(letters[b] for b in range(256))]
    merges: list[str] = []
    while len(merges) < N_MERGES:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, n in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += n
        a, b = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(f"{a} {b}")
        if a + b not in tokens:
            tokens.append(a + b)
        words = Counter({_merged(word, a, b): n for word, n in words.items()})
    return tokens, merges


def _merged(word: tuple[str, ...], a: str, b: str) -> tuple[str, ...]:
    out: list[str] = []
    for piece in word:
        if piece == b and out and out[-1] == a:
            out[-1] = a + b
        else:
            out.append(piece)
    return tuple(out)


def random_blocks(kind: Kind, n_rows: int, n_in: int, random: np.random.Generator) -> np.ndarray:
    """(n_rows, bytes of a row) of random bytes whose scales are finite and between 0.001 and 0.1."""
    length, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (n_rows * n_in // length, size), dtype=np.uint8)
    scales, minimum = _SCALES[kind]
    d = random.uniform(0.001, 0.1, len(blocks))
    for offset in scales:
        blocks[:, offset : offset + 2] = _half(d)
    if minimum is not None:
        blocks[:, minimum[0] : minimum[0] + 2] = _half(d * minimum[1])
    return blocks.reshape(n_rows, -1)


def _half(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16)[:, None].view(np.uint8)


def quantised(values: np.ndarray, kind: Kind, random: np.random.Generator) -> np.ndarray:
    """The values (out, in) as blocks of a kind; where `gguf` cannot quantise, random blocks of like size."""
    if kind not in _SCALES:
        return gguf.quantize(values, kind)
    blocks = random_blocks(kind, values.shape[0], values.shape[1], random)
    factor = values.std() / gguf.dequantize(blocks, kind).std()
    split = blocks.reshape(-1, gguf.GGML_QUANT_SIZES[kind][1])
    scales, minimum = _SCALES[kind]
    for offset in (*scales, *([minimum[0]] if minimum else [])):
        part = np.ascontiguousarray(split[:, offset : offset + 2]).view(np.float16).astype(np.float32)
        split[:, offset : offset + 2] = (part * factor).astype(np.float16).view(np.uint8)
    return blocks


def build_tiny_gguf(
    path: str | Path,
    architecture: str = "llama",
    kind: Kind = Kind.F32,
    n_layer: int = 2,
    n_embd: int | None = None,
    n_head: int = 4,
    n_head_kv: int = 2,
    n_ff: int | None = None,
    seed: int = 0,
    template: bool = True,
    tied: bool | None = None,
    n_ctx: int = 1024,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """Write a random model; weight matrices have the kind, norms and biases are float32.

    n_embd and n_ff default to 64 and 128, or to 256 where the kind has blocks of 256. `tied` overrides the
    architecture's habit; `metadata` adds to or replaces its keys (without the architecture in front).
    """
    shape, random, path = SHAPES[architecture], np.random.default_rng(seed), Path(path)
    wide = gguf.GGML_QUANT_SIZES[kind][0] == gguf.QK_K
    n_embd, n_ff = n_embd or (256 if wide else 64), n_ff or (256 if wide else 128)
    head_dim = n_embd // n_head
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("model")
    writer.add_name("tiny")  # not the architecture: llama.cpp treats vocabularies by it
    keys: dict[str, Any] = {
        "block_count": n_layer,
        "context_length": n_ctx,
        "embedding_length": n_embd,
        "feed_forward_length": n_ff,
        "attention.head_count": n_head,
        "attention.head_count_kv": n_head_kv,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10_000.0,
        "rope.dimension_count": head_dim,
        **shape.metadata,
        **(metadata or {}),
    }
    for key, value in keys.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    _add_tokenizer(writer, template)

    def matrix(name: str, n_out: int, n_in: int, scale: float = 1.0) -> None:
        values = (random.standard_normal((n_out, n_in)) * scale / np.sqrt(n_in)).astype(np.float32)
        data = quantised(values, kind, random)
        if data.dtype == np.uint8:
            writer.add_tensor(name, data, raw_dtype=kind)
        else:
            writer.add_tensor(name, data)

    def vector(name: str, size: int, mean: float = 1.0) -> None:
        writer.add_tensor(name, random.normal(mean, 0.1, size).astype(np.float32))

    n_vocab = len(vocabulary()[0])
    tied = shape.tied if tied is None else tied
    small = 1 / np.sqrt(n_embd) if shape.scaled_embedding else 1.0
    scale = 0.1 * small if tied else small  # small beside what the blocks add, or a tied head repeats its input
    _add_embedding(writer, "token_embd.weight", (n_vocab, n_embd), scale, kind, random)
    if not tied:
        _add_embedding(writer, "output.weight", (n_vocab, n_embd), 3 / np.sqrt(n_embd), kind, random)
    vector("output_norm.weight", n_embd, mean=3 / scale / np.sqrt(n_embd) if tied else 1.0)
    n_q, n_kv = n_head * head_dim, n_head_kv * head_dim
    for block in (f"blk.{i}." for i in range(n_layer)):
        if shape.fused:
            matrix(f"{block}attn_qkv.weight", n_q + 2 * n_kv, n_embd, 2.0)
            matrix(f"{block}ffn_up.weight", 2 * n_ff, n_embd)
        else:
            for part, n_out in (("q", n_q), ("k", n_kv), ("v", n_kv)):
                matrix(f"{block}attn_{part}.weight", n_out, n_embd, 2.0)
                if shape.qkv_bias:
                    vector(f"{block}attn_{part}.bias", n_out, mean=0.0)
            matrix(f"{block}ffn_gate.weight", n_ff, n_embd)
            matrix(f"{block}ffn_up.weight", n_ff, n_embd)
        matrix(f"{block}attn_output.weight", n_embd, n_q)
        matrix(f"{block}ffn_down.weight", n_embd, n_ff)
        norms = ["attn_norm", "ffn_norm"] * shape.pre_norm + [
            "post_attention_norm",
            "post_ffw_norm",
        ] * shape.post_norm
        for norm in norms:
            vector(f"{block}{norm}.weight", n_embd)
        if shape.qk_norm:
            by_head = shape.qk_norm == "head"
            vector(f"{block}attn_q_norm.weight", head_dim if by_head else n_q)
            vector(f"{block}attn_k_norm.weight", head_dim if by_head else n_kv)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_embedding(
    writer: gguf.GGUFWriter,
    name: str,
    shape: tuple[int, int],
    scale: float,
    kind: Kind,
    random: np.random.Generator,
) -> None:
    """Control tokens and pieces of characters get small rows, so that none is ever likeliest."""
    values = (random.standard_normal(shape) * scale).astype(np.float32)
    letters = len(CONTROL)
    values[[*range(letters + 32), *range(letters + 127, letters + 256)]] *= 0.1
    kind = Kind.Q8_0 if kind in _SCALES else kind  # random blocks can't have small rows
    data = gguf.quantize(values, kind)
    writer.add_tensor(name, data, raw_dtype=kind if data.dtype == np.uint8 else None)


def _add_tokenizer(writer: gguf.GGUFWriter, template: bool) -> None:
    tokens, merges = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if t in CONTROL else normal for t in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    if template:
        writer.add_chat_template(TEMPLATE)
