"""Processes of their own for what is not looked at where calls are answered."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping


async def ask(module: str, request: bytes, environment: Mapping[str, str]) -> bytes:
    """What a module, started as a program, answers on standard output. It is killed where the caller is cancelled or
    his time is over.

    Args:
        module: dotted name.
        request: for its standard input.
        environment: all that it knows of ours beside the module path: no secret.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        answer, _ = await child.communicate(request)
        return answer
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
