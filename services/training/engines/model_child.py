"""The process in which a stranger's tokenizer is loaded, a chat template rendered, a model made without its weights:
one file, one process.

It reads one request (JSON) from standard input and writes one answer to standard output. Its memory, its processor
time and its descriptors are limited; it has no secrets in its environment and, where the kernel lets a process give up
its network, no network. The wall clock is its parent's (`model_limits.py`).
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from typing import Any

from libs.compute import confine
from libs.compute.context import EngineError

# Address space: the largest vocabularies of today need a quarter of it, the libraries of models most of the other.
MEMORY_BYTES, MODEL_BYTES = 2 * 1024**3, 8 * 1024**3
_OPEN_FILES = 32
Work = Callable[[str], None]
_MOST_ERROR = 300


def _tokenizers() -> Work:
    from tokenizers import Tokenizer

    def load(text: str) -> None:
        Tokenizer.from_str(text).encode("Hello, 世界")

    return load


def _templates() -> Work:
    from services.training.engines.chat_template import template_fault

    def judge(text: str) -> None:
        if fault := template_fault(text):
            raise ValueError(fault)

    return judge


def _models() -> Work:
    from services.training.engines import base

    def fit(text: str) -> None:
        given = json.loads(text)
        try:
            base.check_fit(given["config"], given["shapes"])
        except EngineError as fault:
            raise ValueError(fault.message.removeprefix(base.OF_BASE)) from fault

    return fit


# What loads our own libraries, before there are limits.
_WORK = {"tokenizer": _tokenizers, "template": _templates, "fit": _models}


def main() -> None:
    """Answers one request."""
    answers = confine.private_output()
    confine.leave_network()
    request: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    work = _WORK[request["kind"]]()
    memory = MODEL_BYTES if request["kind"] == "fit" else MEMORY_BYTES
    confine.limit_resources(memory, _OPEN_FILES, 0)
    resource.setrlimit(resource.RLIMIT_CPU, (request["cpu_seconds"], request["cpu_seconds"]))
    error = ""
    try:
        work(request["text"])
    except MemoryError:
        error = f"it needs more than {memory // 1024**2:,} MiB of memory"
    # Parsers of strangers' files raise everything that Python has; whatever it is, the file is at fault.
    except BaseException as fault:
        error = str(fault)[:_MOST_ERROR] or type(fault).__name__
    answers.write(json.dumps({"error": error}).encode())
    answers.flush()


if __name__ == "__main__":
    main()
