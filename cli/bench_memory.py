"""`engrain bench memory`: ways of remembering side by side, and what many sessions do to the weights."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from engrain.cli import bench_plot, output
from engrain.cli.demo import STATEMENTS
from engrain.cli.learn import progress_display
from engrain.cli.session import JsonOption, ModelOption
from engrain.device.home import open_home
from engrain.quant.errors import EngrainError

if TYPE_CHECKING:
    from engrain.device.models import ModelFile

# update's types: cli imports update only inside commands, for type checkers too.
Bench: TypeAlias = Any
MemorySet: TypeAlias = Any
Row: TypeAlias = dict[str, Any]

WAYS = ("nothing", "history", "system", "retrieval", "weights")
_COLUMNS = {
    "way": "way",
    "recall": "recall",
    "false_memories": "false",
    "refused": "refused",
    "general": "general",
    "prompt_tokens": "prompt tokens",
    "seconds_per_question": "s/question",
    "learn_seconds": "learn s",
    "perplexity": "perplexity",
    "kl": "KL",
    "perplexity_on": "always on",
    "answer_words": "words",
    "status": "status",
}
_SHARES = ("recall", "false_memories", "refused", "general")

_UNTOLD = (
    "What is my dog's name?",
    "Who is my dentist?",
    "What is my shoe size?",
    "Where does my uncle live?",
    "What is my favourite colour?",
    "Which school did I go to?",
)
_GENERAL = (
    ("What is the capital of Spain?", "madrid"),
    ("Which planet is known as the red planet?", "mars"),
    ("What is 2 + 2?", "4", "four"),
    ("Which animal barks?", "dog"),
    ("How many days are in a week?", "7", "seven"),
    ("Who wrote Romeo and Juliet?", "shakespeare"),
    ("What colour is the sky on a clear day?", "blue"),
    ("Which ocean lies between Europe and America?", "atlantic"),
)


def built_in() -> Row:
    """The demo's statements in the form of a set, with questions never told and about the world."""
    facts = [
        {"said": each.said, "ask": [q.text for q in each.questions], "accept": list(each.questions[0].accept)}
        for each in STATEMENTS
    ]
    update = {
        "said": "I moved. I live in Trieste now.",
        "ask": ["Which city do I live in?", "What town is my home in?"],
        "accept": ["trieste"],
        "reject": ["ljubljana"],
    }
    preference = {
        "asked": "How do I clean a window?",
        "fix": "In short: warm water, a drop of vinegar, a dry cloth.",
        "ask": ["How do I boil an egg?", "How do I water a cactus?"],
        "starts": "in short:",
    }
    general = [{"ask": question, "accept": accept} for question, *accept in _GENERAL]
    return {
        "facts": facts,
        "updates": [update],
        "preferences": [preference],
        "untold": list(_UNTOLD),
        "general": general,
    }


def memory(
    set_: Annotated[
        Path | None, typer.Option("--set", metavar="FILE.json", help="What to tell and ask; without: a small set.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help="Measure perplexity on this text (wikitext-2, say).")
    ] = None,
    ways: Annotated[str, typer.Option("--ways", metavar="WAY,…", help="Which ways of remembering.")] = ",".join(WAYS),
    sessions: Annotated[
        int, typer.Option("--sessions", min=0, metavar="N", help="Also learn the facts over N sessions (10, say).")
    ] = 0,
    more: Annotated[bool, typer.Option("--more", help="Also measure updates, preferences and forgetting.")] = False,
    seeds: Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="Learn with seeds 0 to N-1.")] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.png|.svg|.json", help="A plot, or the figures.")
    ] = None,
    misses: Annotated[bool, typer.Option("--misses", help="Show the wrong answers too.")] = False,
    model: ModelOption = None,
    json_: JsonOption = False,
) -> None:
    """Measure what the model remembers of what it was told, in its context and in its weights.

    Nothing, the chat's history, a system prompt with everything, retrieval, and learned weights, each asked the
    same questions in fresh conversations. Your own data are not touched.

    \b
      engrain bench memory
      engrain bench memory --set mine.json --sessions 10 --more --out memory.svg
    """
    chosen_ways = parse_ways(ways)
    bench_plot.check_out(out)
    home = open_home()
    from engrain.device import models

    chosen = models.resolve(home, model)
    result = _run(chosen, _set(set_), text, chosen_ways, sessions, more, seeds)
    if not misses:
        for row in result["ways"]:
            row.pop("misses")
    if out is not None:
        bench_plot.save_memory(result, out)
    if json_:
        output.as_json(result)
    else:
        _print(result)


