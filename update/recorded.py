"""A pack's gradient as a CUDA graph: recorded once for each shape of pack, then replayed.

A step is thousands of small kernels, and on a GPU starting one takes longer than running it; replayed as a whole they
follow one another without the processor. What a graph reads lies in buffers of a fixed size, so a pack is filled up
with rows that weigh nothing, and one mask says what each row sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor

from engrain.update.attention import attend_all
from engrain.update.decoder import Decoder
from engrain.update.loss import head_loss, pack_loss, teacher_of
from engrain.update.pack import Pack

ROWS, TARGETS = 128, 64  # buffers hold a multiple of these
SPARE = 1.5  # a graph for up to so many times the rows that a pack has serves it too, rather than one more
MOST_ROWS, MOST = 2048, 8  # of a graph; graphs


@dataclass(frozen=True)
class Buffers:
    """What a step reads: rows x (T, n_embd), their positions (T,), and whose they are, group (T,).

    Rows of group 0 are seen by all, others by their own group. At rows targets (K,) the words ids (K, k) are taught
    with probabilities taught (K, k); each target weighs weight (K,). x enters the first of the layers.
    """

    x: Tensor
    positions: Tensor
    group: Tensor
    targets: Tensor
    ids: Tensor
    taught: Tensor
    weight: Tensor
    layers: range

    @staticmethod
    def of(decoder: Decoder, pack: Pack, rows: int, targets: int) -> Buffers:
        """A pack on the decoder's device, filled up to so many rows and targets."""

        def filled(t: Tensor, count: int, value: int = 0) -> Tensor:
            return F.pad(t, (0, 0) * (t.dim() - 1) + (0, count - len(t)), value=value)

        group = F.pad(pack.unpad // pack.longest + 1, (pack.prefix, 0))
        (x, layers), (ids, taught) = decoder.entered(pack), teacher_of(pack)
        return Buffers(
            x=filled(x, rows),
            positions=filled(pack.positions, rows),
            group=filled(group, rows, pack.batch + 1),
            targets=filled(pack.targets, targets),
            ids=filled(ids, targets),
            taught=filled(taught, targets),
            weight=filled(pack.weight, targets),
            layers=layers,
        )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Rows, targets, words of a teacher, layers."""
        return len(self.x), *self.ids.shape, len(self.layers)

    def loss(self, decoder: Decoder) -> tuple[Tensor, Tensor]:
        """As `pack_loss`."""
        distance = self.positions[:, None] - self.positions
        seen = (distance >= 0) & ((self.group == 0) | (self.group[:, None] == self.group))

        def mask(window: int) -> Tensor:
            hidden = ~(seen & (distance < window)) if window else ~seen
            return torch.zeros_like(distance, dtype=decoder.dtype).masked_fill_(hidden, -torch.inf)

        masks = {window: mask(window) for window in {0, decoder.window}}
        rows = decoder.through(
            self.x, self.positions, lambda _, window: partial(attend_all, mask=masks[window]), self.layers
        )
        hidden = decoder.norm(rows.index_select(0, self.targets))
        return head_loss(decoder, hidden, self.ids, self.taught, self.weight)

    def take(self, other: Buffers) -> None:
        """Another's contents, of the same shape."""
        for name, own in vars(self).items():
            if isinstance(own, Tensor):
                own.copy_(getattr(other, name))


@dataclass(frozen=True)
class _Graph:
    """A recorded step, what it reads, and each token's loss."""

    graph: torch.cuda.CUDAGraph
    buffers: Buffers
    nll: Tensor

    def replay(self, buffers: Buffers) -> Tensor:
        """Each token's loss."""
        self.buffers.take(buffers)
        self.graph.replay()
        return self.nll


class Gradient:
    """Adds the gradient of packs' losses to a decoder's adapters', from graphs where the device has them.

    One that is kept keeps what it has recorded. While it records, no other loss of the same adapters may be alive: the
    nodes that add its gradients up belong to a stream that can't be recorded.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._params = [p for group in decoder.groups() for p in group.parameters()]
        self._graphs: dict[tuple[int, int, int, int], _Graph] = {}  # by their buffers' shapes
        self._records = decoder.resident and decoder.embedding.device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if self._records else None
        # A graph adds to where they lay when it was recorded; where nothing is, autograd makes its own.
        self._grads = [torch.zeros_like(p) for p in self._params] if self._records else []
        self.clear()

    def __call__(self, pack: Pack) -> Tensor:
        """Each token's loss (K,), in nats. pack: on the decoder's device."""
        shape = self._shape(pack)
        if shape is None:
            loss, nll = pack_loss(self.decoder, pack)
            loss.backward()
            return nll
        buffers = Buffers.of(self.decoder, pack, *shape)
        graph = self._graphs.get(buffers.shape)
        nll = graph.replay(buffers) if graph else self._record(buffers)
        return nll[: len(pack.targets)].clone()

    def clear(self) -> None:
        """Set the gradients to zero."""
        if self._records:
            torch._foreach_zero_(self._grads)
        for p, grad in zip_longest(self._params, self._grads):
            p.grad = grad

    def _shape(self, pack: Pack) -> tuple[int, int] | None:
        """Rows and targets of the graph for a pack, recorded or to be; None for a pack that is computed without."""
        rows, targets = len(pack.tokens), len(pack.targets)
        if not self._records or pack.tree or rows > MOST_ROWS:
            return None
        words = 1 if pack.teacher_ids is None else pack.teacher_ids.shape[1]
        left = len(self.decoder.layers) - (0 if pack.stem is None else self.decoder.lowest)
        fit = [
            (r, k)
            for r, k, *rest in self._graphs
            if rest == [words, left] and rows <= r <= max(ROWS, SPARE * rows) and targets <= k
        ]
        if fit:
            return min(fit)
        return None if len(self._graphs) == MOST else (rows + -rows % ROWS, targets + -targets % TARGETS)

    def _record(self, buffers: Buffers) -> Tensor:
        """Each token's loss; the step is run as it is, because libraries prepare themselves, and then recorded."""

        def step() -> Tensor:
            loss, nll = buffers.loss(self.decoder)
            found = torch.autograd.grad(loss, self._params)
            torch._foreach_add_(self._grads, found)
            return nll

        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            first = step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            nll = step()
        self._graphs[buffers.shape] = _Graph(graph, buffers, nll)
        return first
