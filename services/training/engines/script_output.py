"""What a script leaves in its folders: the files of a model, looked at before any of them is kept, and checkpoints."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from libs.common.blobs import BlobStore
from libs.compute.context import EngineContext, EngineError
from libs.compute.script_sandbox import ScriptFailed, printable
from services.training.domain import model_files
from services.training.domain.bases import ADAPTER_CONFIG
from services.training.domain.model_files import BadModel

Json = dict[str, Any]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_KINDS = (".safetensors", ".onnx", ".json", ".txt", ".md")
_MOST_FILES = 64
# Two gigabytes of ONNX are read in ten seconds, all nodes of the largest graphs looked at in a minute.
_CHECK_SECONDS = 600
_LOOK_SECONDS = 0.2
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def model_entries(ctx: EngineContext, folder: Path, memory: int) -> tuple[list[Json], int]:
    """Stores the files of a model.

    Args:
        memory: bytes that reading them may take.

    Returns:
        Entries `path`, `sha256`, `size` in order of the paths, and the parameters in the files together.

    Raises:
        EngineError: CONTENT_INVALID that names the file and what is wrong with it.
        EngineCancelled: The task was cancelled.
    """
    try:
        files = _model_files(folder)
        parameters = _parameters(ctx, folder, [path.name for path in files], memory)
        if parameters > model_files.MOST_PARAMETERS:
            raise BadModel(f": it states more than {model_files.MOST_PARAMETERS:,} parameters")
    except BadModel as error:
        # Names that the script chose, of files and in them.
        told = printable(str(error))
        raise EngineError("CONTENT_INVALID", f"output/{told}", detail=told) from error
    return _stored(ctx, folder, files), parameters


def keep_folder(ctx: EngineContext, folder: Path, **beside: Any) -> tuple[str, list[Json]]:
    """Stores all files of a folder under one manifest, whatever is in them; its digest, and the entries `path`,
    `sha256` and `size` in it.

    Raises:
        ScriptFailed: A name is not UTF-8.
        EngineCancelled: The task was cancelled.
    """
    files = [path for path in _below(folder) if path.is_file() and not path.is_symlink()]
    for name in (str(path.relative_to(folder)) for path in files):
        if printable(name) != name:
            raise ScriptFailed(f"{folder.name}/{printable(name)[:200]}: names of files are UTF-8")
    entries = _stored(ctx, folder, files)
    return ctx.blobs_write.commit_sync({"kind": "training.checkpoint", "blobs": entries, **beside}), entries


def bring_folder(store: BlobStore, digest: str, folder: Path) -> None:
    """Writes the files of a manifest below a folder, each checked against its digest."""
    for entry in store.load_manifest_sync(digest)["blobs"]:
        path = folder / entry["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        store.export_sync(entry["sha256"], path)


def _stored(ctx: EngineContext, folder: Path, files: list[Path]) -> list[Json]:
    found: list[Json] = []
    for path in sorted(files):
        ctx.stop_if_cancelled()
        found.append(ctx.blobs_write.put_sync(path).entry(str(path.relative_to(folder))))
    return found


def _model_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for path in _below(folder):
        name = str(path.relative_to(folder))[:200]
        # Refuses pickles and code, saying why.
        model_files.fate(name)
        if path.is_symlink() or not path.is_file() or "/" in name:
            raise BadModel(f"{name}: a model has plain files, and no folders or links")
        if not _NAME.fullmatch(name) or not name.endswith(_KINDS):
            raise BadModel(f"{name}: a model has files of the kinds {', '.join(_KINDS)}, named with letters and digits")
        if name == ADAPTER_CONFIG:
            raise BadModel(
                f"{name}: own code has no base model that an adapter could belong on; write the merged model"
            )
        found.append(path)
    if not any(path.suffix in (".safetensors", ".onnx", ".json") for path in found):
        raise BadModel(": there is no model in it; safetensors, ONNX or JSON make one")
    if len(found) > _MOST_FILES:
        raise BadModel(f": {len(found)} files; a model has at most {_MOST_FILES}")
    return found


def _below(folder: Path) -> Iterator[Path]:
    """Everything in a folder but the folders that have something in them."""
    for root, folders, files in os.walk(folder):
        for name in sorted(files):
            path = Path(root, name)
            if not path.is_symlink():
                # It may have been made without the right to read it.
                path.chmod(0o600)
            yield path
        for name in sorted(folders):
            path = Path(root, name)
            if path.is_symlink() or not any(path.iterdir()):
                yield path


def _parameters(ctx: EngineContext, folder: Path, names: list[str], memory: int) -> int:
    """Parameters in files, which are read in a process with limits (`output_child.py`). Raises BadModel."""
    request = {
        "folder": str(folder),
        "names": names,
        "memory": memory,
        "cpu_seconds": _CHECK_SECONDS,
        "parent": os.getpid(),
    }
    answers = [json.loads(line) for line in _asked(ctx, json.dumps(request).encode()).splitlines()]
    if answers and "error" in answers[-1]:
        raise BadModel(answers[-1]["error"])
    if len(answers) < len(names):
        fault = "reading it ended its process, which may use as much memory as the script (max_memory_bytes)"
        raise BadModel(f"{names[len(answers)]}: {fault}")
    return sum(answer["parameters"] for answer in answers)


def _asked(ctx: EngineContext, request: bytes) -> bytes:
    deadline, unsent = time.monotonic() + _CHECK_SECONDS, request
    with subprocess.Popen(
        [sys.executable, "-m", "services.training.engines.output_child"],
        # Nothing of our environment: it may hold secrets.
        env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **_ONE_THREAD},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        try:
            while True:
                ctx.stop_if_cancelled()
                try:
                    return child.communicate(unsent, _LOOK_SECONDS)[0]
                except subprocess.TimeoutExpired:
                    # It goes on with what it was given.
                    unsent = b""
                    if time.monotonic() > deadline:
                        raise BadModel(f": reading it takes more than {_CHECK_SECONDS} s") from None
        finally:
            child.kill()
