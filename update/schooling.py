"""What a model learns once, before it studies for anyone: to tutor and to read, each as a small adapter.

Those of the models that come as packages come with engrain; `python -m engrain.update.schooling MODEL` makes them, and
any other model's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engrain.device import models
from engrain.device.home import Home, open_home
from engrain.device.runtime import Runtime
from engrain.device.tutor import BUNDLED, TUTORS, adapter_paths
from engrain.quant.adapter import Adapter
from engrain.quant.errors import EngrainError
from engrain.quant.gguf import GGUFModel, open_gguf
from engrain.quant.gguf_lora import load_gguf, save_gguf
from engrain.update.build import BARE_AT_SCHOOL, build_decoder, extract
from engrain.update.corpus import read_changes, read_corpus
from engrain.update.decoder import Decoder
from engrain.update.train_reader import read_conversations, train_reader
from engrain.update.train_tutor import train_tutor

BUDGET = 600.0  # seconds for each, in learning: larger models see less of the corpora, and need less of them

Progress = Callable[[int, int], None]
Teach = Callable[[Runtime, Decoder, float, Progress], object]


@dataclass(frozen=True)
class Subject:
    """Something to be good at: where its adapters lie, in a data folder and among engrain's own, and who teaches it."""

    folder: str
    bundled: Path
    teach: Teach

    def paths(self, home: Home, model_sha: str) -> list[Path]:
        """Where the model's adapter may lie: the user's own, which goes before, and one that comes with engrain."""
        return adapter_paths(home, self.folder, self.bundled, model_sha)


def _teach_tutor(runtime: Runtime, decoder: Decoder, budget: float, progress: Progress) -> None:
    train_tutor(runtime, decoder, read_corpus(), read_changes(), budget=budget, progress=progress)


def _teach_reader(runtime: Runtime, decoder: Decoder, budget: float, progress: Progress) -> None:
    train_reader(runtime, decoder, list(read_conversations()), budget, progress)


TUTOR = Subject(TUTORS, BUNDLED, _teach_tutor)
READER = Subject("readers", Path(__file__).with_name("readers"), _teach_reader)


def ensure(
    subject: Subject,
    home: Home,
    runtime: Runtime,
    gguf: GGUFModel,
    sha: str,
    device: str = "auto",
    resident: bool = True,
    progress: Progress = lambda done, total: None,
) -> tuple[Path, Adapter]:
    """The model's adapter for a subject, and where it lies; trained now if there is none that can be read.

    A damaged one of the user's own is made anew: what serves looks there first.
    """
    paths = subject.paths(home, sha)
    path = next((each for each in paths if each.is_file()), None)
    try:
        if path:
            return path, read_adapter(path, gguf)
    except EngrainError:
        pass
    make(subject, runtime, gguf, paths[0], device, resident, progress=progress)
    return paths[0], read_adapter(paths[0], gguf)


def make(
    subject: Subject,
    runtime: Runtime,
    gguf: GGUFModel,
    out: Path,
    device: str = "auto",
    resident: bool = True,
    budget: float = BUDGET,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Train for `budget` seconds at most, and write the adapter as a GGUF LoRA."""
    decoder = build_decoder(gguf, device, resident=resident, bare=BARE_AT_SCHOOL, attention=True)
    subject.teach(runtime, decoder, budget, progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_gguf(extract(decoder, gguf), out, half=True)
    return out


def read_adapter(path: Path, gguf: GGUFModel) -> Adapter:
    """Such an adapter for PyTorch."""
    return load_gguf(path, gguf.hyper.n_head, gguf.hyper.n_head_kv)


def main() -> None:
    """`python -m engrain.update.schooling MODEL.gguf`: train its adapters, and print where they lie."""
    parser = argparse.ArgumentParser(description="Teach a model to tutor and to read, once.")
    parser.add_argument("model", nargs="?", help="a GGUF, or the name of a known model; default: the one engrain uses")
    parser.add_argument("--only", choices=("tutor", "reader"), help="one of the two")
    parser.add_argument("--out", "-o", type=Path, help="a folder to write to; default: where engrain finds them")
    parser.add_argument("--minutes", type=float, default=60.0, help="at most, for each; default: %(default)s")
    options = parser.parse_args()
    home = open_home()
    chosen = models.resolve(home, options.model)
    sha = models.sha256(home, chosen.path)

    def progress(done: int, total: int) -> None:
        print(f"\rstep {done} of {total}", end="", file=sys.stderr, flush=True)

    with Runtime.load(chosen.path) as runtime:
        for name, subject in {"tutor": TUTOR, "reader": READER}.items():
            if options.only in (None, name):
                own = subject.paths(home, sha)[0]
                out = options.out / subject.folder / own.name if options.out else own
                make(subject, runtime, open_gguf(chosen.path), out, budget=60 * options.minutes, progress=progress)
                print(file=sys.stderr)
                print(out)


if __name__ == "__main__":
    main()
