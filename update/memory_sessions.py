"""Learning into the weights, measured: one update, many sessions, corrected facts, preferences, forgetting.

Everything goes through the product: what is said is logged, `learn` runs, the registry's current version is served.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from statistics import fmean

import numpy as np

from engrain.device.home import Home, open_home
from engrain.device.interactions import InteractionLog
from engrain.device.registry import Registry, Version, plain_question, trained_questions
from engrain.device.scope import read_scope
from engrain.device.serving import attached
from engrain.quant.errors import EngrainError
from engrain.update import memory_bench as bench_
from engrain.update.learn import LearnOptions, Outcome, learn
from engrain.update.memory_bench import Bench, Row, ask, recall, share
from engrain.update.memory_drift import Drift
from engrain.update.memory_set import Fact, told_together

FORGET_EVERY = 5
_LONG_REPLY = 160  # tokens of the reply that a preference corrects


@dataclass(frozen=True)
class Taught:
    """A data folder whose log has been learned, the ids of what told each fact, and what learning came to."""

    home: Home
    ids: tuple[tuple[int, ...], ...]
    outcome: Outcome


def tell(
    bench: Bench, home: Home, said: Sequence[str], replies: Sequence[str], conversation: str | None = None
) -> list[int]:
    """Log what was said in one conversation, a new one unless it is named, as chat does; the ids."""
    conversation = conversation or uuid.uuid4().hex
    current = Registry(home).current_name()
    with InteractionLog(home.interactions) as log:
        pairs = zip(said, replies, strict=True)
        return [log.record(conversation, text, reply, model=bench.sha, adapter=current) for text, reply in pairs]


def tell_facts(bench: Bench, home: Home, facts: Sequence[Fact], replies: Iterator[str]) -> list[tuple[int, ...]]:
    """Log what tells the facts; the ids for each. Single messages make one conversation, several one of their own."""
    together = uuid.uuid4().hex
    found = []
    for fact in facts:
        own = list(islice(replies, len(fact.said)))
        found.append(tuple(tell(bench, home, fact.said, own, together if len(own) == 1 else None)))
    return found


def teach(bench: Bench, seed: int) -> Taught:
    """All facts told and learned, in a data folder of their own."""
    home = open_home(bench.folder / f"facts-{seed}")
    ids = tell_facts(bench, home, bench.memory.facts, iter(bench.replies))
    return Taught(home, tuple(ids), learn(home, bench.model, LearnOptions(seed=seed), bench.report))


@contextmanager
def served(bench: Bench, home: Home) -> Iterator[Version | None]:
    """Serve with the data folder's current version meanwhile; None: there is none, the base serves."""
    registry = Registry(home)
    version, _ = registry.verified_current(bench.sha)
    with attached(bench.runtime, registry, version):
        yield version


def weights_way(bench: Bench, taught: Taught) -> Row:
    """The row of the weights. trained_questions: asked ones that the adapter was trained on, and prove less."""
    with served(bench, taught.home) as version:
        row = bench_.measure(bench, "weights")
    path = Registry(taught.home).gguf(version) if version else None
    base = bench.base_perplexity
    moved = bench.drift(path, read_scope(version.folder)) if version and path else Drift(base, 0.0, base, 0.0)
    trained = trained_questions(version.folder) if version else set()
    asked = [question for fact in bench.memory.facts for question in fact.ask]
    return {
        **row,
        **_costs(taught.outcome),
        **asdict(moved),
        "trained_questions": sum(plain_question(question) in trained for question in asked),
    }


def _costs(outcome: Outcome) -> Row:
    return {
        "status": outcome.status,
        "reason": outcome.checks.get("reason") or None,
        "learn_seconds": outcome.seconds,
        "study_seconds": outcome.study_seconds,
        "train_seconds": outcome.train_seconds,
    }


def mean_row(rows: Sequence[Row]) -> Row:
    """One row for several seeds: means of the figures, and the rows themselves as `seeds`."""
    merged = dict(rows[0])
    for key, value in rows[0].items():
        values = [row[key] for row in rows]
        if isinstance(value, int | float) and all(each is not None for each in values):
            merged[key] = fmean(values)
    rejected = [row["status"] for row in rows if row["status"] != "accepted"]
    merged["status"] = rejected[0] if rejected else "accepted"
    merged["seeds"] = [{key: value for key, value in row.items() if key != "misses"} for row in rows]
    return merged


# Sessions


@dataclass(frozen=True)
class Sessions:
    """matrix[i][j]: recall on session j's facts after learning session i; before: on each before the first.

    learn_seconds, status: of each session's update.
    """

    matrix: list[list[float]]
    before: list[float]
    average_accuracy: float
    backward_transfer: float | None
    learn_seconds: list[float]
    status: list[str]


def average_accuracy(matrix: Sequence[Sequence[float]]) -> float:
    """Mean recall over all sessions after the last: ACC of Lopez-Paz and Ranzato (2017), GEM."""
    return fmean(matrix[-1])


def backward_transfer(matrix: Sequence[Sequence[float]]) -> float | None:
    """Mean change of a session's recall from just after it to the end, below 0 for forgetting; None for one session.

    BWT = 1/(T-1) sum_{j<T} R[T][j] - R[j][j] of Lopez-Paz and Ranzato (2017), GEM.
    """
    last = matrix[-1]
    return fmean(last[j] - matrix[j][j] for j in range(len(matrix) - 1)) if len(matrix) > 1 else None


def split(facts: Sequence[Fact], count: int) -> list[list[Fact]]:
    """The facts in their order, in `count` runs of nearly one length; what is told together stays so."""
    told = told_together(facts)
    if not 1 <= count <= len(told):
        raise EngrainError(f"{len(told)} facts can't be split over {count} sessions: give 1 to {len(told)}")
    return [[fact for i in part for fact in told[i]] for part in np.array_split(np.arange(len(told)), count)]