def parse_ways(text: str) -> list[str]:
    """The ways named, in the table's order."""
    named = {way.strip() for way in text.split(",") if way.strip()}
    if unknown := named - set(WAYS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: choose from {', '.join(WAYS)}", param_hint="--ways")
    return [way for way in WAYS if way in named]


def _set(path: Path | None) -> MemorySet:
    from engrain.update import memory_set

    return memory_set.load(path) if path else memory_set.parse(built_in(), "built in")


def _run(
    model: ModelFile, chosen: MemorySet, text: Path | None, ways: Sequence[str], count: int, more: bool, seeds: int
) -> Row:
    from engrain.device.runtime import Runtime
    from engrain.update import memory_sessions
    from engrain.update.memory_bench import Bench as NewBench
    from engrain.update.memory_bench import context_way

    if count:
        memory_sessions.split(chosen.facts, count)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="engrain-bench-"))
        runtime = stack.enter_context(Runtime.load(model.path))
        windows = _windows(runtime, model, text)
        report = stack.enter_context(progress_display())
        output.note(f"model {model.name}, set {chosen.name}: {len(chosen.facts)} facts")
        bench = NewBench(model, runtime, chosen, Path(folder), windows, report)
        rows = [context_way(bench, way) for way in ways if way != "weights"]
        first = None
        if "weights" in ways or more:
            taught = [memory_sessions.teach(bench, seed) for seed in range(seeds if "weights" in ways else 1)]
            first = taught[0]
        if "weights" in ways:
            each = [memory_sessions.weights_way(bench, one) for one in taught]
            rows.append(memory_sessions.mean_row(each) if seeds > 1 else each[0])
        return {
            "model": model.name,
            "set": chosen.name,
            "seed": 0,
            "ways": rows,
            "sessions": memory_sessions.sessions(bench, count) if count else None,
            "updates": memory_sessions.updates(bench, first) if more and first else None,
            "preferences": memory_sessions.preferences(bench, first) if more and first else None,
            "forgetting": memory_sessions.forgetting(bench, first) if more and first else None,
        }


def _windows(runtime: Any, model: ModelFile, text: Path | None) -> tuple[Any, ...]:
    from engrain.update.memory_drift import leading_token, text_windows

    if text is None:
        return ()
    try:
        read = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EngrainError(f"{text} can't be read ({error}): give a text file in UTF-8") from error
    return text_windows(runtime, read, leading_token(model.path))


# What is shown


def _print(result: Row) -> None:
    output.table(list(_COLUMNS.values()), [[_cell(key, row[key]) for key in _COLUMNS] for row in result["ways"]])
    for row in result["ways"]:
        if row["reason"]:
            print(f"\n{row['way']}: {output.printable(row['reason'])}")
        if row["trained_questions"]:
            print(f"\n{row['trained_questions']:g} of the questions were among the training examples")
    if result["sessions"]:
        _print_sessions(result["sessions"])
    for part in ("updates", "preferences", "forgetting"):
        if result[part]:
            print(f"\n{part}")
            output.pairs({key: _cell(key, value) for key, value in result[part].items() if key != "answers"})
    for row in result["ways"]:
        if row.get("misses"):
            print(f"\nwrong with {row['way']}")
            shown = [(miss["kind"], miss["question"], output.shorten(miss["answer"], 70)) for miss in row["misses"]]
            output.table(("kind", "question", "answer"), shown)


def _print_sessions(sessions: Row) -> None:
    matrix, size = sessions["matrix"], len(sessions["matrix"])
    print("\nrecall on each session's facts (columns), after learning each session (rows)")
    rows = [("before", *(f"{value:.2f}" for value in sessions["before"]), "-")]
    rows += [
        (str(i + 1), *(f"{value:.2f}" for value in row), f"{sessions['learn_seconds'][i]:.0f}")
        for i, row in enumerate(matrix)
    ]
    output.table(("after", *(str(j + 1) for j in range(size)), "learn s"), rows)
    transfer = sessions["backward_transfer"]
    print(f"average accuracy {sessions['average_accuracy']:.3f}, backward transfer {_cell('', transfer)}")


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if key in _SHARES:
        return f"{value:.0%}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
