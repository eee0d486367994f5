"""The Python of a draft, read in a process of its own before it is published."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from contextlib import suppress

from services.training.clients.child import ask
from services.training.domain.spec import invalid

_CHILD = "services.training.engines.python_child"
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
    answer = b""
    with suppress(TimeoutError):
        async with asyncio.timeout(_SECONDS):
            answer = await ask(_CHILD, json.dumps(request).encode(), {"PATH": os.defpath})
    faults: list[str] = [json.loads(line) for line in answer.splitlines()]
    for path, fault in zip(sources, [*faults, "takes too long, or too much memory, to be read"], strict=False):
        if fault:
            raise invalid(path, fault)
