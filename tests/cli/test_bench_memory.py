"""`engrain bench memory` on the tiny model: its JSON, table and plots, and wrong usage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from engrain.cli import bench_memory, bench_plot
from engrain.quant.errors import EngrainError
from engrain.update import memory_bench, memory_set

KEYS = {
    "way",
    "recall",
    "false_memories",
    "refused",
    "general",
    "prompt_tokens",
    "seconds_per_question",
    "learn_seconds",
    "study_seconds",
    "train_seconds",
    "perplexity",
    "kl",
    "answer_words",
}
CONTEXT_WAYS = "nothing,history,system,retrieval"


def bench(*arguments: str) -> None:
    app = typer.Typer()
    app.command()(bench_memory.memory)
    typer.main.get_command(app).main(args=list(arguments), standalone_mode=False)


@pytest.fixture
def small_set(tmp_path: Path) -> Path:
    values = bench_memory.built_in()
    path = tmp_path / "small.json"
    kept = {"facts": values["facts"][:3], "untold": values["untold"][:2], "general": values["general"][:2]}
    path.write_text(json.dumps(kept), encoding="utf-8")
    return path


def test_every_way_has_a_row_of_figures(tiny: Path, small_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench("--model", str(tiny), "--set", str(small_set), "--ways", CONTEXT_WAYS, "--json")
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert (result["model"], result["set"], result["seed"]) == ("tiny", "small.json", 0)
    assert [result[part] for part in ("sessions", "updates", "preferences", "forgetting")] == [None] * 4
    rows = {row["way"]: row for row in result["ways"]}
    assert list(rows) == CONTEXT_WAYS.split(",")
    assert all(row.keys() >= KEYS and "misses" not in row for row in rows.values())
    tokens = {way: row["prompt_tokens"] for way, row in rows.items()}
    assert tokens["nothing"] < tokens["retrieval"] and tokens["nothing"] < tokens["system"] < tokens["history"]
    assert all(row["learn_seconds"] == row["kl"] == 0 for row in rows.values())
    assert "asking" in printed.err


def test_a_table_a_plot_and_the_wrong_answers(
    tiny: Path, small_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat when the other one was there. " * 60, encoding="utf-8")
    out = tmp_path / "plot.svg"
    common = ("--model", str(tiny), "--set", str(small_set), "--ways", "nothing", "--text", str(text))
    bench(*common, "--misses", "--out", str(out))
    printed = capsys.readouterr().out
    assert printed.startswith("way ") and "wrong with nothing" in printed and "my cat?" in printed
    assert "<svg" in out.read_text(encoding="utf-8")
    bench(*common, "--out", str(tmp_path / "figures.json"))
    assert json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["ways"][0]["perplexity"] > 1


def test_a_plot_of_sessions_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    row = {"way": "weights", "recall": 0.9, "false_memories": None, "general": 0.5, "prompt_tokens": 30.0}
    result = {"model": "tiny", "set": "small", "ways": [row], "sessions": {"matrix": [[0.9, 0.0], [0.8, 1.0]]}}
    bench_plot.save_memory(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--out", "plot.pdf"), r"plot.pdf has no known form: .*\.png, \.svg, \.json"),
        (("--out", "none/plot.svg"), "there is no folder"),
        (("--set", "none.json"), "none.json can't be read"),
        (("--text", "none.txt"), "none.txt can't be read"),
        (("--sessions", "99"), "10 facts can't be split over 99 sessions"),
    ],
)
def test_what_cannot_be_done_is_said_first(tiny: Path, arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(EngrainError, match=said):
        bench("--model", str(tiny), "--ways", "nothing", *arguments)


def test_an_unknown_way_is_wrong_usage() -> None:
    with pytest.raises(typer.BadParameter, match="magic: choose from nothing, history"):
        bench_memory.parse_ways("nothing,magic")
    assert bench_memory.parse_ways("weights, nothing") == ["nothing", "weights"]


def test_without_matplotlib_a_plot_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_plot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngrainError, match="needs matplotlib"):
        bench_plot.check_out(Path("plot.svg"))
    bench_plot.check_out(Path("figures.json"))


def test_the_built_in_set_is_one() -> None:
    found = memory_set.parse(bench_memory.built_in(), "built in")
    assert len(found.facts) == 10 and found.updates and found.preferences and found.general
    told = [text for fact in found.facts for text in fact.accept]
    assert not any(memory_bench.holds(question, told) for question in found.untold)
    assert bench_memory.WAYS == memory_bench.WAYS
