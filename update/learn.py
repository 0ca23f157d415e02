"""study -> train -> gate -> register: one update of the cumulative adapter from what was said since the last."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engrain.device import models
from engrain.device.home import Home, lock
from engrain.device.interactions import Interaction, InteractionLog
from engrain.device.registry import Registry, Version
from engrain.device.runtime import Runtime
from engrain.device.scope import SCOPE, read_scope
from engrain.device.serving import attached
from engrain.quant.adapter import Adapter
from engrain.quant.gguf import GGUFModel, open_gguf
from engrain.quant.peft import load_peft
from engrain.update import footprint, gate, page, study
from engrain.update.anchors import ANSWER_TOKENS, anchors
from engrain.update.build import BARE, BARE_FOR_FORM, RANK, build_decoder, extract, pick_device
from engrain.update.corpus import questions_of_users
from engrain.update.curriculum import EPOCHS, Curriculum, Past, prepare, taught_before
from engrain.update.decoder import Decoder, fast_dtype
from engrain.update.exam import STRENGTHS, Candidate, Exam, weigh
from engrain.update.feedback import preferences_of
from engrain.update.neutral import OF_EVERY_KIND, neutral_messages
from engrain.update.pack import Example
from engrain.update.reader import Reader
from engrain.update.schooling import READER, TUTOR, Subject, ensure
from engrain.update.scope import fit_scope
from engrain.update.train import Step, TrainOptions, train
from engrain.update.tutor import Tutor

if TYPE_CHECKING:
    from engrain.device.models import ModelFile

WARM_LR = 3e-3  # of training on from an adapter, which is to keep what it knows
PACK_TOKENS, ANCHORS = 320, 3  # of a step: many small ones make as sure as few large ones, in less time
ANCHOR_ROWS = 48  # of an anchor in a step's pack, about
PERSONAL = 300  # questions about anyone, by which an adapter's scope knows a user's own
HELD_ANCHORS = 8  # of the anchors, kept out of training to measure drift
_ONCE, _NOT_YOU = "learning how to study, once for each model", "what is not about you, once for each model"


@dataclass(frozen=True)
class LearnOptions:
    """budget: seconds for training. dry_run: study only. force: keep the candidate whatever the gate says.

    memory: "resident" or "quantised" base weights, "auto" for what fits (`update.footprint`).
    """

    budget: float | None = None
    device: str = "auto"
    memory: str = "auto"
    dry_run: bool = False
    force: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """One report: `done` of `total` in a phase ("memory", "study", "train", "gate"); seconds_left within the phase."""

    phase: str
    done: int
    total: int
    text: str = ""
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What an update came to: "accepted", "rejected" (kept aside, not current) or "nothing" to learn.

    asked: the questions kept out of training, before and after. report: path of the page about it.
    """

    status: str
    adapter: str | None = None
    examples: int = 0
    seconds: float = 0.0
    checks: dict[str, Any] = field(default_factory=dict)
    study_seconds: float = 0.0
    train_seconds: float = 0.0
    gate_seconds: float = 0.0
    learned: tuple[str, ...] = ()
    asked: tuple[page.Asked, ...] = ()
    report: str | None = None


Report = Callable[[Progress], None]


def learn(home: Home, model: ModelFile, options: LearnOptions, report: Report = lambda progress: None) -> Outcome:
    """Learn what the log holds and the current adapter doesn't.

    Raises:
        Locked: another learner is at work.
        EngrainError: the model cannot be trained, or not in the memory there is.
    """
    start = time.monotonic()
    with lock(home, "learner"), InteractionLog(home.interactions) as log:
        job = _job(home, model, options, report, log)
        if not (job.fresh or job.past.anew):
            return Outcome("nothing", job.parent.name if job.parent else None)
        outcome = _update(job, log)
        return replace(outcome, seconds=round(time.monotonic() - start, 2))


