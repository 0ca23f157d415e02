"""`engrain learn`: compress what is new in the log into the adapter."""

from __future__ import annotations

import os
import re
import sys
import time
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeAlias

import typer

from engrain.cli import output
from engrain.cli.session import JsonOption, ModelOption
from engrain.device.home import Home, Locked, open_home

if TYPE_CHECKING:
    from engrain.device.models import ModelFile

# update.learn's types: cli imports update only inside commands, for type checkers too.
LearnOptions: TypeAlias = Any
Outcome: TypeAlias = Any
Progress: TypeAlias = Any

_PHASES = {"memory": "memory", "study": "studying", "train": "training", "gate": "checking"}
_BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*(s|sec|m|min|h)?")
_SECONDS = {None: 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_PLAIN_SECONDS = 2.0  # between lines where there is no terminal
_WATCH_SECONDS = 60.0
_NICENESS = 10
_ASKED_SHOWN = 8


class Device(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Memory(str, Enum):
    auto = "auto"
    resident = "resident"
    quantised = "quantised"


def parse_budget(text: str) -> float:
    """Seconds of "90s", "5m", "1h"; a bare number is in seconds."""
    matched = _BUDGET.fullmatch(text.strip().lower())
    seconds = float(matched[1]) * _SECONDS[matched[2]] if matched else 0.0
    if not 0 < seconds < 1e7:
        raise typer.BadParameter(f"{text!r} is no time: write 90s, 5m or 1h", param_hint="--budget")
    return seconds


def learn(
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="TIME", help="At most this long: 90s, 5m, 1h.")
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="Where to train.")] = Device.auto,
    memory: Annotated[
        Memory,
        typer.Option(
            "--memory",
            help="Base weights: resident (dequantised once, faster), quantised (left in their blocks, a fraction of "
            "the memory), or what fits.",
        ),
    ] = Memory.auto,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be learned; train nothing.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Learn even if all is learned, and keep it whatever the checks say."),
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Stay, and learn within a minute of anything new (Ctrl-C ends).")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="For the same result again.")] = 0,
    model: ModelOption = None,
    json_: JsonOption = False,
) -> None:
    """Learn what is new in the log: study it, train, check, and keep the result if it is better.

    Chat goes on meanwhile. Ctrl-C keeps a checkpoint, from which the next run goes on.

    \b
      engrain learn
      engrain learn --budget 5m --json
    """
    seconds = parse_budget(budget) if budget is not None else None
    home = open_home()
    _give_way()
    from engrain.device import models

    chosen = models.resolve(home, model)
    from engrain.update import learn as learner

    options = learner.LearnOptions(
        budget=seconds, device=device.value, memory=memory.value, dry_run=dry_run, force=force, seed=seed
    )
    try:
        if watch:
            _watch(home, chosen, options, json_)
        else:
            learn_once(home, chosen, options, json_)
    except KeyboardInterrupt:
        output.note("stopped" if watch else "stopped; a checkpoint is kept, `engrain learn` goes on from it")
        raise typer.Exit(130) from None


def _give_way() -> None:
    """Let a chat in another terminal come first: without this it had 6 of its 93 tokens a second, with it 50.

    OpenMP's threads wait in a loop, on the very cores that the other program's threads wait for.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # read when torch and llama.cpp are loaded
    if hasattr(os, "nice"):
        os.nice(_NICENESS)


def learn_once(home: Home, model: ModelFile, options: LearnOptions, json_: bool) -> Outcome:
    """One update, with its progress, and its outcome printed."""
    from engrain.update.learn import learn as learn_now

    with progress_display() as report:
        outcome = learn_now(home, model, options, report)
    if json_:
        output.as_json(
            {
                "status": outcome.status,
                "adapter": outcome.adapter,
                "examples": outcome.examples,
                "seconds": round(outcome.seconds, 3),
                "checks": outcome.checks,
                "learned": outcome.learned,
                "report": outcome.report,
            }
        )
    else:
        _tell(outcome, options)
    return outcome


def _watch(home: Home, model: ModelFile, options: LearnOptions, json_: bool) -> None:
    """Learn whenever there is something new. What was tried and rejected isn't tried again by itself."""
    tried: frozenset[tuple[int, int]] = frozenset()
    output.note("watching the log; Ctrl-C ends")
    while True:
        new = _unlearned(home, model)
        if new - tried:
            try:
                learn_once(home, model, options, json_)
                tried = new
            except Locked as error:
                output.note(str(error))
        time.sleep(_WATCH_SECONDS)


