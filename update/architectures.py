"""What differs between decoder architectures: one row each, in the terms of llama.cpp's own graphs.

Sources: llama.cpp `src/models/*.cpp` and `llama_model_rope_type`. Everything numeric (epsilon, RoPE base,
soft caps, window, scales) is read from the GGUF; a row says only what the file does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from engrain.quant.errors import EngrainError


class UnsupportedArchitecture(EngrainError):
    """The model can be chatted with, but not trained."""


@dataclass(frozen=True)
class Architecture:
    """How one architecture departs from the plain pre-norm SwiGLU decoder.

    rope: "adjacent" rotates pairs (0, 1), (2, 3), …; "half" rotates (0, d/2), (1, d/2 + 1), ….
    qk_norm: RMS norm of q and k over each "head" or over the "row" of all heads, before RoPE.
    window_pattern: n means every n-th layer sees all positions, the others only the sliding window;
        1 means every layer has the window (when the file gives one); 0 means none has.
    """

    rope: str = "half"
    pre_norm: bool = True
    post_norm: bool = False
    qk_norm: str | None = None
    activation: str = "silu"
    scale_embedding: bool = False
    fused: bool = False
    window_pattern: int = 0
    local_rope_base: float | None = None
    no_rope_every: int = 0

    def is_windowed(self, layer: int) -> bool:
        """Whether a layer attends only to the sliding window."""
        return self.window_pattern == 1 or (self.window_pattern > 1 and (layer + 1) % self.window_pattern != 0)

    def has_rope(self, layer: int) -> bool:
        """Whether a layer rotates q and k."""
        return not (self.no_rope_every and (layer + 1) % self.no_rope_every == 0)


ARCHITECTURES = {
    "llama": Architecture(rope="adjacent"),
    "smollm3": Architecture(rope="adjacent", no_rope_every=4),
    "granite": Architecture(rope="adjacent"),
    "qwen2": Architecture(),
    "qwen3": Architecture(qk_norm="head"),
    "phi3": Architecture(fused=True),  # the file names a window, llama.cpp's graph has none
    "olmo2": Architecture(pre_norm=False, post_norm=True, qk_norm="row"),
    "gemma2": Architecture(post_norm=True, activation="gelu", scale_embedding=True, window_pattern=2),
    "gemma3": Architecture(
        post_norm=True,
        qk_norm="head",
        activation="gelu",
        scale_embedding=True,
        window_pattern=6,
        local_rope_base=10_000.0,
    ),
}


def architecture_of(name: str, metadata: object = None) -> Architecture:
    """The row of an architecture.

    Raises:
        UnsupportedArchitecture: not in the table, or a mixture of experts.
    """
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedArchitecture(
            f"engrain cannot train the architecture '{name}' yet (chatting works); it trains {known}"
        )
    experts = getattr(metadata, "get", lambda _k, d=None: d)(f"{name}.expert_count", 0)
    if experts:
        raise UnsupportedArchitecture(
            f"engrain cannot train a mixture of experts ('{name}', {experts} experts) yet; chatting works"
        )
    return ARCHITECTURES[name]
