"""study -> train -> gate -> register: one update of the cumulative adapter from what was said since the last."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from engrain.device import models
from engrain.device.home import Home, lock
from engrain.device.interactions import Interaction, InteractionLog
from engrain.device.registry import Registry, Version
from engrain.device.runtime import Runtime
from engrain.quant.adapter import Adapter, load_peft, save_gguf
from engrain.quant.errors import EngrainError
from engrain.quant.gguf import GGUFModel, open_gguf
from engrain.update import anchors as anchoring
from engrain.update import gate, questions, study
from engrain.update.decoder import Decoder
from engrain.update.train import Step, TrainOptions, train

if TYPE_CHECKING:
    from engrain.device.models import ModelFile

RANK, ALPHA = 8, 16.0
LESSONS = "lessons.jsonl"  # beside each adapter: what it was taught, question by question
REPLAY_PER_FACT = 4
UNTOLD_PROBES = 8
CONTRAST_SHARE = 0.5  # never-told questions for every fact: more, and wordings that weren't trained are refused
MAX_PROBES = 16
HELD_PLACE = 2  # of a fact's plain questions, the one kept for checking: good, and not the best
HELD_ANCHORS = 8  # of the anchors, kept out of training to measure drift
LOWEST_SHARE = 0.2  # of the layers stay bare: what a word means is found there, and it is a fifth less work


@dataclass(frozen=True)
class LearnOptions:
    """budget: seconds for training. dry_run: study only. force: keep the candidate whatever the gate says."""

    budget: float | None = None
    device: str = "auto"
    dry_run: bool = False
    force: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """One report: `done` of `total` in a phase ("study", "train", "gate"); seconds_left within the phase."""

    phase: str
    done: int
    total: int
    text: str = ""
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What an update came to: "accepted", "rejected" (kept aside, not current) or "nothing" to learn."""

    status: str
    adapter: str | None = None
    examples: int = 0
    seconds: float = 0.0
    checks: dict[str, Any] = field(default_factory=dict)
    study_seconds: float = 0.0
    train_seconds: float = 0.0
    gate_seconds: float = 0.0
    learned: tuple[str, ...] = ()


Report = Callable[[Progress], None]


def learn(home: Home, model: ModelFile, options: LearnOptions, report: Report = lambda progress: None) -> Outcome:
    """Learn what the log holds and the current adapter doesn't.

    Raises:
        Locked: another learner is at work.
        EngrainError: the model cannot be trained.
    """
    start = time.monotonic()
    with lock(home, "learner"), InteractionLog(home.interactions) as log:
        sha = models.sha256(home, model.path)
        registry = Registry(home)
        parent, _ = registry.verified_current(sha)
        fresh = log.unlearned(sha, registry.ancestors(parent.name) if parent else [])
        everything = log.list()
        if options.force and not fresh:
            fresh = everything
        old = [i for i in everything if i.id not in {f.id for f in fresh}]
        with Runtime.load(model.path) as runtime:
            gguf = open_gguf(model.path)
            past, gone = taught_before(parent, {i.id for i in everything})
            # What was forgotten leaves the weights by their never having seen it: they start anew.
            warm = parent if parent and not gone else None
            decoder = build_decoder(gguf, options, load_peft(warm.folder) if warm else None)
            curriculum = prepare(home, runtime, decoder, sha, fresh, past, gone, options.seed, report)
            studied = time.monotonic()
            if not any(lesson.source for lesson in curriculum.lessons) or not (fresh or gone):
                if gone and not options.dry_run:
                    registry.use(None)
                return Outcome("nothing", parent.name if parent else None, seconds=studied - start)
            learned = tuple(dict.fromkeys(f.said for f in curriculum.facts))
            if options.dry_run:
                return Outcome("nothing", None, len(curriculum.lessons), studied - start, learned=learned)
            held = anchoring.anchors(home, runtime, decoder, sha)
            examples = study.to_examples(runtime, curriculum.lessons)
            settings = TrainOptions(budget=options.budget, seed=options.seed)
            began = time.monotonic()
            state = home.work / "learn"
            train(decoder, examples, settings, held[HELD_ANCHORS:], state, _progress_of(report))
            trained = time.monotonic()
            adapter = extract(decoder, gguf)
            checks = _check(
                home, runtime, adapter, None if gone else parent, registry, curriculum, held[:HELD_ANCHORS], report
            )
            taught = [*fresh, *(i for i in old if any(i.id in lesson.source for lesson in past))] if gone else fresh
            facts = _metadata(model, sha, warm, taught, settings, checks)
            adapter = Adapter(**{**vars(adapter), "metadata": facts})
            version = registry.add(adapter, _card(model, learned, checks), {LESSONS: _rows(curriculum)})
            accepted = checks.passed or options.force
            if accepted:
                registry.use(version.name)
                log.mark_learned(taught, version.name, sha)
        end = time.monotonic()
        return Outcome(
            status="accepted" if accepted else "rejected",
            adapter=version.name,
            examples=len(examples),
            seconds=round(end - start, 2),
            checks=checks.as_dict(),
            study_seconds=round(studied - start, 2),
            train_seconds=round(trained - began, 2),
            gate_seconds=round(end - trained, 2),
            learned=learned,
        )


