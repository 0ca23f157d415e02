"""study -> train -> gate -> register: one update of the cumulative adapter from what was said since the last."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

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
from engrain.update import gate, study
from engrain.update.decoder import Decoder
from engrain.update.train import Step, TrainOptions, train

if TYPE_CHECKING:
    from engrain.device.models import ModelFile

RANK, ALPHA = 8, 16.0
REPLAY_PER_FACT = 4
UNTOLD_PROBES = 8
CONTRAST_SHARE = 0.5  # never-told neighbours for every fact: more, and wordings that weren't trained are refused


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


@dataclass(frozen=True)
class Curriculum:
    """What an update is made of."""

    facts: list[study.Fact]
    lessons: list[study.Lesson]
    probes: list[gate.Probe]
    untold: list[str]


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
            curriculum = prepare(runtime, fresh, old, options.seed, report)
            studied = time.monotonic()
            if not any(lesson.source for lesson in curriculum.lessons) or not fresh:
                return Outcome("nothing", parent.name if parent else None, seconds=studied - start)
            learned = tuple(dict.fromkeys(f.said for f in curriculum.facts if f.source[0] in {i.id for i in fresh}))
            if options.dry_run:
                return Outcome("nothing", None, len(curriculum.lessons), studied - start, learned=learned)
            gguf = open_gguf(model.path)
            decoder = build_decoder(gguf, options, load_peft(parent.folder) if parent else None)
            held = anchoring.write_anchors(home, runtime, sha, seed=0)
            held = anchoring.with_teacher(decoder, held)
            examples = study.to_examples(runtime, curriculum.lessons)
            settings = TrainOptions(
                epochs=5,
                pack_tokens=512,
                anchors_per_step=4,
                budget=options.budget,
                seed=options.seed,
                anchor_weight=1.0,
            )
            began = time.monotonic()
            state = home.work / "learn"
            train(decoder, examples, settings, held[8:], state, _progress_of(report))
            trained = time.monotonic()
            adapter = extract(decoder, gguf)
            checks = _check(home, runtime, adapter, parent, registry, curriculum, held[:8], report)
            facts = _metadata(model, sha, parent, fresh, settings, checks)
            adapter = Adapter(**{**vars(adapter), "metadata": facts})
            version = registry.add(adapter, _card(model, learned, checks), {"lessons.jsonl": _rows(curriculum)})
            accepted = checks.passed or options.force
            if accepted:
                registry.use(version.name)
                log.mark_learned(fresh, version.name, sha)
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
    runtime: Runtime, fresh: Sequence[Interaction], old: Sequence[Interaction], seed: int, report: Report
) -> Curriculum:
    """New interactions in full, a few questions for each old fact, near neighbours; one question a fact held back."""
    facts, known = study.find_facts(runtime, fresh), study.find_facts(runtime, old)
    written = study.write_questions(
        runtime, facts, seed=seed, progress=lambda d, t: report(Progress("study", d, t, "writing questions"))
    )
    probes = [gate.Probe(w.pop(), f.surprising, f) for f, w in zip(facts, written, strict=True) if len(w) > 2]
    held_back = {p.question for p in probes}
    lessons = [x for x in study.lessons_of(facts, written, fresh) if x.question not in held_back]
    lessons += study.lessons_of(known, [[] for _ in known], old, plain=REPLAY_PER_FACT)
    wanted = UNTOLD_PROBES + max(2, round(CONTRAST_SHARE * len(facts)))
    neighbours = study.write_neighbours(runtime, [*facts, *known], wanted, seed) if facts else []
    untold, contrast = neighbours[-UNTOLD_PROBES:], neighbours[:-UNTOLD_PROBES]
    lessons += [study.Lesson(q, study.NOT_TOLD, "contrast") for q in contrast]
    return Curriculum(facts, lessons, probes, untold)


def build_decoder(gguf: GGUFModel, options: LearnOptions, parent: Adapter | None) -> Decoder:
    """The decoder with new adapters, or with the parent's to train on from."""
    torch.manual_seed(options.seed)
    rank = parent.rank if parent else RANK
    decoder = Decoder(gguf, rank, ALPHA, device=pick_device(options.device))
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
    curriculum: Curriculum,
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
        checks = gate.judge(runtime, before, curriculum.probes, curriculum.untold, curriculum.facts, anchors)
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


def _rows(curriculum: Curriculum) -> bytes:
    rows = [json.dumps(asdict(lesson), ensure_ascii=False) for lesson in curriculum.lessons]
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