def sessions(bench: Bench, count: int, seed: int = 0) -> Row:
    """Learn the facts over so many sessions, one after another, and ask about all after each."""
    parts = split(bench.memory.facts, count)
    replies = iter(bench.replies)
    questions = [question for fact in bench.memory.facts for question in fact.ask]
    home = open_home(bench.folder / "sessions")

    def known(label: str) -> list[float]:
        with served(bench, home):
            answers = ask(bench, questions, label=label)
        return [recall(part, answers) or 0.0 for part in parts]

    before, matrix, outcomes = known("before the sessions"), [], []
    for i, part in enumerate(parts):
        tell_facts(bench, home, part, replies)
        outcomes.append(learn(home, bench.model, LearnOptions(seed=seed + i), bench.report))
        matrix.append(known(f"after session {i + 1} of {count}"))
    result = Sessions(
        matrix,
        before,
        average_accuracy(matrix),
        backward_transfer(matrix),
        [outcome.seconds for outcome in outcomes],
        [outcome.status for outcome in outcomes],
    )
    return asdict(result)


# After the facts have been learned


def copied(bench: Bench, taught: Taught, name: str) -> Home:
    """The data folder as it was after the facts, under another name, to go on from."""
    return open_home(shutil.copytree(taught.home.root, bench.folder / name))


def updates(bench: Bench, taught: Taught, seed: int = 0) -> Row | None:
    """Facts that change after they were learned. new, old: shares of answers with the new value, and with the old.

    recall: of the facts that no update replaced, recall_before the same before the updates.
    """
    changes = bench.memory.updates
    if not changes:
        return None
    replaced = {text for change in changes for text in change.reject}
    others = [fact for fact in bench.memory.facts if not replaced & set(fact.accept)]
    home = copied(bench, taught, "updates")
    asked = [(change, question) for change in changes for question in change.ask]
    questions = [question for _, question in asked] + [question for fact in others for question in fact.ask]
    with served(bench, home):
        before = ask(bench, questions, label="before the updates")
    said = [message for change in changes for message in change.said]
    tell_facts(bench, home, changes, iter(bench_.reply_to(bench, said)))
    outcome = learn(home, bench.model, LearnOptions(seed=seed), bench.report)
    with served(bench, home):
        answers = ask(bench, questions, label="after the updates")
    return {
        "new": share([bench_.holds(answers[question], change.accept) for change, question in asked]),
        "old": share([bench_.holds(answers[question], change.reject) for change, question in asked]),
        "recall_before": recall(others, before),
        "recall": recall(others, answers),
        **_costs(outcome),
        "answers": [{"question": question, "answer": answers[question].strip()} for _, question in asked],
    }


def preferences(bench: Bench, taught: Taught, seed: int = 0) -> Row | None:
    """Replies that are corrected. followed, before: shares of new questions answered as the correction starts."""
    wanted = bench.memory.preferences
    if not wanted:
        return None
    home = copied(bench, taught, "preferences")
    asked = [(each, question) for each in wanted for question in each.ask]
    told = [question for fact in bench.memory.facts for question in fact.ask]
    questions = [question for _, question in asked] + told

    def followed(answers: dict[str, str]) -> float | None:
        return share([answers[question].strip().lower().startswith(each.starts) for each, question in asked])

    with served(bench, home):
        before = ask(bench, questions, label="before the corrections")
        replies = bench_.reply_to(bench, [each.asked for each in wanted], _LONG_REPLY)
    ids = tell(bench, home, [each.asked for each in wanted], replies)
    with InteractionLog(home.interactions) as log:
        for id, each in zip(ids, wanted, strict=True):
            log.correct(id, each.fix)
    outcome = learn(home, bench.model, LearnOptions(seed=seed), bench.report)
    with served(bench, home):
        answers = ask(bench, questions, label="after the corrections")
    return {
        "followed": followed(answers),
        "before": followed(before),
        "recall_before": recall(bench.memory.facts, before),
        "recall": recall(bench.memory.facts, answers),
        **_costs(outcome),
        "answers": [{"question": question, "answer": answers[question].strip()} for _, question in asked],
    }


def forgetting(bench: Bench, taught: Taught, seed: int = 0) -> Row | None:
    """Forget one fact in FORGET_EVERY, with what was told together with it, and learn again, as `engrain memory forget`
    does.

    Recall of the forgotten and of the kept, before and after.
    """
    facts, told = bench.memory.facts, told_together(bench.memory.facts)
    gone = [fact for own in told[FORGET_EVERY - 1 :: FORGET_EVERY] for fact in own]
    if not gone:
        return None
    kept = [fact for fact in facts if fact not in gone]
    home = copied(bench, taught, "forgetting")
    questions = [question for fact in facts for question in fact.ask]
    with served(bench, home):
        before = ask(bench, questions, label="before forgetting")
    with InteractionLog(home.interactions) as log:
        log.forget(*(id for fact, ids in zip(facts, taught.ids, strict=True) if fact in gone for id in ids))
    outcome = learn(home, bench.model, LearnOptions(seed=seed), bench.report)
    if outcome.status == "rejected":
        Registry(home).use(None)  # as the command does: what holds the forgotten may not go on serving
    with served(bench, home):
        answers = ask(bench, questions, label="after forgetting")
    return {
        "facts": len(gone),
        "forgotten_before": recall(gone, before),
        "forgotten": recall(gone, answers),
        "kept_before": recall(kept, before),
        "kept": recall(kept, answers),
        **_costs(outcome),
    }