def prepare(
    home: Home,
    runtime: Runtime,
    decoder: Decoder,
    model_sha: str,
    fresh: Sequence[Interaction],
    past: Sequence[study.Lesson],
    gone: Sequence[study.Lesson],
    seed: int,
    report: Report,
) -> study.Curriculum:
    """New interactions in full, some questions for each old fact, some never told; some questions held back.

    Old facts are asked about in full again where something is gone, since the weights then start anew.
    """
    facts = study.find_facts(runtime, fresh)
    said = [f.said for f in facts]

    def read(done: int, total: int) -> None:
        report(Progress("study", done, total, "what was said"))

    read(0, len(said))
    ground = questions.background(home, decoder, runtime, model_sha)
    information = questions.information(decoder, runtime, said, ground, read)
    pooled = study.pooled_questions(facts, information)
    plain = [study.fluent_questions(runtime, decoder, s) for s in said]
    poor = [i for i, found in enumerate(plain) if len(found) < study.PLAIN // 2]
    written = study.write_questions(
        runtime,
        decoder,
        [facts[i] for i in poor],
        seed,
        lambda d, t: report(Progress("study", d, t, "writing questions")),
    )
    for i, found in zip(poor, written, strict=True):
        plain[i] += found
    rich = [(f, p) for f, p in zip(facts, plain, strict=True) if len(p) > study.PLAIN // 2][:MAX_PROBES]
    probes = [study.Probe(p.pop(HELD_PLACE), f.surprising, f) for f, p in rich]
    lessons = study.lessons_of(facts, [a + b for a, b in zip(plain, pooled, strict=True)])
    lessons += study.feedback_lessons(fresh) + (list(past) if gone else replay(past, seed))
    known = {lesson.question for lesson in (*lessons, *past) if lesson.kind != "contrast"}
    never = study.untold_questions(information, known | {p.question for p in probes}, seed)
    contrast = max(2, round(CONTRAST_SHARE * len(facts))) if facts else 0
    never, untold = never[:contrast], never[contrast : contrast + UNTOLD_PROBES]
    lessons += [study.Lesson(q, study.NOT_TOLD, "contrast") for q in never]
    return study.Curriculum(facts, lessons, list(past), list(gone), probes, untold)


def taught_before(parent: Version | None, known: Collection[int]) -> tuple[list[study.Lesson], list[study.Lesson]]:
    """What earlier updates taught, from the parent's own list: what still stands, and what was forgotten since.

    known: ids of the interactions that are still in the log.
    """
    try:
        rows = (parent.folder / LESSONS).read_text(encoding="utf-8").splitlines() if parent else []
        lessons = [study.Lesson(**{**json.loads(row), "source": tuple(json.loads(row)["source"])}) for row in rows]
    except (OSError, ValueError, TypeError, KeyError):
        return [], []
    lessons = [x for x in lessons if x.source]
    stands = [set(x.source) <= set(known) for x in lessons]
    return (
        [x for x, kept in zip(lessons, stands, strict=True) if kept],
        [x for x, kept in zip(lessons, stands, strict=True) if not kept],
    )


def replay(past: Sequence[study.Lesson], seed: int) -> list[study.Lesson]:
    """A few questions for everything taught before, drawn anew for every update."""
    order = np.random.default_rng(seed + len(past)).permutation(len(past))
    taken: Counter[str] = Counter()
    chosen = []
    for i in order:
        if taken[past[i].answer] < REPLAY_PER_FACT:
            taken[past[i].answer] += 1
            chosen.append(past[i])
    return chosen


def build_decoder(gguf: GGUFModel, options: LearnOptions, parent: Adapter | None) -> Decoder:
    """The decoder with new adapters, or with the parent's to train on from."""
    torch.manual_seed(options.seed)
    rank, lowest = RANK, int(LOWEST_SHARE * gguf.hyper.n_layer)
    if parent:
        rank, lowest = parent.rank, min(int(n.split(".")[1]) for n in parent.weights)
    decoder = Decoder(gguf, rank, ALPHA, device=pick_device(options.device), first_layer=lowest)
    if parent:
        weights = {n: (torch.from_numpy(a), torch.from_numpy(b)) for n, (a, b) in parent.weights.items()}
        for group in decoder.groups():
            group.load(weights, parent.scale)
    return decoder


def pick_device(name: str) -> str:
    """ "auto" -> cuda, mps or cpu, whichever is there first; EngrainError for one that isn't there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(d for d, here in there.items() if here)
    if not there.get(name):
        raise EngrainError(f"there is no {name} device here; use --device auto")
    return name


def extract(decoder: Decoder, gguf: GGUFModel) -> Adapter:
    """The trained weights as an adapter, float32 on the CPU."""
    weights = {}
    for group in decoder.groups():
        for name, (a, b) in group.weights().items():
            weights[name] = (a.cpu().numpy().copy(), b.cpu().numpy().copy())
    hyper = gguf.hyper
    return Adapter(decoder.rank, decoder.alpha, gguf.architecture, hyper.n_head, hyper.n_head_kv, weights)


def _check(
    home: Home,
    runtime: Runtime,
    adapter: Adapter,
    parent: Version | None,
    registry: Registry,
    curriculum: study.Curriculum,
    anchors: Sequence[Any],
    report: Report,
) -> gate.Checks:
    report(Progress("gate", 0, 2, "asking before"))
    if parent:
        runtime.attach(registry.gguf(parent), name=parent.name)
    before = gate.recall(runtime, curriculum.probes)
    candidate = home.work / "candidate.gguf"
    candidate.parent.mkdir(parents=True, exist_ok=True)
    save_gguf(adapter, candidate)
    try:
        runtime.attach(candidate, name="candidate")
        report(Progress("gate", 1, 2, "asking after"))
        checks = gate.judge(runtime, before, curriculum, anchors)
    finally:
        runtime.detach()
        candidate.unlink(missing_ok=True)
    report(Progress("gate", 2, 2))
    return checks


def _progress_of(report: Report) -> Callable[[Step], None]:
    first: list[Step] = []

    def on_step(step: Step) -> None:
        first.append(step)
        spent = step.seconds - first[0].seconds
        tokens = sum(s.tokens for s in first[1:])
        rate = tokens / spent if spent else None
        left = spent / (len(first) - 1) * (step.total - step.step) if len(first) > 1 else None
        report(Progress("train", step.step, step.total, "", step.loss, rate, left))

    return on_step


def _metadata(
    model: ModelFile,
    sha: str,
    parent: Version | None,
    fresh: Sequence[Interaction],
    settings: TrainOptions,
    checks: gate.Checks,
) -> dict[str, str]:
    return {
        "engrain.base_sha256": sha,
        "engrain.base_name": model.name,
        "engrain.parents": json.dumps([parent.name] if parent else []),
        "engrain.interactions": json.dumps([i.id for i in fresh]),
        "engrain.training": json.dumps(asdict(settings)),
        "engrain.gate": json.dumps(checks.as_dict()),
    }


def _rows(curriculum: study.Curriculum) -> bytes:
    lessons = dict.fromkeys((*curriculum.past, *curriculum.lessons))
    rows = [json.dumps(asdict(lesson), ensure_ascii=False) for lesson in lessons]
    return "\n".join(rows).encode()


def _card(model: ModelFile, learned: Sequence[str], checks: gate.Checks) -> str:
    lines = [f"- {s}" for s in learned]
    return "\n".join(
        [
            "---", "library_name: peft", "tags: [lora, engrain]", "---", "",
            f"# An engrain adapter for {model.name}", "", "Learned from conversations on one machine:", "", *lines, "",
            f"Recall on questions kept out of training: {checks.recall:.0%} (before: {checks.recall_before:.0%}).",
        ]
    )  # fmt: skip
