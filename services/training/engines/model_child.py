"""The process in which a stranger's tokenizer is loaded and chat template rendered: one file, one process.

It reads one request (JSON) from standard input and writes one answer to standard output. Its memory, its processor
time and its descriptors are limited; it has no secrets in its environment and, where the kernel lets a process give up
its network, no network. The wall clock is its parent's (`model_limits.py`).
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

from libs.compute import confine

# Address space: the largest vocabularies of today need a quarter of it.
MEMORY_BYTES = 2 * 1024**3
_OPEN_FILES = 32
_MOST_ERROR = 300


def _load_tokenizer(text: str) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    tokenizer.encode("Hello, 世界")


def _judge(text: str) -> None:
    from services.training.engines.chat_template import template_fault

    if fault := template_fault(text):
        raise ValueError(fault)


_WORK = {"tokenizer": _load_tokenizer, "template": _judge}


def main() -> None:
    """Answers one request."""
    answers = confine.private_output()
    confine.leave_network()
    confine.limit_resources(MEMORY_BYTES, _OPEN_FILES, 0)
    request: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    resource.setrlimit(resource.RLIMIT_CPU, (request["cpu_seconds"], request["cpu_seconds"]))
    error = ""
    try:
        _WORK[request["kind"]](request["text"])
    except MemoryError:
        error = f"it needs more than {MEMORY_BYTES // 1024**2:,} MiB of memory"
    # Parsers of strangers' files raise everything that Python has; whatever it is, the file is at fault.
    except BaseException as fault:
        error = str(fault)[:_MOST_ERROR] or type(fault).__name__
    answers.write(json.dumps({"error": error}).encode())
    answers.flush()


if __name__ == "__main__":
    main()