@dataclass(frozen=True)
class _Job:
    """One update: what the current adapter (parent) was taught, and what is new to it."""

    home: Home
    model: ModelFile
    options: LearnOptions
    report: Report
    sha: str
    gguf: GGUFModel
    registry: Registry
    parent: Version | None
    everything: list[Interaction]
    fresh: list[Interaction]
    past: Past

    @property
    def warm(self) -> Version | None:
        """The adapter to train on from. What was forgotten leaves by never having been seen: the weights start anew."""
        return None if self.past.anew else self.parent

    @property
    def since(self) -> list[Interaction]:
        """All interactions from the first fresh one on."""
        return [it for it in self.everything if self.fresh and it.id >= self.fresh[0].id]

    @property
    def taught(self) -> list[Interaction]:
        """What the new adapter learns from: the new, and if it starts anew, the old that still stands."""
        if not self.past.anew:
            return self.fresh
        ids = {i for lesson in self.past.lessons for i in lesson.source} | {i.id for i in self.fresh}
        return [i for i in self.everything if i.id in ids]

    @property
    def corrects(self) -> bool:
        """Whether a reply was corrected, which may be about form."""
        return any(it.correction for it in self.fresh)

    @property
    def bare(self) -> float:
        """The share of layers that get no adapters; whether a correction is about form, study tells only later."""
        return BARE_FOR_FORM if self.corrects or any(lesson.kind == "form" for lesson in self.past.lessons) else BARE

    def settings(self, form: bool) -> TrainOptions:
        """A form isn't taken up by few passes in small steps: it is learned in the trainer's own."""
        lr = WARM_LR if self.warm else TrainOptions.lr
        options = TrainOptions(lr=lr, budget=self.options.budget, seed=self.options.seed)
        return options if form else replace(options, epochs=EPOCHS, pack_tokens=PACK_TOKENS, anchors_per_step=ANCHORS)


def _job(home: Home, model: ModelFile, options: LearnOptions, report: Report, log: InteractionLog) -> _Job:
    sha = models.sha256(home, model.path)
    registry = Registry(home)
    parent, _ = registry.verified_current(sha)
    everything = log.list()
    fresh = log.unlearned(sha, registry.ancestors(parent.name) if parent else [])
    if options.force and not fresh:
        fresh = everything
    past = taught_before(parent, {i.id for i in everything}, registry.seen(parent.name) if parent else ())
    # What came from a forgotten interaction and another one is learned anew from the other alone.
    again = {id for lesson in past.gone for id in lesson.source} | {i.id for i in fresh}
    fresh = [i for i in everything if i.id in again]
    return _Job(home, model, options, report, sha, open_gguf(model.path), registry, parent, everything, fresh, past)


def _update(job: _Job, log: InteractionLog) -> Outcome:
    """Study, train, check, register; the whole's seconds are the caller's to add."""
    begun = time.monotonic()
    plan = _plan_memory(job)
    job.report(Progress("memory", 1, 1, str(plan)))
    with Runtime.load(job.model.path) as runtime:
        path, tutor = _schooled(job, runtime, TUTOR, plan.resident)
        _, reader = _schooled(job, runtime, READER, plan.resident)
        runtime.use_tutor(path)
        parent = load_peft(job.warm.folder) if job.warm else None
        decoder = build_decoder(job.gguf, job.options.device, job.options.seed, parent, plan.resident, job.bare)
        examiner = Tutor(runtime, decoder, tutor)
        runtime.weigh_by(examiner.weigh)
        with decoder.bare():
            curriculum, exam, known = _study(job, runtime, decoder, examiner, Reader(runtime, decoder, reader))
        if not _teaches(job, curriculum):
            return _nothing(job, curriculum, log)
        learned = tuple(dict.fromkeys(f.said for f in curriculum.facts))
        if job.options.dry_run:
            return Outcome("nothing", None, len(curriculum.lessons), learned=learned)
        trained = _train(job, runtime, decoder, examiner, curriculum)
        checked = _check(job, runtime, trained, curriculum, exam, known)
    version = _register(job, log, curriculum, trained, checked)
    end = time.monotonic()
    return Outcome(
        status="rejected" if version.rejected else "accepted",
        adapter=version.name,
        examples=trained.examples,
        checks=checked.checks.as_dict(),
        study_seconds=round(trained.began - begun, 2),
        train_seconds=round(trained.ended - trained.began, 2),
        gate_seconds=round(end - trained.ended, 2),
        learned=learned,
        asked=checked.asked,
        report=str(version.folder / page.REPORT),
    )


