"""A decoder in PyTorch over the very GGUF blocks that llama.cpp serves; only LoRA weights are trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engrain.quant.adapter import Adapter
from engrain.quant.gguf import GGUFModel
from engrain.quant.names import is_feed_forward
from engrain.update import fused
from engrain.update.architectures import architecture_of
from engrain.update.attention import Mask, attend
from engrain.update.lora import FrozenLora, LoraGroup
from engrain.update.pack import Pack
from engrain.update.rope import Rope, rope_of
from engrain.update.weights import Matrix, Weights

# q (T, n_head, d), k and v (T, n_head_kv, d), scale, softcap (0: none) -> (T, n_head, d)
Attention = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]
Fitted = list[FrozenLora | None]  # of each linear layer


class Norm(nn.Module):
    """RMS norm in float32 (Zhang and Sennrich, arXiv 1910.07467); Gemma's +1 is already in the GGUF's weight."""

    weight: Tensor

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return fused.rms_norm(x, self.weight, self.eps)


class Linear(nn.Module):
    """A frozen base product with its adapters, plus the base's bias if it has one."""

    bias: Tensor | None

    def __init__(self, base: Matrix, names: list[str], bias: Tensor | None, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.names = base, names
        self.lora: LoraGroup | FrozenLora | None = self.fresh(rank, alpha) if rank else None
        self.register_buffer("bias", bias, persistent=False)

    def fresh(self, rank: int, alpha: float) -> LoraGroup:
        """New adapters for it."""
        return LoraGroup(self.names, self.base.n_in, self.base.n_outs, rank, alpha)

    def forward(self, x: Tensor) -> Tensor:
        y = self.lora(x, self.base) if self.lora is not None else x @ self.base().T
        return y if self.bias is None else y + self.bias


class Layer(nn.Module):
    """One transformer block on a pack's flat rows (T, n_embd)."""

    def __init__(
        self, weights: Weights, index: int, rope: Rope, rank: int, alpha: float, attention: bool = True
    ) -> None:
        super().__init__()
        model, self.hyper = weights.model, weights.model.hyper
        meta, arch = model.metadata, model.architecture
        self.arch = architecture_of(arch, meta)
        block = f"blk.{index}."

        def linear(*parts: str) -> Linear:
            names = [f"{block}{p}.weight" for p in parts]
            bias = weights.vector(*(f"{block}{p}.bias" for p in parts))
            adapted = attention or is_feed_forward(names[0])
            return Linear(weights.matrix(*names), names, bias, rank * adapted, alpha)

        def norm(name: str) -> Norm | None:
            weight = weights.vector(f"{block}{name}.weight")
            return None if weight is None else Norm(weight, self.hyper.norm_eps)

        if self.arch.fused:
            self.qkv, self.gate_up = linear("attn_qkv"), linear("ffn_up")
        else:
            self.qkv, self.gate_up = linear("attn_q", "attn_k", "attn_v"), linear("ffn_gate", "ffn_up")
        self.out, self.down = linear("attn_output"), linear("ffn_down")
        self.attn_norm = norm("attn_norm") if self.arch.pre_norm else None
        self.ffn_norm = norm("ffn_norm") if self.arch.pre_norm else None
        self.post_attn = norm("post_attention_norm") if self.arch.post_norm else None
        self.post_ffn = norm("post_ffw_norm") if self.arch.post_norm else None
        self.q_norm, self.k_norm = (norm("attn_q_norm"), norm("attn_k_norm")) if self.arch.qk_norm else (None, None)
        self.rope = rope if self.arch.has_rope(index) else None
        self.windowed = self.arch.is_windowed(index)
        self.attn_scale = float(meta.get(f"{arch}.attention.scale", 0) or 1 / math.sqrt(self.hyper.head_dim))
        if arch in ("gemma2", "gemma3") and self.hyper.n_layer in (46, 62):  # 27B: the file doesn't say
            self.attn_scale = 1 / math.sqrt(self.hyper.n_embd / self.hyper.n_head)
        self.softcap = float(meta.get(f"{arch}.attn_logit_softcapping", 0.0)) if arch == "gemma2" else 0.0
        self.residual_scale = float(meta.get(f"{arch}.residual_scale", 0) or 1.0)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor], attention: Attention) -> Tensor:
        h = self._attention(x if self.attn_norm is None else self.attn_norm(x), table, attention)
        x = self._add(x, h if self.post_attn is None else self.post_attn(h))
        h = self._feed_forward(x if self.ffn_norm is None else self.ffn_norm(x))
        return self._add(x, h if self.post_ffn is None else self.post_ffn(h))

    def _add(self, x: Tensor, h: Tensor) -> Tensor:
        return x + h if self.residual_scale == 1.0 else torch.add(x, h, alpha=self.residual_scale)

    def _attention(self, x: Tensor, table: tuple[Tensor, Tensor], attention: Attention) -> Tensor:
        n_q, n_kv, d = self.hyper.n_head, self.hyper.n_head_kv, self.hyper.head_dim
        qk, v = self.qkv(x).split([(n_q + n_kv) * d, n_kv * d], dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split([n_q * d, n_kv * d], dim=-1)
            if self.arch.qk_norm == "head":
                q, k = q.unflatten(-1, (n_q, d)), k.unflatten(-1, (n_kv, d))
            qk = torch.cat((self.q_norm(q).flatten(1), self.k_norm(k).flatten(1)), -1)
        qk, v = qk.unflatten(-1, (-1, d)), v.unflatten(-1, (n_kv, d))
        if self.rope is not None:
            qk = self.rope.rotate(qk, table)
        q, k = qk.split([n_q, n_kv], dim=1)
        return self.out(attention(q, k, v, self.attn_scale, self.softcap).flatten(-2))

    def _feed_forward(self, x: Tensor) -> Tensor:
        both = self.gate_up(x)
        if self.arch.activation == "silu":
            return self.down(fused.gated_silu(both))
        gate, up = both.chunk(2, dim=-1)
        return self.down(F.gelu(gate, approximate="tanh") * up)


class Decoder(nn.Module):
    """The whole model; `rank` 0 builds it without adapters.

    Args:
        model: an open GGUF of an architecture in `architectures.ARCHITECTURES`.
        rank, alpha: of the adapters on every linear layer of the blocks from `first_layer` up.
        attention: whether attention's linear layers have adapters too, or the feed-forward's alone.
        dtype: of base weights and activations; None picks bfloat16 where the processor multiplies it fast.
        resident: keep the base dequantised, or dequantise each layer when it is needed.

    Raises:
        EngrainError: architecture or block format that cannot be trained.
    """

    def __init__(
        self,
        model: GGUFModel,
        rank: int = 0,
        alpha: float = 16.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        resident: bool = True,
        context: int = 512,
        first_layer: int = 0,
        attention: bool = True,
    ) -> None:
        super().__init__()
        arch = architecture_of(model.architecture, model.metadata)
        self.model, self.resident, self.rank, self.alpha = model, resident, rank, alpha
        self.lowest = first_layer if rank else model.hyper.n_layer  # layers below have no adapters
        self.dtype = dtype or fast_dtype(device)
        weights = Weights(model, self.dtype, device, resident)
        self.rope = rope_of(model, arch.rope, context)
        self.local_rope = self.rope
        if arch.local_rope_base is not None:
            dim = model.hyper.rope_dim
            base = arch.local_rope_base
            self.local_rope = Rope(base ** (-torch.arange(0, dim, 2).float() / dim), arch.rope)
        for rope in (self.rope, self.local_rope):
            rope.frequencies = rope.frequencies.to(device)
        meta = model.metadata
        window = meta.get(f"{model.architecture}.attention.sliding_window", 0)
        self.window = int(window if isinstance(window, (int, float)) else 0)
        ropes = [self.local_rope if arch.is_windowed(i) else self.rope for i in range(model.hyper.n_layer)]
        self.layers = nn.ModuleList(
            Layer(weights, i, each, rank * (i >= first_layer), alpha, attention) for i, each in enumerate(ropes)
        )
        self.embedding = weights.matrix("token_embd.weight")
        self.head = weights.matrix("output.weight") if "output.weight" in model.tensors else self.embedding
        norm = weights.vector("output_norm.weight")
        assert norm is not None
        self.norm = Norm(norm, model.hyper.norm_eps)
        scale = meta.get(f"{model.architecture}.embedding_scale", 0) or 1.0
        self.embedding_scale = math.sqrt(model.hyper.n_embd) if arch.scale_embedding else float(scale)
        self.logit_scale = 1.0 / float(meta.get(f"{model.architecture}.logit_scale", 0) or 1.0)
        self.final_softcap = float(meta.get(f"{model.architecture}.final_logit_softcapping", 0.0) or 0.0)
        self.to(device)

    @torch.no_grad()
    def fitted(self, adapter: Adapter) -> Fitted:
        """Another adapter laid out for this decoder, to be `lent` to it."""
        weights = {n: (torch.from_numpy(a), torch.from_numpy(b)) for n, (a, b) in adapter.weights.items()}
        found: Fitted = []
        for m in self._linears():
            group = m.fresh(adapter.rank, adapter.alpha) if weights.keys() & set(m.names) else None
            if group is not None:
                group.load(weights, adapter.scale)
            found.append(None if group is None else group.to(self.embedding.device).frozen(self.dtype))
        return found

    @contextmanager
    def lent(self, adapter: Fitted) -> Iterator[None]:
        """With another adapter in place of its own, for as long as the context lasts; there is no gradient."""
        linears = self._linears()
        own = [m.lora for m in linears]
        try:
            for m, lent in zip(linears, adapter, strict=True):
                m.lora = lent
            yield
        finally:
            for m, lora in zip(linears, own, strict=True):
                m.lora = lora

    def _linears(self) -> list[Linear]:
        return [m for m in self.modules() if isinstance(m, Linear)]

    @contextmanager
    def bare(self) -> Iterator[None]:
        """The base model alone, for as long as the context lasts."""
        for group in self.groups():
            group.enabled = False
        try:
            yield
        finally:
            for group in self.groups():
                group.enabled = True

    def hidden(self, pack: Pack) -> Tensor:
        """The normed output at the pack's target rows, (K, n_embd)."""
        x, layers = self.entered(pack)
        return self.norm(self.through(x, pack.positions, self._seen_in(pack), layers)[pack.targets])

    def stem(self, pack: Pack) -> Tensor:
        """What enters the lowest adapted layer, (T, n_embd)."""
        return self.through(self.embed(pack.tokens), pack.positions, self._seen_in(pack), range(self.lowest))

    def entered(self, pack: Pack) -> tuple[Tensor, range]:
        """What is known of a pack's rows, (T, n_embd), and the layers that are left."""
        first, x = (0, self.embed(pack.tokens)) if pack.stem is None else (self.lowest, pack.stem)
        return x, range(first, len(self.layers))

    def _seen_in(self, pack: Pack) -> Callable[[int, int], Attention]:
        masks = {window: Mask.of(pack, window, self.dtype) for window in {0, self.window}}
        return lambda _, window: partial(attend, pack=pack, mask=masks[window])

    def run(self, tokens: Tensor, positions: Tensor, attention: Callable[[int, int], Attention]) -> Tensor:
        """The last layer's output, (T, n_embd), for tokens (T,) at positions (T,).

        attention: for a layer's index and its window (0: none), what its rows see.
        """
        return self.through(self.embed(tokens), positions, attention, range(len(self.layers)))

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (T,) -> (T, n_embd), what the first layer reads."""
        return self.embedding.rows(tokens) * self.embedding_scale

    def through(
        self, x: Tensor, positions: Tensor, attention: Callable[[int, int], Attention], layers: range
    ) -> Tensor:
        """As `run`, of some layers, for rows x (T, n_embd) that enter the first of them."""
        tables: dict[int, Any] = {id(r): r.table(positions, x.dtype) for r in (self.rope, self.local_rope)}
        for i in layers:
            layer = self.layers[i]
            table = tables[id(layer.rope)] if layer.rope is not None else tables[id(self.rope)]
            seen = attention(i, self.window if layer.windowed else 0)
            if self.resident or not torch.is_grad_enabled():
                x = layer(x, table, seen)
            else:
                x = checkpoint(layer, x, table, seen, use_reentrant=False)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (K, n_embd) -> logits (K, n_vocab), float32."""
        return self.finish(hidden @ self.head().T)

    def finish(self, raw: Tensor) -> Tensor:
        """Logit scale and soft cap on raw products, in float32."""
        raw = raw.float()
        if self.logit_scale != 1.0:
            raw = raw * self.logit_scale
        return raw if not self.final_softcap else self.final_softcap * torch.tanh(raw / self.final_softcap)

    def slope(self, finished: Tensor) -> Tensor | None:
        """Derivative of `finish` where it gave `finished`, None where it is 1 everywhere."""
        if self.final_softcap:
            return self.logit_scale * (1 - (finished / self.final_softcap).square())
        return None if self.logit_scale == 1.0 else torch.tensor(self.logit_scale)

    def groups(self) -> list[LoraGroup]:
        """All adapter groups, in layer order."""
        return [m for m in self.modules() if isinstance(m, LoraGroup)]


def fast_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, else float32."""
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if torch.device(device).type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.float32
