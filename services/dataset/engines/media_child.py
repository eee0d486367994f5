"""The process in which files of strangers are decoded: `python -m services.dataset.engines.media_child`.

It reads requests from standard input and writes answers to standard output, a line of JSON each. Its memory, its
processor time a request, its open files and the size of what it writes are limited; it has no secrets in its
environment and, where the kernel lets a process give up its network, no network. The wall clock is its parent's.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from libs.compute import confine

# Address space. 0.9 GB are taken by the libraries themselves.
MEMORY_BYTES = 3 * 1024**3
# Of one request.
CPU_SECONDS = 60
_OPEN_FILES = 64
_FILE_BYTES = 2 * 1024**3


def limit_resources() -> None:
    """Limits that hold for the whole life of the process."""
    confine.limit_resources(MEMORY_BYTES, _OPEN_FILES, _FILE_BYTES)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    from services.dataset.engines import decoding

    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1 + CPU_SECONDS, most))
    try:
        path, media_type = Path(request["path"]), request["media_type"]
        if "out" not in request:
            return {"facts": decoding.facts_of(path, media_type)}
        if "steps" not in request:
            return {"facts": decoding.write_pixels(path, Path(request["out"]))}
        from services.dataset.engines.media_augmentation import augment_file

        done = augment_file(path, Path(request["out"]), media_type, request["steps"], request["boxes"])
        return {"facts": done.facts, "boxes": done.boxes, "applied": done.applied}
    except decoding.BadMedia as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": f"decoding it needs more than {MEMORY_BYTES // 1024**2:,} MiB of memory"}
    # Decoders raise everything that Python has; whatever it is, the file is at fault.
    except Exception as error:
        return {"error": f"cannot be decoded: {error or type(error).__name__}"}


def main() -> None:
    """Answers until standard input ends."""
    answers = confine.private_output()
    confine.leave_network()
    limit_resources()
    for line in sys.stdin.buffer:
        answers.write(json.dumps(_answer(json.loads(line))).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
