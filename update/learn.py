"""study -> train -> gate -> register: one update of the cumulative adapter from what was said since the last."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from engrain.device import models
from engrain.device.home import Home, lock
from engrain.device.interactions import Interaction, InteractionLog
from engrain.device.registry import Registry, Version
from engrain.device.runtime import Runtime
from engrain.device.scope import SCOPE
from engrain.device.serving import attached
from engrain.quant.adapter import Adapter, load_peft
from engrain.quant.errors import EngrainError
from engrain.quant.gguf import GGUFModel, open_gguf
from engrain.update import footprint, gate, page, study
from engrain.update.anchors import anchors
from engrain.update.curriculum import EPOCHS, Past, prepare, taught_before
from engrain.update.decoder import Decoder, fast_dtype
from engrain.update.exam import STRENGTHS, Candidate, Exam, weigh
from engrain.update.feedback import preferences_of
from engrain.update.neutral import OF_EVERY_KIND, neutral_messages
from engrain.update.scope import fit_scope
from engrain.update.train import Step, TrainOptions, train

if TYPE_CHECKING:
    from engrain.device.models import ModelFile

RANK, ALPHA = 8, 16.0
HELD_ANCHORS = 8  # of the anchors, kept out of training to measure drift
LOWEST_SHARE = 0.2  # of the layers stay bare: what a word means is found there, and it is a fifth less work


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
        sha = models.sha256(home, model.path)
        registry = Registry(home)
        parent, _ = registry.verified_current(sha)
        everything = log.list()
        fresh = log.unlearned(sha, registry.ancestors(parent.name) if parent else [])
        if options.force and not fresh:
            fresh = everything
        past = taught_before(parent, {i.id for i in everything})
        if not (fresh or past.gone):
            return Outcome("nothing", parent.name if parent else None)
        gguf = open_gguf(model.path)
        # What was forgotten leaves the weights by their never having seen it: they start anew.
        warm = parent if parent and not past.gone else None
        settings = TrainOptions(epochs=EPOCHS, budget=options.budget, seed=options.seed)
        plan = _plan_memory(gguf, options, settings)
        report(Progress("memory", 1, 1, str(plan)))
        with Runtime.load(model.path) as runtime:
            decoder = build_decoder(gguf, options, load_peft(warm.folder) if warm else None, plan.resident)
            exam = Exam(runtime, past.probes, options.seed)
            with attached(runtime, registry, warm):
                known = exam.ask_old()
            curriculum = prepare(
                home, runtime, decoder, sha, fresh, past, exam.missed(known), options.seed,
                lambda done, total, text: report(Progress("study", done, total, text)),
            )  # fmt: skip
            exam, known = exam.without(curriculum.replaced, known)
            learned = tuple(dict.fromkeys(f.said for f in curriculum.facts))
            if options.dry_run:
                return Outcome("nothing", None, len(curriculum.lessons), time.monotonic() - start, learned=learned)
            if not any(lesson.source for lesson in curriculum.lessons):
                if past.gone:
                    registry.use(None)
                return Outcome("nothing", parent.name if parent else None, seconds=time.monotonic() - start)
            neutral = neutral_messages(
                home, runtime, sha, progress=lambda done, total: report(
                    Progress("study", done, total, "what is not about you, once for each model")
                ),
            )  # fmt: skip
            held = anchors(home, runtime, decoder, sha, neutral[:OF_EVERY_KIND])
            scope = fit_scope(home, runtime, decoder, sha, curriculum.in_scope(), neutral, options.seed)
            given = [lesson for lesson in curriculum.lessons if lesson.kind != "disliked"]
            examples, preferences = study.to_examples(runtime, given), preferences_of(runtime, curriculum.lessons)
            began = time.monotonic()
            done = train(
                decoder, examples, settings, held[HELD_ANCHORS:], preferences, home.work / "learn", _progress_of(report)
            )
            trained = time.monotonic()
            adapter = extract(decoder, gguf)
            report(Progress("gate", 0, 1 + len(STRENGTHS), "asking before"))
            with attached(runtime, registry, warm):
                before = gate.ask(runtime, curriculum.probes) + known
            strength, after, checks = weigh(
                runtime, Candidate(home, adapter, scope), exam, curriculum, before, held[:HELD_ANCHORS],
                lambda done, text: report(Progress("gate", 1 + done, 1 + len(STRENGTHS), text)),
            )  # fmt: skip
        asked = exam.sheet(curriculum.probes, before, after)
        taught = _all_taught(everything, past, fresh) if past.gone else fresh
        metadata = _metadata(model, sha, warm, taught, settings, checks)
        adapter = replace(adapter, alpha=strength * adapter.alpha, metadata=metadata)
        title = f"What {model.name} learned"
        files = {
            **curriculum.files(),
            **({SCOPE: scope.to_bytes()} if scope else {}),
            page.REPORT: page.render(title, learned, asked, checks, done.steps),
        }
        version = registry.add(adapter, _card(model, learned, checks), files)
        accepted = checks.passed or options.force
        if accepted:
            registry.use(version.name)
            log.mark_learned(taught, version.name, sha)
        end = time.monotonic()
        return Outcome(
            status="accepted" if accepted else "rejected",
            adapter=version.name,
            examples=len(examples) + len(preferences),
            seconds=round(end - start, 2),
            checks=checks.as_dict(),
            study_seconds=round(began - start, 2),
            train_seconds=round(trained - began, 2),
            gate_seconds=round(end - trained, 2),
            learned=learned,
            asked=asked,
            report=str(version.folder / page.REPORT),
        )


def _all_taught(everything: Sequence[Interaction], past: Past, fresh: Sequence[Interaction]) -> list[Interaction]:
    """What an adapter that starts anew has been taught: the new, and the old that still stands."""
    ids = {i for lesson in past.lessons for i in lesson.source} | {i.id for i in fresh}
    return [i for i in everything if i.id in ids]


def bare_layers(gguf: GGUFModel) -> int:
    """How many of the lowest layers get no adapters."""
    return int(LOWEST_SHARE * gguf.hyper.n_layer)


def _plan_memory(gguf: GGUFModel, options: LearnOptions, settings: TrainOptions) -> footprint.Footprint:
    device = pick_device(options.device)
    resident = None if options.memory == "auto" else options.memory == "resident"
    return footprint.choose(gguf, settings.pack_tokens, RANK, fast_dtype(device), device, resident)


def build_decoder(gguf: GGUFModel, options: LearnOptions, parent: Adapter | None, resident: bool = True) -> Decoder:
    """The decoder with new adapters, or with the parent's to train on from."""
    torch.manual_seed(options.seed)
    rank, lowest = RANK, bare_layers(gguf)
    if parent:
        rank, lowest = parent.rank, min(int(n.split(".")[1]) for n in parent.weights)
    device = pick_device(options.device)
    decoder = Decoder(gguf, rank, ALPHA, device=device, resident=resident, first_layer=lowest)
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


def _card(model: ModelFile, learned: Sequence[str], checks: gate.Checks) -> str:
    lines = [f"- {s}" for s in learned]
    return "\n".join(
        [
            "---", "library_name: peft", "tags: [lora, engrain]", "---", "",
            f"# An engrain adapter for {model.name}", "", "Learned from conversations on one machine:", "", *lines, "",
            f"Recall on questions kept out of training: {checks.recall:.0%} (before: {checks.recall_before:.0%}).",
        ]
    )  # fmt: skip
