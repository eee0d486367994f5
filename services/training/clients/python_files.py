"""The Python of a draft, read in a process of its own before it is published."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping

from services.training.domain.spec import invalid

# Two megabytes of Python, which is all that a draft may have, take one or two.
_CPU_SECONDS = 5
# More than the processor time, because other processes want the processor.
_SECONDS = 20.0


async def require_python(sources: Mapping[str, str]) -> None:
    """Raises INVALID_FIELD, naming file and line, for Python that cannot run, or cannot be read in some seconds.

    Args:
        sources: by path.
    """
    request = {"sources": dict(sources), "cpu_seconds": _CPU_SECONDS}
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.training.engines.python_child",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        # Nothing of our environment: it may hold secrets.
        env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    answer = b""
    try:
        async with asyncio.timeout(_SECONDS):
            answer, _ = await child.communicate(json.dumps(request).encode())
    except TimeoutError:
        pass
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    faults: list[str] = [json.loads(line) for line in answer.splitlines()]
    for path, fault in zip(sources, [*faults, "takes too long, or too much memory, to be read"], strict=False):
        if fault:
            raise invalid(path, fault)
