"""Making a reader: a small adapter that makes a model good at reading, trained once for each base model.

Each row of `conversations.jsonl` is what somebody who doesn't exist said in a conversation, message by message, and
what each message tells, as statements that stand alone; most questions tell nothing. `update.reader` reads with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engrain.quant.files import read_rows
from engrain.update import wording
from engrain.update.decoder import Decoder
from engrain.update.pack import Example
from engrain.update.reader import END, Sentence, read
from engrain.update.train import Step, TrainOptions, train

if TYPE_CHECKING:
    from engrain.device.runtime import Runtime

CONVERSATIONS = Path(__file__).with_name("conversations.jsonl")
EPOCHS, LR, STEP_TOKENS = 2, 2e-3, 1024
GOES_ON = 3  # every third conversation goes on from the one before it: people change the subject


def read_conversations(path: Path = CONVERSATIONS) -> Iterator[tuple[Sentence, list[str]]]:
    """Each sentence of the corpus, and what it tells."""
    rows = read_rows(path)
    for k, row in enumerate(rows):
        earlier = rows[k - 1]["turns"] if k and k % GOES_ON == 0 else []
        sentences = list(read([("", turn) for turn in (*earlier, *row["turns"])]))
        for i, statements in enumerate(row["tells"], len(earlier)):
            own = [s for s in sentences if s.message == i]
            yield from zip(own, _apart(own, statements), strict=True)


def _apart(sentences: Sequence[Sentence], statements: Sequence[str]) -> list[list[str]]:
    """Of a message's statements those of each sentence.

    Each belongs to where all that it says has been said, or as much of it as ever is; of these where it shares most.
    """
    found: list[list[str]] = [[] for _ in sentences]
    for statement in statements:
        own = wording.stems(statement)
        fit = [(-len(own - wording.stems(f"{s.before} {s.said}")), len(own & wording.stems(s.said))) for s in sentences]
        found[fit.index(max(fit))].append(statement)
    return found


def to_lessons(runtime: Runtime, rows: Sequence[tuple[Sentence, Sequence[str]]]) -> list[Example]:
    """What to write under each sentence, as token ids."""
    lessons = []
    for sentence, statements in rows:
        prompt = runtime.tokenize(sentence.prompt)
        target = runtime.tokenize("".join(f" {s} {END}" for s in statements) + "\n")
        lessons.append(Example((*prompt, *target), len(prompt)))
    return lessons


def train_reader(
    runtime: Runtime,
    decoder: Decoder,
    rows: Sequence[tuple[Sentence, Sequence[str]]],
    budget: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[float]:
    """Train the decoder's adapters to read, for EPOCHS or `budget` seconds -> the loss of each step, nats a token."""

    def on_step(step: Step) -> None:
        progress(step.step, step.total)

    options = TrainOptions(lr=LR, epochs=EPOCHS, pack_tokens=STEP_TOKENS, anchors_per_step=0, budget=budget)
    return [step.loss for step in train(decoder, to_lessons(runtime, rows), options, on_step=on_step).steps]
