"""`engrain demo`: the main job on the starter model, each step as a user types it, in a throw-away home."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from engrain.cli import output
from engrain.cli.session import JsonOption, ModelOption
from engrain.device import home as homes
from engrain.quant.errors import EngrainError

GOAL = 0.8  # of the questions


@dataclass(frozen=True)
class Question:
    """A question, and the lower-case texts of which an answer must hold one."""

    text: str
    accept: tuple[str, ...]


@dataclass(frozen=True)
class Statement:
    said: str
    questions: tuple[Question, Question]


def _statement(said: str, first: str, second: str, *accept: str) -> Statement:
    return Statement(said, (Question(first, accept), Question(second, accept)))


STATEMENTS = (
    _statement("My cat is called Biscotti.", "What did I name my cat?", "How is my cat called?", "biscotti"),
    _statement("I work as a beekeeper.", "What's my profession?", "How do I make my living?", "beekeep", "bee keep"),
    _statement("I live in Ljubljana.", "Which city do I live in?", "What town is my home in?", "ljubljana"),
    _statement("I'm allergic to walnuts.", "Do I have an allergy?", "Which nuts must I avoid?", "walnut"),
    _statement("I drive an old Saab.", "What car do I drive?", "Which make is my car?", "saab"),
    _statement("My hobby is paragliding.", "Which hobby is mine?", "What do I do in my free time?", "paraglid"),
    _statement("My sister is called Odile.", "How is my sister called?", "What name does my sister have?", "odile"),
    _statement(
        "Our wedding anniversary is on the 14th of June.",
        "On which date did we get married?",
        "What day is our anniversary?",
        "14",
        "fourteenth",
    ),
    _statement(
        "The code of my bike lock is 8264.",
        "Which number opens my bike lock?",
        "What numbers open my bike lock?",
        "8264",
    ),
    _statement(
        "My favourite dessert is rhubarb crumble.",
        "Which dessert do I like best?",
        "What would I choose for dessert?",
        "rhubarb",
    ),
)


@dataclass(frozen=True)
class Row:
    """One question with its answers. `in_training`: it was an example, so it proves little."""

    said: str
    question: str
    before: str
    after: str
    before_right: bool
    after_right: bool
    in_training: bool


def demo(
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="DIR", help="The data folder; without: a new temporary one."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE.svg", help="Draw the table into this file too.")
    ] = None,
    model: ModelOption = None,
    json_: JsonOption = False,
) -> None:
    """Tell the starter model ten things, let it learn, and ask a new process about them.

    Your own data are not touched: it uses a folder of its own, and leaves it there for you to look at.

    \b
      engrain demo
    """
    root = _root(keep)
    home = homes.open_home(root)
    from engrain.device import models

    # Of that name among the user's own models, which the demo's home doesn't know.
    named = None if model is None else str(models.resolve(homes.open_home(), model).path)
    chosen = models.resolve(home) if named is None else models.use(home, named)
    output.note(f"model {chosen.name}; this demo's data are in {root}")
    seconds: dict[str, float] = {}
    before = _ask_all(root, seconds, "ask before")
    _tell_all(root, seconds)
    outcome = _learn(root, seconds)
    after = _ask_all(root, seconds, "ask after")
    result = _result(root, seconds, outcome, before, after)
    if json_:
        output.as_json(result)
    else:
        _print(result)
    if picture:
        title = f"engrain demo: {result['right']} of {result['asked']} known, {result['right_before']} before"
        output.picture(picture, title, _HEADINGS, _table(result))
    if result["recall"] < GOAL:
        output.note(f"fewer than {GOAL:.0%} of the questions were answered")
        raise typer.Exit(1)


def _root(keep: Path | None) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="engrain-demo-"))
    root = keep.expanduser().absolute()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise EngrainError(f"{root} is not an empty folder: choose another for --keep")
    return root


def _engrain(root: Path, arguments: Sequence[str], text: str, watch: bool = False) -> str:
    """Run `engrain` as a new process in the demo's home; its stdout. With `watch`, stderr is shown."""
    done = subprocess.run(
        [sys.executable, "-m", "engrain.cli.main", *arguments],
        input=text,
        stdout=subprocess.PIPE,
        stderr=None if watch else subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "ENGRAIN_HOME": str(root), "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr or "").strip().removeprefix("error: ").splitlines()
        raise EngrainError(f"`engrain {arguments[0]}` failed" + (f": {reason[-1]}" if reason else ""))
    return done.stdout


def _ask_all(root: Path, seconds: dict[str, float], step: str) -> list[dict[str, Any]]:
    """Every question, each in a fresh conversation, in a new process."""
    questions = [question.text for statement in STATEMENTS for question in statement.questions]
    output.note(f"{step}: {len(questions)} questions, in a new process, with nothing in the prompt")
    lines = "".join(json.dumps({"text": question}) + "\n" for question in questions)
    start = time.monotonic()
    answers = _engrain(root, ["ask", "--batch", "-", "--max-tokens", "48"], lines)
    seconds[step] = time.monotonic() - start
    return [json.loads(line) for line in answers.strip().split("\n")]


def _tell_all(root: Path, seconds: dict[str, float]) -> None:
    output.note(f"chat: {len(STATEMENTS)} things are said")
    start = time.monotonic()
    lines = "".join(f"{statement.said}\n" for statement in STATEMENTS)
    _engrain(root, ["chat", "--max-tokens", "48"], lines)
    seconds["chat"] = time.monotonic() - start
    for statement in STATEMENTS:
        output.note(f"  {statement.said}")


def _learn(root: Path, seconds: dict[str, float]) -> dict[str, Any]:
    output.note("learn: study, train, check")
    start = time.monotonic()
    printed = _engrain(root, ["learn", "--json"], "", watch=True)
    seconds["learn"] = time.monotonic() - start
    outcome: dict[str, Any] = json.loads(printed.splitlines()[-1])
    if outcome["status"] != "accepted":
        reason = outcome["checks"].get("reason") or "the checks failed"
        output.note(f"nothing was kept ({outcome['status']}): {reason}")
    return outcome


def _result(
    root: Path,
    seconds: dict[str, float],
    outcome: dict[str, Any],
    before: list[dict[str, Any]],
    after: list[dict[str, Any]],
) -> dict[str, Any]:
    from engrain.device.registry import plain_question, trained_questions

    trained = trained_questions(root / "adapters" / str(outcome["adapter"]))
    asked = [(statement, question) for statement in STATEMENTS for question in statement.questions]
    rows = [
        Row(
            statement.said,
            question.text,
            first["answer"].strip(),
            second["answer"].strip(),
            _right(question, first["answer"]),
            _right(question, second["answer"]),
            plain_question(question.text) in trained,
        )
        for (statement, question), first, second in zip(asked, before, after, strict=True)
    ]
    counted = [row for row in rows if not row.in_training]
    right = sum(row.after_right for row in counted)
    adapter = outcome["adapter"]
    return {
        "recall": right / max(1, len(counted)),
        "right": right,
        "asked": len(counted),
        "right_before": sum(row.before_right for row in counted),
        "prompt_tokens_before": sum(answer["prompt_tokens"] for answer in before),
        "prompt_tokens_after": sum(answer["prompt_tokens"] for answer in after),
        "seconds": {step: round(value, 1) for step, value in seconds.items()},
        "home": str(root),
        "adapter": str(root / "adapters" / adapter) if adapter else None,
        "learn": outcome,
        "rows": [asdict(row) for row in rows],
    }


def _right(question: Question, answer: str) -> bool:
    return any(accepted in answer.lower() for accepted in question.accept)


_HEADINGS = ("", "said", "asked", "before", "after")


def _table(result: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    said = ""
    for row in result["rows"]:
        mark = "trained" if row["in_training"] else "✓" if row["after_right"] else "✗"
        shown = "" if row["said"] == said else row["said"]
        said = row["said"]
        rows.append(
            (
                mark,
                shown,
                row["question"],
                output.shorten(row["before"], 40),
                output.shorten(row["after"], 60),
            )
        )
    return rows


def _print(result: dict[str, Any]) -> None:
    print()
    output.table(_HEADINGS, _table(result))
    print()
    asked = result["asked"]
    known = len(result["rows"]) - asked
    print(f"recall         {result['right']}/{asked} (before: {result['right_before']}/{asked})")
    if known:
        print(f"               {known} more questions were among the examples, and don't count")
    before, after = result["prompt_tokens_before"], result["prompt_tokens_after"]
    print(f"prompt tokens  {before} before, {after} after: the memory costs {after - before}")
    print("seconds        " + ", ".join(f"{step} {value}" for step, value in result["seconds"].items()))
    print(f"adapter        {result['adapter'] or 'none was kept'}")
    print(f"data folder    {result['home']} (kept; delete it when you like)")
    command = "engrain" if shutil.which("engrain") else Path(sys.executable).with_name("engrain")
    print(f'to go on       ENGRAIN_HOME={result["home"]} {command} ask "What is my cat\'s name?"')
