"""Scripts in their sandbox: how tests run one and hear what it does."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from libs.common.blobs import BlobStore
from libs.compute import script_child, script_sandbox
from libs.compute.context import LocalContext
from libs.compute.process_usage import Usage
from libs.compute.script_sandbox import CODE, WRITABLE, ScriptFailed, ScriptLimits, run_script

MIB = 1 << 20
LIMITS = ScriptLimits(seconds=20, memory=600 * MIB, disk=64 * MIB, threads=1)
OF_VERSION = {"max_seconds": 30, "max_memory_bytes": 1024 * MIB, "max_disk_bytes": 64 * MIB}


class Heard:
    """What a script printed and said."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.messages: list[dict[str, Any]] = []
        self.usage: list[Usage] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def message(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    def used(self, usage: Usage) -> None:
        self.usage.append(usage)


def run_folder(root: Path) -> Path:
    """A new folder for a run."""
    for name in (CODE, *WRITABLE):
        (root / "run" / name).mkdir(parents=True)
    return root / "run"


def run(folder: Path, source: str, limits: ScriptLimits = LIMITS) -> Heard:
    """Runs a script; afterwards none of its processes is left."""
    (folder / CODE / "main.py").write_text(source)
    heard = Heard()
    try:
        run_script(folder, "main.py", limits, 7, 0, heard)
    finally:
        assert not left()
    return heard


def left() -> list[psutil.Process]:
    """Scripts that are still running, and what they started."""
    name = script_sandbox.CHILD.name
    children = psutil.Process().children(recursive=True)
    found: list[psutil.Process] = []
    for child in children:
        with suppress(psutil.NoSuchProcess):
            if any(part.endswith(name) for part in child.cmdline()):
                found.append(child)
    return found


def failure(folder: Path, source: str, limits: ScriptLimits = LIMITS) -> str:
    """How a script fails."""
    with pytest.raises(ScriptFailed) as caught:
        run(folder, source, limits)
    return str(caught.value)


def script_context(store: BlobStore, main: str, *, columns: str = "", **others: Any) -> LocalContext:
    """A context of the engine for a script.

    Args:
        columns: source of a package beside it.
        others: `limits` and `parameters` of the run, `version` that it reads, and what `LocalContext` takes.
    """
    files = {"main.py": main, **({"columns/__init__.py": columns} if columns else {})}
    blobs = {path: store.put_sync(text.encode()) for path, text in files.items()}
    entries = [{"path": path, "sha256": blob.sha256, "size": blob.size} for path, blob in blobs.items()]
    digest = store.commit_sync({"kind": "training.code", "blobs": entries})
    limits = {**OF_VERSION, **others.pop("limits", {})}
    script = {"name": "mine", "grant": "g", "manifest_digest": digest, "limits": limits}
    parameters, version = others.pop("parameters", {}), others.pop("version", "")
    spec: dict[str, Any] = {
        "algorithm": {"code": "main.py", "parameters": parameters, "columns": {}, "script": script},
        "seed": 7,
        "threads": 1,
    }
    if version:
        spec["train"] = {"grant": "g", "manifest_digest": version}
    return LocalContext(spec, blobs_write=store, blobs_read=store, **others)


def without_capabilities(action: Callable[[], Any]) -> Any:
    """What an action gives in a thread that may do what an ordinary user may, also where the tests run as root."""
    found: list[Any] = []

    def act() -> None:
        script_child.drop_capabilities(ctypes.CDLL(None, use_errno=True))
        try:
            found.append(action())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    thread.join()
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]