def _unlearned(home: Home, model: ModelFile) -> frozenset[tuple[int, int]]:
    """(id, revision) of what the current adapter hasn't learned."""
    from engrain.device import models
    from engrain.device.interactions import InteractionLog
    from engrain.device.registry import Registry

    sha = models.sha256(home, model.path)
    registry = Registry(home)
    version, _ = registry.verified_current(sha)
    learners = registry.ancestors(version.name) if version else []
    with InteractionLog(home.interactions) as log:
        return frozenset((each.id, each.revision) for each in log.unlearned(sha, learners))


def _tell(outcome: Outcome, options: LearnOptions) -> None:
    took = output.duration(outcome.seconds)
    if outcome.status == "nothing" and not outcome.examples:
        reason = outcome.checks.get("reason") or "nothing new to learn: `engrain chat` first"
        print(output.printable(str(reason)))
        return
    if options.dry_run:
        print(f"what `engrain learn` would teach, in {outcome.examples} examples:")
    for sentence in outcome.learned:
        print("  " + output.shorten(sentence, 100))
    if outcome.status == "accepted":
        print(f"learned in {took}, from {outcome.examples} examples: adapter {outcome.adapter} is in use")
    elif outcome.status == "rejected":
        reason = outcome.checks.get("reason") or "the checks failed"
        print(f"not kept ({output.printable(str(reason))}) after {took}: the adapter before stays in use")
    for each in outcome.asked[:_ASKED_SHOWN]:
        was, now = output.shorten(each.before, 36), output.shorten(each.after, 48)
        output.note(f"  {'✓' if each.right else '✗'} {each.question}  {was} → {now}")
    figures = {
        name: f"{value:.3g}" if isinstance(value, float) else value
        for name, value in outcome.checks.items()
        if isinstance(value, int | float)
    }
    if figures:
        output.note("checks: " + ", ".join(f"{name} {value}" for name, value in figures.items()))
    if outcome.report:
        output.note(f"report: {outcome.report}")


class Display(Protocol):
    """Shows progress while it is open."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __call__(self, progress: Progress) -> None: ...


def progress_display() -> Display:
    """A bar on a terminal, else a line now and then; on stderr."""
    return _Bars() if sys.stderr.isatty() else _Lines()


def details(progress: Progress) -> str:
    """Loss, speed and time left, where they are known."""
    parts = [progress.text] if progress.text else []
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:.0f} tok/s")
    if progress.seconds_left is not None:
        parts.append(f"{output.duration(progress.seconds_left)} left")
    return ", ".join(parts)


class _Lines:
    def __init__(self) -> None:
        self._phase = ""
        self._shown = 0.0

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        finished = progress.total > 0 and progress.done >= progress.total
        if progress.phase == self._phase and not finished and now - self._shown < _PLAIN_SECONDS:
            return
        self._phase, self._shown = progress.phase, now
        count = f" {progress.done}/{progress.total}" if progress.total else ""
        shown = details(progress)
        output.note(f"{_PHASES.get(progress.phase, progress.phase)}{count}{': ' + shown if shown else ''}")


class _Bars:
    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._progress = RichProgress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[details]}", markup=False),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def __call__(self, progress: Progress) -> None:
        if progress.phase not in self._tasks:
            label = _PHASES.get(progress.phase, progress.phase)
            self._tasks[progress.phase] = self._progress.add_task(f"{label:<9}", total=None, details="")
        self._progress.update(
            self._tasks[progress.phase],
            completed=progress.done,
            total=progress.total or None,
            details=output.printable(details(progress)),
        )
