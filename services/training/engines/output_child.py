"""The process in which files that a script wrote are read: a request (JSON) from standard input, an answer (JSON) to
standard output for each file, until one is at fault.

A file of a few bytes can ask its reader for all memory of the machine, so that of this process is limited, and so are
its processor time and its descriptors; it writes no file and has nothing of our environment. The wall clock is its
parent's (`script_output.py`).
"""

from __future__ import annotations

import ctypes
import json
import resource
import sys
from pathlib import Path
from typing import Any

from libs.compute import confine
from libs.compute.script_child import limit_resources
from services.training.domain import model_files
from services.training.domain.model_files import BadModel
from services.training.domain.safetensors import LENGTH_BYTES, BadWeights, header_length, read_header

# Of a file that becomes objects of Python.
_MOST_TEXT = 64 << 20
_MEMORY = "reading it takes more memory than the script may use (max_memory_bytes)"


def look(path: Path, names: list[str]) -> int:
    """Parameters of a file that is in order, 0 for those that have none.

    Args:
        names: of all files of the model.

    Raises:
        BadModel: It names the file and what is wrong with it.
    """
    try:
        if path.suffix == ".safetensors":
            return _weights(path)
        if path.suffix == ".onnx":
            # Nothing else needs it, and it takes a third of a second.
            from services.training.engines import onnx_files

            return onnx_files.parameters(path)
        _text(path, names)
    except MemoryError:
        raise BadModel(f"{path.name}: {_MEMORY}") from None
    return 0


def _text(path: Path, names: list[str]) -> None:
    size = path.stat().st_size
    if size > _MOST_TEXT:
        raise BadModel(f"{path.name}: it has {size:,} bytes, more than a file of this kind may have")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise BadModel(f"{path.name}: it is not {'JSON' if path.suffix == '.json' else 'text in UTF-8'}") from None
    model_files.refuse_remote_code(path.name, document)
    if path.name == model_files.INDEX:
        places = model_files.shards(document if isinstance(document, dict) else {})
        for missing in sorted(set(places.values()) - set(names)):
            raise BadModel(f"{path.name}: it names {missing[:200]}, which is missing")


def _weights(path: Path) -> int:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = header_length(file.read(LENGTH_BYTES), size)
            return read_header(file.read(length), size).elements
    except BadWeights as error:
        raise BadModel(f"{path.name}: {error}") from error


def main() -> None:
    """Answers one request."""
    answers = confine.private_output()
    request: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    confine.end_with_parent(ctypes.CDLL(None, use_errno=True), request["parent"])
    confine.leave_network()
    limit_resources(request["memory"], 0)
    resource.setrlimit(resource.RLIMIT_CPU, (request["cpu_seconds"], request["cpu_seconds"]))
    folder, names = Path(request["folder"]), request["names"]
    for name in names:
        try:
            found: dict[str, Any] = {"parameters": look(folder / name, names)}
        except BadModel as error:
            found = {"error": str(error)}
        # Parsers of strangers' files raise everything that Python has; whatever it is, the file is at fault.
        except BaseException as fault:
            found = {"error": f"{name}: reading it failed with {type(fault).__name__}"}
        answers.write(json.dumps(found).encode() + b"\n")
        answers.flush()
        if "error" in found:
            return


if __name__ == "__main__":
    main()
