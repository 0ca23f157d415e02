import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engrain.device.home import Home, HomeError, open_home
from engrain.device.registry import CONFIG, LESSONS, WEIGHTS, Registry, RegistryError, read_header
from engrain.quant.adapter import Adapter
from engrain.quant.errors import EngrainError
from engrain.quant.gguf_lora import load_gguf
from engrain.quant.peft import load_peft

BASE, OTHER = "a" * 64, "b" * 64


def adapter(seed: int, base: str = BASE, **metadata: str) -> Adapter:
    """Rank 2 on one projection of 8 inputs and 8 outputs."""
    random = np.random.default_rng(seed)
    lora_a = random.standard_normal((2, 8), dtype=np.float32)
    lora_b = random.standard_normal((8, 2), dtype=np.float32)
    return Adapter(
        rank=2,
        alpha=4.0,
        architecture="llama",
        n_head=2,
        n_head_kv=1,
        weights={"blk.0.attn_q.weight": (lora_a, lora_b)},
        metadata={"engrain.base_sha256": base, "engrain.base_name": "tiny", **metadata},
    )


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return open_home(tmp_path / "home")


@pytest.fixture
def registry(home: Home) -> Registry:
    return Registry(home)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_add_stores_a_version_that_reads_back(registry):
    parents = {"engrain.parents": json.dumps(["0000-00000000"])}
    version = registry.add(adapter(1, **parents), "# Card ž", {"report.html": b"<p>"})
    assert version.name == f"0001-{version.sha256[:8]}" and version.number == 1
    assert (version.base, version.parents, version.problem) == (BASE, ("0000-00000000",), None)
    assert version.created > 1.7e9
    assert (version.folder / "README.md").read_text(encoding="utf-8") == "# Card ž"
    assert (version.folder / "report.html").read_bytes() == b"<p>"
    assert read_header(version.folder / WEIGHTS) == version.metadata
    stored, original = load_peft(version.folder), adapter(1)
    for name, pair in original.weights.items():
        assert all(np.array_equal(a, b) for a, b in zip(pair, stored.weights[name], strict=True))
    assert registry.list() == [version]
    assert registry.current_name() is None
    assert [path.name for path in registry.home.adapters.iterdir()] == [version.name]


def test_add_refuses_no_base_and_names_that_lead_elsewhere(registry):
    with pytest.raises(RegistryError, match="base_sha256"):
        registry.add(replace(adapter(1), metadata={}), "")
    for name in ("../out", "/etc/x", "", ".", "..", WEIGHTS, CONFIG, "README.md", "a\\b"):
        with pytest.raises(EngrainError):
            registry.add(adapter(1), "", {name: b""})
    assert registry.list() == [] and list(registry.home.adapters.iterdir()) == []


def test_get_by_name_number_and_beginning(registry):
    versions = [registry.add(adapter(seed), "") for seed in range(3)]
    for version in versions:
        for name in (version.name, str(version.number), version.name[:4], version.name[:7]):
            assert registry.get(name) == version
    for name in ("000", "", "4", "../adapters", "current", "0001-zzzzzzzz", "²", "9" * 5000):
        with pytest.raises(RegistryError, match="engrain adapter list"):
            registry.get(name)


def test_use_and_rollback_walk_the_history(registry):
    one, two, three = (registry.add(adapter(seed), "").name for seed in range(3))
    for name in (one, two, "2", three):
        registry.use(name)
    assert (registry.home.adapters / "current").read_text() == three + "\n"
    assert registry.rollback() == registry.get(two)
    registry.use(None)
    assert registry.current_name() is None
    assert registry.rollback() == registry.get(two)
    assert registry.rollback() == registry.get(one)
    assert registry.rollback() is None and registry.current_name() is None
    with pytest.raises(RegistryError, match="no earlier adapter"):
        registry.rollback()


def test_rollback_passes_over_what_is_damaged_or_gone(registry):
    one, two, three, four = (registry.add(adapter(seed), "") for seed in range(4))
    for version in (one, two, three, four):
        registry.use(version.name)
    damage(three.folder / WEIGHTS)
    shutil.rmtree(two.folder)
    assert registry.rollback() == one


