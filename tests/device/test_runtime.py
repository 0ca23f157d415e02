"""llama.cpp as it is used here: streams, scores, batches, adapters."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from engrain.device.home import open_home
from engrain.device.llama_model import ModelError, PromptTooLong, physical_cores
from engrain.device.models import resolve
from engrain.device.runtime import Runtime
from engrain.device.sampling import Reply, Sampler
from engrain.quant.adapter import Adapter
from engrain.quant.errors import EngrainError
from engrain.quant.gguf import open_gguf
from engrain.quant.gguf_lora import save_gguf

from ..tiny import build_tiny_gguf
from .messages import HELLO, LONGER

NOISE = 0.02  # logits: kernels for one row and for many add up in another order, over float16 keys and values


@pytest.fixture
def runtime(tiny: Path) -> Iterator[Runtime]:
    with Runtime.load(tiny, n_ctx=256) as loaded:
        yield loaded


def assert_greedy(runtime: Runtime, prompt: list[int], reply: list[int], max_tokens: int) -> None:
    """Each token is the likeliest, or as good as it, and the reply stopped where it should."""
    rows = runtime.logits(prompt + reply)[len(prompt) - 1 :]
    chosen = [*reply, runtime.end_of_turn][:max_tokens]
    assert (rows[: len(chosen)].max(axis=1) - rows[np.arange(len(chosen)), chosen]).max() <= NOISE


def random_adapter(model: Path, path: Path, seed: int, size: float = 0.2) -> Path:
    """A LoRA GGUF with random weights on q, v and down projections."""
    gguf = open_gguf(model)
    random = np.random.default_rng(seed)
    weights = {
        name: (
            random.normal(scale=size, size=(4, tensor.shape[1])).astype(np.float32),
            random.normal(scale=size, size=(tensor.shape[0], 4)).astype(np.float32),
        )
        for name, tensor in gguf.tensors.items()
        if name.endswith(("attn_q.weight", "attn_v.weight", "ffn_down.weight"))
    }
    hyper = gguf.hyper
    save_gguf(Adapter(4, 8.0, gguf.architecture, hyper.n_head, hyper.n_head_kv, weights), path)
    return path


@pytest.fixture
def adapters(tiny: Path, tmp_path: Path) -> tuple[Path, Path]:
    return random_adapter(tiny, tmp_path / "a.gguf", 1), random_adapter(tiny, tmp_path / "b.gguf", 2)


# Loading


@pytest.mark.parametrize("content", [b"", b"no model", b"GGUF\x03\0\0\0", b"GGUF" + b"\xff" * 100])
def test_what_cannot_be_loaded_is_one_line(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.gguf") as caught:
        Runtime.load(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_truncated_missing_or_a_folder(tiny: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.read_bytes()[:-1000])
    for path in (cut, tmp_path / "none.gguf", tmp_path):
        with pytest.raises(ModelError, match=str(path)):
            Runtime.load(path)


def test_llama_cpp_says_nothing(tiny: Path, adapters: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    with Runtime.load(tiny, n_ctx=64) as runtime:
        runtime.attach(adapters[0])
        runtime.complete(HELLO, max_tokens=2)
        runtime.generate_batch([[1, 2], [1, 3]], 2)
    assert capfd.readouterr() == ("", "")


def test_context_is_capped_to_the_models(tiny: Path) -> None:
    with Runtime.load(tiny, n_ctx=10**6) as runtime:
        assert runtime.n_ctx == open_gguf(tiny).hyper.n_ctx
    with pytest.raises(ModelError):
        Runtime.load(tiny, n_ctx=0)


def test_closed(tiny: Path, adapters: tuple[Path, Path]) -> None:
    runtime = Runtime.load(tiny, n_ctx=64)
    runtime.attach(adapters[0])
    stream = runtime.stream(HELLO)
    next(stream)
    runtime.close()
    runtime.close()
    uses = [
        lambda: next(stream),
        lambda: runtime.tokenize("a"),
        lambda: runtime.detokenize([1]),
        lambda: runtime.logits([1]),
        lambda: runtime.generate_batch([[1]], 1),
        lambda: runtime.attach(adapters[0]),
        lambda: runtime.end_of_turn,
    ]
    for use in uses:
        with pytest.raises(ModelError, match="closed"):
            use()


def test_physical_cores() -> None:
    assert 1 <= physical_cores() <= 1024


# Streams


def test_pieces_join_to_the_reply(runtime: Runtime) -> None:
    replies: list[Reply] = []
    pieces = list(runtime.stream(HELLO, max_tokens=80, temperature=1.5, seed=3, on_finish=replies.append))
    assert [reply.text for reply in replies] == ["".join(pieces)]
    assert all(pieces)
    "".join(pieces).encode()  # no half characters
    assert replies[0].prompt_tokens == len(runtime.prompt_tokens(HELLO))
    assert 0 < replies[0].completion_tokens <= 80
    assert replies[0] == runtime.complete(HELLO, max_tokens=80, temperature=1.5, seed=3)
    assert replies[0] != runtime.complete(HELLO, max_tokens=80, temperature=1.5, seed=4)


def test_greedy_is_the_largest_logit(runtime: Runtime) -> None:
    prompt = runtime.prompt_tokens(HELLO)
    assert_greedy(runtime, prompt, runtime.complete_tokens(prompt, 12), 12)


def test_the_held_prefix_changes_nothing(tiny: Path, runtime: Runtime) -> None:
    runtime.complete(HELLO, max_tokens=5)
    runtime.complete(LONGER, max_tokens=5)
    warm = runtime._main.next_logits(runtime.prompt_tokens(LONGER))
    assert len(runtime._main.held) == len(runtime.prompt_tokens(LONGER))
    with Runtime.load(tiny, n_ctx=256) as fresh:
        cold = fresh._main.next_logits(fresh.prompt_tokens(LONGER))
    np.testing.assert_allclose(warm, cold, atol=NOISE)


def test_two_streams_at_once_do_not_mix(runtime: Runtime) -> None:
    prompts = [runtime.prompt_tokens(each) for each in (HELLO, LONGER)]
    streams = [runtime._generate(prompt, 6, Sampler()) for prompt in prompts]
    replies = list(zip(*zip(*streams, strict=False), strict=True))
    for prompt, reply in zip(prompts, replies, strict=True):
        assert_greedy(runtime, prompt, list(reply), len(reply))


def test_a_broken_off_stream_leaves_the_runtime_whole(runtime: Runtime) -> None:
    before = runtime.complete_tokens(runtime.prompt_tokens(HELLO), 5)
    with closing(runtime.stream(LONGER, max_tokens=50)) as stream:
        next(stream)
    assert runtime.complete_tokens(runtime.prompt_tokens(HELLO), 5) == before


def test_the_contexts_end_ends_the_reply(tiny: Path) -> None:
    with Runtime.load(tiny, n_ctx=64) as runtime:
        prompt = (runtime.tokenize("hello ") * 64)[:60]
        assert len(runtime.complete_tokens(prompt, 100)) <= 4
        with pytest.raises(PromptTooLong, match="64") as caught:
            runtime.complete_tokens(prompt + prompt, 1)
        assert (caught.value.prompt_tokens, caught.value.n_ctx) == (120, 64)
        with pytest.raises(PromptTooLong):  # at once, not with the first piece
            runtime.stream([{"role": "user", "content": "word " * 100}])
        with pytest.raises(ModelError):
            runtime.complete_tokens([], 1)


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3", "phi3", "qwen3"])
def test_sliding_windows_and_other_architectures(tmp_path: Path, architecture: str) -> None:
    with Runtime.load(build_tiny_gguf(tmp_path / "m.gguf", architecture), n_ctx=256) as runtime:
        first, longer = runtime.prompt_tokens(HELLO), runtime.prompt_tokens(LONGER)
        for prompt in (first, longer, first):  # the second and third after a held prefix
            assert_greedy(runtime, prompt, runtime.complete_tokens(prompt, 12), 12)
        runtime.complete_tokens(longer, 30)
        assert_greedy(runtime, longer, runtime.complete_tokens(longer, 12), 12)
        prompts = [longer, first, longer[:50], longer[:40]]
        for prompt, reply in zip(prompts, runtime.generate_batch(prompts, 12), strict=True):
            assert_greedy(runtime, prompt, reply, 12)


def test_a_model_without_a_template(tmp_path: Path) -> None:
    with Runtime.load(build_tiny_gguf(tmp_path / "base.gguf", template=False), n_ctx=256) as runtime:
        assert not runtime.has_template
        assert runtime.render(HELLO) == "User: Hello, who are you?\nAssistant:"
        target = runtime.target_tokens(HELLO, "I am here.")
        assert runtime.detokenize(target) == " I am here."
        assert target[-1] == runtime.end_of_turn
        assert runtime.complete(HELLO, max_tokens=5).completion_tokens == 5
        for text in (" It is.\nUser: What is?", " It is.\nAssistant: It is.", " It is."):
            assert runtime.reply_text(runtime.tokenize(text)) == "It is."
        assert runtime.reply_text(runtime.tokenize(" It is\nUse")) == "It is\nUse"


# Scores and batches


def test_logits_in_several_batches(runtime: Runtime) -> None:
    tokens = runtime.tokenize("One two three four five six seven. " * 40)[:200]
    whole = runtime.logits(tokens)
    assert whole.shape == (len(tokens), runtime.n_vocab) and whole.dtype == np.float32
    np.testing.assert_array_equal(whole, runtime.logits(tokens))
    np.testing.assert_allclose(whole[:50], runtime.logits(tokens[:50]), rtol=1e-4, atol=1e-4)
    assert runtime.logits([]).shape == (0, runtime.n_vocab)


def test_score_is_the_log_softmax(runtime: Runtime) -> None:
    prompt, target = runtime.prompt_tokens(HELLO), runtime.tokenize("I am a small model.")
    rows = runtime.logits(prompt + target).astype(np.float64)[len(prompt) - 1 : -1]
    expected = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    scores = runtime.score(prompt, target)
    np.testing.assert_allclose(scores, expected[np.arange(len(target)), target], atol=1e-4)
    assert (scores < 0).all()
    assert runtime.score(prompt, []).shape == (0,)


@pytest.mark.parametrize("width", [1, 2, 16])
def test_batch_equals_one_by_one(runtime: Runtime, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engrain.device.runtime._WIDTH", width)
    prompts = [
        runtime.prompt_tokens([{"role": "user", "content": f"Tell me of {thing}."}])
        for thing in ("rain", "a long walk in the hills", "x", "bread", "seas")
    ]
    for prompt, reply in zip(prompts, runtime.generate_batch(prompts, 10), strict=True):
        assert_greedy(runtime, prompt, reply, 10)


def test_batches_of_nothing(runtime: Runtime) -> None:
    assert runtime.generate_batch([], 5) == []
    assert runtime.generate_batch([[1]], 0) == [[]]
    with pytest.raises(ModelError):
        runtime.generate_batch([[]], 5)
    with pytest.raises(PromptTooLong):
        runtime.generate_batch([[1], [1] * 300], 5)


def test_batch_samples_by_seed(runtime: Runtime) -> None:
    prompts = [runtime.prompt_tokens(HELLO)] * 4
    one, two, other = (
        runtime.generate_batch(prompts, 8, [Sampler(2.0, seed=(s, i)) for i in range(4)]) for s in (5, 5, 6)
    )
    assert one == two != other
    assert len({tuple(reply) for reply in one}) > 1


# Adapters


def test_attach_changes_logits_and_detach_restores_every_bit(runtime: Runtime, adapters: tuple[Path, Path]) -> None:
    tokens = runtime.prompt_tokens(HELLO)
    base = runtime.logits(tokens)
    runtime.attach(adapters[0], name="first")
    assert runtime.adapter == "first"
    adapted = runtime.logits(tokens)
    assert np.abs(adapted - base).max() > 0.1
    assert runtime.prove_adapter() > 0.1
    np.testing.assert_array_equal(runtime.logits(tokens), adapted)  # the proof leaves it attached
    runtime.detach()
    assert runtime.adapter is None and runtime.prove_adapter() == 0.0
    np.testing.assert_array_equal(runtime.logits(tokens), base)


def test_scale_zero_has_no_effect(runtime: Runtime, adapters: tuple[Path, Path]) -> None:
    runtime.attach(adapters[0], scale=0.0)
    assert runtime.prove_adapter() == 0.0


def test_attaching_again_replaces(tiny: Path, runtime: Runtime, adapters: tuple[Path, Path]) -> None:
    tokens = runtime.prompt_tokens(HELLO)
    runtime.attach(adapters[0])
    runtime.attach(adapters[1])
    with Runtime.load(tiny, n_ctx=256) as fresh:
        fresh.attach(adapters[1])
        np.testing.assert_array_equal(runtime.logits(tokens), fresh.logits(tokens))


def test_a_change_of_adapters_drops_what_is_held(tiny: Path, runtime: Runtime, adapters: tuple[Path, Path]) -> None:
    tokens = runtime.prompt_tokens(LONGER)
    with Runtime.load(tiny, n_ctx=256) as fresh:
        fresh.attach(adapters[0])
        expected = fresh._main.next_logits(tokens)
    runtime.complete_tokens(tokens, 3)
    runtime.attach(adapters[0])
    np.testing.assert_array_equal(runtime._main.next_logits(tokens), expected)


def test_batches_are_served_with_the_adapter(runtime: Runtime, adapters: tuple[Path, Path]) -> None:
    prompts = [runtime.prompt_tokens(HELLO), runtime.prompt_tokens(LONGER)]
    base = runtime.generate_batch(prompts, 10)
    runtime.attach(adapters[0])
    for prompt, reply in zip(prompts, runtime.generate_batch(prompts, 10), strict=True):
        assert_greedy(runtime, prompt, reply, 10)
    assert runtime.generate_batch(prompts, 10) != base


def test_a_refused_adapter_leaves_the_old_one(
    tiny: Path, runtime: Runtime, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    runtime.attach(adapters[0], name="good")
    tokens = runtime.prompt_tokens(HELLO)
    served = runtime.logits(tokens)
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(adapters[0].read_bytes()[:-100])
    for bad in (junk, tiny, tmp_path / "none.gguf"):
        with pytest.raises(ModelError, match=bad.name):
            runtime.attach(bad)
        assert runtime.adapter == "good"
        np.testing.assert_array_equal(runtime.logits(tokens), served)


def test_an_adapter_of_another_shape_is_refused(tiny: Path, runtime: Runtime, tmp_path: Path) -> None:
    hyper = open_gguf(tiny).hyper
    a, b = np.ones((2, hyper.n_embd + 32), np.float32), np.ones((hyper.n_embd, 2), np.float32)
    wrong = Adapter(2, 2.0, hyper.architecture, hyper.n_head, hyper.n_head_kv, {"blk.0.attn_q.weight": (a, b)})
    save_gguf(wrong, tmp_path / "wrong.gguf")
    with pytest.raises(EngrainError, match=r"wrong\.gguf"):
        runtime.attach(tmp_path / "wrong.gguf")


def test_attaching_does_not_leak(runtime: Runtime, adapters: tuple[Path, Path]) -> None:
    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1])

    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    for turn in range(300):
        runtime.attach(adapters[turn % 2])
        if turn == 99:
            before = resident()
    grown = (resident() - before) * 4096
    assert grown < 100 * adapters[0].stat().st_size  # 200 more were loaded


# The real model


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    try:
        path = resolve(open_home(tmp_path_factory.mktemp("home"))).path
    except EngrainError:
        pytest.skip("the starter model isn't installed")
    with Runtime.load(path) as loaded:
        yield loaded


@pytest.mark.slow
def test_it_answers(real: Runtime) -> None:
    reply = real.complete([{"role": "user", "content": "How many days are in a week?"}], max_tokens=40)
    assert "7 days" in reply.text and reply.finished


@pytest.mark.slow
def test_emoji_come_whole(real: Runtime) -> None:
    asked = [{"role": "user", "content": "Repeat exactly: 🙂🎉🌍 ありがとう"}]
    pieces = list(real.stream(asked, max_tokens=60))
    assert "\ufffd" not in "".join(pieces)
