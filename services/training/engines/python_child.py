"""The process in which the Python of a draft is read: a request (JSON: `sources` by path, `cpu_seconds`) from standard
input, a fault (JSON, a text) to standard output for each.

A file of some kilobytes can take its reader seconds (the time that CPython 3.11 takes for an f-string grows with the
square of its length), and no other thread runs meanwhile, so it is not read where calls are answered.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

from libs.compute import confine
from services.training.domain.programs import python_fault

_MEMORY_BYTES = 1 << 30
_OPEN_FILES = 32


def main() -> None:
    """Answers one request."""
    answers = confine.private_output()
    request: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    confine.limit_resources(_MEMORY_BYTES, _OPEN_FILES, 0)
    resource.setrlimit(resource.RLIMIT_CPU, (request["cpu_seconds"], request["cpu_seconds"]))
    for source in request["sources"].values():
        answers.write(json.dumps(python_fault(source)).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