def test_current_never_moves_to_what_does_not_load(registry):
    one, two, three = (registry.add(adapter(seed), "") for seed in range(3))
    registry.use(one.name)
    damage(two.folder / WEIGHTS)
    (three.folder / CONFIG).write_text("{}")
    for version in (two, three):
        with pytest.raises(EngrainError) as caught:
            registry.use(version.name)
        assert "\n" not in str(caught.value)
    assert registry.current_name() == one.name


def test_remove_deletes_all_but_the_current(registry):
    one, two = (registry.add(adapter(seed), "") for seed in range(2))
    registry.use(one.name)
    registry.use(two.name)
    derived = registry.gguf(one)
    with pytest.raises(RegistryError, match="in use"):
        registry.remove(two.name)
    registry.remove(one.name)
    assert not derived.exists() and not one.folder.exists()
    assert [version.name for version in registry.list()] == [two.name]
    assert registry.rollback() is None


@pytest.mark.parametrize("break_it", ["weights", "cut", "empty", "config", "no config", "gone", "header"])
def test_a_damaged_version_is_listed_kept_and_stepped_back_from(registry, break_it):
    one, two = (registry.add(adapter(seed), "") for seed in range(2))
    registry.use(two.name)
    weights = two.folder / WEIGHTS
    if break_it == "weights":
        damage(weights)
    elif break_it == "cut":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif break_it == "empty":
        weights.write_bytes(b"")
    elif break_it == "header":
        weights.write_bytes(b"\xff" * 8 + weights.read_bytes()[8:])
    elif break_it == "config":
        (two.folder / CONFIG).write_bytes(b"\0" * 100)
    elif break_it == "no config":
        (two.folder / CONFIG).unlink()
    else:
        shutil.rmtree(two.folder)
    version, reason = registry.verified_current(BASE)
    assert version == one
    assert reason is not None and two.name in reason and one.name in reason and "\n" not in reason
    if break_it != "gone":
        problems = [(listed.name, listed.problem is None) for listed in registry.list()]
        assert problems == [(one.name, True), (two.name, False)]
        with pytest.raises(RegistryError, match="damaged"):
            registry.gguf(two)
    assert registry.current_name() == two.name


