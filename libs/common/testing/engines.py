"""Engines for tests of the task mechanism. They leave a line a step in a file, which tells how often each step ran."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from libs.compute.context import EngineContext, EngineError, EngineInterrupted


def steps(ctx: EngineContext) -> dict[str, Any]:
    """Counts to `steps`, `seconds` each; resumes behind the checkpoint; hears cancel and pause unless it is `deaf`."""
    spec = ctx.spec
    first = ctx.resume["step"] + 1 if ctx.resume else 0
    for step in range(first, spec["steps"]):
        if not spec.get("deaf"):
            ctx.stop_if_cancelled()
        with Path(spec["marks"]).open("a") as marks:
            marks.write(f"{ctx.attempt} {step} {os.getpid()}\n")
        time.sleep(spec["seconds"])
        ctx.log(f"step {step}")
        ctx.metrics("count", step, value=float(step))
        ctx.checkpoint({"step": step})
        ctx.progress((step + 1) / spec["steps"], f"step {step}", rows=step + 1)
        if not spec.get("deaf"):
            ctx.pause_if_asked()
    blob = ctx.blobs_write.put_sync(b"counted") if "blobs" in spec else None
    return {"steps": spec["steps"], "first": first, "pid": os.getpid(), "blob": blob.sha256 if blob else ""}


def refuse(ctx: EngineContext) -> dict[str, Any]:
    """Gives up with a reason."""
    raise EngineError("CONTENT_INVALID", "line 3 is not JSON", line="3")


def crash(ctx: EngineContext) -> dict[str, Any]:
    """Has a bug."""
    raise ZeroDivisionError("secret text")


def interrupted(ctx: EngineContext) -> dict[str, Any]:
    """Loses something below it until the third attempt, behind a checkpoint where it `gets_on`, or `stays`."""
    if ctx.spec.get("gets_on"):
        ctx.checkpoint({"attempt": ctx.attempt})
    if ctx.spec.get("stays"):
        ctx.checkpoint({"attempt": ctx.attempt, "advance": 0})
    if ctx.attempt < 3:
        raise EngineInterrupted("a worker went away")
    return {"attempt": ctx.attempt}


class Counter:
    """An object for `RayDriver.start_actor`."""

    def __init__(self, start: int) -> None:
        self._value = start

    def add(self, amount: int) -> int:
        self._value += amount
        return self._value

    async def pid(self) -> int:
        return os.getpid()

    def fail(self) -> None:
        raise EngineError("STATE_CONFLICT", "the counter is broken")