def _teaches(job: _Job, curriculum: Curriculum) -> bool:
    """Whether there is anything to train for: something new, or an adapter without what was forgotten or ended."""
    sources = curriculum.sources
    changed = job.past.anew or curriculum.replaced or sources.intersection(it.id for it in job.fresh)
    return bool(sources and changed)


def _nothing(job: _Job, curriculum: Curriculum, log: InteractionLog) -> Outcome:
    """What is new teaches nothing; where nothing is left to know, no adapter is in use.

    What an adapter in use needn't learn isn't studied again.
    """
    if job.options.dry_run or job.parent is None:
        return Outcome("nothing")
    if job.past.anew or curriculum.replaced:
        if job.registry.current_name() == job.parent.name:
            job.registry.use(None)
        return Outcome("nothing")
    log.mark_learned(job.fresh, job.parent.name, job.sha)
    return Outcome("nothing", job.parent.name)


def _schooled(job: _Job, runtime: Runtime, subject: Subject, resident: bool) -> tuple[Path, Adapter]:
    """The model's adapter for a subject, and where it lies."""
    return ensure(
        subject, job.home, runtime, job.gguf, job.sha, job.options.device, resident,
        lambda done, total: job.report(Progress("study", done, total, _ONCE)),
    )  # fmt: skip


def _neutral(job: _Job, runtime: Runtime, decoder: Decoder) -> list[str]:
    """Messages that aren't about the user, written once for each model."""
    return neutral_messages(
        job.home, runtime, decoder, job.sha,
        progress=lambda done, total: job.report(Progress("study", done, total, _NOT_YOU)),
    )  # fmt: skip


def _study(
    job: _Job, runtime: Runtime, decoder: Decoder, tutor: Tutor, reader: Reader
) -> tuple[Curriculum, Exam, list[str]]:
    """What to teach; the exam, and the answers to its old questions before the update."""
    exam = Exam(runtime, job.past.probes, job.options.seed)
    with attached(runtime, job.registry, job.warm):
        known = exam.ask_old(anew=job.warm is None)
    neutral = _neutral(job, runtime, decoder) if job.corrects else []  # for forms alone
    curriculum = prepare(
        runtime, decoder, tutor, reader, job.fresh, job.since, job.past, exam.missed(known), neutral,
        job.options.seed, lambda done, total, text: job.report(Progress("study", done, total, text)),
    )  # fmt: skip
    return curriculum, *exam.without(curriculum.replaced, known)


@dataclass(frozen=True)
class _Trained:
    """A candidate, the anchors kept out of its training, and how that went; began, ended: monotonic seconds."""

    candidate: Candidate
    held: list[Example]
    settings: TrainOptions
    steps: tuple[Step, ...]
    examples: int
    began: float
    ended: float


def _train(job: _Job, runtime: Runtime, decoder: Decoder, tutor: Tutor, curriculum: Curriculum) -> _Trained:
    form = curriculum.is_about_form
    answer_tokens, settings = 0 if form else ANSWER_TOKENS, job.settings(form)
    with decoder.bare():
        neutral = _neutral(job, runtime, decoder)
        held = anchors(job.home, runtime, decoder, job.sha, neutral[:OF_EVERY_KIND], answer_tokens)
        personal = questions_of_users(PERSONAL)
        before = read_scope(job.warm.folder) if job.warm else None
        scope = fit_scope(
            job.home,
            runtime,
            decoder,
            job.sha,
            curriculum.in_scope(),
            neutral,
            personal,
            job.options.seed,
            tutor,
            before,
        )
    given = [lesson for lesson in curriculum.lessons if lesson.kind != "disliked"]
    examples, preferences = study.to_examples(runtime, given), preferences_of(runtime, curriculum.lessons)
    began = time.monotonic()
    state, on_step = job.home.work / "learn", _progress_of(job.report)
    done = train(decoder, examples, settings, held[HELD_ANCHORS:], preferences, state, on_step)
    candidate = Candidate(job.home, extract(decoder, job.gguf), scope)
    count = len(examples) + len(preferences)
    return _Trained(candidate, held[:HELD_ANCHORS], settings, done.steps, count, began, time.monotonic())