def test_verified_current_keeps_to_the_base_and_to_what_came_before(registry):
    assert registry.verified_current(BASE) == (None, None)
    one, two, three, four = (
        registry.add(adapter(seed, base), "") for seed, base in enumerate((BASE, OTHER, BASE, BASE))
    )
    assert registry.verified_current(BASE) == (None, None)
    registry.use(three.name)
    assert registry.verified_current(BASE) == (three, None)
    version, reason = registry.verified_current(OTHER)
    assert version == two and reason is not None and "another model" in reason
    damage(three.folder / WEIGHTS)
    assert registry.verified_current(BASE)[0] == one  # not four, which is newer than what was chosen
    version, reason = registry.verified_current("c" * 64)
    assert version is None and reason is not None and "going on without" in reason
    assert four.problem is None


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\n", b"../../elsewhere\n", b"0009-00000000\n", b"x" * 10**6])
def test_a_damaged_pointer_falls_back_to_the_newest_good_version(registry, content):
    registry.add(adapter(1), "")
    two = registry.add(adapter(2), "")
    (registry.home.adapters / "current").write_bytes(content)
    version, reason = registry.verified_current(BASE)
    assert version == two and reason is not None and "\n" not in reason
    registry.use(two.name)
    assert registry.verified_current(BASE) == (two, None)
    with pytest.raises(RegistryError, match="no earlier"):
        registry.rollback()


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", "[" * 100_000])
def test_a_damaged_history_counts_as_none(registry, content):
    one = registry.add(adapter(1), "")
    (registry.home.adapters / "history.json").write_text(content)
    with pytest.raises(RegistryError, match="no earlier"):
        registry.rollback()
    registry.use(one.name)
    assert registry.rollback() is None


def test_leftovers_of_a_crash_are_ignored_and_cleaned(registry):
    leftover = registry.home.adapters / ".new-crashed"
    leftover.mkdir()
    (leftover / WEIGHTS).write_bytes(b"half")
    (registry.home.adapters / "notes.txt").write_text("the user's own")
    assert registry.list() == []
    version = registry.add(adapter(1), "")
    assert sorted(path.name for path in registry.home.adapters.iterdir()) == [version.name, "notes.txt"]


def test_the_derived_gguf_is_built_once_and_again_when_gone(registry):
    version = registry.add(adapter(1), "")
    path = registry.gguf(version)
    assert path == registry.home.cache / "lora" / f"{version.sha256}.gguf"
    first = path.stat().st_mtime_ns, path.read_bytes()
    assert registry.gguf(version) == path and path.stat().st_mtime_ns == first[0]
    loaded = load_gguf(path)
    for name, pair in adapter(1).weights.items():
        assert all(np.array_equal(a, b) for a, b in zip(pair, loaded.weights[name], strict=True))
    path.unlink()
    assert registry.gguf(version).read_bytes() == first[1]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_ancestors(registry):
    one = registry.add(adapter(1), "")
    two = registry.add(adapter(2, **{"engrain.parents": json.dumps([one.name, "0000-00000000"])}), "")
    three = registry.add(adapter(3, **{"engrain.parents": json.dumps([two.name, one.name])}), "")
    assert registry.ancestors(three.name) == [three.name, two.name, one.name, "0000-00000000"]


def test_what_the_weights_saw_is_known_whatever_was_removed(registry):
    def add(seed: int, learned: list[int], *ancestors: str, **others: str):
        lists = {"parents": [*ancestors[:1]], "ancestors": [*ancestors], "interactions": learned}
        metadata = {f"engrain.{key}": json.dumps(value) for key, value in lists.items()}
        return registry.add(adapter(seed, **metadata, **others), "")

    one = add(1, [1, 2])
    two = add(2, [1, 2, 5], one.name)
    aside = add(3, [9], one.name, **{"engrain.status": "rejected"})
    three = add(4, [7], two.name, one.name)
    odd = registry.add(adapter(5, **{"engrain.interactions": '{"a": 1}', "engrain.ancestors": "[[1], 3]"}), "")
    assert registry.seen(three.name) == {1, 2, 5, 7} and registry.seen(odd.name) == set()
    registry.remove(two.name)
    assert registry.ancestors(three.name) == [three.name, two.name, one.name]
    registry.remove(one.name)
    assert registry.holders([7, 9]) == [aside.name, three.name]
    assert registry.holders([5]) == []  # of that alone its own parent knew
    damage(three.folder / WEIGHTS)  # which hold it still
    older = registry.add(adapter(6), "", {LESSONS: b'{"source": [11]}\n'})  # of before the lists were kept
    assert registry.holders([7, 11]) == [three.name, older.name]
    assert (aside.rejected, three.rejected) == (True, False)


def test_what_was_rejected_is_no_good_version_to_fall_back_to(registry):
    good = registry.add(adapter(1), "")
    aside = registry.add(adapter(2, **{"engrain.status": "rejected"}), "")
    current = registry.add(adapter(3), "")
    registry.use(current.name)
    damage(current.folder / WEIGHTS)
    assert registry.verified_current(BASE)[0] == good
    registry.use(aside.name)  # by name it may be used
    assert registry.verified_current(BASE) == (aside, None)


def test_processes_that_add_at_once_get_numbers_of_their_own(registry):
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_registry import Registry, adapter, open_home
registry = Registry(open_home(Path({str(registry.home.root)!r})))
for number in range(4):
    registry.use(registry.add(adapter(int(sys.argv[1]) * 10 + number), "").name)
"""
    adders = [subprocess.Popen([sys.executable, "-c", script, str(number)]) for number in range(3)]
    assert [adder.wait(60) for adder in adders] == [0] * 3
    versions = registry.list()
    assert [version.number for version in versions] == list(range(1, 13))
    assert all(version.problem is None for version in versions)
    assert registry.get(registry.current_name() or "").problem is None


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_full_disk_leaves_no_half_version(registry):
    one = registry.add(adapter(1), "")
    registry.use(one.name)
    script = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_registry import EngrainError, Registry, adapter, open_home
registry = Registry(open_home(Path({str(registry.home.root)!r})))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
try:
    registry.add(adapter(2), "")
except EngrainError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "free some space" in done.stdout and done.stdout.count("\n") == 1
    assert registry.list() == [one]
    names = {path.name for path in registry.home.adapters.iterdir()}
    assert names == {one.name, "current", "history.json"}
    assert registry.verified_current(BASE) == (one, None)


def test_an_extra_file_that_cannot_be_written_leaves_nothing(registry):
    with pytest.raises(HomeError):
        registry.add(adapter(1), "", {"x" * 5000: b""})
    assert list(registry.home.adapters.iterdir()) == []
