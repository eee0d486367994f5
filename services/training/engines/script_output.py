"""What a script leaves in its folders: the files of a model, looked at before any of them is kept, and checkpoints."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message

from libs.common.blobs import BlobStore
from libs.compute.context import EngineError
from libs.compute.script_sandbox import ScriptFailed, printable
from services.training.domain import model_files
from services.training.domain.model_files import BadModel
from services.training.domain.safetensors import LENGTH_BYTES, BadWeights, header_length, read_header

Json = dict[str, Any]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_KINDS = (".safetensors", ".onnx", ".json", ".txt", ".md")
_MOST_FILES = 64
# Of a file that is parsed here.
_MOST_TEXT = 64 << 20
# The format's own limit of a message.
_MOST_ONNX = (2 << 30) - 1
# What the platform counts with.
_MOST_PARAMETERS = (1 << 63) - 1


def model_entries(store: BlobStore, folder: Path) -> tuple[list[Json], int]:
    """Stores the files of a model.

    Returns:
        Entries `path`, `sha256`, `size` in order of the paths, and the parameters in the files together.

    Raises:
        EngineError: CONTENT_INVALID that names the file and what is wrong with it.
    """
    try:
        files = _model_files(folder)
        parameters = _counted("", sum(_parameters(path) for path in files))
    except BadModel as error:
        # Names that the script chose, of files and in them.
        told = printable(str(error))
        raise EngineError("CONTENT_INVALID", f"output/{told}", detail=told) from error
    return _stored(store, folder, files), parameters


def keep_folder(store: BlobStore, folder: Path, **beside: Any) -> tuple[str, int]:
    """Stores all files of a folder under one manifest, whatever is in them; its digest, and the bytes of the files.

    Raises:
        ScriptFailed: A name is not UTF-8.
    """
    files = [path for path in _below(folder) if path.is_file() and not path.is_symlink()]
    for name in (str(path.relative_to(folder)) for path in files):
        if printable(name) != name:
            raise ScriptFailed(f"{folder.name}/{printable(name)[:200]}: names of files are UTF-8")
    blobs = _stored(store, folder, files)
    digest = store.commit_sync({"kind": "training.checkpoint", "blobs": blobs, **beside})
    return digest, sum(blob["size"] for blob in blobs)


def bring_folder(store: BlobStore, digest: str, folder: Path) -> None:
    """Writes the files of a manifest below a folder."""
    for entry in store.load_manifest_sync(digest)["blobs"]:
        path = folder / entry["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        store.export_sync(entry["sha256"], path)


def _stored(store: BlobStore, folder: Path, files: list[Path]) -> list[Json]:
    blobs = {str(path.relative_to(folder)): store.put_sync(path) for path in sorted(files)}
    return [blob.entry(path) for path, blob in blobs.items()]


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
            yield Path(root, name)
        for name in sorted(folders):
            path = Path(root, name)
            if path.is_symlink() or not any(path.iterdir()):
                yield path


def _parameters(path: Path) -> int:
    """Parameters of a file that is in order, 0 for those that have none. Raises BadModel."""
    size = path.stat().st_size
    if path.suffix == ".safetensors":
        return _weights(path, size)
    if size > (_MOST_ONNX if path.suffix == ".onnx" else _MOST_TEXT):
        raise BadModel(f"{path.name}: it has {size:,} bytes, more than a file of this kind may have")
    if path.suffix == ".onnx":
        return _onnx(path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            model_files.refuse_remote_code(path.name, json.loads(text))
    except (ValueError, RecursionError):
        raise BadModel(f"{path.name}: it is not {'JSON' if path.suffix == '.json' else 'text in UTF-8'}") from None
    return 0


def _weights(path: Path, size: int) -> int:
    try:
        with path.open("rb") as file:
            length = header_length(file.read(LENGTH_BYTES), size)
            return read_header(file.read(length), size).elements
    except BadWeights as error:
        raise BadModel(f"{path.name}: {error}") from error


def _onnx(path: Path) -> int:
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except DecodeError:
        raise BadModel(f"{path.name}: it is not ONNX") from None
    if not model.graph.node:
        raise BadModel(f"{path.name}: it is not ONNX, or does nothing")
    count = 0
    for tensor in _tensors(model):
        # Such a tensor lies in another file, which could be any file of the machine that reads it.
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise BadModel(f"{path.name}: tensor {tensor.name[:60]!r} lies in another file; write all into one")
        elements = 1
        for dimension in tensor.dims:
            elements = _counted(path.name, elements * max(0, dimension))
        count += elements
    return count


def _counted(name: str, parameters: int) -> int:
    """As many as can be. Raises BadModel."""
    if parameters > _MOST_PARAMETERS:
        raise BadModel(f"{name}: it states more than {_MOST_PARAMETERS:,} parameters")
    return parameters


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All constants, wherever they are: in graphs, functions, what it is trained with, and attributes of nodes."""
    waiting: list[Message] = [model]
    while waiting:
        each = waiting.pop()
        if isinstance(each, onnx.TensorProto):
            yield each
        for field, value in each.ListFields():
            if field.message_type is not None:
                waiting += [value] if isinstance(value, Message) else value