@dataclass(frozen=True)
class _Checked:
    """The strength at which a candidate did best, its figures, and question by question."""

    strength: float
    checks: gate.Checks
    asked: tuple[page.Asked, ...]


def _check(
    job: _Job, runtime: Runtime, trained: _Trained, curriculum: Curriculum, exam: Exam, known: Sequence[str]
) -> _Checked:
    total = 1 + len(STRENGTHS)
    job.report(Progress("gate", 0, total, "asking before"))
    with attached(runtime, job.registry, job.warm):
        before = [*gate.ask(runtime, curriculum.probes), *known]
    strength, after, checks = weigh(
        runtime, trained.candidate, exam, curriculum, before, trained.held,
        lambda done, text: job.report(Progress("gate", 1 + done, total, text)),
    )  # fmt: skip
    return _Checked(strength, checks, exam.sheet(curriculum.probes, before, after))


def _register(job: _Job, log: InteractionLog, curriculum: Curriculum, trained: _Trained, checked: _Checked) -> Version:
    """Keep the candidate as a version with all that lies beside it; current, if it passed."""
    adapter, scope = trained.candidate.adapter, trained.candidate.scope
    learned = tuple(dict.fromkeys(f.said for f in curriculum.facts))
    accepted = checked.checks.passed or job.options.force
    metadata = _metadata(job, curriculum, trained.settings, checked.checks, accepted)
    adapter = replace(adapter, alpha=checked.strength * adapter.alpha, metadata=metadata)
    title = f"What {job.model.name} learned"
    files = {
        **curriculum.files({each.question: each.after for each in checked.asked}),
        **({SCOPE: scope.to_bytes()} if scope else {}),
        page.REPORT: page.render(title, learned, checked.asked, checked.checks, trained.steps),
    }
    version = job.registry.add(adapter, _card(job.model, checked.checks), files)
    if accepted:
        job.registry.use(version.name)
        log.mark_learned(job.taught, version.name, job.sha)
    return version


def _plan_memory(job: _Job) -> footprint.Footprint:
    device, memory = pick_device(job.options.device), job.options.memory
    resident = None if memory == "auto" else memory == "resident"
    largest = job.settings(form=True)
    rows = largest.pack_tokens + ANCHOR_ROWS * largest.anchors_per_step
    return footprint.choose(job.gguf, rows, RANK, fast_dtype(device), device, resident)


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
    job: _Job, curriculum: Curriculum, settings: TrainOptions, checks: gate.Checks, accepted: bool
) -> dict[str, str]:
    """Of a safetensors file. ancestors, interactions: of the weights since they began, whatever is removed by then."""
    seen = job.registry.seen(job.warm.name) if job.warm else set()
    return {
        "engrain.base_sha256": job.sha,
        "engrain.base_name": job.model.name,
        "engrain.status": "accepted" if accepted else "rejected",
        "engrain.parents": json.dumps([job.warm.name] if job.warm else []),
        "engrain.ancestors": json.dumps(job.registry.ancestors(job.warm.name) if job.warm else []),
        "engrain.interactions": json.dumps(sorted(seen | curriculum.sources)),
        "engrain.training": json.dumps(asdict(settings)),
        "engrain.gate": json.dumps(checks.as_dict()),
    }


def _card(model: ModelFile, checks: gate.Checks) -> str:
    """What may be read by whoever gets the adapter: nothing of what was said."""
    return "\n".join(
        [
            "---", "library_name: peft", "tags: [lora, engrain]", "---", "",
            f"# An engrain adapter for {model.name}", "", "Learned from conversations on one machine.", "",
            f"Recall on questions kept out of training: {checks.recall:.0%} (before: {checks.recall_before:.0%}).",
        ]
    )  # fmt: skip
