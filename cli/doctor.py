"""`engrain doctor`: what works on this machine, what doesn't, and the mend."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import typer

from engrain.cli import output
from engrain.cli.session import JsonOption
from engrain.device import home as homes
from engrain.quant.errors import EngrainError

if TYPE_CHECKING:
    from engrain.device.models import ModelFile

_LOW_SPACE = 1 << 30  # bytes
# In a process of its own: a broken torch may take the process down, and this one stays light.
_TORCH_PROBE = """
import json, torch
has = lambda name: bool(getattr(torch.cpu, name, lambda: False)())
print(json.dumps({
    "version": torch.__version__, "threads": torch.get_num_threads(),
    "capability": torch.backends.cpu.get_cpu_capability(),
    "bf16": has("_is_avx512_bf16_supported") or has("_is_amx_tile_supported"),
    "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
}))
"""


@dataclass(frozen=True)
class Check:
    """One finding: status is "ok", "warn" or "fail"; `mend` says what to do."""

    name: str
    status: str
    detail: str
    mend: str = ""


def doctor(json_: JsonOption = False) -> None:
    """Check this machine, the data folder, the model and the adapter; exit status 1 if something fails.

    \b
      engrain doctor
    """
    checks = examine()
    if json_:
        output.as_json({"ok": not _failed(checks), "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            mend = f"; {check.mend}" if check.mend else ""
            print(output.printable(f"{check.status:<4}  {check.name}: {check.detail}{mend}"))
    if _failed(checks):
        raise typer.Exit(1)


def _failed(checks: list[Check]) -> bool:
    return any(check.status == "fail" for check in checks)


def examine() -> list[Check]:
    """All checks, in the order in which one needs the other."""
    checks = [_guarded("python", _python), _guarded("llama.cpp", _llama), _guarded("torch", _torch)]
    try:
        home = homes.open_home()
    except EngrainError as error:
        return [*checks, Check("data folder", "fail", str(error))]
    checks.append(_guarded("data folder", lambda: _folder(home)))
    checks.append(_guarded("settings", lambda: _settings(home)))
    checks.append(_guarded("log", lambda: _log(home)))
    try:
        from engrain.device import models

        model = models.resolve(home)
        values = models.show(home, model)
    except EngrainError as error:
        return [*checks, Check("model", "fail", str(error))]
    checks += [_model(values), _template(values), _guarded("adapter", lambda: _adapter(home, model))]
    return checks


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """A check that itself goes wrong is a finding."""
    try:
        return check()
    except EngrainError as error:
        return Check(name, "fail", str(error))
    except Exception as error:
        return Check(name, "fail", f"{type(error).__name__}: {error}", "`engrain --debug doctor` shows where")


def _python() -> Check:
    import platform

    return Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _llama() -> Check:
    from importlib.metadata import version

    try:
        import engrain.device.runtime  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        mend = "`pip install --force-reinstall --no-cache-dir llama-cpp-python`"
        return Check("llama.cpp", "fail", f"can't be loaded ({error})", mend)
    return Check("llama.cpp", "ok", f"llama-cpp-python {version('llama-cpp-python')}")


def _torch() -> Check:
    probe = subprocess.run([sys.executable, "-c", _TORCH_PROBE], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        reason = (probe.stderr.strip().splitlines() or [f"exit status {probe.returncode}"])[-1]
        return Check("torch", "fail", f"can't be loaded ({reason})", "`pip install torch`: learning needs it")
    found = json.loads(probe.stdout.splitlines()[-1])
    device = "cuda" if found["cuda"] else "mps" if found["mps"] else "cpu"
    bf16 = "fast bf16" if found["bf16"] else "no fast bf16"
    detail = f"{found['version']}, {device}, {found['threads']} threads, {found['capability']}, {bf16}"
    return Check("torch", "ok", detail)


def _folder(home: homes.Home) -> Check:
    probe = home.cache / "doctor.txt"
    homes.write_atomic(probe, "written\n")
    probe.unlink(missing_ok=True)
    free = shutil.disk_usage(home.root).free
    detail = f"{home.root}, {output.size(free)} free"
    if free < _LOW_SPACE:
        return Check("data folder", "warn", detail, "free some space: learning wants a gigabyte")
    return Check("data folder", "ok", detail)


def _settings(home: homes.Home) -> Check:
    settings = homes.load_settings(home)
    return Check("settings", "ok", f"context {settings.n_ctx} tokens, replies up to {settings.max_tokens}")


def _log(home: homes.Home) -> Check:
    from engrain.device.interactions import InteractionLog

    with InteractionLog(home.interactions) as log:
        problem = log.check()
        if problem is not None:
            return Check("log", "fail", problem)
        return Check("log", "ok", f"{len(log.list())} interactions")


def _model(values: dict[str, Any]) -> Check:
    detail = (
        f"{values['name']} ({values['architecture']}, {values['quantisation']}, {output.size(values['size_bytes'])})"
    )
    if values["trainable"] is not True:
        return Check(
            "model",
            "warn",
            f"{detail} can't learn: {values['trainable']}",
            "chat works; to learn, use another",
        )
    return Check("model", "ok", detail)


def _template(values: dict[str, Any]) -> Check:
    if values["template"]:
        return Check("template", "ok", "the model brings its chat template")
    return Check(
        "template",
        "warn",
        "the model has no chat template",
        "a plain one serves; an instruct model is better",
    )


def _adapter(home: homes.Home, model: ModelFile) -> Check:
    """The model loads, and the current adapter provably changes what it says."""
    from engrain.device import models
    from engrain.device.registry import Registry
    from engrain.device.runtime import Runtime
    from engrain.device.serving import attach

    registry = Registry(home)
    version, warning = registry.verified_current(models.sha256(home, model.path))
    with Runtime.load(model.path, n_ctx=512) as runtime:
        if version is None:
            if warning is not None:
                return Check("adapter", "fail", warning, "`engrain adapter list`, then `engrain adapter use`")
            return Check("adapter", "ok", "none in use; the model loads")
        attach(runtime, registry, version)
        change = runtime.prove_adapter()
    if not change > 0:
        return Check("adapter", "fail", f"{version.name} changes nothing", "`engrain adapter rollback`")
    detail = f"{version.name} changes logits by up to {change:.2f}"
    if warning is not None:
        return Check("adapter", "warn", f"{warning}; {detail}", "`engrain adapter use` a good one")
    return Check("adapter", "ok", detail)
